"""What every executed notebook has to hold."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
from classroom.checks import EXERCISES

from codiemb_lib.app.notebooks import read_parameters
from tests.app.projects import ROOT

WITH_KNOBS = {"00_start_here", "01_data_and_batches", "02_losses_by_hand", "11_explore"}
WIDGET = "application/vnd.jupyter.widget-view+json"
# Those of which a reproduction makes such a copy as they make alone: no earlier run changes them.
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


def check_executed(name: str, path: Path) -> None:
    """A notebook ran at its defaults, without warnings, and shows what it should."""
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
