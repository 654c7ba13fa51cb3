"""The command line `codiemb`.

It is built on click: typer has no option of two values, such as `-p name value`. Rooms are imported
by their faces, which load a module when it is asked for, so that `codiemb --help` is quick.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
from collections.abc import Sequence

import click
from click.shell_completion import shell_complete

from codiemb_lib import __version__, core
from codiemb_lib import fuse as fusing
from codiemb_lib.app.data import data
from codiemb_lib.app.encoding import benchmark, mine
from codiemb_lib.app.options import FILE, Group, examples, preset_option

_COMPLETE = "_CODIEMB_COMPLETE"


@click.group(
    cls=Group,
    no_args_is_help=False,  # a wrong call like others
    context_settings={"show_default": True, "max_content_width": 100},
    epilog="\b\nThe shell completes commands, options and presets after:\n"
    f'  eval "$({_COMPLETE}=bash_source codiemb)"    (or zsh_source, fish_source)',
)
@click.version_option(__version__, message="codiemb %(version)s")
def cli() -> None:
    """Train, fuse and measure encoders for retrieval and similarity."""


cli.add_command(data)
cli.add_command(benchmark)
data.add_command(mine)


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

    given = dict(parameter)
    if len(given) < len(parameter):
        raise click.UsageError("expected each parameter once, found one given twice.")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the kernel too
    shown = sys.stderr.isatty() if progress is None else progress
    notebooks.execute(notebook, out, given, progress=shown)


@cli.command(epilog=examples("reproduce --preset smoke --cores 2", "reproduce -- --dry-run"))
@preset_option("mini", "An experiment of notebooks/presets, or the path of its file.")
@click.option("--cores", default="all", help="How many runs at once, a core each.")
@click.argument("snakemake", nargs=-1, type=click.UNPROCESSED, metavar="[-- OPTION...]")
def reproduce(preset: str, cores: str, snakemake: Sequence[str]) -> None:
    """Run what is missing or out of date.

    Each OPTION is one of Snakemake.
    """
    from codiemb_lib.app.reproduce import reproduce

    if snakemake and core.preset_path(snakemake[0]).is_file():
        raise click.UsageError(f"expected --preset before the name {snakemake[0]!r}.")
    if cores != "all" and not cores.strip("0").isdecimal():
        raise click.UsageError(f"--cores: expected a number from 1, or all, found {cores!r}.")
    reproduce(preset, cores, snakemake)


@cli.command(epilog=examples("draw trade_off", "draw comparisons --preset english"))
@click.argument("figure")
@preset_option("mini", "Whose figure.")
def draw(figure: str, preset: str) -> None:
    """Draw FIGURE anew, from the rows beside it."""
    from codiemb_lib.app.gallery import redraw

    click.echo(redraw(figure, preset))


@cli.command(epilog=examples("gallery", "gallery mini english"))
@click.argument("presets", nargs=-1)
def gallery(presets: Sequence[str]) -> None:
    """Write what the project shows of its rows.

    That is figures/README.md, with the figures of PRESETS and their captions (by default of mini),
    figures/RESULTS.md, and the table in README.md.
    """
    from codiemb_lib import draw
    from codiemb_lib.app.gallery import gallery

    figures, readme = core.figures_folder(""), core.project_root() / "README.md"
    pages = {figures / "README.md": gallery(figures, presets or ["mini"])}
    pages[figures / "RESULTS.md"] = draw.results_page()
    pages[readme] = draw.fill_readme(readme.read_text(encoding="utf-8"))
    for page, text in pages.items():
        core.write_text(page, text)
        click.echo(page)


@cli.command(epilog=examples("report", "report --preset english --out english.html"))
@preset_option("mini", "An experiment of notebooks/presets, or the path of its file.")
@click.option("--out", type=FILE, help="By default data/runs/PRESET/report.html.")
def report(preset: str, out: str | None) -> None:
    """Write a reproduction as one HTML file.

    It needs no network.
    """
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
    kept = fusing.fuse_recipe(recipe, out)
    click.echo(f"{out}: merged from {', '.join(kept)}")


def _has_reader(descriptor: int) -> bool:
    """Whether the other end of a pipe is open still; `head` closes it when it has enough."""
    poll = select.poll()
    poll.register(descriptor, 0)  # for errors and hang-ups alone
    return not poll.poll(0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command `codiemb` and return its exit status.

    A wrong call, and an error of ours, is something that the user can mend: it takes one line, and
    the status is 2, or 1 where a notebook's cell or a task of a benchmark failed. Where the reader
    of the output ends early, we end as quietly as other tools. Other errors keep their traceback.
    """
    if instruction := os.environ.get(_COMPLETE):
        return shell_complete(cli, {}, "codiemb", _COMPLETE, instruction)
    logging.basicConfig(format="codiemb: %(message)s")
    words = sys.argv[1:] if arguments is None else arguments
    try:
        with cli.make_context("codiemb", [*words]) as context:
            cli.invoke(context)
        sys.stdout.flush()  # now rather than at exit, where nothing can be caught
    except click.exceptions.Exit as end:  # after --help
        return end.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        if _has_reader(1):  # it was another pipe
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what is still to come
        return 128 + signal.SIGPIPE
    except click.UsageError as error:
        hint = f" See `{error.ctx.command_path} --help`." if error.ctx else ""
        click.echo(f"codiemb: {error.format_message()}{hint}", err=True)
        return error.exit_code
    except core.CodiembError as error:
        click.echo(f"codiemb: {error}", err=True)
        return error.status
    return 0
