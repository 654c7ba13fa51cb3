"""The real notebooks at smoke size: all of them in their order, and each alone at its defaults."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from classroom.checks import EXERCISES

from codiemb_lib.app.notebooks import read_parameters
from codiemb_lib.core.files import read_json
from codiemb_lib.core.preset import load_preset
from codiemb_lib.draw import figures
from tests.made_up import python_path

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted(
    str(path.relative_to(ROOT / "notebooks").with_suffix(""))
    for folder in ("notebooks", "notebooks/solutions")
    for path in (ROOT / folder).glob("*.ipynb")
)
# Those of which the reproduction makes such a copy: no earlier run changes what they do.
IN_REPRODUCTION = {
    name: f"{folder}{name}.ipynb"
    for name, folder in {
        "00_start_here": "",
        "01_data_and_batches": "",
        "02_losses_by_hand": "",
        "03_joint_training": "codiemb/seed-0/",
        "05_benchmark": "base/seed-0/",
    }.items()
}
WITH_KNOBS = {"00_start_here", "01_data_and_batches", "02_losses_by_hand", "11_explore"}
WIDGET = "application/vnd.jupyter.widget-view+json"
PRESET = load_preset("smoke")


def copy_project(folder: Path, cache: Path) -> Path:
    project = folder / "a project"
    for name in ("codiemb_lib", "notebooks", "figures", "data/build"):
        shutil.copytree(ROOT / name, project / name)
    shutil.copytree(cache, project / "data" / "cache")
    for name in ("Snakefile", "data/registry.yaml"):
        shutil.copy(ROOT / name, project / name)
    return project


def codiemb(project: Path, *arguments: str) -> str:
    """Run the command in a project, as it would be run there, without any network."""
    offline = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(
        [sys.executable, "-m", "codiemb_lib", *arguments],
        cwd=project,
        env={
            **os.environ,
            **offline,
            "PYTHONPATH": python_path(project),
            "CODIEMB_ROOT": "",
        },
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout + finished.stderr


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory, cache) -> Path:
    """A project in which all of `smoke` has run."""
    project = copy_project(tmp_path_factory.mktemp("reproduced"), cache)
    codiemb(project, "reproduce", "--preset", "smoke", "--cores", "2")
    return project


@pytest.fixture(scope="module")
def alone(request, tmp_path_factory, cache) -> Iterator[dict[str, Future]]:
    """The copies of the other notebooks that are asked for, two of them made at a time."""

    def execute(name: str, project: Path) -> Path:
        codiemb(project, "execute", f"notebooks/{name}.ipynb", f"out/{name}.ipynb")
        return project / "out" / f"{name}.ipynb"

    tests = [item for item in request.session.items if item.module is request.module]
    names = [item.callspec.params["name"] for item in tests if hasattr(item, "callspec")]
    projects = {
        name: copy_project(tmp_path_factory.mktemp("alone"), cache)
        for name in names
        if name not in IN_REPRODUCTION
    }
    if fuses := projects.get("04_checkpoint_fusion"):  # it finds all ingredients but one
        runs = request.getfixturevalue("reproduced") / "data" / "runs" / "smoke"
        for trained in {*PRESET.variants} - {"codiemb"}:
            shutil.copytree(runs / trained, fuses / "data" / "runs" / "smoke" / trained)
    with ThreadPoolExecutor(2) as pool:
        yield {name: pool.submit(execute, name, project) for name, project in projects.items()}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_runs_alone_at_its_defaults(request, name):
    if name in IN_REPRODUCTION:
        project = request.getfixturevalue("reproduced")
        path = project / "data" / "runs" / "smoke" / IN_REPRODUCTION[name]
    else:
        path = request.getfixturevalue("alone")[name].result()
    executed = nbformat.read(path, as_version=4)
    defaults = read_parameters(ROOT / "notebooks" / f"{name}.ipynb")
    assert executed.metadata.papermill.parameters.items() <= defaults.items()
    outputs = [output for cell in executed.cells for output in cell.get("outputs", [])]
    assert not [o.text for o in outputs if o.get("name") == "stderr" and "Warning" in o.text]
    # A widget's own errors stand in its state, and what it shows also lies beside it for print.
    states = executed.metadata.get("widgets", {}).get("application/vnd.jupyter.widget-state+json")
    assert '"output_type": "error"' not in json.dumps(states)
    shown = [o.data for o in outputs if WIDGET in o.get("data", {})]
    exhibits = [data for data in shown if "Exhibit" in data["text/plain"]]
    assert all("image/png" in data or "text/html" in data for data in exhibits)
    assert exhibits or name not in WITH_KNOBS
    if name.startswith("solutions/"):
        verdicts = [o.data["text/plain"] for o in outputs if "text/plain" in o.get("data", {})]
        assert [v[0] for v in verdicts] == ["✓"] * len(EXERCISES)


def test_explore_says_what_a_preset_without_fusion_lacks(tmp_path, cache):
    project = copy_project(tmp_path, cache)
    presets = project / "notebooks" / "presets"
    preset = yaml.safe_load((presets / "smoke.yaml").read_text(encoding="utf-8"))
    del preset["fusion"], preset["fusion_study"]
    preset["training"]["max_steps"] = 2
    (presets / "plain.yaml").write_text(yaml.safe_dump(preset | {"name": "plain"}))
    codiemb(
        project, "execute", "notebooks/11_explore.ipynb", "out/11.ipynb", "-p", "preset", "plain"
    )
    executed = nbformat.read(project / "out" / "11.ipynb", as_version=4)
    outputs = [output for cell in executed.cells for output in cell.get("outputs", [])]
    exhibits = [o for o in outputs if "Exhibit" in o.get("data", {}).get("text/plain", "")]
    assert len(exhibits) == 3  # search, pairs, points; no merge
    assert "preset 'plain' has no fusion" in outputs[-1].text


def test_the_whole_way_leaves_every_run_table_and_figure(reproduced):
    drawn = reproduced / "figures" / "smoke"
    expected = {
        f"{stem}.{kind}" for stem in figures.FIGURES for kind in ("png", "pdf", "csv", "md")
    }
    assert expected <= {path.name for path in drawn.iterdir()}
    expected = {"results", "claims", "merges"}
    assert expected <= {path.stem for path in drawn.glob("*.md")}
    scores = pd.read_csv(drawn / "trade_off.csv")
    assert list(dict.fromkeys(scores["variant"])) == PRESET.models
    assert np.isfinite(scores["value"]).all()
    for model in PRESET.models[1:]:
        folder = reproduced / "data" / "runs" / "smoke" / model / "seed-0"
        manifest = read_json(folder / "manifest.json")
        assert (manifest["preset"], manifest["variant"]) == ("smoke", model)
        assert {"config.json", "model.safetensors", "modules.json"} <= {
            path.name for path in (folder / "model").iterdir()
        }
    assert "Nothing to be done" in codiemb(reproduced, "reproduce", "--preset", "smoke")
