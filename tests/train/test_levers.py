"""What a variant and the training settings can change of a run, each by what it means."""

from __future__ import annotations

import re
from importlib import import_module

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
import yaml

from codiemb_lib.app.cli import main
from codiemb_lib.core import ObjectiveSettings, PresetError, TaskWeights, load_preset
from codiemb_lib.data import Record, load_datasets, write_jsonl
from codiemb_lib.model import Encoder
from codiemb_lib.train import loop, objectives
from codiemb_lib.train.batches import OptimizerSteps, make_batch
from codiemb_lib.train.loop import training_records
from codiemb_lib.train.sampling import PairedTaskPlan, PlannedBatch, SingleTaskPlan
from codiemb_lib.train.step import batch_loss, needs_middle
from tests.made_up import PROMPTS, ir_records, sts_records
from tests.train.conftest import PRESET, change, manifest, run, weights
from tests.train.test_step import embeddings

RECORDS = ir_records(20, dataset="ir") + sts_records(20, dataset="sts")
SETTINGS = ObjectiveSettings(positives=2, negatives=1)


def batch_of(task, places, sts_objective="codiemb", shards=1):
    planned = PlannedBatch(task, "", tuple(map(tuple, np.array_split(places, shards))))
    generator = np.random.default_rng(0)
    how = {"sts_objective": sts_objective}
    return make_batch(planned, RECORDS, PROMPTS, SETTINGS, generator, **how)


def by_text(batch, seed=0):
    """Embeddings that hang on the texts alone, whatever batch they stand in."""
    rows = []
    for text in batch.texts:
        generator = torch.Generator().manual_seed(seed + sum(map(ord, "".join(text))))
        rows.append(torch.randn(8, generator=generator))
    return F.normalize(torch.stack(rows), dim=1)


def variants(project, **named):
    """The preset with further variants, in its file too."""
    content = yaml.safe_load((project / PRESET).read_text())
    content["variants"] |= named
    (project / PRESET).write_text(yaml.safe_dump(content))
    return load_preset("tiny")


def log_of(folder):
    return pd.read_csv(folder / "log.csv")


def assert_same_weights(first, second, tolerance=0.0):
    one, other = weights(first), weights(second)
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=tolerance, atol=tolerance)


# Batches with several parts


@pytest.mark.parametrize("shards", [1, 2])
def test_a_mixed_batch_with_own_losses_is_the_weighted_sum_of_its_two_parts(shards):
    places = [*range(6), *range(20, 30)]
    weights = TaskWeights(ir=0.5, sts=3.0)
    both = batch_of("mixed", places, shards=shards)
    parts = batch_of("ir", places[:6]), batch_of("sts", places[6:], shards=shards)
    assert needs_middle(both, SETTINGS, "codiemb")
    assert {*both.texts} == {*parts[0].texts, *parts[1].texts}
    found = batch_loss(both, by_text(both), by_text(both, 1), settings=SETTINGS, weights=weights)
    ir, sts = (batch_loss(b, by_text(b), by_text(b, 1), settings=SETTINGS) for b in parts)
    torch.testing.assert_close(found.total, 0.5 * ir.total + 3 * sts.total)
    assert found.components == pytest.approx(ir.components | sts.components)


def test_a_part_without_records_adds_nothing():
    alone, single = batch_of("mixed", range(6)), batch_of("ir", range(6))
    found = batch_loss(alone, by_text(alone), settings=SETTINGS)
    torch.testing.assert_close(found, batch_loss(single, by_text(single), settings=SETTINGS))
    pairs, few = batch_of("mixed", [*range(6), 20], shards=2), batch_of("sts", [20])
    assert not needs_middle(alone, SETTINGS, "codiemb")
    assert needs_middle(pairs, SETTINGS, "codiemb")  # of one rank only
    found = batch_loss(pairs, by_text(pairs), by_text(pairs), settings=SETTINGS).total
    expected = batch_loss(few, by_text(few), by_text(few), settings=SETTINGS).total
    rest = batch_loss(single, by_text(single), settings=SETTINGS).total
    torch.testing.assert_close(found, expected + rest)


def test_info_nce_alone_takes_pairs_as_a_mixed_batch_does():
    single, mixed = (batch_of(task, range(20, 40), "info_nce") for task in ("sts", "mixed"))
    assert single.texts == mixed.texts
    for part in ("queries", "positives", "negatives", "answers", "scores"):
        np.testing.assert_array_equal(getattr(single, part), getattr(mixed, part))
    high = [r for r in RECORDS[20:] if r.score >= SETTINGS.mixed_anchor_score]
    assert len(single.queries) == len(high) < 20
    assert not needs_middle(single, SETTINGS, "info_nce")


def test_a_passage_is_no_negative_of_any_query_that_it_answers_and_its_neighbour_is():
    records = [
        Record("ir", "one", ("shared", "first"), dataset="ir"),
        Record("ir", "two", ("shared", "second"), dataset="ir"),
    ]
    planned = PlannedBatch("ir", "ir", ((0, 1),))
    batch = make_batch(planned, records, PROMPTS, SETTINGS, np.random.default_rng(0))
    final = embeddings(batch)
    row = {text: final[i] for i, (_, text) in enumerate(batch.texts)}
    terms = []
    for slot in range(2):
        drawn = [batch.texts[batch.positives[j, slot]][1] for j in range(2)]
        for i, query in enumerate(("one", "two")):
            rivals = [t for j, t in enumerate(drawn) if j == i or t != "shared"]
            logits = torch.stack([row[query] @ row[t] for t in rivals]) / SETTINGS.temperature
            terms.append(logits.logsumexp(0) - row[query] @ row[drawn[i]] / SETTINGS.temperature)
    found = batch_loss(batch, final, settings=SETTINGS).total
    torch.testing.assert_close(found, torch.stack(terms).mean())


def test_info_nce_on_the_last_layer_is_a_term_of_its_own_weight():
    batch = batch_of("sts", range(20, 40))
    states = embeddings(batch), embeddings(batch, 1)
    settings = SETTINGS.model_copy(update={"info_nce_final": 0.3, "final_anchor_score": 0.5})
    plain, more = (batch_loss(batch, *states, settings=s) for s in (SETTINGS, settings))
    final, gold = states[0], torch.from_numpy(batch.scores)
    pairs = final[batch.queries], final[batch.positives[:, 0]]
    term = objectives.anchored_info_nce(*pairs, gold, anchor_score=0.5)
    torch.testing.assert_close(more.total - plain.total, 0.3 * term)
    assert more.components["info_nce_final"] == pytest.approx(term.item())


# Teachers


def test_a_teacher_of_retrieval_is_followed_by_the_divergence_of_its_ranking():
    batch = batch_of("ir", range(6))
    final, taught = by_text(batch), torch.cat([by_text(batch, 5), by_text(batch, 7)], dim=1)
    loss = batch_loss(batch, final, settings=SETTINGS, taught={"ir": taught}).total
    passages = sorted({*batch.positives.ravel(), *batch.negatives})
    terms = []
    for query in batch.queries:
        student, teacher = (
            torch.softmax(torch.tensor([float(s[query] @ s[p]) for p in passages]) / 0.02, dim=0)
            for s in (final, F.normalize(taught, dim=1))
        )
        terms.append((teacher * (teacher.log() - student.log())).nansum())
    torch.testing.assert_close(loss, torch.stack(terms).mean(), rtol=1e-4, atol=1e-4)
    own = batch_loss(batch, final, settings=SETTINGS, taught={"ir": final})
    assert own.total.item() == pytest.approx(0, abs=1e-6)


def test_a_teachers_cosines_take_the_place_of_scores():
    batch = batch_of("sts", range(20, 40))
    final, taught = by_text(batch), by_text(batch, 3)
    left, right = taught[batch.queries], taught[batch.positives[:, 0]]
    rated = batch.scores.copy()
    batch.scores[:] = (left * right).sum(1).clamp(min=0)
    none = SETTINGS.model_copy(update={"info_nce_mid": 0.0})
    expected = batch_loss(batch, final, settings=none)
    batch.scores[:] = rated
    middle = by_text(batch, 4)
    found = batch_loss(batch, final, middle, settings=SETTINGS, taught={"sts": taught})
    torch.testing.assert_close(found.total, expected.total)


def test_a_student_trains_on_what_its_teachers_did_not_and_has_them_trained_first(project):
    taught = {"plan": "paired", "teachers": {"ir": "ir_only", "sts": "codiemb"}}
    preset = variants(project, student=taught)
    content = yaml.safe_load((project / PRESET).read_text())
    content["datasets"] = [{"name": name, "train": 24} for name in ("ir", "sts")]
    (project / PRESET).write_text(yaml.safe_dump(content))
    preset = change(project, max_steps=2)
    folder = run(preset, "student")
    first = manifest(folder)["fingerprint"]
    runs = folder.parents[1]
    assert {path.parents[1].name for path in runs.glob("*/seed-0/manifest.json")} == {
        "student",
        "ir_only",
        "codiemb",
    }
    log = log_of(folder)
    assert {"distilled_info_nce", "pearson"} <= {*log.columns}
    assert "info_nce_mid" not in log
    # Another teacher is another student.
    content["variants"]["ir_only"] = {"tasks": ["ir"], "learning_rate": 0.01}
    (project / PRESET).write_text(yaml.safe_dump(content))
    assert manifest(run(change(project, max_steps=2), "student"))["fingerprint"] != first


def test_records_of_a_student_are_those_that_the_sample_left_out(project):
    content = yaml.safe_load((project / PRESET).read_text())
    content["datasets"] = [{"name": name, "train": 24} for name in ("ir", "sts")]
    content["variants"]["student"] = {"teachers": {"ir": "ir_only", "sts": "codiemb"}}
    (project / PRESET).write_text(yaml.safe_dump(content))
    preset = load_preset("tiny")
    sets = load_datasets(preset)
    labelled = training_records(preset, sets, 0, preset.variant("codiemb"))
    others = training_records(preset, sets, 0, preset.variant("student"))
    ids = [{(r.dataset, r.query, r.positives) for r in of} for of in (labelled, others)]
    assert (len(labelled), len(others)) == (48, 32)
    assert not ids[0] & ids[1]
    assert any(record.negatives for record in labelled)
    assert not any(record.negatives for record in others)


def test_nobody_trains_on_a_set_of_which_no_record_is_to_be_trained_on(project):
    """A student neither, also where the set has no training split."""
    variants(project, student={"teachers": {"ir": "ir_only", "sts": "codiemb"}})
    content = yaml.safe_load((project / PRESET).read_text())
    content["datasets"] = [{"name": "ir", "train": 0}, {"name": "sts", "train": 24}]
    content["datasets"] += [{"name": "more", "train": 0, "dev": 0}]
    (project / PRESET).write_text(yaml.safe_dump(content))
    preset = load_preset("tiny")
    sets = load_datasets(preset)
    for name in ("codiemb", "student"):
        found = training_records(preset, sets, 0, preset.variant(name))
        assert {record.dataset for record in found} == {"sts"}


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"plan": "mixed"}, "expected `sts_objective: info_nce`, one InfoNCE"),
        ({"plan": "paired", "balance": "equal"}, "a paired plan has its own balance"),
        ({"plan": "paired", "tasks": ["ir"]}, "takes both tasks"),
        ({"teachers": {"ir": "ir_only"}}, "lacking {'sts'}"),
        (
            {"sts_objective": "info_nce", "teachers": {"ir": "ir_only", "sts": "codiemb"}},
            "expected a `sts_objective` of scores",
        ),
        (
            {"plan": "mixed", "sts_objective": "info_nce", "weights": {"sts": 2.0}},
            "expected a loss for each task",
        ),
        ({"gradients": "plain"}, "expected `plan: paired`"),
        ({"teachers": {"ir": "nobody", "sts": "codiemb"}}, "unknown teacher 'nobody'"),
        ({"teachers": {"ir": "new", "sts": "codiemb"}}, "unknown teacher 'new'"),
    ],
)
def test_what_cannot_be_meant_is_refused(project, settings, found):
    with pytest.raises(PresetError, match=found):
        variants(project, new=settings)


# The paired step


def test_a_paired_plan_takes_both_tasks_by_turns_as_often_as_equal_shares():
    sizes = {"ir": 4, "sts": 5}
    plan, equal = (
        PairedTaskPlan(RECORDS, batch_sizes=sizes),
        SingleTaskPlan(RECORDS, batch_sizes=sizes, balance="equal"),
    )
    steps = plan.steps(1, seed=3, world_size=1)
    assert [step.task for step in steps] == ["ir", "sts"] * (len(steps) // 2)
    assert len(steps) == plan.length() == equal.length()
    assert {*steps} == {*equal.steps(1, seed=3)}


def test_a_paired_step_keeps_the_books_of_both_tasks(project):
    log = log_of(run(load_preset("tiny"), "paired"))
    assert len(log) == 10  # 2 epochs of 5 batches of each task
    assert set(log["task"]) == {"paired"}
    assert (
        log[["info_nce", "pearson", "gradient_norm_ir", "gradient_norm_sts"]]
        .notna()
        .to_numpy()
        .all()
    )
    assert (log["gradient_norm"] <= 2).all()  # of two unit vectors


def test_in_a_paired_step_unit_gradients_undo_the_scale_of_a_loss_and_plain_ones_do_not(project):
    scaled = {"objective": {"pearson": 8.0, "rank_kl": 20.0, "pro": 2.0, "info_nce_mid": 4.0}}
    named = {
        f"{gradients}_{size}": {"plan": "paired", "gradients": gradients, **more}
        for gradients in ("unit", "plain")
        for size, more in {"one": {}, "four": scaled, "weight": {"weights": {"sts": 4.0}}}.items()
    }
    preset = variants(project, **named)
    preset = change(project, max_steps=3, clip_norm=None, keep="last")
    runs = {name: run(preset, name) for name in named}
    assert_same_weights(runs["unit_one"], runs["unit_four"], 1e-5)
    assert_same_weights(runs["plain_four"], runs["plain_weight"], 1e-5)
    for first, second in (("unit_one", "unit_weight"), ("plain_one", "plain_four")):
        with pytest.raises(AssertionError):
            assert_same_weights(runs[first], runs[second], 1e-5)
    first = [log_of(runs[name]).loc[0, "gradient_norm_sts"] for name in ("unit_one", "unit_weight")]
    assert first[1] == pytest.approx(first[0], rel=1e-5)  # before any scaling
    norms = log_of(runs["unit_weight"]).eval("gradient_norm")
    assert norms.between(3, 5).all()  # 4 and 1, at some angle


def test_a_plain_paired_step_is_the_sum_of_both_batches_gradients(project):
    variants(project, plain={"plan": "paired", "gradients": "plain"}, equal={"balance": "equal"})
    preset = change(project, max_steps=1, clip_norm=None, keep="last", learning_rate=0.001)
    log = log_of(run(preset, "plain"))
    norms = log.loc[0, ["gradient_norm_ir", "gradient_norm_sts"]].astype(float)
    assert abs(norms.iloc[0] - norms.iloc[1]) < log.loc[0, "gradient_norm"] < norms.sum()


# Weights, clipping, what is kept, what is drawn


def test_a_gradient_is_shortened_unless_the_preset_says_not(project, monkeypatch):
    applied = []
    step = torch.optim.AdamW.step

    def noting(optimizer, *arguments, **options):
        own = [p.grad for group in optimizer.param_groups for p in group["params"]]
        applied.append(torch.cat([g.flatten() for g in own if g is not None]).norm().item())
        return step(optimizer, *arguments, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", noting)
    for clip in (0.01, None):
        log = log_of(run(change(project, clip_norm=clip, max_steps=2)))
        expected = log["gradient_norm"] if clip is None else [clip, clip]
        assert applied[-2:] == pytest.approx([*expected], rel=1e-3)


def test_the_last_weights_are_kept_where_the_preset_says_so(project):
    preset = change(project, keep="last", max_steps=7)
    assert manifest(run(preset))["settings"]["selected_step"] == 7
    # They are those of a run whose only dev scores are the last.
    rare = change(project, keep="best", max_steps=7, evaluate_every=50)
    first = weights(run(preset))
    other = weights(run(rare))
    assert all(torch.equal(first[name], other[name]) for name in first)


def test_seeds_draw_other_records_only_where_the_preset_says_so(project):
    content = yaml.safe_load((project / PRESET).read_text())
    content["datasets"][0]["train"] = 10
    (project / PRESET).write_text(yaml.safe_dump(content))
    drawn = {}
    for sampled in (False, True):
        preset = change(project, sample_by_seed=sampled)
        sets, variant = load_datasets(preset), preset.variant("ir_only")
        for seed in (0, 1):
            found = training_records(preset, sets, seed, variant)
            drawn[sampled, seed] = {r.query for r in found}
            assert len(found) == 10
    assert drawn[False, 0] == drawn[False, 1] == drawn[True, 0]
    assert drawn[True, 1] != drawn[True, 0]


def test_a_variant_that_ends_early_has_the_weights_of_the_longer_run_at_that_step(project):
    change(project, keep="last", max_steps=6, evaluate_every=50)
    whole, early = {"max_steps": 6}, {"max_steps": 6, "ends_at": 4}
    preset = variants(project, whole=whole, early=early, short={"max_steps": 4})
    first = log_of(run(preset, "whole"))[["learning_rate", "loss", "gradient_norm"]]
    folder = run(preset, "early")
    pd.testing.assert_frame_equal(log_of(folder)[[*first]], first[:4])
    assert manifest(folder)["settings"]["selected_step"] == 4
    other = log_of(run(preset, "short"))  # whose rate has come down by then
    assert other["learning_rate"].iloc[-1] < first["learning_rate"].iloc[3]


def test_another_draw_is_another_run_of_the_same_seed(project):
    preset = variants(project, again={}, other={"draw": 1})
    losses = {
        name: log_of(run(preset, name))["loss"].tolist() for name in ("codiemb", "again", "other")
    }
    assert losses["again"] == losses["codiemb"] != losses["other"]


def test_a_preset_trains_on_the_hard_negatives_that_it_mines(project, caplog):
    records = [Record("ir", r.query, r.positives) for r in ir_records(40)]
    (project / "ir" / "train.jsonl").unlink()
    write_jsonl(project / "ir" / "train.jsonl", records)
    plain = manifest(run(change(project, max_steps=2)))["fingerprint"]
    assert "hard negatives" not in caplog.text
    content = yaml.safe_load((project / PRESET).read_text())
    content["datasets"][0]["mine"] = {"negatives": 2, "margin": 1.0}
    (project / PRESET).write_text(yaml.safe_dump(content))
    assert manifest(run(load_preset("tiny")))["fingerprint"] != plain
    assert "hard negatives for 40 training records" in caplog.text
    assert re.search(r"training: \d+ hard negatives", caplog.text)


def test_tune_trains_each_variant_at_each_rate_once_and_keeps_the_rows(
    project, monkeypatch, capsys
):
    change(project, max_steps=2)
    command = ["tune", "--preset", "tiny", "--rates", "1e-3", "1e-4"]
    command += ["--variants", "ir_only", "paired"]
    assert main(command) == 0
    rows = pd.read_csv(project / "figures" / "tiny" / "rates.csv")
    assert [*zip(rows["variant"], rows["learning_rate"], strict=True)] == [
        (variant, rate) for variant in ("ir_only", "paired") for rate in (1e-3, 1e-4)
    ]
    np.testing.assert_allclose(rows["own"][:2], rows["ir"][:2])
    np.testing.assert_allclose(rows["own"][2:], rows[["ir", "sts"]][2:].mean(axis=1))
    for _, of in rows.groupby("variant"):
        assert (of["best"] == (of["own"] == of["own"].max())).all()
    runs = project / "data" / "runs" / "tiny-rates"
    assert len([*runs.glob("*/seed-0/manifest.json")]) == 4
    assert "ir_only" in capsys.readouterr().out
    more = [*command[:-2], "mixed", "--share", "0.5"]  # beside the rows of others
    assert main(more) == 0
    found = pd.read_csv(project / "figures" / "tiny" / "rates.csv")
    pd.testing.assert_frame_equal(found[:4], rows)
    assert found["variant"][4:].unique() == ["mixed"]
    assert found["step"].tolist() == [2] * 4 + [1] * 2
    assert main(["tune", "--preset", "tiny", "--variants", "codiemb"]) == 0  # at its own rate
    [own] = (
        pd.read_csv(project / "figures" / "tiny" / "rates.csv")
        .query("variant == 'codiemb'")
        .learning_rate
    )
    assert own == load_preset("tiny").training.learning_rate
    monkeypatch.setattr(loop._Trainer, "train", None)  # what is finished is not trained again
    assert main(command) == 0
    change(project, max_steps=0)
    assert main(more) == 2
    assert "expected a preset with max_steps" in capsys.readouterr().err


def test_the_gradient_for_merging_is_that_of_training_batches_of_both_tasks_by_need(
    project, monkeypatch
):
    preset = load_preset("tiny")
    encoder = Encoder.load(preset.encoder)
    weights = {name: tensor.clone() for name, tensor in encoder.backbone.state_dict().items()}
    asked = []
    conflict = import_module("codiemb_lib.train.conflict")  # of this name the face has a function
    monkeypatch.setattr(conflict, "load_datasets", lambda p: asked.append(p) or load_datasets(p))
    gradient = conflict.training_gradient(preset, encoder, 0)
    assert not asked  # a study without such a merge loads nothing
    found = [gradient(weights) for _ in range(3)]
    assert len(asked) == 1
    records = training_records(preset, load_datasets(preset), 0)
    plan = SingleTaskPlan(records, batch_sizes={"ir": 8, "sts": 8}, balance="equal")
    steps = OptimizerSteps(records, plan, encoder, preset, seed=0)
    for number, of in enumerate(found):
        expected = conflict.loss_gradient(encoder, steps[number][0], preset.objective)
        assert of.keys() == expected.keys() <= weights.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(of[name], tensor)
