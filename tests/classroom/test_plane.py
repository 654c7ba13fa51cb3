"""Objectives on a few points: where the arrows come from, and that the pictures show them."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pytest
import torch
from classroom.plane import circle, plot_circle, plot_pairs, pushes

from codiemb_lib.train.objectives import pearson_loss


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def arrows(ax) -> list:
    return [text for text in ax.texts if getattr(text, "arrow_patch", None) is not None]


def test_a_step_along_the_pushes_lowers_the_loss_and_the_points_stay_as_they_were():
    y = torch.tensor([1.0, 0.5, 0.0, 0.2], dtype=torch.float64)
    s = torch.tensor([0.3, 0.9, 0.4, 0.1], dtype=torch.float64)
    before = s.clone()
    value, push = pushes(lambda s: pearson_loss(s, y), s)
    assert pearson_loss(s + 0.01 * push, y) < value
    assert torch.equal(s, before)
    assert not s.requires_grad


def test_the_longest_arrow_has_one_length_whatever_the_gradient():
    points = circle([0.0, 120.0, 240.0])
    push = torch.tensor([[0.0, 2.0], [0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    lengths = []
    for size in (1e-9, 1.0, 1e6):
        drawn = arrows(plot_circle(points, size * push, "abc", ["query", "positive", "negative"]))
        assert len(drawn) == 2  # nothing is drawn where nothing is pushed
        lengths.append([a.xy[1] - p[1].item() for a, p in zip(drawn, points, strict=False)])
    assert lengths[0] == pytest.approx(lengths[1])
    assert lengths[2] == pytest.approx(lengths[1])
    assert lengths[0][0] == pytest.approx(2 * lengths[0][1])


def test_pairs_are_pushed_up_and_down_and_zero_gradients_draw_nothing():
    y = torch.tensor([0.0, 1.0])
    s = torch.tensor([0.5, 0.5])
    up, down = arrows(plot_pairs(y, s, torch.tensor([3.0, -3.0])))
    assert up.xy[1] > 0.5 > down.xy[1]
    assert (up.xy[0], down.xy[0]) == (0, 1)
    assert not arrows(plot_pairs(y, s, torch.zeros(2)))
