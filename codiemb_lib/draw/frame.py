"""What all figures share: their registry, the checks of their rows, and how series are drawn.

A figure is a function `plot_x(rows, ax=None)` with `@figure` above it. It draws the figure whose
files are called `x`; it computes nothing but groups, means and intervals of what it draws, and
shows nothing. One of several panels returns an array of Axes and takes one as `ax`. All raise
`ValueError` for missing columns, no rows, missing values, rows that stand twice, and rows of
several presets.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.legend import Legend
from matplotlib.ticker import MaxNLocator

from codiemb_lib.core import t_interval
from codiemb_lib.draw.style import (
    ROLES,
    SHEET,
    WIDTH_1,
    WIDTH_2,
    VariantStyle,
    label_points,
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
    facts: Callable[[pd.DataFrame], dict[str, str]]
    plot: Callable[..., Axes | np.ndarray]


FIGURES: dict[str, Figure] = {}


def figure(
    table: str,
    *,
    key: str,
    values: str,
    caption: str,
    facts: Callable[[pd.DataFrame], dict[str, str]] = lambda rows: {},
    of: str = "variant seed",
) -> Callable:
    """Register `plot_<stem>` as figure `<stem>`; check its rows; draw it in the house style.

    Args:
        table: The table whose rows it draws.
        key: The columns that, beside preset and `of`, name a row; "" where rows are points that
            nothing names.
        values: The columns with numbers.
        caption: In Markdown, with places for {preset}, {seeds}, {interval} and what `facts` gives.
        facts: Further words of the caption, from the rows.
        of: What rows are about: a run, or else other columns, and then the caption has no places
            for {seeds} and {interval}.
    """

    def register(plot: Callable) -> Callable:
        stem = plot.__name__.removeprefix("plot_")

        @functools.wraps(plot)
        def drawn(rows: pd.DataFrame, *, ax: Axes | np.ndarray | None = None):
            rows = _checked(stem, rows)
            with plt.style.context(SHEET):
                return plot(rows, ax=ax)

        key_columns = ("preset", *of.split(), *key.split())
        FIGURES[stem] = Figure(table, key_columns, tuple(values.split()), caption, facts, drawn)
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
    known = FIGURES[stem]
    words = {"preset": rows["preset"].iloc[0], **known.facts(rows)}
    if "seed" in known.key:
        words |= _about_seeds(rows)
    return known.caption.format(**words)


def _about_seeds(rows: pd.DataFrame) -> dict[str, str]:
    styles = variant_styles(rows["variant"])
    counts = rows.groupby("variant")["seed"].nunique()
    usual = int(counts.mode().max())
    others = [f"{styles[v].label}: {counts[v]}" for v in styles if counts[v] != usual]
    if counts.max() < 3:
        interval = "No interval is drawn, for no model has three seeds."
    else:
        interval = "Bars are 95 % t-intervals of the mean over seeds, where a model has three."
    seeds = f"n = {usual} seed{'s' * (usual > 1)} a model"
    return {"seeds": seeds + (f" ({', '.join(others)})" if others else ""), "interval": interval}


# Rows


def _checked(stem: str, rows: pd.DataFrame) -> pd.DataFrame:
    """The rows, if figure `stem` can draw them honestly."""
    known = FIGURES[stem]
    columns = [*known.key, *known.values]
    remedy = f"Pass the rows of the table {known.table!r}."
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
    twice = rows.duplicated(list(known.key))
    if twice.any():
        where = rows.loc[twice, list(known.key)].iloc[0].to_dict()
        raise ValueError(
            f"{stem}: expected each row once, found {where} twice. "
            "Drop the rows of the older computation."
        )
    return rows


def headline(rows: pd.DataFrame, stem: str, *, both: bool = False) -> pd.DataFrame:
    """The rows of each task's headline score, times 100; of `both` tasks, if that is asked for."""
    kept = pd.concat(
        rows[(rows["task"] == task) & (rows["metric"] == metric)]
        for task, (metric, _) in SCORES.items()
    )
    if kept.empty:
        raise ValueError(
            f"{stem}: expected the metrics 'ndcg@10' (ir) or 'spearman' (sts), found "
            f"{distinct_pairs(rows, 'task', 'metric')} in the rows of this split. "
            "Pass the rows unfiltered."
        )
    if both and kept["task"].nunique() < len(SCORES):
        raise ValueError(
            f"{stem}: expected scores of both tasks, found those of {kept['task'].iloc[0]!r} "
            "alone. The figure needs a preset with data sets of both."
        )
    return kept.assign(value=100 * kept["value"])


def distinct_pairs(rows: pd.DataFrame, first: str, second: str) -> list[tuple]:
    """The distinct pairs of values of two columns."""
    return list(rows[[first, second]].drop_duplicates().itertuples(index=False, name=None))


def mean_over_datasets(rows: pd.DataFrame, role: str, extra: tuple[str, ...] = ()) -> pd.DataFrame:
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


def plane(x: pd.DataFrame, y: pd.DataFrame, *, names: tuple[str, str]) -> pd.DataFrame:
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


def text_kinds(rows: pd.DataFrame) -> list[str]:
    """The kinds of texts that stand in the rows, in the order in which panels show them."""
    found = list(rows["texts"].unique())
    return [kind for kind in TEXTS if kind in found] + [k for k in found if k not in TEXTS]


def first_seed(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of each variant's first seed."""
    return rows[rows["seed"] == rows.groupby("variant")["seed"].transform("min")]


def half_interval(values: pd.Series) -> float | None:
    """Half the 95 % t-interval of the mean, or None for fewer than three values."""
    if len(values) < 3:
        return None
    low, high = t_interval(values)
    return float(high - low) / 2


# Drawing


def panels(
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


def draw_points(ax: Axes, points: pd.DataFrame) -> None:
    """Draw seeds and means of points (variant, seed, x, y)."""
    styles = variant_styles(points["variant"])
    for variant, look in styles.items():
        here = points[points["variant"] == variant]
        draw_seeds_and_mean(ax, here["x"], here["y"], look)
    ax.margins(0.1)


def draw_seeds_and_mean(ax: Axes, x: pd.Series, y: pd.Series, look: VariantStyle) -> None:
    """Draw the seeds of one variant faintly, and their mean with its interval."""
    if len(x) > 1:
        ax.plot(x, y, ls="none", ms=3, mew=0, marker=look.marker, color=look.colour, alpha=FAINT)
    bars = {
        "xerr": half_interval(x),
        "yerr": half_interval(y),
        "elinewidth": 0.8,
        "ecolor": (look.colour, 0.6),
    }
    drawn = {"ls": "none", "zorder": 3, "label": look.label, **look.marker_format}
    ax.errorbar(x.mean(), y.mean(), **bars, **drawn)


def draw_dots(ax: Axes, rows: pd.DataFrame, styles: dict[str, VariantStyle]) -> None:
    """Draw the values of one panel: models from top to bottom, the base encoder as a line."""
    for position, (variant, look) in enumerate(styles.items()):
        values = rows.loc[rows["variant"] == variant, "value"]
        if len(values):
            at = pd.Series(float(position), index=values.index)
            draw_seeds_and_mean(ax, values, at, look)
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


def draw_lines(ax: Axes, rows: pd.DataFrame, styles: dict[str, VariantStyle], *, x: str) -> None:
    """Draw `value` by `x`, thin for a seed and thick for the mean over seeds."""
    for variant, look in styles.items():
        here = rows[rows["variant"] == variant].sort_values(x)
        if here["seed"].nunique() > 1:
            for _, seed in here.groupby("seed"):
                ax.plot(seed[x], seed["value"], color=look.colour, lw=0.5, alpha=FAINT)
        mean = here.groupby(x)["value"].mean()
        if len(mean):
            drawn = {"label": look.label, "linestyle": look.line, **look.marker_format}
            ax.plot(mean.index, mean, **drawn)


def named_ends(ax: Axes) -> tuple[list[float], list[float], list[str]]:
    """Last point x, y and label of every series that has one."""
    handles, labels = ax.get_legend_handles_labels()
    lines = [h.lines[0] if isinstance(h, ErrorbarContainer) else h for h in handles]
    ends = [line.get_xydata()[-1] for line in lines]
    return [end[0] for end in ends], [end[1] for end in ends], labels


def name_series(axes: np.ndarray) -> None:
    """Name up to four series where they end, more of them in a legend beside the panels."""
    if len(_named(axes)) > 4:
        legend_beside(axes)
        return
    for ax in axes:
        label_points(ax, *named_ends(ax))


def grid(rows: int, columns: int, ax: np.ndarray | None, *, height: float) -> np.ndarray:
    """Axes (rows, columns): those given, or those of a new figure of print width."""
    if ax is None:  # two columns of print wide, however few panels stand in a row
        shape = {"figsize": (WIDTH_2, rows * height + 0.3), "layout": "constrained"}
        return plt.subplots(rows, columns, squeeze=False, **shape)[1]
    return panels(rows * columns, ax, columns=columns, height=height).reshape(rows, columns)


def legend_below(axes: Iterable[Axes], **options) -> Legend:
    """One legend under the panels, of the series that stand in any of `axes`."""
    named = _named(axes)
    columns = min(5, len(named))
    place = {"loc": "outside lower center", "ncols": columns, **options}
    return next(iter(axes)).figure.legend(named.values(), named.keys(), **place)


def legend_beside(axes: Iterable[Axes]) -> Legend:
    """The same beside the panels."""
    named = _named(axes)
    place = {"loc": "outside right upper", "handlelength": 3.2}
    return next(iter(axes)).figure.legend(named.values(), named.keys(), **place)


def _named(axes: Iterable[Axes]) -> dict[str, Artist]:
    named: dict[str, Artist] = {}
    for ax in axes:
        handles, labels = ax.get_legend_handles_labels()
        named |= dict(zip(labels, handles, strict=True))
    return named
