"""Exact search: the rows of largest inner product, in memory that does not grow with all pairs."""

import numpy as np
from tqdm.auto import trange

from codiemb_lib.core import CodiembError


class EvaluationError(CodiembError, ValueError):
    """Something cannot be scored, compared or mined, or a score came out that is none."""


def top_k(
    queries: np.ndarray,
    passages: np.ndarray,
    k: int,
    *,
    block: tuple[int, int] = (1024, 8192),
    progress: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """The k passages of largest inner product with each query, by exact search in tiles.

    Beside inputs and results, memory holds a few arrays of a tile's size, queries x passages: 32 MB
    each by default. Of every tile but the first, only what exceeds the k-th best so far is sorted.

    Args:
        queries, passages: (Q, D) and (C, D), taken as float32; not copied if that is their type.
        k: How many, from 1 to C.
        block: The rows of queries and of passages that make a tile; at least k passages do.

    Returns:
        Similarities (Q, k) float32, falling, and the rows of their passages (Q, k) int64. Among
        equal similarities the earlier passage comes first and is kept, whatever the tile. Where
        only rounding parts two of them, another tile may round otherwise.

    Raises:
        EvaluationError: A vector has no finite length.
    """
    queries, passages = _finite("queries", queries), _finite("passages", passages)
    height, width = block[0], max(block[1], k)
    similarities = np.empty((len(queries), k), dtype=np.float32)
    indices = np.empty((len(queries), k), dtype=np.int64)
    for top in trange(0, len(queries), height, desc="search", disable=not progress, leave=False):
        rows = slice(top, top + height)
        best, where = top_columns(_product(queries[rows], passages[:width]), k)
        for left in range(width, len(passages), width):
            tile = _product(queries[rows], passages[left : left + width])
            keep = tile > best[:, -1:]  # what equals the k-th best comes later, so it is out
            best, where = _merge(best, where, tile, keep, left, k)
        similarities[rows], indices[rows] = best, where
    return similarities, indices


def top_columns(similarities: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest of each row of a matrix of floats (n, w), falling, and their columns.

    Among equals the earlier column comes first and is kept.
    """
    keep = similarities >= np.partition(similarities, -k, axis=1)[:, -k, None]
    none = np.empty((len(similarities), 0), dtype=np.int64)
    return _merge(similarities[:, :0], none, similarities, keep, 0, k)


def _product(queries: np.ndarray, passages: np.ndarray) -> np.ndarray:
    # BLAS takes no rows in reverse, and without it NumPy is slow.
    return queries @ np.ascontiguousarray(passages).T


def _merge(
    best: np.ndarray, where: np.ndarray, tile: np.ndarray, keep: np.ndarray, left: int, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k best of `best` (n, m), found at `where`, and what the mask keeps of the tile (n, w)."""
    row, column = np.divmod(np.flatnonzero(keep), keep.shape[1])
    counts = np.bincount(row, minlength=len(keep))
    # Kept entries move to the left of their row, in order: (n, m + most), filled up with -inf.
    slot = np.arange(len(row)) - np.repeat(counts.cumsum() - counts, counts) + best.shape[1]
    values = np.pad(best, ((0, 0), (0, counts.max())), constant_values=-np.inf)
    places = np.pad(where, ((0, 0), (0, counts.max())))
    values[row, slot] = tile[keep]
    places[row, slot] = column + left
    order = np.argsort(-values, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(values, order, axis=1), np.take_along_axis(places, order, axis=1)


def _finite(name: str, vectors: np.ndarray) -> np.ndarray:
    """The vectors (n, D) as float32, if all have a finite length.

    Finite lengths bound every inner product (Cauchy-Schwarz), so none becomes inf or NaN.
    """
    with np.errstate(over="ignore"):  # seen below
        matrix = np.asarray(vectors, dtype=np.float32)
    finite = np.isfinite(np.einsum("nd,nd->n", matrix, matrix))
    if not finite.all():
        raise EvaluationError(
            f"{name}: expected vectors of finite length, found another in row {np.argmin(finite)}. "
            "Look at the text and the model behind it."
        )
    return matrix
