"""Which rooms a notebook hangs on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from codiemb_lib.app.reproduce import imported_rooms, notebook_files

PACKAGE = Path(__file__).parents[2] / "codiemb_lib"


def rooms_of(tmp_path, code: str, **options) -> set[str]:
    cells = [
        {"cell_type": "markdown", "source": ["from codiemb_lib.app import main"]},
        {"cell_type": "code", "source": ["%matplotlib inline\n", "x = 1\n", code]},
    ]
    notebook = tmp_path / "n.ipynb"
    notebook.write_text(json.dumps({"cells": cells}))
    files = notebook_files(notebook, root=PACKAGE, **options)
    return {file.relative_to(PACKAGE).parts[0] for file in files}


@pytest.mark.parametrize(
    ("code", "rooms"),
    [
        ("import codiemb_lib.data.records as r, os", {"data"}),
        ("from codiemb_lib.data import (\n    Record,\n)", {"data"}),
        ("from codiemb_lib import load_preset, train", {"core", "train"}),
        ("from codiemb_lib import Encoder, merge, draw", {"model", "fuse", "draw"}),
        ("import classroom, codiemb_library", set()),
    ],
)
def test_rooms_are_read_from_imports(code, rooms):
    assert imported_rooms(code) == rooms


def test_a_notebook_hangs_on_its_rooms_and_those_below(tmp_path):
    assert rooms_of(tmp_path, "from codiemb_lib import load_dataset") == {"core", "data"}
    found = rooms_of(tmp_path, "from codiemb_lib.train import train")
    assert found >= {"core", "data", "model", "evaluate", "train"}
    assert not found & {"fuse", "space", "draw", "app"}


def test_drawing_does_not_hang_on_training_and_counts_only_if_it_shall(tmp_path):
    code = "from codiemb_lib.draw import FIGURES\nfrom codiemb_lib.data import Record"
    assert "train" not in rooms_of(tmp_path, code)
    assert rooms_of(tmp_path, code, without=("draw",)) == {"core", "data"}
