"""What the commands share: several values behind one flag, options, names and paths."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import click

from codiemb_lib import core, data

SPLIT = click.Choice(["train", "dev", "test"])
FILE = click.Path()  # so that a shell completes it; what it leads to is checked where it is read


class Command(click.Command):
    """A command whose repeatable options also take several values: `--tasks a b`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeat a flag before each of its values, as click wants it."""
        options = [p for p in self.params if isinstance(p, click.Option)]
        several = {flag for o in options if o.multiple and o.nargs == 1 for flag in o.opts}
        words: list[str] = []
        flag = ""
        for place, word in enumerate(args):
            if word == "--":
                return super().parse_args(ctx, words + args[place:])
            if word.startswith("-"):
                flag = word if word in several else ""
            elif flag and words[-1] != flag:
                words.append(flag)
            words.append(word)
        return super().parse_args(ctx, words)


class Group(click.Group):
    """A group of such commands."""

    command_class = Command


def examples(*lines: str) -> str:
    """The end of a command's help."""
    return "\b\nExamples:\n" + "\n".join(f"  codiemb {line}" for line in lines)


def preset_option(default: str | None, says: str) -> Callable:
    """The option `--preset`, whose names a shell completes."""

    def complete(_context: object, _option: object, incomplete: str) -> list[str]:
        return sorted(p.stem for p in core.preset_path("x").parent.glob(f"{incomplete}*.yaml"))

    return click.option("--preset", default=default, help=says, shell_complete=complete)


def table_options(command: Callable) -> Callable:
    """The options `--columns`, `--scale` and `--delimiter`: how a table is to be read."""
    columns = "By name or position: two texts, their score; or query, positive, any negative."
    delimiter = "Of CSV; by default a tab if the first line has one, else a comma."
    command = click.option("--delimiter", help=delimiter)(command)
    command = click.option("--scale", nargs=2, type=float, help="Of scores: LOW HIGH.")(command)
    return click.option("--columns", multiple=True, metavar="COLUMN...", help=columns)(command)


def positions(columns: Iterable[str]) -> list[str | int]:
    """Columns of a table as they are typed: digits are positions."""
    return [int(name) if name.isdecimal() else name for name in columns]


def from_here(name: str) -> str:
    """A data set of the registry by its name; else a path from here, as a shell means it."""
    if name not in {entry.name for entry in data.list_datasets()} and Path(name).exists():
        return str(Path(name).resolve())
    return name
