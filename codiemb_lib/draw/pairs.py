"""Figures of pairs of texts: their cosines, and what people say about them."""

from __future__ import annotations

import numpy as np
import pandas as pd

from codiemb_lib.draw.frame import figure, first_seed, grid, legend_below
from codiemb_lib.draw.style import ROLES, TASK_ROLES, variant_styles


@figure(
    "cosines",
    key="task pairs cosine",
    values="share n",
    caption="**Cosines of pairs, preset {preset}.** Positives: a query and its passages; STS "
    "pairs that people rated 0.8 or more. Negatives: a query and the most similar passage that is "
    "not its own, which is what costs rank; STS pairs rated 0.2 or less. Random: all other "
    "combinations of a data set's texts, a few of them rated where texts recur. Bins of 0.05; "
    "each curve sums to one. Pairs: {pairs}. The less positives and negatives overlap, the "
    "better; where both lie says nothing. The first seed of each model.",
    facts=lambda rows: {"pairs": _pair_counts(rows)},
)
def plot_cosines(rows: pd.DataFrame, *, ax: np.ndarray | None = None) -> np.ndarray:
    """Draw histograms of the cosines of positives, negatives and random pairs.

    Args:
        rows: Rows of `spaces.cosine_histograms` of several models.
        ax: One Axes per task and variant, a row per task; a new figure by default.
    """
    styles = variant_styles(rows["variant"])
    tasks = [task for task in TASK_ROLES if (rows["task"] == task).any()]
    axes = grid(len(tasks), len(styles), ax, height=1.45)
    seen = rows.loc[rows["share"] > 0, "cosine"]
    width = rows["cosine"].drop_duplicates().sort_values().diff().median()
    for row, task in zip(axes, tasks, strict=True):
        for axis, (variant, look) in zip(row, styles.items(), strict=True):
            here = first_seed(rows[(rows["variant"] == variant) & (rows["task"] == task)])
            role, plain = ROLES[TASK_ROLES[task]], ROLES["baseline"]
            names = {"positive": f"{TASK_ROLES[task]} positives", "negative": "negatives"}
            names["random"] = "random pairs"
            forms = {
                "random": {"fill": True, "color": "#DDDDDD"},
                "negative": {"color": plain.colour, "ls": plain.line},
                "positive": {"color": role.colour, "ls": "-", "lw": 1.4},
            }
            for pairs, form in forms.items():
                mine = here[here["pairs"] == pairs].sort_values("cosine")
                if len(mine):
                    edges = [*mine["cosine"], mine["cosine"].iloc[-1] + width]
                    axis.stairs(mine["share"], edges, label=names[pairs], **form)
            axis.set_xlim(seen.min(), seen.max() + width)
            axis.set_ylim(0, 1.05 * rows.loc[rows["task"] == task, "share"].max())
            if task == tasks[0]:
                axis.set_title(look.label)
            if task == tasks[-1]:
                axis.set_xlabel("cosine")
            axis.label_outer()
        row[0].set_ylabel(f"{TASK_ROLES[task]}: share of pairs")
    legend_below(axes[:, 0])
    return axes.ravel()


def _pair_counts(rows: pd.DataFrame) -> str:
    counts = rows.drop_duplicates(["task", "pairs"])
    return ", ".join(
        f"{TASK_ROLES[task]} {pairs} {n:,}"
        for task, pairs, n in counts[["task", "pairs", "n"]].itertuples(index=False, name=None)
    )


@figure(
    "rated_pairs",
    key="dataset pair",
    values="gold cosine",
    caption="**Similarity, people against models, preset {preset}.** A point is a pair of an STS "
    "test set; people's scale is mapped to 0 to 1{floor}. Spearman's correlation sees the order "
    "alone: a good model's points rise from left to right, however steeply. The first seed of "
    "each model.",
    facts=lambda rows: {
        "floor": ", of `lee-similarity` to 0.2 to 1" * ("lee-similarity" in set(rows["dataset"]))
    },
)
def plot_rated_pairs(rows: pd.DataFrame, *, ax: np.ndarray | None = None) -> np.ndarray:
    """Draw the cosine of each STS pair against its score by people.

    Args:
        rows: Rows of `spaces.rated_pairs` of several models.
        ax: One Axes per data set and variant, a row per data set; a new figure by default.
    """
    styles = variant_styles(rows["variant"])
    datasets = list(rows["dataset"].unique())
    axes = grid(len(datasets), len(styles), ax, height=1.35)
    margin = 0.05 * (rows["cosine"].max() - rows["cosine"].min())
    for row, dataset in zip(axes, datasets, strict=True):
        for axis, (variant, look) in zip(row, styles.items(), strict=True):
            here = rows[(rows["variant"] == variant) & (rows["dataset"] == dataset)]
            here = first_seed(here)
            room = min(1, 500 / len(here)) ** 0.5  # thousands of full marks would be a blot
            drawn = {"color": ROLES["STS"].colour, "marker": ROLES["STS"].marker, "lw": 0}
            drawn |= {"s": 5 * room, "alpha": 0.5 * room, "rasterized": True}
            axis.scatter(here["gold"], here["cosine"], **drawn)
            axis.set(xlim=(-0.05, 1.05), xticks=[0, 0.5, 1])
            axis.set_ylim(rows["cosine"].min() - margin, rows["cosine"].max() + margin)
            if dataset == datasets[0]:
                axis.set_title(look.label)
            if dataset == datasets[-1]:
                axis.set_xlabel("people")
            axis.label_outer()
        row[0].set_ylabel(f"{dataset}\ncosine")
    return axes.ravel()
