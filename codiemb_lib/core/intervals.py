"""Intervals over seeds, by Student's t."""

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats


def t_interval(values: ArrayLike) -> tuple[float, float]:
    """Student's 95 % interval of the mean of values (n,); of one value it has no bounds."""
    values = np.asarray(values, dtype=np.float64)
    if len(values) == 1:
        return -np.inf, np.inf
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return values.mean() - half, values.mean() + half
