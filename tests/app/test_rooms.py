from __future__ import annotations

import json
from pathlib import Path

import pytest

from codiemb_lib.app.rooms import BELOW, notebook_files

ROOT = Path(__file__).parents[2]


def rooms_of(name: str) -> set[str]:
    files = notebook_files(ROOT / "notebooks" / f"{name}.ipynb", root=ROOT / "codiemb_lib")
    return {file.relative_to(ROOT / "codiemb_lib").parts[0] for file in files}


def test_rooms_are_the_folders_of_the_package():
    folders = {path.parent.name for path in (ROOT / "codiemb_lib").glob("*/__init__.py")}
    assert folders == set(BELOW)


@pytest.mark.parametrize(
    ("name", "rooms"),
    [
        ("02_losses_by_hand", {"core", "data", "model", "evaluate", "train", "draw"}),
        ("03_joint_training", {"core", "data", "model", "evaluate", "train"}),
    ],
)
def test_a_notebook_hangs_on_its_rooms_and_those_below(name, rooms):
    assert rooms_of(name) <= rooms | {"draw", "fuse", "space"}
    assert rooms - {"draw"} <= rooms_of(name)


def test_drawing_does_not_hang_on_training(tmp_path):
    cells = [
        {"cell_type": "markdown", "source": ["from codiemb_lib.train import train"]},
        {"cell_type": "code", "source": ["from codiemb_lib.draw import FIGURES\n", "x = 1"]},
    ]
    notebook = tmp_path / "n.ipynb"
    notebook.write_text(json.dumps({"cells": cells}))
    files = [str(file) for file in notebook_files(notebook, root=ROOT / "codiemb_lib")]
    assert any(file.endswith("paper.mplstyle") for file in files)
    assert not any("/train/" in file for file in files)
