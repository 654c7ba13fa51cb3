"""Measures against slow references, and under what must not change them."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from codiemb_lib import geometry
from codiemb_lib.geometry import alignment, anisotropy, spectrum, uniformity


def normal(n, D, seed=0, shift=0.0):
    return np.random.default_rng(seed).normal(size=(n, D)) + shift


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_anisotropy_is_the_mean_over_pairs():
    rows = normal(30, 8, shift=0.5)
    cosines = [u @ v for i, u in enumerate(unit(rows)) for v in unit(rows)[:i]]
    assert anisotropy(rows) == pytest.approx(np.mean(cosines), rel=1e-12)


@pytest.mark.parametrize("tile", [4, 7, 30, 2048])
def test_uniformity_is_the_mean_over_pairs(monkeypatch, tile):
    monkeypatch.setattr(geometry, "_TILE", tile)
    rows = normal(30, 8, shift=0.5)
    squares = torch.pdist(torch.from_numpy(unit(rows))).square()
    for t in (0.5, 2.0):
        expected = squares.mul(-t).exp().mean().log().item()
        assert uniformity(rows, t) == pytest.approx(expected, rel=1e-12)


def test_float32_is_exact_to_a_millionth():
    rows = normal(3000, 32, shift=0.3)
    squares = torch.pdist(torch.from_numpy(unit(rows))).square()
    expected = squares.mul(-2).exp().mean().log().item()
    assert uniformity(rows.astype(np.float32)) == pytest.approx(expected, rel=1e-6)
    assert anisotropy(rows.astype(np.float32)) == pytest.approx(anisotropy(rows), rel=1e-6)


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


def test_known_spaces():
    axes = np.eye(6)
    assert anisotropy(axes) == 0
    assert uniformity(axes) == pytest.approx(-4)  # every squared distance is 2
    assert spectrum(axes)[1:] == pytest.approx((6, 1, 1))

    point = np.tile([3.0, 4.0], (5, 1))
    assert anisotropy(point) == pytest.approx(1)
    assert uniformity(point) == pytest.approx(0)
    assert alignment(point, 2 * point) == pytest.approx(0)
    assert spectrum(point)[1:] == pytest.approx((1, 0, math.inf))
    assert alignment(point, -point) == pytest.approx(4)
    assert spectrum(np.ones((3, 1)))[1:] == (1, 0, 1)


def test_rank_deficient_float32_has_an_infinite_condition_number():
    rows = normal(50, 3) @ normal(3, 8, seed=1)
    assert spectrum(rows.astype(np.float32)).condition_number == math.inf


def test_tensors_and_lists_are_taken():
    rows = normal(6, 4).astype(np.float32)
    assert anisotropy(torch.from_numpy(rows)) == anisotropy(rows)
    assert uniformity([[1, 0], [0, 1]]) == pytest.approx(-4)


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
    assert alignment(moved_x * lengths, moved_y) == pytest.approx(alignment(x, y), abs=1e-9)
    for before, after in zip(spectrum(x)[1:], spectrum(7 * moved_x)[1:], strict=True):
        assert after == pytest.approx(before, rel=1e-6)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**16), n=st.integers(2, 40), D=st.integers(1, 8))
def test_measures_stay_in_their_ranges(seed, n, D):
    rows = np.random.default_rng(seed).normal(size=(n, D))
    assert -1 / (n - 1) - 1e-9 <= anisotropy(rows) <= 1 + 1e-9
    assert -8 - 1e-9 <= uniformity(rows) <= 1e-9
    actual = spectrum(rows)
    assert 1 - 1e-9 <= actual.effective_rank <= min(n, D) + 1e-9
    assert -1e-9 <= actual.svd_entropy <= 1 + 1e-9


@pytest.mark.parametrize("measure", [anisotropy, uniformity, spectrum])
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


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="t > 0, found 0"):
        uniformity(normal(4, 3), t=0)
    with pytest.raises(ValueError, match="alpha > 0"):
        alignment(normal(4, 3), normal(4, 3), alpha=-1)
    with pytest.raises(ValueError, match="to be a pair"):
        alignment(normal(4, 3), normal(5, 3))
