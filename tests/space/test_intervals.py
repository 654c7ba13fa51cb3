"""Intervals against normal theory, and against the spread over many samples."""

from __future__ import annotations

import numpy as np
import pytest

from codiemb_lib.space.intervals import jackknife_intervals, mean_interval
from codiemb_lib.space.measures import anisotropy, anisotropy_by_text, spectrum


def test_interval_is_that_of_normal_theory_for_many_values():
    values = np.random.default_rng(0).normal(3, 2, size=2000)
    mean, low, high = mean_interval(values)
    error = values.std() / np.sqrt(2000)
    assert mean == values.mean()
    assert (low, high) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=error / 10)


def test_equal_values_leave_no_doubt():
    assert mean_interval([2.0] * 5) == (2, 2, 2)


def test_pairwise_interval_has_the_spread_of_other_samples():
    # The mean of one text's cosines moves with that text and with all others: naive
    # resampling of the n terms would give half the true spread.
    samples = np.random.default_rng(0).normal(0.5, 1, size=(400, 100, 4))
    true = np.std([anisotropy(rows) for rows in samples])
    _, low, high = np.mean(
        [mean_interval(anisotropy_by_text(rows), pairwise=True) for rows in samples[:20]],
        axis=0,
    )
    assert (high - low) / (2 * 1.96) == pytest.approx(true, rel=0.15)


def test_jackknife_of_a_mean_is_that_of_normal_theory():
    values = np.random.default_rng(0).normal(3, 2, size=(2000, 1))
    value, low, high = jackknife_intervals(lambda rows: [rows.mean()], values, groups=200)
    error = values.std() / np.sqrt(2000)
    assert value == values.mean()
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.2)
    assert value - low == pytest.approx(high - value)


def test_jackknife_of_an_effective_rank_has_the_spread_of_other_samples():
    def rank(rows):
        return [spectrum(rows).effective_rank]

    scales = np.linspace(3, 0.1, 20)
    samples = np.random.default_rng(0).normal(size=(200, 100, 20)) * scales
    true = np.std([rank(rows) for rows in samples])
    found = [jackknife_intervals(rank, rows) for rows in samples[:30]]
    half = np.mean([high - value for value, _, high in found])
    assert half / 2.262 == pytest.approx(true, rel=0.25)  # Student's quantile, 9 degrees
