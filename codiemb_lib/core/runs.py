"""Where a run lies, what its manifest says, and the tables of many runs put together."""

import logging
import os
import platform
import re
import resource
import subprocess
from collections.abc import Iterator, Mapping, Sequence
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
    write_text,
)
from codiemb_lib.core.preset import Preset, preset_path
from codiemb_lib.core.words import CodiembError

logger = logging.getLogger(__name__)

# The tables of a seed, and the folders beside the models' in which those of all models lie.
OF_FUSION = ("study", "path", "path_geometry")  # of notebook 04
OF_GEOMETRY = ("geometry", "trajectory")  # of notebook 07
OF_FIRST_SEED = ("spectrum", "cosines", "rated_pairs", "layers", "umap")  # of notebook 07, too
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


def write_arrays(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a compressed .npz, atomically."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:  # a path would get a suffix
        np.savez_compressed(file, **arrays)


def write_rows(path: str | Path, rows: pd.DataFrame) -> None:
    """Write a table as CSV, atomically, with floats that read back to the same bits."""
    with atomic_path(path) as temporary:
        rows.to_csv(temporary, index=False)


def label_rows(rows: pd.DataFrame, preset: str, model: str, seed: int) -> pd.DataFrame:
    """Put the columns preset, variant, seed before those of a run's own table."""
    labels = {"preset": preset, "variant": model, "seed": seed}
    return rows.assign(**labels)[[*labels, *rows.columns.drop([*labels], errors="ignore")]]


def rows_file(preset: str, seed: int, table: str) -> Path:
    """`figures/<preset>/rows/seed-<seed>/<table>`: what is kept of a seed without its runs."""
    return figures_folder(preset) / "rows" / f"seed-{seed}" / table


def kept_of(preset: Preset, seed: int, table: str) -> Path | None:
    """The `rows_file` of a seed, if it is there and no run of a trained variant is here."""
    here = any(run_folder(preset.name, model, seed).is_dir() for model in preset.variants)
    kept = rows_file(preset.name, seed, table)
    return kept if kept.is_file() and not here else None


def _tables(preset: Preset, seed: int) -> dict[str, list[str]]:
    """The tables that are kept of a seed, and the folders of its runs that have them.

    The largest ones, which are drawn of one seed, are kept of the preset's first.
    """
    trained, fused = [*preset.variants], [*preset.fusion]
    own = {"scores": preset.models, "dev": trained, "costs": trained, "fusion": fused}
    drawn = OF_FIRST_SEED if seed == preset.seeds[0] else ()
    walked = preset.fusion_study and preset.fusion_study.path
    of_fusion = OF_FUSION if walked else OF_FUSION[:1]
    own |= {table: ["fusion"] for table in of_fusion if fused}
    return own | {table: ["geometry"] for table in (*OF_GEOMETRY, *drawn)}


def collect(preset: Preset, table: str) -> pd.DataFrame:
    """A table of all runs and seeds of a preset, `scores`, `dev`, `costs`, ...; or an empty one.

    A seed of which there are no runs here has the rows that `publish` has kept of it.

    Raises:
        CodiembError: The rows of a run are missing.
    """
    parts = []
    for seed in preset.seeds:
        if kept := kept_of(preset, seed, f"{table}.csv"):
            parts.append(pd.read_csv(kept))
        else:
            parts += _rows_of(preset, table, seed)
    if not parts:
        return pd.DataFrame()
    order = {model: place for place, model in enumerate(preset.models)}
    rows = pd.concat(parts, ignore_index=True)
    return rows.sort_values("variant", key=lambda of: of.map(order), kind="stable")


def _rows_of(preset: Preset, table: str, seed: int) -> Iterator[pd.DataFrame]:
    """The rows of a table, from each folder of a seed's runs that has it."""
    for model in _tables(preset, seed).get(table, ()):
        if seed in preset.model_seeds(model):
            folder = run_folder(preset.name, model, seed)
            path = folder / f"{'log' if table == 'costs' else table}.csv"
            try:
                rows = pd.read_csv(path)
            except (FileNotFoundError, pd.errors.EmptyDataError) as error:
                raise CodiembError(
                    f"{path}: expected the rows of a finished run, found none. "
                    f"Run `make reproduce PRESET={preset.name}`."
                ) from error
            if table == "costs":
                rows = _costs(folder, rows)
            yield rows if "variant" in rows else label_rows(rows, preset.name, model, seed)


def _costs(folder: Path, log: pd.DataFrame) -> pd.DataFrame:
    """Steps, tokens, wall-clock seconds and peak memory of a training run."""
    manifest = read_json(folder / "manifest.json")
    known = {name: manifest[name] for name in ("seconds", "peak_memory_mib", "hardware")}
    of = {"steps": len(log), "tokens": log["tokens"].sum(), **known}
    return pd.DataFrame([of | {"commit": manifest["git_commit"]}])


def publish(preset: Preset, seed: int) -> Path:
    """Keep the rows of a seed's runs in a folder of `figures/<preset>/rows`, where `collect` finds
    them; it appears whole. Numbers have six digits. The scores of each text, `texts.npz` of every
    model and of the merges, come as one .npz each.
    """
    models = [model for model in preset.models if seed in preset.model_seeds(model)]
    with atomic_path(rows_file(preset.name, seed, "")) as folder:
        folder.mkdir()
        for table in _tables(preset, seed):
            if parts := [*_rows_of(preset, table, seed)]:
                text = pd.concat(parts).to_csv(index=False, float_format="%.6g")
                write_text(folder / f"{table}.csv", text)
        for name, of in {"texts": models, "merges": ["fusion"] if preset.fusion else []}.items():
            arrays: dict[str, np.ndarray] = {}
            for model in of:
                with np.load(run_folder(preset.name, model, seed) / "texts.npz") as found:
                    arrays |= dict(found)
            if arrays:
                write_arrays(folder / f"{name}.npz", arrays)
    return rows_file(preset.name, seed, "")


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's 95 % interval of the mean of values (n,); of one value it has no bounds."""
    from scipy import stats

    values = np.asarray(values, dtype=np.float64)
    if len(values) == 1:
        return -np.inf, np.inf
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return values.mean() - half, values.mean() + half
