"""Measures against slow references, on spaces that are known, and under what must not change
them."""

from __future__ import annotations

import itertools
import math
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from codiemb_lib.space import measures
from codiemb_lib.space.measures import (
    alignment_by_text,
    anisotropy,
    anisotropy_by_text,
    cosine_gap_by_text,
    hubness,
    intrinsic_dimension,
    isoscore,
    over_smoothing,
    potential_by_text,
    spectrum,
    uniformity,
)


def normal(n, D, seed=0, shift=0.0):
    return np.random.default_rng(seed).normal(size=(n, D)) + shift


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


# Means over texts


def test_terms_by_text_are_means_over_the_others():
    rows, other = normal(12, 5, shift=0.5), normal(12, 5, seed=1)
    cosines = unit(rows) @ unit(rows).T
    potentials = np.exp(2 * 2 * (cosines - 1))
    others = ~np.eye(12, dtype=bool)
    for found, expected in (
        (anisotropy_by_text(rows), cosines.mean(axis=1, where=others)),
        (potential_by_text(rows), potentials.mean(axis=1, where=others)),
        (anisotropy(rows), cosines[others].mean()),
        (uniformity(rows), np.log(potentials[others].mean())),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    for alpha in (1.0, 2.0, 3.0):
        expected = [math.dist(*pair) ** alpha for pair in zip(unit(rows), unit(other), strict=True)]
        np.testing.assert_allclose(alignment_by_text(rows, other, alpha), expected, rtol=1e-12)


def gaps_by_loop(queries, passages, positives):
    gaps = []
    for i, query in enumerate(unit(queries)):
        cosines = unit(passages) @ query
        own = sorted({j for row, j in positives if row == i})
        if own:
            gaps.append(cosines[own].mean() - np.delete(cosines, own).mean())
    return gaps


@settings(max_examples=60, deadline=None)
@given(data=st.data(), Q=st.integers(1, 6), C=st.integers(2, 7))
def test_cosine_gap_is_that_of_loops_whatever_the_positives(data, Q, C):
    # The last passage is nobody's positive; pairs may repeat, and a query may have none.
    pair = st.tuples(st.integers(0, Q - 1), st.integers(0, C - 2))
    positives = data.draw(st.lists(pair, min_size=1, max_size=12))
    queries, passages = normal(Q, 3, seed=Q), normal(C, 3, seed=10 + C, shift=0.3)
    expected = gaps_by_loop(queries, passages, positives)
    actual = cosine_gap_by_text(queries, passages, positives)
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-12)
    assert (np.abs(actual) <= 2).all()


@pytest.mark.parametrize("tile", [4, 7, 30, 2048])
def test_uniformity_is_the_mean_over_pairs(monkeypatch, tile):
    monkeypatch.setattr(measures, "_TILE", tile)
    rows = normal(30, 8, shift=0.5)
    squares = torch.pdist(torch.from_numpy(unit(rows))).square()
    for t in (0.5, 2.0):
        expected = squares.mul(-t).exp().mean().log().item()
        assert uniformity(rows, t) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("shift", [0, 0.3, 3])  # cosines of 0, 0.08 and 0.9
def test_float32_is_exact_to_a_millionth(shift):
    rows = normal(3000, 32, shift=shift)
    squares = torch.pdist(torch.from_numpy(unit(rows))).square()
    single = rows.astype(np.float32)
    assert uniformity(single) == pytest.approx(squares.mul(-2).exp().mean().log().item(), rel=1e-6)
    assert anisotropy(single) == pytest.approx(anisotropy(rows), rel=1e-6, abs=1e-9)


def test_uniformity_never_holds_the_matrix_of_pairs():
    rows = normal(6000, 4).astype(np.float32)
    tracemalloc.start()
    uniformity(rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6000 * 6000 * 4 / 2


# Directions, dimensions and neighbours


def test_spectrum_follows_its_definitions():
    rows = normal(20, 5, shift=0.5)
    # The eigenvalues of the Gram matrix are the squares of the singular values.
    sigma = np.sqrt(np.linalg.eigvalsh(rows.T @ rows)[::-1])
    p, q = sigma / sigma.sum(), sigma**2 / (sigma**2).sum()
    actual = spectrum(rows)
    np.testing.assert_allclose(actual.singular_values, sigma, rtol=1e-9)
    assert actual.effective_rank == pytest.approx(math.exp(-sum(v * math.log(v) for v in p)))
    assert actual.svd_entropy == pytest.approx(-sum(v * math.log(v) for v in q) / math.log(5))
    assert actual.condition_number == pytest.approx(np.linalg.cond(rows))
    deficient = normal(50, 3) @ normal(3, 8, seed=1)
    assert spectrum(deficient.astype(np.float32)).condition_number == math.inf


def isoscore_by_steps(rows):
    """Algorithm 1 of the paper, on the eigenvalues of the covariance."""
    D = rows.shape[1]
    variances = np.linalg.eigvalsh(np.cov(rows.T))
    scaled = np.sqrt(D) * variances / np.linalg.norm(variances)
    defect = np.linalg.norm(scaled - 1) / np.sqrt(2 * (D - np.sqrt(D)))
    used = (D - defect**2 * (D - np.sqrt(D))) ** 2 / D  # dimensions that are used evenly
    return (used - 1) / (D - 1)


def test_isoscore_follows_the_paper():
    for rows in (normal(50, 6), normal(50, 6) * [9, 3, 1, 1, 1, 0.1], normal(4, 6)):
        assert isoscore(rows) == pytest.approx(isoscore_by_steps(rows), rel=1e-6)
    corners = np.array([*itertools.product([-1, 1], repeat=4)])  # equal variance everywhere
    assert isoscore(corners) == pytest.approx(1)
    assert isoscore(corners * [1, 0, 0, 0]) == pytest.approx(0, abs=1e-6)


def hubness_by_loop(rows, k):
    counts = np.zeros(len(rows))
    for i, query in enumerate(rows):
        cosines = unit(rows) @ query
        cosines[i] = -np.inf
        counts[np.argsort(-cosines)[:k]] += 1
    deviations = counts - counts.mean()
    return (deviations**3).mean() / (deviations**2).mean() ** 1.5


@pytest.mark.parametrize("k", [1, 3, 10])
def test_hubness_is_the_skewness_of_the_counts(k):
    rows = normal(60, 8, shift=0.2)
    for precision in (np.float64, np.float32):
        found = hubness(rows.astype(precision), k=k)
        assert found == pytest.approx(hubness_by_loop(rows, k), rel=1e-9)


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
    twice = np.concatenate((rows, rows[:5]))  # equal rows count once
    assert intrinsic_dimension(twice) == pytest.approx(two_nn_by_loop(rows), rel=1e-6)
    single = intrinsic_dimension(rows.astype(np.float32))
    assert single == pytest.approx(two_nn_by_loop(rows), rel=1e-4)


# What is known of all of them


def test_known_spaces():
    axes = np.eye(6)
    assert anisotropy(axes) == 0
    assert uniformity(axes) == pytest.approx(-4)  # every squared distance is 2
    assert spectrum(axes)[1:] == pytest.approx((6, 1, 1))

    point = np.tile([3.0, 4.0], (5, 1))
    assert anisotropy(point) == pytest.approx(1)
    assert uniformity(point) == pytest.approx(0)
    assert spectrum(point)[1:] == pytest.approx((1, 0, math.inf))
    assert alignment_by_text(point, 2 * point) == pytest.approx(0)
    assert alignment_by_text(point, -point) == pytest.approx(4)
    assert cosine_gap_by_text([[1, 0]], [[1, 0], [-1, 0]], [(0, 0)]) == pytest.approx(2)

    assert hubness(normal(1000, 100, shift=1)) > 1  # a cone has hubs, an even space has none
    assert abs(hubness(normal(1000, 100))) < 0.5
    angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    ring = np.stack((np.cos(angles), np.sin(angles)), axis=1)
    assert hubness(ring, k=2) == 0  # every point is the neighbour of two
    sheet = normal(2000, 3) @ normal(3, 50, seed=1)
    assert intrinsic_dimension(sheet) == pytest.approx(3, rel=0.1)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**16), n=st.integers(4, 40), D=st.integers(2, 8))
def test_rotation_order_and_length_do_not_matter_and_ranges_hold(seed, n, D):
    generator = np.random.default_rng(seed)
    x, y = generator.normal(size=(2, n, D))
    rotation = np.linalg.qr(generator.normal(size=(D, D)))[0]
    order = generator.permutation(n)
    moved_x, moved_y = (rows[order] @ rotation for rows in (x, y))
    longer = moved_x * generator.uniform(0.1, 10, size=(n, 1))
    same = np.arange(n)[:, None].repeat(2, axis=1)
    near = {"rtol": 1e-6, "atol": 1e-6}
    for by_text in (anisotropy_by_text, potential_by_text):
        np.testing.assert_allclose(by_text(longer), by_text(x)[order], **near)
    np.testing.assert_allclose(
        alignment_by_text(longer, moved_y), alignment_by_text(x, y)[order], **near
    )
    np.testing.assert_allclose(
        cosine_gap_by_text(longer, moved_y, same), cosine_gap_by_text(x, y, same)[order], **near
    )
    assert hubness(longer, k=2) == pytest.approx(hubness(x, k=2), abs=1e-9)
    np.testing.assert_allclose(spectrum(7 * moved_x)[1:], spectrum(x)[1:], **near)
    shifted = 7 * (moved_x + generator.normal(size=D))
    np.testing.assert_allclose(isoscore(shifted), isoscore(x), **near)
    np.testing.assert_allclose(intrinsic_dimension(shifted), intrinsic_dimension(x), **near)
    assert -1 / (n - 1) - 1e-9 <= anisotropy(x) <= 1 + 1e-9
    assert -8 - 1e-9 <= uniformity(x) <= 1e-9
    assert 1 - 1e-9 <= spectrum(x).effective_rank <= min(n, D) + 1e-9
    assert -1e-9 <= spectrum(x).svd_entropy <= 1 + 1e-9
    assert -1e-6 <= isoscore(x) <= 1 + 1e-6


@pytest.mark.parametrize("measure", [anisotropy, uniformity, spectrum, isoscore, hubness])
def test_bad_embeddings_are_refused(measure):
    for rows in (np.ones((1, 3)), np.ones(3)):
        with pytest.raises(ValueError, match=r"\(n, D\) with n >= 2, found"):
            measure(rows)
    rows = normal(5, 3)
    rows[[2, 4], 1] = np.nan, np.inf
    with pytest.raises(ValueError, match="2 rows, the first of them row 2"):
        measure(rows)


def test_what_has_no_direction_is_refused():
    rows = normal(5, 3)
    rows[3] = 0
    for measure in (anisotropy, uniformity, hubness, lambda x: alignment_by_text(x, normal(5, 3))):
        with pytest.raises(ValueError, match="a row of zeros: row 3"):
            measure(rows)


# The tokens of a text


def padded(lengths, D=6, seed=0, padding=np.nan):
    states = np.random.default_rng(seed).normal(size=(len(lengths), max(lengths), D))
    for row, length in zip(states, lengths, strict=True):
        row[length:] = padding
    return states


@pytest.mark.parametrize("padding", [np.nan, 0, 1e9])
def test_each_text_is_measured_alone_without_its_padding(padding):
    lengths = [2, 5, 9]
    states = padded(lengths, padding=padding)
    measured = over_smoothing(states, lengths)
    assert measured.shape == (4, 3)
    for i, length in enumerate(lengths):
        tokens = states[i, :length]
        cosines = [u @ v for u, v in itertools.combinations(unit(tokens), 2)]
        sigma = np.linalg.svd(tokens, compute_uv=False)
        p = sigma / sigma.sum()
        energy = sigma**2 / (sigma**2).sum()
        entropy = -(energy * np.log(energy)).sum() / np.log(min(tokens.shape))
        rank = np.exp(-(p * np.log(p)).sum())
        expected = (np.mean(cosines), rank, entropy, np.linalg.cond(tokens))
        assert [values[i] for values in measured] == pytest.approx(expected, rel=1e-9)
