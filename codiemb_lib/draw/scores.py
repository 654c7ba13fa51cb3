"""Figures of scores: the plane of both tasks, by test set, compared, and while models learn."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from codiemb_lib.draw.frame import (
    FAINT,
    SCORES,
    TIMES_100,
    draw_dots,
    draw_lines,
    draw_points,
    figure,
    headline,
    mean_over_datasets,
    name_series,
    named_ends,
    panels,
    plane,
)
from codiemb_lib.draw.style import ROLES, TASK_ROLES, WIDTH_2, Role, label_points, variant_styles
from codiemb_lib.evaluate import AGAINST_BASE, CLAIMS, ISOTROPY, outcome


def _about_specialists(rows: pd.DataFrame) -> dict[str, str]:
    """What the lines of the plane mark; nothing where it has none."""
    match [name in set(rows["variant"]) for name in ("ir_only", "sts_only")]:
        case [True, True]:
            lines = (
                "The lines mark the specialists: a joint model left of the solid line has lost "
                "retrieval, one below the dashed line has lost similarity (negative transfer); in "
                "the shaded corner it beats both. "
            )
        case [True, False]:
            lines = (
                "The line marks the specialist of retrieval: a joint model left of it has lost "
                "retrieval (negative transfer). "
            )
        case [False, True]:
            lines = (
                "The line marks the specialist of similarity: a joint model below it has lost "
                "similarity (negative transfer). "
            )
        case _:
            lines = ""
    return {"lines": lines}


@figure(
    "scores",
    key="task dataset split metric",
    values="value",
    caption="**Retrieval against similarity, preset {preset}.** Mean nDCG@10 over the IR test "
    "sets and mean Spearman correlation over the STS test sets. {lines}Faint points are seeds, "
    "solid points their mean; {seeds}. {interval}",
    facts=_about_specialists,
)
def plot_trade_off(rows: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the IR/STS plane: mean nDCG@10 against mean Spearman over the test sets, times 100.

    Args:
        rows: Score rows; the metrics `ndcg@10` and `spearman` of the split `test` are drawn.
        ax: Where to draw; a new figure by default.
    """
    rows = headline(rows[rows["split"] == "test"], "trade_off", both=True)
    points = plane(
        mean_over_datasets(rows[rows["task"] == "ir"], "IR"),
        mean_over_datasets(rows[rows["task"] == "sts"], "STS"),
        names=("IR score", "STS score"),
    )
    if ax is None:
        _, ax = plt.subplots(figsize=(WIDTH_2, 3.6), layout="constrained")
    draw_points(ax, points)
    ax.set(xlim=ax.get_xlim(), ylim=ax.get_ylim())  # the lines change nothing
    ir = points.loc[points["variant"] == "ir_only", "x"]
    sts = points.loc[points["variant"] == "sts_only", "y"]
    if len(ir):
        look = ROLES["IR"]
        ax.axvline(ir.mean(), color=look.colour, linestyle=look.line, lw=0.8, zorder=0)
    if len(sts):
        look = ROLES["STS"]
        ax.axhline(sts.mean(), color=look.colour, linestyle=look.line, lw=0.8, zorder=0)
    if len(ir) and len(sts):
        corner = {"color": ROLES["joint"].colour, "alpha": 0.1, "lw": 0, "zorder": -1}
        ax.fill_between([ir.mean(), ax.get_xlim()[1]], sts.mean(), ax.get_ylim()[1], **corner)
    ax.set_xlabel(f"IR test sets: mean {SCORES['ir'][1]} {TIMES_100}")
    ax.set_ylabel(f"STS test sets: mean {SCORES['sts'][1]} {TIMES_100}")
    label_points(ax, *named_ends(ax))
    return ax


@figure(
    "scores",
    key="task dataset split metric",
    values="value",
    caption="**Scores by test set, preset {preset}.** nDCG@10 for retrieval, Spearman correlation "
    "for similarity, times 100; the scales differ. The dotted line is the base encoder: points "
    "right of it have gained. Faint points are seeds, solid points their mean; {seeds}. {interval}",
)
def plot_scores_by_dataset(rows: pd.DataFrame, *, ax: np.ndarray | None = None) -> np.ndarray:
    """Draw one panel per test set, with a dot per model on a shared model axis.

    Args:
        rows: Score rows; the metrics `ndcg@10` and `spearman` of the split `test` are drawn.
        ax: One Axes per test set, IR first; a new figure by default.
    """
    rows = headline(rows[rows["split"] == "test"], "scores_by_dataset")
    sets = rows[["task", "dataset"]].drop_duplicates().sort_values("task", kind="stable")
    styles = variant_styles(rows["variant"])
    axes = panels(len(sets), ax, columns=5, height=0.72 + 0.165 * len(styles))
    for axis, (task, dataset) in zip(axes, sets.itertuples(index=False), strict=True):
        here = rows[(rows["task"] == task) & (rows["dataset"] == dataset)]
        draw_dots(axis, here, styles)
        axis.set_title(dataset)
        axis.set_xlabel(f"{SCORES[task][1]}\n{TIMES_100}")
    return axes


# What models are compared on, in the order of the panels: the role and the label of the axis.
_COMPARED = {
    task: (role, f"difference in {SCORES[task][1]}\n{TIMES_100}")
    for task, role in TASK_ROLES.items()
} | {
    ISOTROPY[task]: (role, f"difference in isotropy\nof {role} texts, {TIMES_100}")
    for task, role in TASK_ROLES.items()
}


def _claims(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of claims; of a preset that decides none, those against the base encoder."""
    claims = rows[rows["claim"] != AGAINST_BASE]
    return claims if len(claims) else rows


def _about_claims(rows: pd.DataFrame) -> dict[str, str]:
    rows = _claims(rows)
    spaces = "Below, the same for isotropy: minus the mean cosine of two texts of a task. "
    tick = "A grey tick is the margin of a claim that a model is not worse. "
    texts = [f" {name}: {CLAIMS[name].text}." for name in rows["claim"].unique() if name in CLAIMS]
    return {
        "subject": "Differences that decide claims" if texts else "Differences from the start",
        "isotropy": spaces if rows["task"].isin(ISOTROPY.values()).any() else "",
        "tick": tick if texts else "",
        "side": "zero, or of the tick" if texts else "zero",
        "claims": "".join(texts),
    }


@figure(
    "comparisons",
    of="variant reference",
    key="claim task dataset",
    values="difference low high bound p_holm seeds_low seeds_high",
    caption="**{subject}, preset {preset}.** Difference of two models in mean "
    "nDCG@10 over the IR test sets (left) and in mean Spearman correlation over the STS test sets "
    "(right), times 100, mean over seeds; right of the line the first model is better. Thick: 95 % "
    "bootstrap interval over test texts; thin: 95 % t-interval over seeds, which may leave the "
    "frame. Small points are the single test sets. {isotropy}{tick}Solid: texts (p after Holm) and "
    "seeds both put the difference on one side of {side}; hollow: they do not.{claims}",
    facts=_about_claims,
)
def plot_comparisons(rows: pd.DataFrame, *, ax: np.ndarray | None = None) -> np.ndarray:
    """Draw the differences that decide the claims, a line per comparison: IR left, STS right.

    Args:
        rows: Rows of `comparison.compare`; those against the base encoder are drawn if alone.
        ax: One Axes per score and isotropy of a task in the rows; a new figure by default.
    """
    rows = _claims(rows)
    columns = ["difference", "low", "high", "bound", "seeds_low", "seeds_high"]
    rows = rows.assign(**{column: 100 * rows[column] for column in columns})
    styles = variant_styles([*rows["variant"], *rows["reference"]])
    tasks = [task for task in _COMPARED if (rows["task"] == task).any()]
    counts = (rows["dataset"] == "mean").groupby(rows["task"]).sum()[tasks].to_list()
    most = [max(counts[i : i + 2]) for i in range(0, len(tasks), 2)]  # lines of each row of panels
    heights = [0.72 + 0.21 * lines for lines in most]
    axes = panels(len(tasks), ax, columns=2, height=np.mean(heights), legend=True)
    if ax is None:
        axes[0].get_gridspec().set_height_ratios(heights)
    for i, (axis, task) in enumerate(zip(axes, tasks, strict=True)):
        role, label = _COMPARED[task]
        here = rows[rows["task"] == task]
        labels = []
        for (claim, *pair), lines in here.groupby(["claim", "variant", "reference"], sort=False):
            models = " vs ".join(styles[model].label for model in pair)
            _draw_comparison(axis, lines, ROLES[role], y=len(labels))
            labels.append(f"{claim}: {models}" if claim in CLAIMS else models)
        means = here.loc[here["dataset"] == "mean", ["low", "high", "bound"]]
        reach = np.concatenate([means.to_numpy().ravel(), here["difference"]])
        margin = 0.06 * np.ptp(reach) + 0.01
        axis.set_xlim(reach.min() - margin, reach.max() + margin)
        axis.axvline(0, color=ROLES["baseline"].colour, lw=0.6, zorder=0)
        axis.set_yticks(range(len(labels)), labels)
        axis.set_ylim(most[i // 2] - 0.4, -0.6)
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
        axis.set_xlabel(label)
    return axes


def _draw_comparison(ax: Axes, rows: pd.DataFrame, look: Role, *, y: int) -> None:
    """Draw one comparison: the single test sets, and the mean with both intervals and its bound."""
    sets = rows.loc[rows["dataset"] != "mean", "difference"]
    faint = {"ls": "none", "ms": 3, "mew": 0, "marker": look.marker, "alpha": FAINT}
    ax.plot(sets, np.full(len(sets), y), color=look.colour, **faint)
    mean = rows[rows["dataset"] == "mean"].iloc[0]
    ax.plot(mean["bound"], y, marker="|", ms=8, color="#999999", zorder=-1)
    ax.plot([mean["low"], mean["high"]], [y, y], color=look.colour, lw=2)
    seeds = np.clip([mean["seeds_low"], mean["seeds_high"]], -1e3, 1e3)  # of one seed: all
    ax.plot(seeds, [y + 0.25, y + 0.25], color=look.colour, lw=0.6)
    face = look.colour if outcome(mean) else "white"
    ax.plot(mean["difference"], y, color=look.colour, marker=look.marker, mfc=face, zorder=3)


@figure(
    "dev",
    key="step task dataset metric",
    values="value",
    caption="**Development scores during training, preset {preset}.** Mean nDCG@10 over the IR "
    "sets (left) and mean Spearman correlation over the STS sets (right), on their development "
    "splits, by optimiser step. Thin lines are seeds, thick lines their mean; {seeds}.",
)
def plot_training_curves(rows: pd.DataFrame, *, ax: np.ndarray | None = None) -> np.ndarray:
    """Draw the dev score by optimiser step: a panel for IR and one for STS, a line per variant.

    Args:
        rows: Dev rows; the metrics `ndcg@10` and `spearman` are drawn.
        ax: Two Axes; a new figure by default.
    """
    rows = headline(rows, "training_curves")
    styles = variant_styles(rows["variant"])
    axes = panels(2, ax, columns=2, height=2.5, legend=True)
    for axis, (task, role) in zip(axes, TASK_ROLES.items(), strict=True):
        here = mean_over_datasets(rows[rows["task"] == task], role, extra=("step",))
        draw_lines(axis, here, styles, x="step")
        axis.set_xlabel("optimiser step")
        axis.set_ylabel(f"{role} dev sets: mean\n{SCORES[task][1]} {TIMES_100}")
    name_series(axes)
    return axes
