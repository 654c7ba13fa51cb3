"""Intervals of measures over texts: of means by Student's t, of others by the jackknife."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from codiemb_lib.core import t_interval


def mean_interval(values: np.ndarray, *, pairwise: bool = False) -> tuple[float, float, float]:
    """Mean of one value a text (n,), and the bounds of Student's 95 % interval.

    It says what other texts of the same kind would give. With `pairwise`, each value is itself a
    text's mean over all others (`anisotropy_by_text`, `potential_by_text`): a text then sways the
    others' values as much as it does its own, and deviations count twice (Hoeffding, 1948).
    """
    values = np.asarray(values, dtype=np.float64)
    mean = values.mean()
    return (mean, *t_interval(2 * values - mean if pairwise else values))


def jackknife_intervals(
    statistic: Callable[[np.ndarray], Sequence[float]],
    rows: ArrayLike,
    *,
    groups: int | np.ndarray = 10,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""Statistics of rows that are no means over texts, and the bounds of their 95 % intervals.

    By the jackknife, since the copies of a row in a bootstrap would be each other's neighbours.
    Each group of rows, of `groups` random ones or of the numbers (n,) given, is left out once
    (Kott, 2001); with the statistics :math:`\theta_g` so found, the squared error is
    :math:`\frac{G-1}{G} \sum (\theta_g - \bar\theta)^2`, and the interval Student's with G - 1
    degrees of freedom. Rough, by a third or so: the statistics are not quite smooth.

    `statistic` maps rows (n', D) to m numbers; what is returned are arrays (m,).
    """
    rows = np.asarray(rows)
    if isinstance(groups, int):
        groups = np.random.default_rng(seed).permutation(len(rows)) % groups
    count = groups.max() + 1
    values = np.asarray(statistic(rows), dtype=np.float64)
    without = np.array([statistic(rows[groups != g]) for g in range(count)], dtype=np.float64)
    error = np.sqrt((count - 1) * without.var(axis=0))
    half = stats.t.ppf(0.975, count - 1) * error
    return values, values - half, values + half
