"""The printed table against means computed by hand, and the README against the committed rows."""

import pandas as pd
import pytest

from codiemb_lib.config import project_root
from codiemb_lib.tables import results_table, to_markdown


def scores(**changes):
    rows = [
        ("codiemb", seed, task, dataset, "test", metric, value + seed / 100)
        for seed in (0, 1)
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


def test_gaps_and_several_presets_are_refused():
    rows = scores()
    with pytest.raises(ValueError, match="found a gap for"):
        results_table(rows.drop(index=0))
    rows.loc[0, "preset"] = "smoke"
    with pytest.raises(ValueError, match="one preset"):
        results_table(rows)


def test_markdown_has_a_line_a_row():
    table = pd.DataFrame({"model": ["a"], "IR mean": ["60.50 ± 0.50"]})
    assert to_markdown(table) == "| model | IR mean |\n| --- | --- |\n| a | 60.50 ± 0.50 |\n"


def test_the_readme_shows_the_table_of_the_committed_rows():
    rows = pd.read_csv(project_root() / "figures" / "mini" / "trade_off.csv")
    readme = (project_root() / "README.md").read_text(encoding="utf-8")
    assert to_markdown(results_table(rows)) in readme
