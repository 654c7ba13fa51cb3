"""Leaks: what stands in train as well as in dev or test, found, counted and taken out of train."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from rapidfuzz import process
from rapidfuzz.distance import Indel
from scipy.spatial.distance import cdist

from codiemb_lib.core import normalise
from codiemb_lib.data.records import Record

if TYPE_CHECKING:
    from codiemb_lib.data.datasets import Dataset

logger = logging.getLogger(__name__)

NEAR = 0.95

Place = tuple[str, str]  # data set, split
Splits = Mapping[Place, Iterable[Record]]
Match = tuple[str, Place, str, str, bool]  # kind, where, item, what it is like, same order
_LATER = {"train": ("dev", "test"), "dev": ("test",)}
_COUNTS = ["task", "dataset", "split", "kind", "found_in", "found_in_split"]
_COLUMNS = [*_COUNTS, "place", "identical", "same_order", "item", "found"]
_BINS = 64
_BLOCK = 256


def remove_leaks(datasets: Mapping[str, Dataset], leaks: pd.DataFrame) -> dict[str, Dataset]:
    """The data sets without the training records that `find_leaks` names; each count is logged."""
    cleared = dict(datasets)
    for name, rows in leaks[leaks["split"] == "train"].groupby("dataset", sort=False):
        places, by = set(rows["place"]), ["kind", "found_in", "found_in_split"]
        cleared[name] = datasets[name].without("train", places)
        counts = rows.groupby(by, sort=False)["place"].nunique().items()
        reasons = (f"{n} by a {kind} of {where} {split}" for (kind, where, split), n in counts)
        logger.info(
            "%s: %d of %d training records left out, for they stand in dev or test: %s",
            *(name, len(places), len(datasets[name].splits["train"]), ", ".join(reasons)),
        )
    return cleared


def leak_counts(leaks: pd.DataFrame) -> pd.DataFrame:
    """How much two splits share, a row for each kind of item and each two that share any.

    `identical` counts distinct items (pairs, queries, passages) that stand in both, `same_order`
    those of these pairs with the same text first, `records` those of the first split that are
    concerned, near-identical ones included.
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

    Returns a row for each record, kind and (data set, split) where it stands. Its item and what was
    found there are normalised; texts of a pair are in the order of the alphabet, joined by " | ".
    `same_order` says of pairs whether the same text comes first.
    """
    rows = []
    for task, matcher in (("sts", _pair_matches), ("ir", _passage_matches)):
        splits = {
            (name, split): records
            for name, dataset in datasets.items()
            if dataset.task == task
            for split, records in dataset.splits.items()
        }
        for split, later in _LATER.items():
            new = {place: records for place, records in splits.items() if place[1] == split}
            old = {place: records for place, records in splits.items() if place[1] in later}
            matches = matcher(new, old, near)
            for (name, _), records in new.items():
                for i, record in enumerate(records):
                    found: dict[tuple[str, Place], tuple] = {}
                    for kind, place, *match in matches(record):
                        found.setdefault((kind, place), match)
                    rows += [
                        (task, name, split, kind, *place, i, item == other, ordered, item, other)
                        for (kind, place), (item, other, ordered) in found.items()
                    ]
    return pd.DataFrame(rows, columns=_COLUMNS)


def _pair_matches(new: Splits, old: Splits, near: float) -> Callable[[Record], Iterator[Match]]:
    """What gives the matches of a pair, the pair itself first."""
    ordered: dict[tuple[str, str], set[Place]] = defaultdict(set)
    partners: dict[str, set[str]] = defaultdict(set)
    for place, records in old.items():
        for first, second in map(_pair, records):
            ordered[first, second].add(place)
            partners[first].add(second)
            partners[second].add(first)
    texts = (text for records in new.values() for record in records for text in _pair(record))
    alike = _neighbours(texts, partners, near)

    def matches(record: Record) -> Iterator[Match]:
        first, second = _pair(record)
        pairs = {tuple(sorted((a, b))) for a in alike[first] for b in partners[a] & alike[second]}
        item = " | ".join(sorted((first, second)))
        for a, b in sorted(pairs, key=lambda pair: (" | ".join(pair) != item, pair)):
            for place in ordered.get((a, b), set()) | ordered.get((b, a), set()):
                in_order = place in ordered.get((first, second), ())
                yield "pair", place, item, f"{a} | {b}", in_order

    return matches


def _pair(record: Record) -> tuple[str, str]:
    return normalise(record.query), normalise(record.positives[0])


def _passage_matches(new: Splits, old: Splits, near: float) -> Callable[[Record], Iterator[Match]]:
    """What gives the matches of a query and its passages, identical passages first."""
    queries: dict[str, set[Place]] = defaultdict(set)
    passages: dict[str, set[Place]] = defaultdict(set)
    for place, records in old.items():
        for record in records:
            queries[normalise(record.query)].add(place)
            for text in record.positives:
                passages[normalise(text)].add(place)
    texts = (text for records in new.values() for record in records for text in _passages(record))
    alike = _neighbours(texts, passages, near)

    def matches(record: Record) -> Iterator[Match]:
        if query := normalise(record.query):  # "", of signs alone, is like no other
            for place in queries.get(query, ()):
                yield "query", place, query, query, False
        pairs = ((text, other) for text in _passages(record) for other in alike[text])
        for text, other in sorted(pairs, key=lambda pair: (pair[0] != pair[1], pair)):
            for place in passages[other]:
                yield "passage", place, text, other, False

    return matches


def _passages(record: Record) -> list[str]:
    return [normalise(text) for text in (*record.positives, *record.negatives)]


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


class NearDuplicates:
    """Texts so far, and whether a new one repeats any of them.

    It does when at least half of the runs of five words of the shorter text stand in the other.
    """

    def __init__(self) -> None:
        self._sizes: list[int] = []
        self._where: dict[tuple[str, ...], list[int]] = defaultdict(list)

    def add(self, text: str) -> bool:
        """Take the text in, unless it repeats an earlier one: then False."""
        words = normalise(text).split()
        runs = set(zip(*(words[start:] for start in range(5)), strict=False)) or {tuple(words)}
        shared = Counter(earlier for run in runs for earlier in self._where.get(run, ()))
        if any(2 * n >= min(len(runs), self._sizes[i]) for i, n in shared.items()):
            return False
        for run in runs:
            self._where[run].append(len(self._sizes))
        self._sizes.append(len(runs))
        return True
