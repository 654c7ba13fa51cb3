"""How good is an encoder: retrieval and similarity scores, by the field's own libraries."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from numbers import Integral
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd
import pytrec_eval
from safetensors import safe_open
from safetensors.numpy import save_file
from scipy import stats

from codiemb_lib.core import CodiembError, DatasetSettings, atomic_path
from codiemb_lib.data import Record
from codiemb_lib.evaluate.search import top_columns, top_k
from codiemb_lib.model import Encoder

_DEPTH = 100  # no measure looks below
_QUERIES = 4096  # whose rankings are in pytrec_eval's hands at once


# Kinds of texts, of which the parts of data sets are.
KINDS = {
    "ir_queries": ("ir_queries",),
    "ir_passages": ("ir_passages",),
    "ir": ("ir_queries", "ir_passages"),
    "sts": ("sts",),
    "all": ("ir_queries", "ir_passages", "sts"),
}


class EvaluationError(CodiembError, ValueError):
    """A score cannot be computed, or came out as something that is no score."""


@dataclass(frozen=True)
class EncodedDataset:
    """The embeddings of one data set, and what is true about them.

    For retrieval `passages` (m, D) are the distinct passages that are searched and `gold` holds,
    for each query, the rows of its positives. For similarity `passages` (n, D) are the partners of
    `queries` (n, D) and `gold` their scores.
    """

    name: str
    task: str
    query_texts: list[str]
    passage_texts: list[str]
    queries: np.ndarray
    passages: np.ndarray
    gold: list[list[int]] | np.ndarray


def encode_dataset(
    encoder: Encoder,
    settings: DatasetSettings,
    records: Sequence[Record],
    corpus: Iterable[str] = (),
    *,
    tokens_per_forward: int = 2048,
    progress: bool = False,
) -> EncodedDataset:
    """Encode the records of one data set with its prompts.

    What a retrieval set is searched in are the distinct positives and negatives of its records, and
    after them the further passages of `corpus`. `tokens_per_forward` is that of `Encoder.encode`.

    Raises:
        EvaluationError: There are no records, or they belong to several tasks.
    """
    tasks = {record.task for record in records}
    if len(tasks) != 1:
        raise EvaluationError(
            f"{settings.name}: expected records of one task, found {sorted(tasks) or 'none'}."
        )
    task = tasks.pop()
    queries = [record.query for record in records]
    if task == "ir":
        texts = (text for record in records for text in (*record.positives, *record.negatives))
        row = {text: i for i, text in enumerate(dict.fromkeys(chain(texts, corpus)))}
        passages = list(row)
        gold = [[row[text] for text in dict.fromkeys(record.positives)] for record in records]
        passage_prompt = settings.passage_prompt
    else:
        passages = [record.positives[0] for record in records]
        gold = np.array([record.score for record in records])
        passage_prompt = settings.query_prompt  # both sides of a pair carry the same prompt
    how = {"tokens_per_forward": tokens_per_forward, "progress": progress}
    if passage_prompt == settings.query_prompt:  # a text that stands on both sides is encoded once
        both = encoder.encode([*queries, *passages], prompt=passage_prompt, **how)
        left, right = np.split(both, [len(queries)])
    else:
        left = encoder.encode(queries, prompt=settings.query_prompt, **how)
        right = encoder.encode(passages, prompt=passage_prompt, **how)
    return EncodedDataset(
        name=settings.name,
        task=task,
        query_texts=queries,
        passage_texts=passages,
        queries=left,
        passages=right,
        gold=gold,
    )


def save_encoded(path: str | Path, datasets: Iterable[EncodedDataset]) -> None:
    """Write encoded data sets to one safetensors file, atomically; texts are its metadata."""
    tensors: dict[str, np.ndarray] = {}
    texts: dict[str, str] = {}
    for dataset in datasets:
        gold = dataset.gold
        if dataset.task == "ir":  # ragged: (query, row) of every positive
            gold = np.array([(i, row) for i, rows in enumerate(gold) for row in rows])
        stem = f"{dataset.task}/{dataset.name}"
        tensors |= {f"{stem}/queries": dataset.queries, f"{stem}/passages": dataset.passages}
        tensors[f"{stem}/gold"] = gold
        texts[stem] = json.dumps([dataset.query_texts, dataset.passage_texts])
    arrays = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(arrays, temporary, metadata=texts)


def load_encoded(path: str | Path) -> list[EncodedDataset]:
    """Read what `save_encoded` wrote."""
    datasets = []
    with safe_open(path, framework="numpy") as file:
        for stem, texts in file.metadata().items():
            task, name = stem.split("/", 1)
            arrays = [file.get_tensor(f"{stem}/{part}") for part in ("queries", "passages", "gold")]
            queries, passages, gold = arrays
            if task == "ir":
                gold = [gold[gold[:, 0] == i, 1].tolist() for i in range(len(queries))]
            datasets.append(EncodedDataset(name, task, *json.loads(texts), queries, passages, gold))
    return sorted(datasets, key=lambda dataset: (dataset.task, dataset.name))


def texts_of(space: Iterable[EncodedDataset]) -> dict[str, np.ndarray]:
    """Embeddings of the distinct texts of each kind (`KINDS`), (n, D); two texts at least.

    A text that stands in several places of a kind counts once there, in the last of them. A query
    and a passage with the same words are two texts: prompts may tell them apart.
    """
    parts: dict[str, dict[str, np.ndarray]] = {"ir_queries": {}, "ir_passages": {}, "sts": {}}
    for dataset in space:
        ir = dataset.task == "ir"
        queries = zip(dataset.query_texts, dataset.queries, strict=True)
        passages = zip(dataset.passage_texts, dataset.passages, strict=True)
        parts["ir_queries" if ir else "sts"].update(queries)
        parts["ir_passages" if ir else "sts"].update(passages)
    vectors = {
        kind: [vector for part in members for vector in parts[part].values()]
        for kind, members in KINDS.items()
    }
    return {kind: np.stack(rows) for kind, rows in vectors.items() if len(rows) >= 2}


def ranking_metrics(
    queries: np.ndarray,
    passages: np.ndarray,
    grades: Sequence[Mapping[int, int]],
    *,
    progress: bool = False,
) -> dict[str, np.ndarray]:
    """nDCG@10, recall@100 and MRR@10 of every query, by exact search and pytrec_eval.

    Memory beside the vectors is that of a tile of the search, and 100 numbers a query.

    Args:
        queries: (Q, D).
        passages: (C, D). Ties rank as trec_eval ranks them, by the document's name in descending
            order; here the later passage ranks first.
        grades: For each query the rows of its relevant passages, at least one, with their grades:
            whole numbers from 1, which nDCG takes for gains.
        progress: Show a bar of the search.

    Returns:
        Arrays (Q,) in [0, 1].

    Raises:
        EvaluationError: A query without relevant passage, other than one mapping a query, a passage
            that is not there, or a grade below 1.
        SearchError: Vectors of another shape, or without a finite length.
    """
    _check_grades(grades, len(queries), len(passages))
    # The search keeps the earlier of equal passages, so it gets them from the last to the first.
    backwards = np.asarray(passages)[::-1]
    depth = min(_DEPTH, len(backwards))
    similarities, places = top_k(queries, backwards, depth, progress=progress)
    return _measure(similarities, len(backwards) - 1 - places, grades)


def retrieval_metrics(
    similarities: np.ndarray, relevant: Sequence[Collection[int]]
) -> dict[str, np.ndarray]:
    """The `ranking_metrics` of similarities that are there already, with all grades 1.

    Args:
        similarities: (Q, C) floats, query by passage.
        relevant: For each query the columns of its relevant passages, at least one.

    Raises:
        EvaluationError: Shapes that do not fit, NaN or Inf, a query without relevant passage, or
            one that is not there.
    """
    similarities = np.asarray(similarities)
    if similarities.ndim != 2:
        raise EvaluationError(
            f"expected similarities of queries and passages, found shape {similarities.shape}."
        )
    grades = [dict.fromkeys(columns, 1) for columns in relevant]
    _check_grades(grades, len(similarities), similarities.shape[1])
    _check_finite(similarities)
    columns = similarities.shape[1]
    best, places = top_columns(similarities[:, ::-1], min(_DEPTH, columns))
    return _measure(best, columns - 1 - places, grades)


def _check_grades(grades: Sequence[Mapping[int, int]], queries: int, passages: int) -> None:
    if len(grades) != queries or not all(grades):
        raise EvaluationError(
            f"expected a relevant passage for each of {queries} queries, found grades for "
            f"{sum(map(bool, grades))}."
        )
    for query, graded in enumerate(grades):
        for place, grade in graded.items():
            whole = isinstance(place, Integral) and isinstance(grade, Integral)
            if not whole or not 0 <= place < passages or grade < 1:
                raise EvaluationError(
                    f"query {query}: expected passages from 0 to {passages - 1} with grades from "
                    f"1, all whole numbers, found passage {place} with grade {grade}."
                )


def _measure(
    similarities: np.ndarray, rows: np.ndarray, grades: Sequence[Mapping[int, int]]
) -> dict[str, np.ndarray]:
    """The measures of rankings: the best passages of each query (Q, k), by their rows."""
    parts = []
    for start in range(0, len(rows), _QUERIES):
        block = slice(start, start + _QUERIES)
        ranked = zip(rows[block].tolist(), similarities[block].tolist(), strict=True)
        # Names rise with rows, and trec_eval puts the last name first among equals.
        run = {
            str(i): {f"{row:09d}": s for row, s in zip(*ranking, strict=True)}
            for i, ranking in enumerate(ranked)
        }
        qrels = {
            str(i): {f"{row:09d}": int(grade) for row, grade in graded.items()}  # NumPy's raise
            for i, graded in enumerate(grades[block])
        }
        found = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "recall.100"}).evaluate(run)
        top = {query: dict(islice(ranking.items(), 10)) for query, ranking in run.items()}
        first = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(top)
        parts += [
            (found[q]["ndcg_cut_10"], found[q]["recall_100"], first[q]["recip_rank"]) for q in qrels
        ]
    return dict(zip(("ndcg@10", "recall@100", "mrr@10"), np.array(parts).T, strict=True))


def sts_metrics(similarities: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Spearman's rho (average ranks for ties) and Pearson's r, by SciPy, both in [-1, 1].

    Args:
        similarities: (n,) predicted.
        scores: (n,) gold.

    Raises:
        EvaluationError: Fewer than two pairs, NaN or Inf, or a side that is constant, for which
            no correlation is defined.
    """
    similarities, scores = np.asarray(similarities, float), np.asarray(scores, float)
    if similarities.shape != scores.shape or similarities.ndim != 1 or len(scores) < 2:
        raise EvaluationError(
            f"expected two lists of at least two values, found shapes {similarities.shape} and "
            f"{scores.shape}: a correlation needs two pairs."
        )
    for name, values in {"similarities": similarities, "scores": scores}.items():
        _check_finite(values)
        if np.ptp(values) == 0:
            raise EvaluationError(
                f"expected {name} that differ, found {values[0]:g} throughout: no correlation is "
                "defined. A collapsed encoder gives constant similarities; look at its training."
            )
    return {
        "spearman": float(stats.spearmanr(similarities, scores).statistic),
        "pearson": float(stats.pearsonr(similarities, scores).statistic),
    }


def _check_finite(values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise EvaluationError(
            f"expected finite values, found {np.count_nonzero(~np.isfinite(values))} NaN or Inf. "
            "The encoder's weights are damaged or its training diverged."
        )


def score_dataset(encoded: EncodedDataset) -> pd.DataFrame:
    """Rows (task, dataset, metric, value, n) of one encoded data set; retrieval is averaged.

    Raises:
        EvaluationError: As `ranking_metrics` and `sts_metrics` do, with the data set's name.
    """
    try:
        if encoded.task == "ir":
            grades = [dict.fromkeys(rows, 1) for rows in encoded.gold]
            by_query = ranking_metrics(encoded.queries, encoded.passages, grades)  # unit length
            metrics = {metric: float(values.mean()) for metric, values in by_query.items()}
        else:
            similarities = np.einsum("nd,nd->n", encoded.queries, encoded.passages)
            metrics = sts_metrics(similarities, encoded.gold)
    except EvaluationError as error:
        raise EvaluationError(f"{encoded.name}: {error}") from error
    return pd.DataFrame(
        [
            {
                "task": encoded.task,
                "dataset": encoded.name,
                "metric": metric,
                "value": value,
                "n": len(encoded.queries),
            }
            for metric, value in metrics.items()
        ]
    )


def evaluate(
    encoder: Encoder,
    datasets: Iterable[DatasetSettings],
    records: Mapping[str, Sequence[Record]],
    corpora: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> pd.DataFrame:
    """The scores of an encoder on data sets by name, as `score_dataset` gives them.

    `corpora` holds, for retrieval sets that have some, the further passages of `encode_dataset`.

    Raises:
        EvaluationError: There are no records of a data set, or its scores are undefined.
    """
    datasets = list(datasets)
    if missing := [d.name for d in datasets if not records.get(d.name)]:
        raise EvaluationError(
            f"expected records of {missing}, found those of {[*records]}. Name them as the data "
            "sets are named."
        )
    encoded = (
        encode_dataset(encoder, d, records[d.name], corpora.get(d.name, ())) for d in datasets
    )
    return pd.concat([score_dataset(e) for e in encoded], ignore_index=True)
