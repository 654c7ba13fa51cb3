"""Search in tiles against the whole matrix, sorted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codiemb_lib.evaluate import EvaluationError, top_k
from tests.memory import growth


def units(n, D=16, seed=0):
    rows = np.random.default_rng(seed).normal(size=(n, D)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def sort_all(queries, passages, k):
    similarities = queries @ passages.T
    indices = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(similarities, indices, axis=1), indices


@settings(deadline=None, max_examples=200)
@given(
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 40), st.integers(1, 3)),
    block=st.tuples(st.integers(1, 10), st.integers(1, 41)),
    top=st.integers(0, 3),
    share=st.floats(0, 1),
    seed=st.integers(0, 10**6),
)
def test_any_tile_gives_what_the_whole_matrix_gives_with_all_its_ties(
    sizes, block, top, share, seed
):
    Q, C, D = sizes
    random = np.random.default_rng(seed)
    # Small integers: products are exact, and most of them tie.
    queries = random.integers(-top, top + 1, size=(Q, D)).astype(np.float32)
    passages = random.integers(-top, top + 1, size=(C, D)).astype(np.float32)
    k = max(1, round(share * C))
    similarities, indices = top_k(queries, passages, k, block=block)
    expected, order = sort_all(queries, passages, k)
    np.testing.assert_array_equal(indices, order)
    np.testing.assert_array_equal(similarities, expected)


@pytest.mark.parametrize("k", [1, 10, 300])
def test_unit_vectors_at_the_default_tile_and_a_small_one(k):
    queries, passages = units(70), units(300, seed=1)
    expected, order = sort_all(queries, passages, k)
    for block in ({}, {"block": (32, 64)}):
        similarities, indices = top_k(queries, passages, k, **block)
        np.testing.assert_allclose(similarities, expected, atol=1e-6)
        np.testing.assert_array_equal(indices, order)


def test_result_types_and_no_queries():
    similarities, indices = top_k(np.empty((0, 2)), np.ones((3, 2)), 2)
    assert (similarities.dtype, similarities.shape) == (np.float32, (0, 2))
    assert (indices.dtype, indices.shape) == (np.int64, (0, 2))


def test_inputs_are_neither_changed_nor_need_to_be_writable():
    queries, passages = units(5), units(9, seed=1)
    before = queries.copy(), passages.copy()
    queries.flags.writeable = passages.flags.writeable = False
    top_k(queries, passages, 3, block=(2, 4))
    np.testing.assert_array_equal(queries, before[0])
    np.testing.assert_array_equal(passages, before[1])


def spoilt(row, value):
    vectors = units(6)
    vectors[row, 3] = value
    return vectors


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_vectors_without_a_finite_length_are_refused(value):
    with pytest.raises(EvaluationError, match=r"queries: expected .* finite .* row 4"):
        top_k(spoilt(4, value), units(6), 2)
    with pytest.raises(EvaluationError, match=r"passages: expected .* finite .* row 5"):
        top_k(units(6), spoilt(5, value), 2)
    with pytest.raises(EvaluationError, match="finite"):  # too large for float32
        top_k(np.full((1, 2), 1e300), np.ones((1, 2)), 1)


def test_memory_is_that_of_a_tile_not_of_all_pairs():
    before = """
import numpy as np
from codiemb_lib.evaluate.search import top_k
random = np.random.default_rng(0)
queries, passages = (random.normal(size=(n, 2)).astype(np.float32) for n in (4000, 20000))
top_k(queries[:64], passages[:64], 1)
"""
    grown = growth(before, "top_k(queries, passages, 10, block=(500, 2000))")
    assert grown < 40_000  # kB; a tile takes 4,000 of them, all pairs 320,000
