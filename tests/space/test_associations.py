"""Rank correlations against SciPy, and intervals against the spread over many samples."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from codiemb_lib.space.associations import rank_correlations, with_scores


def points(seed=0, clusters=12, each=3, slope=1.0):
    rng = np.random.default_rng(seed)
    centre = np.repeat(rng.normal(size=clusters), each)
    score = slope * centre + np.repeat(rng.normal(size=clusters), each)
    noise = 0.05 * rng.normal(size=(2, clusters * each))
    variant = np.repeat([f"v{i}" for i in range(clusters)], each)
    table = {"variant": variant, "value": centre + noise[0], "score": score + noise[1]}
    return pd.DataFrame(table).assign(measure="a")


def test_correlation_is_that_of_scipy():
    table = points()
    (row,) = rank_correlations(table, ["measure"]).to_dict("records")
    assert row["correlation"] == pytest.approx(
        stats.spearmanr(table["value"], table["score"]).statistic
    )
    assert (row["measure"], row["n"], row["clusters"]) == ("a", 36, 12)
    assert row["low"] < row["correlation"] < row["high"]


def test_interval_has_the_spread_of_other_models_not_of_other_points():
    many = [points(seed) for seed in range(200)]
    true = np.std([stats.spearmanr(t["value"], t["score"]).statistic for t in many])
    found = pd.concat([rank_correlations(t, ["measure"]) for t in many[:30]])
    half = (found["high"] - found["low"]).mean() / 2 / 1.96
    assert half == pytest.approx(true, rel=0.25)
    alone = many[0].assign(variant=[f"p{i}" for i in range(36)])
    narrow = rank_correlations(alone, ["measure"]).iloc[0]
    assert narrow["high"] - narrow["low"] < 0.8 * (found["high"] - found["low"]).iloc[0]


def test_few_variants_and_constant_sides_are_left_out():
    few = points(clusters=3)
    constant = points().assign(measure="b", value=lambda rows: 1 + 1e-9 * np.arange(len(rows)))
    found = rank_correlations(pd.concat([few, constant]), ["measure"])
    assert found.empty
    assert list(found.columns) == ["measure", "correlation", "low", "high", "n", "clusters"]


def test_measures_stand_beside_the_headline_scores_of_both_tasks():
    measures = pd.DataFrame(
        [("v", 0, "ir", "anisotropy", 0.2), ("v", 0, "ir", "condition_number", np.inf)],
        columns=["variant", "seed", "texts", "measure", "value"],
    )
    scores = pd.DataFrame(
        [
            ("v", 0, "ir", "docs", "ndcg@10", 0.5),
            ("v", 0, "ir", "news", "ndcg@10", 0.7),
            ("v", 0, "ir", "news", "recall@100", 0.9),
            ("v", 0, "sts", "words", "spearman", 0.4),
            ("w", 0, "ir", "docs", "ndcg@10", 0.1),
        ],
        columns=["variant", "seed", "task", "dataset", "metric", "value"],
    )
    found = with_scores(measures, scores, on=["variant", "seed"])
    assert set(found["measure"]) == {"anisotropy"}
    assert found.set_index("task")["score"].to_dict() == pytest.approx({"ir": 0.6, "sts": 0.4})
    assert rank_correlations(with_scores(measures[:0], scores, on=["variant"]), ["task"]).empty
