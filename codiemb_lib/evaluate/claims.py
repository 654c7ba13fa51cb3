"""The rule that decides the claims of claims.yaml."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import yaml
from scipy import stats

from codiemb_lib.core import UNSEEN
from codiemb_lib.evaluate.compare import ISOTROPY, Comparison, holm

AGAINST_BASE = "base"  # in the column `claim`: every model against the start, no claim
ALPHA = 0.05  # of a family of comparisons or of claims, after Holm, two-sided


class Claim(NamedTuple):
    """A sentence, and the comparisons that decide it: [model, reference, on what], with `as good`
    behind them where the model need not be better. `every`: all are needed, or any is enough."""

    text: str
    parts: tuple[tuple[str, ...], ...]
    every: bool

    def comparisons(self, margin: float) -> list[Comparison]:
        """What `compare` takes; a model is as good if it lacks no more than the margin."""
        bounds = [-margin if "as good" in part else 0.0 for part in self.parts]
        return [Comparison(*p[:3], bound) for p, bound in zip(self.parts, bounds, strict=True)]

    def p(self, rows: pd.DataFrame) -> tuple[float, float]:
        """One-sided p that the claim does not hold, and that it does, from its rows of means.

        What needs every part is an intersection-union test: the largest p (Berger, 1982). What
        needs one of k: the smallest times k (Bonferroni). One seed cannot tell: both are 1.
        """
        if rows["seeds"].min() < 2:
            return 1.0, 1.0
        least = np.finfo(float).tiny  # of two models that are one and the same, no text differs
        gaps = (rows["difference"] - rows["bound"]) / rows["se"].clip(lower=least)
        below = stats.t.cdf(gaps, rows["df"])
        one_of = lambda p: min(1.0, len(p) * p.min())  # noqa: E731
        if self.every:
            return (1 - below).max(), one_of(below)
        return one_of(1 - below), below.max()


CLAIMS = {
    name: Claim(said["text"], tuple(map(tuple, said.get("all") or said["any"])), "all" in said)
    for name, said in yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8")).items()
}


def lacking(models: Iterable[str]) -> dict[str, list[str]]:
    """Of each claim the models that it compares and that are not among `models`."""
    models, found = {*models}, {}
    for name, claim in CLAIMS.items():
        wanted = dict.fromkeys(model for part in claim.parts for model in part[:2])
        found[name] = [model for model in wanted if model not in models]
    return found


def against(
    reference: str, models: Iterable[str], tasks: Iterable[str]
) -> dict[str, list[Comparison]]:
    """Every other model against one of them on each task: a family under the reference's name."""
    tasks = [*tasks]
    others = [model for model in models if model != reference]
    return {reference: [Comparison(model, reference, task) for model in others for task in tasks]}


def families(
    models: Iterable[str], tasks: Iterable[str], margin: float
) -> list[dict[str, Sequence[Comparison]]]:
    """What is compared of measured models: each family is one call of `compare`, for Holm.

    Those of the claims whose models are all there, with the preset's margin; every model against
    the start in scores; the same on unseen data sets; and the same in isotropy. `tasks` are those
    that have test texts, of all these kinds.
    """
    models, tasks = [*models], {*tasks}
    decided = [name for name, wanted in lacking(models).items() if not wanted]
    claims = {name: CLAIMS[name].comparisons(margin) for name in decided}
    start = [
        against(AGAINST_BASE, models, [task for task in kind if task in tasks])
        for kind in (ISOTROPY.keys(), UNSEEN.values(), ISOTROPY.values())
    ]
    return [family for family in (claims, *start) if any(family.values())]


def outcome(row: pd.Series) -> int:
    """What a row of `compare` says: 1 above its bound, -1 below it, 0 where it cannot tell.

    Above or below counts where p after Holm is under `ALPHA` and the interval lies wholly on that
    side, of two seeds or more. In rows of the older rule that over seeds must, too.
    """
    lows, highs = ([row[n] for n in (end, f"seeds_{end}") if n in row] for end in ("low", "high"))
    if row["p_holm"] < ALPHA and row["seeds"] > 1:
        return int(min(lows) > row["bound"]) - int(max(highs) < row["bound"])
    return 0


def verdicts(rows: pd.DataFrame) -> pd.DataFrame:
    """A row (claim, text, verdict, p) for each claim that `rows` of `compare` decide.

    A claim is one two-sided test. `p` is after Holm over the claims; under `ALPHA` the claim
    `holds` or `does not hold`, else we `cannot tell`.
    """
    means = rows[rows["dataset"] == "mean"]
    named = {name: means[means["claim"] == name] for name in CLAIMS}
    if "se" not in means:  # rows of the older rule: each comparison by itself
        told = {name: [outcome(row) for _, row in own.iterrows()] for name, own in named.items()}
        said = {1: "holds", 0: "cannot tell", -1: "does not hold"}
        found = [
            (name, CLAIMS[name].text, said[(min if CLAIMS[name].every else max)(own)])
            for name, own in told.items()
            if own
        ]
        return pd.DataFrame(found, columns=["claim", "text", "verdict"])
    found = [
        (name, CLAIMS[name].text, *CLAIMS[name].p(own)) for name, own in named.items() if len(own)
    ]
    table = pd.DataFrame(found, columns=["claim", "text", "yes", "no"])
    told = np.where(table["yes"] < table["no"], "holds", "does not hold")
    p = holm(np.minimum(1, 2 * table[["yes", "no"]].min(axis=1)))
    verdict = np.where(p < ALPHA, told, "cannot tell")
    return table.drop(columns=["yes", "no"]).assign(verdict=verdict, p=p)
