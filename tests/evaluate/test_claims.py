"""The rule of the verdicts, on rows made up for each of its sides."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from codiemb_lib.core import load_preset
from codiemb_lib.evaluate.claims import (
    ALPHA,
    CLAIMS,
    families,
    lacking,
    outcome,
    verdicts,
)
from codiemb_lib.evaluate.compare import Comparison

MARGIN = 0.005
ABOVE = {"difference": 0.02, "se": 0.004, "df": 30.0, "seeds": 3}
BELOW = {"difference": -0.03, "se": 0.004, "df": 30.0, "seeds": 3}
AROUND = {"difference": 0.001, "se": 0.004, "df": 30.0, "seeds": 3}


def rows(claim: str, *sides: dict) -> pd.DataFrame:
    comparisons = zip(CLAIMS[claim].comparisons(MARGIN), sides, strict=True)
    found = [
        {"claim": claim, "task": c.task, "dataset": dataset, "bound": c.bound} | values
        for c, side in comparisons
        for dataset, values in (("mean", side), ("docs", AROUND))
    ]
    return pd.DataFrame(found)


@pytest.mark.parametrize(
    ("low", "high", "p", "expected"),
    [
        (0.001, 0.03, 0.01, 1),
        (-0.03, -0.001, 0.01, -1),
        (-0.01, 0.03, 0.01, 0),
        (0.1, 0.2, 0.06, 0),
    ],
)
def test_a_comparison_tells_by_its_crossed_interval_and_the_corrected_p(low, high, p, expected):
    row = {"low": low, "high": high, "p_holm": p, "bound": 0.0, "seeds": 2}
    assert outcome(pd.Series(row)) == expected
    assert outcome(pd.Series(row | {"seeds_low": -1, "seeds_high": 1})) == 0  # the older rule


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


def test_a_claim_is_one_test_whose_p_is_that_of_its_weakest_part():
    weak = AROUND | {"difference": 0.008}
    one_sided = stats.t.sf(2, 30)
    yes, no = CLAIMS["C3"].p(rows("C3", ABOVE, weak).iloc[::2])
    assert (yes, no) == pytest.approx((one_sided, 1))
    yes, no = CLAIMS["C1"].p(rows("C1", BELOW, weak).iloc[::2])
    assert (yes, no) == pytest.approx((2 * one_sided, 1 - one_sided))
    told = verdicts(pd.concat([rows("C3", ABOVE, weak), rows("C6", AROUND, AROUND)]))
    assert told["p"].iloc[0] == pytest.approx(4 * one_sided)  # two-sided, of two claims
    alone = verdicts(rows("C3", ABOVE, weak))
    assert alone["p"].item() == pytest.approx(2 * one_sided)


@pytest.mark.parametrize("difference", [0.03, 0.004])  # of the other part from its bound
def test_of_true_nulls_no_more_than_a_twentieth_is_told(difference):
    """An intersection-union test of two parts of which one lies exactly at its bound."""
    rng, told = np.random.default_rng(4), 0
    side = AROUND | {"df": 1e6}
    means = rows("C5", side, side).iloc[::2].reset_index(drop=True)
    for _ in range(2000):
        means["difference"] = rng.normal([-MARGIN, -MARGIN + difference], 0.004)
        told += 2 * min(CLAIMS["C5"].p(means)) < ALPHA
    assert told / 2000 < 0.05 + 3 * (0.05 * 0.95 / 2000) ** 0.5


def test_as_good_may_lack_the_margin_and_better_may_not():
    close = AROUND | {"difference": -0.0005, "se": 0.001}
    assert verdicts(rows("C5", close, close))["verdict"].item() == "holds"
    assert verdicts(rows("C3", close, close))["verdict"].item() == "cannot tell"
    assert [c.bound for c in CLAIMS["C4"].comparisons(0.0075)] == [-0.0075, 0]


def test_of_two_models_that_are_one_and_the_same_nothing_is_told():
    same = AROUND | {"difference": 0.0, "se": 0.0}
    assert verdicts(rows("C6", same, same))["p"].item() == 1
    assert verdicts(rows("C13", same, same))["verdict"].item() == "holds"


def test_one_seed_cannot_tell():
    sure = ABOVE | {"se": 1e-6}
    assert verdicts(rows("C3", sure, sure))["verdict"].item() == "holds"
    alone = sure | {"seeds": 1}
    assert verdicts(rows("C3", alone, sure))["verdict"].item() == "cannot tell"
    told = {"low": 0.1, "high": 0.2, "p_holm": 0.0, "bound": 0.0}
    assert [outcome(pd.Series(told | {"seeds": seeds})) for seeds in (1, 2)] == [0, 1]


def test_verdicts_are_of_claims_that_have_rows():
    found = verdicts(pd.concat([rows("C6", ABOVE, ABOVE), rows("C3", BELOW, BELOW)]))
    assert found["claim"].tolist() == ["C3", "C6"]
    assert found["text"].tolist() == [CLAIMS["C3"].text, CLAIMS["C6"].text]
    none = rows("C3", ABOVE, ABOVE).assign(claim="base")
    assert list(verdicts(none).columns) == ["claim", "text", "verdict", "p"]
    assert verdicts(none).empty


def test_claims_are_decided_by_models_of_the_study():
    models = {*load_preset("study").models, "chosen"}
    assert not any(lacking(models).values())


def test_families_are_claims_and_every_model_against_the_start_by_kind():
    tasks = ["ir", "ir_isotropy", "ir_unseen"]  # no test set of similarity
    claims, *start = families(["base", "ir_only", "codiemb"], tasks, MARGIN)
    assert [*claims] == ["C7"]
    assert claims["C7"] == CLAIMS["C7"].comparisons(MARGIN)
    for family, task in zip(start, ["ir", "ir_unseen", "ir_isotropy"], strict=True):
        assert family == {
            "base": [Comparison(model, "base", task) for model in ("ir_only", "codiemb")]
        }
    own = [{"base": [Comparison("mine", "base", "ir")]}]
    assert families(["base", "mine"], ["ir"], MARGIN) == own
    assert families(["base"], tasks, MARGIN) == []


def test_models_that_a_claim_wants_are_named_once():
    wanted = lacking(["base", "codiemb"])
    assert wanted["C2"] == ["sts_only", "ir_only"]
    assert wanted["C4"] == ["cosent"]
    assert wanted["C7"] == []
