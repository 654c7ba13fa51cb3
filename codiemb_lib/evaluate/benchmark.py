"""A benchmark: tasks, each scored once and kept, a failing one reported at the end; one CSV."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from codiemb_lib.core import (
    CodiembError,
    DatasetSettings,
    Prompts,
    UnwritableError,
    check_writable,
    hardware,
    project_root,
    read_json,
    sha256_file,
    sha256_text,
    write_json,
    write_rows,
)
from codiemb_lib.data import Columns, Dataset, Record, RecordError, Scale, load_dataset, read_path
from codiemb_lib.evaluate import NUMERICS
from codiemb_lib.evaluate.scores import EvaluationError, ranking_metrics, sts_metrics
from codiemb_lib.model import Embedder

logger = logging.getLogger(__name__)

COLUMNS = ["model", "task", "dataset", "split", "metric", "value", "n", "passages"]
COLUMNS += ["query_prompt", "passage_prompt", "by", "seconds", "hardware"]
COLUMNS += ["model_hash", "data_hash"]

_TABLES = (".csv", ".tsv")

Row = dict[str, Any]


class BenchmarkError(CodiembError, RuntimeError):
    """Some tasks failed.

    Attributes:
        scores: The rows of the others.
    """

    status = 1

    def __init__(self, message: str, scores: pd.DataFrame):
        super().__init__(message)
        self.scores = scores


# --- Scores ---------------------------------------------------------------------------------------


def score_records(
    embedder: Embedder,
    records: Sequence[Record],
    corpus: Iterable[str] = (),
    prompts: Prompts | None = None,
    *,
    progress: bool = False,
) -> list[Row]:
    """Rows (task, metric, value, n, passages) of the records of one data set.

    What a retrieval set is searched in is as in `evaluation.encode_dataset`; but where all scores
    of positives are whole numbers, as in a BEIR folder, nDCG takes them for grades. Both texts of a
    pair carry the query's prompt.

    Raises:
        EvaluationError: No records, records of both tasks, a score that is not defined, or one that
            is none.
    """
    if not records:
        raise EvaluationError("expected at least one record, found none.")
    if len({record.task for record in records}) > 1:
        raise EvaluationError(
            "expected records of one task, found some of 'ir' and some of 'sts'. Score each apart."
        )
    prompts = prompts or Prompts()
    task, queries = records[0].task, [record.query for record in records]
    if task == "sts":
        texts = [*queries, *(record.positives[0] for record in records)]
        vectors = embedder.embed(texts, prompt=prompts.query_prompt, progress=progress)
        pairs = vectors.reshape(2, len(records), -1)
        similarities = np.einsum("nd,nd->n", *pairs)
        metrics = sts_metrics(similarities, np.array([record.score for record in records]))
        passages = None
    else:
        own = (text for record in records for text in (*record.positives, *record.negatives))
        texts = list(dict.fromkeys(chain(own, corpus)))
        row = {text: i for i, text in enumerate(texts)}
        graded = _are_graded(records)
        grades = [
            {row[text]: grade for text, grade in _grades(record, graded).items()}
            for record in records
        ]
        by_query = ranking_metrics(
            embedder.embed(queries, prompt=prompts.query_prompt, progress=progress),
            embedder.embed(texts, prompt=prompts.passage_prompt, progress=progress),
            grades,
            progress=progress,
        )
        metrics = {metric: float(values.mean()) for metric, values in by_query.items()}
        passages = len(texts)
    rows = [
        {"task": task, "metric": metric, "value": value, "n": len(records), "passages": passages}
        for metric, value in metrics.items()
    ]
    return check_rows(rows)


def _are_graded(records: Iterable[Record]) -> bool:
    """Whether scores of positives are grades, rather than a teacher's."""
    scores = [score for record in records for score in record.positive_scores]
    return all(score >= 1 and float(score).is_integer() for score in scores)


def _grades(record: Record, graded: bool) -> dict[str, int]:
    scores = record.positive_scores if graded and record.positive_scores else None
    grades: dict[str, int] = {}
    for text, score in zip(record.positives, scores or [1] * len(record.positives), strict=True):
        grades[text] = max(int(score), grades.get(text, 1))
    return grades


def check_rows(rows: list[Row]) -> list[Row]:
    """The rows, if each value is a score: from 0 to 1 in retrieval, from -1 to 1 elsewhere.

    Raises:
        EvaluationError: One is not.
    """
    for row in rows:
        low = 0 if row["task"] == "ir" else -1
        if not low - 1e-9 <= row["value"] <= 1 + 1e-9:  # NaN neither
            raise EvaluationError(
                f"{row['metric']}: expected a score from {low} to 1, found {row['value']}. The "
                "encoder's weights or the data set's judgements are damaged."
            )
    return rows


# --- Tasks ----------------------------------------------------------------------------------------


class Store(NamedTuple):
    """Where what is finished is kept, and for which encoder."""

    embedder: Embedder
    folder: Path

    def once(self, parts: Iterable[str], compute: Callable[[], list[Row]]) -> list[Row]:
        """The rows of a task: those that were kept, or those that are computed now, with seconds.

        Args:
            parts: All that decides the rows, but for the encoder.
            compute: Gives the rows.
        """
        file = self.folder / "scores" / f"{sha256_text(self.embedder.key, *parts)}.json"
        if not file.is_file():
            _ = self.embedder.encoder  # loaded before the clock starts
            began = time.perf_counter()
            rows = compute()
            measured = {"seconds": time.perf_counter() - began, "hardware": hardware()}
            write_json(file, [row | measured for row in rows])
        return read_json(file)


def load_task(
    name: str,
    split: str = "test",
    *,
    root: str = "",
    columns: Columns = (),
    scale: Scale | None = None,
    delimiter: str | None = None,
) -> tuple[Dataset, str]:
    """A data set, and which of its splits is scored: the only one if it has no other.

    Args:
        name: A name in the registry, or a path.
        split: "train", "dev" or "test".
        root: As in `load_dataset`.
        columns: Of a file that is a table; see `read_path`.
        scale: The lowest and highest rating of such a table, if it holds rated pairs.
        delimiter: What separates its columns, as in `read_file`.

    Raises:
        RecordError: A table, and nothing said about it; or as in `read_path`.
        DatasetError: No such data set.
        SourceError: Its files are not there.
    """
    if name.removesuffix(".gz").endswith(_TABLES) and (project_root() / name).is_file():
        if not columns and not scale:
            raise RecordError(
                f"{name}: expected to be told what the table's columns are, found nothing. Add "
                "--scale LOW HIGH if they are two texts and their rating, and --columns if they "
                "are others."
            )
        form = {"task": "sts" if scale else "ir", "columns": columns, "scale": scale}
        form |= {"delimiter": delimiter} if delimiter is not None else {}
        splits = {k: tuple(v) for k, v in read_path(project_root() / name, **form).items()}
        task = next(iter(splits.values()))[0].task
        content = sha256_text(sha256_file(project_root() / name), repr(form))
        dataset = Dataset(name, task, splits, "see source", f"local: {name}", content)
    else:
        dataset = load_dataset(name, root=root)
    return dataset, next(iter(dataset.splits)) if len(dataset.splits) == 1 else split


def local_task(
    store: Store,
    settings: DatasetSettings,
    prompts: Prompts | None = None,
    *,
    sides: Mapping[str, str] = MappingProxyType({}),
    progress: bool = False,
    **how: Any,
) -> list[Row]:
    """The rows of one data set of ours, computed or kept.

    Args:
        store: Encoder and cache.
        settings: The data set, and how much of its split and corpus counts.
        prompts: None: the model's own, see `own_prompts`.
        sides: `query_prompt` or `passage_prompt` that goes before what `prompts` says of it.
        progress: Show bars.
        how: Options of `load_task`.

    Raises:
        EvaluationError: As for `score_records`.
        RecordError, DatasetError, SourceError: As for `load_task`.
    """
    dataset, split = load_task(settings.name, **how)
    limit = getattr(settings, split)
    records = dataset.split(split, limit=limit)
    corpus = dataset.sample_corpus(settings.corpus)
    if prompts is None:
        prompts = own_prompts(
            store.embedder.prompts, dataset.task, settings.name, store.embedder.default_prompt
        )
    prompts = Prompts(**prompts.model_dump(include=set(Prompts.model_fields)) | dict(sides))
    rows = store.once(
        [
            *(dataset.content_hash, split, f"{limit} {settings.corpus}", prompts.model_dump_json()),
            str(NUMERICS),
        ],
        partial(score_records, store.embedder, records, corpus, prompts, progress=progress),
    )
    labels = {"split": split, "by": "codiemb", "data_hash": dataset.content_hash}
    return [row | labels | prompts.model_dump() for row in rows]


def own_prompts(
    named: Mapping[str, str], task: str, dataset: str = "", default: str = ""
) -> Prompts:
    """The prompts that a sentence-transformers model names itself.

    Those of the data set, `NAME` and `NAME-passage`, as training here saves them; else for
    retrieval `query`, and `document` or `passage`, or none; for pairs `STS`, or its default one.
    """
    if dataset in named:
        passage = named.get(f"{dataset}-passage", "")
        return Prompts(query_prompt=named[dataset], passage_prompt=passage)
    if task == "ir":
        passage = named.get("document") or named.get("passage", "")
        return Prompts(query_prompt=named.get("query", ""), passage_prompt=passage)
    return Prompts(query_prompt=named.get("STS", default))


def run_tasks(
    tasks: Mapping[str, Callable[[], list[Row]]],
    store: Store,
    out: str | Path,
    *,
    model: str,
    progress: bool = False,
) -> pd.DataFrame:
    """Run tasks one by one, and write the rows of the finished ones to `out` after each.

    Args:
        tasks: By the name that their rows get.
        store: Encoder and cache.
        out: The CSV; what stands there is replaced when the first task is finished.
        model: The name of the model in the rows.
        progress: Show a bar of the tasks.

    Returns:
        A row a score; see COLUMNS. `seconds` is what the task took when it was computed.

    Raises:
        BenchmarkError: Tasks failed; the others are in `out` nevertheless.
        UnwritableError: `out` cannot be written.
    """
    rows: list[Row] = []
    failures: dict[str, Exception] = {}
    check_writable(Path(out).parent)  # before long work
    if Path(out).is_dir():
        raise UnwritableError(
            f"{out}: expected the name of a table to write, found a folder. Choose another name."
        )
    for name in (bar := tqdm(tasks, desc="benchmark", disable=not progress)):
        bar.set_postfix_str(name)
        try:
            scored = tasks[name]()
        except Exception as error:
            # What the user can mend needs no traceback.
            known = isinstance(error, OSError | CodiembError)
            logger.error("%s failed: %s", name, error, exc_info=None if known else error)
            failures[name] = error
            continue
        labels = {"model": model, "model_hash": store.embedder.model_hash}
        rows += [labels | {"dataset": name} | row for row in scored]
        write_rows(out, _table(rows))
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
