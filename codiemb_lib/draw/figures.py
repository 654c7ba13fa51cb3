"""All figures of the project, by name, in the order in which they tell the story.

rows = pandas.read_csv("scores.csv")
ax = FIGURES["trade_off"].plot(rows)
write("trade_off", rows, "figures/mini")  # picture, rows and caption
"""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import figure

from codiemb_lib.draw import fusion, scores, space
from codiemb_lib.draw.frame import REGISTRY, Figure, caption
from codiemb_lib.draw.style import save_figure

# Scores first, then what fusion makes of them, then the space; in a module as they stand there.
FIGURES: dict[str, Figure] = {
    stem: known
    for module in (scores, fusion, space)
    for stem, known in REGISTRY.items()
    if known.plot.__module__ == module.__name__
}


def write(stem: str, rows: pd.DataFrame, folder: str | Path) -> figure.Figure:
    """Draw figure `stem` and save it in a folder, with its rows and its caption.

    Raises:
        FigureError: There is no such figure, or the rows do not suit it.
        UnwritableError: The folder cannot be written.
    """
    text = caption(stem, rows)
    drawn = np.ravel(FIGURES[stem].plot(rows))[0].get_figure()
    save_figure(drawn, Path(folder) / stem, rows=rows, caption=text)
    return drawn
