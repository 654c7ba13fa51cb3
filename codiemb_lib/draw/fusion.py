"""Figures of fusion: what runs changed and what a merge makes of it."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.colors import Normalize, TwoSlopeNorm

from codiemb_lib.draw.frame import (
    FAINT,
    SCORES,
    TIMES_100,
    draw_dots,
    figure,
    headline,
    mean_over_datasets,
    panels,
)
from codiemb_lib.draw.style import ROLES, TASK_ROLES, VariantStyle, label_points, variant_styles

# Measures of the space that are drawn along a path, and which way is better.
PATH_MEASURES = {
    "anisotropy": "(↓)",
    "uniformity": "(↓)",
    "alignment": "(↓)",
    "effective_rank": "(↑)",
}


def method_style(method: str, role: str) -> VariantStyle:
    """Look of a way to merge: filled for the delta-guided family, empty for all others."""
    fill = "full" if method.startswith("delta") else "none"
    return VariantStyle(method.replace("_", " "), role, "o", fill, "-")


def _ends(rows: pd.DataFrame) -> dict[str, str]:
    first, second = rows["variant"].iloc[0].split(" to ")
    return {"first": first, "second": second}


@figure(
    "fusion",
    key="ingredient tensor",
    values="layer module delta_norm weight",
    caption="**What the fused runs changed, and what they weigh, preset {preset}.** Upper row: "
    "norm of each run's deviation from the base encoder, by layer and module (emb.: embeddings). "
    "Lower rows: the run's merging weight there; white is the weight that a uniform soup gives. "
    "Grey: no such parameters. Of a module's tensors the norms are joined (root of the sum of "
    "squares) and the weights averaged; both are means over seeds; {seeds}.",
)
def plot_fusion_weights(rows: pd.DataFrame, *, ax: np.ndarray | None = None) -> np.ndarray:
    """Draw maps, layer by module: the norm of each ingredient's delta, and its merging weight.

    The first row of panels holds a norm map per ingredient; then follows a row of weight maps per
    fused variant. Variants that weigh all alike (the uniform soup) are left out beside others.

    Args:
        rows: Fusion rows.
        ax: The panels in reading order; a new figure by default.
    """
    methods = list(variant_styles(rows["variant"]))
    telling = rows.groupby("variant")["weight"].agg(np.ptp) > 1e-6
    methods = [method for method in methods if telling[method]] or methods[:1]
    rows = rows[rows["variant"].isin(methods)]
    ingredients = list(variant_styles(rows["ingredient"]))
    found = rows.groupby("variant")["ingredient"].agg(lambda names: sorted(names.unique()))
    if any(len(names) < len(ingredients) for names in found):
        raise ValueError(
            "fusion_weights: expected the same ingredients for every fused variant, found "
            f"{found.to_dict()}. Draw the variants apart."
        )
    uniform = 1 / len(ingredients)
    modules, layers = list(rows["module"].unique()), sorted(rows["layer"].unique())
    cells = rows.groupby(["variant", "seed", "ingredient", "module", "layer"]).agg(
        delta_norm=("delta_norm", np.linalg.norm), weight=("weight", "mean")
    )
    cells = cells.groupby(["variant", "ingredient", "module", "layer"]).mean()
    reach = max(float((cells["weight"] - uniform).abs().max()), 1e-6)
    kinds = [("delta_norm", methods[0], "viridis", Normalize(0, cells["delta_norm"].max()))]
    for method in methods:
        norm = TwoSlopeNorm(uniform, uniform - reach, uniform + reach)
        kinds.append(("weight", method, "RdBu_r", norm))

    height = 0.45 + 0.135 * len(modules)
    axes = panels(len(kinds) * len(ingredients), ax, columns=len(ingredients), height=height)
    grid = axes.reshape(len(kinds), len(ingredients))
    names = {**variant_styles(methods), **variant_styles(ingredients)}
    stride = -(-len(layers) // 8)  # at most eight layers are numbered
    ticks = [(at, "emb." if layers[at] < 0 else str(layers[at])) for at in range(len(layers))]
    for number, (row, (column, method, colours, norm)) in enumerate(zip(grid, kinds, strict=True)):
        for axis, ingredient in zip(row, ingredients, strict=True):
            table = cells.loc[(method, ingredient), column].unstack().reindex(modules)[layers]
            axis.set_facecolor("#E4E4E4")
            image = axis.imshow(table, cmap=colours, norm=norm, aspect="auto")
            axis.set_xticks(*zip(*ticks[::stride], strict=True))
            axis.set_yticks(range(len(modules)), modules if axis is row[0] else [])
            axis.tick_params(length=0)
            axis.spines[:].set_visible(False)
            if number == 0:
                axis.set_title(names[ingredient].label)
            if number == len(grid) - 1:
                axis.set_xlabel("layer")
        label = "‖delta‖" if column == "delta_norm" else f"weight, {names[method].label}"
        bar = row[0].figure.colorbar(image, ax=list(row), label=label, pad=0.01, aspect=14)
        bar.outline.set_visible(False)
    return axes


@figure(
    "study",
    key="split task dataset metric",
    values="value",
    caption="**Ways to merge the same runs, preset {preset}.** Difference to the uniform soup of "
    "the same seed, at the scale that dev picked for it, in mean nDCG@10 (IR) and mean Spearman "
    "correlation (STS), times 100. Each method brings the settings that did best on dev, out of "
    "equally many (the greedy soup looks by itself); test (lower row) was looked at once, with "
    "these. Faint points are seeds, solid points their mean; {seeds}. {interval}",
)
def plot_study(rows: pd.DataFrame, *, ax: np.ndarray | None = None) -> np.ndarray:
    """Draw what each method gains over the uniform soup: dev above test, IR left of STS.

    Args:
        rows: Rows of a fusion study, with the method as variant and `uniform` among them.
        ax: Four Axes; a new figure by default.
    """
    scores = headline(rows, "study", both=True)
    methods = [*dict.fromkeys(rows["variant"])]
    if "uniform" not in methods:
        raise ValueError(f"study: expected the method 'uniform', found {methods}. Add it.")
    others = [name for name in methods if name != "uniform"]
    axes = panels(4, ax, columns=2, height=0.72 + 0.165 * len(others))
    places = [(split, task) for split in ("dev", "test") for task in TASK_ROLES]
    for axis, (split, task) in zip(axes, places, strict=True):
        here = scores[(scores["split"] == split) & (scores["task"] == task)]
        means = mean_over_datasets(here, TASK_ROLES[task]).set_index(["variant", "seed"])["value"]
        gain = means.sub(means.loc["uniform"], level="seed").rename("value").reset_index()
        if gain["value"].isna().any():
            raise ValueError(
                f"study: expected the method 'uniform' for each seed, found it for "
                f"{[*means.loc['uniform'].index]}. Run notebook 04 for the others."
            )
        styles = {name: method_style(name, TASK_ROLES[task]) for name in others}
        draw_dots(axis, gain, styles)
        axis.axvline(0, color=ROLES["baseline"].colour, lw=0.8, ls=":", zorder=0)
        axis.set_title(f"{TASK_ROLES[task]}, {split}")
        axis.set_xlabel(f"{SCORES[task][1]} minus that of the soup, {TIMES_100}")
    return axes


@figure(
    "path",
    key="t task dataset metric",
    values="value",
    caption="**The straight path between two specialists, preset {preset}.** Each point is a model "
    "(1 - t) × {first} + t × {second}, scored on dev without further training. Left: the "
    "trade-off that interpolation gives. Right: what each task keeps of its better end. Thin lines "
    "are seeds, thick lines their mean; {seeds}.",
    facts=_ends,
)
def plot_path(rows: pd.DataFrame, *, ax: np.ndarray | None = None) -> np.ndarray:
    """Draw the dev scores along an interpolation: the plane of both tasks, and each task by t.

    Args:
        rows: Rows of a path; the variant is `<first> to <second>`.
        ax: Two Axes; a new figure by default.
    """
    rows = headline(rows, "path", both=True)
    wide = {
        task: mean_over_datasets(rows[rows["task"] == task], role, extra=("t",)).pivot(
            index="t", columns="seed", values="value"
        )
        for task, role in TASK_ROLES.items()
    }
    axes = panels(2, ax, columns=2, height=2.6)
    plane_axis, by_t = axes
    colour = ROLES["joint"].colour
    for seed in wide["ir"].columns:
        plane_axis.plot(wide["ir"][seed], wide["sts"][seed], color=colour, lw=0.5, alpha=FAINT)
    means = {task: table.mean(axis=1) for task, table in wide.items()}
    plane_axis.plot(means["ir"], means["sts"], color=colour, marker="o", ms=3)
    ends = [f"t = {t:g}" for t in means["ir"].index[[0, -1]]]
    label_points(plane_axis, means["ir"].iloc[[0, -1]], means["sts"].iloc[[0, -1]], ends)
    plane_axis.set_xlabel(f"IR dev sets: mean {SCORES['ir'][1]} {TIMES_100}")
    plane_axis.set_ylabel(f"STS dev sets: mean\n{SCORES['sts'][1]} {TIMES_100}")
    for task, role in TASK_ROLES.items():
        look = ROLES[role]
        gain = wide[task] - wide[task].iloc[[0, -1]].max()
        by_t.plot(gain.index, gain, color=look.colour, lw=0.5, alpha=FAINT)
        by_t.plot(
            gain.index,
            gain.mean(axis=1),
            color=look.colour,
            ls=look.line,
            marker=look.marker,
            ms=3,
            label=role,
        )
    by_t.axhline(0, color=ROLES["baseline"].colour, lw=0.8, ls=":", zorder=0)
    by_t.set_xlabel("t")
    by_t.set_ylabel("score minus the better end's,\n× 100 (↑)")
    by_t.legend(frameon=False)
    return axes


@figure(
    "path_geometry",
    key="t texts measure",
    values="value",
    caption="**The space along the path, preset {preset}.** Measures of the embeddings of dev "
    "texts for models (1 - t) × {first} + t × {second}: is the space between two specialists "
    "between theirs? Thin lines are seeds, thick lines their mean; {seeds}.",
    facts=_ends,
)
def plot_path_geometry(rows: pd.DataFrame, *, ax: np.ndarray | None = None) -> np.ndarray:
    """Draw anisotropy, uniformity, alignment and effective rank by t, a line per kind of texts.

    Args:
        rows: Geometry rows along a path.
        ax: One Axes per measure that the rows have; a new figure by default.
    """
    found = [name for name in PATH_MEASURES if (rows["measure"] == name).any()]
    axes = panels(len(found), ax, columns=4, height=2.1)
    kinds = {"ir": "IR", "sts": "STS"}
    for axis, name in zip(axes, found, strict=True):
        for kind, role in kinds.items():
            look = ROLES[role]
            here = rows[(rows["measure"] == name) & (rows["texts"] == kind)]
            table = here.pivot(index="t", columns="seed", values="value")
            axis.plot(table.index, table, color=look.colour, lw=0.5, alpha=FAINT)
            axis.plot(table.index, table.mean(axis=1), color=look.colour, ls=look.line, label=role)
        axis.set_xlabel("t")
        axis.set_title(f"{name.replace('_', ' ')} {PATH_MEASURES[name]}")
    axes[0].legend(frameon=False)
    return axes
