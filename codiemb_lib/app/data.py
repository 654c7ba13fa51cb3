"""The commands `codiemb data list`, `describe`, `prepare` and `mine`."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from codiemb_lib import core, evaluate, model
from codiemb_lib import data as sets
from codiemb_lib.app import options


@click.group(no_args_is_help=False)
def data() -> None:
    """Data sets: those of the registry, and your own."""


@data.command("list", epilog=options.examples("data list"))
def list_entries() -> None:
    """Print the data sets of the registry: name, task, splits and licence."""
    for entry in sets.list_datasets():
        splits = ", ".join(entry.splits)
        if fractions := getattr(entry, "fractions", None):
            splits = ", ".join(f"{name} {share:.0%}" for name, share in fractions.items())
        click.echo(f"{entry.name:26} {entry.task:4} {splits:32} {entry.licence}")


@data.command(epilog=options.examples("data describe wordsim-353", "data describe my/folder"))
@click.argument("name_or_path", type=options.from_here)
def describe(name_or_path: str) -> None:
    """Print what a data set is like."""
    import pandas as pd

    dataset = sets.load_dataset(name_or_path)
    measures = {split: sets.describe(records) for split, records in dataset.splits.items()}
    for split, records in dataset.splits.items():
        sets.say_grades(f"{name_or_path}, {split}", records)
    click.echo(pd.DataFrame(measures).to_string())
    click.echo("\nlengths and counts: least / median / most\n")
    for field in ("task", "licence", "provenance", "content_hash"):
        click.echo(f"{field.replace('_', ' '):13} {getattr(dataset, field)}")
    example = sets.to_json(next(record for of in dataset.splits.values() for record in of))
    click.echo(f"{'example':13} {example[:400]}{'...' if len(example) > 400 else ''}")


@data.command(
    cls=options.Command,
    epilog=options.examples(
        "data prepare qa.jsonl my/qa --task ir --columns question answer --dev 100 --test 100",
        "data prepare pairs.csv my/pairs --columns 1 2 3 --scale 0 5 --split dev",
        "data prepare org/set my/set --hub train dev=validation --columns left right score",
    ),
)
@click.argument("source", type=options.from_here)
@click.argument("out", type=options.FILE)
@click.option("--task", type=click.Choice(["ir", "sts"]), help="If the source does not say it.")
@options.table_options
@click.option("--split", type=options.SPLIT, help="Of a lone file.")
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
    sizes = {name: n for name in ("dev", "test") if (n := form.pop(name))}
    place = {name: form.pop(name) for name in ("config", "revision")}
    dialect = {name: form.pop(name) for name in ("delimiter", "quoting")}
    corpus = ()
    if (any(place.values()) and not hub) or (hub and {*dialect.values()} != {None}):
        wrong = "--config and --revision need --hub; --delimiter is for files, as is --quoting."
        raise click.UsageError(wrong)
    if hub:
        form["task"] = form["task"] or ("sts" if form["scale"] else "ir")
        splits = {
            ours: sets.read_hub(source, split=theirs, **place, **form)
            for ours, theirs in _splits_of_hub(hub).items()
        }
    else:
        dataset = sets.load_dataset(source, **form, **dialect)
        splits, corpus = dict(dataset.splits), dataset.corpus
    if split:
        if len(splits) > 1:
            raise click.UsageError(f"expected one split to be renamed, found {[*splits]}.")
        splits = {split: next(iter(splits.values()))}
    if sizes:
        if "train" not in splits or sizes.keys() & splits.keys():
            wanted = f"expected a split 'train' and no {[*sizes]} yet"
            raise click.UsageError(f"{wanted}, found {[*splits]}.")
        splits |= sets.hold_out(splits["train"], sizes, seed)
    with core.alone(out):
        _write(out, splits, corpus)


def _splits_of_hub(named: Sequence[str]) -> dict[str, str]:
    """Splits of a data set of the Hub, by the names that they are to have here."""
    theirs = {ours: it or ours for ours, _, it in (name.partition("=") for name in named)}
    if not theirs.keys() <= {*options.SPLIT.choices} or len(theirs) < len(named):
        raise click.UsageError(
            f"--hub: expected each of {[*options.SPLIT.choices]} at most once, found {[*named]}. "
            "Write OURS=THEIRS, or OURS=THEIRS+THEIRS."
        )
    return theirs


@data.command(epilog=options.examples("data mine my/qa my/mined --encoder minilm-l6"))
@click.argument("source", type=options.from_here)
@click.argument("out", type=options.FILE)
@click.option("--encoder", required=True, help="Its folder, or a name as in a preset.")
@click.option("--split", default="train", help="Whose records get negatives.")
@click.option("--negatives", default=4, help="At most, a record.")
@click.option(
    "--absolute-margin", "--margin", type=float, help="By which a positive must be more similar."
)
@click.option("--relative-margin", type=float, help="The same as a part of its cosine.")
@click.option("--depth", default=100, help="Nearest passages that are looked at.")
@click.option("--query-prompt", default="")
@click.option("--passage-prompt", default="")
@click.option(
    "--ignore-identical-ids", is_flag=True, help="Leave out the document of a query's id."
)
@click.option("--corpus", type=options.FILE, help="A corpus.jsonl, or its folder; no part of OUT.")
def mine(source: str, out: str, encoder: str, split: str, corpus: str | None, **given: Any) -> None:
    """Find hard negatives with an encoder.

    They are those of one split of SOURCE; OUT gets the other splits as they are. Without a margin,
    the absolute one is 0.05.
    """
    given = {name: value for name, value in given.items() if value is not None}
    if not given.keys() & {"absolute_margin", "relative_margin"}:
        given["absolute_margin"] = 0.05
    names = (*core.Prompts.model_fields, "ignore_identical_ids")
    own = {name: given.pop(name) for name in names}
    given["settings"] = core.DatasetSettings(name="", **own)
    dataset = sets.load_dataset(source)
    records = dataset.split(split)
    passages = [*dataset.corpus, *(sets.read_beir_corpus(corpus).values() if corpus else ())]
    embedder, progress = model.Embedder(options.encoder_settings(encoder)), sys.stderr.isatty()
    source_hash, asked = dataset.content_hash, repr((split, sorted(given.items())))
    origin = core.sha256_text(source_hash, embedder.key, asked, *passages)
    with core.alone(out), core.scratch_beside(Path(out)):  # which clears what a kill has left
        if sets.origin_of(out) == origin:
            click.echo(f"{out}: mined before")
            return
        # What cannot be written is refused now rather than after hours of encoding.
        if (file := Path(out) / f"{split}.jsonl").exists():
            raise sets.RecordError(f"{file}: expected no such file, found one.")
        sets.split_lines(out, dataset.splits, dataset.corpus)  # the same of the other files
        mined = evaluate.mine(embedder, records, corpus=passages, progress=progress, **given)
        _write(out, {**dataset.splits, split: mined}, dataset.corpus, origin)
    counts = [len(record.negatives) for record in mined]
    click.echo(
        f"{sum(counts):,} hard negatives for {len(counts):,} records, "
        f"{counts.count(0):,} of them without any"
    )


def _write(
    folder: str,
    splits: "Mapping[str, Sequence[sets.Record]]",
    corpus: Sequence[str],
    origin: str = "",
) -> None:
    """Write a folder of records, and print how many stand in which file."""
    for file, count in sets.write_splits(folder, splits, corpus, origin=origin).items():
        click.echo(f"{file}: {count:,} {'passages' if file.stem == 'corpus' else 'records'}")
        sets.say_grades(str(file), splits.get(file.stem, ()))
