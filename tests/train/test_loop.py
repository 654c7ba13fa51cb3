"""Training on a tiny random encoder: it learns, it keeps its books, it survives a kill."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers.models.bert.modeling_bert import BertOutput

from codiemb_lib import core
from codiemb_lib.core import (
    EncoderSettings,
    LoraSettings,
    PresetError,
    UnwritableError,
    load_preset,
)
from codiemb_lib.model import Encoder
from codiemb_lib.train import loop
from codiemb_lib.train.__main__ import main
from codiemb_lib.train.batches import OptimizerSteps
from codiemb_lib.train.checkpoint import Checkpoints
from codiemb_lib.train.loop import learning_rate
from codiemb_lib.train.step import Loss
from tests.train.conftest import (
    ENTRIES,
    PRESET,
    ROOT,
    assert_same_run,
    books,
    change,
    make_project,
    manifest,
    run,
    weights,
    without_dropout,
)


def test_the_room_is_its_function(project, monkeypatch):
    from codiemb_lib import train as room

    assert callable(room)
    monkeypatch.setattr(room, "train", lambda *arguments, **options: (arguments, options))
    assert room("preset", "codiemb", 0, progress=False) == (
        ("preset", "codiemb", 0),
        {"progress": False},
    )


def test_a_run_leaves_model_logs_and_manifest_and_a_watch_sees_every_step(project):
    seen = []

    def watch(log, dev):
        seen.append((len(log), dev["step"].max()))

    folder = run(load_preset("tiny"), "codiemb", watch=watch)
    assert folder == project / "data" / "runs" / "tiny" / "codiemb" / "seed-0"
    assert sorted(path.name for path in folder.iterdir()) == ENTRIES
    found = manifest(folder)
    assert found["settings"]["variant"]["plan"] == "single"
    assert found["seconds"] > 0
    assert found["versions"]["torch"] == torch.__version__
    log = pd.read_csv(folder / "log.csv")
    assert list(log["step"]) == list(range(20))  # 2 epochs x (40 / 8 + 40 / 8)
    assert seen == [(n, n // 4 * 4) for n in range(1, 21)]
    assert set(log["task"]) == {"ir", "sts"}
    assert log.query("task == 'ir'")["info_nce"].notna().all()
    sts = log.query("task == 'sts'")
    total = sts["info_nce_mid"] + 2 * sts["pearson"] + 5 * sts["rank_kl"] + 0.5 * sts["pro"]
    np.testing.assert_allclose(total, sts["loss"], rtol=1e-5)
    dev = pd.read_csv(folder / "dev.csv")
    assert sorted(dev["step"].unique()) == [0, 4, 8, 12, 16, 20]
    by_step = dev[dev["step"] > 0].groupby("step")["value"].mean()
    assert found["settings"]["selected_step"] == by_step.idxmax()
    Encoder.load(EncoderSettings(name=str(folder / "model")))


@pytest.mark.parametrize("variant", ["ir_only", "mixed"])
def test_training_learns_what_it_trains(project, variant):
    log = pd.read_csv(run(load_preset("tiny"), variant) / "log.csv")
    assert log["loss"].iloc[-3:].mean() < log["loss"].iloc[:3].mean()


def test_a_finished_run_is_taken_until_something_changes_that_shapes_it(
    project, make_encoder, monkeypatch
):
    fingerprints = []

    def fresh(preset):
        """Whether this trains."""
        fingerprints.append(manifest(run(preset))["fingerprint"])
        return fingerprints[-1] not in fingerprints[:-1]

    assert fresh(change(project, max_steps=1))
    assert not fresh(change(project, workers=1, trackers=["tensorboard"]))
    assert fresh(change(project, tokens_per_forward=512))
    make_encoder(seed=1).save(project / "encoder")
    assert fresh(load_preset("tiny"))
    monkeypatch.setattr(loop, "NUMERICS", 10**6)
    assert fresh(load_preset("tiny"))
    monkeypatch.setattr(core, "versions", lambda: {"torch": "3", "transformers": "6"})
    assert fresh(load_preset("tiny"))


def test_the_same_seed_gives_the_same_bits_and_another_does_not(project):
    preset = change(project, max_steps=4)
    folder = run(preset, "mixed")
    folder.rename(project / "first")
    assert_same_run(run(change(project, workers=2), "mixed"), project / "first")
    other, first = weights(run(preset, "mixed", 1)), weights(project / "first")
    assert not all(torch.equal(first[name], other[name]) for name in first)


# Of 20 steps with a checkpoint every 4: what is called, how often, where the run goes on.
MOMENTS = {
    ("checkpoint", "save_file", 1): 0,  # while the first checkpoint is written
    ("checkpoint", "write_rows", 4): 4,  # the second: the log is there, dev scores are not
    ("checkpoint", "save_file", 3): 8,  # the third: both tables are ahead of the second
    ("Path", "unlink", 1): 12,  # three are there: the oldest is to be removed
    ("Encoder", "save", 2): None,  # while better weights are set aside
    ("loop", "backward", 16): 12,  # in the second epoch, between checkpoints
    ("Checkpoints", "publish", 1): 20,  # the best weights are not the run's yet
    ("shutil", "copy", 1): 20,  # they are, but for the tables
    ("core", "write_manifest", 1): 20,  # all is done but the manifest
}


def test_a_run_that_is_killed_goes_on_to_the_same_bits(
    project, tmp_path_factory, make_encoder, monkeypatch
):
    """Kill -9 at any moment; the same call goes on at once, where the last checkpoint stands."""
    whole = run(load_preset("tiny"), "codiemb")
    roots = {moment: tmp_path_factory.mktemp("killed") for moment in MOMENTS}
    for root in roots.values():
        make_project(root, make_encoder())
    moments = [str(word) for moment, root in roots.items() for word in (root, *moment)]
    command = [sys.executable, "-m", "tests.train.killed", "codiemb", *moments]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # bits depend on how many there are
    subprocess.run(command, cwd=ROOT, env=os.environ | threads, check=True)

    asked, get = [], OptimizerSteps.__getitem__
    monkeypatch.setattr(OptimizerSteps, "__getitem__", lambda s, n: asked.append(n) or get(s, n))
    for moment, goes_on in MOMENTS.items():
        monkeypatch.setenv("CODIEMB_ROOT", str(roots[moment]))
        folder = roots[moment] / whole.relative_to(project)
        assert folder.is_dir()
        assert not (folder / "manifest.json").exists()
        asked.clear()
        run(load_preset("tiny"), "codiemb")
        if goes_on is not None:
            assert asked == list(range(goes_on, 20)), moment  # nothing is passed over
        assert_same_run(folder, whole)
        assert sorted(path.name for path in folder.iterdir()) == ENTRIES


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_signal_ends_a_run_after_its_step_and_the_same_call_goes_on(
    project, workers, number, error
):
    whole = run(change(project, workers=workers))
    whole.rename(project / "whole")
    before = signal.getsignal(number)

    def end(log, dev):
        if len(log) == 5:
            os.kill(os.getpid(), number)

    with pytest.raises(error) as ended:
        run(load_preset("tiny"), watch=end)
    assert getattr(ended.value, "code", 143) == 143
    assert [*whole.glob("checkpoints/*/00000006.safetensors")]  # not a step at which dev is scored
    assert signal.getsignal(number) == before
    run(load_preset("tiny"))
    assert_same_run(whole, project / "whole")


def test_two_checkpoints_are_kept_with_their_best_models(project, monkeypatch):
    kept = []
    save = Checkpoints.save

    def saved(checkpoints, *arguments):
        save(checkpoints, *arguments)
        kept.append(sorted(path.name for path in checkpoints.folder.iterdir()))

    monkeypatch.setattr(Checkpoints, "save", saved)
    run(load_preset("tiny"))
    files = [[name for name in names if name.endswith(".safetensors")] for names in kept]
    steps = [f"{step:08d}.safetensors" for step in (4, 8, 10)]
    assert files == [steps[:1], steps[:2], steps[1:]]
    assert all(1 <= sum(name.startswith("best-") for name in names) <= 2 for names in kept)


def _flip(file):
    """Change one bit in the middle of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGE = {
    "a bit of the last": (lambda f: _flip(f / "00000008.safetensors"), 4),
    "the last is cut": (lambda f: os.truncate(f / "00000008.safetensors", 1000), 4),
    "the last is empty": (lambda f: os.truncate(f / "00000008.safetensors", 0), 4),
    "both": (lambda f: [_flip(file) for file in f.glob("*.safetensors")], 0),
    "best model": (lambda f: [_flip(m / "model.safetensors") for m in f.glob("best-*8")], 4),
    "best model is gone": (lambda f: [shutil.rmtree(m) for m in f.glob("best-*8")], 4),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_left_out_for_the_one_before(project, monkeypatch, caplog, damage):
    whole = run(load_preset("tiny"))
    whole.rename(project / "whole")
    nothing = {"best_score": -1.0}  # so that the second checkpoint has a better model
    monkeypatch.setattr(core, "task_means", lambda rows: {"ir": nothing["best_score"]})

    def end(log, dev):
        nothing["best_score"] += 0.1
        if len(log) == 8:
            raise MemoryError

    with pytest.raises(MemoryError):
        run(load_preset("tiny"), watch=end)
    monkeypatch.undo()
    monkeypatch.setenv("CODIEMB_ROOT", str(project))
    spoil, goes_on = DAMAGE[damage]
    spoil(next(whole.glob("checkpoints/*")))
    asked, get = [], OptimizerSteps.__getitem__
    monkeypatch.setattr(OptimizerSteps, "__getitem__", lambda s, n: asked.append(n) or get(s, n))
    run(load_preset("tiny"))
    assert asked == list(range(goes_on, 10))
    assert "is damaged and left out" in caplog.text
    if goes_on == 0:
        assert_same_run(whole, project / "whole")


def test_a_damaged_model_is_trained_again(project, caplog):
    folder = run(load_preset("tiny"))
    shutil.copytree(folder, project / "whole")
    _flip(folder / "model" / "model.safetensors")
    run(load_preset("tiny"))
    assert "damaged, or older than hashes: model/model.safetensors" in caplog.text
    assert_same_run(folder, project / "whole")


def test_a_finished_run_outlives_tries_that_fail(project, monkeypatch):
    preset = change(project, max_steps=2, trajectory=True)
    folder = run(preset)
    shutil.copytree(folder, project / "finished")
    other = change(project, learning_rate=0.1, trajectory=False)
    nan = torch.tensor(torch.nan, requires_grad=True)
    with monkeypatch.context() as broken:
        broken.setattr(loop, "batch_loss", lambda *_, **__: Loss(nan, {"info_nce": nan}))
        for _ in range(2):
            with pytest.raises(FloatingPointError):
                run(other)
            assert_same_run(folder, project / "finished")
        broken.setattr(loop, "_Trainer", None)  # nothing is trained
        run(preset)
    assert sorted(path.name for path in folder.iterdir()) == [*ENTRIES, "trajectory"]
    run(other)
    assert sorted(path.name for path in folder.iterdir()) == ENTRIES
    assert manifest(folder)["fingerprint"] != manifest(project / "finished")["fingerprint"]
    first, second = weights(folder), weights(project / "finished")
    assert not all(torch.equal(first[name], second[name]) for name in first)


# Several processes


def test_two_processes_train_as_one_go_on_after_a_kill_and_may_share_weights(project):
    without_dropout(project)
    two_processes = str(ROOT / "notebooks" / "presets" / "accelerate" / "cpu-2.yaml")
    one = run(change(project, evaluate_every=5))
    one.rename(project / "one")
    preset = change(project, batch_sizes={"ir": 4, "sts": 4, "mixed": 4})
    folder = run(preset, accelerate=two_processes)
    assert manifest(folder)["settings"]["processes"] == 2

    def assert_as_one():
        expected, found = weights(project / "one"), weights(folder)
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-5)
        for ours, theirs in zip(books(folder), books(project / "one"), strict=True):
            pd.testing.assert_frame_equal(ours, theirs, rtol=1e-3)

    def killed(at, *launcher, **environment):
        command = [sys.executable, "-m", *launcher, "-m", "tests.train.killed", "ir_only"]
        command += ["loop", "backward", str(at)]
        environment |= os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)

    assert_as_one()
    folder.rename(project / "two")
    by_accelerate = ["accelerate.commands.launch", "--config_file", two_processes]
    assert killed(8, *by_accelerate).returncode != 0
    assert [*folder.glob("checkpoints/*/00000005.safetensors")]
    run(preset, accelerate=two_processes)
    assert_same_run(folder, project / "two")

    shutil.rmtree(folder)
    by_torch = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    first = killed(8, *by_torch, SHARDED="1")
    assert "(SIGKILL)" in first.stderr, first.stderr
    assert [*folder.glob("checkpoints/*/00000005.safetensors")]
    again = killed(6, *by_torch, SHARDED="1")  # of 10 batches it has 5 to go
    assert again.returncode == 0, again.stderr
    assert manifest(folder)["settings"]["devices"] == "DistributedType.FSDP cpu"
    assert_as_one()


def test_processes_of_accelerate_have_its_precision_and_tell_of_a_failure(project, capfd):
    config = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "NO", "use_cpu": True}
    config |= {"num_processes": 1, "num_machines": 1, "mixed_precision": "bf16"}
    (project / "half.yaml").write_text(yaml.safe_dump(config))
    preset = change(project, accelerate=str(project / "half.yaml"))
    whole = books(run(preset, accelerate=""))[0]
    folder = run(preset)
    assert manifest(folder)["settings"]["precision"] == "bf16"
    difference = (books(folder)[0]["loss"] - whole["loss"]).abs()
    assert 1e-6 < difference.max() < 0.5
    with pytest.raises(subprocess.CalledProcessError):
        run(change(project, batch_sizes={"ir": 60, "sts": 4, "mixed": 4}))
    assert "at least one global batch of 60 records" in capfd.readouterr().err
    with pytest.raises(PresetError, match=r"expected the path of a configuration.*found 'three'"):
        run(preset, accelerate="three")


@pytest.mark.parametrize(("rank", "locked"), [(0, True), (1, False)])
def test_processes_launched_together_launch_no_others_and_one_takes_the_lock(
    project, monkeypatch, rank, locked
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    taken, here = [], []
    monkeypatch.setattr(core, "alone", lambda f: taken.append(f) or contextlib.nullcontext())
    monkeypatch.setattr(loop, "launch", lambda *_, **__: pytest.fail("launched"))
    monkeypatch.setattr(loop, "_train_here", lambda *_, **__: here.append(1))
    run(change(project, accelerate="cpu-2"))
    main(["--preset", "tiny", "--variant", "ir_only"])
    assert here == [1, 1]
    assert taken == [project / "data" / "runs" / "tiny" / "ir_only" / "seed-0"] * 2 * locked


# What a preset may ask for


def test_gradient_checkpointing_changes_memory_alone(project, monkeypatch):
    without_dropout(project)
    passes, forward = [], BertOutput.forward  # a part of every layer
    monkeypatch.setattr(BertOutput, "forward", lambda *a, **o: passes.append(1) or forward(*a, **o))
    expected = books(run(load_preset("tiny"), "codiemb"))[0]
    once = len(passes)
    found = books(run(change(project, gradient_checkpointing=True), "codiemb"))[0]
    assert len(passes) - once > once  # layers are computed again
    pd.testing.assert_frame_equal(found, expected, rtol=1e-3, atol=1e-4)


def test_adapters_train_alone_go_on_and_are_saved_as_plain_weights(project, monkeypatch):
    pytest.importorskip("peft")
    preset = load_preset("tiny")
    lora = preset.encoder.model_copy(update={"lora": LoraSettings(rank=2, dropout=0.1)})
    preset = preset.model_copy(update={"encoder": lora})
    folder = run(preset, "codiemb")
    before, after = load_file(project / "encoder" / "model.safetensors"), weights(folder)
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(".dense." in name or ".self." in name for name in moved)
    folder.rename(project / "whole")

    def stop(checkpoints, model, optimizer, progress):
        save(checkpoints, model, optimizer, progress)
        if progress.step == 12:
            raise KeyboardInterrupt

    save = Checkpoints.save
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            run(preset, "codiemb")
    [checkpoint] = folder.glob("checkpoints/*/00000012.safetensors")
    assert all("lora_" in name for name in load_file(checkpoint).keys() - {"progress"})
    run(preset, "codiemb")
    assert_same_run(folder, project / "whole")


def test_trackers_get_every_step_by_name(project):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = run(change(project, trackers=["tensorboard"]))
    [events] = (folder / "codiemb").glob("events*")
    log = EventAccumulator(str(events))
    log.Reload()
    assert [event.step for event in log.Scalars("info_nce")] == list(range(10))
    assert len(log.Scalars("dev_sts")) == 4
    [settings] = (folder / "codiemb").glob("*/hparams.yml")
    settings = yaml.safe_load(settings.read_text())
    assert (settings["preset"], settings["model"], settings["seed"]) == ("tiny", "ir_only", 0)
    assert settings["training.learning_rate"] == 1e-3
    assert settings["variant.tasks"] == "['ir']"
    with pytest.raises(PresetError, match=r"found \['wand'\]"):
        run(change(project, trackers=["wand"]))


def test_a_step_s_time_is_that_of_drawing_too_but_not_of_scoring_and_saving(project, monkeypatch):
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr(loop, "time", clock)

    def takes(seconds, owner, name):
        original = getattr(owner, name)

        def wrapped(*arguments, **options):
            clock.now += seconds
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, wrapped)

    takes(1, OptimizerSteps, "__getitem__")
    takes(2, loop, "backward")
    takes(10, loop._Trainer, "_evaluate")
    takes(20, Checkpoints, "save")
    folder = run(change(project, max_steps=3, evaluate_every=2))
    log = pd.read_csv(folder / "log.csv")
    assert list(log["seconds"]) == [3, 3, 3]
    np.testing.assert_allclose(log["tokens_per_second"], log["tokens"] / 3, atol=0.1)
    assert manifest(folder)["seconds"] == 3 * 3 + 3 * 10 + 20  # the last of all is not counted


def test_accumulation_sees_every_record_and_steps_on_a_short_last_group(project, monkeypatch):
    seen, call = [], loop.backward

    def listening(accelerator, model, share, *rest, **options):
        seen.extend(share.batch.planned.indices)
        return call(accelerator, model, share, *rest, **options)

    monkeypatch.setattr(loop, "backward", listening)
    log = pd.read_csv(run(change(project, accumulation=4, epochs=1)) / "log.csv")
    assert len(log) == 2  # 40 records in 5 batches of 8: groups of 4 and 1
    assert sorted(seen) == list(range(40))


def _nan(batch, final, *_, **__):
    return final.sum() * torch.nan


def _zero_without_derivative(batch, final, *_, **__):
    return (final.sum() * 0).sqrt()


@pytest.mark.parametrize(
    ("loss", "says"), [(_nan, "finite loss, found nan"), (_zero_without_derivative, "gradient")]
)
def test_what_is_not_finite_stops_the_run_before_the_weights_change(
    project, monkeypatch, loss, says
):
    def broken(*arguments, **_):
        total = loss(*arguments)
        return Loss(total, {"info_nce": total})

    preset = change(project, max_steps=1)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "batch_loss", broken)
        patch.setattr(torch.optim.AdamW, "step", lambda *_, **__: pytest.fail("weights change"))
        with pytest.raises(FloatingPointError, match=f"{says}.* at step 0") as error:
            run(preset)
    assert error.value.status == 1
    [kept] = project.glob("data/runs/tiny/ir_only/seed-0/checkpoints/*/nonfinite.jsonl")
    assert len(kept.read_text().splitlines()) == 8
    run(preset)
    assert not kept.exists()  # a good run does not look as if it had diverged


# Refusals


def _without_similarity(content):
    del content["datasets"][1]


def _without_training_records(content):
    content["datasets"][0]["train"] = 0


def _with_too_many_dimensions(content):
    content["objective"]["matryoshka"] = [8, 998]


def _with_an_unknown_configuration(content):
    content["training"]["accelerate"] = "typo"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_without_similarity, "found none of 'sts'"),
        (_without_training_records, r"of the variant's tasks \['ir'\], found none"),
        (_with_too_many_dimensions, r"below the encoder's 16, which counts anyway, found \[8, 998"),
        (_with_an_unknown_configuration, "accelerate: expected the path .* found 'typo'"),
    ],
)
def test_a_preset_that_cannot_be_trained_is_refused_and_leaves_no_run(project, change, says):
    content = yaml.safe_load((project / PRESET).read_text())
    change(content)
    (project / PRESET).write_text(yaml.safe_dump(content))
    with pytest.raises(PresetError, match=says):
        run(load_preset("tiny"))
    assert not [*chain(project.glob("data/runs/**/model"), project.glob("data/runs/**/*.csv"))]


def test_an_unwritable_folder_stops_the_run_before_work(project, monkeypatch):
    (project / "data" / "runs").write_text("a file where the folder should be")
    monkeypatch.setattr(loop, "_Trainer", None)
    with pytest.raises(UnwritableError):
        run(load_preset("tiny"))


def test_learning_rate_rises_and_falls_linearly():
    rates = [learning_rate(s, 100, peak=1.0, warmup=0.1) for s in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    np.testing.assert_allclose(np.diff(rates[10:]), -1 / 90)
    assert rates[-1] == pytest.approx(1 / 90)
