"""Figures of embedding spaces: their measures by model, step and layer, pairs of texts, maps."""

import itertools

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.ticker import MaxNLocator, NullFormatter

from codiemb_lib import space
from codiemb_lib.draw import frame
from codiemb_lib.draw.frame import MAPS, MEASURES, TEXTS, FigureError, figure
from codiemb_lib.draw.style import ROLES, TASK_ROLES, WIDTH, VariantStyle, shades

_BELOW = "outside lower center"  # where a legend stands


@figure("geometry")
def plot_alignment_uniformity(rows: pd.DataFrame, *, ax: np.ndarray | None = None) -> np.ndarray:
    """Alignment and uniformity.

    Both are better when lower, so the best corner is the lower left. Alignment: mean squared
    distance of queries and their passages, and of STS pairs rated 0.8 or more. Uniformity: how
    evenly the queries and passages, and the STS texts, spread over the sphere. {points}
    """
    paired = rows.loc[rows["measure"] == "alignment", "texts"].unique()
    rows = rows[rows["measure"].isin(["alignment", "uniformity"]) & rows["texts"].isin(paired)]
    rows = rows.assign(measure=rows["measure"].map(MEASURES))
    points = rows.pivot(index=["variant", "seed", "texts"], columns="measure", values="value")
    points = frame.complete(points).reset_index()
    drawn = frame.panels(points, ax, column="texts", height=2.3)
    for panel in drawn:
        panel.points(MEASURES["alignment"], MEASURES["uniformity"])
    return frame.named(drawn, lines=False)


@figure("geometry")
def plot_anisotropy(rows: pd.DataFrame, *, ax: np.ndarray | None = None) -> np.ndarray:
    """Anisotropy.

    Mean cosine of distinct pairs of texts: near 0 the embeddings use all directions, near 1 they
    crowd in a cone. Beside it what it must be held against: the gap, how much nearer a text is to
    what belongs to it than to the others, in cosine. The dotted line is the base encoder. {points}
    """
    labels = {"anisotropy": "mean cosine (↓)", "cosine_gap": "cosine gap (↑)"}
    kinds = ("all", *TASK_ROLES)
    rows = rows[rows["measure"].isin(labels) & rows["texts"].isin(kinds)]
    order = {key: place for place, key in enumerate(itertools.product(labels, kinds))}
    places = [order[key] for key in zip(rows["measure"], rows["texts"], strict=True)]
    rows = rows.assign(place=places).sort_values("place", kind="stable")
    height = 0.45 + 0.165 * rows["variant"].nunique()
    drawn = frame.panels(rows, ax, column="place", wrap=5, height=height, sharey=True)
    for panel in drawn:
        panel.dots()
        measure, texts = panel.rows[["measure", "texts"]].iloc[0]
        panel.ax.set(title=TEXTS[texts], xlabel=labels[measure])
    for label in labels.values():  # one scale, from zero on
        axes = [panel.ax for panel in drawn if panel.ax.get_xlabel() == label]
        limits = np.array([axis.get_xlim() for axis in axes])
        for axis in axes:
            axis.set_xlim(min(0, limits.min()), limits.max())
    return frame.axes_of(drawn)


@figure("spectrum")
def plot_spectra(rows: pd.DataFrame, *, ax: np.ndarray | None = None) -> np.ndarray:
    """Spectrum of the embeddings against the base encoder's.

    Singular values of the embedding matrix of equally many texts of each kind, neither centred nor
    normalised, as shares of their sum, largest first. Drawn is the ratio to the base encoder's
    share, on logarithmic scales, as means over neighbouring values, the more the further right.
    Above the dotted line a direction carries more than it did before training: a high start is a
    common direction of all texts. {lines}
    """
    base = rows[rows["variant"] == "base"].groupby(["texts", "index"])["singular_value"].mean()
    if base.empty:
        raise FigureError("spectra: expected rows of 'base' to compare with, found none. Add them.")
    rows = rows[rows["variant"] != "base"].join(base.rename("base"), on=["texts", "index"])
    edges = np.unique(np.geomspace(1, rows["index"].max() + 1, 14).astype(int))
    middles = np.sqrt(edges[:-1] * (edges[1:] - 1))  # on a logarithmic axis
    x = "index of the singular value"
    rows = rows.assign(value=rows["singular_value"] / rows["base"])
    rows[x] = middles[np.searchsorted(edges, rows["index"], side="right") - 1]
    rows = rows.groupby(["texts", "variant", "seed", x], sort=False)["value"].mean().reset_index()
    drawn = frame.panels(rows, ax, column="texts", wrap=2, height=2.3)
    for panel in drawn:
        panel.lines(x)
        frame.rule(panel.ax, "baseline", y=1)
        panel.ax.set(xscale="log", yscale="log")  # the first few directions differ most
        panel.ax.set_ylabel("share of the sum,\nover the base encoder's")
        panel.ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        panel.ax.yaxis.set_minor_formatter(NullFormatter())
        for axis in (panel.ax.xaxis, panel.ax.yaxis):
            axis.set_major_formatter("{x:g}")
    return frame.named(drawn)


def _counts(rows: pd.DataFrame) -> str:
    kinds = rows.drop_duplicates(["task", "pairs"]).itertuples()
    return ", ".join(f"{TASK_ROLES[kind.task]} {kind.pairs} {kind.n:,}" for kind in kinds)


@figure("cosines", facts=lambda rows: {"pairs": _counts(rows)})
def plot_cosines(rows: pd.DataFrame, *, ax: np.ndarray | None = None) -> np.ndarray:
    """Cosines of pairs.

    Positives: a query and its passages; STS pairs that people rated 0.8 or more. Negatives: a query
    and the most similar passage that is not its own, which is what costs rank; STS pairs rated 0.2
    or less. Random: all other combinations of a data set's texts, a few of them rated where texts
    recur. Bins of 0.05; each curve sums to one. Pairs: {pairs}. The less positives and negatives
    overlap, the better; where both lie says nothing. The first seed of each model.
    """
    width = rows["cosine"].drop_duplicates().sort_values().diff().median()
    seen = rows.loc[rows["share"] > 0, "cosine"]
    bins = {"binwidth": width, "binrange": (seen.min(), seen.max() + width), "element": "step"}
    rows = frame.first_seed(rows).assign(cosine=rows["cosine"] + width / 2)  # the middle of a bin
    sides = {"sharex": True, "sharey": "row"}
    drawn = frame.panels(rows, ax, row="task", column="variant", height=1.45, **sides)
    entries = {}
    for panel in drawn:
        axis, task = panel.ax, panel.row
        role, plain = ROLES[TASK_ROLES[task]], ROLES["baseline"]
        forms = {
            "random": {"label": "random pairs", "color": "#DDDDDD", "alpha": 1, "lw": 0},
            "negative": {"label": "negatives", "color": plain.colour, "ls": plain.line},
            "positive": {"label": f"{TASK_ROLES[task]} positives", "color": role.colour},
        }
        for pairs, form in forms.items():
            here = panel.rows[panel.rows["pairs"] == pairs]
            sns.histplot(
                here, x="cosine", weights="share", **bins, fill=pairs == "random", ax=axis, **form
            )
        axis.set(xlim=bins["binrange"], ylabel=f"{TASK_ROLES[task]}: share of pairs")
        handles, labels = axis.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    axis.figure.legend(entries.values(), entries.keys(), loc=_BELOW, ncols=4)
    return frame.axes_of(drawn, outer=True)


@figure("rated_pairs")
def plot_rated_pairs(rows: pd.DataFrame, *, ax: np.ndarray | None = None) -> np.ndarray:
    """Similarity, people against models.

    A point is a pair of an STS test set; people's scale is mapped to 0 to 1 (of `lee-similarity`,
    where it is shown, to 0.2 to 1). Spearman's correlation sees the order alone: a good model's
    points rise from left to right, however steeply. The first seed of each model.
    """
    rows = frame.first_seed(rows)
    drawn = frame.panels(
        rows, ax, row="dataset", column="variant", height=1.35, sharex=True, sharey=True
    )
    look = {"color": ROLES["STS"].colour, "marker": ROLES["STS"].marker, "rasterized": True}
    for panel in drawn:
        room = min(1, 500 / len(panel.rows)) ** 0.5  # thousands of full marks would be a blot
        size = {"s": 5 * room, "alpha": 0.5 * room, "linewidth": 0}
        sns.scatterplot(panel.rows, x="gold", y="cosine", ax=panel.ax, **look, **size)
        panel.ax.set(xlim=(-0.05, 1.05), xticks=[0, 0.5, 1])
        panel.ax.set(xlabel="people", ylabel=f"{panel.row}\ncosine")
    return frame.axes_of(drawn, outer=True)


@figure("trajectory", facts=lambda r: {"texts": r.loc[r["measure"] == "effective_rank", "n"].max()})
def plot_geometry_by_step(rows: pd.DataFrame, *, ax: np.ndarray | None = None) -> np.ndarray:
    """The space while models learn.

    Measures of the development texts at every evaluation, by optimiser step; step 0 is the base
    encoder. Effective rank: of {texts} texts of each kind. {lines}
    """
    rows = rows[rows["texts"].isin(TASK_ROLES) & rows["measure"].isin(frame.FEW_MEASURES)]
    drawn = frame.panels(rows, ax, row="measure", column="texts", height=1.4, sharex=True)
    for panel in drawn:
        panel.lines("step")
        panel.ax.set_ylabel(MEASURES[panel.row])
        panel.ax.set_xlabel("optimiser step" if panel.row == drawn[-1].row else "")
    return frame.named(drawn)


_BY_LAYER = {
    "token cosine": "tokens of a text:\nmean cosine (↓)",
    "token condition_number": "tokens of a text:\nmedian condition\nnumber (↓)",
    "sentence cosine": "sentences:\nmean cosine (↓)",
    "sentence effective_rank": "sentences:\neffective rank (↑)",
}


@figure("layers", facts=lambda rows: {"texts": rows["n"].max()})
def plot_geometry_by_layer(rows: pd.DataFrame, *, ax: np.ndarray | None = None) -> np.ndarray:
    """Over-smoothing by layer.

    Above: how alike the tokens of a text are, mean cosine and median condition number of its token
    matrix over texts. Below: how alike the pooled texts are, mean cosine of distinct pairs, and
    their effective rank. Layer 0 are the input embeddings; all models see the same {texts} texts of
    each kind. Bands are 95 % intervals over texts, where the measure is a mean. The first
    seed of each model.
    """
    rows = frame.first_seed(rows).assign(shown=rows["level"] + " " + rows["measure"])
    rows = pd.concat(rows[rows["shown"] == shown] for shown in _BY_LAYER)
    drawn = frame.panels(rows, ax, row="shown", column="texts", height=1.3, sharex=True)
    for panel in drawn:
        panel.lines("layer")
        for variant, mine in panel.rows.dropna(subset=["low", "high"]).groupby("variant"):
            band = {"color": panel.styles[variant].colour, "alpha": 0.15, "lw": 0}
            panel.ax.fill_between(mine["layer"], mine["low"], mine["high"], **band)
        panel.ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        panel.ax.set_ylabel(_BY_LAYER[panel.row] if panel.column == drawn[0].column else "")
        panel.ax.set_xlabel("layer" if panel.row == drawn[-1].row else "")
    entries = frame.legend_entries(drawn[0].styles)
    drawn[0].ax.figure.legend(handles=entries, loc=_BELOW, ncols=5)
    return frame.axes_of(drawn)


_OVER = {"models": "models, test", "checkpoints": "checkpoints, dev"}


def _about_points(rows: pd.DataFrame) -> dict[str, object]:
    groups = rows.drop_duplicates(["over", "task"]).itertuples()
    points = [f"{g.n} {g.over} of {g.clusters} variants ({TASK_ROLES[g.task]})" for g in groups]
    return {"count": (rows["texts"] == rows["task"]).sum(), "points": "; ".join(points)}


@figure("associations", facts=_about_points)
def plot_geometry_scores(rows: pd.DataFrame, *, ax: np.ndarray | None = None) -> np.ndarray:
    """Does geometry go with scores?

    Spearman's correlation of each measure of the task's texts with the task's score (nDCG@10,
    Spearman), over {points}. Lines are 95 % intervals for the chance of other variants, taken
    whole, since seeds and checkpoints of one are alike; filled where they leave out zero. {count}
    correlations of few models of one family: some stand out by chance, checkpoints share the trend
    of training, and none says what causes what.
    """
    rows = rows[(rows["texts"] == rows["task"]) & rows["measure"].isin(MEASURES)]
    names = [name for name in MEASURES if name in set(rows["measure"])]
    group = rows["task"].map(TASK_ROLES) + " score,\n" + rows["over"].map(_OVER)
    told = rows["low"] * rows["high"] > 0
    rows = rows.assign(y=rows["measure"].map(names.index), group=group, told=told)
    rows = rows.sort_values(["over", "task"], ascending=[False, True])  # models first
    height = 0.5 + 0.19 * len(names)
    drawn = frame.panels(rows, ax, column="group", height=height, sharey=True)
    for panel in drawn:
        look = ROLES[TASK_ROLES[panel.rows["task"].iloc[0]]]
        panel.ax.axvline(0, color="#999999", lw=0.6, zorder=0)
        frame.draw_intervals(panel.ax, panel.rows, "correlation", look)
        frame.name_rows(panel.ax, [MEASURES[name] for name in names])
        panel.ax.set(xlim=(-1.05, 1.05), xticks=[-1, 0, 1], xlabel="correlation")
    return frame.axes_of(drawn)


def _about_maps(rows: pd.DataFrame) -> dict[str, object]:
    models = rows.drop_duplicates(["map", "variant"]).set_index("map")
    trust = {m: f"{t.min():.2f} to {t.max():.2f}" for m, t in models["trust"].groupby(level=0)}
    if umap := trust.get("umap"):
        spread = (models["trust_high"] - models["trust_low"]).max()  # of the PCA: zero
        agreement = f"{models.loc[['umap'], 'agreement'].mean():.0%} of each text's neighbours"
        another = f"{spread:.3f} another with another seed, of which a map shares {agreement}"
        trust["umap"] = f"{umap} (by up to {another})"
    return {"umap": "none, of so few texts", **trust, "hash": space.coordinates_hash(rows)[:12]}


@figure("umap", facts=_about_maps)
def plot_umap(rows: pd.DataFrame, *, ax: np.ndarray | None = None) -> np.ndarray:
    """Maps of the embedding space.

    Above: UMAP coordinates of IR passages (blue shades) and STS texts (orange shades), the same
    texts for every model, from one aligned fit that models share (each keeps its own neighbours; a
    text is drawn towards its place on the maps beside). Below: their first two principal
    components, of all models together. Common axes in a row; the first seed of each model.
    Neighbourhoods can be read; distances, sizes of groups and empty space on a UMAP cannot: the
    projection distorts them. Trustworthiness (1: neighbours on the map are neighbours in the space;
    0.5: chance), by model: UMAP {umap}; PCA {pca}. Coordinates: SHA-256 {hash}.
    """
    rows, looks = frame.first_seed(rows), {}
    for task, role in TASK_ROLES.items():
        names = rows.loc[rows["task"] == task, "dataset"].unique()
        for name, shade in zip(names, shades(ROLES[role].colour, len(names)), strict=False):
            looks[name] = VariantStyle(shade, ROLES[role].marker, (), name)
    form = {"palette": {name: look.colour for name, look in looks.items()}, "legend": False}
    form |= {"markers": {name: look.marker for name, look in looks.items()}, "s": 2.5}
    form |= {"linewidth": 0, "alpha": 0.7, "rasterized": True}
    height = WIDTH / max(2, rows["variant"].nunique())
    drawn = frame.panels(rows, ax, row="map", column="variant", height=height)
    for panel in drawn:
        axis, both = panel.ax, rows.loc[rows["map"] == panel.row, ["x", "y"]]
        centre, half = (both.max() + both.min()) / 2, 0.52 * np.ptp(both, axis=0).max() or 1.0
        sns.scatterplot(panel.rows, x="x", y="y", hue="dataset", style="dataset", ax=axis, **form)
        axis.set(xlim=(centre["x"] - half, centre["x"] + half), xlabel="", xticks=[])
        axis.set(ylim=(centre["y"] - half, centre["y"] + half), ylabel=MAPS[panel.row], yticks=[])
        axis.set_aspect("equal")
        axis.spines[:].set(visible=True, color="#CCCCCC")
    entries = frame.legend_entries(looks, lines=False)
    axis.figure.legend(handles=entries, loc=_BELOW, ncols=5, handletextpad=0.1)
    return frame.axes_of(drawn, outer=True)
