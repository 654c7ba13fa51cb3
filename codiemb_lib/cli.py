"""The command line: `codiemb execute`, `codiemb reproduce`, `codiemb data list`.

Modules of ours are imported where they are used, so that `codiemb --help` loads no papermill.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence

from codiemb_lib import __version__


def execute(arguments: argparse.Namespace) -> None:
    """Run one notebook with some parameters changed."""
    from codiemb_lib import notebooks

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the kernel too
    given = dict(arguments.parameters)
    if len(given) < len(arguments.parameters):
        raise notebooks.ParameterError("expected each parameter once, found one given twice.")
    notebooks.execute(arguments.notebook, arguments.out, given, progress=arguments.progress)


def reproduce(arguments: argparse.Namespace) -> None:
    """Become Snakemake, which runs what is missing or out of date of a preset."""
    from codiemb_lib.config import load_preset, project_root
    from codiemb_lib.files import check_writable
    from codiemb_lib.notebooks import alone

    load_preset(arguments.preset)
    root = check_writable(project_root())
    os.chdir(root)
    command = [sys.executable, "-m", "snakemake", "--nolock", "--rerun-incomplete"]
    command += ["--cores", arguments.cores, "--config", f"preset={arguments.preset}"]
    command += ["--quiet", "host", "reason"]
    # Snakemake's own lock would outlive a kill. Ours is open in the process that we become.
    with alone(root) as lock:
        os.set_inheritable(lock, True)
        os.execv(sys.executable, [*command, *arguments.snakemake])


def list_data(arguments: argparse.Namespace) -> None:
    """Print every data set of the registry."""
    from codiemb_lib.sources import list_datasets

    for entry in list_datasets():
        splits = ", ".join(f"{name} {share:.0%}" for name, share in entry.fractions.items())
        print(f"{entry.name:16} {entry.task:4} {splits:32} {entry.licence}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="codiemb", description="Train, fuse and measure encoders for retrieval and similarity."
    )
    parser.add_argument("--version", action="version", version=f"codiemb {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("execute", help="run a notebook with some parameters changed")
    run.add_argument("notebook", metavar="NOTEBOOK")
    run.add_argument("out", metavar="OUT", help="where the executed copy goes")
    run.add_argument(
        "-p",
        "--parameter",
        dest="parameters",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="change a parameter; repeatable",
    )
    run.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        default=sys.stderr.isatty(),
        help="a progress bar of the cells; the default on a terminal",
    )
    run.set_defaults(command=execute)

    pipeline = commands.add_parser(
        "reproduce", help="run what is missing or out of date of a preset"
    )
    pipeline.add_argument("--preset", default="mini", help="an experiment of notebooks/presets")
    pipeline.add_argument("--cores", default="all", help="how many runs at once, a core each")
    pipeline.add_argument(
        "snakemake", nargs="*", metavar="-- OPTION", help="further options, for Snakemake"
    )
    pipeline.set_defaults(command=reproduce)

    data = commands.add_parser("data", help="the data sets of the registry")
    data_commands = data.add_subparsers(required=True, metavar="COMMAND")
    listing = data_commands.add_parser("list", help="name, task, splits and licence of each")
    listing.set_defaults(command=list_data)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command `codiemb` and return its exit status.

    An error of ours is something that the user can mend: it takes one line, and the status is 2, or
    1 where a notebook's cell failed. Any other error keeps its traceback.
    """
    arguments = _parser().parse_args(argv)
    logging.basicConfig(format="codiemb: %(message)s")
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what it reports, we say ourselves
    try:
        arguments.command(arguments)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Exception as error:
        if not type(error).__module__.startswith("codiemb_lib."):
            raise
        print(f"codiemb: {error}", file=sys.stderr)
        return 1 if type(error).__name__ == "CellError" else 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
