"""What a model cost, beside what it scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from codiemb_lib.core import MAIN_METRIC


def cost_scores(
    costs: pd.DataFrame, scores: pd.DataFrame, ingredients: Mapping[str, Sequence[str]]
) -> pd.DataFrame:
    """Rows (preset, variant, seed, task, value, tokens, seconds) of every model that has scores.

    `value` is the mean over the task's test sets of its headline metric. The cost of a fused model
    is the sum of those of its ingredients at the same seed; merging itself is not counted. That of
    the untrained encoder is zero.

    Args:
        costs: Rows of `runs.collect_costs`.
        scores: Score rows of the same preset.
        ingredients: Of each fused model.

    Raises:
        ValueError: A model, or an ingredient, has no cost.
    """
    own = costs.set_index(["variant", "seed"])[["tokens", "seconds"]]
    scores = scores[scores["split"] == "test"]
    main = scores[scores["metric"] == scores["task"].map(MAIN_METRIC)]
    keys = ["preset", "variant", "seed", "task"]
    rows = main.groupby(keys, sort=False)["value"].mean().reset_index()
    paid = []
    for variant, seed in rows[["variant", "seed"]].itertuples(index=False, name=None):
        trained = [] if variant == "base" else ingredients.get(variant, [variant])
        parts = [(name, seed) for name in trained]
        if lacking := [part for part in parts if part not in own.index]:
            raise ValueError(
                f"cost_scores: expected the cost of every run, found none of {lacking[0][0]!r}, "
                f"seed {lacking[0][1]}, which {variant!r} needs."
            )
        paid.append(own.loc[parts].sum())
    return rows.join(pd.DataFrame(paid).reset_index(drop=True))
