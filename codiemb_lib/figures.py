"""All figures of the project, by name: tidy rows in, Axes out.

rows = pandas.read_csv("scores.csv")
ax = figures.FIGURES["trade_off"].plot(rows)
style.save_figure(ax.figure, "trade_off", rows=rows, caption=figures.caption("trade_off", rows))
"""

from codiemb_lib import (
    fusion_figures,
    geometry_figures,
    score_figures,
)
from codiemb_lib.plotting import FIGURES, caption

__all__ = ["FIGURES", "caption", "fusion_figures", "geometry_figures", "score_figures"]
