"""Figures of scores: both tasks, by test set, compared, what they cost, and while models learn."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from codiemb_lib import evaluate
from codiemb_lib.core import UNSEEN
from codiemb_lib.draw import frame
from codiemb_lib.draw.frame import METRICS, TIMES_100, figure
from codiemb_lib.draw.style import ROLES, TASK_ROLES, Role, label_points, variant_styles


@figure("scores")
def plot_trade_off(rows: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Retrieval against similarity.

    Mean nDCG@10 over the IR test sets and mean Spearman correlation over the STS test sets. Lines
    mark specialists: a joint model left of the solid line has lost retrieval, one below the dashed
    line has lost similarity (negative transfer); in the shaded corner it beats both. {points}
    """
    means = frame.both_tasks(frame.means_by_task(rows[rows["split"] == "test"])).reset_index()
    styles = variant_styles(means["variant"])
    (ax,) = frame.axes_for(1, ax, across=1, height=3.3)
    panel = frame.Panel(ax, "", "", means, styles)
    panel.points("ir", "sts")
    ends = panel.ends.set_index("variant")
    ax.set(xlim=ax.get_xlim(), ylim=ax.get_ylim())  # the lines change nothing
    if "ir_only" in styles:
        frame.rule(ax, "IR", x=ends.loc["ir_only", "ir"])
    if "sts_only" in styles:
        frame.rule(ax, "STS", y=ends.loc["sts_only", "sts"])
    if {"ir_only", "sts_only"} <= {*styles}:
        across = [ends.loc["ir_only", "ir"], ax.get_xlim()[1]]
        corner = {"color": ROLES["joint"].colour, "alpha": 0.1, "lw": 0, "zorder": -1}
        ax.fill_between(across, ends.loc["sts_only", "sts"], ax.get_ylim()[1], **corner)
    ax.set_xlabel(f"IR test sets: mean {METRICS['ir']} {TIMES_100}")
    ax.set_ylabel(f"STS test sets: mean {METRICS['sts']} {TIMES_100}")
    label_points(ax, ends["ir"], ends["sts"], [styles[name].label for name in ends.index])
    return ax


def _unseen(rows: pd.DataFrame) -> str:
    there = bool(rows["task"].isin(UNSEEN.values()).any())
    return "Unseen: no model was trained on this set. " * there


@figure("scores", facts=lambda rows: {"unseen": _unseen(rows)})
def plot_scores_by_dataset(rows: pd.DataFrame, *, ax: np.ndarray | None = None) -> np.ndarray:
    """Scores by test set.

    nDCG@10 for retrieval, Spearman correlation for similarity, times 100; the scales differ. The
    dotted line is the base encoder: points right of it have gained. {unseen}{points}
    """
    rows = frame.main_scores(rows[rows["split"] == "test"]).sort_values("task", kind="stable")
    height = 0.45 + 0.165 * rows["variant"].nunique()
    drawn = frame.panels(rows, ax, column="dataset", wrap=5, height=height, sharey=True)
    for panel in drawn:
        panel.dots()
        task = panel.rows["task"].iloc[0]
        unseen = ", unseen" * (task in UNSEEN.values())
        panel.ax.set_xlabel(f"{METRICS[task]}{unseen}\n{TIMES_100}")
    return frame.axes_of(drawn)


def _claim_texts(rows: pd.DataFrame) -> str:
    names = [name for name in rows["claim"].unique() if name in evaluate.CLAIMS]
    return " ".join(f"{name}: {evaluate.CLAIMS[name].text}." for name in names)


def _intervals(rows: pd.DataFrame) -> str:
    if "seeds_low" in rows:  # of the older rule
        return (
            "Thick: 95 % bootstrap interval over test texts; thin: 95 % t-interval over seeds, "
            "which may leave the frame. Solid: texts (p after Holm) and seeds both put the "
            "difference on one side of zero, or of the tick; hollow: they do not."
        )
    of = "both" if rows["seeds"].min() > 1 else "texts alone, for there is one seed"
    return (
        f"Lines: 95 % interval, for the chance of texts and of seeds ({of}). Solid: it lies on one "
        "side of zero, or of the tick, and so does p after Holm; hollow: not."
    )


@figure(
    "comparisons",
    facts=lambda rows: {"claims": _claim_texts(rows), "intervals": _intervals(rows)},
)
def plot_comparisons(rows: pd.DataFrame, *, ax: np.ndarray | None = None) -> np.ndarray:
    """Differences between models.

    Difference of two models in mean nDCG@10 over the IR test sets (left) and in mean Spearman
    correlation over the STS test sets (right), times 100, mean over seeds; right of the line the
    first model is better. Small points are the single test sets. Isotropy: minus the mean cosine of
    two texts of a task. A grey tick is the margin of a claim that a model is not worse. {intervals}
    {claims}
    """
    if len(claims := rows[rows["claim"] != evaluate.AGAINST_BASE]):  # a preset may decide none
        rows = claims
    told = [bool(evaluate.outcome(row)) for _, row in rows.iterrows()]
    columns = {"difference", "low", "high", "bound", "seeds_low", "seeds_high"} & {*rows}
    rows = rows.assign(told=told, **{column: 100 * rows[column] for column in columns})
    spaces = {evaluate.ISOTROPY[task]: role for task, role in TASK_ROLES.items()}
    roles = TASK_ROLES | {UNSEEN[task]: role for task, role in TASK_ROLES.items()} | spaces
    labels = {task: f"difference in {metric}\n{TIMES_100}" for task, metric in METRICS.items()}
    labels |= {task: f"{labels[task]}, unseen sets" for task in UNSEEN.values()}
    labels |= {t: f"difference in isotropy\nof {r} texts, {TIMES_100}" for t, r in spaces.items()}
    rows = rows.sort_values("task", key=lambda tasks: tasks.map([*roles].index), kind="stable")
    counts = rows[rows["dataset"] == "mean"].groupby("task", sort=False).size().to_list()
    most = [max(counts[i : i + 2]) for i in range(0, len(counts), 2)]  # lines of a row of panels
    ratios = {"gridspec_kw": {"height_ratios": [3.4 + lines for lines in most]}}
    height = 0.72 + 0.21 * np.mean(most)
    drawn = frame.panels(rows, ax, column="task", wrap=2, height=height, **ratios)
    for number, panel in enumerate(drawn):
        pairs = panel.rows.groupby(["claim", "variant", "reference"], sort=False)
        _draw_comparisons(panel.ax, panel.rows.assign(y=pairs.ngroup()), ROLES[roles[panel.column]])
        frame.name_rows(panel.ax, [_pair(*pair) for pair in pairs.groups])
        panel.ax.set(title="", xlabel=labels[panel.column], ylim=(most[number // 2] - 0.4, -0.6))
        panel.ax.grid(visible=False)
    return frame.axes_of(drawn)


def _pair(claim: str, variant: str, reference: str) -> str:
    first, second = (variant_styles([name])[name].label for name in (variant, reference))
    return f"{claim}: " * (claim in evaluate.CLAIMS) + f"{first} vs {second}"


def _draw_comparisons(ax: Axes, rows: pd.DataFrame, look: Role) -> None:
    """Draw comparisons at heights `y`: single test sets, means with their intervals, bounds."""
    sets, means = rows[rows["dataset"] != "mean"], rows[rows["dataset"] == "mean"]
    faint = {"s": 9, "lw": 0, "alpha": frame.FAINT, "color": look.colour}
    ax.scatter(sets["difference"], sets["y"], marker=look.marker, **faint)
    ax.scatter(means["bound"], means["y"], s=64, marker="|", color="#999999", lw=0.8, zorder=-1)
    frame.draw_intervals(ax, means, "difference", look, lw=2)
    if "seeds_low" in means:
        ends = means[["seeds_low", "seeds_high"]].clip(-1e3, 1e3)  # of one seed: all
        ax.hlines(means["y"] + 0.25, *ends.to_numpy().T, color=look.colour, lw=0.6)
    ax.axvline(0, color=ROLES["baseline"].colour, lw=0.6, zorder=0)
    reach = np.concatenate([means["low"], means["high"], means["bound"], rows["difference"]])
    margin = 0.06 * np.ptp(reach) + 0.01
    ax.set_xlim(reach.min() - margin, reach.max() + margin)


@figure("dev")
def plot_training_curves(rows: pd.DataFrame, *, ax: np.ndarray | None = None) -> np.ndarray:
    """Development scores during training.

    Mean nDCG@10 over the IR sets (left) and mean Spearman correlation over the STS sets (right), on
    their development splits, by optimiser step. {lines}
    """
    means = frame.means_by_task(rows, "step").stack().rename("value").reset_index()
    drawn = frame.panels(means, ax, column="task", height=2.2)
    for panel in drawn:
        panel.lines("step")
        panel.ax.set_xlabel("optimiser step")
        panel.ax.set_ylabel(f"dev sets: mean\n{METRICS[panel.column]} {TIMES_100}")
    return frame.named(drawn)


def cost_scores(
    costs: pd.DataFrame, scores: pd.DataFrame, ingredients: Mapping[str, Sequence[str]]
) -> pd.DataFrame:
    """Rows (preset, variant, seed, task, value, tokens, seconds) of every model that has scores.

    `costs` are those of `collect`. `value` is the mean of the main metric over the task's test
    sets. A fused model costs what its `ingredients` cost at the same seed; merging is not counted.
    The untrained encoder costs nothing.
    """
    own = costs.set_index(["variant", "seed"])[["tokens", "seconds"]]
    main = frame.main_scores(scores[(scores["split"] == "test") & scores["task"].isin(TASK_ROLES)])
    keys = ["preset", "variant", "seed", "task"]
    rows = (main.groupby(keys, sort=False)["value"].mean() / 100).reset_index()
    paid = []
    for variant, seed in zip(rows["variant"], rows["seed"], strict=True):
        trained = [] if variant == "base" else ingredients.get(variant, [variant])
        paid.append(own.loc[[(name, seed) for name in trained]].sum())
    return rows.join(pd.DataFrame(paid).reset_index(drop=True))


def _seconds(rows: pd.DataFrame) -> str:
    trained = rows.loc[rows["seconds"] > 0, "seconds"]
    return f"{trained.min():,.0f} to {trained.max():,.0f}" if len(trained) else "no"


@figure("cost_scores", facts=lambda rows: {"seconds": _seconds(rows)})
def plot_cost_scores(rows: pd.DataFrame, *, ax: np.ndarray | None = None) -> np.ndarray:
    """What a score costs.

    Mean test score against the tokens that a model's training encoded, which, unlike time, do not
    depend on what else the machine did. A fused model costs the sum of its ingredients. In time
    that is {seconds} seconds a model. {points}
    """
    x = "thousand tokens encoded in training"
    rows = rows.assign(**{x: rows["tokens"] / 1000, "value": 100 * rows["value"]})
    drawn = frame.panels(rows, ax, column="task", height=2.3, sharex=True)
    for panel in drawn:
        panel.points(x, "value")
        panel.ax.set_ylabel(f"test sets: mean\n{METRICS[panel.column]} {TIMES_100}")
    return frame.named(drawn, lines=False)
