"""Measures of a space of sentence embeddings: pure functions of float arrays of shape (n, D).

What is defined on the unit sphere normalises the rows itself; `spectrum`, `isoscore` and
`intrinsic_dimension` take them as they are. Everything is exact: nothing is sampled. A measure that
is a mean over texts is given by its terms, `..._by_text`, from which `mean_interval` makes the mean
and its interval.

All raise ValueError where there are too few rows or a value is NaN or infinite, and those of the
unit sphere for a row of zeros.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from sklearn.neighbors import NearestNeighbors

_TILE = 512  # rows and columns of a tile of the pair matrix: 1 MB in float32 stays in the cache


# Means over texts, on the unit sphere


def anisotropy(embeddings: ArrayLike) -> float:
    r"""Mean cosine of distinct pairs of rows, in closed form (Ethayarajh, EMNLP 2019).

    With unit rows :math:`u_i`, :math:`(\lVert \sum_i u_i \rVert^2 - n) / (n(n-1))`, in O(nD).
    Range [-1/(n-1), 1]; near 0 the directions spread evenly, which is good, near 1 they form a
    narrow cone.
    """
    return float(anisotropy_by_text(embeddings).mean())


def anisotropy_by_text(embeddings: ArrayLike) -> np.ndarray:
    r"""Mean cosine of each row with the n - 1 others, (n,); their mean is :func:`anisotropy`.

    :math:`(u_i \cdot \sum_j u_j - 1) / (n-1)`.
    """
    units = unit_rows(embeddings, rows=2)
    total = units.sum(axis=0, dtype=np.float64)
    # The rows' own squared lengths, rather than 1, cancel the rounding of the normalisation.
    own = np.einsum("nd,nd->n", units, units, dtype=np.float64)
    return (np.einsum("nd,d->n", units, total, dtype=np.float64) - own) / (len(units) - 1)


def uniformity(embeddings: ArrayLike, t: float = 2.0) -> float:
    r"""How evenly the rows cover the unit sphere (Wang & Isola, ICML 2020): lower is more even.

    :math:`\log \operatorname{mean}_{i<j} e^{-t \lVert u_i - u_j \rVert^2}` over distinct pairs of
    unit rows, in [-4t, 0]; the even distribution in many dimensions has -2t.
    """
    return float(np.log(potential_by_text(embeddings, t).mean()))


def potential_by_text(embeddings: ArrayLike, t: float = 2.0) -> np.ndarray:
    r"""Mean Gaussian potential of each row with the n - 1 others, (n,), in [e^(-4t), 1].

    The log of their mean is :func:`uniformity`; a high one is a text in a crowd. Time O(n^2 D),
    over the pairs i <= j only; memory O(nD) and a few tiles of fixed size, never n x n. Products
    are taken in the precision of the input, float32 at least; sums are in float64.
    """
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


def alignment_by_text(x: ArrayLike, y: ArrayLike, alpha: float = 2.0) -> np.ndarray:
    r"""Distance of the two sides of each positive pair to the power `alpha`, (n,).

    Their mean is the alignment (Wang & Isola, ICML 2020), in [0, 2^alpha]; lower is closer. Row i
    of `x` (n, D) and row i of `y` (n, D) are a pair.
    """
    x, y = unit_rows(x, rows=1), unit_rows(y, rows=1)
    return np.linalg.norm(np.subtract(x, y, dtype=np.float64), axis=1) ** alpha


def cosine_gap_by_text(queries: ArrayLike, passages: ArrayLike, positives: ArrayLike) -> np.ndarray:
    r"""How far the positives of each query stand out from all other passages.

    :math:`\operatorname{mean}_{j \in P_i} u_i v_j - \operatorname{mean}_{j \notin P_i} u_i v_j`
    for each query that has a positive, in order. In [-2, 2]; 0 is chance, higher is better. Unlike
    alignment, it does not improve where all texts move together. In closed form, so all the other
    pairs count: time O((Q + C + m) D). Each query needs a passage that is none of its positives.

    Args:
        queries: (Q, D).
        passages: (C, D).
        positives: Integers (m, 2), rows (query, passage) that belong together, each counted once.
    """
    queries, passages = unit_rows(queries, rows=1), unit_rows(passages, rows=2)
    asked, found = np.unique(np.asarray(positives), axis=0).T
    cosines = np.einsum("md,md->m", queries[asked], passages[found], dtype=np.float64)
    count = np.bincount(asked, minlength=len(queries))
    chosen = count > 0
    positive = np.bincount(asked, weights=cosines, minlength=len(queries))[chosen]
    total = passages.sum(axis=0, dtype=np.float64)
    other = np.einsum("qd,d->q", queries[chosen], total, dtype=np.float64) - positive
    return positive / count[chosen] - other / (len(passages) - count[chosen])


# Directions, dimensions and neighbours: they depend on n, so compare equal numbers of texts


class Spectrum(NamedTuple):
    """What :func:`spectrum` returns."""

    singular_values: np.ndarray
    effective_rank: float
    svd_entropy: float
    condition_number: float


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

    Since the mean is not removed, a common direction of all rows shows as a large
    :math:`\sigma_1`. Computed in float64.
    """
    matrix = _finite(embeddings, rows=2)
    singular_values = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    relative = singular_values / singular_values[0]  # squares neither overflow nor vanish
    count = len(relative)
    full = relative[-1] > max(matrix.shape) * np.finfo(matrix.dtype).eps
    return Spectrum(
        singular_values=singular_values,
        effective_rank=float(np.exp(stats.entropy(relative))),
        svd_entropy=float(stats.entropy(relative**2) / np.log(count)) if count > 1 else 0.0,
        condition_number=float(1 / relative[-1]) if full else float("inf"),
    )


def isoscore(embeddings: ArrayLike) -> float:
    """How evenly the variance fills the space (Rudman et al., Findings of ACL 2022), by IsoScore.

    From the eigenvalues of the covariance of the rows (n, D): with their vector scaled to length
    sqrt(D), its distance from (1, ..., 1) scaled so that 0 is a single direction and 1 is equal
    variance in all D, which is good; x says that about x D dimensions are used evenly. With
    n < D + 1 it cannot reach 1. Exact to about 1e-7, for the library takes its square roots of D in
    float32.
    """
    from IsoScore.IsoScore import IsoScore  # imports torch

    return float(IsoScore(_finite(embeddings, rows=2).astype(np.float64)))


def hubness(embeddings: ArrayLike, *, k: int = 10) -> float:
    r"""Skewness of the k-occurrence (Radovanovic, Nanopoulos & Ivanovic, JMLR 2010).

    :math:`N_k(i)` counts the rows that have row i among the k others of largest cosine; the measure
    is :math:`\operatorname{mean}(N - \bar N)^3 / \operatorname{std}(N)^3`, and 0 where all counts
    are equal. Good is near 0; a large one means hubs, which are near to everything, and rows that
    are never found. A cone in many dimensions has them. Of equal cosines any may be taken.
    """
    units = unit_rows(embeddings, rows=2)
    search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(units)
    counts = np.bincount(search.kneighbors(return_distance=False).ravel(), minlength=len(units))
    return float(stats.skew(counts)) if counts.std() else 0.0


def intrinsic_dimension(embeddings: ArrayLike) -> float:
    r"""TwoNN estimate (Facco et al., Scientific Reports 2017), by scikit-dimension's defaults.

    On a d-dimensional sheet the ratio of the distances to the second and the first neighbour has
    :math:`P(r_2 / r_1 > \mu) = \mu^{-d}`; d is the slope of a line through the origin, fitted
    without the tenth of largest ratios. Neither high nor low is good: it says how many degrees of
    freedom the texts have locally, and it falls where embeddings collapse. High dimensions need
    many rows and are underestimated. Rows that occur twice count once.
    """
    from skdim.id import TwoNN  # takes a while to import

    rows = np.unique(_finite(embeddings, rows=3), axis=0)
    return float(TwoNN().fit(rows.astype(np.float64)).dimension_)


# The tokens of a text


def over_smoothing(states: ArrayLike, lengths: ArrayLike) -> np.ndarray:
    """How alike a model has made the tokens of each text: four measures of their matrix, (4, B).

    CoDiEmb (arXiv 2508.11442) reports four by these names and without formulas; the formulas are
    ours. Token-wise similarity: :func:`anisotropy` (mean token cosine: Shi et al., ICLR 2022), 1
    where all tokens of the text point one way. Rank: the effective one, bounded by the number of
    tokens, so that models are compared on the same texts. SVD entropy, as in :func:`spectrum`. And
    the condition number, of which one can be huge: look at the median. Special tokens and a prompt
    count, padding does not.

    Args:
        states: (B, T, D), padded on the right.
        lengths: (B,), tokens of each text, 2 or more.
    """
    texts = [tokens[:length] for tokens, length in zip(np.asarray(states), lengths, strict=True)]
    spectra = [spectrum(tokens) for tokens in texts]
    ranks = [(s.effective_rank, s.svd_entropy, s.condition_number) for s in spectra]
    return np.array([[anisotropy(tokens) for tokens in texts], *zip(*ranks, strict=True)])


# What is measured


def unit_rows(embeddings: ArrayLike, rows: int) -> np.ndarray:
    """A copy with each row scaled to length one, in float32 or the wider type it has."""
    matrix = _finite(embeddings, rows)
    lengths = np.sqrt(np.einsum("nd,nd->n", matrix, matrix, dtype=np.float64))
    if not lengths.all():
        row = np.argmin(lengths)
        raise ValueError(f"Expected rows with a direction, found a row of zeros: row {row}.")
    return np.divide(matrix, lengths[:, None], dtype=matrix.dtype)


def _finite(embeddings: ArrayLike, rows: int) -> np.ndarray:
    """As a finite float matrix of at least `rows` rows, in float32 or the wider type it has."""
    matrix = np.asarray(embeddings)
    matrix = matrix.astype(np.result_type(matrix.dtype, np.float32), copy=False)
    if matrix.ndim != 2 or len(matrix) < rows:
        raise ValueError(f"Expected embeddings (n, D) with n >= {rows}, found {matrix.shape}.")
    finite = np.isfinite(matrix).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"Expected finite embeddings, found NaN or infinity in {np.sum(~finite)} rows, the "
            f"first of them row {np.argmin(finite)}. Look at the text and the model behind it."
        )
    return matrix
