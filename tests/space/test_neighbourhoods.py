"""Neighbours against whole sorted matrices, and measures against data that is known."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codiemb_lib.space.neighbourhoods import hubness, intrinsic_dimension


def normal(n, D, seed=0, shift=0.0):
    return np.random.default_rng(seed).normal(size=(n, D)) + shift


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def hubness_by_loop(rows, queries, k):
    counts = np.zeros(len(rows))
    for i, query in enumerate(rows if queries is None else queries):
        cosines = unit(rows) @ query
        if queries is None:
            cosines[i] = -np.inf
        counts[np.argsort(-cosines)[:k]] += 1
    deviations = counts - counts.mean()
    return (deviations**3).mean() / (deviations**2).mean() ** 1.5


@pytest.mark.parametrize("k", [1, 3, 10])
def test_hubness_is_the_skewness_of_the_counts(k):
    rows, queries = normal(60, 8, shift=0.2), normal(40, 8, seed=1)
    for asked in (None, queries):
        expected = hubness_by_loop(rows, asked, k)
        assert hubness(rows, asked, k=k) == pytest.approx(expected, rel=1e-9)
        single = hubness(rows.astype(np.float32), asked, k=k)
        assert single == pytest.approx(expected, rel=1e-9)


def test_a_cone_has_hubs_and_an_even_space_has_none():
    assert hubness(normal(1000, 100, shift=1)) > 1
    assert abs(hubness(normal(1000, 100))) < 0.5
    angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    ring = np.stack((np.cos(angles), np.sin(angles)), axis=1)
    assert hubness(ring, k=2) == 0  # every point is the neighbour of two


def test_one_answer_to_every_query_is_the_most_skewed():
    rows = np.array([[1.0, 0], [-1, 0.1], [-1, -0.1], [-1, 0.2]])
    assert hubness(rows, [[1, 0.0], [1, 0.1]], k=1) == pytest.approx(2 / np.sqrt(3))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**16), n=st.integers(4, 40), D=st.integers(2, 8))
def test_hubness_under_what_must_not_change_it(seed, n, D):
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(n, D))
    rotation = np.linalg.qr(generator.normal(size=(D, D)))[0]
    moved = generator.permutation(rows) @ rotation * generator.uniform(0.1, 10, size=(n, 1))
    expected = hubness(rows, k=2)
    assert hubness(moved, k=2) == pytest.approx(expected, abs=1e-9)
    assert abs(expected) <= (n - 2) / np.sqrt(n - 1) + 1e-9


def test_bad_neighbourhoods_are_refused():
    for k in (0, 5):
        with pytest.raises(ValueError, match=f"k from 1 to 4, found {k}"):
            hubness(normal(5, 3), k=k)
    assert hubness(normal(5, 3), normal(6, 3, seed=1), k=5) == 0
    with pytest.raises(ValueError, match="found 4 and 3"):
        hubness(normal(5, 3), normal(5, 4), k=1)
    with pytest.raises(ValueError, match="a row of zeros: row 2"):
        hubness(normal(5, 3) * [[1], [1], [0], [1], [1]], k=1)


def two_nn_by_loop(rows):
    ratios = []
    for i, row in enumerate(rows):
        first, second = np.sort(np.linalg.norm(np.delete(rows, i, axis=0) - row, axis=1))[:2]
        ratios.append(second / first)
    x = np.log(np.sort(ratios))[: int(0.9 * len(rows))]
    y = -np.log(1 - np.arange(1, len(x) + 1) / len(rows))
    return (x @ y) / (x @ x)  # least squares through the origin


@pytest.mark.parametrize("D", [2, 40])
def test_intrinsic_dimension_is_that_of_the_paper(D):
    rows = normal(120, D)
    assert intrinsic_dimension(rows) == pytest.approx(two_nn_by_loop(rows), rel=1e-6)
    single = intrinsic_dimension(rows.astype(np.float32))
    assert single == pytest.approx(two_nn_by_loop(rows), rel=1e-4)


def test_a_sheet_in_many_dimensions_is_found():
    sheet = normal(2000, 3) @ normal(3, 50, seed=1)
    assert intrinsic_dimension(sheet) == pytest.approx(3, rel=0.1)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**16), n=st.integers(10, 60), D=st.integers(2, 8))
def test_intrinsic_dimension_under_what_must_not_change_it(seed, n, D):
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(n, D))
    rotation = np.linalg.qr(generator.normal(size=(D, D)))[0]
    twice = generator.permutation(np.concatenate((rows, rows[:5])))
    assert intrinsic_dimension(twice) == pytest.approx(intrinsic_dimension(rows), rel=1e-9)
    moved = 7 * (generator.permutation(rows) + generator.normal(size=D)) @ rotation
    assert intrinsic_dimension(moved) == pytest.approx(intrinsic_dimension(rows), rel=1e-6)
    for shift, scale in ((1, 1e-9), (0, 1e-200), (0, 1e200)):
        small = intrinsic_dimension(shift + scale * rows)
        assert small == pytest.approx(intrinsic_dimension(rows), rel=1e-2)


def test_too_few_distinct_rows_have_no_dimension():
    with pytest.raises(ValueError, match="three distinct rows or more, found 2"):
        intrinsic_dimension([[0.0, 1], [1, 0], [0, 1]])


def test_missing_library_names_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "skdim", None)
    monkeypatch.setitem(sys.modules, "skdim.id", None)
    with pytest.raises(ImportError, match="pip install scikit-dimension"):
        intrinsic_dimension(normal(5, 3))
