"""The pictures that are kept, on one page: each with its caption and the command that draws it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from codiemb_lib import core, draw
from codiemb_lib.core import PresetError

_HEAD = """\
# Figures

Each figure stands here as PNG and PDF, with its rows as CSV and its caption. The command below a
caption draws it anew from the rows, in seconds; notebook `09_paper_figures` draws them all. This
page is made by `codiemb gallery`.
"""
_FIGURE = """
### {stem}

![{stem}]({preset}/{stem}.png)

{caption}

`codiemb draw {stem} --preset {preset}` ([PDF]({preset}/{stem}.pdf), [CSV]({preset}/{stem}.csv))
"""


def drawn(folder: Path) -> list[str]:
    """The figures that a folder holds, in the order of the registry."""
    return [stem for stem in draw.FIGURES if (folder / f"{stem}.png").is_file()]


def gallery(folder: Path, presets: Iterable[str]) -> str:
    """The page, in Markdown, for the presets whose figures lie below a folder."""
    page = _HEAD
    for preset in presets:
        if not (stems := drawn(folder / preset)):
            raise PresetError(
                f"{folder / preset}: expected figures of a preset, found none. Draw them by "
                f"`make reproduce PRESET={preset}`, or correct the name."
            )
        page += f"\n## {preset}\n"
        for stem in stems:
            caption = (folder / preset / f"{stem}.md").read_text(encoding="utf-8").strip()
            page += _FIGURE.format(stem=stem, preset=preset, caption=caption)
    return page


def redraw(stem: str, preset: str) -> Path:
    """Draw a figure of a preset anew from the rows beside it; returns the picture's path."""
    if stem not in draw.FIGURES:
        raise PresetError(core.unknown("figure", stem, draw.FIGURES))
    rows = core.figures_folder(preset) / f"{stem}.csv"
    if not rows.is_file():
        raise PresetError(
            f"{rows}: expected the rows of the figure, found none. Run notebook 09, or "
            f"`make reproduce PRESET={preset}`."
        )
    draw.write(stem, pd.read_csv(rows), rows.parent)
    return rows.with_suffix(".png")
