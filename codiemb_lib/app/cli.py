"""The command line `codiemb`.

It is built on click: typer has no option of two values, such as `-p name value`. Rooms are imported
by their faces, which load a module when it is asked for, so that `codiemb --help` is quick.
"""

import logging
import signal
import sys
from collections.abc import Sequence

import click

from codiemb_lib import __version__, core, train
from codiemb_lib import fuse as fusing
from codiemb_lib.app.benchmark import benchmark
from codiemb_lib.app.data import data
from codiemb_lib.app.options import FILE, examples, preset_option
from codiemb_lib.app.reproduce import publish, redraw, reproduce, verify
from codiemb_lib.app.tune import tune


@click.group(
    no_args_is_help=False,  # a wrong call like others
    context_settings={"show_default": True, "max_content_width": 100},
    epilog="\b\nThe shell completes commands and options after:\n"
    '  eval "$(_CODIEMB_COMPLETE=bash_source codiemb)"    (or zsh_source, fish_source)',
)
@click.version_option(__version__, message="codiemb %(version)s")
def cli() -> None:
    """Train, fuse and measure encoders for retrieval and similarity."""


for command in (reproduce, publish, verify, redraw, benchmark, data, tune):
    cli.add_command(command)


@cli.command(epilog=examples("execute notebooks/02_losses_by_hand.ipynb out.ipynb -p preset mini"))
@click.argument("notebook", type=FILE)
@click.argument("out", type=FILE)
@click.option("-p", "--parameter", nargs=2, multiple=True, metavar="NAME VALUE")
@click.option("--progress/--no-progress", default=None, help="A bar; the default on a terminal.")
def execute(
    notebook: str, out: str, parameter: Sequence[tuple[str, str]], progress: bool | None
) -> None:
    """Run NOTEBOOK with some parameters changed.

    The executed copy goes to OUT, once every cell has passed.
    """
    from codiemb_lib.app import notebooks

    signal.signal(signal.SIGTERM, notebooks.terminate)
    if len(given := dict(parameter)) < len(parameter):
        raise click.UsageError("expected each parameter once, found one given twice.")
    shown = sys.stderr.isatty() if progress is None else progress
    notebooks.execute(notebook, out, given, progress=shown)


@cli.command(epilog=examples("report", "report --preset english --out english.html"))
@preset_option()
@click.option("--out", type=FILE, help="By default data/runs/PRESET/report.html.")
def report(preset: str, out: str | None) -> None:
    """Write a reproduction as one HTML file, which needs no network."""
    from codiemb_lib.app.report import report

    page = report(preset)
    out = out or str(core.preset_folder(core.preset_path(preset).stem) / "report.html")
    core.write_text(out, page)
    click.echo(f"{out}: {len(page.encode()) / 2**20:.1f} MiB")


@cli.command(epilog=examples("fuse recipe.yaml models/merged"))
@click.argument("recipe", type=FILE)
@click.argument("out", type=FILE)
def fuse(recipe: str, out: str) -> None:
    """Merge models of one base.

    RECIPE, a YAML file, says which models and how; the merged one goes into the folder OUT.
    """
    kept = fusing.fuse_recipe(recipe, out, lambda *given: train.training_gradient(*given))
    click.echo(f"{out}: merged from {', '.join(kept)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command `codiemb` and return its exit status.

    A wrong call, and an error of ours, is something that the user can mend: it takes one line, and
    the status is 2, or 1 where a notebook's cell or a task of a benchmark failed. Other errors keep
    their traceback.
    """
    logging.basicConfig(format="codiemb: %(message)s")
    try:
        return cli.main(arguments, "codiemb", standalone_mode=False) or 0
    except click.UsageError as error:
        hint = f" See `{error.ctx.command_path} --help`." if error.ctx else ""
        click.echo(f"codiemb: {error.format_message()}{hint}", err=True)
        return error.exit_code
    except click.Abort:
        return 128 + signal.SIGINT
    except core.CodiembError as error:
        click.echo(f"codiemb: {error}", err=True)
        return error.status
