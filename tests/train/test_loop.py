"""Training on a tiny random encoder: it learns, it keeps its books, it survives a kill."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers.models.bert.modeling_bert import BertOutput

from codiemb_lib.core.files import UnwritableError, project_root
from codiemb_lib.core.preset import EncoderSettings, LoraSettings, PresetError, load_preset
from codiemb_lib.data.records import read_jsonl, write_jsonl
from codiemb_lib.evaluate.scores import EvaluationError
from codiemb_lib.model.encoder import Encoder
from codiemb_lib.train import loop as training
from codiemb_lib.train.loop import learning_rate, train
from codiemb_lib.train.step import Loss
from tests.made_up import ir_records, sts_records


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
            "workers": 0,
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
    assert not (folder / "checkpoints").exists()
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


@pytest.mark.parametrize("variant", ["ir_only", "mixed"])
def test_training_learns_what_it_trains(project, variant):
    log = pd.read_csv(train(load_preset("tiny"), variant, 0, progress=False) / "log.csv")
    assert log["loss"].iloc[-3:].mean() < log["loss"].iloc[:3].mean()


def test_a_finished_run_is_left_alone_and_a_changed_one_is_not(project, monkeypatch):
    preset = load_preset("tiny")
    folder = train(preset, "ir_only", 0, progress=False)
    before = (folder / "manifest.json").stat().st_mtime_ns
    train(preset, "ir_only", 0, progress=False)
    assert (folder / "manifest.json").stat().st_mtime_ns == before
    monkeypatch.setattr(training, "NUMERICS", 10**6)
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


KILLED = """
import os, signal, sys
from codiemb_lib.model import encoder
from codiemb_lib.train import loop as training
from codiemb_lib.core.preset import load_preset

def deadly(owner, name, left):
    original = getattr(owner, name)
    def wrapped(*arguments, **options):
        nonlocal left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)
    setattr(owner, name, wrapped)

owners = {{"training": training, "Encoder": encoder.Encoder, "_Run": training._Run}}
if int(os.environ.get("RANK", 0)) == 0:
    deadly(owners[{owner!r}], {name!r}, {at})
training.train(load_preset("tiny"), "codiemb", 0, progress=False, accelerate="")
"""

# 20 steps, 10 an epoch, a checkpoint every 4: (what is called, how often, where it goes on).
MOMENTS = [
    ("training", "save_file", 1, 0),  # while the first checkpoint is written
    ("training", "save_file", 4, 4),  # the second: its weights are there, its optimiser is not
    ("training", "write_json", 3, 8),  # the third: all but its last file
    ("training", "_keep_only", 2, 8),  # two are there: the older is to be removed
    ("Encoder", "save", 2, None),  # while better weights are set aside
    ("_Run", "keep_best", 1, 20),  # the best weights are not the run's yet
    ("training", "backward", 16, 12),  # in the second epoch, between checkpoints
    ("training", "write_manifest", 1, 20),  # all is done but the manifest
]


def books(folder):
    """A run's log and dev scores without what the clock says, to the last bit."""
    log, dev = (pd.read_csv(folder / f"{name}.csv") for name in ("log", "dev"))
    return log.drop(columns=[name for name in log if "second" in name]), dev


def assert_same_run(folder, other):
    expected, found = weights(other), weights(folder)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    for ours, theirs in zip(books(folder), books(other), strict=True):
        pd.testing.assert_frame_equal(ours, theirs, check_exact=True)


@pytest.mark.parametrize(("owner", "name", "at", "goes_on"), MOMENTS)
def test_a_killed_run_goes_on_to_the_same_bits(project, monkeypatch, owner, name, at, goes_on):
    """Kill -9 at any moment; the same call goes on at once, where the last checkpoint stands."""
    preset = load_preset("tiny")
    folder = train(preset, "codiemb", 0, progress=False)
    folder.rename(project / "whole")

    code = KILLED.format(owner=owner, name=name, at=at)
    process = subprocess.run([sys.executable, "-c", code], env=dict(os.environ), timeout=240)
    assert process.returncode == -signal.SIGKILL
    assert not (folder / "manifest.json").exists()

    asked = []
    get = training.OptimizerSteps.__getitem__
    monkeypatch.setattr(
        training.OptimizerSteps, "__getitem__", lambda s, n: asked.append(n) or get(s, n)
    )
    train(preset, "codiemb", 0, progress=False)
    if goes_on is not None:
        assert asked == list(range(goes_on, 20))  # nothing is passed over
    assert_same_run(folder, project / "whole")
    assert sorted(path.name for path in folder.iterdir()) == [
        "dev.csv",
        "log.csv",
        "manifest.json",
        "model",
    ]


def test_one_checkpoint_is_kept(project, monkeypatch):
    kept = []
    save = training._Run._save
    monkeypatch.setattr(
        training._Run,
        "_save",
        lambda run: (save(run), kept.append(sorted((run.folder / "checkpoints").iterdir()))),
    )
    train(load_preset("tiny"), "ir_only", 0, progress=False)
    names = [[path.name for path in paths] for paths in kept]
    assert [paths[0] for paths in names] == [f"{step:08d}" for step in (4, 8, 10)]
    assert all(len(paths) == 2 and paths[1].startswith("best-") for paths in names)


def rewrite(project, change):
    path = project / "notebooks/presets/tiny.yaml"
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content))
    return load_preset("tiny")


def change(project, **training_settings):
    return rewrite(project, lambda content: content["training"].update(training_settings))


def test_workers_ahead_change_no_bit(project):
    folder = train(load_preset("tiny"), "codiemb", 0, progress=False)
    folder.rename(project / "without")
    preset = change(project, workers=2)
    assert_same_run(train(preset, "codiemb", 0, progress=False), project / "without")


@pytest.fixture
def two_processes(project):
    """A configuration of accelerate for two processes, and an encoder without dropout."""
    path = project / "encoder" / "config.json"
    settings = json.loads(path.read_text())
    settings |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    path.write_text(json.dumps(settings))
    config = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_GPU"}
    config |= {"use_cpu": True, "num_processes": 2, "num_machines": 1, "mixed_precision": "no"}
    (project / "two.yaml").write_text(yaml.safe_dump(config))
    return str(project / "two.yaml")


def test_two_processes_train_as_one_with_batches_of_twice_the_size(project, two_processes):
    preset = change(project, evaluate_every=5)
    one = train(preset, "ir_only", 0, progress=False)
    expected, log = weights(one), books(one)[0]
    shutil.rmtree(one)
    preset = change(project, batch_sizes={"ir": 4, "sts": 4, "mixed": 4})
    two = train(preset, "ir_only", 0, progress=False, accelerate=two_processes)
    found = weights(two)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-5)
    pd.testing.assert_frame_equal(books(two)[0], log, rtol=1e-3)
    assert json.loads((two / "manifest.json").read_text())["settings"]["processes"] == 2


def test_two_processes_go_on_after_a_kill_to_the_same_bits(project, two_processes):
    preset = change(project, batch_sizes={"ir": 4, "sts": 4, "mixed": 4}, gradient_cache=True)
    folder = train(preset, "codiemb", 0, progress=False, accelerate=two_processes)
    folder.rename(project / "whole")
    (project / "killed.py").write_text(KILLED.format(owner="training", name="backward", at=16))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", two_processes]
    command += ["--main_process_port", "0", str(project / "killed.py")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, env=environment, timeout=240, capture_output=True)
    assert process.returncode != 0
    assert (folder / "checkpoints" / "00000012" / "state.json").is_file()
    train(preset, "codiemb", 0, progress=False, accelerate=two_processes)
    assert_same_run(folder, project / "whole")


# accelerate shards on GPUs and their like alone; what it does then, CPUs can do as well.
SHARDED = """
import os
os.environ |= {"ACCELERATE_USE_CPU": "true", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
os.environ |= {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
os.environ |= {"FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT", "FSDP_RESHARD_AFTER_FORWARD": "false"}
from accelerate import state
from accelerate.utils import DistributedType
plain = state.AcceleratorState.__init__
def sharded(self, *arguments, fsdp_plugin=None, **options):
    plain(self, *arguments, fsdp_plugin=fsdp_plugin, **options)
    if fsdp_plugin:
        self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
state.AcceleratorState.__init__ = sharded
"""


def test_sharded_processes_train_as_others_and_go_on_after_a_kill(project, two_processes):
    preset = change(project, batch_sizes={"ir": 4, "sts": 4, "mixed": 4}, accumulation=2)
    folder = train(preset, "codiemb", 0, progress=False, accelerate=two_processes)
    folder.rename(project / "whole")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", "2", str(project / "sharded.py")]

    def run(at):
        code = KILLED.format(owner="training", name="backward", at=at)
        (project / "sharded.py").write_text(SHARDED + code)
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.run(command, env=environment, timeout=240, capture_output=True, text=True)

    assert run(at=12).returncode != 0
    assert (folder / "checkpoints" / "00000004" / "state.json").is_file()
    again = run(at=13)  # of 20 batches it has 12 to go
    assert again.returncode == 0, again.stderr
    settings = json.loads((folder / "manifest.json").read_text())["settings"]
    assert settings["devices"] == "DistributedType.FSDP cpu"
    expected, found = weights(project / "whole"), weights(folder)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-5)
    for ours, theirs in zip(books(folder), books(project / "whole"), strict=True):
        pd.testing.assert_frame_equal(ours, theirs, rtol=1e-3)


LAUNCHING = """
from codiemb_lib.core.preset import load_preset
from codiemb_lib.train.loop import train
train(load_preset("tiny"), "codiemb", 0, progress=False, accelerate={config!r})
"""
WAITING = "from codiemb_lib.core.files import alone\nwith alone({folder!r}): pass"


@pytest.fixture
def launched(project, two_processes):
    """A process that launched two ranks, which are at it for hours; the launcher; the ranks."""
    change(project, batch_sizes={"ir": 4, "sts": 4, "mixed": 4}, epochs=10_000)
    code = LAUNCHING.format(config=two_processes)
    process = psutil.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while not list(project.glob("data/runs/tiny/codiemb/seed-0/checkpoints/*/state.json")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    [launcher] = process.children()
    ranks = launcher.children()
    assert len(ranks) == 2
    yield process, launcher, ranks
    for left in filter(psutil.Process.is_running, (process, launcher, *ranks)):
        left.kill()


@pytest.mark.parametrize("launcher_too", [False, True])
def test_whoever_comes_after_a_killed_launch_waits_for_its_ranks(project, launched, launcher_too):
    process, launcher, ranks = launched
    for rank in ranks:
        rank.suspend()
    process.kill()
    process.communicate()
    if launcher_too:
        launcher.kill()
    folder = str(project / "data" / "runs" / "tiny" / "codiemb" / "seed-0")
    waiting = subprocess.Popen([sys.executable, "-c", WAITING.format(folder=folder)])
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(timeout=2)
    for rank in ranks:
        rank.resume()
    assert waiting.wait(timeout=60) == 0
    # A process that ends closes its files, the lock among them, a moment before it is gone.
    assert psutil.wait_procs([launcher, *ranks], timeout=5)[1] == []


def test_ranks_end_with_their_launcher(launched):
    process, launcher, ranks = launched
    launcher.kill()
    _, said = process.communicate(timeout=60)
    assert "found exit status -9" in said
    assert psutil.wait_procs(ranks, timeout=5)[1] == []


def test_one_of_several_processes_launches_no_others(project, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(training, "_launch", lambda *_: pytest.fail("launched"))
    here = []
    monkeypatch.setattr(training, "_train_here", lambda *_, **__: here.append(1))
    train(change(project, accelerate="cpu-2"), "codiemb", 0)
    assert here == [1]


@pytest.mark.parametrize(("rank", "given", "locked"), [(0, [], True), (1, [], False)])
def test_processes_that_were_launched_by_hand_take_the_lock_once(
    project, monkeypatch, rank, given, locked
):
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    taken = []
    monkeypatch.setattr(training, "alone", lambda f: taken.append(f) or contextlib.nullcontext())
    monkeypatch.setattr(training, "_train_here", lambda *_, **__: None)
    training.main(["--preset", "tiny", "--variant", "codiemb", *given])
    assert taken == [project / "data" / "runs" / "tiny" / "codiemb" / "seed-0"] * locked


def test_precision_comes_from_the_configuration(project, two_processes):
    config = yaml.safe_load((project / "two.yaml").read_text())
    config |= {"num_processes": 1, "mixed_precision": "bf16", "distributed_type": "NO"}
    (project / "half.yaml").write_text(yaml.safe_dump(config))
    preset = load_preset("tiny")
    whole = books(train(preset, "ir_only", 0, progress=False))[0]
    folder = train(preset, "ir_only", 0, progress=False, accelerate=str(project / "half.yaml"))
    assert json.loads((folder / "manifest.json").read_text())["settings"]["precision"] == "bf16"
    difference = (books(folder)[0]["loss"] - whole["loss"]).abs()
    assert 1e-6 < difference.max() < 0.5


def test_gradient_checkpointing_changes_memory_alone(project, two_processes, monkeypatch):
    passes = []
    forward = BertOutput.forward  # a part of every layer
    monkeypatch.setattr(BertOutput, "forward", lambda *a, **o: passes.append(1) or forward(*a, **o))
    expected = books(train(load_preset("tiny"), "codiemb", 0, progress=False))[0]
    once = len(passes)
    preset = change(project, gradient_checkpointing=True)
    found = books(train(preset, "codiemb", 0, progress=False))[0]
    assert len(passes) - once > once  # layers are computed again
    pd.testing.assert_frame_equal(found, expected, rtol=1e-3, atol=1e-4)


def test_adapters_train_alone_go_on_and_are_saved_as_plain_weights(project, monkeypatch):
    pytest.importorskip("peft")
    preset = load_preset("tiny")
    lora = preset.encoder.model_copy(update={"lora": LoraSettings(rank=2, dropout=0.1)})
    preset = preset.model_copy(update={"encoder": lora})
    folder = train(preset, "codiemb", 0, progress=False)
    before, after = load_file(project / "encoder" / "model.safetensors"), weights(folder)
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(".dense." in name or ".self." in name for name in moved)
    folder.rename(project / "whole")

    def stop(run):
        save(run)
        if run.step == 12:
            raise KeyboardInterrupt

    save = training._Run._save
    with monkeypatch.context() as patch:
        patch.setattr(training._Run, "_save", stop)
        with pytest.raises(KeyboardInterrupt):
            train(preset, "codiemb", 0, progress=False)
    saved = load_file(folder / "checkpoints" / "00000012" / "weights.safetensors")
    assert all("lora_" in name for name in saved)
    train(preset, "codiemb", 0, progress=False)
    assert_same_run(folder, project / "whole")


def test_a_failure_in_another_process_is_told(project, two_processes):
    preset = change(project, batch_sizes={"ir": 30, "sts": 4, "mixed": 4})
    with pytest.raises(training.LaunchError, match="at least one global batch of 60 records"):
        train(preset, "ir_only", 0, progress=False, accelerate=two_processes)
    with pytest.raises(PresetError, match=r"expected the path of a configuration.*found 'three'"):
        train(preset, "ir_only", 0, accelerate="three")


def test_trackers_get_every_step_by_name(project):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    preset = change(project, trackers=["tensorboard"])
    folder = train(preset, "ir_only", 0, progress=False)
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
        train(change(project, trackers=["wand"]), "codiemb", 0, progress=False)


def test_a_step_s_time_is_that_of_drawing_too_but_not_of_scoring_and_saving(project, monkeypatch):
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr(training, "time", clock)

    def takes(seconds, owner, name):
        original = getattr(owner, name)

        def wrapped(*arguments, **options):
            clock.now += seconds
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, wrapped)

    takes(1, training.OptimizerSteps, "__getitem__")
    takes(2, training, "backward")
    takes(10, training._Run, "_evaluate")
    takes(20, training._Run, "_save")
    preset = change(project, max_steps=3, evaluate_every=2)
    log = pd.read_csv(train(preset, "ir_only", 0, progress=False) / "log.csv")
    assert list(log["seconds"]) == [3, 3, 3]
    np.testing.assert_allclose(log["tokens_per_second"], log["tokens"] / 3, atol=0.1)


def test_a_watch_sees_every_step(project):
    seen = []
    train(
        load_preset("tiny"),
        "ir_only",
        0,
        progress=False,
        watch=lambda log, dev: seen.append((len(log), dev["step"].max())),
    )
    assert seen == [(n, n if n % 4 == 0 or n == 10 else n // 4 * 4) for n in range(1, 11)]


def test_dev_scores_keep_to_the_tokens_of_a_forward_pass(project, monkeypatch):
    budgets = set()
    encode = Encoder.encode
    monkeypatch.setattr(
        Encoder,
        "encode",
        lambda *a, tokens_per_forward, **o: (
            budgets.add(tokens_per_forward)
            or encode(*a, tokens_per_forward=tokens_per_forward, **o)
        ),
    )
    train(change(project, tokens_per_forward=512, max_steps=1), "ir_only", 0, progress=False)
    assert budgets == {512}


def test_accumulation_sees_every_record_and_steps_on_a_short_last_group(project, monkeypatch):
    seen = []
    call = training.backward
    monkeypatch.setattr(
        training,
        "backward",
        lambda accelerator, model, share, *rest, **options: (
            seen.extend(share.batch.step.indices)
            or call(accelerator, model, share, *rest, **options)
        ),
    )
    preset = change(project, accumulation=4, epochs=1)
    log = pd.read_csv(train(preset, "ir_only", 0, progress=False) / "log.csv")
    assert len(log) == 2  # 40 records in 5 batches of 8: groups of 4 and 1
    assert sorted(seen) == list(range(40))


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_batch(project, monkeypatch):
    nan = torch.tensor(torch.nan, requires_grad=True)
    with monkeypatch.context() as broken:
        broken.setattr(training, "batch_loss", lambda *_, **__: Loss(nan, {"info_nce": nan}))
        with pytest.raises(FloatingPointError, match=r"a finite loss, found nan .* at step 0"):
            train(load_preset("tiny"), "ir_only", 0, progress=False)
    kept = project / "data" / "runs" / "tiny" / "ir_only" / "seed-0" / "nonfinite"
    assert len(read_jsonl(kept / "batch.jsonl")) == 8
    assert json.loads((kept / "details.json").read_text())["step"] == 0
    train(load_preset("tiny"), "ir_only", 0, progress=False)
    assert not kept.exists()  # a good run does not look as if it had diverged


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_weights_change(
    project, monkeypatch
):
    def broken(batch, final, *rest, **options):
        zero = (final.sum() * 0).sqrt()  # its derivative at zero is infinite
        return Loss(zero, {"info_nce": zero})

    monkeypatch.setattr(training, "batch_loss", broken)
    with pytest.raises(FloatingPointError, match="expected a finite gradient, found nan"):
        train(load_preset("tiny"), "ir_only", 0, progress=False)


def test_an_unwritable_folder_stops_the_run_before_work(project, monkeypatch):
    (project / "data" / "runs").write_text("a file where the folder should be")
    monkeypatch.setattr(training, "_Run", None)
    with pytest.raises(UnwritableError):
        train(load_preset("tiny"), "ir_only", 0, progress=False)


def test_a_finished_run_outlives_tries_that_fail(project, monkeypatch):
    preset = load_preset("tiny")
    folder = train(preset, "ir_only", 0, progress=False)
    shutil.copytree(folder, project / "finished")
    other = preset.model_copy(
        update={"training": preset.training.model_copy(update={"learning_rate": 0.1})}
    )
    nan = torch.tensor(torch.nan, requires_grad=True)
    with monkeypatch.context() as broken:
        broken.setattr(training, "batch_loss", lambda *_, **__: Loss(nan, {"info_nce": nan}))
        for _ in range(2):  # the second finds no finished run to set aside, and leaves the first's
            with pytest.raises(FloatingPointError):
                train(other, "ir_only", 0, progress=False)
            assert not (folder / "model").exists()  # nor do weights of one run pass for another's
            assert_same_run(folder / "earlier", project / "finished")
        broken.setattr(training, "_Run", None)  # nothing is trained
        train(preset, "ir_only", 0, progress=False)
    assert_same_run(folder, project / "finished")
    assert not {"earlier", "nonfinite", "checkpoints"} & {path.name for path in folder.iterdir()}
    train(other, "ir_only", 0, progress=False)
    assert not (folder / "earlier").exists()
    assert not torch.equal(
        *(next(iter(weights(f).values())) for f in (folder, project / "finished"))
    )


def _without_similarity(content):
    content["datasets"].pop()


def _without_training_records(content):
    content["datasets"][0]["train"] = 0


def _with_too_many_dimensions(content):
    content["objective"]["matryoshka"] = [8, 998]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_without_similarity, "found none of 'sts'"),
        (_without_training_records, r"to train on of its tasks \['ir'\], found none"),
        (_with_too_many_dimensions, r"below the encoder's 16, which counts anyway, found \[8, 998"),
    ],
)
def test_a_preset_that_cannot_be_trained_is_refused(project, change, says):
    with pytest.raises(PresetError, match=says):
        train(rewrite(project, change), "ir_only", 0, progress=False)


def test_a_preset_that_is_refused_leaves_no_folder(project):
    with pytest.raises(PresetError, match="accelerate"):
        train(load_preset("tiny"), "ir_only", 0, accelerate="typo", progress=False)
    with pytest.raises(PresetError, match="to train on"):
        train(rewrite(project, _without_training_records), "ir_only", 0, progress=False)
    assert not (project / "data" / "runs").exists()


def _with_one_rated_pair(content):
    content["datasets"][1]["dev"] = 1


def test_a_dev_score_that_is_undefined_names_its_data_set(project):
    with pytest.raises(EvaluationError, match="sts: expected two lists of at least two values"):
        train(rewrite(project, _with_one_rated_pair), "ir_only", 0, progress=False)


def test_a_data_set_may_serve_training_or_testing_alone(project):
    path = project / "notebooks/presets/tiny.yaml"
    content = yaml.safe_load(path.read_text())
    more = project / "more"
    more.mkdir()
    shutil.copy(project / "ir" / "test.jsonl", more)
    content["datasets"].append({"name": str(more), "train": 0, "dev": 0})
    path.write_text(yaml.safe_dump(content))
    folder = train(load_preset("tiny"), "ir_only", 0, progress=False)
    assert set(pd.read_csv(folder / "dev.csv")["dataset"]) == {
        str(project / "ir"),
        str(project / "sts"),
    }


def test_how_many_work_ahead_and_who_listens_makes_no_other_run(project):
    before = train(load_preset("tiny"), "ir_only", 0, progress=False) / "manifest.json"
    written = before.stat().st_mtime_ns
    train(change(project, workers=1), "ir_only", 0, progress=False)
    assert before.stat().st_mtime_ns == written
    train(change(project, tokens_per_forward=512), "ir_only", 0, progress=False)
    assert before.stat().st_mtime_ns > written


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
