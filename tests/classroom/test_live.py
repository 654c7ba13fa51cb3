"""The picture of a run while it runs."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from classroom import live
from classroom.live import LivePlot, draw

LOG = [{"step": i, "task": ("ir", "sts")[i % 2], "loss": 3.0 - i / 4} for i in range(8)]
DEV = pd.DataFrame(
    [
        {"step": step, "task": task, "dataset": name, "value": 0.5 + step * slope}
        for step in (0, 4, 8)
        for task, name, slope in (("ir", "a", 0.01), ("ir", "b", 0.03), ("sts", "c", -0.01))
    ]
)


def test_it_draws_the_losses_of_each_kind_and_the_mean_gain_of_each_task():
    figure = draw(pd.DataFrame(LOG), DEV)
    first, second, scores = figure.axes
    assert first.get_title().startswith("loss, IR")
    assert list(second.lines[0].get_ydata()) == [row["loss"] for row in LOG if row["task"] == "sts"]
    gains = {line.get_label(): list(line.get_ydata()) for line in scores.lines[:2]}
    assert gains["IR"] == pytest.approx([0, 8, 16])
    assert gains["STS"] == pytest.approx([0, -4, -8])
    plt.close(figure)


def test_it_updates_one_output_and_no_more_often_than_asked(monkeypatch):
    shown = []

    class Handle:
        def display(self, figure):
            shown.append("display")

        def update(self, figure):
            shown.append("update")

    monkeypatch.setattr(live, "DisplayHandle", Handle)
    plot = LivePlot(every=1000)
    for n in range(1, 6):
        plot(LOG[:n], DEV[:3])
    assert shown == ["display"]
    plot(LOG, DEV[:6])  # new scores
    assert shown == ["display", "update"]
    assert not plt.get_fignums()
