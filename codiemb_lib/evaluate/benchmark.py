"""A benchmark: tasks, each scored once and kept, a failing one reported at the end; one CSV."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from codiemb_lib import core
from codiemb_lib import model as encoders
from codiemb_lib.data import list_datasets, load_dataset, say_grades
from codiemb_lib.evaluate import NUMERICS
from codiemb_lib.evaluate.scores import encode_dataset, score_dataset
from codiemb_lib.evaluate.search import EvaluationError

logger = logging.getLogger(__name__)

COLUMNS = ["model", "task", "dataset", "split", "metric", "value", "n", "passages"]
COLUMNS += ["query_prompt", "passage_prompt", "ignore_identical_ids"]
COLUMNS += ["by", "seconds", "hardware", "model_hash", "data_hash"]

Row = dict[str, Any]


class BenchmarkError(core.CodiembError, RuntimeError):
    """Some tasks failed; `scores` holds the rows of the others."""

    status = 1

    def __init__(self, message: str, scores: pd.DataFrame):
        super().__init__(message)
        self.scores = scores


class Store(NamedTuple):
    """An encoder, and the folder where its finished tasks are kept."""

    embedder: encoders.Embedder
    folder: Path

    def encode(self, texts: list[str], *, prompt: str, progress: bool = False) -> np.ndarray:
        """Embeddings of texts (n, D), kept: with this a store is an encoder."""
        return self.embedder.embed(texts, prompt=prompt, progress=progress)

    def prompts(
        self, given: core.Prompts | None, sides: Mapping[str, str], task: str, dataset: str = ""
    ) -> dict[str, str]:
        """Both prompts of a task: `sides` before those that are given, or else the model's own."""
        if given is None:
            named, default = self.embedder.prompts, self.embedder.default_prompt
            given = own_prompts(named, task, dataset, default)
        return {side: sides.get(side, getattr(given, side)) for side in core.Prompts.model_fields}

    def once(self, parts: Iterable[str], compute: Callable[[], list[Row]]) -> list[Row]:
        """The rows of a task: those that were kept, or those that are computed now, with seconds.

        `parts` are all that decides them, but for the encoder and our code.

        Raises:
            EvaluationError: A value is no score: outside of 0 to 1 in retrieval, of -1 to 1 else.
        """
        key = core.sha256_text(self.embedder.key, str(NUMERICS), *parts)
        file = self.folder / "scores" / f"{key}.json"
        if not file.is_file():
            _ = self.embedder.encoder  # loaded before the clock starts
            began = time.perf_counter()
            rows = compute()
            measured = {"seconds": time.perf_counter() - began, "hardware": core.hardware()}
            for row in rows:
                low = 0 if row["task"] == "ir" else -1
                if not low - 1e-9 <= row["value"] <= 1 + 1e-9:  # NaN neither
                    raise EvaluationError(
                        f"{row['metric']}: expected a score from {low} to 1, found {row['value']}. "
                        "Look at the encoder's weights and the data set's judgements."
                    )
            core.write_json(file, [row | measured for row in rows])
        return core.read_json(file)


def local_task(
    store: Store,
    settings: core.DatasetSettings,
    prompts: core.Prompts | None = None,
    *,
    split: str = "test",
    root: str = "",
    sides: Mapping[str, str] = MappingProxyType({}),
    progress: bool = False,
    ignore_identical_ids: bool = False,
    **form: Any,
) -> list[Row]:
    """The rows of one data set of ours, computed or kept.

    Settings say how much of its split and corpus counts; a lone split is scored whatever it is
    called. `root`, and of a path `form`, go to `load_dataset`. `ignore_identical_ids`, here or in
    the settings, ranks no document that has the query's id.
    Without `prompts` the model's own are taken (`own_prompts`); what `sides` gives as
    `query_prompt` or `passage_prompt` goes before either.
    """
    known = {entry.name for entry in list_datasets()}  # whose form the registry says
    dataset = load_dataset(settings.name, root=root, **({} if settings.name in known else form))
    split = next(iter(dataset.splits)) if len(dataset.splits) == 1 else split
    limit = getattr(settings, split)
    records, corpus = dataset.split(split, limit=limit), dataset.sample_corpus(settings.corpus)
    used = store.prompts(prompts, sides, dataset.task, settings.name)
    ignore = (ignore_identical_ids or settings.ignore_identical_ids) and dataset.task == "ir"
    used["ignore_identical_ids"] = ignore
    say_grades(settings.name, records)  # of kept rows, too

    def compute() -> list[Row]:
        prompted = settings.model_copy(update=used)
        encoded = encode_dataset(store, prompted, records, corpus, progress=progress)
        rows = score_dataset(encoded, progress=progress).drop(columns="dataset")
        passages = len(encoded.passages) if encoded.task == "ir" else None
        return [row | {"passages": passages} for row in rows.to_dict("records")]

    counts = f"{limit} {settings.corpus}"
    rows = store.once([dataset.content_hash, split, counts, *map(str, used.values())], compute)
    labels = {"split": split, "by": "codiemb", "data_hash": dataset.content_hash}
    return [row | labels | used for row in rows]


def own_prompts(
    named: Mapping[str, str], task: str, dataset: str = "", default: str = ""
) -> core.Prompts:
    """The prompts that a sentence-transformers model names itself.

    Those of the data set, `NAME` and `NAME-passage`, as training here saves them; else for
    retrieval `query`, and `document` or `passage`, or none; for pairs `STS`, or its default one.
    """
    if dataset in named:
        passage = named.get(f"{dataset}-passage", "")
        return core.Prompts(query_prompt=named[dataset], passage_prompt=passage)
    if task == "ir":
        passage = named.get("document") or named.get("passage", "")
        return core.Prompts(query_prompt=named.get("query", ""), passage_prompt=passage)
    return core.Prompts(query_prompt=named.get("STS", default))


def run_tasks(
    tasks: Mapping[str, Callable[[], list[Row]]],
    store: Store,
    out: str | Path,
    *,
    model: str,
    progress: bool = False,
) -> pd.DataFrame:
    """Run tasks one by one, and write the rows of the finished ones to the CSV `out` after each.

    A row (`COLUMNS`) is a score; its `seconds` are what the task took when it was computed.

    Raises:
        BenchmarkError: Tasks failed; the others are in `out` nevertheless.
        UnwritableError: `out` cannot be written.
    """
    rows: list[Row] = []
    failures: dict[str, Exception] = {}
    core.check_writable(Path(out).parent)  # before long work
    if Path(out).is_dir():
        raise core.UnwritableError(
            f"{out}: expected the name of a table to write, found a folder. Choose another name."
        )
    for name in (bar := tqdm(tasks, desc="benchmark", disable=not progress)):
        bar.set_postfix_str(name)
        try:
            scored = tasks[name]()
        except Exception as error:
            if not isinstance(error, OSError | core.CodiembError):  # else the end says what to mend
                logger.error("%s failed:", name, exc_info=error)
            failures[name] = error
            continue
        labels = {"model": model, "model_hash": store.embedder.model_hash}
        rows += [labels | {"dataset": name} | row for row in scored]
        core.write_rows(out, _table(rows))
    if failures:
        causes = "; ".join(f"{n}: {type(e).__name__}: {e}" for n, e in failures.items())
        raise BenchmarkError(
            f"{len(failures)} of {len(tasks)} tasks failed, "
            + (f"the others stand in {out}: " if rows else f"{out} is left as it was: ")
            + " ".join(causes.split()),
            _table(rows),
        ) from next(iter(failures.values()))
    return _table(rows)


def _table(rows: list[Row]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=COLUMNS).astype({"n": "Int64", "passages": "Int64"})
