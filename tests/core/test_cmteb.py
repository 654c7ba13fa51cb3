"""The paper's data on the Hub: folders laid out like it load and train by the presets' names."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from codiemb_lib.core.files import project_root
from codiemb_lib.core.preset import load_preset, preset_path
from codiemb_lib.data.datasets import load_datasets
from codiemb_lib.data.registry import HubEntry, list_datasets
from codiemb_lib.train.loop import train

datasets = pytest.importorskip("datasets", reason="the optional package of the Hub")

PRESETS = ["cmteb-bge", "cmteb-e5", "cmteb-minicpm"]
COLLECTION = "hanhainebula/bge-multilingual-gemma2-data"
PAIRS = ("train", "validation", "test")
# What the Hub's pages show: the splits of each repository, and of the collection its configurations
# and their files.
SIMILARITY = {"AFQMC": PAIRS, "BQ": PAIRS, "LCQMC": PAIRS, "PAWSX": PAIRS, "STSB": PAIRS}
RERANKING = {"T2Reranking": "dev", "Mmarco-reranking": "dev", "CMedQAv2-reranking": "test"}
TRAINING = {
    "zh_t2ranking": "zh/T2Ranking/t2ranking.jsonl",
    "zh_dureader": "zh/DuReader/dureader.jsonl",
    "zh_mmarco_zh": "zh/mMARCO_zh/mmarco.jsonl",
    "zh_cmedqav2": "zh/cMedQAv2/cmedqa.jsonl",
}
# Which of the paper's training sets is which entry of the registry.
PAPER = {
    "T2Retrieval": "cmteb-t2-ranking",
    "DuRetrieval": "cmteb-dureader",
    "T2Reranking": "cmteb-t2-ranking",
    "MMarcoReranking": "cmteb-mmarco",
    "CMedQAv2-reranking": "cmteb-cmedqa-v2",
    "BQ": "cmteb-bq",
    "LCQMC": "cmteb-lcqmc",
    "PAWSX": "cmteb-pawsx",
    "STS-B": "cmteb-stsb",
    "AFQMC": "cmteb-afqmc",
}
THINGS = "猫狗车船书花鸟鱼山河"
CHARACTERS = THINGS + "红蓝新旧大小的是什么在哪里我看见一"


def question(i: int) -> str:
    return f"{CHARACTERS[10 + i % 6]}的{THINGS[i % 10]}{THINGS[i // 10 % 10]}在哪里"


def passages(i: int, count: int) -> list[str]:
    return [
        f"我看见{THINGS[(i + n) % 10]}{CHARACTERS[10 + (i + n) % 6]} {i} {n}" for n in range(count)
    ]


def rated(name: str, split: str) -> datasets.Dataset:
    """Sixty pairs in the columns of a similarity set of C-MTEB."""
    sides = {
        f"sentence{n}": [f"{question(i + 7 * n)} {split} {i}" for i in range(60)] for n in (1, 2)
    }
    scores = [i % 6 if name == "STSB" else i % 2 for i in range(60)]
    if name != "AFQMC":
        return datasets.Dataset.from_dict(sides | {"score": scores})
    labels = {"score": datasets.ClassLabel(names=["0", "1"]), "idx": datasets.Value("int32")}
    texts = {side: datasets.Value("string") for side in sides}
    scores = [-1] * 60 if split == "test" else scores  # not public
    rows = sides | {"score": scores, "idx": list(range(60))}
    return datasets.Dataset.from_dict(rows, datasets.Features(texts | labels))


def ranked() -> datasets.Dataset:
    """Five queries in the columns of a reranking set of C-MTEB."""
    rows = {"query": [question(i) for i in range(5)]}
    rows |= {"positive": [passages(i, 2) for i in range(5)]}
    return datasets.Dataset.from_dict(rows | {"negative": [passages(i + 50, 3) for i in range(5)]})


def searched(config: str) -> str:
    """A hundred lines as FlagEmbedding has them."""
    rows = (
        {
            "query": f"{question(i)} {config}",
            "pos": passages(i, 1 + i % 3),
            "neg": passages(i + 500, 6),
            "pos_scores": [0.9] * (1 + i % 3),
            "neg_scores": [0.1] * 6,
            "prompt": "Given a question, retrieve passages that answer it.",
            "type": "normal",
        }
        for i in range(100)
    )
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_card(folder, configs: dict[str, dict[str, str]]) -> None:
    """The head of a README, which says where the splits of each configuration lie."""
    listed = [
        {
            "config_name": config,
            "data_files": [{"split": s, "path": path} for s, path in splits.items()],
        }
        for config, splits in configs.items()
    ]
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': listed})}---\n")


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A folder for each repository that the registry names, as the Hub has it but tiny."""
    root = tmp_path_factory.mktemp("hub")
    tables = {
        f"C-MTEB/{name}": {split: rated(name, split) for split in splits}
        for name, splits in SIMILARITY.items()
    }
    tables |= {f"C-MTEB/{name}": {split: ranked()} for name, split in RERANKING.items()}
    for name, splits in tables.items():
        folder = root / name
        for split, table in splits.items():
            file = folder / "data" / f"{split}-00000-of-00001-0123456789abcdef.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            table.to_parquet(file)
        write_card(folder, {"default": {split: f"data/{split}-*" for split in splits}})
    for config, file in TRAINING.items():
        path = root / COLLECTION / file
        path.parent.mkdir(parents=True)
        path.write_text(searched(config), encoding="utf-8")
    write_card(root / COLLECTION, {config: {"train": file} for config, file in TRAINING.items()})
    return root


@pytest.fixture
def project(tmp_path, hub, monkeypatch, make_encoder, no_network):
    """A project whose registry finds the Hub's repositories in local folders, and a tiny BERT."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    entries = yaml.safe_load((project_root() / "data" / "registry.yaml").read_text())
    for entry in entries.values():
        if "hub" in entry:
            assert (hub / entry["hub"]).is_dir()  # no other repository is named
            entry["hub"] = str(hub / entry["hub"])
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "registry.yaml").write_text(yaml.safe_dump(entries, sort_keys=False))
    encoder = make_encoder(characters=CHARACTERS, max_length=64)
    for parameter in encoder.parameters():  # as it starts, [CLS] hardly sees the texts
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    encoder.save(tmp_path / "encoder")
    content = yaml.safe_load(preset_path("cmteb-bge").read_text())
    content["encoder"] = {"name": str(tmp_path / "encoder"), "pooling": "cls", "max_length": 64}
    content["training"] |= {"batch_sizes": {"ir": 4, "sts": 4, "mixed": 4}, "max_steps": 4}
    content["training"] |= {"evaluate_every": 4, "workers": 0, "accelerate": ""}
    instructions = preset_path("cmteb-bge").parent / "instructions"
    monkeypatch.setenv("CODIEMB_ROOT", str(tmp_path))
    shutil.copytree(instructions, preset_path("cmteb-bge").parent / "instructions")
    preset_path("cmteb-bge").write_text(yaml.safe_dump(content))
    return tmp_path


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_trains_on_what_the_paper_trained_on(name):
    preset = load_preset(name)
    hub = {entry.name for entry in list_datasets() if isinstance(entry, HubEntry)}
    assert {d.name for d in preset.datasets} <= hub  # nothing that one has to prepare
    assert {d.name for d in preset.datasets if d.train != 0} == set(PAPER.values())
    tested = {d.name for d in preset.datasets if d.test != 0}
    assert {f"cmteb-{n}-reranking" for n in ("t2", "mmarco", "cmedqa-v2")} <= tested


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_searches_with_one_prompt_in_training_and_in_the_benchmark(name):
    preset = load_preset(name)
    prompts = {d.name: d.query_prompt for d in preset.datasets}
    for data, task in {
        "t2-ranking": "T2Retrieval",
        "t2-reranking": "T2Retrieval",
        "dureader": "DuRetrieval",
        "mmarco": "MMarcoRetrieval",
        "mmarco-reranking": "MMarcoRetrieval",
        "cmedqa-v2": "CmedqaRetrieval",
        "cmedqa-v2-reranking": "CmedqaRetrieval",
    }.items():
        assert prompts[f"cmteb-{data}"] == preset.benchmark[task].query_prompt
        assert prompts[f"cmteb-{data}"]


def test_folders_laid_out_like_the_hub_load_as_the_preset_names_them(project):
    preset = load_preset("cmteb-bge")
    loaded = load_datasets(preset)
    sizes = {
        name: {split: len(records) for split, records in dataset.splits.items()}
        for name, dataset in loaded.items()
    }
    pairs = {"train": 60, "dev": 60, "test": 60}
    search = {"train": 98, "dev": 2}
    assert sizes == {
        "cmteb-afqmc": pairs | {"train": 57, "dev": 3},
        **{f"cmteb-{name}": pairs for name in ("bq", "lcqmc", "pawsx", "stsb")},
        **{f"cmteb-{name}": search for name in ("t2-ranking", "dureader", "mmarco", "cmedqa-v2")},
        **{f"cmteb-{name}-reranking": {"test": 5} for name in ("t2", "mmarco", "cmedqa-v2")},
    }
    score = {record.score for record in loaded["cmteb-stsb"].splits["train"]}
    assert score == {0, 0.2, 0.4, 0.6, 0.8, 1}
    assert {record.score for record in loaded["cmteb-afqmc"].splits["test"]} == {0, 1}
    record = loaded["cmteb-dureader"].splits["train"][0]
    assert record.query == f"{question(2)} zh_dureader"  # each configuration has its own rows
    assert (record.positives, record.negatives) == (tuple(passages(2, 3)), tuple(passages(502, 6)))
    [test, *_] = loaded["cmteb-t2-reranking"].splits["test"]
    assert (test.positives, test.negatives) == (tuple(passages(0, 2)), tuple(passages(50, 3)))


def test_a_preset_trains_on_them(project):
    preset = load_preset("cmteb-bge")
    folder = train(preset, "codiemb", 49, progress=False)
    log = pd.read_csv(folder / "log.csv")
    assert len(log) == 4
    assert set(log["task"]) == {"ir", "sts"}
    assert np.isfinite(log["loss"]).all()
    dev = pd.read_csv(folder / "dev.csv")
    assert set(dev["dataset"]) == set(PAPER.values())
    assert np.isfinite(dev["value"]).all()
