"""Measures of who lies next to whom in a space of embeddings; exact, in blocks.

As in `geometry`: pure functions of float arrays of shape (n, D), or tensors.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from sklearn.neighbors import NearestNeighbors

from codiemb_lib.space.geometry import as_matrix, check_dimensions, unit_rows


def hubness(embeddings: ArrayLike, queries: ArrayLike | None = None, *, k: int = 10) -> float:
    r"""Skewness of the k-occurrence (Radovanovic, Nanopoulos & Ivanovic, JMLR 2010).

    :math:`N_k(i)` counts the queries that have row i among their k rows of largest cosine; the
    measure is :math:`\operatorname{mean}(N - \bar N)^3 / \operatorname{std}(N)^3`, in
    [-(n-2)/sqrt(n-1), (n-2)/sqrt(n-1)] and 0 where all counts are equal. Good is near 0; a large
    one means hubs, found whatever is asked, and rows that are never found; a cone in many
    dimensions has them. It depends on n and k: compare equal texts and k. Exact, in blocks; of
    equal cosines any may be taken.

    Args:
        embeddings: (n, D), what is found.
        queries: (Q, D), what is asked; left out: each row asks for the others.
        k: Neighbours of a query.

    Raises:
        ValueError: Two dimensions, k out of range, a row of zeros, or values that are not finite.
    """
    units = unit_rows(embeddings, rows=2)
    if queries is not None:
        queries = unit_rows(queries, rows=1)
        check_dimensions("hubness", queries, units)
    most = len(units) - (queries is None)
    if not 1 <= k <= most:
        raise ValueError(f"hubness: expected k from 1 to {most}, found {k}.")
    search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(units)
    found = search.kneighbors(queries, return_distance=False)
    counts = np.bincount(found.ravel(), minlength=len(units))
    return float(stats.skew(counts)) if counts.std() else 0.0


def intrinsic_dimension(embeddings: ArrayLike) -> float:
    r"""TwoNN estimate (Facco et al., Scientific Reports 2017), by scikit-dimension's defaults.

    On a d-dimensional sheet the ratio of the distances to the second and the first neighbour has
    :math:`P(r_2 / r_1 > \mu) = \mu^{-d}`; d is the slope of a line through the origin, fitted
    without the tenth of largest ratios. Above 0; neither high nor low is good: it says how many
    degrees of freedom the texts have locally, and it falls where embeddings collapse. High
    dimensions need many rows and are underestimated: compare equal texts. Unchanged by rotation,
    shift and one scale for all. Rows that occur twice count once. Neighbours are exact, in blocks.

    Raises:
        ImportError: The package scikit-dimension is missing.
        ValueError: Fewer than three distinct rows, or values that are not finite.
    """
    try:
        from skdim.id import TwoNN
    except ImportError as error:
        raise ImportError(
            "intrinsic_dimension: expected the package scikit-dimension, found it not installed. "
            "Run `pip install scikit-dimension`."
        ) from error
    rows = np.unique(as_matrix(embeddings, rows=3), axis=0)
    if len(rows) < 3:
        raise ValueError(
            f"intrinsic_dimension: expected three distinct rows or more, found {len(rows)}."
        )
    # Distances come from squares of rows, in which a small spread about a far mean would be lost.
    rows = np.subtract(rows, rows.mean(axis=0, dtype=np.float64), dtype=np.float64)
    rows /= np.abs(rows).max()
    distances, _ = NearestNeighbors(n_neighbors=2, algorithm="brute").fit(rows).kneighbors()
    return float(TwoNN(dist=True).fit(distances).dimension_)
