"""The pictures that are kept: `codiemb draw` makes one anew, `codiemb gallery` a page of all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
from jinja2 import Template

from codiemb_lib import core, draw
from codiemb_lib.app.options import examples, preset_option


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

    That is figures/README.md, with the figures of PRESETS and their captions (of english and mini,
    if none is named), figures/RESULTS.md, and the table in README.md.
    """
    folder, readme = core.figures_folder(""), core.project_root() / "README.md"
    pages = {folder / "README.md": gallery_page(folder, presets or ["english", "mini"])}
    pages[folder / "RESULTS.md"] = draw.results_page()
    pages[readme] = draw.fill_readme(readme.read_text(encoding="utf-8"))
    for page, text in pages.items():
        core.write_text(page, text)
        click.echo(page)


def gallery_page(folder: Path, presets: Sequence[str]) -> str:
    """The page, in Markdown, for the presets whose figures lie below a folder."""
    found = {preset: drawn(folder / preset) for preset in presets}
    if missing := [preset for preset, stems in found.items() if not stems]:
        raise core.PresetError(
            f"{folder / missing[0]}: expected figures of a preset, found none. Run `make reproduce "
            f"PRESET={missing[0]}`, or correct the name."
        )
    captions = {
        preset: {s: (folder / preset / f"{s}.md").read_text("utf-8").strip() for s in stems}
        for preset, stems in found.items()
    }
    template = Path(__file__).with_suffix(".md").read_text(encoding="utf-8")
    return Template(template, keep_trailing_newline=True).render(presets=captions)
