"""The printed table against means computed by hand, and the README against the committed rows."""

import numpy as np
import pandas as pd
import pytest

from codiemb_lib import evaluate
from codiemb_lib.core.files import project_root
from codiemb_lib.draw.frame import FigureError
from codiemb_lib.draw.scores import cost_scores
from codiemb_lib.draw.tables import (
    claims_table,
    merges_table,
    results_table,
    to_markdown,
)


def scores(seeds=2, **changes):
    rows = [
        ("codiemb", seed, task, dataset, "test", metric, value + seed / 100)
        for seed in range(seeds)
        for task, dataset, metric, value in [
            ("ir", "docs", "ndcg@10", 0.5),
            ("ir", "news", "ndcg@10", 0.7),
            ("ir", "news", "recall@100", 0.99),
            ("sts", "words", "spearman", 0.4),
        ]
    ]
    names = ["variant", "seed", "task", "dataset", "split", "metric", "value"]
    return pd.DataFrame(rows, columns=names).assign(preset="mini", **changes)


def test_means_over_seeds_and_sets_with_half_the_range():
    (line,) = results_table(scores()).to_dict("records")
    assert line == {
        "model": "CoDiEmb",
        "seeds": 2,
        "IR mean": "60.50 ± 0.50",
        "STS mean": "40.50 ± 0.50",
        "docs": "50.50",
        "news": "70.50",
        "words": "40.50",
    }


def test_three_seeds_have_the_interval_of_student_and_one_has_none():
    (line,) = results_table(scores(seeds=3)).to_dict("records")
    assert line["IR mean"] == "61.00 ± 2.48"  # 4.303 * 1 / sqrt(3)
    (line,) = results_table(scores(seeds=1)).to_dict("records")
    assert line["IR mean"] == "60.00"


def comparisons(**changes):
    row = {
        "claim": "base",
        "variant": "codiemb",
        "reference": "base",
        "task": "ir",
        "dataset": "news",
        "difference": 0.02,
        "low": 0.01,
        "high": 0.031,
        "bound": 0.0,
        "p_holm": 0.0123,
        "seeds_low": 0.005,
        "seeds_high": 0.035,
        "seeds": 3,
    }
    return pd.DataFrame([row | changes])


def test_what_differs_from_the_base_is_marked():
    (line,) = results_table(scores(), comparisons()).to_dict("records")
    assert line["news"] == "70.50†"
    assert [value for value in line.values() if "†" in str(value)] == ["70.50†"]
    (line,) = results_table(scores(), comparisons(dataset="mean")).to_dict("records")
    assert line["IR mean"] == "60.50† ± 0.50"
    for other in (
        {"p_holm": 0.06},
        {"claim": "C7"},
        {"task": "sts"},
        {"variant": "mixed"},
    ):
        assert results_table(scores(), comparisons(**other)).equals(results_table(scores()))


def test_claims_stand_with_verdict_and_evidence():
    rows = pd.concat(
        [
            comparisons(claim="C7", dataset="mean", bound=-0.005),
            comparisons(claim="C7", dataset="mean", task="sts", bound=-0.005),
            comparisons(claim="C7"),
            comparisons(dataset="mean"),
        ]
    )
    (line,) = claims_table(rows).to_dict("records")
    claim, verdict, evidence = line.values()
    assert claim.startswith("C7: joint training harms neither")
    assert verdict == "**holds**"
    one, other = evidence.split("; ")
    assert one == (
        "IR, CoDiEmb less base encoder: +2.00 [+1.00, +3.10], [+0.50, +3.50], "
        "p = 0.012 against -0.5"
    )
    assert other.startswith("STS, CoDiEmb less base encoder")


def test_a_claim_by_the_crossed_rule_has_one_interval_a_difference_and_one_p():
    both = {"low": 0.004, "high": 0.036, "se": 0.008, "df": 30.0}
    one = comparisons(claim="C7", dataset="mean", bound=-0.005, **both)
    one = one.drop(columns=["seeds_low", "seeds_high"])
    rows = pd.concat([one, one.assign(task="sts")])
    (line,) = claims_table(rows).to_dict("records")
    _, verdict, evidence = line.values()
    p = evaluate.verdicts(rows)["p"].item()
    assert p < 0.05
    assert verdict == f"**holds**, p = {p:.2g}"
    ir, _ = evidence.split("; ")
    assert ir == "IR, CoDiEmb less base encoder: +2.00 [+0.40, +3.60] against -0.5"
    (line,) = claims_table(rows.assign(seeds=1)).to_dict("records")
    assert "[+0.40, +3.60], one seed against -0.5" in [*line.values()][-1]
    assert line["verdict"] == "**cannot tell**, p = 1"


def test_evidence_on_the_space_states_its_sign():
    row = {"claim": "C8", "dataset": "mean", "task": "sts_isotropy", "reference": "mixed"}
    (line,) = claims_table(comparisons(**row)).to_dict("records")
    assert [*line.values()][-1] == (
        "minus mean cosine of STS texts, CoDiEmb less mixed batches: "
        "+2.00 [+1.00, +3.10], [+0.50, +3.50], p = 0.012"
    )


def test_one_seed_has_no_interval_in_the_evidence():
    endless = {"seeds": 1, "seeds_low": -np.inf, "seeds_high": np.inf}
    (line,) = claims_table(comparisons(claim="C7", dataset="mean", **endless)).to_dict("records")
    assert "[+1.00, +3.10], [one seed], p" in [*line.values()][-1]
    assert line["verdict"] == "**cannot tell**"


def picks(**means):
    """Rows of a study's picks at two seeds: dev means by method, and test 10 points lower."""
    rows = []
    for method, mean in means.items():
        for seed in (0, 1):
            settings = f"power {1 + (seed if method == 'delta_layer' else 0)}"
            for split, lower in (("dev", 0), ("test", 0.1)):
                for task, metric, value in (("ir", "ndcg@10", 0.1), ("sts", "spearman", -0.1)):
                    found = mean + value - lower + seed / 100
                    rows.append((method, seed, split, task, "a", metric, found, settings))
    names = ["variant", "seed", "split", "task", "dataset", "metric", "value", "settings"]
    table = pd.DataFrame(rows, columns=names).assign(preset="mini", candidate=0, looks=1)
    return table.assign(method=table["variant"], chosen=True)


def test_merges_stand_by_their_mean_on_dev_with_what_they_are_worth_on_test():
    row = {"claim": "uniform", "variant": "delta_layer", "reference": "uniform", "dataset": "mean"}
    rows = pd.concat([comparisons(**row), comparisons(**row, task="sts", difference=-0.01)])
    study = picks(uniform=0.5, delta_tensor=0.4, ties=0.7, delta_layer=0.6)
    table = merges_table(study, rows).set_index("method")
    assert [*table.index] == ["ties", "delta layer", "uniform", "delta tensor"]
    assert table["won"].tolist() == ["all", "delta-guided", "", ""]
    line = table.loc["delta layer"].to_dict()
    assert (line["dev IR"], line["dev STS"], line["dev mean"]) == ("70.50", "50.50", "60.50")
    assert (line["test IR"], line["test STS"]) == ("60.50", "40.50")
    assert line["picked"] == "power 1 (1); power 2 (1)"
    assert table.loc["ties", "picked"] == "power 1 (2)"
    heading = "test {} less soup [texts], [seeds], p".format
    assert line[heading("IR")] == "+2.00 [+1.00, +3.10], [+0.50, +3.50], p = 0.012"
    assert line[heading("STS")].startswith("-1.00 ")
    assert table.loc["uniform", heading("IR")] == ""


def test_the_best_merge_of_all_may_be_of_the_delta_family():
    table = merges_table(picks(uniform=0.5, delta_layer=0.6), comparisons())
    assert table["won"].tolist() == ["all, delta-guided", ""]


def test_gaps_are_refused():
    with pytest.raises(
        FigureError, match=r"found variant codiemb, seed 0 without \[\('ir', 'docs'\)\]"
    ):
        results_table(scores().drop(index=0))


def test_markdown_has_a_line_a_row():
    table = pd.DataFrame({"model": ["a"], "IR mean": ["60.50 ± 0.50"]})
    assert to_markdown(table) == "| model | IR mean |\n| --- | --- |\n| a | 60.50 ± 0.50 |\n"


@pytest.mark.parametrize("preset", ["mini", "english"])
def test_tables_beside_the_figures_are_those_of_their_rows(preset):
    folder = project_root() / "figures" / preset
    stems = ("trade_off", "comparisons", "study", "study_comparisons")
    rows, compared, study, merged = (pd.read_csv(folder / f"{stem}.csv") for stem in stems)
    tables = {
        "results": results_table(rows, compared),
        "claims": claims_table(compared),
        "merges": merges_table(study, merged),
    }
    for stem, table in tables.items():
        assert (folder / f"{stem}.md").read_text(encoding="utf-8") == to_markdown(table)


def test_no_cell_becomes_html_or_another_cell():
    table = pd.DataFrame({"<b>": ["<img src=x onerror=alert(1)>", "a | b"]})
    assert to_markdown(table).splitlines() == [
        "| &lt;b> |",
        "| --- |",
        "| &lt;img src=x onerror=alert(1)> |",
        r"| a \| b |",
    ]


def costs_and_scores():
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
    rows = cost_scores(*costs_and_scores(), {"soup": ["a", "b"]}).set_index("variant")
    assert rows["tokens"].to_dict() == {"base": 0, "a": 10, "soup": 32}
    assert rows["seconds"].to_dict() == {"base": 0, "a": 1.5, "soup": 6.5}
    assert rows["value"].tolist() == pytest.approx([0.5] * 3)
    assert set(rows["task"]) == {"ir"}
