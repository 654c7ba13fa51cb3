"""Measures of a space of sentence embeddings: pure functions of float arrays of shape (n, D).

Arrays of NumPy and tensors on the CPU are taken alike. Whatever is defined on the unit sphere
(anisotropy, uniformity, alignment) normalises the rows itself; `spectrum` takes them as they are.
Everything is exact: nothing is sampled.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

_TILE = 2048  # rows and columns of a tile of the pair matrix: 16 MB in float32


class Spectrum(NamedTuple):
    """What :func:`spectrum` returns."""

    singular_values: np.ndarray
    effective_rank: float
    svd_entropy: float
    condition_number: float


def anisotropy(embeddings: ArrayLike) -> float:
    r"""Mean cosine of distinct pairs of rows, in closed form (Ethayarajh, 2019).

    With unit rows :math:`u_i`, :math:`(\lVert \sum_i u_i \rVert^2 - n) / (n(n-1))`, in O(nD).
    Range [-1/(n-1), 1]; near 0 the directions spread evenly, near 1 they form a narrow cone.

    Raises:
        ValueError: Fewer than two rows, a row of zeros, or values that are not finite.
    """
    units = _units(embeddings, rows=2)
    n = len(units)
    total = units.sum(axis=0, dtype=np.float64)
    # The rows' own squared lengths, rather than n, cancel the rounding of the normalisation.
    own = np.einsum("nd,nd->", units, units, dtype=np.float64)
    return float((total @ total - own) / (n * (n - 1)))


def uniformity(embeddings: ArrayLike, t: float = 2.0) -> float:
    r"""How evenly the rows cover the unit sphere (Wang & Isola, ICML 2020): lower is more even.

    :math:`\log \operatorname{mean}_{i<j} e^{-t \lVert u_i - u_j \rVert^2}` over distinct pairs of
    unit rows, in [-4t, 0]. Time O(n^2 D), over the pairs i <= j only; memory O(nD) and a tile of
    fixed size, never n x n. Products are taken in the precision of the input, float32 at least;
    the sum is in float64.

    Raises:
        ValueError: Fewer than two rows, a row of zeros, values that are not finite, or t <= 0.
    """
    if not t > 0:
        raise ValueError(f"uniformity: expected t > 0, found {t}.")
    units = _units(embeddings, rows=2)
    n = len(units)
    total = 0.0
    for top in range(0, n, _TILE):
        rows = units[top : top + _TILE]
        for left in range(top, n, _TILE):
            tile = rows @ units[left : left + _TILE].T
            # -t |u - v|^2 = 2 t (cos - 1) for unit vectors
            tile -= 1
            tile *= 2 * t
            np.exp(tile, out=tile)
            kernel = tile.sum(dtype=np.float64)
            if left == top:  # symmetric, and its diagonal holds no distinct pair
                kernel = (kernel - tile.trace(dtype=np.float64)) / 2
            total += kernel
    return float(np.log(total / (n * (n - 1) / 2)))


def alignment(x: ArrayLike, y: ArrayLike, alpha: float = 2.0) -> float:
    r"""How close the two sides of positive pairs lie (Wang & Isola, ICML 2020): lower is closer.

    :math:`\operatorname{mean}_i \lVert u_i - v_i \rVert^\alpha` of the unit rows of `x` (n, D) and
    `y` (n, D), where row i of `x` and row i of `y` are a pair; in [0, 2^alpha].

    Raises:
        ValueError: No rows, two shapes, a row of zeros, values that are not finite, or alpha <= 0.
    """
    if not alpha > 0:
        raise ValueError(f"alignment: expected alpha > 0, found {alpha}.")
    x, y = _units(x, rows=1), _units(y, rows=1)
    if x.shape != y.shape:
        raise ValueError(
            f"alignment: expected row i of x and row i of y to be a pair, found shapes {x.shape} "
            f"and {y.shape}."
        )
    distances = np.linalg.norm(np.subtract(x, y, dtype=np.float64), axis=1)
    return float(np.mean(distances**alpha))


def spectrum(embeddings: ArrayLike) -> Spectrum:
    r"""Singular values of the matrix of embeddings, neither centred nor normalised, and summaries.

    With :math:`\sigma_1 \ge \dots \ge \sigma_L`, L = min(n, D):

    - `effective_rank` (Roy & Vetterli, EUSIPCO 2007; RankMe): :math:`e^{H(p)}` with
      :math:`p_k = \sigma_k / \sum \sigma`, H the entropy in nats; in [1, L].
    - `svd_entropy` (Alter et al., PNAS 2000): :math:`H(q) / \log L` with
      :math:`q_k = \sigma_k^2 / \sum \sigma^2`, the shares of energy; in [0, 1], 1 where all
      directions carry the same, and 0 where L is 1.
    - `condition_number`: :math:`\sigma_1 / \sigma_L`; infinite where :math:`\sigma_L` is no more
      than :math:`\sigma_1 \max(n, D)` times the rounding unit of the input.

    Since the mean is not removed, a common direction of all rows shows as a large
    :math:`\sigma_1`. Computed in float64.

    Raises:
        ValueError: Fewer than two rows, values that are not finite, or nothing but zeros.
    """
    matrix = _matrix(embeddings, rows=2)
    singular_values = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    largest, smallest = singular_values[0], singular_values[-1]
    if largest == 0:
        raise ValueError("spectrum: expected a row that is not zero, found only zeros.")
    relative = singular_values / largest  # squares neither overflow nor vanish
    energies = relative**2
    count = len(relative)
    rounding = max(matrix.shape) * np.finfo(matrix.dtype).eps
    return Spectrum(
        singular_values=singular_values,
        effective_rank=float(np.exp(_entropy(relative))),
        svd_entropy=_entropy(energies) / np.log(count) if count > 1 else 0.0,
        condition_number=float(largest / smallest) if relative[-1] > rounding else float("inf"),
    )


def _entropy(weights: np.ndarray) -> float:
    """Entropy in nats of weights >= 0 scaled to sum to one; 0 log 0 is 0."""
    p = weights[weights > 0] / weights.sum()
    return float(-(p * np.log(p)).sum()) + 0.0  # 0.0, not -0.0, for a single direction


def _matrix(embeddings: ArrayLike, rows: int) -> np.ndarray:
    """As a finite float matrix of at least `rows` rows, in float32 or the wider type it has."""
    matrix = np.asarray(embeddings)
    matrix = matrix.astype(np.result_type(matrix.dtype, np.float32), copy=False)
    if matrix.ndim != 2 or len(matrix) < rows or matrix.shape[1] == 0:
        raise ValueError(
            f"Expected embeddings of shape (n, D) with n >= {rows}, found {matrix.shape}."
        )
    finite = np.isfinite(matrix).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"Expected finite embeddings, found NaN or infinity in {np.sum(~finite)} rows, the "
            f"first of them row {np.argmin(finite)}. Look at the text and the model behind it."
        )
    return matrix


def _units(embeddings: ArrayLike, rows: int) -> np.ndarray:
    matrix = _matrix(embeddings, rows)
    lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
    if not lengths.all():
        raise ValueError(
            f"Expected embeddings that have a direction, found a row of zeros: row "
            f"{np.argmin(lengths)}."
        )
    return matrix / lengths
