"""Measures of a space of sentence embeddings: pure functions of float arrays of shape (n, D).

Arrays of NumPy are taken, and tensors of torch, whose gradients stay out of it. Whatever is defined
on the unit sphere normalises the rows itself; `spectrum` and `isoscore` take them as they are.
Everything is exact: nothing is sampled.

A measure that is a mean over texts has a sister, `..._by_text`, with the terms of that mean, which
`intervals.mean_interval` turns into an interval. Hubness and intrinsic dimension stand in
`neighbourhoods`, measures of the tokens of a text in `token_geometry`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike

_TILE = 512  # rows and columns of a tile of the pair matrix: 1 MB in float32 stays in the cache
_ROUNDING = 4  # units of it that a row of length one may be off, in the precision of its numbers


class Spectrum(NamedTuple):
    """What :func:`spectrum` returns."""

    singular_values: np.ndarray
    effective_rank: float
    svd_entropy: float
    condition_number: float
    rankme: float
    rank: int


def anisotropy(embeddings: ArrayLike, *, centred: bool = False) -> float:
    r"""Mean cosine of distinct pairs of rows, in closed form (Ethayarajh, EMNLP 2019).

    With unit rows :math:`u_i`, :math:`(\lVert \sum_i u_i \rVert^2 - n) / (n(n-1))`, in O(nD).
    Range [-1/(n-1), 1]; near 0 the directions spread evenly, which is good, near 1 they form a
    narrow cone. With `centred` the mean of the unit rows is removed first (Mu & Viswanath, ICLR
    2018): what is left then is not due to one common direction.

    Raises:
        ValueError: Fewer than two rows, a row of zeros (with `centred`: a row that is the mean), or
            values that are not finite.
    """
    return float(anisotropy_by_text(embeddings, centred=centred).mean())


def anisotropy_by_text(embeddings: ArrayLike, *, centred: bool = False) -> np.ndarray:
    r"""Mean cosine of each row with the n - 1 others, (n,); their mean is :func:`anisotropy`.

    :math:`(u_i \cdot \sum_j u_j - 1) / (n-1)`, in [-1, 1]. Raises as :func:`anisotropy`.
    """
    units = unit_rows(embeddings, rows=2)
    if centred:
        units -= _mean(units)
        # What the mean's rounding leaves of a row is no direction.
        lengths = np.linalg.norm(units, axis=1, keepdims=True)
        lengths[lengths <= _ROUNDING * np.finfo(units.dtype).eps] = 0
        if not lengths.all():
            raise ValueError(
                f"anisotropy: expected rows that differ from their mean, found that row "
                f"{np.argmin(lengths)} is the mean: centred, it has no direction."
            )
        units /= lengths
    total = units.sum(axis=0, dtype=np.float64)
    # The rows' own squared lengths, rather than 1, cancel the rounding of the normalisation.
    own = np.einsum("nd,nd->n", units, units, dtype=np.float64)
    return (np.einsum("nd,d->n", units, total, dtype=np.float64) - own) / (len(units) - 1)


def principal_shares(embeddings: ArrayLike) -> np.ndarray:
    r"""Shares of the variance of the unit rows along their principal directions, falling.

    :math:`\sigma_k^2 / \sum \sigma^2` with the singular values of the unit rows less their mean,
    (min(n, D),), sum 1. The sum of the first k says how far k directions dominate (Mu & Viswanath,
    ICLR 2018): good is near k / D, near 1 all else is flat. Computed in float64.

    Raises:
        ValueError: Fewer than two rows, a row of zeros, values that are not finite, or one
            direction for all rows.
    """
    units = unit_rows(embeddings, rows=2)
    spread = np.subtract(units, _mean(units), dtype=np.float64)
    energies = np.linalg.svd(spread, compute_uv=False) ** 2
    if energies.sum() <= len(units) * (_ROUNDING * np.finfo(units.dtype).eps) ** 2:
        raise ValueError("principal_shares: expected two directions or more, found a single one.")
    return energies / energies.sum()


def _mean(units: np.ndarray) -> np.ndarray:
    """The mean row in float64; of equal rows that very row, which their sum would miss."""
    first = units[0].astype(np.float64)
    blocks = np.array_split(units, -(-len(units) // _TILE))  # for copies in float64 are large
    return first + sum(np.subtract(block, first).sum(axis=0) for block in blocks) / len(units)


def uniformity(embeddings: ArrayLike, t: float = 2.0) -> float:
    r"""How evenly the rows cover the unit sphere (Wang & Isola, ICML 2020): lower is more even.

    :math:`\log \operatorname{mean}_{i<j} e^{-t \lVert u_i - u_j \rVert^2}` over distinct pairs of
    unit rows, in [-4t, 0]; the even distribution in many dimensions has -2t. Time O(n^2 D), over
    the pairs i <= j only; memory O(nD) and a few tiles of fixed size, never n x n. Products are
    taken in the precision of the input, float32 at least; the sum is in float64.

    Raises:
        ValueError: Fewer than two rows, a row of zeros, values that are not finite, or t <= 0.
    """
    return float(np.log(potential_by_text(embeddings, t).mean()))


def potential_by_text(embeddings: ArrayLike, t: float = 2.0) -> np.ndarray:
    r"""Mean Gaussian potential of each row with the n - 1 others, (n,), in [e^(-4t), 1].

    The log of their mean is :func:`uniformity`; a high one is a text in a crowd. Raises as that.
    """
    if not t > 0:
        raise ValueError(f"uniformity: expected t > 0, found {t}.")
    units = unit_rows(embeddings, rows=2)
    # A shift leaves the distances, and about the mean the products are small, and so their errors.
    units -= units.mean(axis=0, dtype=np.float64)
    squares = np.einsum("nd,nd->n", units, units, dtype=np.float64).astype(units.dtype)[:, None]
    one = np.ones_like(squares)
    sums = np.zeros(len(units))
    for top in range(0, len(units), _TILE):
        rows = slice(top, top + _TILE)
        # Two columns more make the product -t |u - v|^2 = 2t uv - t |u|^2 - t |v|^2.
        factor = t * np.hstack((2 * units[rows], -squares[rows], -one[rows]))
        for left in range(top, len(units), _TILE):
            columns = slice(left, left + _TILE)
            tile = factor @ np.hstack((units[columns], one[columns], squares[columns])).T
            np.exp(tile, out=tile)
            if left == top:  # symmetric, and its diagonal holds no distinct pair
                np.fill_diagonal(tile, 0)
            else:
                sums[columns] += tile.sum(axis=0, dtype=np.float64)
            sums[rows] += tile.sum(axis=1, dtype=np.float64)
    return sums / (len(units) - 1)


def alignment(x: ArrayLike, y: ArrayLike, alpha: float = 2.0) -> float:
    r"""How close the two sides of positive pairs lie (Wang & Isola, ICML 2020): lower is closer.

    :math:`\operatorname{mean}_i \lVert u_i - v_i \rVert^\alpha` of the unit rows of `x` (n, D) and
    `y` (n, D), where row i of `x` and row i of `y` are a pair; in [0, 2^alpha].

    Raises:
        ValueError: No rows, two shapes, a row of zeros, values that are not finite, or alpha <= 0.
    """
    return float(alignment_by_text(x, y, alpha).mean())


def alignment_by_text(x: ArrayLike, y: ArrayLike, alpha: float = 2.0) -> np.ndarray:
    """The distance of each pair to the power `alpha`, (n,); their mean is :func:`alignment`."""
    if not alpha > 0:
        raise ValueError(f"alignment: expected alpha > 0, found {alpha}.")
    x, y = unit_rows(x, rows=1), unit_rows(y, rows=1)
    if x.shape != y.shape:
        raise ValueError(
            f"alignment: expected row i of x and row i of y to be a pair, found shapes {x.shape} "
            f"and {y.shape}."
        )
    return np.linalg.norm(np.subtract(x, y, dtype=np.float64), axis=1) ** alpha


def cosine_gap(
    queries: ArrayLike, passages: ArrayLike, positives: ArrayLike | None = None
) -> float:
    r"""How far positives stand out: their mean cosine less that of all other pairs.

    For each query with a positive, :math:`\operatorname{mean}_{j \in P_i} u_i v_j -
    \operatorname{mean}_{j \notin P_i} u_i v_j` over the unit rows of `queries` (Q, D) and
    `passages` (C, D); then the mean over those queries. In [-2, 2]; 0 is chance, higher is better.
    Unlike alignment, it does not improve where all texts move together. In closed form, so the
    random pairs are all there are: time O((Q + C + m) D).

    Args:
        queries: (Q, D).
        passages: (C, D).
        positives: (m, 2), rows (query, passage) that belong together, each counted once; left out:
            row i with row i.

    Raises:
        ValueError: Two dimensions, no positives, rows that do not exist, a query to which all
            passages are positives, a row of zeros, or values that are not finite.
    """
    return float(cosine_gap_by_text(queries, passages, positives).mean())


def cosine_gap_by_text(
    queries: ArrayLike, passages: ArrayLike, positives: ArrayLike | None = None
) -> np.ndarray:
    """The gap of each query that has a positive, in order; their mean is :func:`cosine_gap`."""
    queries, passages = unit_rows(queries, rows=1), unit_rows(passages, rows=2)
    check_dimensions("cosine_gap", queries, passages)
    if positives is None:
        positives = np.arange(len(queries))[:, None].repeat(2, axis=1)
    pairs = np.asarray(positives)
    shape = (len(queries), len(passages))
    if pairs.ndim != 2 or pairs.shape[1:] != (2,) or not np.issubdtype(pairs.dtype, np.integer):
        raise ValueError(
            f"cosine_gap: expected positives as integers of shape (m, 2), found {pairs.dtype} of "
            f"shape {pairs.shape}."
        )
    if not len(pairs) or (pairs < 0).any() or (pairs >= shape).any():
        raise ValueError(
            f"cosine_gap: expected positives between {shape[0]} queries and {shape[1]} passages, "
            f"found {'rows that do not exist' if len(pairs) else 'none'}."
        )
    row, column = np.unique(pairs, axis=0).T
    cosines = np.einsum("nd,nd->n", queries[row], passages[column], dtype=np.float64)
    count = np.bincount(row, minlength=len(queries))
    chosen = count > 0
    if (count == len(passages)).any():
        raise ValueError(
            f"cosine_gap: expected passages that are no positives to compare with, found none for "
            f"query {np.argmax(count)}."
        )
    total = passages.sum(axis=0, dtype=np.float64)
    positive = np.bincount(row, weights=cosines, minlength=len(queries))[chosen]
    other = np.einsum("nd,d->n", queries[chosen], total, dtype=np.float64) - positive
    return positive / count[chosen] - other / (len(passages) - count[chosen])


def spectrum(embeddings: ArrayLike) -> Spectrum:
    r"""Singular values of the matrix of embeddings, neither centred nor normalised, and summaries.

    With :math:`\sigma_1 \ge \dots \ge \sigma_L`, L = min(n, D):

    - `effective_rank` (Roy & Vetterli, EUSIPCO 2007): :math:`e^{H(p)}` with
      :math:`p_k = \sigma_k / \sum \sigma`, H the entropy in nats; in [1, L], higher is more even.
    - `svd_entropy` (Alter et al., PNAS 2000): :math:`H(q) / \log L` with
      :math:`q_k = \sigma_k^2 / \sum \sigma^2`, the shares of energy; in [0, 1], 1 where all
      directions carry the same, and 0 where L is 1.
    - `condition_number`: :math:`\sigma_1 / \sigma_L`, at least 1, lower is more even; infinite
      where :math:`\sigma_L` is no more than :math:`\sigma_1 \max(n, D)` times the rounding unit of
      the input.
    - `rankme` (Garrido et al., ICML 2023): the effective rank with their 1e-7 added to each
      :math:`p_k`; in [1, L] but for that.
    - `rank`: how many singular values exceed that bound of rounding; from 1 to L.

    Since the mean is not removed, a common direction of all rows shows as a large
    :math:`\sigma_1`. Computed in float64.

    Raises:
        ValueError: Fewer than two rows, values that are not finite, or nothing but zeros.
    """
    matrix = as_matrix(embeddings, rows=2)
    singular_values = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    largest, smallest = singular_values[0], singular_values[-1]
    if largest == 0:
        raise ValueError("spectrum: expected a row that is not zero, found only zeros.")
    relative = singular_values / largest  # squares neither overflow nor vanish
    count = len(relative)
    rank = int((relative > max(matrix.shape) * np.finfo(matrix.dtype).eps).sum())
    smoothed = relative / relative.sum() + 1e-7
    return Spectrum(
        singular_values=singular_values,
        effective_rank=float(np.exp(_entropy(relative))),
        svd_entropy=_entropy(relative**2) / np.log(count) if count > 1 else 0.0,
        condition_number=float(largest / smallest) if rank == count else float("inf"),
        rankme=float(np.exp(-(smoothed * np.log(smoothed)).sum())),
        rank=rank,
    )


def isoscore(embeddings: ArrayLike) -> float:
    """How evenly the variance fills the space (Rudman et al., Findings of ACL 2022), by IsoScore.

    From the eigenvalues of the covariance of the rows (n, D), neither normalised nor, but for that,
    centred: with their vector scaled to length sqrt(D), its distance from (1, ..., 1) scaled so
    that 0 is a single direction and 1 is equal variance in all D, which is good; a value of x says
    that about x D dimensions are used evenly. With n < D + 1 it cannot reach 1: compare equal n.
    Unchanged by rotation, shift and one scale for all. Exact to about 1e-7, for the library takes
    its square roots of D in float32.

    Raises:
        ImportError: The package IsoScore is missing.
        ValueError: Fewer than two rows or dimensions, values that are not finite, or equal rows.
    """
    try:
        from IsoScore.IsoScore import IsoScore
    except ImportError as error:
        raise ImportError(
            "isoscore: expected the package IsoScore, found it not installed. Run `pip install "
            "IsoScore`."
        ) from error
    matrix = as_matrix(embeddings, rows=2)
    if matrix.shape[1] < 2 or (matrix == matrix[0]).all():
        raise ValueError(
            f"isoscore: expected rows that differ, in two dimensions or more, found "
            f"{'one dimension' if matrix.shape[1] < 2 else 'equal rows'}."
        )
    return float(IsoScore(matrix.astype(np.float64)))


def _entropy(weights: np.ndarray) -> float:
    """Entropy in nats of weights >= 0 scaled to sum to one; 0 log 0 is 0."""
    p = weights[weights > 0] / weights.sum()
    return float(-(p * np.log(p)).sum()) + 0.0  # 0.0, not -0.0, for a single direction


def as_matrix(embeddings: ArrayLike, rows: int) -> np.ndarray:
    """As a finite float matrix of at least `rows` rows, in float32 or the wider type it has.

    Raises:
        ValueError: Fewer rows, no columns, another number of axes, or values that are not real or
            not finite.
    """
    matrix = as_array(embeddings)
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


def as_array(values: ArrayLike) -> np.ndarray:
    """As an array of real numbers; tensors are taken from their graph and device.

    Raises:
        ValueError: They are no real numbers.
    """
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        if values.dtype == torch.bfloat16:  # which NumPy does not know
            values = values.float()
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"Expected embeddings of real numbers, found {array.dtype}.")
    return array


def unit_rows(embeddings: ArrayLike, rows: int) -> np.ndarray:
    """A copy with each row scaled to length one.

    Raises:
        ValueError: As `as_matrix`, or a row of zeros.
    """
    matrix = as_matrix(embeddings, rows)
    lengths = np.sqrt(np.einsum("nd,nd->n", matrix, matrix, dtype=np.float64))
    if not lengths.all():
        raise ValueError(
            f"Expected embeddings that have a direction, found a row of zeros: row "
            f"{np.argmin(lengths)}."
        )
    return np.divide(matrix, lengths[:, None], dtype=matrix.dtype)


def check_dimensions(measure: str, queries: np.ndarray, passages: np.ndarray) -> None:
    """Refuse two matrices of different dimensions, in the name of a measure.

    Raises:
        ValueError: They differ.
    """
    if queries.shape[1] != passages.shape[1]:
        raise ValueError(
            f"{measure}: expected queries and passages of one dimension, found {queries.shape[1]} "
            f"and {passages.shape[1]}. Encode both with the same model."
        )
