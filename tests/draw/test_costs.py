from __future__ import annotations

import pandas as pd
import pytest

from codiemb_lib.draw.costs import cost_scores


def tables():
    costs = pd.DataFrame(
        [("a", 0, 10, 1.5), ("a", 1, 11, 2.5), ("b", 0, 20, 3.0), ("b", 1, 21, 4.0)],
        columns=["variant", "seed", "tokens", "seconds"],
    )
    scores = pd.DataFrame(
        [
            ("mini", variant, seed, "ir", dataset, "test", metric, value)
            for variant, seed in [("base", 0), ("a", 0), ("soup", 1)]
            for dataset, metric, value in [
                ("docs", "ndcg@10", 0.4),
                ("news", "ndcg@10", 0.6),
                ("news", "recall@100", 0.9),
            ]
        ],
        columns=["preset", "variant", "seed", "task", "dataset", "split", "metric", "value"],
    )
    return costs, scores


def test_fused_models_cost_their_ingredients_and_the_base_nothing():
    rows = cost_scores(*tables(), {"soup": ["a", "b"]}).set_index("variant")
    assert rows["tokens"].to_dict() == {"base": 0, "a": 10, "soup": 32}
    assert rows["seconds"].to_dict() == {"base": 0, "a": 1.5, "soup": 6.5}
    assert rows["value"].tolist() == pytest.approx([0.5] * 3)
    assert set(rows["task"]) == {"ir"}


def test_a_model_without_cost_is_named():
    with pytest.raises(ValueError, match=r"none of 'c', seed 1, which 'soup' needs"):
        cost_scores(*tables(), {"soup": ["a", "c"]})
