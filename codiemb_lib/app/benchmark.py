"""The command `codiemb benchmark`."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from codiemb_lib import core, evaluate, model
from codiemb_lib.app import options

if TYPE_CHECKING:
    import pandas as pd


@click.command(
    cls=options.Command,
    epilog=options.examples(
        "benchmark minilm-l6 --tasks wordsim-353 my/beir-folder",
        "benchmark my/model --tasks rated.csv --scale 0 5",
        "benchmark my/model --preset cmteb-bge --mteb cmteb15",
    ),
)
@click.argument("encoder", metavar="MODEL")
@click.option("--tasks", multiple=True, metavar="NAME_OR_PATH...", help="Default: of the preset.")
@click.option("--mteb", multiple=True, metavar="NAME...", help="cmteb15, nanobeir, MTEB's tasks.")
@options.preset_option(None)
@click.option("--split", default="test", type=options.SPLIT)
@options.table_options
@click.option("--query-prompt", help="By default the preset's, or the model's own.")
@click.option("--passage-prompt", help="Likewise.")
@click.option("--ignore-identical-ids", is_flag=True, help="Rank no document of the query's id.")
@click.option("--out", type=options.FILE, help="By default data/benchmark/MODEL.csv.")
@click.option("--cache", type=options.FILE, help="By default data/cache/benchmark.")
def benchmark(
    encoder: str,
    tasks: Sequence[str],
    mteb: Sequence[str],
    preset: str | None,
    out: str | None,
    cache: str | None,
    **given: Any,
) -> None:
    """Score an encoder on tasks.

    MODEL is a sentence-transformers folder, or a name as in a preset. Tasks are data sets of the
    registry, BEIR folders, files or folders; options of tables hold for each path. --mteb takes
    tasks of MTEB, or cmteb15 (the paper's fifteen) or nanobeir. A preset gives prompts, data sets,
    sizes and settings of the encoder. What is finished is not computed again.
    """
    settings = core.load_preset(preset) if preset else None
    folder = Path(cache or core.project_root() / "data" / "cache" / "benchmark")
    embedder = model.Embedder(options.encoder_settings(encoder, settings), folder / "embeddings")
    store, progress = evaluate.Store(embedder, folder), sys.stderr.isatty()
    sides = {s: v for s in core.Prompts.model_fields if (v := given.pop(s)) is not None}
    shared = {"sides": sides, "progress": progress}
    given["root"] = settings.data_root if settings else ""
    sets = settings.datasets if settings else ()
    own = {d.name: d for d in sets if getattr(d, given["split"]) != 0}
    jobs = {}
    places = {name: options.from_here(name) for name in tasks or ([] if mteb else own)}
    further = evaluate.mteb_tasks(mteb) if mteb else ()
    named = [*map(options.from_here, tasks), *(task.metadata.name for task in further)]
    if twice := {name for name in named if named.count(name) > 1}:
        raise click.UsageError(f"expected each task once, found {min(twice)!r} again.")
    for name, place in places.items():
        how = own.get(name) or core.DatasetSettings(name=place)
        jobs[name] = partial(evaluate.local_task, store, how, own.get(name), **given, **shared)
    for task in further:
        prompts = settings.benchmark.get(task.metadata.name) if settings else None
        jobs[task.metadata.name] = partial(evaluate.mteb_task, store, task, prompts, **shared)
    if not jobs:
        raise click.UsageError("expected --tasks, --mteb, or a preset with data sets, found none.")
    file = re.sub(r"[^\w.-]+", "-", encoder.strip("/.")) + ".csv"
    table = Path(out or core.project_root() / "data" / "benchmark" / file)
    try:
        scores = evaluate.run_tasks(jobs, store, table, model=encoder, progress=progress)
    except evaluate.BenchmarkError as error:
        _print_scores(error.scores)
        raise
    _print_scores(scores)
    click.echo(f"\n{table}")


def _print_scores(scores: pd.DataFrame) -> None:
    """The main metric of each task, and its mean over the data sets of a kind, times 100."""
    main = scores["task"].map(core.MAIN_METRIC).fillna(scores["metric"])
    shown = scores[scores["metric"] == main].fillna({"n": 0})  # mteb does not know each number
    for row in shown.itertuples():
        value = f"{row.metric:12} {100 * row.value:7.2f}"
        click.echo(f"{row.dataset:32} {row.split:12} {value} {row.n or '':>8}")
    for task, mean in core.task_means(scores).items():
        click.echo(f"{'mean':32} {task:12} {core.MAIN_METRIC[task]:12} {100 * mean:7.2f}")
