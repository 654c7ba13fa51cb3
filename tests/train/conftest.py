"""A small project to train in, and what its runs are asked for."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file

from codiemb_lib.core import load_preset, project_root, write_json
from codiemb_lib.data import write_jsonl
from codiemb_lib.train.loop import train
from tests.made_up import ir_records, sts_records

ROOT, PRESET = Path(__file__).parents[2], "notebooks/presets/tiny.yaml"
ENTRIES = ["dev.csv", "log.csv", "manifest.json", "model"]  # of a finished run


def make_project(folder, encoder):
    """A project folder with a preset `tiny`: a tiny encoder and two small data sets."""
    encoder.save(folder / "encoder")
    (folder / "data").mkdir()
    shutil.copy(project_root() / "data" / "registry.yaml", folder / "data")
    for task, make in {"ir": ir_records, "sts": sts_records}.items():
        for number, split in enumerate(("train", "dev", "test")):
            path = folder / task / f"{split}.jsonl"
            write_jsonl(path, make(40 if split == "train" else 12, number))
    write_jsonl(folder / "more" / "test.jsonl", ir_records(4))  # of which nothing trains
    preset = {
        "name": "tiny",
        "description": "for tests",
        "seeds": [0],
        "encoder": {"name": "encoder", "max_length": 16},
        "datasets": [{"name": "ir"}, {"name": "sts"}, {"name": "more", "train": 0, "dev": 0}],
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
            "mixed": {"plan": "mixed", "sts_objective": "info_nce"},
            "mixed_own": {"plan": "mixed", "sts_objective": "codiemb"},
            "paired": {"plan": "paired"},
        },
    }
    path = folder / PRESET
    path.parent.mkdir(parents=True)
    path.write_text(yaml.safe_dump(preset))


@pytest.fixture
def project(tmp_path, monkeypatch, make_encoder):
    make_project(tmp_path, make_encoder())
    monkeypatch.setenv("CODIEMB_ROOT", str(tmp_path))
    return tmp_path


def change(project, **training):
    """The preset with other settings of training, in its file too."""
    content = yaml.safe_load((project / PRESET).read_text())
    content["training"].update(training)
    (project / PRESET).write_text(yaml.safe_dump(content))
    return load_preset("tiny")


def run(preset, variant="ir_only", seed=0, **options):
    return train(preset, variant, seed, progress=False, **options)


def without_dropout(project):
    path = project / "encoder" / "config.json"
    settings = json.loads(path.read_text())
    write_json(path, settings | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


def books(folder):
    """A run's log and dev scores without what the clock says, to the last bit."""
    log, dev = (pd.read_csv(folder / f"{name}.csv") for name in ("log", "dev"))
    return log.drop(columns=[name for name in log if "second" in name]), dev


def assert_same_run(folder, other):
    expected, found = weights(other), weights(folder)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    for ours, theirs in zip(books(folder), books(other), strict=True):
        pd.testing.assert_frame_equal(ours, theirs, check_exact=True)
