"""How good is an encoder: retrieval and similarity scores, by the field's own libraries."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import pytrec_eval
from safetensors import safe_open
from safetensors.numpy import save_file
from scipy import stats

from codiemb_lib import model
from codiemb_lib.core import UNSEEN, DatasetSettings, Preset, atomic_path
from codiemb_lib.data import Dataset, Record, load_dataset, say_grades
from codiemb_lib.evaluate.search import EvaluationError, top_k

_QUERIES = 4096  # whose rankings are in pytrec_eval's hands at once

KINDS = {
    "ir_queries": ("ir_queries",),
    "ir_passages": ("ir_passages",),
    "ir": ("ir_queries", "ir_passages"),
    "sts": ("sts",),
    "all": ("ir_queries", "ir_passages", "sts"),
}  # of texts, and the parts of data sets that each has


@dataclass(frozen=True)
class EncodedDataset:
    """The embeddings of one data set, and what is true about them.

    For retrieval `passages` (m, D) are the distinct passages that are searched, and `gold` holds
    for each query the grades of its relevant passages, by their rows; `ignored` has by query the
    row of a passage that is not ranked. For similarity `passages` (n, D) are the partners of
    `queries` (n, D) and `gold` (n,) their scores. `unseen`: the preset trains on other sets of the
    task, not on this one, whose scores are a task of their own (`label`).
    """

    name: str
    task: str
    query_texts: list[str]
    passage_texts: list[str]
    queries: np.ndarray
    passages: np.ndarray
    gold: list[dict[int, int]] | np.ndarray
    ignored: dict[int, int] = field(default_factory=dict)
    unseen: bool = False

    @property
    def label(self) -> str:
        """The task of its scores."""
        return UNSEEN[self.task] if self.unseen else self.task


def encode_dataset(
    encoder: model.Encoder,
    settings: DatasetSettings,
    records: Sequence[Record],
    corpus: Iterable[str] = (),
    **options: Any,
) -> EncodedDataset:
    """Encode the records of one data set with its prompts.

    What a retrieval set is searched in are the distinct positives and negatives of its records, and
    after them the further passages of `corpus`. Scores of positives are grades where all of them
    are whole numbers from 1, as in a BEIR folder; otherwise (a teacher's, or none) every positive
    has grade 1, which is said. With `ignore_identical_ids`, the document that has a query's id
    (`Record.same_id`) is not ranked for it. Both texts of a pair carry the query's prompt.

    Only the encoder's method `encode` is used, with `options`: `tokens_per_forward`, `progress`.
    """
    tasks = {record.task for record in records}
    if len(tasks) != 1:
        raise EvaluationError(
            f"{settings.name}: expected records of one task, found {sorted(tasks) or 'none'}."
        )
    task = tasks.pop()
    queries, ignored = [record.query for record in records], {}
    if task == "ir":
        texts = (text for record in records for text in (*record.positives, *record.negatives))
        passages = list(dict.fromkeys(chain(texts, corpus)))
        row_of = {text: row for row, text in enumerate(passages)}
        gold = grades_of(records, row_of)
        if settings.ignore_identical_ids:
            ignored = {i: row_of[r.same_id] for i, r in enumerate(records) if r.same_id in row_of}
        passage_prompt = settings.passage_prompt
    else:
        passages = [record.positives[0] for record in records]
        gold = np.array([record.score for record in records])
        passage_prompt = settings.query_prompt
    if passage_prompt == settings.query_prompt:  # a text that stands on both sides is encoded once
        both = encoder.encode([*queries, *passages], prompt=passage_prompt, **options)
        left, right = np.split(both, [len(queries)])
    else:
        left = encoder.encode(queries, prompt=settings.query_prompt, **options)
        right = encoder.encode(passages, prompt=passage_prompt, **options)
    return EncodedDataset(settings.name, task, queries, passages, left, right, gold, ignored)


def grades_of(records: Sequence[Record], row_of: Mapping[str, int]) -> list[dict[int, int]]:
    """For each record the grades of its positives, by their rows."""
    graded = say_grades(records[0].dataset, records)
    found = []
    for record in records:
        grades = dict.fromkeys((row_of[text] for text in record.positives), 1)
        if graded and record.positive_scores:
            for text, grade in zip(record.positives, record.positive_scores, strict=True):
                grades[row_of[text]] = max(int(grade), grades[row_of[text]])  # it may stand twice
        found.append(grades)
    return found


def encode_split(
    encoder: model.Encoder, preset: Preset, split: str, *, data: Mapping[str, Dataset] | None = None
) -> list[EncodedDataset]:
    """Encode a split of every data set of which the preset takes records for it.

    The queries of "test" are searched in the corpus too. Without `data`, by name, it is loaded.
    """
    encoded = []
    for settings in preset.datasets:
        if (limit := getattr(settings, split)) != 0:
            name = settings.name
            dataset = data[name] if data is not None else load_dataset(name, root=preset.data_root)
            records = dataset.split(split, limit=limit)
            corpus = dataset.sample_corpus(settings.corpus) if split == "test" else ()
            encoded.append(encode_dataset(encoder, settings, records, corpus))
    untrained = {settings.name for settings in preset.datasets if settings.train == 0}
    trained = {d.task for d in encoded if d.name not in untrained}
    return [replace(d, unseen=d.name in untrained and d.task in trained) for d in encoded]


def save_encoded(path: str | Path, datasets: Iterable[EncodedDataset]) -> None:
    """Write encoded data sets to one safetensors file, atomically; texts are its metadata."""
    tensors: dict[str, np.ndarray] = {}
    texts: dict[str, list] = {}
    for dataset in datasets:
        gold = dataset.gold
        if dataset.task == "ir":  # ragged: (query, row, grade) of every relevant passage
            gold = np.array([(i, *of) for i, grades in enumerate(gold) for of in grades.items()])
        stem = f"{dataset.task}/{dataset.name}"
        tensors |= {f"{stem}/queries": dataset.queries, f"{stem}/passages": dataset.passages}
        tensors[f"{stem}/gold"] = gold
        ignored = [*dataset.ignored.items()]
        texts[stem] = [dataset.query_texts, dataset.passage_texts, ignored, dataset.unseen]
    arrays = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    with atomic_path(path) as temporary:
        # Under one key: safetensors writes several in an order that changes from run to run.
        save_file(arrays, temporary, metadata={"texts": json.dumps(texts)})


def load_encoded(path: str | Path) -> list[EncodedDataset]:
    """Read what `save_encoded` wrote."""
    datasets = []
    with safe_open(path, framework="numpy") as file:
        for stem, texts in json.loads(file.metadata()["texts"]).items():
            task, name = stem.split("/", 1)
            arrays = [file.get_tensor(f"{stem}/{part}") for part in ("queries", "passages", "gold")]
            queries, passages, gold = arrays
            if task == "ir":
                judged, gold = gold.tolist(), [{} for _ in queries]
                for query, row, grade in judged:
                    gold[query][row] = grade
            *sides, ignored, unseen = texts
            parts = *sides, queries, passages, gold, dict(ignored), unseen
            datasets.append(EncodedDataset(name, task, *parts))
    return sorted(datasets, key=lambda dataset: (dataset.task, dataset.name))


def texts_of(space: Iterable[EncodedDataset]) -> dict[str, np.ndarray]:
    """Embeddings of the distinct texts of each kind (`KINDS`), (n, D); two texts at least.

    A text of several places counts once, in the last of them. A query and a passage with the same
    words are two texts: prompts may tell them apart.
    """
    parts: dict[str, dict[str, np.ndarray]] = {part: {} for part in KINDS["all"]}
    for dataset in space:
        left, right = ("ir_queries", "ir_passages") if dataset.task == "ir" else ("sts", "sts")
        parts[left].update(zip(dataset.query_texts, dataset.queries, strict=True))
        parts[right].update(zip(dataset.passage_texts, dataset.passages, strict=True))
    vectors = {
        kind: [vector for part in members for vector in parts[part].values()]
        for kind, members in KINDS.items()
    }
    return {kind: np.stack(rows) for kind, rows in vectors.items() if len(rows) >= 2}


def ranking_metrics(
    queries: np.ndarray,
    passages: np.ndarray,
    grades: Sequence[Mapping[int, int]],
    ignored: Mapping[int, int] = MappingProxyType({}),
    *,
    progress: bool = False,
) -> dict[str, np.ndarray]:
    """nDCG@10, recall@100 and MRR@10 of every query, (Q,) each, by exact search and pytrec_eval.

    Queries are (Q, D), passages (C, D); `grades` hold for each query the rows of its relevant
    passages, at least one, with their grades: whole numbers from 1, which nDCG takes for gains.
    `ignored` has by query the row of the one passage that is not ranked, if any.
    Ties rank as trec_eval ranks them: the later passage first.

    Raises:
        EvaluationError: A vector has no finite length.
    """
    # The search keeps the earlier of equal passages, so it gets them from the last to the first.
    backwards = np.asarray(passages)[::-1]
    depth = min(100 + bool(ignored), len(backwards))  # no measure looks below
    similarities, places = top_k(queries, backwards, depth, progress=progress)
    rows = len(backwards) - 1 - places
    parts = []
    for start in range(0, len(rows), _QUERIES):
        block = slice(start, start + _QUERIES)
        ranked = zip(rows[block].tolist(), similarities[block].tolist(), strict=True)
        # Names rise with rows, and trec_eval puts the last name first among equals.
        run = {
            str(i): {f"{row:09d}": s for row, s in zip(*ranking, strict=True)}
            for i, ranking in enumerate(ranked)
        }
        for i, row in ignored.items():
            run.get(str(i - start), {}).pop(f"{row:09d}", None)
        qrels = {
            str(i): {f"{row:09d}": grade for row, grade in graded.items()}
            for i, graded in enumerate(grades[block])
        }
        found = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "recall.100"}).evaluate(run)
        top = {query: dict(islice(ranking.items(), 10)) for query, ranking in run.items()}
        first = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(top)
        parts += [
            (found[q]["ndcg_cut_10"], found[q]["recall_100"], first[q]["recip_rank"]) for q in qrels
        ]
    return dict(zip(("ndcg@10", "recall@100", "mrr@10"), np.array(parts).T, strict=True))


def is_constant(values: np.ndarray) -> bool:
    """Whether numbers (n,), or vectors (n, D), are alike up to the rounding of float32, or NaN."""
    low, high = np.min(values, axis=0), np.max(values, axis=0)
    size = np.linalg.norm(np.maximum(np.abs(low), np.abs(high)))
    return not np.linalg.norm(high - low) > 16 * np.finfo(np.float32).eps * size


def check_differ(name: str, values: np.ndarray) -> None:
    """Refuse what is constant (`is_constant`) or infinite, such as a collapsed encoder gives."""
    if is_constant(values):
        raise EvaluationError(
            f"expected two or more finite {name} that differ, found {values[:4]}, alike up to "
            "rounding: no score is defined. If the data set's own scores differ, the encoder's "
            "training diverged or collapsed: take another checkpoint."
        )


def sts_metrics(similarities: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Spearman's rho (average ranks for ties) and Pearson's r of predicted similarities (n,) with
    gold scores (n,), by SciPy, both in [-1, 1].

    Raises:
        EvaluationError: A side is constant, or has NaN or Inf: no correlation is defined.
    """
    similarities, scores = np.asarray(similarities, float), np.asarray(scores, float)
    check_differ("similarities", similarities)
    check_differ("scores", scores)
    return {
        "spearman": float(stats.spearmanr(similarities, scores).statistic),
        "pearson": float(stats.pearsonr(similarities, scores).statistic),
    }


def by_text(encoded: EncodedDataset, *, progress: bool = False) -> dict[str, np.ndarray]:
    """What the scores of a data set are made of: `ranking_metrics`, or the `cosine` of pairs (n,).

    Raises:
        EvaluationError: A vector has no finite length, or the similarities are all alike.
    """
    queries, passages = encoded.queries, encoded.passages  # of unit length
    if encoded.task == "sts":
        found = {"cosine": np.einsum("nd,nd->n", queries, passages)}
    else:
        judged = encoded.gold, encoded.ignored
        found = ranking_metrics(queries, passages, *judged, progress=progress)
    if len(passages) > 1:
        similarities = found["cosine"] if encoded.task == "sts" else passages @ queries[:8].T
        check_differ("similarities", similarities)
    return found


def score_dataset(encoded: EncodedDataset, *, progress: bool = False) -> pd.DataFrame:
    """Rows (task, dataset, metric, value, n) of one encoded data set; retrieval is averaged.

    Raises:
        EvaluationError: No score is defined (`by_text`, `sts_metrics`).
    """
    try:
        found = by_text(encoded, progress=progress)
        if encoded.task == "sts":
            metrics = sts_metrics(found["cosine"], encoded.gold)
        else:
            metrics = {metric: float(values.mean()) for metric, values in found.items()}
    except EvaluationError as error:
        raise EvaluationError(f"{encoded.name}: {error}") from error
    columns = {"metric": [*metrics], "value": [*metrics.values()], "n": len(encoded.queries)}
    return pd.DataFrame({"task": encoded.label, "dataset": encoded.name, **columns})


def score(space: Iterable[EncodedDataset]) -> pd.DataFrame:
    """The rows of all data sets, each as `score_dataset` gives them."""
    return pd.concat(map(score_dataset, space), ignore_index=True)
