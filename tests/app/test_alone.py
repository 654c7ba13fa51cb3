"""The other notebooks, each at its defaults in a project where nothing was reproduced."""

from __future__ import annotations

import nbformat
import pytest
import yaml

from tests.app.executed import IN_REPRODUCTION, check_executed
from tests.app.projects import ROOT, copy_project, run

FOLDER = ROOT / "notebooks"
READERS = ("06", "07")  # of whatever runs there are: they come first, when there are none
NOTEBOOKS = sorted(
    (
        str(path.relative_to(FOLDER).with_suffix(""))
        for folder in (FOLDER, FOLDER / "solutions")
        for path in folder.glob("*.ipynb")
    ),
    key=lambda name: (not name.startswith(READERS), name),
)


@pytest.fixture(scope="module")
def project(tmp_path_factory, cache):
    """A fresh copy; the first notebook that needs a trained run trains it, as for any reader."""
    return copy_project(tmp_path_factory.mktemp("alone"), cache)


@pytest.mark.parametrize("name", [name for name in NOTEBOOKS if name not in IN_REPRODUCTION])
def test_notebook_runs_alone_at_its_defaults(project, name):
    run(project, "codiemb_lib", "execute", f"notebooks/{name}.ipynb", f"out/{name}.ipynb")
    check_executed(name, project / "out" / f"{name}.ipynb")


def test_explore_says_what_a_preset_without_fusion_lacks(project):
    presets = project / "notebooks" / "presets"
    preset = yaml.safe_load((presets / "smoke.yaml").read_text(encoding="utf-8"))
    del preset["fusion"], preset["fusion_study"]
    preset["training"]["max_steps"] = 2
    (presets / "plain.yaml").write_text(yaml.safe_dump(preset | {"name": "plain"}))
    command = ["execute", "notebooks/11_explore.ipynb", "out/plain.ipynb", "-p", "preset", "plain"]
    run(project, "codiemb_lib", *command)
    executed = nbformat.read(project / "out" / "plain.ipynb", as_version=4)
    outputs = [output for cell in executed.cells for output in cell.get("outputs", [])]
    exhibits = [o for o in outputs if "Exhibit" in o.get("data", {}).get("text/plain", "")]
    assert len(exhibits) == 3  # search, pairs, points; no merge
    assert "preset 'plain' has no fusion" in outputs[-1].text
