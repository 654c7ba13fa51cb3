"""The check of golden values: what it accepts, what it says, and when it writes anew."""

from __future__ import annotations

import importlib
import json
import types

import numpy as np
import pytest
import torch

from tests import golden

VALUES = {"a": {"x": [1.0, 2, float("nan")], "y": "word"}, "b": np.float32(0.1)}


@pytest.fixture
def number(tmp_path, monkeypatch):
    """A room of which nothing is recorded, and a function that sets its NUMERICS."""
    monkeypatch.setattr(golden, "path_of", lambda room: tmp_path / "golden.json")
    stated = [None]
    monkeypatch.setattr(golden, "numerics", lambda room: stated[0])
    return lambda n: stated.__setitem__(0, n)


def remake(values):
    return golden.remake("room", {case: lambda v=v: v for case, v in values.items()})


@pytest.mark.parametrize("room", golden.ROOMS)
def test_every_case_is_recorded_and_no_other(room):
    cases = importlib.import_module(f"tests.{room}.test_golden").CASES
    assert json.loads(golden.path_of(room).read_text())["values"].keys() == cases.keys()


def test_values_that_are_as_recorded_pass(number):
    remake(VALUES)
    golden.check("room", VALUES)
    golden.check("room", {"b": 0.1 * (1 + 9e-6)})
    golden.check("room", {"a": {"x": (1.0, 2, np.nan), "y": "word"}})


def test_entries_of_one_array_are_compared_beside_the_largest_of_them(number):
    remake({"array": {"some": [1.0, 0.0]}, "list": [1.0, 0.0]})
    golden.check("room", {"array": {"some": [1.0, 9e-6]}})
    with pytest.raises(AssertionError, match=r"list / 1: expected 0\.0, found 9e-06"):
        golden.check("room", {"list": [1.0, 9e-6]})


@pytest.mark.parametrize(
    ("found", "line"),
    [
        ({"b": 0.1 * (1 + 2e-5)}, "b: expected 0.10000000"),
        ({"b": None}, "b: expected 0.10000000"),
        ({"a": {"x": [1.0, 3, np.nan], "y": "word"}}, "a / x / 1: expected 2, found 3"),
        ({"a": {"x": [1.0, 2, 0.0], "y": "word"}}, "a / x / 2: expected 'nan', found 0.0"),
        ({"a": {"x": [1.0, 2], "y": "word"}}, "a / x: expected a list of 3, found a list of 2"),
        ({"a": {"x": [1.0]}}, "a: expected the keys ['x', 'y'], found the keys ['x']"),
        ({"c": 1}, "c: expected None, found 1"),
    ],
)
def test_others_are_named_with_what_to_do(number, found, line):
    remake(VALUES)
    with pytest.raises(AssertionError, match=r"python -m tests\.golden room") as error:
        golden.check("room", found)
    assert line in str(error.value)


def test_values_are_written_anew_where_the_number_rose_alone(number):
    remake(VALUES)
    for stated in (None, 1):
        number(stated)
        with pytest.raises(ValueError, match="NUMERICS above 1, found 1"):
            remake(VALUES | {"b": 2.0})
        remake(VALUES | {"c": 3.0})  # a new case changes no number
        golden.check("room", VALUES | {"c": 3.0})
    number(2)
    with pytest.raises(AssertionError, match="NUMERICS = 2, found those of 1"):
        golden.check("room", VALUES)
    remake(VALUES | {"a": None, "b": 2.0})  # what cannot be computed here stays
    golden.check("room", VALUES | {"b": 2.0})


def test_the_script_ends_with_status_2_where_it_refuses(number, monkeypatch, capsys):
    remake({"hubness": 0.0})
    cases = types.SimpleNamespace(CASES={"hubness": lambda: 1.0})
    monkeypatch.setattr(golden.importlib, "import_module", lambda name: cases)
    assert golden.main(["space"]) == 2
    assert "Either a defect: mend it." in capsys.readouterr().err


def test_a_summary_has_type_shape_sums_and_entries():
    found = golden.plain(golden.summary(torch.tensor([[1, -2], [3, 4]], dtype=torch.bfloat16)))
    assert found == {
        "dtype": "bfloat16",
        "shape": [2, 2],
        "above": 8.0,
        "below": -2.0,
        "squares": 30.0,
        "some": [1.0, -2.0, 3.0, 4.0],
    }
