"""The pictures that are kept: `codiemb draw` makes one anew, `codiemb gallery` a page of all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from codiemb_lib import core, draw
from codiemb_lib.app.options import examples, preset_option

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


@click.command("draw", epilog=examples("draw trade_off", "draw comparisons --preset english"))
@click.argument("figure")
@preset_option()
def redraw(figure: str, preset: str) -> None:
    """Draw FIGURE anew, from the rows beside it."""
    import pandas as pd

    if figure not in draw.FIGURES:
        raise core.PresetError(core.unknown("figure", figure, draw.FIGURES))
    rows = core.figures_folder(preset) / f"{figure}.csv"
    if not rows.is_file():
        raise core.PresetError(
            f"{rows}: expected the rows of the figure, found none. Run `make reproduce "
            f"PRESET={preset}`."
        )
    draw.write(figure, pd.read_csv(rows), rows.parent)
    click.echo(rows.with_suffix(".png"))


@click.command(epilog=examples("gallery", "gallery mini english"))
@click.argument("presets", nargs=-1)
def gallery(presets: Sequence[str]) -> None:
    """Write what the project shows of its rows.

    That is figures/README.md, with the figures of PRESETS and their captions (by default of mini),
    figures/RESULTS.md, and the table in README.md.
    """
    folder, readme = core.figures_folder(""), core.project_root() / "README.md"
    pages = {folder / "README.md": gallery_page(folder, presets or ["mini"])}
    pages[folder / "RESULTS.md"] = draw.results_page()
    pages[readme] = draw.fill_readme(readme.read_text(encoding="utf-8"))
    for page, text in pages.items():
        core.write_text(page, text)
        click.echo(page)


def gallery_page(folder: Path, presets: Sequence[str]) -> str:
    """The page, in Markdown, for the presets whose figures lie below a folder."""
    page = _HEAD
    for preset in presets:
        if not (stems := drawn(folder / preset)):
            raise core.PresetError(
                f"{folder / preset}: expected figures of a preset, found none. Run `make reproduce "
                f"PRESET={preset}`, or correct the name."
            )
        page += f"\n## {preset}\n"
        for stem in stems:
            caption = (folder / preset / f"{stem}.md").read_text(encoding="utf-8").strip()
            page += _FIGURE.format(stem=stem, preset=preset, caption=caption)
    return page
