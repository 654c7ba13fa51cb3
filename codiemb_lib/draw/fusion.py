"""Figures of fusion: what runs changed and what a merge makes of it."""

from dataclasses import replace

import numpy as np
import pandas as pd
import seaborn as sns

from codiemb_lib.core import soup_of
from codiemb_lib.draw import frame
from codiemb_lib.draw.frame import FAINT, METRICS, TIMES_100, FigureError, figure
from codiemb_lib.draw.style import ROLES, TASK_STYLES, label_points, variant_styles


def _ends(rows: pd.DataFrame) -> dict[str, str]:
    return dict(zip(("first", "second"), rows["variant"].iloc[0].split(" to "), strict=True))


@figure("fusion")
def plot_fusion_weights(rows: pd.DataFrame, *, ax: np.ndarray | None = None) -> np.ndarray:
    """What the fused runs changed, and what they weigh.

    Upper row: norm of each run's deviation from the base encoder, by layer and module (emb.:
    embeddings). Lower rows: the run's merging weight there; white is the weight that a uniform soup
    gives. Grey: no such parameters. Of a module's tensors the norms are joined (root of the sum of
    squares) and the weights averaged; both are means over seeds; {seeds}.
    """
    styles = variant_styles(rows["variant"])
    telling = rows.groupby("variant")["weight"].agg(np.ptp) > 1e-6  # a soup's weights are all alike
    methods = [name for name in styles if telling[name]] or [*styles][:1]
    rows = rows[rows["variant"].isin(methods)]
    fused = rows.groupby("variant")["ingredient"].nunique()
    count, layers = fused.max(), sorted(rows["layer"].unique())
    if fused.min() < count:
        raise FigureError(
            "fusion_weights: expected the same ingredients for every fused variant, found "
            f"{fused.to_dict()}. Draw the variants apart."
        )
    where = ["variant", "ingredient", "module", "layer"]
    cells = rows.groupby([*where, "seed"], sort=False).agg(
        delta_norm=("delta_norm", np.linalg.norm), weight=("weight", "mean")
    )
    cells = cells.groupby(where).mean()
    norms, weights = cells.loc[methods[0], "delta_norm"], cells.loc[methods, "weight"]
    shown = {"‖delta‖": norms} | {f"weight, {styles[m].label}": weights[m] for m in methods}
    maps = pd.concat(shown, names=["shown"]).rename("value").reset_index()
    maps = maps.rename(columns={"ingredient": "variant"})
    reach = max((weights - 1 / count).abs().max(), 1e-4)
    height = 0.45 + 0.135 * rows["module"].nunique()
    sides = {"sharex": True, "sharey": True}
    drawn = frame.panels(maps, ax, row="shown", column="variant", height=height, **sides)
    for number, panel in enumerate(drawn):
        axis = panel.ax
        grid = panel.rows.pivot(index="module", columns="layer", values="value")
        grid = grid.reindex(rows["module"].unique())[layers].rename(columns={-1: "emb."})
        colours = {"cmap": "RdBu_r", "vmin": 1 / count - reach, "vmax": 1 / count + reach}
        if number < count:
            colours = {"cmap": "viridis", "vmin": 0, "vmax": norms.max()}
        axis.set_facecolor("#E4E4E4")
        every = -(-len(layers) // 8)  # at most eight layers are numbered
        sns.heatmap(grid, ax=axis, cbar=False, xticklabels=every, **colours)
        axis.tick_params(length=0, rotation=0)
        axis.set(xlabel="layer", ylabel="")
        if (number + 1) % count == 0:
            row = [beside.ax for beside in drawn[number + 1 - count : number + 1]]
            image = axis.collections[0]
            bar = axis.figure.colorbar(image, ax=row, label=panel.row, pad=0.01, aspect=14)
            bar.outline.set_visible(False)
    return frame.axes_of(drawn, outer=True)


@figure("study")
def plot_study(rows: pd.DataFrame, *, ax: np.ndarray | None = None) -> np.ndarray:
    """Ways to merge the same runs.

    Difference to the uniform soup of the same runs, at the scale that dev picked for it, in mean
    nDCG@10 (IR) and mean Spearman correlation (STS), times 100. Each method brings the settings
    that did best on dev, out of equally many (the greedy soup looks by itself); test (lower row)
    was looked at once, with these. {points}
    """
    # By split, for a set that is out of domain has no dev.
    splits = (frame.means_by_task(of, "split") for _, of in rows.groupby("split"))
    means = frame.both_tasks(pd.concat(splits)).stack().unstack("variant")
    labels = rows["variant"].unique()
    methods = [name for name in labels if name != soup_of(name)]
    soups = [soup_of(name) for name in methods]
    wanted = pd.Index(dict.fromkeys([*labels, *soups]), name="variant")
    means = frame.complete(means.reindex(columns=wanted))
    gains = (means[methods] - means[soups].to_numpy()).stack().rename("value").reset_index()
    height = 0.72 + 0.165 * len(methods)
    drawn = frame.panels(gains, ax, row="split", column="task", height=height, sharey=True)
    for panel in drawn:
        look = TASK_STYLES[panel.column]
        named = {name: name.replace("_", " ").replace(".", ": ") for name in methods}
        panel.styles = {name: replace(look, label=label) for name, label in named.items()}
        panel.dots()
        frame.rule(panel.ax, "baseline", x=0)
        panel.ax.set_title(f"{look.label}, {panel.row}")
        panel.ax.set_xlabel(f"{METRICS[panel.column]} minus that of the soup, {TIMES_100}")
    return frame.axes_of(drawn)


@figure("path", facts=_ends)
def plot_path(rows: pd.DataFrame, *, ax: np.ndarray | None = None) -> np.ndarray:
    """The straight path between two specialists.

    Each point is a model (1 - t) × {first} + t × {second}, scored on dev without further training.
    Left: the trade-off that interpolation gives. Right: what each task keeps of its better end.
    {lines}
    """
    scores = frame.both_tasks(frame.means_by_task(rows, "t")).droplevel("variant")  # by seed and t
    means = scores.groupby("t").mean()
    plane, by_t = frame.axes_for(2, ax, across=2, height=2.3)
    form = {"x": "ir", "y": "sts", "ax": plane, "color": ROLES["joint"].colour, "sort": False}
    sns.lineplot(scores, **form, units="seed", estimator=None, lw=0.5, alpha=FAINT)
    sns.lineplot(means, **form, marker="o", ms=3, mec="auto")
    plane.set_xlabel(f"IR dev sets: mean {METRICS['ir']} {TIMES_100}")
    plane.set_ylabel(f"STS dev sets: mean\n{METRICS['sts']} {TIMES_100}")
    ends = means.iloc[[0, -1]]
    label_points(plane, ends["ir"], ends["sts"], [f"t = {t:g}" for t in ends.index])

    by_seed = scores.groupby("seed")
    gains = scores - np.maximum(by_seed.transform("first"), by_seed.transform("last"))
    gains = gains.melt(ignore_index=False, var_name="variant").reset_index()
    panel = frame.Panel(by_t, "", "", gains, TASK_STYLES)
    panel.lines("t", ms=3)
    frame.rule(by_t, "baseline", y=0)
    by_t.set(xticks=np.arange(0, 1.1, 0.25), ylabel="score minus the better end's,\n× 100 (↑)")
    return np.array([plane, *frame.named([panel])])


@figure("path_geometry", facts=_ends)
def plot_path_geometry(rows: pd.DataFrame, *, ax: np.ndarray | None = None) -> np.ndarray:
    """The space along the path.

    Measures of the embeddings of dev texts for models (1 - t) × {first} + t × {second}: is the
    space between two specialists between theirs? {lines}
    """
    rows = rows[rows["measure"].isin(frame.FEW_MEASURES) & rows["texts"].isin(TASK_STYLES)]
    rows = rows.assign(variant=rows["texts"])
    drawn = frame.panels(rows, ax, column="measure", height=1.8, styles=TASK_STYLES)
    for panel in drawn:
        panel.lines("t", ms=3)
        panel.ax.set_ylabel("")
    return frame.named(drawn)
