"""Data sets in memory, by the name of a registry entry or by a path: their splits and subsamples.

Whether records come from the registry or from the user's own files, a data set has one task, splits
by name and a hash of its content. The same goes for new sets: what is held out, and written.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from itertools import accumulate
from pathlib import Path
from runpy import run_path
from statistics import median
from types import MappingProxyType
from typing import Any, TypeVar

from codiemb_lib import core
from codiemb_lib.data import NUMERICS, formats
from codiemb_lib.data.formats import SPLITS
from codiemb_lib.data.leaks import find_leaks, remove_leaks
from codiemb_lib.data.records import Record, RecordError, SourceError, to_json
from codiemb_lib.data.registry import (
    BuildEntry,
    DatasetError,
    Entry,
    HubEntry,
    PinnedFile,
    find_file,
    list_datasets,
    package_folder,
)

T = TypeVar("T")
MANIFEST = "manifest.json"  # in a folder of records that we wrote
Contents = tuple[Mapping[str, Iterable[Record]], Iterable[str]]  # splits, corpus


@dataclass(frozen=True)
class Dataset:
    """A data set in memory."""

    name: str  # as it was asked for; each record carries it
    task: core.Task  # of all its records
    splits: Mapping[str, tuple[Record, ...]]  # "train", "dev", "test", or some of them
    licence: str
    provenance: str
    content_hash: str  # SHA-256 over the records of all splits, and the corpus
    corpus: tuple[str, ...] = ()  # in which queries are searched, beyond passages of their records

    def split(self, split: str, *, limit: int | None = None, seed: int = 0) -> list[Record]:
        """The records of one split, or a subsample that `seed` alone decides.

        Subsamples of one seed are nested: the first 100 records stay when the limit grows to 200.
        A limit of 0 gives no record, also where the data set lacks this one of the three splits.
        """
        if limit == 0 and split in SPLITS:
            return []
        if split not in self.splits:
            where = f"of data set {self.name!r}"
            raise DatasetError(core.unknown("split", split, self.splits, where))
        records = self.splits[split]
        return _sample(records, [r.id or str(i) for i, r in enumerate(records)], limit, seed)

    def sample_corpus(self, limit: int | None = None, *, seed: int = 0) -> list[str]:
        """The corpus, or a nested subsample of it; `limit` and `seed` are those of `split`."""
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
    order = sorted(range(len(items)), key=lambda i: core.sha256_text(str(seed), names[i]))
    return [items[i] for i in sorted(order[:limit])]


def _content_hash(splits: Mapping[str, Iterable[Record]], corpus: Iterable[str]) -> str:
    # Hashed without the name, so that a moved folder keeps its hash.
    lines = (f"{s} {to_json(r, named=False)}" for s, rs in splits.items() for r in rs)
    return core.sha256_text(*lines, *corpus)


def load_datasets(preset: core.Preset) -> dict[str, Dataset]:
    """The data sets of a preset by name; with `remove_leaks`, train is cleared of dev and test.

    Dev and test are always those that `load_dataset` gives. What is taken out is said.
    """
    datasets = {d.name: load_dataset(d.name, root=preset.data_root) for d in preset.datasets}
    check_tasks(preset, {name: dataset.task for name, dataset in datasets.items()})
    return remove_leaks(datasets, find_leaks(datasets)) if preset.remove_leaks else datasets


def check_tasks(preset: core.Preset, tasks: Mapping[str, core.Task]) -> None:
    """Refuse a preset without dev records of one of the tasks, given those of its data sets."""
    if missing := {"ir", "sts"} - {tasks[d.name] for d in preset.datasets if d.dev != 0}:
        raise core.PresetError(
            f"preset {preset.name!r}: expected data sets of both tasks with dev records, found "
            f"none of {missing.pop()!r}. Every run is scored on both."
        )


def load_dataset(
    name: str,
    *,
    root: str = "",
    cache: str | Path | None = None,
    registry: str | Path | None = None,
    **form: Any,
) -> Dataset:
    """Load a data set of the registry, or local records.

    Args:
        name: A name in the registry, or the path of a file or folder that `read_path` reads.
        root: Where files of public sets are looked for, a preset's `data_root`; the environment
            variable `CODIEMB_DATA` goes before it. What is not there is fetched.
        cache: Where lies what scripts made and what was fetched; by default `data/cache`.
        registry: Another registry than `data/registry.yaml`.
        **form: `task`, `columns`, `scale`, `delimiter` and `quoting` of a path, as in `read_file`.

    Raises:
        DatasetError: Neither the registry nor the disk knows the name.
        SourceError: What it is read from is not there, or has other bytes than the registry says.
        RecordError: A local file has a line that is no record, or records of both tasks.
    """
    entries = {entry.name: entry for entry in list_datasets(registry)}
    if name in entries:
        if any(form.values()):
            raise DatasetError(
                f"{name}: expected the registry alone to say its form, found {form}."
            )
        entry = entries[name]
        folder = Path(cache) if cache else core.project_root() / "data" / "cache"
        splits, corpus = _read_entry(entry, core.data_root(root), folder)
        task, licence, provenance = entry.task, entry.licence, entry.provenance
    elif (local := core.project_root() / name).exists():
        splits, corpus = _read_folder(local, **form)
        task, licence, provenance = _one_task(name, splits), "see source", f"local: {name}"
    else:
        message = core.unknown("data set", name, entries)
        raise DatasetError(f"{message} Paths are read too, but there is no {name}: data/README.md.")
    named = {s: tuple(replace(r, dataset=name) for r in rs) for s, rs in splits.items()}
    corpus = tuple(dict.fromkeys(corpus))
    content = _content_hash(named, corpus)
    return Dataset(name, task, MappingProxyType(named), licence, provenance, content, corpus)


def _one_task(name: str, splits: Mapping[str, Iterable[Record]]) -> core.Task:
    tasks = sorted({record.task for records in splits.values() for record in records})
    if len(tasks) > 1:
        raise RecordError(f"{name}: expected one task in a data set, found {tasks}. Split it.")
    return tasks[0]


def _read_folder(path: Path, **form: Any) -> Contents:
    origin_of(path)  # is whole
    corpus = formats.read_beir_corpus(path).values() if formats.find_part(path, "corpus") else ()
    return formats.read_path(path, **form), corpus


def _read_entry(entry: Entry, root: Path | None, cache: Path) -> Contents:
    if isinstance(entry, HubEntry):
        options = entry.model_dump(include={"task", "columns", "scale", "config", "revision"})
        names = {split: entry.splits[split] for split in SPLITS if split in entry.splits}
        read = partial(formats.read_hub, entry.hub, **options)
        return {split: read(split=name) for split, name in names.items()}, ()
    find = partial(find_file, root=root, fetched=cache / "files")
    if isinstance(entry, BuildEntry):
        splits, corpus = _built(entry, find, cache)
    elif isinstance(entry.files, dict):
        form = {"task": entry.task, "columns": entry.columns, "scale": entry.scale}
        splits, corpus = {s: formats.read_file(find(f), **form) for s, f in entry.files.items()}, ()
    else:
        place, *_ = [find(file) for file in entry.files]  # all checked
        splits, corpus = _read_folder(place.parent)
    if getattr(entry, "dev", None):
        splits = cut_dev(splits, entry.dev)
    named = {  # so that a subsample does not hang on what else is there
        split: [r if r.id else replace(r, id=f"{split}-{i}") for i, r in enumerate(records)]
        for split, records in splits.items()
    }
    return named, corpus


def _built(entry: BuildEntry, find: Callable[[PinnedFile], Path], cache: Path) -> Contents:
    """What the entry's script made of its sources, now or before: then as a folder of the cache."""
    script = core.project_root() / "data" / "build" / f"{entry.build}.py"
    if not script.is_file():
        raise SourceError(f"data set {entry.name!r}: expected the script {script}, found none.")
    sources = {name: find(file) for name, file in entry.files.items()}
    sources |= {name: package_folder(name) for name in entry.packages}
    names = [package.distribution for package in entry.packages.values()]
    versions = [f"{name}=={metadata.version(name)}" for name in names]
    made_by = (entry.model_dump_json(), core.sha256_file(script), str(NUMERICS), *versions)
    folder = cache / f"{entry.name}-{core.sha256_text(*made_by)[:16]}"
    with core.alone(folder):
        if not folder.is_dir():
            cut = {"fractions": entry.fractions} if entry.fractions else {}
            splits, corpus = run_path(str(script))["build"](sources, **entry.options, **cut)
            write_splits(folder, splits, [*dict.fromkeys(corpus)])
    return _read_folder(folder)


def split_of(key: str, fractions: Mapping[str, float]) -> str:
    """The split of an item, decided by the hash of its key alone: stable when others come or go."""
    return split_at(int(core.sha256_text(key)[:12], 16) / 16**12, fractions)


def split_at(place: float, fractions: Mapping[str, float]) -> str:
    """The split in which a place in [0, 1) falls."""
    bounds = zip(fractions, accumulate(fractions.values()), strict=True)
    return next((split for split, bound in bounds if place < bound), SPLITS[-1])


def cut_dev(splits: Mapping[str, Sequence[Record]], share: float) -> dict[str, list[Record]]:
    """Take dev out of train, by the hash of a record's first passage: those of one stay together.

    A record that shares a passage with test stays in train, so that dev has none of test's.
    """
    test = {core.normalise(text) for record in splits["test"] for text in record.positives}
    cut: dict[str, list[Record]] = {"train": [], "dev": [], "test": list(splits["test"])}
    for record in splits["train"]:
        passages = sorted(map(core.normalise, record.positives))
        place = split_of(passages[0], {"train": 1 - share, "dev": share})
        cut["train" if test.intersection(passages) else place].append(record)
    return cut


def hold_out(
    records: Sequence[Record], sizes: Mapping[str, int], seed: int = 0
) -> dict[str, list[Record]]:
    """Take further splits out of training records; `seed` alone decides which records move.

    `sizes` says how many go to "dev" or "test", or to each. Records of one query, or of one
    unordered pair, stay together, so that a split may get a few more than its size. A passage, or
    one text of a pair, may still stand in several splits. All keep the order of `records`.

    Raises:
        RecordError: A split, or what is left for training, would have no record.
    """

    def key(record: Record) -> str:
        texts = [record.query, *(record.positives if record.task == "sts" else ())]
        return core.sha256_text(str(seed), *sorted(map(core.normalise, texts)))

    keys = [key(record) for record in records]
    where, left = {}, Counter(sizes)
    for group, count in sorted(Counter(keys).items()):
        where[group] = next((split for split in sizes if left[split] > 0), "train")
        left[where[group]] -= count
    splits: dict[str, list[Record]] = {split: [] for split in ("train", *sizes)}
    for record, group in zip(records, keys, strict=True):
        splits[where[group]].append(record)
    if not all(splits.values()):
        raise RecordError(
            f"expected records for train and each of {dict(sizes)}, found {len(records)} in all."
        )
    return splits


def write_splits(
    folder: str | Path,
    splits: Mapping[str, Sequence[Record]],
    corpus: Sequence[str] = (),
    *,
    origin: str = "",
) -> dict[Path, int]:
    """Write a folder of unified JSONL, one file a split, which is a data set by its path.

    It appears at once, with the hashes of its files, or not at all. Returns how many records, or
    passages, each file has. A file that stands there with the same content is kept, one with
    another content is refused before anything is written, and so is what `load_dataset` would not
    read back. Records lose the name of their data set; the corpus goes to `corpus.jsonl`, and what
    the caller says of the origin to the manifest, for :func:`origin_of`.
    """
    files, folder = split_lines(folder, splits, corpus), Path(folder)
    with core.atomic_path(folder) as new:
        shutil.copytree(folder, new) if folder.is_dir() else new.mkdir()
        for file, lines in files.items():
            (new / file.name).write_text("".join(lines), encoding="utf-8")
        hashes = core.sha256_files(new, (file for file in new.glob("*.jsonl")))
        core.write_json(new / MANIFEST, {"origin": origin, "files": hashes})
    return {file: len(lines) for file, lines in files.items()}


def origin_of(folder: str | Path) -> str:
    """Of what a folder that `write_splits` wrote was made; "" of another folder.

    Raises:
        SourceError: A file is not as it was written.
    """
    file = Path(folder, MANIFEST)
    stated = core.read_json(file) if file.is_file() else None
    if not isinstance(stated, dict) or stated.keys() != {"origin", "files"}:
        return ""  # there is none, or that of another tool
    if spoilt := core.damaged(file.parent, stated["files"]):
        raise SourceError(
            f"{folder}: expected the files that {MANIFEST} lists, found {spoilt} missing or "
            f"changed. Make the folder again; or remove {MANIFEST}, if you changed them yourself."
        )
    return stated["origin"]


def split_lines(
    folder: str | Path, splits: Mapping[str, Sequence[Record]], corpus: Sequence[str] = ()
) -> dict[Path, list[str]]:
    """What `write_splits` would write: the lines of each file. It raises what that would raise."""
    if not splits:
        raise RecordError(f"{folder}: expected at least one split to write, found none.")
    for split, records in splits.items():
        if split not in SPLITS:
            raise RecordError(f"{folder}: {core.unknown('split', split, SPLITS)}")
        if not records:
            raise RecordError(f"{folder}: expected records in the split {split!r}, found none.")
    _one_task(str(folder), splits)
    lines = {s: [to_json(r, named=False) for r in rs] for s, rs in splits.items()}
    documents = ({"_id": str(i), "text": text.strip()} for i, text in enumerate(corpus))
    lines["corpus"] = [json.dumps(document, ensure_ascii=False) for document in documents]
    files = {Path(folder) / f"{part}.jsonl": [f"{x}\n" for x in xs] for part, xs in lines.items()}
    for file, content in files.items():
        standing = formats.find_part(folder, file.stem)
        if standing and (standing != file or file.read_bytes() != "".join(content).encode()):
            raise RecordError(
                f"{standing}: expected no such file, or the same {file.name}. Choose another name."
            )
    return {file: content for file, content in files.items() if content}


def describe(records: Sequence[Record]) -> dict[str, str]:
    """What the records of one split are like: names of measures and their values, to be printed.

    Lengths are those of distinct texts; an IR passage is a positive or a hard negative.
    """
    if not records:
        return {"records": "0"}
    queries = {record.query for record in records}
    passages = {text for record in records for text in (*record.positives, *record.negatives)}
    rows = {"records": f"{len(records):,}", "distinct texts": f"{len(queries | passages):,}"}
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
