"""Tables for print: tidy rows in, one line a model out, as the README shows it."""

from __future__ import annotations

import pandas as pd

from codiemb_lib.plotting import SCORES
from codiemb_lib.style import variant_styles

_METRICS = {task: metric for task, (metric, _) in SCORES.items()}
_TASKS = {"ir": "IR", "sts": "STS"}


def results_table(scores: pd.DataFrame) -> pd.DataFrame:
    """The main table: a line a model, its mean over each task's test sets, then each test set.

    Values are nDCG@10 for retrieval and Spearman's rho for similarity, times 100, as text with two
    decimals: the mean over seeds, and `±` half the range of the seeds for the task means.

    Args:
        scores: Score rows of one preset (preset, variant, seed, task, dataset, split, metric,
            value).

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
    lines = []
    for variant, style in variant_styles(scores["variant"]).items():
        own = means.loc[variant]
        line = {"model": style.label, "seeds": len(own)}
        for task in means.columns:
            half_range = (own[task].max() - own[task].min()) / 2
            spread = f" ± {half_range:.2f}" if len(own) > 1 else ""
            line[f"{_TASKS[task]} mean"] = f"{own[task].mean():.2f}{spread}"
        for task, dataset in by_set.columns:
            line[dataset] = f"{by_set.loc[variant, (task, dataset)].mean():.2f}"
        lines.append(line)
    return pd.DataFrame(lines)


def to_markdown(table: pd.DataFrame) -> str:
    """A pipe table in Markdown, with a final line break."""
    lines = [list(table.columns), ["---"] * len(table.columns), *table.astype(str).values.tolist()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
