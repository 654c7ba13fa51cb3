from __future__ import annotations

import pandas as pd
import pytest
import torch

from codiemb_lib.core.merge import FusionStudy, Merge
from codiemb_lib.core.preset import PresetError, load_preset, preset_path
from codiemb_lib.fuse.merging import merge_weights
from codiemb_lib.fuse.study import (
    merged_variants,
    movements,
    path,
    study_of,
    try_on_dev,
)

BASE = {"encoder.layer.0.dense.weight": torch.zeros(2), "pooler.weight": torch.ones(1)}
RUNS = {
    "a": BASE | {"encoder.layer.0.dense.weight": torch.tensor([3.0, 4.0])},
    "b": BASE | {"encoder.layer.0.dense.weight": torch.tensor([0.0, 1.0])},
    "c": BASE | {"encoder.layer.0.dense.weight": torch.tensor([-6.0, 0.0])},
}


def toward(*target: float):
    """A dev score that is better the nearer the weights are to a target; IR and STS alike."""
    seen = []

    def scores(model):
        found = model["encoder.layer.0.dense.weight"]
        seen.append(found)
        value = -float((found - torch.tensor(target)).norm())
        rows = [("ir", "x", "ndcg@10", value), ("sts", "y", "spearman", value)]
        return pd.DataFrame(rows, columns=["task", "dataset", "metric", "value"])

    return scores, seen


def test_the_pick_of_each_method_is_its_best_on_dev():
    candidates = {"uniform": ({}, {"scale": 0.5}), "delta": ({"power": 0}, {"power": 4})}
    study = FusionStudy(ingredients=("a", "b"), candidates=candidates)
    scores, seen = toward(3.0, 4.0)  # where `a` is, which moved farthest
    rows, picks = try_on_dev(BASE, RUNS, study, scores)
    assert picks["uniform"].scale == 1.0
    assert picks["delta"].options() == {"power": 4}
    assert len(seen) == rows["looks"].groupby([rows["method"], rows["candidate"]]).first().sum()
    chosen = rows[rows["chosen"]].groupby("method")["value"].first()
    assert chosen.to_dict() == rows.groupby("method")["value"].max().to_dict()
    assert set(rows.loc[rows["method"] == "delta", "settings"]) == {"power 0", "power 4"}


def test_the_greedy_soup_is_told_by_what_it_kept_and_how_often_it_looked():
    study = FusionStudy(ingredients=("a", "b", "c"), candidates={"greedy": ({},)})
    scores, seen = toward(1.5, 2.5)  # the mean of a and b
    rows, picks = try_on_dev(BASE, RUNS, study, scores)
    assert picks["greedy"].method == "uniform"
    assert set(picks["greedy"].ingredients) == {"a", "b"}
    merged = merge_weights(BASE, RUNS, picks["greedy"])
    assert merged["encoder.layer.0.dense.weight"].tolist() == [1.5, 2.5]
    assert rows["looks"].unique().tolist() == [5]  # three runs alone, two soups
    assert len(seen) == 6  # and the row of its own


def test_a_candidate_may_name_ingredients_of_its_own():
    slerp = {"ingredients": ("a", "c"), "t": 0.0}
    study = FusionStudy(ingredients=("a", "b", "c"), candidates={"slerp": (slerp,)})
    rows, picks = try_on_dev(BASE, RUNS, study, toward(0.0, 0.0)[0])
    assert rows["settings"].unique().tolist() == ["t 0, of a + c"]
    merged = merge_weights(BASE, RUNS, picks["slerp"])
    assert merged["encoder.layer.0.dense.weight"].tolist() == pytest.approx([3.0, 4.0])


def test_movements_are_norms_and_weights_of_the_trained_tensors():
    rows = movements(BASE, RUNS, Merge(ingredients=("a", "b"), method="delta", power=1))
    assert rows["tensor"].unique().tolist() == ["encoder.layer.0.dense.weight"]  # not the pooler
    assert rows["delta_norm"].tolist() == pytest.approx([5.0, 1.0])
    assert rows["weight"].tolist() == pytest.approx([5 / 6, 1 / 6])
    soup = movements(BASE, RUNS, Merge(ingredients=("a", "b"), method="uniform"))
    assert soup["weight"].tolist() == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize(("source", "weights"), [("base", [0.0, 0.0]), ("b", [0.0, 1.0])])
def test_kept_tensors_count_in_no_norm_and_show_where_they_come_from(source, weights):
    far, near = "encoder.layer.0.dense.weight", "encoder.layer.1.dense.weight"
    base = {far: torch.zeros(2), near: torch.zeros(1)}
    runs = {
        "a": {far: torch.tensor([3.0, 4.0]), near: torch.ones(1)},
        "b": {far: torch.zeros(2), near: torch.ones(1)},
    }
    merge = Merge(
        ingredients=("a", "b"), method="delta", granularity="model", keep={"*.0.*": source}
    )
    rows = movements(base, runs, merge).set_index("tensor")
    assert rows.loc[near, "weight"].tolist() == pytest.approx([0.5, 0.5])
    assert rows.loc[far, "weight"].tolist() == weights
    assert rows.loc[far, "delta_norm"].tolist() == [5.0, 0.0]


def test_candidates_that_keep_other_tensors_have_other_names():
    candidates = {"uniform": ({}, {"keep": {"*dense*": "a"}})}
    study = FusionStudy(ingredients=("a", "b"), candidates=candidates)
    rows, _ = try_on_dev(BASE, RUNS, study, toward(3.0, 4.0)[0])
    assert rows["settings"].unique().tolist() == ["as it is", "*dense* of a"]
    assert rows.loc[rows["chosen"], "settings"].unique().tolist() == ["*dense* of a"]


def test_the_path_starts_at_the_first_run_and_ends_at_the_second():
    steps = list(path(RUNS["a"], RUNS["c"], 4))
    assert [t for t, _ in steps] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    found = [model["encoder.layer.0.dense.weight"].tolist() for _, model in steps]
    assert found[0] == [3.0, 4.0]
    assert found[-1] == [-6.0, 0.0]
    assert found[1] == pytest.approx([0.0, 8 / 3], abs=1e-6)


def test_a_preset_without_a_study_compares_soup_and_delta_over_its_fusions_runs():
    preset = load_preset("smoke").model_copy(update={"fusion_study": None})
    study = study_of(preset)
    assert [*study.candidates] == ["uniform", "delta"]
    assert merged_variants(preset) == [*study.ingredients]
    assert {"ir_only", "sts_only"} < set(
        merged_variants(load_preset("smoke"))
    )  # the ends of the path


def test_a_study_of_unknown_runs_is_refused(tmp_path):
    text = preset_path("smoke").read_text().replace("path: [ir_only,", "path: [ir_olny,")
    file = tmp_path / "smoke.yaml"
    file.write_text(text)
    with pytest.raises(PresetError, match=r"fusion_study: .*found \['ir_olny'\]"):
        load_preset(str(file))
