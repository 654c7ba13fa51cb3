"""Golden values of training: whole runs, plans, batches, gradients and objectives."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file

from codiemb_lib.core.files import project_root
from codiemb_lib.core.preset import ObjectiveSettings, load_preset
from codiemb_lib.data.records import write_jsonl
from codiemb_lib.train import objectives
from codiemb_lib.train.batches import make_batch, make_share
from codiemb_lib.train.conflict import conflict
from codiemb_lib.train.loop import learning_rate, train
from codiemb_lib.train.sampling import MixedTaskPlan, SingleTaskPlan
from tests.conftest import tiny_encoder
from tests.golden import check, digest, summary
from tests.made_up import PROMPTS, ir_records, sts_records

RUNS = {  # what differs from the first, by section of the preset
    "single": {},
    "mixed": {"variant": {"plan": "mixed", "sts_objective": "info_nce"}},
    "mixed, own losses": {"variant": {"plan": "mixed", "sts_objective": "codiemb"}},
    "paired": {"variant": {"plan": "paired"}, "training": {"clip_norm": None, "keep": "last"}},
    "info_nce": {"variant": {"sts_objective": "info_nce"}},
    "cosent": {"variant": {"sts_objective": "cosent"}},
    "angle": {"variant": {"sts_objective": "angle"}},
    "cached": {"training": {"gradient_cache": True, "tokens_per_forward": 64}},
    "accumulated": {"training": {"accumulation": 2}},
    "lora": {"encoder": {"lora": {"rank": 2, "alpha": 4, "dropout": 0.1}}},
    "matryoshka": {"variant": {"objective": {"matryoshka": [4, 8]}, "balance": "equal"}},
}


@contextmanager
def project(*, variant=None, training=None, encoder=None) -> Iterator[None]:
    """A project folder with a preset `tiny` of one variant, six optimiser steps long."""
    registry = project_root() / "data" / "registry.yaml"
    with TemporaryDirectory() as name, mock.patch.dict(os.environ, CODIEMB_ROOT=name):
        folder = Path(name)
        tiny_encoder().save(folder / "encoder")
        (folder / "data").mkdir()
        shutil.copy(registry, folder / "data")
        for task, make in {"ir": ir_records, "sts": sts_records}.items():
            for number, split in enumerate(("train", "dev", "test")):
                records = make(40 if split == "train" else 12, number)
                write_jsonl(folder / task / f"{split}.jsonl", records)
        preset = {
            "name": "tiny",
            "description": "for tests",
            "seeds": [0],
            "encoder": {"name": "encoder", "max_length": 16} | (encoder or {}),
            "datasets": [
                {"name": "ir", "query_prompt": "query: "},
                {"name": "sts", "query_prompt": "find "},
            ],
            "objective": {"positives": 2, "negatives": 1},
            "training": {
                "batch_sizes": {"ir": 8, "sts": 8, "mixed": 8},
                "learning_rate": 1e-3,
                "epochs": 2,
                "max_steps": 6,
                "evaluate_every": 6,  # else the weights of an earlier step might be kept
            }
            | (training or {}),
            "variants": {"tried": variant or {}},
        }
        path = folder / "notebooks" / "presets" / "tiny.yaml"
        path.parent.mkdir(parents=True)
        path.write_text(yaml.safe_dump(preset))
        yield


def run(name: str) -> dict | None:
    if torch.accelerator.is_available():  # training would take it, and round otherwise
        return None
    with project(**RUNS[name]):
        folder = train(load_preset("tiny"), "tried", 0, progress=False)
        log = pd.read_csv(folder / "log.csv")
        dev = pd.read_csv(folder / "dev.csv")
        groups = defaultdict(list)
        for tensor, weights in sorted(load_file(folder / "model" / "model.safetensors").items()):
            # A key's bias has no effect and no gradient but for rounding, which Adam magnifies.
            if not tensor.endswith("key.bias"):
                place = re.match(r"embeddings|encoder\.layer\.\d+|pooler", tensor)[0]
                groups[place].append(weights.flatten())
        selected = json.loads((folder / "manifest.json").read_text())["settings"]["selected_step"]
    return {
        "log": log.drop(columns=[column for column in log if "second" in column]),
        "dev": dev,
        "weights": {place: summary(torch.cat(parts)) for place, parts in groups.items()},
        "selected_step": selected,
    }


RECORDS = [
    *ir_records(20, 1, "ir"),
    *ir_records(9, 2, "ir-small"),
    *sts_records(32, 3, "sts"),
    *sts_records(13, 4, "sts-small"),
]
NAMED = {f"{name}{end}": PROMPTS[name] for name in PROMPTS for end in ("", "-small")}
BALANCES = {
    "proportional": {},
    "equal": {"balance": "equal"},
    "ir_share": {"balance": "ir_share", "ir_share": 0.25},
    "temperature": {"balance": "temperature", "temperature": 0.5},
}


def plan_of(name: str) -> SingleTaskPlan | MixedTaskPlan:
    if name == "mixed":
        return MixedTaskPlan(RECORDS, batch_size=4)
    return SingleTaskPlan(RECORDS, batch_sizes={"ir": 4, "sts": 6}, **BALANCES[name])


def plans() -> dict:
    return {
        f"{name}, {ranks} ranks": [
            f"{s.task} {s.dataset} {s.shards}"
            for s in plan_of(name).steps(1, seed=3, world_size=ranks)
        ]
        for name in (*BALANCES, "mixed")
        for ranks in (1, 2)
    }


def batches() -> dict:
    """The first batch of each data set, and two mixed ones: who meets whom, and in which order."""
    steps = {f"{s.task} {s.dataset}": s for s in plan_of("proportional").steps(0, seed=0)}
    mixed = plan_of("mixed").steps(0, seed=0)
    settings = ObjectiveSettings(positives=3, negatives=2, mixed_anchor_score=0.5)
    found = {}
    for name, step in (steps | {"mixed 0": mixed[0], "mixed 1": mixed[1]}).items():
        how = {"sts_objective": "info_nce" if step.task == "mixed" else "codiemb"}
        batch = make_batch(step, RECORDS, NAMED, settings, np.random.default_rng(5), **how)
        found[name] = {"texts": digest(batch.texts), "first": batch.texts[0]} | {
            part: getattr(batch, part) for part in ("queries", "positives", "negatives", "scores")
        }
    return found


def conflicts() -> dict:
    """Of the first two batches of each kind."""
    with project():
        preset, encoder = load_preset("tiny"), tiny_encoder()
    records = ir_records(40, 0, "ir") + sts_records(40, 0, "sts")
    planned = SingleTaskPlan(records, batch_sizes={"ir": 8, "sts": 8}).steps(0, seed=0)
    planned += MixedTaskPlan(records, batch_size=8).steps(0, seed=0)
    prompts = {dataset.name: dataset for dataset in preset.datasets}
    generator = np.random.default_rng(0)
    drawn = {
        kind: [
            make_share(
                make_batch(
                    batch,
                    records,
                    prompts,
                    preset.objective,
                    generator,
                    sts_objective="info_nce" if kind == "mixed" else "codiemb",
                ),
                encoder.tokenizer,
                tokens_per_forward=2048,
                packing=encoder.packing,
                seed=[0, number],
            )
            for number, batch in enumerate([p for p in planned if p.task == kind][:2])
        ]
        for kind in ("ir", "sts", "mixed")
    }
    return {
        objective: {
            " ".join(kinds): summary(rows["cosine"].to_numpy(copy=True))
            for kinds, rows in conflict(encoder, drawn, preset.objective, objective).groupby(
                ["first", "second"]
            )
        }
        for objective in ("codiemb", "cosent")
    }


def objective_values() -> dict:
    """Each objective on fixed tensors, and the norm of its gradient in each of them."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    left, right = normal(8, 6), normal(8, 6)
    cosines = torch.cosine_similarity(left, right)
    scores = torch.tensor([0.0, 0.2, 0.2, 0.5, 0.8, 1.0, 1.0, 0.35])
    anchored = partial(objectives.anchored_info_nce, scores=scores)
    rated = {
        name: partial(getattr(objectives, name), scores=scores)
        for name in ("pearson_loss", "rank_kl_loss", "pro_loss", "cosent_loss")
    }
    several = left[:4], normal(4, 3, 6), normal(4, 2, 6)
    same = torch.eye(4, dtype=torch.bool)
    same[0, 2] = same[2, 0] = True
    same = same[:, :, None].expand(-1, -1, 3)
    nce = objectives.multi_positive_info_nce
    trials = {
        "multi_positive_info_nce": (nce, several),
        "multi_positive_info_nce, warm": (partial(nce, temperature=0.5), several),
        "multi_positive_info_nce, same": (partial(nce, temperature=0.5, same=same), several),
        "multi_positive_info_nce, pool": (
            partial(nce, temperature=0.1),
            (*several[:2], left[4:6, None]),
        ),
        "anchored_info_nce": (anchored, (left, right)),
        "anchored_info_nce, lower": (
            partial(anchored, temperature=0.2, anchor_score=0.5),
            (left, right),
        ),
        "angle_loss": (partial(objectives.angle_loss, scores=scores), (left, right)),
        **{name: (loss, (cosines,)) for name, loss in rated.items()},
        **{
            f"{name}, warm": (partial(rated[name], temperature=0.3), (cosines,))
            for name in rated
            if name != "pearson_loss"
        },
    }
    found = {}
    for name, (loss, tensors) in trials.items():
        leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
        value = loss(*leaves)
        gradients = torch.autograd.grad(value, leaves)
        found[name] = [value.item(), *(g.norm().item() for g in gradients)]
    return found


def rates() -> list[float]:
    return [learning_rate(step, 20, peak=1e-3, warmup=0.2) for step in range(20)]


CASES = {f"run {name}": partial(run, name) for name in RUNS} | {
    "plans": plans,
    "batches": batches,
    "gradient conflict": conflicts,
    "objectives": objective_values,
    "learning rates": rates,
}


@pytest.mark.parametrize("case", CASES)
def test_golden(case):
    if (found := CASES[case]()) is None:
        pytest.skip("the numbers are those of a CPU")
    check("train", {case: found})
