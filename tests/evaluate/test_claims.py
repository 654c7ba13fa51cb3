"""The rule of the verdicts, on rows made up for each of its sides."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from codiemb_lib.core import load_preset
from codiemb_lib.evaluate.claims import (
    ALPHA,
    CLAIMS,
    families,
    lacking,
    outcome,
    verdicts,
)
from codiemb_lib.evaluate.compare import ISOTROPY, Comparison

ABOVE = {"low": 0.01, "high": 0.03, "seeds_low": 0.005, "seeds_high": 0.04, "p_holm": 0.001}
BELOW = {"low": -0.03, "high": -0.01, "seeds_low": -0.04, "seeds_high": -0.006, "p_holm": 0.001}
AROUND = {"low": -0.01, "high": 0.01, "seeds_low": -0.02, "seeds_high": 0.02, "p_holm": 0.9}


def rows(claim: str, *sides: dict) -> pd.DataFrame:
    comparisons = zip(CLAIMS[claim].comparisons, sides, strict=True)
    found = [
        {"claim": claim, "task": c.task, "dataset": dataset, "bound": c.bound} | values
        for c, side in comparisons
        for dataset, values in (("mean", side), ("docs", AROUND))
    ]
    return pd.DataFrame(found)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, 1),
        ({"p_holm": ALPHA}, 0),
        ({"seeds_low": -0.001}, 0),
        ({"seeds_low": -np.inf, "seeds_high": np.inf}, 0),
        ({"low": 0.0}, 0),
        ({"bound": 0.02}, 0),
        ({"bound": 0.05}, -1),
    ],
)
def test_an_outcome_needs_texts_seeds_and_the_corrected_p(change, expected):
    assert outcome(pd.Series(ABOVE | {"bound": 0.0} | change)) == expected


@pytest.mark.parametrize(
    ("low", "high", "p", "expected"),
    [
        (0.001, 0.03, 0.01, 1),
        (-0.03, -0.001, 0.01, -1),
        (-0.01, 0.03, 0.01, 0),
        (0.1, 0.2, 0.06, 0),
    ],
)
def test_where_there_is_a_crossed_interval_it_alone_counts(low, high, p, expected):
    crossed = {"crossed_low": low, "crossed_high": high, "p_holm": p, "bound": 0.0}
    assert outcome(pd.Series(AROUND | crossed)) == expected


def test_at_or_above_may_lack_the_margin_and_no_more():
    close = ABOVE | {"low": -0.004, "high": 0.002, "seeds_low": -0.0049, "seeds_high": 0.004}
    assert outcome(pd.Series(close | {"bound": -0.005})) == 1
    assert outcome(pd.Series(close | {"bound": 0.0})) == 0
    assert outcome(pd.Series(BELOW | {"bound": -0.005})) == -1


@pytest.mark.parametrize(
    ("sides", "every", "one"),
    [
        ((ABOVE, ABOVE), "holds", "holds"),
        ((ABOVE, AROUND), "cannot tell", "holds"),
        ((ABOVE, BELOW), "does not hold", "holds"),
        ((AROUND, BELOW), "does not hold", "cannot tell"),
        ((BELOW, BELOW), "does not hold", "does not hold"),
        ((AROUND, AROUND), "cannot tell", "cannot tell"),
    ],
)
def test_a_claim_needs_all_of_its_comparisons_or_one(sides, every, one):
    assert verdicts(rows("C3", *sides))["verdict"].tolist() == [every]
    assert verdicts(rows("C1", *sides))["verdict"].tolist() == [one]


def test_verdicts_are_of_claims_that_have_rows():
    found = verdicts(pd.concat([rows("C6", ABOVE, ABOVE), rows("C3", BELOW, BELOW)]))
    assert found["claim"].tolist() == ["C3", "C6"]
    assert found["text"].tolist() == [CLAIMS["C3"].text, CLAIMS["C6"].text]
    none = rows("C3", ABOVE, ABOVE).assign(claim="base")
    assert list(verdicts(none).columns) == ["claim", "text", "verdict"]
    assert verdicts(none).empty


def test_claims_are_decided_by_models_of_the_presets():
    claims, *_ = families(load_preset("english").models, ISOTROPY)
    assert [*claims] == [*CLAIMS]


def test_families_are_claims_and_every_model_against_the_start_in_scores_and_in_isotropy():
    tasks = ["ir", "ir_isotropy"]  # no test set of similarity
    claims, scores, isotropy = families(["base", "ir_only", "codiemb"], tasks)
    assert claims == {"C7": CLAIMS["C7"].comparisons}
    for family, task in ((scores, "ir"), (isotropy, "ir_isotropy")):
        assert family == {
            "base": [Comparison(model, "base", task) for model in ("ir_only", "codiemb")]
        }
    assert families(["base", "mine"], ["ir"]) == [{"base": [Comparison("mine", "base", "ir")]}]
    assert families(["base"], tasks) == []


def test_models_that_a_claim_wants_are_named_once():
    wanted = lacking(["base", "codiemb"])
    assert wanted["C2"] == ["sts_only", "ir_only"]
    assert wanted["C4"] == ["cosent"]
    assert wanted["C7"] == []
