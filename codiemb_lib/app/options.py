"""What the commands share: several values behind one flag, options, names and paths."""

from collections.abc import Callable
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


def examples(*lines: str) -> str:
    """The end of a command's help."""
    return "\b\nExamples:\n" + "\n".join(f"  codiemb {line}" for line in lines)


def preset_option(default: str | None = "mini") -> Callable:
    """The option `--preset`."""
    says = "An experiment of notebooks/presets, or the path of its file."
    return click.option("--preset", default=default, help=says)


def table_options(command: Callable) -> Callable:
    """The options `--columns`, `--scale`, `--delimiter` and `--quoting`: how to read a table."""

    def column(name: str) -> str | int:
        return int(name) if name.isdecimal() else name

    columns = "By name or position: two texts, their score; or query, positive, any negative."
    delimiter = "Of a table; by default a tab if the first line has one, else a comma."
    quoting = "Whether quotation marks enclose cells or are text; by default as the file shows."
    for option in (
        click.option("--quoting", type=click.Choice(["yes", "no"]), help=quoting),
        click.option("--delimiter", help=delimiter),
        click.option("--scale", nargs=2, type=float, help="Of scores: LOW HIGH."),
        click.option("--columns", multiple=True, type=column, metavar="COLUMN...", help=columns),
    ):
        command = option(command)
    return command


def from_here(name: str) -> str:
    """A data set of the registry by its name; else a path from here, as a shell means it."""
    if name not in {entry.name for entry in data.list_datasets()} and Path(name).exists():
        return str(Path(name).resolve())
    return name


def encoder_settings(name: str, preset: "core.Preset | None" = None) -> "core.EncoderSettings":
    """An encoder by its name, or by a path from here, as a shell means it.

    A preset's settings hold for its own encoder and for a folder, which is taken for a model that
    was trained from it.
    """
    is_folder = Path(name).is_dir()
    path = str(Path(name).resolve()) if is_folder else name
    if preset and (is_folder or name == preset.encoder.name):
        return preset.encoder.model_copy(update={"name": path, "lora": None})
    return core.EncoderSettings(name=path)
