"""The figure of costs."""

from __future__ import annotations

import numpy as np
import pandas as pd

from codiemb_lib.draw.frame import SCORES, TIMES_100, draw_points, figure, name_series, panels
from codiemb_lib.draw.style import TASK_ROLES


@figure(
    "cost_scores",
    key="task",
    values="value tokens seconds",
    caption="**What a score costs, preset {preset}.** Mean test score against the tokens that a "
    "model's training encoded, which, unlike time, do not depend on what else the machine did. A "
    "fused model costs the sum of its ingredients. In time that is {seconds} seconds a model. "
    "Faint points are seeds, solid points their mean; {seeds}. {interval}",
    facts=lambda rows: {"seconds": _seconds(rows)},
)
def plot_cost_scores(rows: pd.DataFrame, *, ax: np.ndarray | None = None) -> np.ndarray:
    """Draw the mean test score, times 100, against the tokens encoded: a panel per task.

    Args:
        rows: Rows of `costs.cost_scores`.
        ax: One Axes per task, IR first; a new figure by default.
    """
    rows = rows.assign(x=rows["tokens"] / 1000, y=100 * rows["value"])
    tasks = [task for task in TASK_ROLES if (rows["task"] == task).any()]
    axes = panels(len(tasks), ax, columns=2, height=2.6, legend=True)
    for axis, task in zip(axes, tasks, strict=True):
        draw_points(axis, rows[rows["task"] == task])
        axis.set_xlabel("tokens encoded in training (thousands)")
        axis.set_ylabel(f"{TASK_ROLES[task]} test sets: mean\n{SCORES[task][1]} {TIMES_100}")
    name_series(axes)
    return axes


def _seconds(rows: pd.DataFrame) -> str:
    trained = rows.loc[rows["seconds"] > 0, "seconds"]
    return f"{trained.min():,.0f} to {trained.max():,.0f}" if len(trained) else "no"
