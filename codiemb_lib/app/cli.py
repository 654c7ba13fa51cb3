"""The command line: `codiemb execute`, `reproduce`, `fuse`, `benchmark`, `draw`, `data ...`.

Modules of ours are imported where they are used, so that `codiemb --help` loads no papermill.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import select
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codiemb_lib import __version__
from codiemb_lib.core import CodiembError

if TYPE_CHECKING:
    import pandas as pd

    from codiemb_lib.core import EncoderSettings, Preset
    from codiemb_lib.data import Record


def execute(arguments: argparse.Namespace) -> None:
    """Run one notebook with some parameters changed."""
    from codiemb_lib.app import notebooks

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the kernel too
    given = dict(arguments.parameters)
    if len(given) < len(arguments.parameters):
        raise notebooks.ParameterError("expected each parameter once, found one given twice.")
    notebooks.execute(arguments.notebook, arguments.out, given, progress=arguments.progress)


def reproduce(arguments: argparse.Namespace) -> None:
    """Become Snakemake, which runs what is missing or out of date of a preset."""
    from codiemb_lib.core import (
        PresetError,
        alone,
        check_writable,
        load_preset,
        preset_path,
        project_root,
    )

    if named := [word for word in arguments.snakemake if preset_path(word).is_file()]:
        raise PresetError(f"expected --preset before the name of a preset, found {named[0]!r}.")
    if arguments.cores != "all" and not arguments.cores.strip("0").isdecimal():
        raise PresetError(f"--cores: expected a number from 1, or all, found {arguments.cores!r}.")
    preset = load_preset(arguments.preset)
    _check_data(preset)
    root = check_writable(project_root())
    os.chdir(root)
    command = [sys.executable, "-m", "snakemake", "--nolock", "--rerun-incomplete"]
    command += ["--quiet", "host", "reason", "--config", f"preset={arguments.preset}"]
    if copies := [os.path.relpath(c) for c in _outlived_copies(preset) if c.is_file()]:
        command += ["--forcerun", *copies]  # by these alone Snakemake knows what is there
    command += ["--cores", arguments.cores]
    # Snakemake's own lock would outlive a kill. Ours is open in the process that we become.
    with alone(root) as lock:
        os.set_inheritable(lock, True)
        os.execv(sys.executable, [*command, *arguments.snakemake])


def _check_data(preset: Preset) -> None:
    """Refuse data sets that are not there, lack a split, or are all of one task.

    The files of public sets are left to the notebooks, which may have to fetch them.
    """
    from codiemb_lib.data import check_tasks, list_datasets, load_dataset

    tasks = {entry.name: entry.task for entry in list_datasets()}
    for settings in preset.datasets:
        if settings.name not in tasks:
            dataset = load_dataset(settings.name)
            dataset.split("dev", limit=settings.dev)
            dataset.split("test", limit=settings.test)
            tasks[settings.name] = dataset.task
    check_tasks(preset, tasks)


def _outlived_copies(preset: Preset) -> Iterator[Path]:
    """Executed notebooks of a preset whose model, or one of whose figures, has been removed."""
    from codiemb_lib.core import figures_folder, is_finished, preset_folder, run_folder
    from codiemb_lib.draw import FIGURES

    for model in (*preset.variants, *preset.fusion):
        for seed in preset.seeds:
            folder = run_folder(preset.name, model, seed)
            if not is_finished(folder) and model in preset.variants:
                yield folder / "03_joint_training.ipynb"
            elif not is_finished(folder):
                yield run_folder(preset.name, "fusion", seed) / "04_checkpoint_fusion.ipynb"
    figures = figures_folder(preset.name)
    for stem in FIGURES:
        files = [figures / f"{stem}.{end}" for end in ("csv", "md", "pdf", "png")]
        if any(file.is_file() for file in files) and not all(file.is_file() for file in files):
            yield preset_folder(preset.name) / "09_paper_figures.ipynb"


def fuse(arguments: argparse.Namespace) -> None:
    """Fuse the models that a recipe names."""
    from codiemb_lib.fuse import fuse_recipe

    fused = fuse_recipe(arguments.recipe, arguments.out)
    print(f"{fused.folder}: {fused.tensors} tensors, merged from {', '.join(fused.kept)}")


def draw(arguments: argparse.Namespace) -> None:
    """Draw one figure of a preset anew, from the rows beside it."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt
    import pandas as pd

    from codiemb_lib.core import PresetError, figures_folder, unknown
    from codiemb_lib.draw import figures

    if arguments.stem not in figures.FIGURES:
        raise PresetError(unknown("figure", arguments.stem, figures.FIGURES))
    mpl.use("Agg")
    folder = figures_folder(arguments.preset)
    rows = folder / f"{arguments.stem}.csv"
    if not rows.is_file():
        raise PresetError(
            f"{rows}: expected the rows of the figure, found none. Run notebook 09, or "
            f"`make reproduce PRESET={arguments.preset}`."
        )
    plt.close(figures.write(arguments.stem, pd.read_csv(rows), folder))
    print(f"{folder / arguments.stem}.png")


def write_gallery(arguments: argparse.Namespace) -> None:
    """Write the page of all figures of some presets."""
    from codiemb_lib.app.gallery import gallery
    from codiemb_lib.core import figures_folder, write_text

    folder = figures_folder("")
    write_text(folder / "README.md", gallery(folder, arguments.presets))
    print(folder / "README.md")


def write_report(arguments: argparse.Namespace) -> None:
    """Write one HTML file about a preset's reproduction."""
    from codiemb_lib.app.report import report
    from codiemb_lib.core import preset_folder, write_text

    page = report(arguments.preset)
    out = arguments.out or preset_folder(Path(arguments.preset).stem) / "report.html"
    write_text(out, page)
    print(f"{out}: {len(page.encode()) / 2**20:.1f} MiB")


def benchmark(arguments: argparse.Namespace) -> None:
    """Score an encoder on data sets of ours and tasks of MTEB."""
    from codiemb_lib.core import DatasetSettings, Prompts, load_preset, project_root
    from codiemb_lib.evaluate import BenchmarkError, EvaluationError, Store, local_task, run_tasks
    from codiemb_lib.model import Embedder

    preset = load_preset(arguments.preset) if arguments.preset else None
    named = preset.datasets if preset else ()
    of_preset = {d.name: d for d in named if getattr(d, arguments.split) != 0}
    names = arguments.tasks or ([] if arguments.mteb else [*of_preset])
    if not names and not arguments.mteb:
        raise EvaluationError(
            "expected tasks, found none. Name data sets after --tasks, MTEB's after --mteb, or a "
            "preset with data sets after --preset."
        )
    cache = Path(arguments.cache or project_root() / "data" / "cache" / "benchmark")
    store = Store(Embedder(_encoder(arguments.model, preset), cache / "embeddings"), cache)
    sides = {s: v for s in Prompts.model_fields if (v := getattr(arguments, s)) is not None}
    progress = sys.stderr.isatty()
    shared = {"sides": sides, "progress": progress}
    how = {"split": arguments.split, "root": preset.data_root if preset else ""}
    how |= {"columns": _columns(arguments.columns), "scale": arguments.scale}
    how |= {"delimiter": arguments.delimiter}
    tasks = {}
    for name in names:
        settings = of_preset.get(name) or DatasetSettings(name=_source(name))
        prompts = settings if name in of_preset else None
        tasks[name] = partial(local_task, store, settings, prompts, **how, **shared)
    if arguments.mteb:
        from codiemb_lib.evaluate import mteb_task, mteb_tasks

        for task in mteb_tasks(arguments.mteb):
            name = task.metadata.name
            prompts = preset.benchmark.get(name) if preset else None
            tasks[name] = partial(mteb_task, store, task, prompts, **shared)
    file = re.sub(r"[^\w.-]+", "-", arguments.model.strip("/.")) + ".csv"
    out = Path(arguments.out or project_root() / "data" / "benchmark" / file)
    try:
        scores = run_tasks(tasks, store, out, model=arguments.model, progress=progress)
    except BenchmarkError as error:
        _print_scores(error.scores)
        raise
    _print_scores(scores)
    print(f"\n{out}")


def _encoder(name: str, preset: Preset | None) -> EncoderSettings:
    """An encoder by its name, or by a path from here, as a shell means it.

    A preset's settings hold for its own encoder and for a folder, which is taken for a model that
    was trained from it.
    """
    from codiemb_lib.core import EncoderSettings

    is_folder = Path(name).is_dir()
    path = str(Path(name).resolve()) if is_folder else name
    if preset and (is_folder or name == preset.encoder.name):
        return preset.encoder.model_copy(update={"name": path, "lora": None})
    return EncoderSettings(name=path)


def _print_scores(scores: pd.DataFrame) -> None:
    """The main metric of each task, and its mean over the data sets of a kind, times 100."""
    import pandas as pd

    from codiemb_lib.core import MAIN_METRIC, task_means

    for row in scores.itertuples():
        if row.metric == MAIN_METRIC.get(row.task, row.metric):
            n = f"{row.n:,}" if pd.notna(row.n) else ""  # mteb does not know each
            print(f"{row.dataset:32} {row.split:12} {row.metric:12} {100 * row.value:7.2f} {n:>8}")
    for task, mean in task_means(scores).items():
        print(f"{'mean':32} {task:12} {MAIN_METRIC[task]:12} {100 * mean:7.2f}")


def list_data(arguments: argparse.Namespace) -> None:
    """Print every data set of the registry."""
    from codiemb_lib.data import CutEntry, list_datasets

    for entry in list_datasets():
        splits = ", ".join(entry.splits)
        if isinstance(entry, CutEntry):
            splits = ", ".join(f"{name} {share:.0%}" for name, share in entry.fractions.items())
        print(f"{entry.name:26} {entry.task:4} {splits:32} {entry.licence}")


def describe_data(arguments: argparse.Namespace) -> None:
    """Print what a data set is like."""
    from codiemb_lib.data import describe, load_dataset, to_json

    dataset = load_dataset(_source(arguments.source))
    columns = [describe(records) for records in dataset.splits.values()]
    width = max(20, *(len(cell) for column in columns for cell in column.values())) + 2
    print(f"{'':26}" + "".join(f"{split:>{width}}" for split in dataset.splits))
    for measure in columns[0]:
        print(f"{measure:26}" + "".join(f"{column[measure]:>{width}}" for column in columns))
    print("\nlengths and counts: least / median / most\n")
    for field in ("task", "licence", "provenance", "content_hash"):
        print(f"{field.replace('_', ' '):13} {getattr(dataset, field)}")
    example = to_json(next(iter(dataset.splits.values()))[0])
    print(f"{'example':13} {example[:400]}{'...' if len(example) > 400 else ''}")


def prepare_data(arguments: argparse.Namespace) -> None:
    """Turn records of any form that can be read into a folder of unified JSONL."""
    from codiemb_lib.data import (
        RecordError,
        has_corpus,
        hold_out,
        load_dataset,
        read_beir_corpus,
        read_path,
    )

    logging.getLogger("codiemb_lib.data.formats").setLevel(logging.INFO)  # what is left out
    columns = _columns(arguments.columns)
    form = {"task": arguments.task, "columns": columns, "scale": arguments.scale}
    source = _source(arguments.source)
    delimiter = arguments.delimiter
    if arguments.hub:
        if delimiter is not None:
            raise RecordError(
                f"{source}: expected no --delimiter beside --hub, found {delimiter!r}."
            )
        splits, corpus = _hub_splits(source, arguments, form), ()
    elif arguments.config or arguments.revision:
        raise RecordError(f"{source}: expected --hub beside --config and --revision, found none.")
    elif any(form.values()) or delimiter is not None:
        splits = read_path(source, **form, delimiter=delimiter)
        corpus = [*read_beir_corpus(source).values()] if has_corpus(source) else []
    else:
        dataset = load_dataset(source)
        splits, corpus = dict(dataset.splits), dataset.corpus
    if arguments.split:
        if len(splits) > 1:
            raise RecordError(f"{source}: expected one split to be renamed, found {[*splits]}.")
        splits = {arguments.split: next(iter(splits.values()))}
    sizes = {split: n for split in ("dev", "test") if (n := getattr(arguments, split))}
    if sizes:
        if "train" not in splits or sizes.keys() & splits.keys():
            raise RecordError(
                f"{source}: expected a split 'train' to take {[*sizes]} from, and none of these "
                f"yet, found {[*splits]}."
            )
        splits |= hold_out(splits["train"], sizes, arguments.seed)
    _write(arguments.out, splits, corpus)


def _hub_splits(
    name: str, arguments: argparse.Namespace, form: dict[str, Any]
) -> dict[str, list[Record]]:
    """Splits of a data set of the Hub, under the names that they are to have here."""
    from codiemb_lib.core import unknown
    from codiemb_lib.data import SPLITS, RecordError, read_hub

    given = {"config": arguments.config, "revision": arguments.revision}
    given |= form | {"task": form["task"] or ("sts" if form["scale"] else "ir")}
    given["columns"] = arguments.columns  # names, even where they are digits
    named = [pair.partition("=") for pair in arguments.hub]
    for ours, _, _ in named:
        if ours not in SPLITS:
            raise RecordError(unknown("split", ours, SPLITS) + " Write OURS=THEIRS.")
    if len({ours for ours, _, _ in named}) < len(named):
        raise RecordError(
            f"{name}: expected each split once, found {arguments.hub}. Of several of theirs one is "
            "made by OURS=THEIRS+THEIRS."
        )
    return {ours: read_hub(name, split=theirs or ours, **given) for ours, _, theirs in named}


def mine_data(arguments: argparse.Namespace) -> None:
    """Give the records of a split new hard negatives; the other splits stay as they are."""
    from codiemb_lib.core import check_writable
    from codiemb_lib.data import RecordError, load_dataset, read_beir_corpus, split_lines
    from codiemb_lib.evaluate import mine
    from codiemb_lib.model import Embedder

    out = Path(arguments.out).absolute()
    # The nearest folder that stands, so that what is refused below leaves no new one.
    check_writable(next(folder for folder in (out, *out.parents) if os.path.exists(folder)))
    dataset = load_dataset(_source(arguments.source))
    records = dataset.split(arguments.split)
    mined_file = Path(arguments.out) / f"{arguments.split}.jsonl"
    if mined_file.exists():  # now rather than after hours of encoding
        raise RecordError(
            f"{mined_file}: expected no such file, found one. Choose another folder, or remove it."
        )
    split_lines(arguments.out, dataset.splits, dataset.corpus)  # the same of the other files
    further = read_beir_corpus(arguments.corpus).values() if arguments.corpus else ()
    mined = mine(
        Embedder(_encoder(arguments.encoder, None)),
        records,
        corpus=[*dataset.corpus, *further],
        query_prompt=arguments.query_prompt,
        passage_prompt=arguments.passage_prompt,
        negatives=arguments.negatives,
        margin=arguments.margin,
        depth=arguments.depth,
        progress=sys.stderr.isatty(),
    )
    _write(arguments.out, {**dataset.splits, arguments.split: mined}, dataset.corpus)
    found = sum(len(record.negatives) for record in mined)
    without = sum(not record.negatives for record in mined)
    print(f"{found:,} hard negatives for {len(mined):,} records, {without:,} of them without any")


def _columns(names: Sequence[str]) -> list[str | int]:
    return [int(name) if name.isdecimal() else name for name in names]


def _source(name: str) -> str:
    """A name of the registry as it is; else a path from here, as a shell means it."""
    from codiemb_lib.data import list_datasets

    if name not in {entry.name for entry in list_datasets()} and Path(name).exists():
        return str(Path(name).resolve())
    return name


def _write(folder: str, splits: Mapping[str, Sequence], corpus: Sequence[str]) -> None:
    from codiemb_lib.data import write_splits

    for file, count in write_splits(folder, splits, corpus).items():
        print(f"{file}: {count:,} {'passages' if file.stem == 'corpus' else 'records'}")


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

    drawing = commands.add_parser("draw", help="draw a figure anew, from the rows beside it")
    drawing.add_argument("stem", metavar="FIGURE", help="the name of its files")
    drawing.add_argument("--preset", default="mini", help="whose figure")
    drawing.set_defaults(command=draw)

    page = commands.add_parser("gallery", help="write figures/README.md: figures and captions")
    page.add_argument("presets", nargs="*", default=["mini"], metavar="PRESET")
    page.set_defaults(command=write_gallery)

    telling = commands.add_parser("report", help="write a reproduction as one HTML file")
    telling.add_argument("--preset", default="mini", help="an experiment of notebooks/presets")
    telling.add_argument("--out", metavar="HTML", help="data/runs/PRESET/report.html by default")
    telling.set_defaults(command=write_report)

    fusing = commands.add_parser("fuse", help="fuse models of one base as a recipe says")
    fusing.add_argument(
        "recipe", metavar="RECIPE", help="a YAML file; see codiemb_lib/fuse/merging.py"
    )
    fusing.add_argument("out", metavar="OUT", help="the folder of the fused model")
    fusing.set_defaults(command=fuse)

    scoring = commands.add_parser("benchmark", help="score an encoder on tasks; finished ones stay")
    scoring.add_argument(
        "model", metavar="MODEL", help="a sentence-transformers folder, or as in a preset"
    )
    scoring.add_argument(
        "--tasks",
        nargs="+",
        default=[],
        metavar="NAME_OR_PATH",
        help="data sets: of the registry, BEIR folders, files or folders of records, tables of "
        "rated pairs; by default those of the preset",
    )
    scoring.add_argument(
        "--mteb",
        nargs="+",
        default=[],
        metavar="NAME",
        help="cmteb15 (the paper's tasks), nanobeir, or tasks of MTEB",
    )
    scoring.add_argument(
        "--preset", help="whose prompts, data sets, sizes and settings of the encoder hold"
    )
    scoring.add_argument("--split", default="test", choices=("train", "dev", "test"))
    _table_options(scoring)
    for side in ("query", "passage"):
        scoring.add_argument(
            f"--{side}-prompt", metavar="TEXT", help="by default the preset's, or the model's own"
        )
    scoring.add_argument("--out", metavar="FILE", help="by default data/benchmark/MODEL.csv")
    scoring.add_argument("--cache", metavar="FOLDER", help="by default data/cache/benchmark")
    scoring.set_defaults(command=benchmark)

    data = commands.add_parser("data", help="data sets: those of the registry, and your own")
    data_commands = data.add_subparsers(required=True, metavar="COMMAND")
    listing = data_commands.add_parser("list", help="name, task, splits and licence of each")
    listing.set_defaults(command=list_data)

    describing = data_commands.add_parser("describe", help="sizes, lengths, scores, an example")
    describing.add_argument("source", metavar="NAME_OR_PATH")
    describing.set_defaults(command=describe_data)

    preparing = data_commands.add_parser(
        "prepare", help="make a folder of unified JSONL of any form that can be read"
    )
    _source_and_out(preparing)
    preparing.add_argument("--task", choices=("ir", "sts"), help="if the source does not say it")
    _table_options(preparing)
    preparing.add_argument("--split", choices=("train", "dev", "test"), help="of a lone file")
    preparing.add_argument(
        "--hub",
        nargs="+",
        default=[],
        metavar="SPLIT",
        help="SOURCE is a data set of the Hub: which of its splits, as `train dev=validation`",
    )
    preparing.add_argument("--config", default="", metavar="NAME", help="the configuration there")
    preparing.add_argument("--revision", default="", help="the commit, tag or branch there")
    for split in ("dev", "test"):
        preparing.add_argument(
            f"--{split}", type=int, default=0, metavar="N", help=f"take N records out for {split}"
        )
    preparing.add_argument("--seed", type=int, default=0, help="decides which")
    preparing.set_defaults(command=prepare_data)

    mining = data_commands.add_parser("mine", help="find hard negatives with an encoder")
    _source_and_out(mining)
    mining.add_argument(
        "--encoder", required=True, metavar="NAME_OR_PATH", help="its folder, or as in a preset"
    )
    mining.add_argument("--split", default="train", help="whose records get negatives")
    mining.add_argument("--negatives", type=int, default=4, metavar="N", help="at most, a record")
    mining.add_argument(
        "--margin", type=float, default=0.05, help="by which a positive must be more similar"
    )
    mining.add_argument(
        "--depth", type=int, default=100, metavar="N", help="nearest passages that are looked at"
    )
    mining.add_argument("--query-prompt", default="", metavar="TEXT")
    mining.add_argument("--passage-prompt", default="", metavar="TEXT")
    mining.add_argument(
        "--corpus",
        metavar="PATH",
        help="passages beside those of SOURCE, which are no part of OUT: a folder with "
        "corpus.jsonl, or such a file",
    )
    mining.set_defaults(command=mine_data)
    return parser


def _table_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--columns",
        nargs="+",
        default=[],
        metavar="COLUMN",
        help="of a table, names or positions from 0: two texts and their score (sts), or query, "
        "positive and, optionally, negative (ir)",
    )
    parser.add_argument(
        "--scale", nargs=2, type=float, metavar=("LOW", "HIGH"), help="of the scores (sts)"
    )
    parser.add_argument(
        "--delimiter",
        metavar="CHARACTER",
        help="between the columns of CSV; by default a tab if the first line has one, else a comma",
    )


def _source_and_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="a name of the registry, or a path")
    parser.add_argument("out", metavar="OUT", help="the folder to be written")


def _has_reader(descriptor: int) -> bool:
    """Whether the other end of a pipe is open still; `head` closes it when it has enough."""
    poll = select.poll()
    poll.register(descriptor, 0)  # for errors and hang-ups alone
    return not poll.poll(0)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command `codiemb` and return its exit status.

    An error of ours is something that the user can mend: it takes one line, and the status is 2, or
    1 where a notebook's cell or a task of a benchmark failed. Where the reader of the output ends
    early, we end as quietly as other tools. Any other error keeps its traceback.
    """
    arguments = _parser().parse_args(argv)
    logging.basicConfig(format="codiemb: %(message)s")
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what it reports, we say ourselves
    try:
        arguments.command(arguments)
        sys.stdout.flush()  # now rather than at exit, where nothing can be caught
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        if _has_reader(1):  # it was another pipe
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what is still to come
        return 128 + signal.SIGPIPE
    except CodiembError as error:
        print(f"codiemb: {error}", file=sys.stderr)
        return error.status
    return 0


if __name__ == "__main__":
    sys.exit(main())
