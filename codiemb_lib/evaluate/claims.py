"""The claims that the runs are to decide, as data, and the rule that decides them.

The claims are the paper's, in the words of its abstract and of its reviews, and those that the
study adds. Which models stand for them, the margin and the rule were fixed before the runs of
`english`, and are ours; C8 came after them, under the same rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from codiemb_lib.evaluate.compare import ISOTROPY, Comparison

AGAINST_BASE = "base"  # in the column `claim`: every model against the start, no claim
ALPHA = 0.05  # of a family of comparisons, after Holm
MARGIN = 0.005  # half a point of 100: what "at or above" may lack
VERDICTS = {1: "holds", 0: "cannot tell", -1: "does not hold"}


@dataclass(frozen=True, slots=True)
class Claim:
    """A sentence, the comparisons that decide it, and how their outcomes 1, 0 and -1 are joined:
    `min` where all are needed, `max` where one is enough."""

    text: str
    comparisons: tuple[Comparison, ...]
    combine: Callable[[Iterable[int]], int] = min


CLAIMS = {
    "C1": Claim(
        "trained on mixed batches, one encoder falls behind a specialist on at least one task "
        "(negative transfer)",
        (Comparison("ir_only", "mixed", "ir"), Comparison("sts_only", "mixed", "sts")),
        combine=max,
    ),
    "C2": Claim(
        "training on one task alone costs the other",
        (Comparison("base", "sts_only", "ir"), Comparison("base", "ir_only", "sts")),
    ),
    "C3": Claim(
        "batches of a single task with its own objective beat mixed batches with one objective",
        (Comparison("codiemb", "mixed", "ir"), Comparison("codiemb", "mixed", "sts")),
    ),
    "C4": Claim(
        "the losses for similarity beat CoSENT in the same batches, and retrieval does not pay",
        (Comparison("codiemb", "cosent", "ir", -MARGIN), Comparison("codiemb", "cosent", "sts")),
    ),
    "C5": Claim(
        "one encoder serves each task at least as well as its specialist",
        (
            Comparison("codiemb", "ir_only", "ir", -MARGIN),
            Comparison("codiemb", "sts_only", "sts", -MARGIN),
        ),
    ),
    "C6": Claim(
        "delta-guided fusion beats the uniform soup",
        (Comparison("delta", "soup", "ir"), Comparison("delta", "soup", "sts")),
    ),
    "C7": Claim(
        "joint training harms neither task of the encoder that it starts from",
        (
            Comparison("codiemb", "base", "ir", -MARGIN),
            Comparison("codiemb", "base", "sts", -MARGIN),
        ),
    ),
    "C8": Claim(
        "joint training makes the space less anisotropic (a lower mean cosine of two IR texts, and "
        "of two STS texts) than mixed batches do, and than the encoder that it starts from",
        tuple(
            Comparison("codiemb", reference, task)
            for reference in ("mixed", "base")
            for task in ISOTROPY.values()
        ),
    ),
}


def lacking(models: Iterable[str]) -> dict[str, list[str]]:
    """Of each claim the models that it compares and that are not among `models`."""
    models, found = {*models}, {}
    for name, claim in CLAIMS.items():
        wanted = dict.fromkeys(m for c in claim.comparisons for m in (c.model, c.reference))
        found[name] = [model for model in wanted if model not in models]
    return found


def against(
    reference: str, models: Iterable[str], tasks: Iterable[str]
) -> dict[str, list[Comparison]]:
    """Every other model against one of them on each task: a family under the reference's name."""
    tasks = [*tasks]
    others = [model for model in models if model != reference]
    return {reference: [Comparison(model, reference, task) for model in others for task in tasks]}


def families(models: Iterable[str], tasks: Iterable[str]) -> list[dict[str, Sequence[Comparison]]]:
    """What is compared of measured models: each family is one call of `compare`, for Holm.

    Those of the claims whose models are all there; every model against the start in scores; and the
    same in isotropy. `tasks` are those that have test texts, of scores and of isotropy.
    """
    models, tasks = [*models], {*tasks}
    claims = {n: CLAIMS[n].comparisons for n, wanted in lacking(models).items() if not wanted}
    start = [
        against(AGAINST_BASE, models, [task for task in kind if task in tasks])
        for kind in (ISOTROPY.keys(), ISOTROPY.values())
    ]
    return [family for family in (claims, *start) if any(family.values())]


def outcome(row: pd.Series) -> int:
    """What a row of `compare` says: 1 above its bound, -1 below it, 0 where it cannot tell.

    Above or below counts where texts and seeds agree: p after Holm is under `ALPHA`, and both the
    bootstrap interval over texts and the t-interval over seeds lie wholly on that side.
    """
    if row["p_holm"] < ALPHA:
        if min(row["low"], row["seeds_low"]) > row["bound"]:
            return 1
        if max(row["high"], row["seeds_high"]) < row["bound"]:
            return -1
    return 0


def verdicts(rows: pd.DataFrame) -> pd.DataFrame:
    """A row (claim, text, verdict) for each claim that `rows` of `compare` decide."""
    means = rows[rows["dataset"] == "mean"]
    found = []
    for name, claim in CLAIMS.items():
        if outcomes := [outcome(row) for _, row in means[means["claim"] == name].iterrows()]:
            found.append((name, claim.text, VERDICTS[claim.combine(outcomes)]))
    return pd.DataFrame(found, columns=["claim", "text", "verdict"])
