"""What all figures share: their registry, the check of their rows, panels, and drawn series.

A figure is a function `plot_x(rows, *, ax=None)` with `@figure` above it; its files are called `x`,
and its docstring is its caption: a title and a text, with places for {points} or {lines}, which
tell how seeds are drawn, for {seeds}, their number, and for what `facts` gives. `rows` are those of
a table, unfiltered. A figure computes nothing but groups, means and intervals of what it draws, and
shows nothing. One of several panels returns an array of Axes in reading order and takes one as
`ax`; the default is a new figure.
"""

import functools
import inspect
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from codiemb_lib.core import MAIN_METRIC, UNSEEN, CodiembError, t_interval, unknown
from codiemb_lib.draw import style

# Of each table the columns that name a row, and those of its numbers, none of which may lack.
TABLES = {
    "scores": "preset variant seed task dataset split metric | value",
    "dev": "preset variant seed step task dataset metric | value",
    "cost_scores": "preset variant seed task | value tokens seconds",
    "comparisons": "preset claim variant reference task dataset | difference low high bound p_holm",
    "fusion": "preset variant seed ingredient tensor | layer module delta_norm weight",
    "study": "preset variant seed split task dataset metric | value",
    "path": "preset variant seed t task dataset metric | value",
    "path_geometry": "preset variant seed t texts measure | value",
    "geometry": "preset variant seed texts measure | value",
    "spectrum": "preset variant seed texts index | singular_value",
    "trajectory": "preset variant seed step texts measure | value n",
    "layers": "preset variant seed texts level layer measure | value n",
    "associations": "preset over task texts measure | correlation low high n clusters",
    "cosines": "preset variant seed task pairs cosine | share n",
    "rated_pairs": "preset variant seed dataset pair | gold cosine",
    "umap": "preset variant seed map task dataset text | x y trust trust_low trust_high agreement",
}
METRICS = {"ir": "nDCG@10", "sts": "Spearman"}  # as on an axis, the main metric of each task
METRICS |= {UNSEEN[task]: metric for task, metric in METRICS.items()}
TIMES_100 = "\N{MULTIPLICATION SIGN} 100 (↑)"
TEXTS = {
    "all": "all texts",
    "ir": "IR texts",
    "ir_queries": "IR queries",
    "ir_passages": "IR passages",
    "sts": "STS texts",
}
MEASURES = {
    "anisotropy": "anisotropy (↓)",
    "uniformity": "uniformity (↓)",
    "alignment": "alignment (↓)",
    "cosine_gap": "cosine gap (↑)",
    "effective_rank": "effective rank (↑)",
    "svd_entropy": "SVD entropy (↑)",
    "isoscore": "IsoScore (↑)",
    "hubness": "hubness (↓)",
    "intrinsic_dimension": "intrinsic dimension",
    "condition_number": "condition number (↓)",
}
FEW_MEASURES = ("anisotropy", "uniformity", "alignment", "effective_rank")
MAPS = {"umap": "UMAP", "pca": "PCA"}
# The titles of panels by value of a column, in the order in which panels stand.
_TITLES = {"texts": TEXTS, "task": style.TASK_NAMES, "measure": MEASURES, "map": MAPS}
FAINT = 0.35  # opacity of a single seed


class FigureError(CodiembError, ValueError):
    """Rows that a figure or a table cannot show honestly, or a figure that there is not."""


class Figure(NamedTuple):
    """A figure: the table that it draws, its caption with what fills it in, and its function."""

    table: str
    caption: str
    facts: Callable[[pd.DataFrame], dict[str, object]]
    plot: Callable[..., Axes | np.ndarray]


REGISTRY: dict[str, Figure] = {}


def figure(table: str, *, facts: Callable[[pd.DataFrame], dict] = lambda rows: {}) -> Callable:
    """Register `plot_<stem>` as figure `<stem>` of a table; check its rows; draw it in our style.

    `facts` gives further words of the caption, from the rows.
    """

    def register(plot: Callable) -> Callable:
        stem = plot.__name__.removeprefix("plot_")
        title, _, text = inspect.cleandoc(plot.__doc__).partition("\n\n")
        text = f"**{title[:-1]}, preset {{preset}}{title[-1]}** {text}"

        @functools.wraps(plot)
        def drawn(rows: pd.DataFrame, *, ax: Axes | np.ndarray | None = None):
            _check(stem, rows)
            with plt.style.context(style.SHEET):
                return plot(rows, ax=ax)

        REGISTRY[stem] = Figure(table, text, facts, drawn)
        return drawn

    return register


def caption(stem: str, rows: pd.DataFrame) -> str:
    """Caption in Markdown of figure `stem`, with what the rows say filled in.

    Raises:
        FigureError: There is no such figure, or the rows do not suit it.
    """
    if stem not in REGISTRY:
        raise FigureError(unknown("figure", stem, REGISTRY))
    _check(stem, rows)
    words = {"preset": rows["preset"].iloc[0], **REGISTRY[stem].facts(rows)}
    if "seed" in rows:
        words |= _about_seeds(rows)
    return " ".join(REGISTRY[stem].caption.format(**words).split())


def _about_seeds(rows: pd.DataFrame) -> dict[str, str]:
    counts = rows.groupby("variant")["seed"].nunique()
    usual = int(counts.mode().max())
    seeds = f"n = {usual} seed{'s' * (usual > 1)} a model"
    styles = style.variant_styles(rows["variant"])
    if others := [f"{styles[v].label}: {counts[v]}" for v in styles if counts[v] != usual]:
        seeds += f" ({', '.join(others)})"
    if counts.max() < 3:
        interval = "No interval is drawn, for no model has three seeds."
    else:
        interval = "Bars are 95 % t-intervals of the mean over seeds, where a model has three."
    points = f"Faint points are seeds, solid points their mean; {seeds}. {interval}"
    lines = f"Thin lines are seeds, thick lines their mean; {seeds}."
    return {"seeds": seeds, "points": points, "lines": lines}


def _check(stem: str, rows: pd.DataFrame) -> None:
    """Refuse rows that figure `stem` cannot draw honestly."""
    key, values = (columns.split() for columns in TABLES[REGISTRY[stem].table].split("|"))
    columns = [*key, *values]
    if missing := [column for column in columns if column not in rows.columns]:
        wanted, found = f"the columns {columns}", f"{list(rows.columns)} without {missing}"
    elif rows.empty:
        wanted, found = "at least one row", "none"
    elif (gaps := rows[columns].isna().any(axis=1)).any():
        wanted, found = "a value in every cell", rows.loc[gaps, columns].iloc[0].to_dict()
    elif rows["preset"].nunique() > 1:
        wanted, found = "rows of one preset", sorted(rows["preset"].unique())
    elif (twice := rows.duplicated(key)).any():
        wanted, found = "each row once", f"{rows.loc[twice, key].iloc[0].to_dict()} twice"
    else:
        return
    raise FigureError(
        f"{stem}: expected {wanted}, found {found}. Pass the rows of the table "
        f"{REGISTRY[stem].table!r}, unfiltered and of one preset."
    )


def complete(table: pd.DataFrame) -> pd.DataFrame:
    """The table, if it has a value in every cell: means over different sets cannot be compared."""
    if (gaps := table.isna().any(axis=1)).any():
        row = table.loc[gaps.idxmax()]
        where = ", ".join(map("{} {}".format, table.index.names, row.name))
        raise FigureError(
            f"expected a value of every {', '.join(table.columns.names)}, found {where} without "
            f"{[*row.index[row.isna()]]}. Compute it, or leave it out for all."
        )
    return table


def main_scores(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of each task's main metric, times 100."""
    main = rows[rows["metric"] == rows["task"].map(MAIN_METRIC)]
    return main.assign(value=100 * main["value"])


def scores_by_dataset(rows: pd.DataFrame, *index: str) -> pd.DataFrame:
    """Main scores by variant, seed and `index`, a column (task, dataset) each, in order."""
    main = main_scores(rows)
    places = {"index": ["variant", "seed", *index], "columns": ["task", "dataset"]}
    table = complete(main.pivot(**places, values="value"))
    return table[[*dict.fromkeys(zip(main["task"], main["dataset"], strict=True))]]


def means_by_task(rows: pd.DataFrame, *index: str) -> pd.DataFrame:
    """Their means over the data sets of each task: the columns ir and sts."""
    return scores_by_dataset(rows, *index).T.groupby(level="task").mean().T


def both_tasks(means: pd.DataFrame) -> pd.DataFrame:
    """Means by task, if there are those of both: a preset may have data sets of one alone."""
    return complete(means.reindex(columns=pd.Index(style.TASK_ROLES, name="task")))


def first_seed(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of each variant's first seed."""
    return rows[rows["seed"] == rows.groupby("variant")["seed"].transform("min")]


def seed_interval(values: pd.Series) -> tuple[float, float]:
    """The 95 % t-interval of the mean over seeds; NaN, which is not drawn, of fewer than three."""
    return t_interval(values) if len(values) > 2 else (np.nan, np.nan)


@dataclass(slots=True)
class Panel:
    """A panel: its Axes, the values of row and column that it stands for, and what to draw."""

    ax: Axes
    row: str
    column: str
    rows: pd.DataFrame
    styles: dict[str, style.VariantStyle]  # of all variants of the figure
    ends: pd.DataFrame | None = None  # variant, x and y where the name of a variant can stand

    def _shown(self, **more: object) -> dict:
        """What seaborn is to draw: rows by variant, in the colour of each."""
        colours = {name: look.colour for name, look in self.styles.items()}
        shown = {"data": self.rows, "hue": "variant", "palette": colours, "legend": False}
        return shown | {"ax": self.ax, **more}

    def lines(self, x: str, *, ms: float = 4.5) -> None:
        """Draw `value` by `x`, thin for a seed and thick for the mean over seeds."""
        shown = self._shown(x=x, y="value")
        sns.lineplot(**shown, units="seed", estimator=None, lw=0.5, alpha=FAINT)
        shown["markers"] = {name: look.marker for name, look in self.styles.items()}
        shown["dashes"] = {name: look.dashes for name, look in self.styles.items()}
        sns.lineplot(**shown, style="variant", ms=ms, mec="auto", errorbar=None)
        means = self.rows.groupby(["variant", x])["value"].mean().reset_index()
        self.ends = means.groupby("variant").tail(1)

    def points(self, x: str, y: str) -> None:
        """Draw the seeds of each variant faintly, and their mean with its interval both ways."""
        markers = {name: look.marker for name, look in self.styles.items()}
        shown = self._shown(x=x, y=y, style="variant", markers=markers)
        sns.scatterplot(**shown, s=12, linewidth=0, alpha=FAINT)
        for name, seeds in self.rows.groupby("variant"):
            look = self.styles[name]
            across, up = (np.ptp(seed_interval(seeds[of])) / 2 for of in (x, y))
            form = {"fmt": look.marker, "color": look.colour, "ecolor": (look.colour, 0.6)}
            form |= {"xerr": across, "yerr": up, "elinewidth": 0.8, "zorder": 3}
            self.ax.errorbar(seeds[x].mean(), seeds[y].mean(), **form)
        self.ax.margins(0.1)
        self.ends = self.rows.groupby("variant")[[x, y]].mean().reset_index()

    def dots(self) -> None:
        """Draw `value` of each variant from top to bottom, seeds faintly, their mean with its
        interval; the base encoder as a line, too."""
        shown = self._shown(x="value", y="variant", order=[*self.styles], hue_order=[*self.styles])
        sns.stripplot(**shown, jitter=False, size=3, alpha=FAINT)
        form = {"markers": [look.marker for look in self.styles.values()], "linestyle": "none"}
        form |= {"markersize": 5, "mew": 0.8, "err_kws": {"linewidth": 0.8, "alpha": 0.6}}
        sns.pointplot(**shown, **form, errorbar=seed_interval)
        if "base" in self.styles:
            base = self.rows.loc[self.rows["variant"] == "base", "value"]
            rule(self.ax, "baseline", x=base.mean())
        name_rows(self.ax, [look.label for look in self.styles.values()])
        self.ax.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
        self.ax.margins(x=0.12)


def panels(rows, ax, *, column, row="", wrap=99, height, styles=None, **subplots) -> list[Panel]:
    """A titled panel for each value of a column of `rows`, or of two, in reading order.

    Values of `column` stand beside each other, those of `row` below each other; without `row`,
    `wrap` panels make a row. `height` is that of a row, in inches. `ax` are as many Axes, or None
    for those of a new figure, which `subplots` describes as in `plt.subplots`. `styles` are of the
    variants, if not those that they have everywhere.
    """
    if styles is None:
        styles = style.variant_styles(rows.get("variant", ()))
    names, above = _levels(rows, column), _levels(rows, row) if row else [""]
    count = len(above) * len(names)
    axes = axes_for(count, ax, across=min(wrap, len(names)), height=height, **subplots)
    titles = {name: look.label for name, look in styles.items()}
    titles = titles if column == "variant" else _TITLES.get(column, {})
    drawn = []
    for axis, (over, name) in zip(axes, itertools.product(above, names), strict=True):
        here = rows[(rows[column] == name) & (rows[row] == over if row else True)]
        drawn.append(Panel(axis, over, name, here, styles))
        if over == above[0]:
            axis.set_title(titles.get(name, name))
    return drawn


def _levels(rows: pd.DataFrame, column: str) -> list[str]:
    """The values of a column in the order of panels: those known, then as they appear."""
    found = rows[column].unique()
    known = [*(style.variant_styles(found) if column == "variant" else _TITLES.get(column, ()))]
    return sorted(found, key=lambda name: known.index(name) if name in known else len(known))


def axes_for(count, ax, *, across, height, **subplots) -> np.ndarray:
    """A flat array of `count` Axes: those given, or a new figure's, `across` of them in a row."""
    if ax is None:
        down = -(-count // across)
        size = {"figsize": (style.WIDTH, down * height + 0.3), "layout": "constrained"}
        ax = plt.subplots(down, across, squeeze=False, **size, **subplots)[1].flatten()
        for surplus in ax[count:]:
            surplus.remove()
        ax = ax[:count]
    if np.size(ax) != count:
        raise FigureError(f"expected {count} Axes, one a panel, found {np.size(ax)}.")
    return np.ravel(ax)


def axes_of(drawn: list[Panel], *, outer: bool = False) -> np.ndarray:
    """The Axes of panels; with `outer`, those inside lose the labels that they share."""
    for panel in drawn if outer else ():
        panel.ax.label_outer()
    return np.array([panel.ax for panel in drawn])


def named(drawn: list[Panel], *, lines: bool = True) -> np.ndarray:
    """The Axes of panels, with up to four variants named where they end, and more in a legend.

    Call it last: limits must be final.
    """
    styles = drawn[0].styles
    if len(styles) > 4:
        handles = legend_entries(styles, lines=lines)
        drawn[0].ax.figure.legend(handles=handles, loc="outside right upper")
    for panel in drawn if len(styles) <= 4 else ():
        variants, x, y = (panel.ends[column] for column in panel.ends)
        if lines:  # room for names on their right
            right = panel.ax.transAxes.transform((1.2, 0))
            panel.ax.set_xlim(right=panel.ax.transData.inverted().transform(right)[0])
        style.label_points(panel.ax, x, y, [styles[name].label for name in variants])
    return axes_of(drawn)


def legend_entries(styles: dict[str, style.VariantStyle], *, lines: bool = True) -> list[Line2D]:
    """Handles of a legend, a line with its marker each, or the marker alone."""
    return [
        Line2D([], [], color=s.colour, marker=s.marker, ls=s.line if lines else "", label=s.label)
        for s in styles.values()
    ]


def rule(ax: Axes, role: str, *, x: float | None = None, y: float | None = None) -> None:
    """A line behind all else, upright at `x` or level at `y`, in the look of a role."""
    look = style.ROLES[role]
    form = {"color": look.colour, "linestyle": look.line, "lw": 0.8, "zorder": 0}
    ax.axhline(y, **form) if x is None else ax.axvline(x, **form)


def draw_intervals(
    ax: Axes, rows: pd.DataFrame, at: str, look: style.Role, *, lw: float = 0.8
) -> None:
    """Draw intervals from `low` to `high` at heights `y`, marked at `at`: solid where `told`."""
    ax.hlines(rows["y"], rows["low"], rows["high"], color=look.colour, lw=lw)
    form = {"fc": np.where(rows["told"], look.colour, "white"), "ec": look.colour}
    ax.scatter(rows[at], rows["y"], s=20, marker=look.marker, zorder=3, **form)


def name_rows(ax: Axes, labels: list[str]) -> None:
    """Name the rows 0, 1, ... of a panel, the first on top."""
    ax.set_yticks(range(len(labels)), labels)
    ax.set(ylim=(len(labels) - 0.4, -0.6), ylabel="")
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y")
    ax.spines["left"].set_visible(False)
