"""Every command that writes: what it starts from, its call, and how what it writes is read."""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from codiemb_lib import data, evaluate, train
from codiemb_lib.app import main
from codiemb_lib.core import (
    load_preset,
    manifest_of,
    rows_file,
    run_folder,
    write_arrays,
    write_json,
    write_text,
)
from codiemb_lib.core.runs import OF_FIRST_SEED, OF_GEOMETRY
from codiemb_lib.model import Encoder
from tests.conftest import tiny_encoder
from tests.made_up import ir_records, sts_records
from tests.train.conftest import PRESET

ROOT = Path(__file__).parents[2]
FIGURES, PRESETS = ROOT / "figures", ROOT / "notebooks" / "presets"
OUT = Path("out")  # what a command writes, in the folder of the attempt


class CommandError(Exception):
    """A command ended with another status than 0."""


@dataclass(frozen=True)
class Command:
    """All paths are relative: a command is called in the folder of its attempt."""

    call: Callable[[], Any]
    read: Callable[[], Any]  # what a reader takes for whole, to be compared; None: nothing is there
    start: Callable[[], Any] = lambda: None  # what stands there before, beside the small project


def cli(*words: str) -> Callable[[], None]:
    def call() -> None:
        try:
            status = main(words)
        except Exception as error:
            traceback.print_exc()
            raise CommandError(f"{' '.join(words)}: a traceback") from error
        if status:
            raise CommandError(f"{' '.join(words)}: status {status}")

    return call


# --- What they start from -------------------------------------------------------------------------


def start_records() -> None:
    data.write_jsonl(OUT / "test.jsonl", ir_records(3, 7))  # of one's own, which is nowhere else


def start_models() -> None:
    encoder = tiny_encoder()
    for number in (1, 2):
        generator = torch.Generator().manual_seed(number)
        for parameter in encoder.backbone.parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
        encoder.save(Path(f"run-{number}"))
    recipe = {"base": "encoder", "ingredients": {"one": "run-1", "two": "run-2"}}
    Path("delta.yaml").write_text(yaml.safe_dump(recipe))
    greedy = recipe | {"method": "greedy", "dev": PRESET}
    Path("greedy.yaml").write_text(yaml.safe_dump(greedy))


def start_run() -> None:
    """A finished run of other settings."""
    text = Path(PRESET).read_text()
    Path(PRESET).write_text(text.replace("learning_rate: 0.001", "learning_rate: 0.01"))
    run()
    Path(PRESET).write_text(text)


def start_figure() -> None:
    folder = Path("figures/tiny")
    folder.mkdir(parents=True)
    shutil.copy(FIGURES / "mini" / "trade_off.csv", folder)


def start_seed() -> None:
    """Tables of made-up runs of a preset without merges, as its notebooks leave them."""
    preset = load_preset("tiny").model_copy(update={"fusion": {}, "fusion_study": None})
    for name in (*preset.models, "geometry"):
        folder = run_folder("tiny", name, 0)
        tables = ("scores", "dev", "log", *OF_GEOMETRY, *OF_FIRST_SEED)
        for table in tables:
            write_text(folder / f"{table}.csv", "value,tokens\n1,1\n")
        write_arrays(folder / "texts.npz", {f"ir/ir/{name}/0": np.arange(9)})
        made = {"files": {}, "seconds": 1, "peak_memory_mib": 1, "hardware": "", "git_commit": ""}
        write_json(folder / "manifest.json", made)


# --- How they are read ----------------------------------------------------------------------------


def records() -> str | None:
    return data.load_dataset(str(OUT)).content_hash if OUT.exists() else None


def model(folder: Path = OUT) -> Any:
    return Encoder.load(folder.absolute()).encode(["a cat"]).tolist() if folder.exists() else None


def rows() -> Any:
    """The table has the rows of the tasks that are finished; all are as wide as its header."""
    return {line.count(",") for line in OUT.read_text().splitlines()} if OUT.exists() else None


def bytes_of(*files: str) -> Callable[[], Any]:
    def read() -> list[bytes | None]:
        return [Path(file).read_bytes() if Path(file).exists() else None for file in files]

    return read


def figure() -> list[str] | None:
    picture = Path("figures/tiny/trade_off.png")  # which is written last
    beside = [picture.with_suffix(f".{end}") for end in ("csv", "md", "pdf")]
    return [file.read_text("latin-1")[:20] for file in beside] if picture.exists() else None


def kept() -> list[bytes] | None:
    folder = rows_file("tiny", 0, "")
    files = sorted(folder.iterdir()) if folder.exists() else ()
    return [file.read_bytes() for file in files if not file.name.endswith(".partial")] or None


def finished() -> Any:
    folder = run_folder("tiny", "ir_only", 0)
    manifest = manifest_of(folder)
    return manifest and (manifest["fingerprint"], model(folder / "model"))


# --- The commands ---------------------------------------------------------------------------------


def run() -> None:
    train.train(load_preset("tiny"), "ir_only", 0, progress=False)


def write_splits() -> None:
    splits = {"train": sts_records(8), "test": sts_records(4, 1)}
    data.write_splits(OUT, splits, ["a passage", "another"])


def save_encoded() -> None:
    sets = [data.load_dataset(name) for name in ("ir", "sts")]
    preset = load_preset("tiny")
    settings = dict(zip(("ir", "sts"), preset.datasets, strict=False))
    encoder = Encoder.load(preset.encoder)
    encoded = [evaluate.encode_dataset(encoder, settings[s.name], s.split("dev")) for s in sets]
    evaluate.save_encoded(OUT, encoded)


def save_model() -> None:
    tiny_encoder(seed=1).save(OUT)


MINE = ("data", "mine", "ir", "out", "--encoder", "encoder", "--margin", "0", "--depth", "9")
BENCHMARK = ("benchmark", "encoder", "--tasks", "ir", "sts", "--out", "out", "--cache", "kept")

COMMANDS = {
    "data prepare": Command(cli("data", "prepare", "ir", "out"), records),
    "data prepare, beside a split": Command(
        cli("data", "prepare", "ir/train.jsonl", "out"), records, start_records
    ),
    "data mine": Command(cli(*MINE), records),
    "write_splits": Command(write_splits, records),
    "fuse, delta": Command(cli("fuse", "delta.yaml", "out"), model, start_models),
    "fuse, greedy": Command(cli("fuse", "greedy.yaml", "out"), model, start_models),
    "benchmark": Command(cli(*BENCHMARK), rows),
    "train": Command(run, finished),
    "train, over another run": Command(run, finished, start_run),
    "Encoder.save": Command(save_model, model),
    "Encoder.save, over another": Command(save_model, model, lambda: tiny_encoder().save(OUT)),
    "save_encoded": Command(save_encoded, bytes_of("out")),
    "publish": Command(cli("publish", "--preset", "tiny", "--seed", "0"), kept, start_seed),
    "draw": Command(cli("draw", "trade_off", "--preset", "tiny"), figure, start_figure),
    "report": Command(cli("report", "--preset", PRESET, "--out", "out"), bytes_of("out")),
}

# Those that may be called twice at once.
DOUBLED = {"data prepare", "data mine", "fuse, delta", "benchmark", "train"}
