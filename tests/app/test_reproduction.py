"""The whole way at smoke size: every notebook in its order, every run, table and figure."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from codiemb_lib.core.files import read_json
from codiemb_lib.core.preset import load_preset
from codiemb_lib.draw import FIGURES
from tests.app.executed import IN_REPRODUCTION, check_executed
from tests.app.projects import copy_project, run

PRESET = load_preset("smoke")


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory, cache) -> Path:
    """A project in which all of `smoke` has run; other tests run beside it under pytest-xdist."""
    project = copy_project(tmp_path_factory.mktemp("reproduced"), cache)
    cores = "1" if "PYTEST_XDIST_WORKER" in os.environ else "2"
    run(project, "codiemb_lib", "reproduce", "--preset", "smoke", "--cores", cores)
    return project


@pytest.mark.parametrize("name", IN_REPRODUCTION)
def test_notebook_ran_as_it_does_alone(reproduced, name):
    check_executed(name, reproduced / "data" / "runs" / "smoke" / IN_REPRODUCTION[name])


def test_the_whole_way_leaves_every_run_table_and_figure(reproduced):
    drawn = reproduced / "figures" / "smoke"
    expected = {f"{stem}.{kind}" for stem in FIGURES for kind in ("png", "pdf", "csv", "md")}
    assert expected <= {path.name for path in drawn.iterdir()}
    assert {"results", "claims", "merges"} <= {path.stem for path in drawn.glob("*.md")}
    scores = pd.read_csv(drawn / "trade_off.csv")
    assert list(dict.fromkeys(scores["variant"])) == PRESET.models
    assert np.isfinite(scores["value"]).all()
    for model in PRESET.models[1:]:
        folder = reproduced / "data" / "runs" / "smoke" / model / "seed-0"
        manifest = read_json(folder / "manifest.json")
        assert (manifest["preset"], manifest["variant"]) == ("smoke", model)
        files = {path.name for path in (folder / "model").iterdir()}
        assert {"config.json", "model.safetensors", "modules.json"} <= files
    again = run(reproduced, "codiemb_lib", "reproduce", "--preset", "smoke")
    assert "Nothing to be done" in again
