"""Figures of the measures of embedding spaces: by model, step and layer, and beside scores."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from codiemb_lib.draw.frame import (
    TEXTS,
    distinct_pairs,
    draw_dots,
    draw_lines,
    draw_points,
    figure,
    first_seed,
    grid,
    legend_below,
    legend_beside,
    name_series,
    panels,
    plane,
    text_kinds,
)
from codiemb_lib.draw.style import ROLES, TASK_ROLES, variant_styles


@figure(
    "geometry",
    key="texts measure",
    values="value",
    caption="**Alignment and uniformity, preset {preset}.** Both are better when lower, so "
    "the best corner is the lower left. Alignment: mean squared distance of queries and their "
    "passages, and of STS pairs rated 0.8 or more. Uniformity: how evenly the queries and "
    "passages, and the STS texts, spread over the sphere. Faint points are seeds, solid points "
    "their mean; {seeds}. {interval}",
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
    axes = panels(len(kinds), ax, columns=5, height=0.72 + 0.165 * len(styles))
    low, high = min(0.0, rows["value"].min()), rows["value"].max()
    for axis, kind in zip(axes, kinds, strict=True):
        draw_dots(axis, rows[rows["texts"] == kind], styles)
        axis.set_title(TEXTS.get(kind, kind))
        axis.set_xlabel("mean cosine (↓)")
    ends = low - 0.04 * (high - low), high + 0.08 * (high - low)
    bars = [axis.dataLim.intervalx for axis in axes]  # no interval over seeds is cut
    for axis in axes:
        axis.set_xlim(min(ends[0], *(b[0] for b in bars)), max(ends[1], *(b[1] for b in bars)))
    return axes


@figure(
    "spectrum",
    key="texts index",
    values="singular_value",
    caption="**Spectrum of the embeddings against the base encoder's, preset {preset}.** Singular "
    "values of the embedding matrix of equally many texts of each kind, neither centred nor "
    "normalised, as shares of their sum, largest first. Drawn is the ratio to the base encoder's "
    "share, on logarithmic scales, as means over neighbouring values, the more the further right. "
    "Above the dotted line a direction carries more than it did before training: a high start is "
    "a common direction of all texts. Thin lines are seeds, thick lines their mean; {seeds}.",
)
def plot_spectra(rows: pd.DataFrame, *, ax: np.ndarray | None = None) -> np.ndarray:
    """Draw the singular value (share of the sum) over the base encoder's, a panel per texts.

    Args:
        rows: Spectrum rows, those of `base` among them; `index` counts from 1.
        ax: One Axes per kind of texts; a new figure by default.
    """
    if "base" not in set(rows["variant"]):
        raise ValueError(
            "spectra: expected rows of 'base' to compare with, found "
            f"{sorted(set(rows['variant']))}. Measure the untrained encoder too."
        )
    base = rows[rows["variant"] == "base"].groupby(["texts", "index"])["singular_value"].mean()
    rows = rows[rows["variant"] != "base"].join(base.rename("base"), on=["texts", "index"])
    last = rows["index"].max()
    edges = np.unique(np.geomspace(1, last + 1, 14).astype(int))
    middles = np.sqrt(edges[:-1] * (edges[1:] - 1))  # on a logarithmic axis
    rows = rows.assign(
        value=rows["singular_value"] / rows["base"],
        index=middles[np.searchsorted(edges, rows["index"], side="right") - 1],
    )
    keys = ["texts", "variant", "seed", "index"]
    rows = rows.groupby(keys, sort=False)["value"].mean().reset_index()
    styles = variant_styles(rows["variant"])
    kinds = text_kinds(rows)
    axes = panels(len(kinds), ax, columns=2, height=2.6, legend=True)
    look = ROLES["baseline"]
    for axis, kind in zip(axes, kinds, strict=True):
        axis.axhline(1, color=look.colour, linestyle=look.line, lw=0.8, zorder=0)
        draw_lines(axis, rows[rows["texts"] == kind], styles, x="index")
        axis.set(xscale="log", yscale="log")  # the first few directions differ most
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        low, high = axis.get_ylim()
        ticks = axis.get_yticks()
        if np.count_nonzero((low <= ticks) & (ticks <= high)) < 2:  # all is near the base
            axis.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10], min_n_ticks=3))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_title(TEXTS.get(kind, kind))
        axis.set_xlabel("index of the singular value")
        axis.set_ylabel("share of the sum,\nover the base encoder's")
    name_series(axes)
    return axes


_MEASURES = {
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
_BY_STEP = ("anisotropy", "uniformity", "alignment", "effective_rank")


@figure(
    "trajectory",
    key="step texts measure",
    values="value n",
    caption="**The space while models learn, preset {preset}.** Measures of the development texts "
    "at every evaluation, by optimiser step; step 0 is the base encoder. Effective rank: of "
    "{texts} texts of each kind. Thin lines are seeds, thick lines their mean; {seeds}.",
    facts=lambda rows: {"texts": str(rows.loc[rows["measure"] == "effective_rank", "n"].max())},
)
def plot_geometry_by_step(rows: pd.DataFrame, *, ax: np.ndarray | None = None) -> np.ndarray:
    """Draw measures by optimiser step: a row per measure, a column for IR and one for STS texts.

    Args:
        rows: Rows of `spaces.measures` with `step`; of the texts `ir` and `sts`, four measures.
        ax: One Axes per measure and kind of texts; a new figure by default.
    """
    rows = rows[rows["texts"].isin(["ir", "sts"]) & rows["measure"].isin(_BY_STEP)]
    if rows.empty:
        raise ValueError(
            f"geometry_by_step: expected the texts 'ir' or 'sts' and some of {_BY_STEP}, found "
            "neither. Pass the rows unfiltered."
        )
    styles = variant_styles(rows["variant"])
    kinds = text_kinds(rows)
    names = [name for name in _BY_STEP if (rows["measure"] == name).any()]
    flat = panels(len(names) * len(kinds), ax, columns=len(kinds), height=1.5, legend=True)
    for row, name in zip(flat.reshape(len(names), len(kinds)), names, strict=True):
        for axis, kind in zip(row, kinds, strict=True):
            here = rows[(rows["texts"] == kind) & (rows["measure"] == name)]
            draw_lines(axis, here, styles, x="step")
            axis.set_ylabel(_MEASURES[name])
            if name == names[0]:
                axis.set_title(TEXTS.get(kind, kind))
            if name == names[-1]:
                axis.set_xlabel("optimiser step")
    legend_beside(flat)
    return flat


_LEVELS = (
    ("token", "cosine", "tokens of a text:\nmean cosine (↓)"),
    ("token", "condition_number", "tokens of a text:\nmedian condition\nnumber (↓)"),
    ("sentence", "cosine", "sentences:\nmean cosine (↓)"),
    ("sentence", "effective_rank", "sentences:\neffective rank (↑)"),
)


@figure(
    "layers",
    key="texts level layer measure",
    values="value n",
    caption="**Over-smoothing by layer, preset {preset}.** Above: how alike the tokens of a text "
    "are, mean cosine and median condition number of its token matrix over texts. Below: how alike "
    "the pooled texts are, mean cosine of distinct pairs, and their effective rank. Layer 0 are "
    "the input embeddings; all models see the same {texts} texts of each kind. Bands are 95 % "
    "bootstrap intervals over texts, where the measure is a mean. The first seed of each model.",
    facts=lambda rows: {"texts": str(rows["n"].max())},
)
def plot_geometry_by_layer(rows: pd.DataFrame, *, ax: np.ndarray | None = None) -> np.ndarray:
    """Draw token and sentence measures by layer: a row per measure, a column per kind of texts.

    Args:
        rows: Rows of `layers.measures_by_layer` of several models, with `texts`.
        ax: One Axes per measure and kind of texts; a new figure by default.
    """
    rows = first_seed(rows)
    styles = variant_styles(rows["variant"])
    kinds = text_kinds(rows)
    axes = grid(len(_LEVELS), len(kinds), ax, height=1.35)
    for row, (level, measure, name) in zip(axes, _LEVELS, strict=True):
        these = rows[(rows["level"] == level) & (rows["measure"] == measure)]
        for axis, kind in zip(row, kinds, strict=True):
            here = these[these["texts"] == kind].sort_values("layer")
            draw_lines(axis, here, styles, x="layer")
            for variant, look in styles.items():
                mine = here[here["variant"] == variant].dropna(subset=["low", "high"])
                band = {"color": look.colour, "alpha": 0.15, "lw": 0}
                axis.fill_between(mine["layer"], mine["low"], mine["high"], **band)
            axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        row[0].set_ylabel(name)
    for top, bottom, kind in zip(axes[0], axes[-1], kinds, strict=True):
        top.set_title(TEXTS.get(kind, kind))
        bottom.set_xlabel("layer")
    legend_below(axes[0])
    return axes.ravel()


_OVER = {"models": "models, test", "checkpoints": "checkpoints, dev"}


@figure(
    "associations",
    of="over task",
    key="texts measure",
    values="correlation low high n clusters",
    caption="**Does geometry go with scores, preset {preset}?** Spearman's correlation of each "
    "measure of the task's texts with the task's score (nDCG@10, Spearman), over {points}. Lines "
    "are 95 % intervals of a bootstrap that draws whole variants, since seeds and checkpoints of "
    "one are alike; filled where they leave out zero. {count} correlations of few models of one "
    "family: some stand out by chance, checkpoints share the trend of training, and none says what "
    "causes what.",
    facts=lambda rows: {
        "count": str(len(_own_texts(rows))),
        "points": "; ".join(
            f"{n} {over} of {clusters} variants ({TASK_ROLES.get(task, task)})"
            for over, task, n, clusters in rows.drop_duplicates(["over", "task"])[
                ["over", "task", "n", "clusters"]
            ].itertuples(index=False, name=None)
        ),
    },
)
def plot_geometry_scores(rows: pd.DataFrame, *, ax: np.ndarray | None = None) -> np.ndarray:
    """Draw the rank correlation of each measure with the score, a panel per task and set of points.

    Args:
        rows: Rows of `associations.rank_correlations` by `over`, `task`, `texts`, `measure`; those
            of the task's own texts are drawn.
        ax: One Axes per `over` and task; a new figure by default.
    """
    rows = _own_texts(rows)
    if rows.empty:
        raise ValueError(
            "geometry_scores: expected rows of the texts 'ir' with task 'ir', or 'sts' with 'sts', "
            "found none. Pass the rows unfiltered."
        )
    groups = [
        (over, task)
        for over in _OVER
        for task in TASK_ROLES
        if ((rows["over"] == over) & (rows["task"] == task)).any()
    ]
    names = [name for name in _MEASURES if name in set(rows["measure"])]
    axes = panels(len(groups), ax, columns=4, height=0.8 + 0.19 * len(names))
    for axis, (over, task) in zip(axes, groups, strict=True):
        here = rows[(rows["over"] == over) & (rows["task"] == task)].set_index("measure")
        role = ROLES[TASK_ROLES[task]]
        axis.axvline(0, color="#999999", lw=0.6, zorder=0)
        for place, name in enumerate(names):
            if name in here.index:
                found = here.loc[name]
                sure = found["low"] > 0 or found["high"] < 0
                axis.plot([found["low"], found["high"]], [place] * 2, color=role.colour, lw=0.8)
                form = {"mfc": role.colour if sure else "white", "color": role.colour}
                axis.plot(found["correlation"], place, marker=role.marker, **form)
        first = axis is axes[0]
        axis.set_yticks(range(len(names)), [_MEASURES[name] for name in names] if first else [])
        axis.set_ylim(len(names) - 0.4, -0.6)
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="y")
        axis.spines["left"].set_visible(False)
        axis.set(xlim=(-1.05, 1.05), xticks=[-1, 0, 1], xlabel="correlation")
        axis.set_title(f"{TASK_ROLES[task]} score,\n{_OVER[over]}")
    return axes


def _own_texts(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["texts"] == rows["task"]]
