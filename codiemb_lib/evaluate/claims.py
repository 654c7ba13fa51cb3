"""The rule that decides the claims of claims.yaml."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import yaml

from codiemb_lib.evaluate.compare import ISOTROPY, Comparison

AGAINST_BASE = "base"  # in the column `claim`: every model against the start, no claim
ALPHA = 0.05  # of a family of comparisons, after Holm
VERDICTS = {1: "holds", 0: "cannot tell", -1: "does not hold"}


class Claim(NamedTuple):
    """A sentence, the comparisons that decide it, and how their outcomes 1, 0 and -1 are joined:
    `min` where all are needed, `max` where one is enough."""

    text: str
    comparisons: tuple[Comparison, ...]
    combine: Callable[[Iterable[int]], int]


CLAIMS = {
    name: Claim(
        said["text"],
        tuple(Comparison(*comparison) for comparison in said.get("all") or said["any"]),
        min if "all" in said else max,
    )
    for name, said in yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8")).items()
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

    Above or below counts where p after Holm is under `ALPHA` and the crossed interval lies wholly
    on that side. Older rows have none: in them the intervals over texts and over seeds both must.
    """
    names = {"crossed"} if "crossed_low" in row else {"", "seeds"}
    lows, highs = ([row[f"{n}_{end}".lstrip("_")] for n in names] for end in ("low", "high"))
    if row["p_holm"] < ALPHA:
        if min(lows) > row["bound"]:
            return 1
        if max(highs) < row["bound"]:
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
