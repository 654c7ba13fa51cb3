"""Explorers: the tables they show, and that turning a knob changes what is shown."""

from __future__ import annotations

import base64

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from classroom.explore import (
    Index,
    _html,
    compare_pairs,
    compare_search,
    delta_products,
    fusion_knobs,
    merged_lengths,
    pair_explorer,
    search_box,
    select_pairs,
)
from classroom.knobs import knobs
from ipywidgets import Dropdown, FloatSlider

from codiemb_lib.core import CodiembError
from codiemb_lib.evaluate import EncodedDataset
from codiemb_lib.fuse import delta_guided_weights


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
        draw, height=FloatSlider(0.5, min=-1, max=1), colour=Dropdown(options=["red", "b"])
    )
    height, colour = exhibit.controls
    assert not height.continuous_update  # it acts when it is let go
    assert height.description == "height"
    first = bytes(exhibit.shown.value)
    assert first.startswith(b"\x89PNG")
    height.value = 0.9
    second = bytes(exhibit.shown.value)
    bundle = exhibit._repr_mimebundle_()  # the picture as it stands, beside the widget
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert base64.b64decode(bundle["image/png"]) == second
    colour.value = "b"
    assert len({first, second, bytes(exhibit.shown.value)}) == 3
    height.value, colour.value = 0.5, "red"
    assert bytes(exhibit.shown.value) == first
    with pytest.raises(ValueError, match="too low"):
        height.value = -0.5


TEXTS = ["about cats", "about dogs", "about <b>cars</b>", "about buses"]


def index(name, angles, passages=TEXTS):
    """A model that sees passages at these angles, and any query at its number of words."""
    radians = np.deg2rad(angles)
    vectors = np.column_stack([np.cos(radians), np.sin(radians)])

    def encode(query):
        angle = np.deg2rad(10.0 * len(query.split()))
        return np.array([np.cos(angle), np.sin(angle)])

    return Index(name, passages, vectors, encode)


FIRST, SECOND = index("base", [0, 30, 60, 90]), index("trained", [90, 60, 12, 30])


def test_both_rankings_stand_beside_each_other_with_what_moved():
    table = compare_search("one", FIRST, SECOND, k=1)
    assert table.to_dict("list") == {
        "base": [3, 1],
        "trained": [1, 4],
        "moved": [2, -3],
        "passage": ["about <b>cars</b>", "about cats"],
    }
    assert len(compare_search("one", FIRST, SECOND, k=4)) == 4
    assert not compare_search("one", FIRST, FIRST, k=4)["moved"].any()


def test_models_that_search_other_passages_are_refused():
    other = index("other", [0, 1, 2, 3], TEXTS[::-1])
    with pytest.raises(CodiembError, match="same texts for both models"):
        compare_search("one", FIRST, other)


def test_the_search_box_answers_what_is_typed_and_shows_texts_as_texts():
    exhibit = search_box(FIRST, SECOND, "one", k=1)
    query, top = exhibit.controls
    first = exhibit.shown.value
    assert "about &lt;b&gt;cars" in first
    assert "about dogs" not in first
    query.value = "a query of six words now"
    assert "about dogs" in exhibit.shown.value
    query.value = "one"
    assert exhibit.shown.value == first
    top.value = 4
    assert all(name in exhibit.shown.value for name in ("cats", "dogs", "buses"))
    query.value = "  "
    assert exhibit.shown.value == "Type a question."
    assert exhibit._repr_mimebundle_()["text/html"] == "Type a question."


def pairs(cosines, left=("sun", "moon", "Cup", "tea")):
    cosines = np.array(cosines)
    passages = np.column_stack([cosines, np.sqrt(1 - cosines**2)])
    queries = np.tile([1.0, 0.0], (4, 1))
    gold = np.array([0.0, 0.2, 0.6, 1.0])
    return EncodedDataset("words", "sts", list(left), ["a", "b", "c", "d"], queries, passages, gold)


def test_pairs_are_compared_by_rank_with_people():
    table = compare_pairs(pairs([0.9, 0.1, 0.2, 0.3]), pairs([0.1, 0.2, 0.9, 0.8]), ("m", "n"))
    assert table["off, m"].tolist() == [3, -1, -1, -1]
    assert table["off, n"].tolist() == [0, 0, 1, -1]
    assert table["better"].tolist() == [3, 1, 0, 0]
    for order, name, expected in (
        ("furthest off", "m", "sun"),
        ("rated too similar", "n", "Cup"),
        ("rated too different", "n", "tea"),
        ("most improved", "n", "sun"),
    ):
        assert select_pairs(table, name, order)["left"].iloc[0] == expected, order
    assert select_pairs(table, "m", "furthest off", contains="cUP")["left"].tolist() == ["Cup"]
    with pytest.raises(CodiembError, match="same texts"):
        compare_pairs(pairs([0.1] * 4), pairs([0.1] * 4, left="wxyz"), ("m", "n"))


def test_the_pair_explorer_follows_its_controls():
    table = compare_pairs(pairs([0.9, 0.1, 0.2, 0.3]), pairs([0.1, 0.2, 0.9, 0.8]), ("m", "n"))
    exhibit = pair_explorer({"words": table, "none": table[:0]}, ("m", "n"))
    dataset, order, name, contains = exhibit.controls
    seen = [exhibit.shown.value]
    for control, value in ((order, "most improved"), (name, "m"), (contains, "sun")):
        control.value = value
        seen.append(exhibit.shown.value)
    assert seen[1] != seen[0]
    assert "moon" in seen[2]
    assert "moon" not in seen[3]
    dataset.value = "none"
    assert "sun" not in exhibit.shown.value


def models():
    generator = torch.Generator().manual_seed(0)
    names = ("embeddings.w", "layer.0.a", "layer.0.b", "layer.1.a", "pooler.w")
    base = {name: torch.randn(4, 3, generator=generator) for name in names}
    return base, {
        label: {n: t + size * torch.randn(4, 3, generator=generator) for n, t in base.items()}
        for label, size in {"still": 0.1, "far": 1.0}.items()
    }


@pytest.mark.parametrize("granularity", ["tensor", "layer", "model"])
def test_weights_and_lengths_are_those_of_the_real_merge(granularity):
    base, checkpoints = models()
    options = {"power": 2.0, "granularity": granularity}
    table = merged_lengths(delta_products(base, checkpoints), [*checkpoints], scale=0.5, **options)
    table = table.set_index(["layer", "ingredient"])
    weights = delta_guided_weights(base, [*checkpoints.values()], **options)
    for layer, members in {-1: ["embeddings.w"], 0: ["layer.0.a", "layer.0.b"]}.items():
        moved = {n: torch.stack([c[n] - base[n] for c in checkpoints.values()]) for n in members}
        merged = [torch.tensordot(weights[n].to(d), 0.5 * d, 1) for n, d in moved.items()]
        length = torch.stack(merged).norm().item()
        assert table.loc[(layer, "merged"), "length"] == pytest.approx(length, rel=1e-5)
        own = torch.stack([weights[n][1] for n in members]).mean().item()
        assert table.loc[(layer, "far"), "weight"] == pytest.approx(own, rel=1e-5)
    assert {layer for layer, _ in table.index} == {-1, 0, 1}


def test_fusion_knobs_redraw_for_power_scale_and_granularity():
    exhibit = fusion_knobs(*models())
    seen = {bytes(exhibit.shown.value)}
    for control, value in zip(exhibit.controls, (0.0, 0.5, "model"), strict=True):
        exhibit.controls[0].value = 2.0
        control.value = value
        seen.add(bytes(exhibit.shown.value))
    assert len(seen) == 4


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", "<img src=x onerror=alert(1)>"])
def test_a_text_is_shown_as_text(text):
    shown = _html(pd.DataFrame({text: [text]}))
    assert "<script" not in shown
    assert "<img" not in shown
    assert "&lt;" in shown
