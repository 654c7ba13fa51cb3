"""Tables for print: tidy rows in, one line a model out, as the README shows it."""

from __future__ import annotations

from collections import Counter

import pandas as pd

from codiemb_lib.core import task_means
from codiemb_lib.draw.frame import SCORES, half_interval
from codiemb_lib.draw.style import variant_styles
from codiemb_lib.evaluate import AGAINST_BASE, ALPHA, ISOTROPY, verdicts
from codiemb_lib.fuse import candidates

_METRICS = {task: metric for task, (metric, _) in SCORES.items()}
_TASKS = {"ir": "IR", "sts": "STS"}
_COMPARED = _TASKS | {
    ISOTROPY[task]: f"minus mean cosine of {name} texts" for task, name in _TASKS.items()
}


def results_table(scores: pd.DataFrame, comparisons: pd.DataFrame | None = None) -> pd.DataFrame:
    """The main table: a line a model, its mean over each task's test sets, then each test set.

    Values are nDCG@10 for retrieval and Spearman's rho for similarity, times 100, as text with two
    decimals: the mean over seeds, and for the task means `±` half the 95 % t-interval of the seeds,
    of two seeds half their range. `†` marks what differs from the base encoder by the paired test
    over texts (p after Holm under 0.05).

    Args:
        scores: Score rows of one preset (preset, variant, seed, task, dataset, split, metric,
            value).
        comparisons: Rows of `comparison.compare`; without them nothing is marked.

    Raises:
        ValueError: The rows belong to several presets, or a model lacks a test set or a seed's
            score on one.
    """
    if (presets := scores["preset"].nunique()) != 1:
        raise ValueError(f"expected the scores of one preset, found {presets}.")
    rows = scores[(scores["split"] == "test") & (scores["metric"] == scores["task"].map(_METRICS))]
    by_set = rows.assign(value=rows["value"] * 100).pivot(
        index=["variant", "seed"], columns=["task", "dataset"], values="value"
    )
    if by_set.isna().any(axis=None):
        missing = by_set.isna().any(axis=1).idxmax()
        raise ValueError(f"expected a score on every test set, found a gap for {missing}.")
    by_set = by_set[list(dict.fromkeys(zip(rows["task"], rows["dataset"], strict=True)))]
    means = by_set.T.groupby(level="task").mean().T
    differing = set() if comparisons is None else _differing(comparisons)
    lines = []
    for variant, style in variant_styles(scores["variant"]).items():
        own = means.loc[variant]
        line = {"model": style.label, "seeds": len(own)}
        for task in means.columns:
            mark = "†" if (variant, task, "mean") in differing else ""
            line[f"{_TASKS[task]} mean"] = f"{own[task].mean():.2f}{mark}{_spread(own[task])}"
        for task, dataset in by_set.columns:
            mark = "†" if (variant, task, dataset) in differing else ""
            line[dataset] = f"{by_set.loc[variant, (task, dataset)].mean():.2f}{mark}"
        lines.append(line)
    return pd.DataFrame(lines)


def _spread(values: pd.Series) -> str:
    """` ± ...` of the values of several seeds; "" of one."""
    if len(values) == 1:
        return ""
    half = half_interval(values) if len(values) > 2 else (values.max() - values.min()) / 2
    return f" ± {half:.2f}"


def _differing(comparisons: pd.DataFrame) -> set[tuple[str, str, str]]:
    """The models, tasks and data sets on which the paired test tells a model from the base."""
    rows = comparisons[(comparisons["claim"] == AGAINST_BASE) & (comparisons["p_holm"] < ALPHA)]
    return set(zip(rows["variant"], rows["task"], rows["dataset"], strict=True))


def claims_table(comparisons: pd.DataFrame) -> pd.DataFrame:
    """The claims: a line for each, its verdict, and the comparisons of means that decide it.

    Differences are times 100: the mean over seeds, the 95 % interval over texts, that over seeds,
    and p after Holm. Where a model need not be better, only not worse by more than a margin, p is
    that of the margin, which stands beside it.

    Args:
        comparisons: Rows of `comparison.compare`.
    """
    means = comparisons[comparisons["dataset"] == "mean"]
    lines = []
    for claim in verdicts(comparisons).itertuples():
        evidence = [_evidence(row) for row in means[means["claim"] == claim.claim].itertuples()]
        lines.append(
            {
                "claim": f"{claim.claim}: {claim.text}",
                "verdict": f"**{claim.verdict}**",
                "evidence (difference × 100 [texts], [seeds], p)": "; ".join(evidence),
            }
        )
    return pd.DataFrame(lines)


def _evidence(row) -> str:
    labels = {
        name: style.label for name, style in variant_styles([row.variant, row.reference]).items()
    }
    what = f"{_COMPARED[row.task]}, {labels[row.variant]} less {labels[row.reference]}"
    return f"{what}: {_difference(row)}"


def _difference(row) -> str:
    """Times 100, with the intervals over texts and over seeds, and p against its bound."""
    interval = "[{:+.2f}, {:+.2f}]".format
    seeds = interval(100 * row.seeds_low, 100 * row.seeds_high) if row.seeds > 1 else "[one seed]"
    against = f" against {100 * row.bound:+.1f}" if row.bound else ""
    return (
        f"{100 * row.difference:+.2f} {interval(100 * row.low, 100 * row.high)}, {seeds}, "
        f"p = {row.p_holm:.2g}{against}"
    )


def merges_table(study: pd.DataFrame, comparisons: pd.DataFrame) -> pd.DataFrame:
    """Ways to merge the same runs: a line a method, the best on dev first.

    Scores are times 100, means over seeds: of the settings that dev picked for each seed (`picked`,
    how often), on dev and on test. Beside them the differences to the uniform soup on test, as in
    `claims_table`. `won` marks the best mean of both tasks on dev: of all, and of the delta-guided
    family, whose methods' names begin with `delta`.

    Args:
        study: Rows of the picks of a fusion study, with the method as variant.
        comparisons: Rows of `comparison.compare`, of each method against `uniform`.
    """
    dev = candidates(study).groupby("method", sort=False)
    scores = dev[["ir", "sts", "mean"]].mean().sort_values("mean", ascending=False, kind="stable")
    delta = [method for method in scores.index if method.startswith("delta")]
    winners = {"all": scores.index[:1], "delta-guided": delta[:1]}  # of none, none
    means = comparisons[comparisons["dataset"] == "mean"]
    tested = study[study["split"] == "test"].groupby("variant")
    lines = []
    for method, found in scores.iterrows():
        picked = Counter(dev.get_group(method)["settings"])
        on_test = task_means(tested.get_group(method))
        line = {
            "method": method.replace("_", " "),
            "won": ", ".join(of for of, first in winners.items() if method in first),
            "picked": "; ".join(f"{name} ({count})" for name, count in picked.items()),
            **{f"dev {_TASKS.get(key, key)}": f"{100 * found[key]:.2f}" for key in found.index},
            **{f"test {_TASKS[task]}": f"{100 * on_test[task]:.2f}" for task in on_test},
        }
        own = {row.task: row for row in means[means["variant"] == method].itertuples()}
        for task, name in _TASKS.items():
            heading = f"test {name} less soup [texts], [seeds], p"
            line[heading] = _difference(own[task]) if task in own else ""
        lines.append(line)
    return pd.DataFrame(lines)


def to_markdown(table: pd.DataFrame) -> str:
    """A pipe table in Markdown, with a final line break."""
    lines = [list(table.columns), ["---"] * len(table.columns), *table.astype(str).values.tolist()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
