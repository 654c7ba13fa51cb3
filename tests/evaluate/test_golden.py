"""Golden values of evaluation: scores of fixed vectors, comparisons of models, verdicts, mining."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from codiemb_lib.core.preset import DatasetSettings
from codiemb_lib.core.runs import t_interval
from codiemb_lib.core.words import task_means
from codiemb_lib.data.records import Record
from codiemb_lib.evaluate import claims
from codiemb_lib.evaluate.compare import (
    Spread,
    TextScores,
    compare,
    contributions,
    crossed,
    holm,
    isotropies,
    pooled,
    pseudo_values,
    text_scores,
)
from codiemb_lib.evaluate.mining import mine
from codiemb_lib.evaluate.scores import (
    EncodedDataset,
    encode_dataset,
    ranking_metrics,
    score,
    score_dataset,
    sts_metrics,
)
from codiemb_lib.evaluate.search import top_columns, top_k
from codiemb_lib.space.intervals import jackknife_intervals
from tests.conftest import tiny_encoder
from tests.golden import check, summary, unit_rows
from tests.made_up import MODELS, PROMPTS, ir_records, sts_records


class Hashed:
    """An encoder of made-up vectors, each a function of prompt and text; both of a kind agree."""

    def embed(self, texts, *, prompt="", progress=False):
        return np.stack([unit_rows(8, seed=list((prompt + text).encode())) for text in texts])

    encode = embed


def ranking() -> dict:
    queries, passages = unit_rows(6, 5), unit_rows(130, 5, seed=1)
    passages[40:60] = passages[20:40]  # ties
    rng, grades = np.random.default_rng(0), (1, 2, 3, 1, 1, 2, 3)
    graded = [dict(zip(rng.permutation(130)[:7].tolist(), grades, strict=True)) for _ in queries]
    best, _ = top_k(queries, passages, 1)
    near = [{i: 1} for i in np.argmax(queries @ passages.T, axis=1).tolist()]
    tied = [{25: 1, 45: 1}, {21: 2}, {41: 3}, {30: 1, 50: 2}, {39: 1}, {59: 1}]
    return {
        "graded": ranking_metrics(queries, passages, graded),
        "binary": ranking_metrics(queries, passages, [dict.fromkeys(g, 1) for g in graded]),
        "ties": ranking_metrics(queries, passages, tied),
        "nearest": ranking_metrics(queries, passages, near) | {"cosines": best},
        "few passages": ranking_metrics(queries, passages[:3], [{0: 1}, {1: 2, 2: 1}] * 3),
    }


def similarity() -> dict:
    rng = np.random.default_rng(1)
    gold, found = rng.integers(0, 6, 50) / 5, rng.normal(size=50)
    return {
        "ties": sts_metrics(found + gold, gold),
        "both tied": sts_metrics(np.round(found + gold), gold),
        "two": sts_metrics([0.1, 0.3], [1, 0]),
    }


IR, STS = ir_records(15), sts_records(25)
CORPUS = [f"the {a} of {b}" for a in ("cat", "dog", "bus") for b in ("car", "red", "old")]


def records() -> dict:
    """Of fixed vectors, and of the tiny encoder; all judgements binary."""
    made = {"ir": (IR, CORPUS), "sts": (STS, [])}
    plain = {}
    for name, of_task in made.items():
        settings = DatasetSettings(name=name, query_prompt="query: ")
        encoded = encode_dataset(Hashed(), settings, *of_task)
        plain[f"{name}, data set"] = score_dataset(encoded)
        plain[f"{name}, encoded"] = {
            side: summary(getattr(encoded, side)) for side in ("queries", "passages")
        } | {"gold": [*map(list, encoded.gold)] if name == "ir" else encoded.gold}
    encoder = tiny_encoder()
    whole = score(encode_dataset(encoder, PROMPTS[name], *made[name]) for name in made)
    return plain | {"evaluate": whole, "means": task_means(whole)}


def graded() -> dict:
    """One query with passages of grades 1 and 3, of which the lower one ranks first; and the
    made-up records with grades, and with the scores of a teacher."""
    degrees = {"q": 0, "low": 10, "high": 20, "none": 60}

    class Fixed(Hashed):
        def encode(self, texts, *, prompt=""):
            angles = np.radians([degrees[text] for text in texts])
            return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)

    one = [Record("ir", "q", ("low", "high"), ("none",), positive_scores=(1, 3))]
    found = {"one query": encode_dataset(Fixed(), DatasetSettings(name="one"), one)}
    for name, scores in {"records": (3, 1), "a teacher's": (0.9, 0.2)}.items():
        scored = [replace(record, positive_scores=scores) for record in IR]
        found[name] = encode_dataset(Hashed(), DatasetSettings(name="graded"), scored, CORPUS)
    return {name: score_dataset(encoded) for name, encoded in found.items()}


def model(noise: float, seed: int) -> list[EncodedDataset]:
    """Two data sets as a model with so much noise encodes them."""
    rng = np.random.default_rng(seed)

    def near(x: np.ndarray) -> np.ndarray:
        y = x + noise * rng.normal(size=x.shape)
        return (y / np.linalg.norm(y, axis=-1, keepdims=True)).astype(np.float32)

    centres, sides = unit_rows(40, 8), unit_rows(30, 8, seed=1)
    gold = np.random.default_rng(2).integers(0, 6, 30) / 5
    partners = sides * gold[:, None] + unit_rows(30, 8, seed=3) * (1 - gold)[:, None]
    names = {kind: [f"{kind}{i}" for i in range(40)] for kind in "qpst"}
    right = [{i: 1, (i + 1) % 40: 1} for i in range(40)]
    ir = EncodedDataset("a", "ir", names["q"], names["p"], near(centres), near(centres), right)
    pairs = near(sides), near(partners)
    return [ir, EncodedDataset("b", "sts", names["s"][:30], names["t"][:30], *pairs, gold)]


def compared() -> dict:
    noises = {"base": 0.8, "mixed": 0.5, "codiemb": 0.3, "soup": 0.3, "delta": 0.31}
    spaces = {
        (name, seed): model(noise, 10 * seed + place)
        for place, (name, noise) in enumerate(noises.items())
        for seed in ((0,) if name == "base" else (0, 1, 2))
    }
    runs = {run: text_scores(space) + isotropies(space) for run, space in spaces.items()}
    rows = compare(runs, claims.families(noises, (), 0.005)[0])
    return {
        "contributions": {
            f"{s.task} {model} {seed}": summary(contributions(s))
            for (model, seed), scores in runs.items()
            for s in scores
        },
        "rows": rows,
        "verdicts": claims.verdicts(rows).drop(columns="text"),
        "lacking": claims.lacking(noises),
    }


def verdicts() -> dict:
    """Of made-up comparisons that are above, below, about their bounds."""
    kinds = {"above": 0.015, "below": -0.015, "about": 0.003}
    found = {}
    for first, second in itertools.product(kinds, kinds):
        rows = [
            {"claim": claim, "dataset": "mean", "bound": c.bound, "se": 0.004, "df": 20, "seeds": 3}
            | {"difference": c.bound + gap}
            for claim, comparisons in claims.families(MODELS, (), 0.005)[0].items()
            for c, gap in zip(
                comparisons, itertools.cycle((kinds[first], kinds[second])), strict=False
            )
        ]
        decided = claims.verdicts(pd.DataFrame(rows)).set_index("claim")["verdict"]
        found[f"{first}, {second}"] = " / ".join(decided)
    return found


def p_values() -> dict:
    spread = pooled([[0.1, 0.4], [0.2, 0.5, 0.6]])
    rule = crossed(0.4, [Spread(0.01, 199), Spread(spread.variance * 5 / 6, spread.df)])
    values, gold = np.random.default_rng(1).normal(size=20), np.arange(20) // 5
    return {
        "holm": holm([0.01, 0.04, 0.03, 0.005, 0.5]),
        "crossed": [rule.p(bound) for bound in (-1, 0, 0.4, 1)] + [rule.se, rule.df],
        "correlation": summary(contributions(TextScores("sts", "s", values, gold, ""))),
        "isotropies": summary(pseudo_values(unit_rows(20, 5))),
    }


def intervals() -> dict:
    rows = np.random.default_rng(1).normal(size=(50, 4))

    def spread(x: np.ndarray) -> list[float]:
        return [x.std(), np.linalg.svd(x, compute_uv=False)[0]]

    def labelled(found: tuple) -> dict:
        return dict(zip(("values", "low", "high"), found, strict=True))

    return {
        "jackknife": labelled(jackknife_intervals(spread, rows)),
        "jackknife, five": labelled(jackknife_intervals(spread, rows, groups=5, seed=1)),
        "t": [t_interval([1.0, 2.0, 4.0]), t_interval([1.0])],
    }


def search() -> dict:
    queries, passages = unit_rows(7, 4), unit_rows(30, 4, seed=1)
    passages[20:25] = passages[5:10]
    found = {}
    for block in ((1024, 8192), (3, 8)):
        cosines, rows = top_k(queries, passages, 6, block=block)
        found[f"tiles of {block}"] = {"rows": rows, "cosines": cosines}
    return found | {"columns": top_columns(np.round(queries @ passages.T, 1), 4)}


def mined() -> dict:
    options = {
        "as it is": {"absolute_margin": 0.05},
        "no margin": {"absolute_margin": 0.0, "negatives": 2},
        "corpus and prompts": {
            "corpus": CORPUS,
            "settings": DatasetSettings(name="", query_prompt="query: ", passage_prompt="find "),
            "negatives": 3,
            "absolute_margin": 0.02,
            "depth": 20,
        },
    }
    return {
        name: [record.negatives for record in mine(Hashed(), IR, **given)]
        for name, given in options.items()
    }


CASES = {
    "ranking": ranking,
    "similarity": similarity,
    "records": records,
    "graded": graded,
    "comparison": compared,
    "verdicts": verdicts,
    "p-values": p_values,
    "intervals": intervals,
    "search": search,
    "mining": mined,
}


@pytest.mark.parametrize("case", CASES)
def test_golden(case):
    check("evaluate", {case: CASES[case]()})
