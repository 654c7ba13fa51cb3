"""A picture of a training run that grows while it runs, in the output of a notebook's cell."""

from __future__ import annotations

import time
from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import DisplayHandle
from matplotlib.figure import Figure

# Its own, of the house's palette: were they those of `style`, a changed figure would train anew.
_COLOURS = {"ir": "#0173B2", "sts": "#DE8F05", "mixed": "#333333"}
_LINES = {"ir": "o-", "sts": "s--"}


class LivePlot:
    """What `training.train` may be given as `watch`: the losses, and the dev scores of both tasks.

    Args:
        every: Seconds between two pictures; new dev scores are drawn at once.
    """

    def __init__(self, every: float = 2.0):
        self.every = every
        self._handle = DisplayHandle()
        self._drawn = -every
        self._scores = -1

    def __call__(self, log: Sequence[dict], dev: pd.DataFrame) -> None:
        """Draw, unless there is nothing new and the last picture is fresh."""
        now = time.monotonic()
        if len(dev) == self._scores and now - self._drawn < self.every:
            return
        figure = draw(pd.DataFrame(log), dev)
        (self._handle.display if self._scores < 0 else self._handle.update)(figure)
        plt.close(figure)
        self._drawn, self._scores = time.monotonic(), len(dev)


def draw(log: pd.DataFrame, dev: pd.DataFrame) -> Figure:
    """One panel of losses for each kind of batch, a point a step; and one of dev scores.

    Args:
        log: A row a step: step, task, loss.
        dev: Rows (step, task, value), a data set each; the mean of a task is drawn, less that of
            the untrained encoder.
    """
    kinds = sorted(log["task"].unique())
    figure, axes = plt.subplots(1, len(kinds) + 1, figsize=(6.8, 2.0), layout="constrained")
    for ax, kind in zip(axes, kinds, strict=False):
        rows, colour = log[log["task"] == kind], _COLOURS[kind]
        ax.plot(rows["step"], rows["loss"], ".", ms=3, color=colour, alpha=0.4)
        ax.plot(rows["step"], rows["loss"].ewm(span=10).mean(), color=colour)
        ax.set(title=f"loss, {kind.upper()} batches (↓)", xlabel="optimiser step")
    for task, rows in dev.groupby("task"):
        mean = rows.groupby("step")["value"].mean()
        gain = 100 * (mean - mean.iloc[0])
        axes[-1].plot(gain, _LINES[task], ms=3, color=_COLOURS[task], label=task.upper())
    axes[-1].set(title="gain on dev × 100 (↑)", xlabel="optimiser step")
    axes[-1].axhline(0, color="#999999", lw=0.5)
    axes[-1].legend()
    return figure
