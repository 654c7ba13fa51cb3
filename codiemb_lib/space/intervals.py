"""Intervals of measures over texts, by the bootstrap or the jackknife."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats


def mean_interval(
    values: ArrayLike,
    *,
    confidence: float = 0.95,
    pairwise: bool = False,
    resamples: int = 9999,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Mean of one value a text (n,), and the bounds of its bootstrap interval by percentiles.

    Texts are resampled, so the interval says what other texts of the same kind would give. With
    `pairwise`, each value is itself a text's mean over all others (`anisotropy_by_text`,
    `potential_by_text`): a text then sways the others' values as much as it does its own, and
    deviations count twice (Hoeffding, 1948).

    Raises:
        ValueError: Fewer than two values, or some that are not finite.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2 or not np.isfinite(values).all():
        raise ValueError(f"mean_interval: expected two finite values or more, found {values}.")
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
    return float(mean), float(interval.low), float(interval.high)


def jackknife_intervals(
    statistic: Callable[[np.ndarray], Sequence[float]],
    rows: ArrayLike,
    *,
    groups: int = 10,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""Statistics of rows that are no means over texts, and the bounds of their 95 % intervals.

    By the jackknife, since the copies of a row in a bootstrap would be each other's neighbours.
    Each of the `groups` random groups of rows is left out once (Kott, 2001); with the statistics
    :math:`\theta_g` so found, the squared error is :math:`\frac{G-1}{G} \sum (\theta_g -
    \bar\theta)^2`, and the interval Student's with G - 1 degrees of freedom. Rough, by a third or
    so: the statistics are not quite smooth.

    `statistic` maps rows (n', D) to m numbers; what is returned are arrays (m,).
    """
    rows = np.asarray(rows)
    group = np.random.default_rng(seed).permutation(len(rows)) % groups
    values = np.asarray(statistic(rows), dtype=np.float64)
    without = np.array([statistic(rows[group != g]) for g in range(groups)], dtype=np.float64)
    error = np.sqrt((groups - 1) * without.var(axis=0))
    half = stats.t.ppf(0.975, groups - 1) * error
    return values, values - half, values + half
