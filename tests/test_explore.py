"""Explorers: the tables they show, and that turning a knob changes what is shown."""

from __future__ import annotations

import base64

import matplotlib.pyplot as plt
import pytest
from ipywidgets import Dropdown, FloatSlider

from codiemb_lib.explore import knobs


@pytest.fixture(autouse=True)
def no_figure_left_open():
    yield
    assert not plt.get_fignums()


def draw(height, colour):
    if height < 0:
        raise ValueError("too low")
    figure, ax = plt.subplots(figsize=(1, 1))
    ax.bar([0], [height], color=colour)
    ax.set_ylim(0, 1)
    return ax if colour == "red" else figure


def test_a_turned_knob_changes_the_picture_and_turned_back_gives_the_same():
    exhibit = knobs(
        draw, height=FloatSlider(value=0.5, max=1), colour=Dropdown(options=["red", "b"])
    )
    height, colour = exhibit.controls
    first = bytes(exhibit.shown.value)
    assert first.startswith(b"\x89PNG")
    height.value = 0.9
    second = bytes(exhibit.shown.value)
    colour.value = "b"
    assert len({first, second, bytes(exhibit.shown.value)}) == 3
    height.value, colour.value = 0.5, "red"
    assert bytes(exhibit.shown.value) == first


def test_a_slider_acts_when_it_is_let_go_and_is_named():
    exhibit = knobs(draw, height=FloatSlider(value=0.5), colour=Dropdown(options=["red"]))
    assert not exhibit.controls[0].continuous_update
    assert exhibit.controls[0].description == "height"


def test_the_output_holds_the_picture_as_it_stands_beside_the_widget():
    exhibit = knobs(draw, height=FloatSlider(value=0.5), colour=Dropdown(options=["red"]))
    for value in (0.5, 0.7):
        exhibit.controls[0].value = value
        bundle = exhibit._repr_mimebundle_()
        assert "application/vnd.jupyter.widget-view+json" in bundle
        assert base64.b64decode(bundle["image/png"]) == bytes(exhibit.shown.value)


def test_an_error_of_the_drawing_is_not_swallowed():
    exhibit = knobs(draw, height=FloatSlider(value=0.5, min=-1), colour=Dropdown(options=["red"]))
    with pytest.raises(ValueError, match="too low"):
        exhibit.controls[0].value = -0.5
