"""Where a run lies, what its manifest says, and the tables of many runs put together."""

import logging
import os
import platform
import re
import resource
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from codiemb_lib.core.files import (
    atomic_path,
    damaged,
    project_root,
    read_json,
    sha256_files,
    write_json,
)
from codiemb_lib.core.preset import Preset, preset_path
from codiemb_lib.core.words import CodiembError

logger = logging.getLogger(__name__)

# What a run is made of; scores and embeddings are measured later.
PARTS = ("model/**/*", "trajectory/*", "log.csv", "dev.csv", "fusion.csv")


def preset_folder(preset: str) -> Path:
    """`data/runs/<preset>`: the runs and tables of a preset, named as in `notebooks/presets`."""
    if Path(preset).name != preset or preset.endswith((".yaml", ".yml")):
        raise CodiembError(
            f"expected the name of a preset in {preset_path('x').parent}, found the path {preset}. "
            "Copy it there: its results lie under its name."
        )
    return project_root() / "data" / "runs" / preset


def run_folder(preset: str, model: str, seed: int) -> Path:
    """`data/runs/<preset>/<model>/seed-<seed>`: one model's run."""
    return preset_folder(preset) / model / f"seed-{seed}"


def figures_folder(preset: str) -> Path:
    """`figures/<preset>`: pictures, their rows and captions."""
    return project_root() / "figures" / preset


def model_folder(preset: Preset, model: str, seed: int) -> str:
    """What `EncoderSettings.name` must be to load a model of a preset."""
    if model == "base":
        return preset.encoder.name
    folder = run_folder(preset.name, model, seed)
    if not manifest_of(folder):
        raise CodiembError(
            f"{folder}: expected a finished run of {model!r}, found none. Run notebook 03 (04 for "
            "a fused model) or `make reproduce`."
        )
    return str(folder / "model")


def write_manifest(
    folder: str | Path,
    *,
    preset: Preset,
    model: str,
    seed: int,
    settings: Mapping[str, Any],
    fingerprint: str,
    data: Mapping[str, str],
    seconds: float,
) -> None:
    """Write `manifest.json`, the last file of a run: where it stands, the run is complete.

    `settings` are all that shaped the result, `data` the content hashes of the data sets, and a run
    with another `fingerprint` is stale. It holds the hashes of the files that make up the run.
    """
    files = [file for part in PARTS for file in Path(folder).glob(part) if file.is_file()]
    manifest = {
        "preset": preset.name,
        "variant": model,
        "seed": seed,
        "fingerprint": fingerprint,
        "settings": dict(settings),
        "data": dict(data),
        "versions": versions(),
        "git_commit": git_commit(),
        "hardware": hardware(),
        "seconds": round(seconds, 1),
        "peak_memory_mib": peak_memory_mib(),
        "files": sha256_files(Path(folder), files),
    }
    write_json(Path(folder) / "manifest.json", manifest)


def manifest_of(folder: str | Path) -> dict[str, Any] | None:
    """What a finished run's manifest says; None where there is none or, said, a file is damaged."""
    file = Path(folder) / "manifest.json"
    if not file.is_file():
        return None
    try:
        manifest = read_json(file)
        spoilt = damaged(file.parent, manifest["files"])
    except (CodiembError, KeyError, TypeError):
        spoilt = [file.name]
    if spoilt:
        logger.warning("%s: damaged, or older than hashes: %s", folder, ", ".join(spoilt))
    return None if spoilt else manifest


def is_complete(folder: str | Path, fingerprint: str) -> bool:
    """Whether a folder holds a finished run with this fingerprint, none of its files damaged."""
    return (manifest_of(folder) or {}).get("fingerprint") == fingerprint


@cache
def versions() -> dict[str, str]:
    """Python and the packages that shape a result."""
    packages = ("torch", "transformers", "accelerate", "numpy", "scipy", "pytrec-eval-terrier")
    return {"python": platform.python_version()} | {p: metadata.version(p) for p in packages}


@cache
def git_commit() -> str:
    """The commit that the project stands at, `+changes` if files differ; "" outside git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(project_root()), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + "+changes" * bool(git("status", "--porcelain", "-uno"))
    except (OSError, subprocess.CalledProcessError):  # no git, or no repository: a tarball
        return ""


@cache
def hardware() -> str:
    """The kind of machine: processor, cores at our disposal, accelerators."""
    import torch

    named = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())  # not on ARM
    parts = [named[1] if named else platform.machine(), f"{len(os.sched_getaffinity(0))} cores"]
    parts += [f"{torch.get_num_threads()} threads"]
    parts += [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(parts)


def peak_memory_mib() -> int:
    """The most memory that this process has held, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**10


def write_rows(path: str | Path, rows: pd.DataFrame) -> None:
    """Write a table as CSV, atomically, with floats that read back to the same bits."""
    with atomic_path(path) as temporary:
        rows.to_csv(temporary, index=False)


def label_rows(rows: pd.DataFrame, preset: str, model: str, seed: int) -> pd.DataFrame:
    """Put the columns preset, variant, seed before those of a run's own table."""
    labels = {"preset": preset, "variant": model, "seed": seed}
    return rows.assign(**labels)[[*labels, *rows.columns.drop([*labels], errors="ignore")]]


def collect(preset: Preset, table: str, models: Iterable[str] | None = None) -> pd.DataFrame:
    """The tables of many runs, one below the other: of all the preset's models, or of some.

    `table` is the stem of the CSV in each run's folder: `scores`, `log`, `dev`, `fusion`, ...
    """
    parts = []
    for model in preset.models if models is None else models:
        for seed in preset.model_seeds(model):
            path = run_folder(preset.name, model, seed) / f"{table}.csv"
            try:
                rows = pd.read_csv(path)
            except (FileNotFoundError, pd.errors.EmptyDataError) as error:
                raise CodiembError(
                    f"{path}: expected the rows of a finished run, found none. "
                    f"Run `make reproduce PRESET={preset.name}`."
                ) from error
            parts.append(label_rows(rows, preset.name, model, seed))
    return pd.concat(parts, ignore_index=True)


def collect_costs(preset: Preset) -> pd.DataFrame:
    """Steps, tokens, wall-clock seconds and peak memory of every training run of a preset."""
    logs = collect(preset, "log", preset.variants)
    runs = logs.groupby(["preset", "variant", "seed"], sort=False)["tokens"]
    rows = runs.agg(steps="size", tokens="sum").reset_index()
    folders = [run_folder(*run) for run in rows[["preset", "variant", "seed"]].values]
    manifests = pd.DataFrame([read_json(folder / "manifest.json") for folder in folders])
    manifests = manifests.rename(columns={"git_commit": "commit"})
    return rows.join(manifests[["seconds", "peak_memory_mib", "hardware", "commit"]])


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's 95 % interval of the mean of values (n,); of one value it has no bounds."""
    from scipy import stats

    values = np.asarray(values, dtype=np.float64)
    if len(values) == 1:
        return -np.inf, np.inf
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return values.mean() - half, values.mean() + half
