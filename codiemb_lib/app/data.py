"""The commands `codiemb data list`, `describe` and `prepare`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from codiemb_lib import core
from codiemb_lib import data as sets
from codiemb_lib.app.options import (
    FILE,
    SPLIT,
    Group,
    examples,
    from_here,
    positions,
    table_options,
)

if TYPE_CHECKING:
    from codiemb_lib.data import Record


@click.group(cls=Group, no_args_is_help=False)
def data() -> None:
    """Data sets: those of the registry, and your own."""


@data.command("list", epilog=examples("data list"))
def list_entries() -> None:
    """Print the data sets of the registry.

    A line each: name, task, splits and licence.
    """
    for entry in sets.list_datasets():
        splits = ", ".join(entry.splits)
        if fractions := getattr(entry, "fractions", None):
            splits = ", ".join(f"{name} {share:.0%}" for name, share in fractions.items())
        click.echo(f"{entry.name:26} {entry.task:4} {splits:32} {entry.licence}")


@data.command(epilog=examples("data describe wordsim-353", "data describe my/folder"))
@click.argument("name_or_path")
def describe(name_or_path: str) -> None:
    """Print what a data set is like."""
    dataset = sets.load_dataset(from_here(name_or_path))
    columns = [sets.describe(records) for records in dataset.splits.values()]
    width = max(20, *(len(cell) for column in columns for cell in column.values())) + 2
    click.echo(f"{'':26}" + "".join(f"{split:>{width}}" for split in dataset.splits))
    for measure in columns[0]:
        click.echo(f"{measure:26}" + "".join(f"{column[measure]:>{width}}" for column in columns))
    click.echo("\nlengths and counts: least / median / most\n")
    for field in ("task", "licence", "provenance", "content_hash"):
        click.echo(f"{field.replace('_', ' '):13} {getattr(dataset, field)}")
    example = sets.to_json(next(iter(dataset.splits.values()))[0])
    click.echo(f"{'example':13} {example[:400]}{'...' if len(example) > 400 else ''}")


@data.command(
    epilog=examples(
        "data prepare qa.jsonl my/qa --task ir --columns question answer --dev 100 --test 100",
        "data prepare pairs.csv my/pairs --columns 1 2 3 --scale 0 5 --split dev",
        "data prepare org/set my/set --hub train dev=validation --columns left right score",
    ),
)
@click.argument("source")
@click.argument("out", type=FILE)
@click.option("--task", type=click.Choice(["ir", "sts"]), help="If the source does not say it.")
@table_options
@click.option("--split", type=SPLIT, help="Of a lone file.")
@click.option("--hub", multiple=True, metavar="SPLIT...", help="Of SOURCE, a data set of the Hub.")
@click.option("--config", default="", help="The configuration there.")
@click.option("--revision", default="", help="The commit, tag or branch there.")
@click.option("--dev", default=0, help="Take so many records out of train for dev.")
@click.option("--test", default=0, help="Take so many records out of train for test.")
@click.option("--seed", default=0, help="Decides which.")
def prepare(
    source: str, out: str, hub: Sequence[str], split: str | None, seed: int, **form: Any
) -> None:
    """Make a folder of unified JSONL, OUT.

    SOURCE is a name of the registry, or a file or folder of any form that can be read.
    """
    logging.getLogger("codiemb_lib.data").setLevel(logging.INFO)  # what is left out
    sizes = {name: n for name in ("dev", "test") if (n := form.pop(name))}
    place = {name: form.pop(name) for name in ("config", "revision")}
    source, corpus = from_here(source), ()
    if hub:
        splits = _of_hub(source, hub, **place, **form)
    elif any(place.values()):
        raise click.UsageError("expected --hub beside --config and --revision, found none.")
    else:
        dataset = sets.load_dataset(source, **form | {"columns": positions(form["columns"])})
        splits, corpus = dict(dataset.splits), dataset.corpus
    if split:
        if len(splits) > 1:
            raise click.UsageError(f"expected one split to be renamed, found {[*splits]}.")
        splits = {split: next(iter(splits.values()))}
    if sizes:
        if "train" not in splits or sizes.keys() & splits.keys():
            raise click.UsageError(
                f"expected a split 'train' to take {[*sizes]} from, and none of these yet, found "
                f"{[*splits]}."
            )
        splits |= sets.hold_out(splits["train"], sizes, seed)
    write(out, splits, corpus)


def _of_hub(
    name: str, named: Sequence[str], *, delimiter: str | None, **form: Any
) -> dict[str, list[Record]]:
    """Splits of a data set of the Hub, under the names that they are to have here."""
    if delimiter is not None:
        raise click.UsageError("expected no --delimiter beside --hub, found one.")
    form["task"] = form["task"] or ("sts" if form["scale"] else "ir")
    theirs = dict(pair.partition("=")[::2] for pair in named)
    if strangers := theirs.keys() - {*SPLIT.choices}:
        message = core.unknown("split", min(strangers), SPLIT.choices)
        raise click.UsageError(f"{message} Write OURS=THEIRS.")
    if len(theirs) < len(named):
        raise click.UsageError(
            f"expected each split once, found {[*named]}. Of several of theirs one is made by "
            "OURS=THEIRS+THEIRS."
        )
    return {ours: sets.read_hub(name, split=it or ours, **form) for ours, it in theirs.items()}


def write(folder: str, splits: Mapping[str, Sequence[Record]], corpus: Sequence[str]) -> None:
    """Write a folder of records, and print how many stand in which file."""
    for file, count in sets.write_splits(folder, splits, corpus).items():
        click.echo(f"{file}: {count:,} {'passages' if file.stem == 'corpus' else 'records'}")
