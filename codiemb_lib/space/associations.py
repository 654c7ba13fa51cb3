"""Does one number of a model go with another? Rank correlations over dependent models."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from codiemb_lib.core import MAIN_METRIC
from codiemb_lib.evaluate import is_constant

FEWEST_CLUSTERS = 4  # for an interval to say anything


def rank_correlations(
    points: pd.DataFrame, by: Sequence[str], *, resamples: int = 1999
) -> pd.DataFrame:
    """Rows (*by, correlation, low, high, n, clusters): Spearman's rho of two columns of `points`.

    They are `value` and `score`, both finite, in groups by the columns `by`. The points of a
    `variant`, its seeds and checkpoints, are not independent: they are a cluster. The bootstrap
    draws whole clusters, and its percentiles are the 95 % interval, the ranks being those
    of all points. With ten clusters it is rough and, if anything, too short. Groups of fewer than
    `FEWEST_CLUSTERS`, and those in which a side is constant, are left out.
    """
    rows = []
    for key, group in points.groupby(list(by), sort=False):
        codes, clusters = pd.factorize(group["variant"])
        sides = [group[side].to_numpy() for side in ("value", "score")]
        if len(clusters) < FEWEST_CLUSTERS or any(map(is_constant, sides)):
            continue
        sides = [stats.rankdata(side) for side in sides]
        rng, count = np.random.default_rng(0), len(clusters)
        drawn = rng.multinomial(count, np.full(count, 1 / count), resamples)
        with np.errstate(invalid="ignore"):  # a draw of equal points has no correlation
            many = _weighted(*sides, drawn[:, codes])
        low, high = np.nanquantile(many, [0.025, 0.975])
        rho = _weighted(*sides, np.ones((1, len(group))))[0]
        rows.append((*key, float(rho), float(low), float(high), len(group), len(clusters)))
    return pd.DataFrame(rows, columns=[*by, "correlation", "low", "high", "n", "clusters"])


def with_scores(measures: pd.DataFrame, scores: pd.DataFrame, on: Sequence[str]) -> pd.DataFrame:
    """Points for :func:`rank_correlations`: each measure beside the score of each task.

    Rows of `measures_by_kind` and score rows (task, dataset, metric, value) are joined on the
    columns `on`, which name a model: variant and seed, perhaps step. Measures without a finite
    value are left out; the score is the headline metric, averaged over the task's data sets, less
    the unseen ones.
    Without rows on one side there are none.
    """
    if measures.empty or scores.empty:  # empty columns have no type to be joined on
        return measures.iloc[:0].assign(task="", score=0.0)
    main = scores[scores["task"].isin(("ir", "sts"))]
    main = main[main["metric"] == main["task"].map(MAIN_METRIC)]
    means = main.groupby([*on, "task"])["value"].mean().rename("score").reset_index()
    return measures[np.isfinite(measures["value"])].merge(means, on=list(on))


def associations_of(
    geometry: pd.DataFrame, scores: pd.DataFrame, trajectory: pd.DataFrame, dev: pd.DataFrame
) -> pd.DataFrame:
    """`rank_correlations` of every measure with every task's score: over models and seeds on test,
    and over the checkpoints of all runs on dev (column `over`)."""
    of_models = with_scores(geometry, scores, on=["variant", "seed"]).assign(over="models")
    later = trajectory[trajectory["step"] > 0]  # before the first step all are the base encoder
    of_steps = with_scores(later, dev, on=["variant", "seed", "step"]).assign(over="checkpoints")
    by = ["over", "task", "texts", "measure"]
    tables = [rank_correlations(points, by) for points in (of_models, of_steps)]
    return pd.concat([t for t in tables if len(t)] or tables[:1], ignore_index=True)


def _weighted(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Pearson's r of x and y (n,) under each row of weights (R, n): (R,)."""
    weights = weights / weights.sum(axis=1, keepdims=True)
    x = x - (weights @ x)[:, None]  # (R, n)
    y = y - (weights @ y)[:, None]
    products = [(weights * a * b).sum(axis=1) for a, b in ((x, y), (x, x), (y, y))]
    return products[0] / np.sqrt(products[1] * products[2])
