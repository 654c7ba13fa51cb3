"""Becoming Snakemake, once it is certain that the data of a preset can be used."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from codiemb_lib import core, data, draw
from codiemb_lib.core import Preset, is_finished, run_folder


def reproduce(name: str, cores: str, options: Sequence[str] = ()) -> None:
    """Become Snakemake, which runs what is missing or out of date of a preset.

    Args:
        name: Of the preset, or the path of its file.
        cores: How many runs at once; "all" of the machine's.
        options: Further options of Snakemake.
    """
    preset = core.load_preset(name)
    _check_data(preset)
    root = core.check_writable(core.project_root())
    os.chdir(root)
    command = [sys.executable, "-m", "snakemake", "--nolock", "--rerun-incomplete"]
    command += ["--quiet", "host", "reason", "--config", f"preset={name}"]
    if copies := [os.path.relpath(copy) for copy in _outlived_copies(preset) if copy.is_file()]:
        command += ["--forcerun", *copies]  # by these alone Snakemake knows what is there
    command += ["--cores", cores]
    # Snakemake's own lock would outlive a kill. Ours is open in the process that we become.
    with core.alone(root) as lock:
        os.set_inheritable(lock, True)
        os.execv(sys.executable, [*command, *options])


def _check_data(preset: Preset) -> None:
    """Refuse data sets that are not there, lack a split, or are all of one task.

    The files of public sets are left to the notebooks, which may have to fetch them.
    """
    tasks = {entry.name: entry.task for entry in data.list_datasets()}
    for settings in preset.datasets:
        if settings.name not in tasks:
            dataset = data.load_dataset(settings.name)
            dataset.split("dev", limit=settings.dev)
            dataset.split("test", limit=settings.test)
            tasks[settings.name] = dataset.task
    data.check_tasks(preset, tasks)


def _outlived_copies(preset: Preset) -> Iterator[Path]:
    """Executed notebooks of a preset whose model, or one of whose figures, has been removed."""
    for seed in preset.seeds:
        for variant in preset.variants:
            if not is_finished(run := run_folder(preset.name, variant, seed)):
                yield run / "03_joint_training.ipynb"
        if not all(is_finished(run_folder(preset.name, model, seed)) for model in preset.fusion):
            yield run_folder(preset.name, "fusion", seed) / "04_checkpoint_fusion.ipynb"
    figures = core.figures_folder(preset.name)
    for stem in draw.FIGURES:
        there = {(figures / f"{stem}.{end}").is_file() for end in ("csv", "md", "pdf", "png")}
        if len(there) > 1:
            yield core.preset_folder(preset.name) / "09_paper_figures.ipynb"
