"""Measures against slow references, and under what must not change them."""

from __future__ import annotations

import itertools
import math
import sys
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from codiemb_lib.space import geometry
from codiemb_lib.space.geometry import (
    alignment,
    alignment_by_text,
    anisotropy,
    anisotropy_by_text,
    cosine_gap,
    cosine_gap_by_text,
    isoscore,
    potential_by_text,
    principal_shares,
    spectrum,
    uniformity,
)


def normal(n, D, seed=0, shift=0.0):
    return np.random.default_rng(seed).normal(size=(n, D)) + shift


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def mean_cosine(units):
    return np.mean([u @ v for u, v in itertools.combinations(units, 2)])


def test_anisotropy_is_the_mean_over_pairs():
    rows = normal(30, 8, shift=0.5)
    assert anisotropy(rows) == pytest.approx(mean_cosine(unit(rows)), rel=1e-12)
    units = unit(rows)
    centred = unit(units - units.mean(axis=0))
    assert anisotropy(rows, centred=True) == pytest.approx(mean_cosine(centred), rel=1e-12)


def test_a_common_direction_is_what_centring_removes():
    rows = normal(500, 64, shift=1)
    assert anisotropy(rows) > 0.4
    assert abs(anisotropy(rows, centred=True)) < 0.01


def test_terms_by_text_are_means_over_the_others():
    rows, other = normal(12, 5, shift=0.5), normal(12, 5, seed=1)
    cosines = unit(rows) @ unit(rows).T
    potentials = np.exp(2 * 2 * (cosines - 1))
    for i, (cosine, potential, distance) in enumerate(
        zip(
            anisotropy_by_text(rows),
            potential_by_text(rows),
            alignment_by_text(rows, other),
            strict=True,
        )
    ):
        others = np.arange(12) != i
        assert cosine == pytest.approx(cosines[i, others].mean(), rel=1e-12)
        assert potential == pytest.approx(potentials[i, others].mean(), rel=1e-12)
        assert distance == pytest.approx(math.dist(unit(rows)[i], unit(other)[i]) ** 2, rel=1e-12)
    assert uniformity(rows) == pytest.approx(np.log(potential_by_text(rows).mean()))


def test_principal_shares_are_those_of_the_covariance():
    rows = normal(40, 6) * [5, 3, 1, 1, 1, 0.1]
    variances = np.linalg.eigvalsh(np.cov(unit(rows).T))[::-1]
    np.testing.assert_allclose(principal_shares(rows), variances / variances.sum(), rtol=1e-9)
    assert len(principal_shares(rows[:4])) == 4


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
    assert cosine_gap(queries, passages, positives) == pytest.approx(np.mean(expected), abs=1e-12)
    assert -2 <= np.mean(expected) <= 2


def test_cosine_gap_pairs_rows_unless_told():
    queries, passages = normal(9, 4), normal(9, 4, seed=1)
    pairs = [(i, i) for i in range(9)]
    assert cosine_gap(queries, passages) == cosine_gap(queries, passages, pairs)
    assert cosine_gap(queries, 3 * queries) > 0.5
    assert cosine_gap([[1, 0], [-1, 0]], [[1, 0], [-1, 0]]) == pytest.approx(2)


@pytest.mark.parametrize(
    ("positives", "message"),
    [
        ([], "integers of shape"),
        (np.empty((0, 2), int), "found none"),
        ([(0, 3)], "rows that do not exist"),
        ([(0, -1)], "rows that do not exist"),
        ([(0.0, 1.0)], "found float64"),
        ([0, 1], r"shape \(2,\)"),
        ([(1, 0), (1, 1), (1, 2)], "to compare with, found none for query 1"),
        (None, "rows that do not exist"),
    ],
)
def test_bad_positives_are_refused(positives, message):
    with pytest.raises(ValueError, match=f"cosine_gap: .*{message}"):
        cosine_gap(normal(4, 2), normal(3, 2), positives)


def test_cosine_gap_refuses_two_dimensions():
    with pytest.raises(ValueError, match="found 2 and 3"):
        cosine_gap(normal(4, 2), normal(4, 3))


@pytest.mark.parametrize("tile", [4, 7, 30, 2048])
def test_uniformity_is_the_mean_over_pairs(monkeypatch, tile):
    monkeypatch.setattr(geometry, "_TILE", tile)
    rows = normal(30, 8, shift=0.5)
    squares = torch.pdist(torch.from_numpy(unit(rows))).square()
    for t in (0.5, 2.0):
        expected = squares.mul(-t).exp().mean().log().item()
        assert uniformity(rows, t) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("shift", [0, 0.3, 3])  # cosines of 0, 0.08 and 0.9
def test_float32_is_exact_to_a_millionth(shift):
    rows = normal(3000, 32, shift=shift)
    squares = torch.pdist(torch.from_numpy(unit(rows))).square()
    expected = squares.mul(-2).exp().mean().log().item()
    assert uniformity(rows.astype(np.float32)) == pytest.approx(expected, rel=1e-6)
    assert anisotropy(rows.astype(np.float32)) == pytest.approx(
        anisotropy(rows), rel=1e-6, abs=1e-9
    )


def test_uniformity_never_holds_the_matrix_of_pairs():
    rows = normal(6000, 4).astype(np.float32)
    tracemalloc.start()
    uniformity(rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6000 * 6000 * 4 / 2


@pytest.mark.parametrize("alpha", [1.0, 2.0, 3.0])
def test_alignment_is_the_mean_over_pairs(alpha):
    x, y = normal(20, 8), normal(20, 8, seed=1)
    distances = [math.dist(u, v) ** alpha for u, v in zip(unit(x), unit(y), strict=True)]
    assert alignment(x, y, alpha) == pytest.approx(np.mean(distances), rel=1e-12)


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
    assert actual.rankme == pytest.approx(
        math.exp(-sum((v + 1e-7) * math.log(v + 1e-7) for v in p))
    )
    assert actual.rank == 5


def test_known_spaces():
    axes = np.eye(6)
    assert anisotropy(axes) == 0
    assert uniformity(axes) == pytest.approx(-4)  # every squared distance is 2
    assert spectrum(axes)[1:] == pytest.approx((6, 1, 1, 6, 6), rel=1e-5)

    point = np.tile([3.0, 4.0], (5, 1))
    assert anisotropy(point) == pytest.approx(1)
    assert uniformity(point) == pytest.approx(0)
    assert alignment(point, 2 * point) == pytest.approx(0)
    assert spectrum(point)[1:] == pytest.approx((1, 0, math.inf, 1, 1), rel=1e-5)
    assert alignment(point, -point) == pytest.approx(4)
    assert spectrum(np.ones((3, 1)))[1:] == pytest.approx((1, 0, 1, 1, 1), rel=1e-5)


def test_rank_deficient_float32_has_an_infinite_condition_number():
    rows = normal(50, 3) @ normal(3, 8, seed=1)
    assert spectrum(rows.astype(np.float32)).condition_number == math.inf
    assert spectrum(rows.astype(np.float32)).rank == 3


def test_tensors_and_lists_are_taken():
    rows = normal(6, 4).astype(np.float32)
    assert anisotropy(torch.from_numpy(rows)) == anisotropy(rows)
    assert anisotropy(torch.from_numpy(rows).requires_grad_()) == anisotropy(rows)
    halves = torch.from_numpy(rows).bfloat16()
    assert spectrum(halves).rankme == spectrum(halves.float().numpy()).rankme
    assert uniformity([[1, 0], [0, 1]]) == pytest.approx(-4)


def test_what_is_no_real_number_is_refused():
    for rows in (normal(6, 4) + 1j, torch.ones(6, 4, dtype=torch.complex64), [["a"], ["b"]]):
        for measure in (anisotropy, spectrum):
            with pytest.raises(ValueError, match="Expected embeddings of real numbers, found"):
                measure(rows)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**16), n=st.integers(2, 40), D=st.integers(2, 8))
def test_rotation_order_and_length_do_not_matter(seed, n, D):
    generator = np.random.default_rng(seed)
    x, y = generator.normal(size=(2, n, D))
    rotation = np.linalg.qr(generator.normal(size=(D, D)))[0]
    order = generator.permutation(n)
    moved_x, moved_y = (rows[order] @ rotation for rows in (x, y))
    lengths = generator.uniform(0.1, 10, size=(n, 1))
    for measure in (anisotropy, uniformity):
        assert measure(moved_x * lengths) == pytest.approx(measure(x), abs=1e-9)
    np.testing.assert_allclose(
        principal_shares(moved_x * lengths), principal_shares(x), rtol=1e-9, atol=1e-9
    )
    for measure in (anisotropy_by_text, potential_by_text):
        np.testing.assert_allclose(measure(moved_x * lengths), measure(x)[order], atol=1e-9)
    assert cosine_gap(moved_x * lengths, moved_y) == pytest.approx(cosine_gap(x, y), abs=1e-9)
    assert alignment(moved_x * lengths, moved_y) == pytest.approx(alignment(x, y), abs=1e-9)
    for before, after in zip(spectrum(x)[1:], spectrum(7 * moved_x)[1:], strict=True):
        assert after == pytest.approx(before, rel=1e-6)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**16), n=st.integers(2, 40), D=st.integers(1, 8))
def test_measures_stay_in_their_ranges(seed, n, D):
    rows = np.random.default_rng(seed).normal(size=(n, D))
    assert -1 / (n - 1) - 1e-9 <= anisotropy(rows) <= 1 + 1e-9
    assert -8 - 1e-9 <= uniformity(rows) <= 1e-9
    if D > 1:
        shares = principal_shares(rows)
        assert shares.sum() == pytest.approx(1)
        assert (np.diff(shares) <= 0).all()
        assert shares.min() >= 0
    actual = spectrum(rows)
    assert 1 - 1e-9 <= actual.effective_rank <= min(n, D) + 1e-9
    assert -1e-9 <= actual.svd_entropy <= 1 + 1e-9
    assert 1 - 1e-4 <= actual.rankme <= min(n, D) + 1e-4
    assert actual.rank == min(n, D)


@pytest.mark.parametrize("measure", [anisotropy, uniformity, spectrum, principal_shares])
def test_bad_embeddings_are_refused(measure):
    for rows in (np.ones((1, 3)), np.ones(3), np.ones((3, 0))):
        with pytest.raises(ValueError, match=r"\(n, D\) with n >= 2, found"):
            measure(rows)
    rows = normal(5, 3)
    rows[[2, 4], 1] = np.nan, np.inf
    with pytest.raises(ValueError, match="2 rows, the first of them row 2"):
        measure(rows)


def test_what_has_no_direction_is_refused():
    rows = normal(5, 3)
    rows[3] = 0
    for measure in (anisotropy, uniformity, lambda x: alignment(x, normal(5, 3))):
        with pytest.raises(ValueError, match="a row of zeros: row 3"):
            measure(rows)
    with pytest.raises(ValueError, match="only zeros"):
        spectrum(np.zeros((4, 3)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [9, 3000])  # of the sum of many rows rounding is left
def test_what_is_the_mean_has_no_direction_beside_it(dtype, n):
    point = np.tile(normal(1, 7), (n, 1)).astype(dtype)
    with pytest.raises(ValueError, match="row 0 is the mean"):
        anisotropy(point, centred=True)
    with pytest.raises(ValueError, match="found a single one"):
        principal_shares(point)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="t > 0, found 0"):
        uniformity(normal(4, 3), t=0)
    with pytest.raises(ValueError, match="alpha > 0"):
        alignment(normal(4, 3), normal(4, 3), alpha=-1)
    with pytest.raises(ValueError, match="to be a pair"):
        alignment(normal(4, 3), normal(5, 3))


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
    assert isoscore(np.eye(5) - 1 / 5) == pytest.approx(isoscore_by_steps(np.eye(5)))
    corners = np.array([*itertools.product([-1, 1], repeat=4)])  # equal variance everywhere
    assert isoscore(corners) == pytest.approx(1)
    assert isoscore(corners * [1, 0, 0, 0]) == pytest.approx(0, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**16), n=st.integers(2, 40), D=st.integers(2, 8))
def test_isoscore_under_what_must_not_change_it(seed, n, D):
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(n, D))
    rotation = np.linalg.qr(generator.normal(size=(D, D)))[0]
    moved = 7 * (generator.permutation(rows) + generator.normal(size=D)) @ rotation
    assert isoscore(moved) == pytest.approx(isoscore(rows), rel=1e-6, abs=1e-6)
    assert -1e-6 <= isoscore(rows) <= 1 + 1e-6


def test_isoscore_refuses_what_does_not_vary():
    with pytest.raises(ValueError, match="found equal rows"):
        isoscore(np.ones((4, 3)))
    with pytest.raises(ValueError, match="found one dimension"):
        isoscore(normal(4, 1))


def test_missing_isoscore_names_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "IsoScore", None)
    monkeypatch.setitem(sys.modules, "IsoScore.IsoScore", None)
    with pytest.raises(ImportError, match="pip install IsoScore"):
        isoscore(normal(4, 3))
