"""Candidates of a fusion study against scores written by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from codiemb_lib.core.runs import t_interval
from codiemb_lib.fuse.ranking import candidates, fixed_settings

SCORES = {  # by method and candidate: IR of three seeds; STS is 0.1 less
    ("uniform", 0): (0.40, 0.50, 0.60),
    ("uniform", 1): (0.50, 0.60, 0.70),
    ("delta", 0): (0.90, 0.50, 0.60),  # far ahead for one seed, behind for two
    ("delta", 1): (0.53, 0.63, 0.74),
    ("greedy", 0): (0.99, 0.99, 0.99),
}
PLAIN = ("uniform", 1)  # wherever it stands in the list


def study(seeds=3) -> pd.DataFrame:
    """Rows as notebook 04 leaves them: two IR sets around the score, an STS set, test for picks."""
    rows = []
    for (method, candidate), values in SCORES.items():
        looks = 5 if method == "greedy" else 1
        for seed, value in enumerate(values[:seeds]):
            best = max(v[seed] for (name, _), v in SCORES.items() if name == method)
            for task, dataset, metric, found in [
                ("ir", "docs", "ndcg@10", value - 0.02),
                ("ir", "news", "ndcg@10", value + 0.02),
                ("ir", "news", "recall@100", 0.1),
                ("sts", "words", "spearman", value - 0.1),
            ]:
                row = ("mini", method, seed, task, dataset, metric)
                settings = "as it is" if (method, candidate) == PLAIN else f"power {candidate}"
                dev = (candidate, settings, looks, value == best, "dev")
                rows.append((*row, found, method, *dev))
                if value == best:
                    test = (np.nan, np.nan, np.nan, True, "test")
                    rows.append((*row, found - 0.2, method, *test))
    columns = "preset variant seed task dataset metric value method candidate settings looks chosen"
    return pd.DataFrame(rows, columns=[*columns.split(), "split"])


def test_a_candidate_has_the_mean_of_its_dev_sets_at_each_seed():
    found = candidates(study()).set_index(["method", "candidate", "seed"])
    assert len(found) == 3 * len(SCORES)
    row = found.loc["delta", 1, 2]
    assert (row["ir"], row["sts"], row["mean"]) == pytest.approx((0.74, 0.64, 0.69))
    assert (row["settings"], row["looks"], row["chosen"]) == ("power 1", 1, True)


def test_fixed_settings_are_those_of_the_studys_own_runs():
    own = study()
    both = pd.concat([own, own.assign(method="pairs." + own["method"], value=own["value"] + 0.1)])
    pd.testing.assert_frame_equal(fixed_settings(candidates(both)), fixed_settings(candidates(own)))


def test_fixed_settings_are_ranked_by_their_mean_over_seeds_and_held_against_the_soup():
    found = fixed_settings(candidates(study()))
    assert [*zip(found["method"], found["settings"], strict=True)] == [
        ("delta", "power 0"),
        ("delta", "power 1"),
        ("uniform", "as it is"),
        ("uniform", "power 0"),
    ]
    first, second = found.iloc[0], found.iloc[1]
    assert first["mean"] == pytest.approx(np.mean([0.85, 0.45, 0.55]))
    assert first["lead"] == pytest.approx(np.mean([0.4, -0.1, -0.1]))
    assert (first["low"], first["high"]) == pytest.approx(t_interval([0.4, -0.1, -0.1]))
    assert first["low"] < 0 < second["low"]  # the first leads by one lucky seed
    assert found.loc[2, ["lead", "low", "high"]].tolist() == [0, 0, 0]
    assert (found["seeds"] == 3).all()


def test_one_seed_has_no_interval():
    found = fixed_settings(candidates(study(seeds=1)))
    assert np.isneginf(found["low"]).all()


def test_a_missing_seed_and_a_missing_soup_are_refused():
    tried = candidates(study())
    with pytest.raises(ValueError, match=r"at each of the seeds \[0, 1, 2\].*\('delta', 0.0?\): 2"):
        fixed_settings(tried.drop(index=tried.index[tried["method"] == "delta"][0]))
    with pytest.raises(ValueError, match="expected the uniform soup"):
        fixed_settings(tried[tried["method"] != "uniform"])
