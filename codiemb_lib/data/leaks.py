"""Leaks: what stands in train as well as in dev or test, found, counted and taken out of train."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, product
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from rapidfuzz import process
from rapidfuzz.distance import Indel
from scipy.spatial.distance import cdist

from codiemb_lib.core import normalise, say_once
from codiemb_lib.data.records import Record

if TYPE_CHECKING:
    from codiemb_lib.data.datasets import Dataset

NEAR = 0.95

Place = tuple[str, str]  # data set, split
Item = tuple[str, ...]  # its kind ("pair", "query", "passage") and its text or texts, normalised
_LATER = {"train": ("dev", "test"), "dev": ("test",)}
_COUNTS = ["task", "dataset", "split", "kind", "found_in", "found_in_split"]
_COLUMNS = [*_COUNTS, "place", "identical", "same_order", "item", "found"]
_BINS = 64
_BLOCK = 256


def remove_leaks(datasets: Mapping[str, Dataset], leaks: pd.DataFrame) -> dict[str, Dataset]:
    """The data sets without the training records that `find_leaks` names; each count is said."""
    cleared = dict(datasets)
    for name, rows in leaks[leaks["split"] == "train"].groupby("dataset", sort=False):
        places, by = set(rows["place"]), ["kind", "found_in", "found_in_split"]
        cleared[name] = datasets[name].without("train", places)
        counts = rows.groupby(by, sort=False)["place"].nunique().items()
        reasons = (f"{n} by a {kind} of {where} {split}" for (kind, where, split), n in counts)
        share = f"{len(places)} of {len(datasets[name].splits['train'])} training records"
        why = f"for they stand in dev or test: {', '.join(reasons)}"
        say_once(f"{name}: {share} left out, {why}")
    return cleared


def leak_counts(leaks: pd.DataFrame) -> pd.DataFrame:
    """How much two splits share, a row for each kind of item and each two that share any.

    `identical` counts distinct items (pairs, queries, passages) that stand in both, `same_order`
    those of these pairs with the same text first, `records` those of the first split that are
    concerned, near-identical ones included.
    """
    items = {k: leaks["item"].where(leaks[k].astype(bool)) for k in ("identical", "same_order")}
    groups = leaks.assign(**items, records=leaks["place"]).groupby(_COUNTS, sort=False)
    return groups[[*items, "records"]].nunique().reset_index()


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
    `same_order` says of identical pairs whether the same text comes first.
    """
    rows = []
    for task, split in product(("sts", "ir"), _LATER):
        parts = {
            (name, part): records
            for name, dataset in datasets.items()
            if dataset.task == task
            for part, records in dataset.splits.items()
        }
        old: dict[Item, set[Place]] = defaultdict(set)
        for place, records in parts.items():
            for record in records if place[1] in _LATER[split] else ():
                for item in _items(record):
                    old[item].add(place)
        new = {
            (name, i): _items(record, negatives=True)
            for (name, part), records in parts.items()
            for i, record in enumerate(records if part == split else ())
        }
        like = _likeness({*chain(*new.values())}, old, near)
        for (name, i), items in new.items():
            found: dict[tuple[str, Place], tuple] = {}  # the nearest of each kind and place
            for item, other in ((own, other) for own in items for other in like(own)):
                match = (sorted(item) != sorted(other), item != other, item, other)
                for place in old.get(other, ()):
                    found[item[0], place] = min(match, found.get((item[0], place), match))
            for (kind, place), (differs, moved, *both) in found.items():
                flags = (not differs, kind == "pair" and not moved)
                texts = (" | ".join(sorted(texts)) for _, *texts in both)
                rows.append((task, name, split, kind, *place, i, *flags, *texts))
    return pd.DataFrame(rows, columns=_COLUMNS)


def _items(record: Record, *, negatives: bool = False) -> list[Item]:
    """What is compared of a record."""
    query, *positives = map(normalise, (record.query, *record.positives))
    if record.task == "sts":
        return [("pair", query, *positives)]
    passages = [*positives, *map(normalise, record.negatives if negatives else ())]
    return [("query", query), *(("passage", text) for text in passages)]


def _likeness(
    new: Iterable[Item], old: Iterable[Item], near: float
) -> Callable[[Item], list[Item]]:
    """What gives the items that a new one is like; some of them may be no old ones."""
    alike: dict[str, set[str]] = defaultdict(set)
    texts, others = ([t for kind, *ts in of if kind != "query" for t in ts] for of in (new, old))
    for text, other in near_identical(texts, others, near):
        alike[text].add(other)
    partners: dict[str, set[str]] = defaultdict(set)
    for _, first, second in (item for item in old if item[0] == "pair"):
        partners[first].add(second)

    def like(item: Item) -> list[Item]:
        kind, *texts = item
        if kind == "query":
            return [item]
        if kind == "passage":
            return [(kind, other) for other in alike[texts[0]]]
        one, two = (alike[text] for text in texts)
        orders = ((one, two), (two, one))
        return [(kind, a, b) for x, y in orders for a in x for b in partners[a] & y]

    return like


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
