"""Leaks: what stands in train as well as in dev or test, found, counted and taken out of train."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping

import numpy as np
import pandas as pd
from rapidfuzz import process
from rapidfuzz.distance import Indel
from scipy.spatial.distance import cdist

from codiemb_lib.core import Preset, PresetError, Task, normalise
from codiemb_lib.data.datasets import Dataset, load_dataset
from codiemb_lib.data.records import Record

logger = logging.getLogger(__name__)

NEAR = 0.95

Place = tuple[str, str]  # data set, split
_LATER = {"train": ("dev", "test"), "dev": ("test",)}
_COLUMNS = ["task", "dataset", "split", "place", "kind", "found_in", "found_in_split"]
_COLUMNS += ["identical", "same_order", "item", "found"]
_COUNTS = ["task", "dataset", "split", "kind", "found_in", "found_in_split"]
_BINS = 64
_BLOCK = 256


def load_datasets(preset: Preset) -> dict[str, Dataset]:
    """The data sets of a preset by name; with `remove_leaks`, train is cleared of dev and test.

    Dev and test are always those that `load_dataset` gives. What is taken out is logged.

    Raises:
        PresetError: As for `check_tasks`.
    """
    datasets = {d.name: load_dataset(d.name, root=preset.data_root) for d in preset.datasets}
    check_tasks(preset, {name: dataset.task for name, dataset in datasets.items()})
    return remove_leaks(datasets, find_leaks(datasets)) if preset.remove_leaks else datasets


def check_tasks(preset: Preset, tasks: Mapping[str, Task]) -> None:
    """Refuse a preset without dev records of one of the tasks, given those of its data sets.

    Raises:
        PresetError: It says of which.
    """
    if missing := {"ir", "sts"} - {tasks[d.name] for d in preset.datasets if d.dev != 0}:
        raise PresetError(
            f"preset {preset.name!r}: expected data sets of both tasks with dev records, found "
            f"none of {missing.pop()!r}. Add one: every run is scored on both tasks."
        )


def remove_leaks(datasets: Mapping[str, Dataset], leaks: pd.DataFrame) -> dict[str, Dataset]:
    """The data sets without the training records that `find_leaks` names; each count is logged."""
    cleared = dict(datasets)
    for name, rows in leaks[leaks["split"] == "train"].groupby("dataset", sort=False):
        places = set(rows["place"])
        cleared[name] = datasets[name].without("train", places)
        logger.info(
            "%s: %d of %d training records left out, for they stand in dev or test: %s",
            name,
            len(places),
            len(datasets[name].splits["train"]),
            ", ".join(
                f"{n} by a {kind} of {found_in} {split}"
                for (kind, found_in, split), n in rows.groupby(
                    ["kind", "found_in", "found_in_split"], sort=False
                )["place"]
                .nunique()
                .items()
            ),
        )
    return cleared


def leak_counts(leaks: pd.DataFrame) -> pd.DataFrame:
    """How much two splits share, a row for each kind of item and each two that share any.

    Returns:
        Columns task, dataset, split, kind, found_in, found_in_split; `identical`, how many distinct
        items (pairs, queries, passages) stand in both; `same_order`, how many of these pairs do so
        with the same text first; `records`, how many of the first split's records are concerned,
        those with a near-identical item included.
    """
    rows = [
        dict(zip(_COUNTS, key, strict=True))
        | {
            "identical": group.loc[group["identical"], "item"].nunique(),
            "same_order": group.loc[group["same_order"], "item"].nunique(),
            "records": group["place"].nunique(),
        }
        for key, group in leaks.groupby(_COUNTS, sort=False)
    ]
    return pd.DataFrame(rows, columns=[*_COUNTS, "identical", "same_order", "records"])


def find_leaks(datasets: Mapping[str, Dataset], near: float = NEAR) -> pd.DataFrame:
    """Records of train that stand in dev or test, and of dev that stand in test, of any data set.

    The rule. Texts are compared as `normalise` leaves them: lower-case letters and digits in single
    spaces. Two are *identical* if they are then equal, and *near-identical* if their Indel
    similarity, 1 - (insertions + deletions) / (sum of both lengths in characters), is at least
    `near`: at 0.95, sentences that differ in an article or a typing error. Within a task, data sets
    are compared with themselves and with each other, by these items:

    - `pair`, STS: both texts are identical or near-identical to those of one pair, in either order.
      A single sentence that recurs in another pair is no leak.
    - `query`, IR: the query is identical to one. Near-identical queries are none, for a template
      with another name in it asks for something else.
    - `passage`, IR: a positive or hard negative is identical or near-identical to a positive. So
      the same answer is never learnt and tested, whoever asks. Passages of the corpus that answer
      nothing in dev or test do not count.

    A record's split of `dev` is reported but kept, so that official dev sets stay what they are.

    Returns:
        A row for each record, kind and (data set, split) where it stands: task, dataset, split,
        place (the record's in its split), kind, found_in, found_in_split, identical, same_order
        (pairs alone: the same text comes first), item and found (normalised texts; those of a pair
        in the order of the alphabet, joined by " | ").
    """
    rows: list[dict] = []
    for task, items in (("sts", _shared_pairs), ("ir", _shared_passages)):
        own = {name: dataset for name, dataset in datasets.items() if dataset.task == task}
        for split, later in _LATER.items():
            old = {
                (name, other): dataset.splits[other]
                for name, dataset in own.items()
                for other in later
                if other in dataset.splits
            }
            new = {name: d.splits[split] for name, d in own.items() if split in d.splits}
            if new and old:
                rows += [{"task": task, "split": split} | row for row in items(new, old, near)]
    return pd.DataFrame(rows, columns=_COLUMNS)


def _shared_pairs(
    new: Mapping[str, Collection[Record]], old: Mapping[Place, Collection[Record]], near: float
) -> Iterator[dict]:
    ordered: dict[tuple[str, str], set[Place]] = defaultdict(set)
    for place, records in old.items():
        for record in records:
            ordered[_pair(record)].add(place)
    partners: dict[str, set[str]] = defaultdict(set)
    for first, second in ordered:
        partners[first].add(second)
        partners[second].add(first)
    alike = _neighbours((t for rs in new.values() for r in rs for t in _pair(r)), partners, near)
    for name, records in new.items():
        for i, record in enumerate(records):
            first, second = _pair(record)
            # The pair itself comes first, so that it is what a place is reported with.
            matches = sorted(
                ((a, b) for a in alike[first] for b in partners[a] & alike[second]),
                key=lambda match: ({*match} != {first, second}, match),
            )
            found: dict[Place, tuple[str, str]] = {}
            for a, b in matches:
                for place in ordered.get((a, b), set()) | ordered.get((b, a), set()):
                    found.setdefault(place, (a, b))
            for place, match in found.items():
                yield {
                    "dataset": name,
                    "place": i,
                    "kind": "pair",
                    "found_in": place[0],
                    "found_in_split": place[1],
                    "identical": {*match} == {first, second},
                    "same_order": place in ordered.get((first, second), ()),
                    "item": " | ".join(sorted((first, second))),
                    "found": " | ".join(sorted(match)),
                }


def _pair(record: Record) -> tuple[str, str]:
    return normalise(record.query), normalise(record.positives[0])


def _shared_passages(
    new: Mapping[str, Collection[Record]], old: Mapping[Place, Collection[Record]], near: float
) -> Iterator[dict]:
    queries: dict[str, set[Place]] = defaultdict(set)
    passages: dict[str, set[Place]] = defaultdict(set)
    for place, records in old.items():
        for record in records:
            queries[normalise(record.query)].add(place)
            for text in record.positives:
                passages[normalise(text)].add(place)
    normal = {
        name: [[normalise(text) for text in (*r.positives, *r.negatives)] for r in records]
        for name, records in new.items()
    }
    alike = _neighbours((t for rs in normal.values() for r in rs for t in r), passages, near)
    for name, records in new.items():
        for i, (record, texts) in enumerate(zip(records, normal[name], strict=True)):
            query = normalise(record.query)  # "", of signs alone, is like no other
            places = queries.get(query, ()) if query else ()
            found = {("query", place): (query, query) for place in places}
            matches = ((text, other) for text in texts for other in alike[text])
            for text, other in sorted(matches, key=lambda match: (match[0] != match[1], match)):
                for place in passages[other]:
                    found.setdefault(("passage", place), (text, other))
            for (kind, place), (item, match) in found.items():
                yield {
                    "dataset": name,
                    "place": i,
                    "kind": kind,
                    "found_in": place[0],
                    "found_in_split": place[1],
                    "identical": item == match,
                    "same_order": False,
                    "item": item,
                    "found": match,
                }


def _neighbours(texts: Iterable[str], others: Iterable[str], near: float) -> dict[str, set[str]]:
    neighbours: dict[str, set[str]] = defaultdict(set)
    for text, other in near_identical(texts, others, near):
        neighbours[text].add(other)
    return neighbours


def near_identical(
    texts: Iterable[str], others: Iterable[str], near: float = NEAR
) -> Iterator[tuple[str, str]]:
    """Each (text, other) whose Indel similarity is at least `near`, equal ones included; exact.

    RapidFuzz measures it: the distance is edit distance without substitution, in C++. It is asked
    only where two cheaper bounds leave it open: neither the lengths nor the numbers of each letter
    may differ by more than the distance that `near` allows. Empty texts match nothing.
    """
    texts, others = (sorted({*side} - {""}, key=lambda t: (len(t), t)) for side in (texts, others))
    lengths, letters = _letters(others)
    for start in range(0, len(texts), _BLOCK):
        block = texts[start : start + _BLOCK]
        own_lengths, own_letters = _letters(block)
        shortest = own_lengths[0] * near / (2 - near) - 1e-6
        longest = own_lengths[-1] * (2 - near) / near + 1e-6
        first, last = np.searchsorted(lengths, (shortest, longest))
        allowed = (1 - near) * (own_lengths[:, None] + lengths[None, first:last]) + 1e-6
        distance = cdist(own_letters, letters[first:last], "cityblock")
        rows, columns = np.nonzero(distance <= allowed)
        candidates = [(block[i], others[first + j]) for i, j in zip(rows, columns, strict=True)]
        if candidates:
            # Compared as whole numbers: a similarity of exactly `near` is not lost by rounding.
            exact = process.cpdist(*zip(*candidates, strict=True), scorer=Indel.distance)
            yield from (candidates[i] for i in np.flatnonzero(exact <= allowed[rows, columns]))


def _letters(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Lengths (n,), and how often each letter occurs (n, 64); some letters share a column."""
    codes = [np.frombuffer(text.encode("utf-32-le"), np.uint32) % _BINS for text in texts]
    counts = np.array([np.bincount(c, minlength=_BINS) for c in codes]).reshape(-1, _BINS)
    return counts.sum(axis=1), counts.astype(np.float64)
