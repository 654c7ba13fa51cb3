"""All figures of the project, by name: tidy rows in, Axes out.

rows = pandas.read_csv("scores.csv")
ax = figures.FIGURES["trade_off"].plot(rows)
figures.write("trade_off", rows, "figures/mini")  # picture, rows and caption
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from codiemb_lib.draw import cost_figures
from codiemb_lib.draw import fusion as fusion_figures
from codiemb_lib.draw import maps as map_figures
from codiemb_lib.draw import pairs as pair_figures
from codiemb_lib.draw import scores as score_figures
from codiemb_lib.draw import space as geometry_figures
from codiemb_lib.draw.frame import FIGURES, caption
from codiemb_lib.draw.style import save_figure

__all__ = [
    "FIGURES",
    "caption",
    "cost_figures",
    "fusion_figures",
    "geometry_figures",
    "map_figures",
    "pair_figures",
    "score_figures",
    "write",
]


def write(stem: str, rows: pd.DataFrame, folder: str | Path) -> Figure:
    """Draw figure `stem` and save it in a folder, with its rows and its caption.

    Raises:
        ValueError: There is no such figure, or the rows do not suit it.
        UnwritableError: The folder cannot be written.
    """
    text = caption(stem, rows)
    axes = FIGURES[stem].plot(rows)
    figure = np.ravel(axes)[0].get_figure()
    save_figure(figure, Path(folder) / stem, rows=rows, caption=text)
    return figure
