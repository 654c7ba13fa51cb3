"""The other notebooks, each alone at its defaults in a fresh copy of the project."""

from __future__ import annotations

import nbformat
import pytest
import yaml

from tests.app.executed import IN_REPRODUCTION, check_executed
from tests.app.projects import ROOT, copy_project, run

FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(
    str(path.relative_to(FOLDER).with_suffix(""))
    for folder in (FOLDER, FOLDER / "solutions")
    for path in folder.glob("*.ipynb")
)


@pytest.mark.parametrize("name", [name for name in NOTEBOOKS if name not in IN_REPRODUCTION])
def test_notebook_runs_alone_at_its_defaults(tmp_path, cache, name):
    project = copy_project(tmp_path, cache)
    run(project, "codiemb_lib", "execute", f"notebooks/{name}.ipynb", "out/n.ipynb")
    check_executed(name, project / "out" / "n.ipynb")


def test_explore_says_what_a_preset_without_fusion_lacks(tmp_path, cache):
    project = copy_project(tmp_path, cache)
    presets = project / "notebooks" / "presets"
    preset = yaml.safe_load((presets / "smoke.yaml").read_text(encoding="utf-8"))
    del preset["fusion"], preset["fusion_study"]
    preset["training"]["max_steps"] = 2
    (presets / "plain.yaml").write_text(yaml.safe_dump(preset | {"name": "plain"}))
    command = ["execute", "notebooks/11_explore.ipynb", "out/11.ipynb", "-p", "preset", "plain"]
    run(project, "codiemb_lib", *command)
    executed = nbformat.read(project / "out" / "11.ipynb", as_version=4)
    outputs = [output for cell in executed.cells for output in cell.get("outputs", [])]
    exhibits = [o for o in outputs if "Exhibit" in o.get("data", {}).get("text/plain", "")]
    assert len(exhibits) == 3  # search, pairs, points; no merge
    assert "preset 'plain' has no fusion" in outputs[-1].text
