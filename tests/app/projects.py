"""Copies of the project, and commands that run in them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
HOUR = 3600  # seconds, after which something hangs


def copy_project(folder: Path, cache: Path | None = None) -> Path:
    """The project without its runs, in a folder with a space; `cache` holds built data sets."""
    project = folder / "a project"
    ignore = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "cache", "runs")
    for name in ("codiemb_lib", "data", "figures", "notebooks"):
        shutil.copytree(ROOT / name, project / name, ignore=ignore)
    shutil.copy(ROOT / "Snakefile", project)
    if cache:
        shutil.copytree(cache, project / "data" / "cache")
    return project


def start(project: Path, log: str, *command: str) -> subprocess.Popen:
    """Call a Python module in a project, as it would be called there, without any network.

    What it prints goes to a file of the project.
    """
    own = {
        "PYTHONPATH": f"{project}{os.pathsep}{project / 'notebooks'}",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "CODIEMB_ROOT": "",
        "CODIEMB_DATA": "",
    }
    with (project / log).open("w") as stream:
        return subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=project,
            env=os.environ | own,
            stdout=stream,
            stderr=stream,
        )


def run(project: Path, *command: str) -> str:
    """Call a Python module, and return what it printed."""
    status = start(project, "log", *command).wait(HOUR)
    text = (project / "log").read_text()
    assert status == 0, text
    return text
