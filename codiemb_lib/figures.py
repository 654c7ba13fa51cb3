"""One function per figure: tidy rows in, Axes out.

`plot_x(rows, ax=None)` draws the figure whose files are called `x` and whose caption is
`caption("x", rows)`. It computes nothing but groups, means and intervals of what it draws, and
shows nothing. A figure of several panels returns an array of Axes and takes one as `ax`. Every
function raises `ValueError` for missing columns, no rows, missing values, rows that stand twice,
and rows of several presets. `FIGURES` lists the figures with the table that each one draws.

    rows = pandas.read_csv("scores.csv")
    ax = figures.plot_trade_off(rows)
    style.save_figure(ax.figure, "trade_off", rows=rows, caption=figures.caption("trade_off", rows))
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.container import ErrorbarContainer
from matplotlib.ticker import MaxNLocator
from scipy import stats

from codiemb_lib.style import (
    ROLES,
    SHEET,
    TASK_ROLES,
    WIDTH_1,
    WIDTH_2,
    VariantStyle,
    label_points,
    shades,
    variant_styles,
)

# The score that stands for a task, and its name on an axis.
SCORES = {"ir": ("ndcg@10", "nDCG@10"), "sts": ("spearman", "Spearman")}
TIMES_100 = "\N{MULTIPLICATION SIGN} 100 (↑)"
TEXTS = {
    "all": "all texts",
    "ir": "IR texts",
    "ir_queries": "IR queries",
    "ir_passages": "IR passages",
    "sts": "STS texts",
}
FAINT = 0.35  # opacity of a single seed


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure: the table that it draws, the columns it needs, its caption and its function."""

    table: str
    key: tuple[str, ...]
    values: tuple[str, ...]
    caption: str
    plot: Callable[..., Axes | np.ndarray]


FIGURES: dict[str, Figure] = {}


def _figure(table: str, *, key: str, values: str, caption: str) -> Callable:
    """Register `plot_<stem>` as figure `<stem>`; check its rows; draw it in the house style."""

    def register(plot: Callable) -> Callable:
        stem = plot.__name__.removeprefix("plot_")

        @functools.wraps(plot)
        def drawn(rows: pd.DataFrame, *, ax: Axes | np.ndarray | None = None):
            rows = _checked(stem, rows)
            with plt.style.context(SHEET):
                return plot(rows, ax=ax)

        key_columns = ("preset", "variant", "seed", *key.split())
        FIGURES[stem] = Figure(table, key_columns, tuple(values.split()), caption, drawn)
        return drawn

    return register


def caption(stem: str, rows: pd.DataFrame) -> str:
    """Caption in Markdown of figure `stem`, with preset and number of seeds filled in from `rows`.

    Raises:
        ValueError: There is no such figure, or the rows do not suit it.
    """
    if stem not in FIGURES:
        raise ValueError(f"Expected a figure out of {sorted(FIGURES)}, found {stem!r}.")
    rows = _checked(stem, rows)
    styles = variant_styles(rows["variant"])
    counts = rows.groupby("variant")["seed"].nunique()
    usual = int(counts.mode().max())
    others = [f"{styles[v].label}: {counts[v]}" for v in styles if counts[v] != usual]
    if counts.max() < 3:
        interval = "No interval is drawn, for no model has three seeds."
    else:
        interval = "Bars are 95 % t-intervals of the mean over seeds, where a model has three."
    return FIGURES[stem].caption.format(
        preset=rows["preset"].iloc[0],
        seeds=f"n = {usual} seed{'s' * (usual > 1)} a model"
        + (f" ({', '.join(others)})" if others else ""),
        interval=interval,
    )


@_figure(
    "scores",
    key="task dataset split metric",
    values="value",
    caption="**Retrieval against similarity, preset {preset}.** Mean nDCG@10 over the IR test "
    "sets and mean Spearman correlation over the STS test sets. The lines mark the specialists: a "
    "joint model left of the solid line has lost retrieval, one below the dashed line has lost "
    "similarity (negative transfer); in the shaded corner it beats both. Faint points are "
    "seeds, solid points their mean; {seeds}. {interval}",
)
def plot_trade_off(rows: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the IR/STS plane: mean nDCG@10 against mean Spearman over the test sets, times 100.

    Args:
        rows: Score rows; the metrics `ndcg@10` and `spearman` of the split `test` are drawn.
        ax: Where to draw; a new figure by default.
    """
    rows = _headline(rows[rows["split"] == "test"], "trade_off")
    points = _plane(
        _mean_over_datasets(rows[rows["task"] == "ir"], "IR"),
        _mean_over_datasets(rows[rows["task"] == "sts"], "STS"),
        names=("IR score", "STS score"),
    )
    if ax is None:
        _, ax = plt.subplots(figsize=(WIDTH_2, 3.6), layout="constrained")
    _points(ax, points)
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
    label_points(ax, *_named_ends(ax))
    return ax


@_figure(
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
    rows = _headline(rows[rows["split"] == "test"], "scores_by_dataset")
    panels = rows[["task", "dataset"]].drop_duplicates().sort_values("task", kind="stable")
    styles = variant_styles(rows["variant"])
    axes = _panels(len(panels), ax, columns=5, height=0.72 + 0.165 * len(styles))
    for axis, (task, dataset) in zip(axes, panels.itertuples(index=False), strict=True):
        here = rows[(rows["task"] == task) & (rows["dataset"] == dataset)]
        _dots(axis, here, styles)
        axis.set_title(dataset)
        axis.set_xlabel(f"{SCORES[task][1]}\n{TIMES_100}")
    return axes


@_figure(
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
    rows = _headline(rows, "training_curves")
    styles = variant_styles(rows["variant"])
    axes = _panels(2, ax, columns=2, height=2.5, legend=True)
    for axis, (task, role) in zip(axes, TASK_ROLES.items(), strict=True):
        here = _mean_over_datasets(rows[rows["task"] == task], role, extra=("step",))
        _lines(axis, here, styles, x="step", markers=True)
        axis.set_xlabel("optimiser step")
        axis.set_ylabel(f"{role} dev sets: mean\n{SCORES[task][1]} {TIMES_100}")
    _name_series(axes)
    return axes


@_figure(
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
        for kind in _text_kinds(rows)
        if all((measure["texts"] == kind).any() for measure in measures.values())
    ]
    if not kinds:
        raise ValueError(
            "alignment_uniformity: expected texts with the measures 'alignment' and 'uniformity', "
            f"found {_pairs(rows, 'texts', 'measure')}. Compute both on the same texts."
        )
    axes = _panels(len(kinds), ax, columns=2, height=2.6, legend=True)
    for axis, kind in zip(axes, kinds, strict=True):
        here = [measure[measure["texts"] == kind] for measure in measures.values()]
        points = _plane(*here, names=tuple(measures))
        _points(axis, points)
        axis.set_title(TEXTS.get(kind, kind))
        axis.set_xlabel("alignment (↓)")
        axis.set_ylabel("uniformity (↓)")
    _name_series(axes)
    return axes


@_figure(
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
    kinds = _text_kinds(rows)
    axes = _panels(len(kinds), ax, columns=4, height=0.72 + 0.165 * len(styles))
    low, high = min(0.0, rows["value"].min()), rows["value"].max()
    for axis, kind in zip(axes, kinds, strict=True):
        _dots(axis, rows[rows["texts"] == kind], styles)
        axis.set_title(TEXTS.get(kind, kind))
        axis.set_xlabel("mean cosine (↓)")
        axis.set_xlim(low - 0.04 * (high - low), high + 0.08 * (high - low))
    return axes


@_figure(
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
    kinds = _text_kinds(rows)
    axes = _panels(len(kinds), ax, columns=2, height=2.6, legend=True)
    for axis, kind in zip(axes, kinds, strict=True):
        here = rows[rows["texts"] == kind].rename(columns={"singular_value": "value"})
        _lines(axis, here, styles, x="index", markers=False)
        axis.set(xscale="log", yscale="log")  # the first few directions differ most
        axis.set_ylim(bottom=max(1e-5, 0.8 * here["value"].min()))
        axis.set_title(TEXTS.get(kind, kind))
        axis.set_xlabel("index of the singular value")
        axis.set_ylabel("singular value (share of the sum)")
    _name_series(axes)
    return axes


@_figure(
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
    axes = _panels(len(kinds) * len(ingredients), ax, columns=len(ingredients), height=height)
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


@_figure(
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
    axes = _panels(len(styles), ax, columns=columns, height=side + 0.15)
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


# Rows


def _checked(stem: str, rows: pd.DataFrame) -> pd.DataFrame:
    """The rows, if figure `stem` can draw them honestly."""
    figure = FIGURES[stem]
    columns = [*figure.key, *figure.values]
    remedy = f"Pass the rows of the table {figure.table!r}."
    missing = [column for column in columns if column not in rows.columns]
    if missing:
        raise ValueError(
            f"{stem}: expected the columns {columns}, found {list(rows.columns)} "
            f"without {missing}. {remedy}"
        )
    if rows.empty:
        raise ValueError(f"{stem}: expected at least one row, found none. {remedy}")
    gaps = rows[columns].isna()
    if gaps.any(axis=None):
        where = rows.loc[gaps.any(axis=1), columns].iloc[0].to_dict()
        raise ValueError(
            f"{stem}: expected a value in every cell, found {where}. "
            "Compute what is missing, or leave the row out."
        )
    presets = sorted(rows["preset"].unique())
    if len(presets) > 1:
        raise ValueError(
            f"{stem}: expected rows of one preset, found {presets}. Choose one: "
            f"rows[rows['preset'] == {presets[0]!r}]."
        )
    twice = rows.duplicated(list(figure.key))
    if stem != "umap" and twice.any():  # points of a map have no key
        where = rows.loc[twice, list(figure.key)].iloc[0].to_dict()
        raise ValueError(
            f"{stem}: expected each row once, found {where} twice. "
            "Drop the rows of the older computation."
        )
    return rows


def _headline(rows: pd.DataFrame, stem: str) -> pd.DataFrame:
    """The rows of each task's headline score, times 100."""
    kept = pd.concat(
        rows[(rows["task"] == task) & (rows["metric"] == metric)]
        for task, (metric, _) in SCORES.items()
    )
    if kept.empty:
        raise ValueError(
            f"{stem}: expected the metrics 'ndcg@10' (ir) or 'spearman' (sts), found "
            f"{_pairs(rows, 'task', 'metric')} in the rows of this split. Pass the rows unfiltered."
        )
    return kept.assign(value=100 * kept["value"])


def _pairs(rows: pd.DataFrame, first: str, second: str) -> list[tuple]:
    return list(rows[[first, second]].drop_duplicates().itertuples(index=False, name=None))


def _mean_over_datasets(rows: pd.DataFrame, role: str, extra: tuple[str, ...] = ()) -> pd.DataFrame:
    """Mean over data sets per variant and seed; every model must have been tested on the same."""
    keys = ["variant", "seed", *extra]
    table = rows.pivot(index=keys, columns="dataset", values="value")
    gaps = table.isna()
    if gaps.any(axis=None):
        where = gaps.any(axis=1).idxmax()
        raise ValueError(
            f"Expected every model on all {role} data sets {list(table.columns)}, found "
            f"{', '.join(f'{k} {v}' for k, v in zip(keys, where, strict=True))} without "
            f"{list(table.columns[gaps.loc[where]])}. Evaluate it there, or leave the data set out "
            "for all: means over different data sets cannot be compared."
        )
    return table.mean(axis=1).rename("value").reset_index()


def _plane(x: pd.DataFrame, y: pd.DataFrame, *, names: tuple[str, str]) -> pd.DataFrame:
    """Join two tables of values on variant and seed as the columns x and y."""
    keys = ["variant", "seed"]
    tables = [table.set_index(keys)["value"].rename(axis) for axis, table in (("x", x), ("y", y))]
    points = pd.concat(tables, axis=1).reset_index()
    for axis, name in zip("xy", names, strict=True):
        lacking = points.loc[points[axis].isna(), keys]
        if len(lacking):
            raise ValueError(
                f"Expected the {name} of every model, found none of variant "
                f"{lacking['variant'].iloc[0]!r}, seed {lacking['seed'].iloc[0]}. "
                "Compute it, or leave the model out."
            )
    return points


def _text_kinds(rows: pd.DataFrame) -> list[str]:
    found = list(rows["texts"].unique())
    return [kind for kind in TEXTS if kind in found] + [k for k in found if k not in TEXTS]


def _half_interval(values: pd.Series) -> float | None:
    """Half the 95 % t-interval of the mean, or None for fewer than three values."""
    n = len(values)
    return None if n < 3 else float(stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n))


# Drawing


def _panels(
    count: int, ax: np.ndarray | None, *, columns: int, height: float, legend: bool = False
) -> np.ndarray:
    """A flat array of `count` Axes: those given, or a new figure with rows `height` inches high.

    It is two columns of print wide, but one for a single panel without a legend beside it.
    """
    if ax is not None:
        axes = np.ravel(np.asarray(ax, dtype=object))
        if len(axes) != count:
            raise ValueError(
                f"Expected {count} Axes, one per panel, found {len(axes)}. "
                f"Make them with plt.subplots(1, {count}), or leave out `ax`."
            )
        return axes
    columns = min(columns, count)
    rows = -(-count // columns)
    width = WIDTH_1 if count == 1 and not legend else WIDTH_2
    figure, grid = plt.subplots(
        rows, columns, figsize=(width, rows * height), layout="constrained", squeeze=False
    )
    for surplus in grid.flat[count:]:
        figure.delaxes(surplus)
    return grid.flatten()[:count]


def _points(ax: Axes, points: pd.DataFrame) -> None:
    """Draw seeds and means of points (variant, seed, x, y)."""
    styles = variant_styles(points["variant"])
    for variant, look in styles.items():
        here = points[points["variant"] == variant]
        _seeds_and_mean(ax, here["x"], here["y"], look)
    ax.margins(0.1)


def _seeds_and_mean(ax: Axes, x: pd.Series, y: pd.Series, look: VariantStyle) -> None:
    if len(x) > 1:
        ax.plot(x, y, ls="none", ms=3, mew=0, marker=look.marker, color=look.colour, alpha=FAINT)
    bars = {
        "xerr": _half_interval(x),
        "yerr": _half_interval(y),
        "elinewidth": 0.8,
        "ecolor": (look.colour, 0.6),
    }
    drawn = {"ls": "none", "zorder": 3, "label": look.label, **look.marker_format}
    ax.errorbar(x.mean(), y.mean(), **bars, **drawn)


def _dots(ax: Axes, rows: pd.DataFrame, styles: dict[str, VariantStyle]) -> None:
    """Draw the values of one panel: models from top to bottom, the base encoder as a line."""
    for position, (variant, look) in enumerate(styles.items()):
        values = rows.loc[rows["variant"] == variant, "value"]
        if len(values):
            at = pd.Series(float(position), index=values.index)
            _seeds_and_mean(ax, values, at, look)
    base = rows.loc[rows["variant"] == "base", "value"]
    if len(base):
        role = ROLES["baseline"]
        ax.axvline(base.mean(), color=role.colour, linestyle=role.line, lw=0.8, zorder=0)
    place = ax.get_subplotspec()
    first = place is None or place.is_first_col()
    ax.set_yticks(range(len(styles)), [s.label for s in styles.values()] if first else [])
    ax.set_ylim(len(styles) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y")
    ax.spines["left"].set_visible(False)
    ax.margins(x=0.12)
    ax.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))


def _lines(
    ax: Axes, rows: pd.DataFrame, styles: dict[str, VariantStyle], *, x: str, markers: bool
) -> None:
    """Draw `value` by `x`, thin for a seed and thick for the mean over seeds."""
    for variant, look in styles.items():
        here = rows[rows["variant"] == variant].sort_values(x)
        if here["seed"].nunique() > 1:
            for _, seed in here.groupby("seed"):
                ax.plot(seed[x], seed["value"], color=look.colour, lw=0.5, alpha=FAINT)
        mean = here.groupby(x)["value"].mean()
        form = look.marker_format if markers else {"color": look.colour}
        if len(mean):
            ax.plot(mean.index, mean, label=look.label, linestyle=look.line, **form)


def _named_ends(ax: Axes) -> tuple[list[float], list[float], list[str]]:
    """Last point x, y and label of every series that has one."""
    handles, labels = ax.get_legend_handles_labels()
    lines = [h.lines[0] if isinstance(h, ErrorbarContainer) else h for h in handles]
    ends = [line.get_xydata()[-1] for line in lines]
    return [end[0] for end in ends], [end[1] for end in ends], labels


def _name_series(axes: np.ndarray) -> None:
    """Name up to four series where they end, more of them in a legend beside the panels."""
    named = {}
    for ax in axes:
        handles, labels = ax.get_legend_handles_labels()
        named |= dict(zip(labels, handles, strict=True))
    if len(named) > 4:
        axes[0].figure.legend(
            named.values(), named.keys(), loc="outside right upper", handlelength=3.2
        )
        return
    for ax in axes:
        label_points(ax, *_named_ends(ax))
