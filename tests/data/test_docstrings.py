"""Queries and passages of single docstrings."""

from __future__ import annotations

import pytest

from codiemb_lib.data.docstrings import read_docstring

NUMPYDOC = """Compute the mean of an array.

The *average* is taken over the flattened array by default, see :func:`~numpy.sum`
or ``median`` [1]_, otherwise over the axis:

.. math:: \\bar x

.. versionadded:: 1.2
   Not worth a word.

>>> mean([1, 2])
1.5

Parameters
----------
a : array_like
    Numbers whose mean is desired.

    More about them.
axis : int, optional
    Axis along which the means are computed.
%(out)s

Returns
-------
m : ndarray
    The means, in an array of the same type.

Examples
--------
>>> mean([1])

Notes
-----
The arithmetic mean is the sum of the elements divided by their number. See Notes below.
"""


def test_a_numpydoc_docstring():
    summary, texts = read_docstring(NUMPYDOC, (4, 64))
    assert summary == "Compute the mean of an array."
    assert texts == [
        "The arithmetic mean is the sum of the elements divided by their number.",
        "a (array_like): Numbers whose mean is desired. "
        "axis (int, optional): Axis along which the means are computed.",
        "m (ndarray): The means, in an array of the same type.",
    ]


GOOGLE = """mean(input, dim) -> Tensor

Returns the mean value of each row.

.. note:: Rows are those of the ``input`` tensor
    in the given dimension, `dim`.

Args:
    input (Tensor): the input tensor,
        of any shape
    dim: the dimension to reduce
    {keepdim}

Returns:
    A tensor with one dimension fewer.

Example::

    >>> mean(x, 1)
"""


def test_a_google_docstring():
    summary, texts = read_docstring(GOOGLE, (4, 64))
    assert summary == "Returns the mean value of each row."
    assert texts == [
        "Rows are those of the input tensor in the given dimension, dim.",
        "input (Tensor): the input tensor, of any shape. dim: the dimension to reduce.",
    ]


@pytest.mark.parametrize(
    "docstring",
    [
        "",
        "Too short.\n\nThis description would do, but nobody asks for it.",
        "Deprecated since 1.2, use another function.\n\nA description that would otherwise do.",
        "Return the %(name)s of an array.\n\nA description that would otherwise do quite well.",
        "Return the mean of an array.",
        "Return the mean of an array.\n\nHere we return the mean of an array, once more.",
        "Return the mean of an array.\n\nToo short.",
    ],
)
def test_a_docstring_without_a_fit_pair(docstring):
    assert read_docstring(docstring, (5, 64)) == ("", [])


def test_passages_end_at_a_sentence():
    sentence = "This sentence has just seven words inside."
    _, (text,) = read_docstring(f"Return the mean of it.\n\n{' '.join([sentence] * 9)}", (4, 20))
    assert text == f"{sentence} {sentence}"
    _, (text,) = read_docstring(f"Return the mean of it.\n\n{'word ' * 50}", (4, 20))
    assert len(text.split()) == 20
