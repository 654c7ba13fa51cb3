"""Words that are compared."""

from __future__ import annotations

import unicodedata

import pytest

from codiemb_lib.core.words import normalise


@pytest.mark.parametrize(
    ("text", "other", "alike"),
    [
        ("Paris ", "paris", True),
        ("what's_new?", "What S  new", True),
        ("Crème brûlée", unicodedata.normalize("NFD", "crème brûlée!"), True),
        ("की", "कि", False),  # vowel signs, which are no letters, are all that differs
        ("?!", "!?", False),
        ("北京 大学", "北京大学", False),
    ],
)
def test_what_reads_alike_is_equal(text, other, alike):
    assert (normalise(text) == normalise(other)) == alike
