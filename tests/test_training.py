"""Training on a tiny random encoder: it learns, it keeps its books, it survives a kill."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file

from codiemb_lib import objectives, training
from codiemb_lib.config import (
    DatasetSettings,
    EncoderSettings,
    ObjectiveSettings,
    PresetError,
    load_preset,
    project_root,
)
from codiemb_lib.encoder import Encoder
from codiemb_lib.files import UnwritableError
from codiemb_lib.records import Record, write_jsonl
from codiemb_lib.training import StepLoss, ir_loss, learning_rate, mixed_loss, sts_loss, train

WORDS = ["cat", "dog", "car", "bus", "old", "new", "fast", "slow", "red", "blue"]
PROMPTS = {"ir": DatasetSettings(name="ir"), "sts": DatasetSettings(name="sts")}
SETTINGS = ObjectiveSettings(positives=1, negatives=1)


def ir_records(count: int, offset: int = 0) -> list[Record]:
    generator = np.random.default_rng(offset)
    out = []
    for i in range(count):
        a, b, c = generator.choice(WORDS, 3, replace=False)
        name = "".join(generator.choice(list("abcdefghij"), 4))
        positives = (f"the {a} {b} {name}", f"a {b} is {a} {name}")
        out.append(Record("ir", f"find {a} {name}", positives, (f"the {c} {name} {i}",), id=str(i)))
    return out


def sts_records(count: int, offset: int = 0) -> list[Record]:
    generator = np.random.default_rng(100 + offset)
    out = []
    for i in range(count):
        a, b = generator.choice(WORDS, 2, replace=False)
        score = round(float(generator.uniform()), 2)
        out.append(Record("sts", f"a {a} {i}", (f"the {b} {i}",), positive_scores=(score,)))
    return out


@pytest.fixture
def project(tmp_path, monkeypatch, make_encoder):
    """A project folder with a preset `tiny`: a tiny encoder and two small data sets."""
    make_encoder().save(tmp_path / "encoder")
    (tmp_path / "data").mkdir()
    shutil.copy(project_root() / "data" / "registry.yaml", tmp_path / "data")
    for task, make in {"ir": ir_records, "sts": sts_records}.items():
        for number, split in enumerate(("train", "dev", "test")):
            path = tmp_path / task / f"{split}.jsonl"
            write_jsonl(path, make(40 if split == "train" else 12, number))
    preset = {
        "name": "tiny",
        "description": "for tests",
        "seeds": [0],
        "encoder": {"name": str(tmp_path / "encoder"), "max_length": 16},
        "datasets": [{"name": str(tmp_path / "ir")}, {"name": str(tmp_path / "sts")}],
        "objective": {"positives": 2, "negatives": 1},
        "training": {
            "batch_sizes": {"ir": 8, "sts": 8, "mixed": 8},
            "learning_rate": 1e-3,
            "epochs": 2,
            "evaluate_every": 4,
        },
        "variants": {
            "codiemb": {},
            "ir_only": {"tasks": ["ir"]},
            "mixed": {"plan": "mixed"},
            "angle": {"sts_objective": "angle", "tasks": ["sts"]},
        },
    }
    path = tmp_path / "notebooks" / "presets" / "tiny.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(yaml.safe_dump(preset))
    monkeypatch.setenv("CODIEMB_ROOT", str(tmp_path))
    return tmp_path


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def test_a_run_leaves_model_logs_and_manifest(project):
    folder = train(load_preset("tiny"), "codiemb", 0, progress=False)
    assert folder == project / "data" / "runs" / "tiny" / "codiemb" / "seed-0"
    assert not (folder / "checkpoint").exists()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["settings"]["variant"]["plan"] == "single"
    assert manifest["seconds"] > 0
    assert manifest["versions"]["torch"] == torch.__version__
    log = pd.read_csv(folder / "log.csv")
    assert list(log["step"]) == list(range(20))  # 2 epochs x (40 / 8 + 40 / 8)
    assert set(log["task"]) == {"ir", "sts"}
    assert log.query("task == 'ir'")["info_nce"].notna().all()
    sts = log.query("task == 'sts'")
    total = sts["info_nce_mid"] + 2 * sts["pearson"] + 5 * sts["rank_kl"] + 0.5 * sts["pro"]
    np.testing.assert_allclose(total, sts["loss"], rtol=1e-5)
    dev = pd.read_csv(folder / "dev.csv")
    assert sorted(dev["step"].unique()) == [0, 4, 8, 12, 16, 20]
    by_step = dev[dev["step"] > 0].groupby("step")["value"].mean()
    assert manifest["settings"]["selected_step"] == by_step.idxmax()
    Encoder.load(EncoderSettings(name=str(folder / "model")))


@pytest.mark.parametrize("variant", ["ir_only", "angle"])
def test_training_learns_what_it_trains(project, variant):
    log = pd.read_csv(train(load_preset("tiny"), variant, 0, progress=False) / "log.csv")
    assert log["loss"].iloc[-3:].mean() < log["loss"].iloc[:3].mean()


def test_a_finished_run_is_left_alone_and_a_changed_one_is_not(project, monkeypatch):
    preset = load_preset("tiny")
    folder = train(preset, "ir_only", 0, progress=False)
    before = (folder / "manifest.json").stat().st_mtime_ns
    train(preset, "ir_only", 0, progress=False)
    assert (folder / "manifest.json").stat().st_mtime_ns == before
    monkeypatch.setattr(training, "source_hash", lambda *_: "other code")
    train(preset, "ir_only", 0, progress=False)
    assert (folder / "manifest.json").stat().st_mtime_ns > before


def test_the_same_seed_gives_the_same_bits_and_another_does_not(project):
    preset = load_preset("tiny")
    folder = train(preset, "mixed", 0, progress=False)
    first = weights(folder)
    (folder / "manifest.json").unlink()
    again = weights(train(preset, "mixed", 0, progress=False))
    other = weights(train(preset, "mixed", 1, progress=False))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_a_killed_run_goes_on_to_the_same_bits(project):
    """Kill -9 a training process after its first checkpoint; the same call must finish it."""
    preset = load_preset("tiny")
    folder = train(preset, "codiemb", 0, progress=False)
    expected, log = weights(folder), pd.read_csv(folder / "log.csv").drop(columns="seconds")
    folder.rename(project / "whole")

    code = (
        "import time\n"
        "from codiemb_lib import training\n"
        "from codiemb_lib.config import load_preset\n"
        "save = training._Run._save\n"
        "training._Run._save = lambda run: (save(run), run.step == 8 and time.sleep(600))\n"
        "training.train(load_preset('tiny'), 'codiemb', 0, progress=False)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], env=dict(os.environ))
    state = folder / "checkpoint" / "state.json"
    deadline = time.monotonic() + 120
    while not (state.is_file() and json.loads(state.read_text())["step"] == 8):
        assert process.poll() is None, "the training process ended before its checkpoint"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "manifest.json").exists()

    train(preset, "codiemb", 0, progress=False)
    again = weights(folder)
    assert all(torch.equal(expected[name], again[name]) for name in expected)
    pd.testing.assert_frame_equal(pd.read_csv(folder / "log.csv").drop(columns="seconds"), log)


def test_accumulation_sees_every_record_and_steps_on_a_short_last_group(project):
    content = yaml.safe_load((project / "notebooks/presets/tiny.yaml").read_text())
    content["training"] |= {"accumulation": 4, "epochs": 1}
    (project / "notebooks/presets/tiny.yaml").write_text(yaml.safe_dump(content))
    log = pd.read_csv(train(load_preset("tiny"), "ir_only", 0, progress=False) / "log.csv")
    assert len(log) == 2  # 40 records in 5 batches of 8: groups of 4 and 1


def test_a_loss_that_is_not_finite_stops_the_run(project, monkeypatch):
    broken = StepLoss(torch.tensor(torch.nan, requires_grad=True), {}, 0, 0)
    monkeypatch.setattr(training, "ir_loss", lambda *_, **__: broken)
    with pytest.raises(FloatingPointError, match="expected a finite loss, found nan at step 0"):
        train(load_preset("tiny"), "ir_only", 0, progress=False)


def test_an_unwritable_folder_stops_the_run_before_work(project, monkeypatch):
    (project / "data" / "runs").write_text("a file where the folder should be")
    monkeypatch.setattr(training, "_Run", None)
    with pytest.raises(UnwritableError):
        train(load_preset("tiny"), "ir_only", 0, progress=False)


def test_a_preset_without_one_of_the_tasks_is_refused(project):
    content = yaml.safe_load((project / "notebooks/presets/tiny.yaml").read_text())
    content["datasets"].pop()
    (project / "notebooks/presets/tiny.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(PresetError, match="found none of 'sts'"):
        train(load_preset("tiny"), "ir_only", 0, progress=False)


def test_other_weights_under_the_same_name_train_anew(project, make_encoder):
    preset = load_preset("tiny")
    before = train(preset, "angle", 0, progress=False) / "manifest.json"
    fingerprint = json.loads(before.read_text())["fingerprint"]
    make_encoder(seed=1).save(project / "encoder")
    after = train(preset, "angle", 0, progress=False) / "manifest.json"
    assert json.loads(after.read_text())["fingerprint"] != fingerprint


def test_learning_rate_rises_and_falls_linearly():
    rates = [learning_rate(s, 100, peak=1.0, warmup=0.1) for s in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    np.testing.assert_allclose(np.diff(rates[10:]), -1 / 90)
    assert rates[-1] == pytest.approx(1 / 90)


# Losses of a batch


def labelled(records, dataset):
    return [
        Record(r.task, r.query, r.positives, r.negatives, r.positive_scores, (), dataset)
        for r in records
    ]


def test_ir_loss_is_the_objective_on_the_texts_of_the_records(make_encoder):
    encoder = make_encoder()
    batch = [
        Record("ir", r.query, r.positives[:1], r.negatives, dataset="ir") for r in ir_records(4)
    ]
    got = ir_loss(encoder, batch, PROMPTS, SETTINGS, np.random.default_rng(0))
    expected = objectives.multi_positive_info_nce(
        encoder.embed([r.query for r in batch]).final,
        encoder.embed([r.positives[0] for r in batch]).final[:, None],
        encoder.embed([r.negatives[0] for r in batch]).final[:, None],
        temperature=0.02,
    )
    torch.testing.assert_close(got.total, expected, rtol=1e-4, atol=1e-4)
    assert got.texts == 12


def test_no_negative_is_a_positive_of_the_batch(make_encoder, monkeypatch):
    sizes = []
    monkeypatch.setattr(
        objectives,
        "multi_positive_info_nce",
        lambda q, p, n, *, temperature: sizes.append(n.shape[0]) or q.sum(),
    )
    batch = [
        Record("ir", "find cat", ("a cat",), ("a dog",), dataset="ir"),
        Record("ir", "find dog", ("a dog",), ("a bus",), dataset="ir"),
    ]
    ir_loss(make_encoder(), batch, PROMPTS, SETTINGS, np.random.default_rng(0))
    assert sizes == [1]  # "a dog" is no negative here


def test_ir_records_without_negatives_train(make_encoder):
    batch = [Record("ir", r.query, r.positives, dataset="ir") for r in ir_records(4)]
    loss = ir_loss(make_encoder(), batch, PROMPTS, SETTINGS, np.random.default_rng(0))
    assert torch.isfinite(loss.total)


def test_each_text_is_drawn_once_before_any_is_drawn_again():
    for count in range(1, 9):
        drawn = training._draw(["a", "b", "c"], count, np.random.default_rng(count))
        copies = [drawn.count(t) for t in "abc"]
        assert len(drawn) == count
        assert max(copies) - min(copies) <= 1


def test_mixed_batches_take_high_pairs_as_positives_and_low_ones_as_negatives(
    make_encoder, monkeypatch
):
    shapes = {}

    def record_shapes(queries, positives, negatives, *, temperature):
        shapes.update(q=queries.shape[0], p=positives.shape[:2], n=negatives.shape[:2])
        return queries.sum()

    monkeypatch.setattr(objectives, "multi_positive_info_nce", record_shapes)
    sts = [
        Record("sts", "cat", ("dog",), positive_scores=(0.9,), dataset="sts"),
        Record("sts", "cat", ("bus",), positive_scores=(0.1,), dataset="sts"),
    ]
    batch = labelled(ir_records(3), "ir") + sts
    mixed_loss(make_encoder(), batch, PROMPTS, SETTINGS, np.random.default_rng(0))
    assert shapes == {"q": 4, "p": (4, 1), "n": (4, 1)}  # 3 hard negatives and one low pair


@pytest.mark.parametrize("objective", ["codiemb", "cosent", "angle"])
def test_sts_losses_have_finite_gradients_on_a_single_pair(make_encoder, objective):
    encoder = make_encoder()
    batch = labelled(sts_records(1), "sts")
    sts_loss(encoder, batch, PROMPTS, SETTINGS, objective).total.backward()
    gradients = [p.grad for p in encoder.parameters() if p.grad is not None]
    assert gradients
    assert all(torch.isfinite(g).all() for g in gradients)


def test_both_sides_of_a_pair_carry_the_query_prompt(make_encoder):
    encoder = make_encoder(include_prompt=True)
    batch = labelled(sts_records(6), "sts")
    prompts = {"sts": DatasetSettings(name="sts", query_prompt="query: ", passage_prompt="find ")}
    got = sts_loss(encoder, batch, prompts, SETTINGS, "cosent")
    left, right = (
        encoder.embed(texts, prompts="query: ").final
        for texts in ([r.query for r in batch], [r.positives[0] for r in batch])
    )
    scores = torch.tensor([r.score for r in batch])
    expected = objectives.cosent_loss((left * right).sum(-1), scores)
    torch.testing.assert_close(got.total, expected, rtol=1e-4, atol=1e-5)


def test_mixed_batch_without_any_anchor_is_a_zero_loss(make_encoder):
    low = [Record("sts", "cat", ("bus",), positive_scores=(0.1,), dataset="sts")] * 2
    loss = mixed_loss(make_encoder(), low, PROMPTS, SETTINGS, np.random.default_rng(0))
    loss.total.backward()
    assert loss.total.item() == 0
