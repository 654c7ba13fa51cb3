"""A picture of a training run that grows while it runs, in the output of a notebook's cell."""

from __future__ import annotations

import time
from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import DisplayHandle
from matplotlib.figure import Figure

from codiemb_lib.draw import ROLES


class LivePlot:
    """`train(..., watch=LivePlot())` draws every two seconds, and new dev scores at once."""

    def __init__(self, every: float = 2.0):
        self.every = every
        self._handle = DisplayHandle()
        self._drawn, self._scores = -every, -1

    def __call__(self, log: Sequence[dict], dev: pd.DataFrame) -> None:
        """Draw the losses so far and the dev scores, unless the last picture is fresh."""
        now = time.monotonic()
        if len(dev) == self._scores and now - self._drawn < self.every:
            return
        figure = draw(pd.DataFrame(log), dev)
        (self._handle.display if self._scores < 0 else self._handle.update)(figure)
        plt.close(figure)
        self._drawn, self._scores = time.monotonic(), len(dev)


def draw(log: pd.DataFrame, dev: pd.DataFrame) -> Figure:
    """One panel of losses (step, task, loss) for each kind of batch, a point a step; and one of dev
    scores (step, task, value): the mean of each task, less that of the untrained encoder."""
    kinds = sorted(log["task"].unique())
    figure, (*axes, scores) = plt.subplots(1, len(kinds) + 1, figsize=(6.8, 2.0))
    for ax, kind in zip(axes, kinds, strict=True):
        rows = log[log["task"] == kind]
        colour = ROLES.get(kind.upper(), ROLES["baseline"]).colour
        ax.plot(rows["step"], rows["loss"], ".", ms=3, color=colour, alpha=0.4)
        ax.plot(rows["step"], rows["loss"].ewm(span=10).mean(), color=colour)
        ax.set(title=f"loss, {kind.upper()} batches (↓)", xlabel="optimiser step")
    for task, rows in dev.groupby("task"):
        mean, role = rows.groupby("step")["value"].mean(), ROLES[task.upper()]
        look = {"color": role.colour, "marker": role.marker, "ls": role.line, "ms": 3}
        scores.plot(100 * (mean - mean.iloc[0]), label=task.upper(), **look)
    scores.axhline(0, color="grey", lw=0.5)
    scores.set(title="gain on dev × 100 (↑)", xlabel="optimiser step")
    scores.legend()
    return figure
