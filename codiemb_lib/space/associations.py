"""Does one number of a model go with another? Rank correlations over dependent models."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from codiemb_lib.core import MAIN_METRIC
from codiemb_lib.evaluate import is_constant
from codiemb_lib.space.intervals import jackknife_intervals

FEWEST_CLUSTERS = 4  # for an interval to say anything


def rank_correlations(points: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Rows (*by, correlation, low, high, n, clusters): Spearman's rho of two columns of `points`.

    They are `value` and `score`, both finite, in groups by the columns `by`. The points of a
    `variant`, its seeds and checkpoints, are not independent: they are a cluster, and the 95 %
    interval is that of the jackknife that leaves out whole clusters. With ten it is rough. Groups
    of fewer than `FEWEST_CLUSTERS`, and those in which a side is constant, also without one of the
    variants, are left out.
    """
    rows = []
    for key, group in points.groupby(list(by), sort=False):
        codes, clusters = pd.factorize(group["variant"])
        sides = group[["value", "score"]].to_numpy()
        if len(clusters) >= FEWEST_CLUSTERS and not any(map(is_constant, sides.T)):
            found = np.ravel(jackknife_intervals(_rho, sides, groups=codes)).clip(-1, 1)
            if np.isfinite(found).all():
                rows.append((*key, *found.tolist(), len(group), len(clusters)))
    return pd.DataFrame(rows, columns=[*by, "correlation", "low", "high", "n", "clusters"])


def _rho(sides: np.ndarray) -> list[float]:
    with np.errstate(invalid="ignore"):  # a constant side has no correlation
        return [np.corrcoef(stats.rankdata(sides, axis=0).T)[0, 1]]


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
