"""Data sets in memory, by the name of a registry entry or by a path: their splits and subsamples.

Whether records come from the registry or from the user's own files, a data set has one task, splits
by name and a hash of its content. The same goes for new sets: what is held out, and written.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import TypeVar

from codiemb_lib.core import (
    CodiembError,
    Task,
    data_root,
    normalise,
    project_root,
    sha256_text,
    unknown,
    write_text,
)
from codiemb_lib.data.entries import read_entry
from codiemb_lib.data.formats import SPLITS, find_part, has_corpus, read_beir_corpus, read_path
from codiemb_lib.data.records import Record, RecordError, to_json
from codiemb_lib.data.registry import list_datasets

T = TypeVar("T")


class UnknownDatasetError(CodiembError, ValueError):
    """No data set or split of this name."""


@dataclass(frozen=True)
class Dataset:
    """A data set in memory.

    Attributes:
        name: As it was asked for; each record carries it.
        task: The task of all its records.
        splits: The records of "train", "dev" and "test".
        licence: What is known of it.
        provenance: Where the texts come from.
        content_hash: SHA-256 over the records of all splits, and the corpus.
        corpus: Passages in which the queries of a retrieval set are searched, beyond those of their
            own records.
    """

    name: str
    task: Task
    splits: Mapping[str, tuple[Record, ...]]
    licence: str
    provenance: str
    content_hash: str
    corpus: tuple[str, ...] = ()

    def split(self, split: str, *, limit: int | None = None, seed: int = 0) -> list[Record]:
        """The records of one split, or a subsample that `seed` alone decides.

        Subsamples of one seed are nested: the first 100 records stay when the limit grows to 200.

        Args:
            split: "train", "dev" or "test".
            limit: At most so many records; None: all; 0: none, also where the data set lacks this
                one of the three.
            seed: Decides which records a limit keeps.

        Raises:
            UnknownDatasetError: The data set has no such split; with limit 0: it is none of the
                three.
            ValueError: A negative limit.
        """
        if limit == 0 and split in SPLITS:
            return []
        if split not in self.splits:
            where = f"of data set {self.name!r}"
            raise UnknownDatasetError(unknown("split", split, self.splits, where))
        records = self.splits[split]
        return _sample(records, [r.id or str(i) for i, r in enumerate(records)], limit, seed)

    def sample_corpus(self, limit: int | None = None, *, seed: int = 0) -> list[str]:
        """The corpus, or a nested subsample of it; `limit` and `seed` are those of `split`.

        Raises:
            ValueError: A negative limit.
        """
        return _sample(self.corpus, self.corpus, limit, seed)

    def without(self, split: str, places: Collection[int]) -> Dataset:
        """The data set less the records that stand at some places of a split."""
        kept = (record for i, record in enumerate(self.splits[split]) if i not in places)
        splits = {**self.splits, split: tuple(kept)}
        content = _content_hash(splits, self.corpus)
        return replace(self, splits=MappingProxyType(splits), content_hash=content)


def _sample(items: Sequence[T], names: Sequence[str], limit: int | None, seed: int) -> list[T]:
    """All items, or `limit` of them by the hashes of their names, in their order."""
    if limit is not None and limit < 0:
        raise ValueError(f"limit: expected None or a number >= 0, found {limit}.")
    if limit is None or limit >= len(items):
        return list(items)
    keys = [sha256_text(str(seed), name) for name in names]
    kept = sorted(sorted(range(len(items)), key=keys.__getitem__)[:limit])
    return [items[i] for i in kept]


def _content_hash(splits: Mapping[str, Iterable[Record]], corpus: Iterable[str]) -> str:
    # Hashed without the name, so that a moved folder keeps its hash.
    lines = [
        f"{split} {to_json(replace(r, dataset=''))}" for split in splits for r in splits[split]
    ]
    return sha256_text(*lines, *corpus)


def load_dataset(
    name: str,
    *,
    root: str = "",
    cache: str | Path | None = None,
    registry: str | Path | None = None,
) -> Dataset:
    """Load a data set of the registry, or local records.

    Args:
        name: A name in the registry, or the path of a file or folder that `readers.read_path`
            reads.
        root: Where the files of public sets are looked for, a preset's `data_root`; the environment
            variable `CODIEMB_DATA` goes before it. What is not there is fetched.
        cache: The folder for records that take seconds to build, and for files that were fetched;
            by default `data/cache`.
        registry: Another registry than `data/registry.yaml`.

    Raises:
        UnknownDatasetError: Neither the registry nor the disk knows the name.
        MissingSourceError: The package that carries the data is not installed, the Hub or the
            address of a file cannot be reached, or the folder holds nothing known.
        ChecksumError: A source file is not the one that the registry pins.
        RecordError: A local file has a line that is no record, or records of both tasks.
    """
    entries = {entry.name: entry for entry in list_datasets(registry)}
    if name in entries:
        entry = entries[name]
        folder = Path(cache) if cache else project_root() / "data" / "cache"
        splits, corpus = read_entry(entry, data_root(root), folder)
        task, licence, provenance = entry.task, entry.licence, entry.provenance
    elif (local := project_root() / name).exists():
        splits = read_path(local)
        corpus = read_beir_corpus(local).values() if has_corpus(local) else ()
        task, licence, provenance = _one_task(name, splits), "see source", f"local: {name}"
    else:
        remedy = " A path is read too: of a file of records, or of a folder with train.jsonl, "
        remedy += "dev.jsonl, test.jsonl; see data/README.md."
        raise UnknownDatasetError(unknown("data set", name, entries) + remedy)
    named = {
        split: tuple(replace(record, dataset=name) for record in records)
        for split, records in splits.items()
    }
    corpus = tuple(dict.fromkeys(corpus))
    content = _content_hash(splits, corpus)
    return Dataset(name, task, MappingProxyType(named), licence, provenance, content, corpus)


def load_split(
    name: str,
    split: str,
    *,
    limit: int | None = None,
    seed: int = 0,
    root: str = "",
    cache: str | Path | None = None,
) -> list[Record]:
    """The records of one split of a data set by name; see `load_dataset` and `Dataset.split`."""
    return load_dataset(name, root=root, cache=cache).split(split, limit=limit, seed=seed)


def _one_task(name: str, splits: Mapping[str, Iterable[Record]]) -> Task:
    tasks = sorted({record.task for records in splits.values() for record in records})
    if len(tasks) > 1:
        raise RecordError(
            f"{name}: field 'task': expected one task in a data set, found {tasks}. "
            "Put the records of each task into a folder of their own."
        )
    return tasks[0]


# --- Sets of one's own ----------------------------------------------------------------------------


def hold_out(
    records: Sequence[Record], sizes: Mapping[str, int], seed: int = 0
) -> dict[str, list[Record]]:
    """Take further splits out of training records; `seed` alone decides which records move.

    Records of one query, or of one unordered pair, stay together, so that a split may get a few
    more than its size. A passage, or one text of a pair, may still stand in several splits.

    Args:
        records: Those to take from.
        sizes: How many records go to "dev" or "test", or to each.
        seed: Decides which.

    Returns:
        "train" and the splits of `sizes`, each in the order of `records`.

    Raises:
        RecordError: A size is that of another split or no whole number, or a split, or what is left
            for training, would have no record.
    """
    if not {*sizes} <= {*SPLITS[1:]} or not all(isinstance(n, Integral) for n in sizes.values()):
        raise RecordError(
            f"expected how many records go to dev, to test or to each, found {dict(sizes)}. Give "
            "whole numbers; what they leave is train."
        )

    def key(record: Record) -> str:
        texts = [record.query, *(record.positives if record.task == "sts" else ())]
        return sha256_text(str(seed), *sorted(map(normalise, texts)))

    groups: dict[str, list[int]] = defaultdict(list)
    for i, record in enumerate(records):
        groups[key(record)].append(i)
    where = ["train"] * len(records)
    left = dict(sizes)
    for _, members in sorted(groups.items()):
        split = next((split for split, size in left.items() if size > 0), None)
        if split is None:
            break
        left[split] -= len(members)
        for i in members:
            where[i] = split
    if set(where) != {"train", *sizes}:
        raise RecordError(
            f"expected records for train and for each of {dict(sizes)}, found {len(records)} in "
            "all. Hold out fewer, and at least one."
        )
    return {
        split: [record for record, place in zip(records, where, strict=True) if place == split]
        for split in ("train", *sizes)
    }


def write_splits(
    folder: str | Path, splits: Mapping[str, Iterable[Record]], corpus: Sequence[str] = ()
) -> dict[Path, int]:
    """Write a folder of unified JSONL, one file a split, which is a data set by its path.

    A file that stands there with the same content is kept, one with another content is refused
    before anything is written, and so is what `load_dataset` would not read back. The records lose
    the name of their data set, the passages of the corpus the blanks around them.

    Args:
        folder: Where to.
        splits: The records of each.
        corpus: Further passages, for `corpus.jsonl`; there is no such file without any.

    Returns:
        How many records, or passages, each file has.

    Raises:
        RecordError: Another split than train, dev and test, or none; records of both tasks; a file
            with another content, or one of another form in the place of one to be written.
        UnwritableError: The folder cannot be written.
    """
    files = split_lines(folder, splits, corpus)
    for file, lines in files.items():
        write_text(file, "".join(lines))
    return {file: len(lines) for file, lines in files.items()}


def split_lines(
    folder: str | Path, splits: Mapping[str, Iterable[Record]], corpus: Sequence[str] = ()
) -> dict[Path, list[str]]:
    """What `write_splits` would write: the lines of each file. It raises what that would raise."""
    records = {
        s: [replace(record, dataset="") for record in of_split] for s, of_split in splits.items()
    }
    if not records:
        raise RecordError(f"{folder}: expected at least one split to write, found none.")
    for split, of_split in records.items():
        if split not in SPLITS:
            raise RecordError(f"{folder}: {unknown('split', split, SPLITS)}")
        if not of_split:
            raise RecordError(f"{folder}: expected records in the split {split!r}, found none.")
    _one_task(str(folder), records)
    files = {Path(folder) / f"{s}.jsonl": [to_json(r) for r in rs] for s, rs in records.items()}
    documents = [{"_id": str(i), "text": text.strip()} for i, text in enumerate(corpus)]
    passages = [json.dumps(document, ensure_ascii=False) for document in documents]
    files[Path(folder) / "corpus.jsonl"] = passages
    files = {file: [f"{line}\n" for line in lines] for file, lines in files.items()}
    for file, lines in files.items():
        if (standing := find_part(folder, file.stem)) not in (None, file):
            raise RecordError(
                f"{standing}: expected no such file, for {file.name} says what it says, found one. "
                "Choose another folder, or remove the file."
            )
        if file.exists() and file.read_bytes() != "".join(lines).encode():
            raise RecordError(
                f"{file}: expected no such file, or the same lines, found others. Choose another "
                "folder, or remove the file."
            )
    return {file: lines for file, lines in files.items() if lines}


def describe(records: Sequence[Record]) -> dict[str, str]:
    """What the records of one split are like: names of measures and their values, to be printed.

    Lengths are those of distinct texts; an IR passage is a positive or a hard negative.

    Raises:
        RecordError: There is no record.
    """
    if not records:
        raise RecordError("expected at least one record to describe, found none.")
    queries = {record.query for record in records}
    passages = {text for record in records for text in (*record.positives, *record.negatives)}
    rows = {
        "records": f"{len(records):,}",
        "distinct texts": f"{len(queries | passages):,}",
    }
    for kind, texts in (("query", queries), ("passage", passages)):
        rows[f"{kind} words"] = _spread(len(text.split()) for text in texts)
        rows[f"{kind} characters"] = _spread(map(len, texts))
    if records[0].task == "ir":
        without = sum(not record.negatives for record in records)
        return rows | {
            "positives a record": _spread(len(record.positives) for record in records),
            "negatives a record": _spread(len(record.negatives) for record in records),
            "records without negatives": f"{without / len(records):.0%}",
        }
    bins = Counter(min(int(record.score * 5), 4) for record in records)
    return rows | {f"score {i / 5} to {(i + 1) / 5}": f"{bins[i]:,}" for i in range(5)}


def _spread(numbers: Iterable[int]) -> str:
    ordered = sorted(numbers)
    return f"{ordered[0]} / {median(ordered):g} / {ordered[-1]}"
