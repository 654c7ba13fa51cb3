"""One picture that is kept, drawn anew: `codiemb draw`."""

from __future__ import annotations

import click

from codiemb_lib import core, draw
from codiemb_lib.app.options import examples, preset_option


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
