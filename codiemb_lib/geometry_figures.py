"""Figures of the embedding space: its measures, its spectrum and a map of it."""

from __future__ import annotations

import numpy as np
import pandas as pd

from codiemb_lib.plotting import (
    TEXTS,
    distinct_pairs,
    draw_dots,
    draw_lines,
    draw_points,
    figure,
    name_series,
    panels,
    plane,
    text_kinds,
)
from codiemb_lib.style import ROLES, TASK_ROLES, WIDTH_1, WIDTH_2, shades, variant_styles


@figure(
    "geometry",
    key="texts measure",
    values="value",
    caption="**Alignment and uniformity, preset {preset}.** Both are better when lower, so "
    "the best corner is the lower left. Alignment: mean squared distance of queries and their "
    "passages, and of STS pairs rated 0.8 or more. Uniformity: how evenly the passages, and the "
    "STS texts, spread over the sphere. Faint points are seeds, solid points their mean; {seeds}. "
    "{interval}",
)
def plot_alignment_uniformity(rows: pd.DataFrame, *, ax: np.ndarray | None = None) -> np.ndarray:
    """Draw the alignment-uniformity plane, a panel per kind of texts that has both measures.

    Args:
        rows: Geometry rows; the measures `alignment` and `uniformity` are drawn.
        ax: One Axes per panel; a new figure by default.
    """
    measures = {name: rows[rows["measure"] == name] for name in ("alignment", "uniformity")}
    kinds = [
        kind
        for kind in text_kinds(rows)
        if all((measure["texts"] == kind).any() for measure in measures.values())
    ]
    if not kinds:
        raise ValueError(
            "alignment_uniformity: expected texts with the measures 'alignment' and 'uniformity', "
            f"found {distinct_pairs(rows, 'texts', 'measure')}. Compute both on the same texts."
        )
    axes = panels(len(kinds), ax, columns=2, height=2.6, legend=True)
    for axis, kind in zip(axes, kinds, strict=True):
        here = [measure[measure["texts"] == kind] for measure in measures.values()]
        points = plane(*here, names=tuple(measures))
        draw_points(axis, points)
        axis.set_title(TEXTS.get(kind, kind))
        axis.set_xlabel("alignment (↓)")
        axis.set_ylabel("uniformity (↓)")
    name_series(axes)
    return axes


@figure(
    "geometry",
    key="texts measure",
    values="value",
    caption="**Anisotropy, preset {preset}.** Mean cosine of distinct pairs of texts: near 0 the "
    "embeddings use all directions, near 1 they crowd in a cone. The dotted line is the base "
    "encoder. Faint points are seeds, solid points their mean; {seeds}. {interval}",
)
def plot_anisotropy(rows: pd.DataFrame, *, ax: np.ndarray | None = None) -> np.ndarray:
    """Draw the mean cosine of distinct pairs, a panel per kind of texts and a dot per model.

    Args:
        rows: Geometry rows; the measure `anisotropy` is drawn.
        ax: One Axes per kind of texts; a new figure by default.
    """
    found = sorted(rows["measure"].unique())
    rows = rows[rows["measure"] == "anisotropy"]
    if rows.empty:
        raise ValueError(
            f"anisotropy: expected the measure 'anisotropy', found {found}. "
            "Compute it, or pass the rows unfiltered."
        )
    styles = variant_styles(rows["variant"])
    kinds = text_kinds(rows)
    axes = panels(len(kinds), ax, columns=4, height=0.72 + 0.165 * len(styles))
    low, high = min(0.0, rows["value"].min()), rows["value"].max()
    for axis, kind in zip(axes, kinds, strict=True):
        draw_dots(axis, rows[rows["texts"] == kind], styles)
        axis.set_title(TEXTS.get(kind, kind))
        axis.set_xlabel("mean cosine (↓)")
        axis.set_xlim(low - 0.04 * (high - low), high + 0.08 * (high - low))
    return axes


@figure(
    "spectrum",
    key="texts index",
    values="singular_value",
    caption="**Spectrum of the embeddings, preset {preset}.** Singular values of the embedding "
    "matrix as shares of their sum, largest first, on logarithmic scales. A flat curve uses all "
    "dimensions alike, a steep one few of them. Below 1e-5 nothing is drawn: there a direction "
    "is empty up to rounding. Thin lines are seeds, thick lines their mean; "
    "{seeds}.",
)
def plot_spectra(rows: pd.DataFrame, *, ax: np.ndarray | None = None) -> np.ndarray:
    """Draw singular value (share of the sum) by index, a panel per kind of texts.

    Args:
        rows: Spectrum rows; `index` counts from 1.
        ax: One Axes per kind of texts; a new figure by default.
    """
    styles = variant_styles(rows["variant"])
    kinds = text_kinds(rows)
    axes = panels(len(kinds), ax, columns=2, height=2.6, legend=True)
    for axis, kind in zip(axes, kinds, strict=True):
        here = rows[rows["texts"] == kind].rename(columns={"singular_value": "value"})
        draw_lines(axis, here, styles, x="index", markers=False)
        axis.set(xscale="log", yscale="log")  # the first few directions differ most
        axis.set_ylim(bottom=max(1e-5, 0.8 * here["value"].min()))
        axis.set_title(TEXTS.get(kind, kind))
        axis.set_xlabel("index of the singular value")
        axis.set_ylabel("singular value (share of the sum)")
    name_series(axes)
    return axes


@figure(
    "umap",
    key="task dataset",
    values="x y",
    caption="**Maps of the embedding space, preset {preset}.** UMAP coordinates of IR texts (blue "
    "shades) and STS texts (orange shades) from one fit that all models share, on common axes; the "
    "first seed of each model is shown. Neighbourhoods can be read; distances, sizes of groups and "
    "empty space cannot: the projection distorts them.",
)
def plot_umap(rows: pd.DataFrame, *, ax: np.ndarray | None = None) -> np.ndarray:
    """Draw UMAP coordinates, a panel per variant (its first seed), coloured by data set.

    Args:
        rows: UMAP rows, of one fit that all variants share.
        ax: One Axes per variant; a new figure by default.
    """
    styles = variant_styles(rows["variant"])
    colours = {}
    for task, role in TASK_ROLES.items():
        datasets = rows.loc[rows["task"] == task, "dataset"].unique()
        colours |= {
            (task, name): (shade, ROLES[role].marker)
            for name, shade in zip(datasets, shades(ROLES[role].colour, len(datasets)), strict=True)
        }
    columns = min(5, len(styles))
    side = WIDTH_2 / columns if columns > 1 else WIDTH_1
    axes = panels(len(styles), ax, columns=columns, height=side + 0.15)
    centre = (rows[["x", "y"]].max() + rows[["x", "y"]].min()) / 2
    half = 0.52 * (rows[["x", "y"]].max() - rows[["x", "y"]].min()).max() or 1.0
    for axis, (variant, look) in zip(axes, styles.items(), strict=True):
        here = rows[rows["variant"] == variant]
        here = here[here["seed"] == here["seed"].min()]
        for (task, dataset), (colour, marker) in colours.items():
            mine = here[(here["task"] == task) & (here["dataset"] == dataset)]
            drawn = {"s": 2.5, "color": [colour], "marker": marker, "linewidths": 0, "alpha": 0.7}
            axis.scatter(mine["x"], mine["y"], label=dataset, rasterized=True, **drawn)
        axis.set(xlim=(centre["x"] - half, centre["x"] + half))
        axis.set(ylim=(centre["y"] - half, centre["y"] + half))
        axis.set(aspect="equal", xticks=[], yticks=[], title=look.label)
        axis.spines[:].set_visible(True)
        axis.spines[:].set_color("#CCCCCC")
    legend = axes[0].figure.legend(
        *axes[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=min(5, len(colours)),
        handletextpad=0.1,
        columnspacing=1.2,
    )
    for handle in legend.legend_handles:
        handle.set(sizes=[22], alpha=1)
    return axes
