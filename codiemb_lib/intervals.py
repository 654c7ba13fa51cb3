"""Intervals of means over texts, by the bootstrap."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats


class Interval(NamedTuple):
    """What :func:`mean_interval` returns."""

    mean: float
    low: float
    high: float


def mean_interval(
    values: ArrayLike,
    *,
    confidence: float = 0.95,
    pairwise: bool = False,
    resamples: int = 9999,
    seed: int = 0,
) -> Interval:
    """Mean of one value a text (n,), and its bootstrap interval by percentiles (SciPy).

    Texts are resampled, so the interval says what other texts of the same kind would give.

    Args:
        values: Terms of a mean, of any `..._by_text` or of `over_smoothing`.
        confidence: Share of the intervals that are to hold the true mean.
        pairwise: Each value is itself a text's mean over all others (`anisotropy_by_text`,
            `potential_by_text`): a text then sways the others' values as much as it does its own,
            and deviations count twice (Hoeffding, 1948).
        resamples: How many.
        seed: Of the resamples.

    Raises:
        ValueError: Fewer than two values, or values that are not finite.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
        found = "NaN or infinity" if np.size(values) - np.isfinite(values).sum() else values.shape
        raise ValueError(
            f"mean_interval: expected finite values of shape (n,) with n >= 2, found {found}."
        )
    mean = values.mean()
    if pairwise:
        values = 2 * values - mean
    interval = stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=confidence,
        n_resamples=resamples,
        batch=max(1, 2**22 // len(values)),  # 32 MB
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(float(mean), float(interval.low), float(interval.high))
