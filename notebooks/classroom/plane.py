"""Objectives on a handful of points that can be drawn: where does the gradient push each?

Two planes. On the unit circle a point is a text, its angle all that an encoder knows of it. In the
plane of gold score and cosine a point is a rated pair, which the objective moves up or down.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from codiemb_lib.draw import ROLES

KINDS = {  # colour, marker and fill of a text on the circle
    "query": (ROLES["IR"].colour, "o", "full"),
    "positive": (ROLES["IR"].colour, "o", "none"),
    "negative": (ROLES["baseline"].colour, "^", "full"),
    "first": (ROLES["STS"].colour, "s", "full"),
    "second": (ROLES["STS"].colour, "s", "none"),
}
_ARROW = "firebrick"  # of no role: a push is neither retrieval nor similarity


def circle(degrees: Sequence[float]) -> Tensor:
    """Points (n, 2) on the unit circle at these angles."""
    angles = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack((angles.cos(), angles.sin()), dim=1)


def pushes(loss: Callable[[Tensor], Tensor], points: Tensor) -> tuple[float, Tensor]:
    """The loss of some points, and the direction of descent: minus its gradient at each."""
    points = points.detach().clone().requires_grad_()
    value = loss(points)
    (gradient,) = torch.autograd.grad(value, points)
    return value.item(), -gradient


def plot_circle(
    points: Tensor,
    pushed: Tensor,
    names: Sequence[str],
    kinds: Sequence[str],
    *,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Texts (n, 2) on the unit circle, an arrow at each.

    The longest arrow of `pushed` (n, 2) has one length whatever its size, the others are in
    proportion. Names are written inside the circle; a kind is one of `KINDS`.
    """
    ax = ax or plt.subplots(figsize=(2.2, 2.3))[1]
    turn = np.linspace(0, 2 * np.pi, 200)
    ax.plot(np.cos(turn), np.sin(turn), color="lightgrey", lw=0.6, zorder=0)
    for (x, y), name, kind in zip(points.tolist(), names, kinds, strict=True):
        colour, marker, fill = KINDS[kind]
        ax.plot(x, y, marker, color=colour, fillstyle=fill, ms=6)
        ax.text(0.8 * x, 0.8 * y, name, ha="center", va="center")
    tips = points + 0.75 * _in_proportion(pushed)
    for start, end in zip(points.tolist(), tips.tolist(), strict=True):
        _arrow(ax, start, end)
    ax.set(title=title, xticks=[], yticks=[], aspect="equal", xlim=(-1.6, 1.6), ylim=(-1.6, 1.6))
    ax.spines[:].set_visible(False)
    return ax


def plot_pairs(
    scores: Tensor, similarities: Tensor, pushed: Tensor, *, title: str = "", ax: Axes | None = None
) -> Axes:
    """Rated pairs by gold score and cosine, an arrow at each, drawn as in `plot_circle`."""
    ax = ax or plt.subplots(figsize=(3.3, 2.3))[1]
    ax.plot(scores, similarities, ROLES["STS"].marker, color=ROLES["STS"].colour)
    tips = similarities + 0.35 * _in_proportion(pushed)
    for x, start, end in zip(scores.tolist(), similarities.tolist(), tips.tolist(), strict=True):
        _arrow(ax, (x, start), (x, end))
    ax.set(title=title, xlabel="people (0 to 1)", ylabel="cosine", xlim=(-0.08, 1.08))
    ax.set_ylim(-0.35, 1.25)
    return ax


def _in_proportion(pushed: Tensor) -> Tensor:
    """The arrows, the longest of length one; all of them zero where nothing is pushed."""
    lengths = pushed.abs() if pushed.dim() == 1 else pushed.norm(dim=1)
    longest = lengths.max()
    return pushed / longest if longest > 0 else pushed


def _arrow(ax: Axes, start: Sequence[float], end: Sequence[float]) -> None:
    if math.dist(start, end) >= 0.02:  # else it is shorter than its own head
        look = {"arrowstyle": "-|>", "color": _ARROW, "lw": 1.2, "mutation_scale": 7}
        ax.annotate("", end, start, arrowprops=look | {"shrinkA": 0, "shrinkB": 0})
