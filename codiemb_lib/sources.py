"""Data sets by name or path: the registry, what it reads and from where, and splits."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from codiemb_lib import docstrings
from codiemb_lib.config import data_root, project_root, unknown
from codiemb_lib.docstrings import Documented, documented, normalise
from codiemb_lib.files import sha256_file, sha256_text
from codiemb_lib.readers import (
    SPLITS,
    MissingSourceError,
    Scale,
    check_columns,
    is_beir,
    read_aligned,
    read_beir,
    read_beir_corpus,
    read_hub,
    read_pairs,
    read_path,
    read_sts_table,
)
from codiemb_lib.records import (
    Record,
    RecordError,
    Task,
    read_jsonl,
    read_rows,
    to_json,
    write_jsonl,
)

T = TypeVar("T")


class UnknownDatasetError(ValueError):
    """No data set or split of this name."""


class RegistryError(ValueError):
    """The registry says something that cannot be read."""


class ChecksumError(ValueError):
    """A source file has other bytes than the registry says."""


# --- The registry ---------------------------------------------------------------------------------


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceFile(_Strict):
    """A file inside an installed package, pinned to its bytes."""

    path: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class PackageDocs(_Strict):
    """A package whose docstrings are read."""

    distribution: str  # its name for pip
    licence: str
    limit: Annotated[int, Field(ge=1)]  # most entries, so that no package dominates
    private: tuple[str, ...] = ()  # folders with a leading underscore that hold public objects
    skip: tuple[str, ...] = ()  # folders that few users of the package meet


class Entry(_Strict):
    """What every data set of the registry says about itself."""

    name: str
    task: Task
    licence: str
    provenance: str


class CutEntry(Entry):
    """A data set that comes in one piece, and that we cut into splits."""

    fractions: dict[Literal["train", "dev", "test"], Annotated[float, Field(gt=0, lt=1)]]

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of its splits."""
        return tuple(self.fractions)

    @model_validator(mode="after")
    def _fractions_sum_to_one(self) -> Entry:
        if tuple(self.fractions) != SPLITS or abs(sum(self.fractions.values()) - 1) > 1e-9:
            raise ValueError("`fractions` must name train, dev, test in this order and sum to 1")
        return self


class DocstringsEntry(CutEntry):
    """Retrieval from API documentation."""

    reader: Literal["docstrings"]
    words: tuple[int, int]
    negatives: Annotated[int, Field(ge=0)]
    packages: dict[str, PackageDocs]


class LeeNewsEntry(CutEntry):
    """Retrieval of a news article by its first sentence."""

    reader: Literal["lee_news"]
    package: str
    background: SourceFile
    documents: SourceFile


class WordPairsEntry(CutEntry):
    """Rated word pairs, one a line, separated by tabs."""

    reader: Literal["word_pairs"]
    package: str
    pairs: SourceFile
    scale: Annotated[float, Field(gt=0)]


class LeeSimilarityEntry(CutEntry):
    """Rated pairs of documents, in the upper triangle of a matrix."""

    reader: Literal["lee_similarity"]
    package: str
    documents: SourceFile
    similarities: SourceFile


class HubEntry(Entry):
    """A data set of the Hugging Face Hub: downloaded when it is loaded, and only then."""

    reader: Literal["hub"]
    repository: str  # organisation/name
    config: str = ""
    revision: str = ""  # a commit, so that nobody changes it under us
    splits: Annotated[dict[Literal["train", "dev", "test"], str], Field(min_length=1)]
    columns: tuple[str, ...]  # two texts and their score, or query, positive, negative
    scale: Scale | None = None  # lowest and highest score

    @model_validator(mode="after")
    def _columns_fit_the_task(self) -> HubEntry:
        check_columns(self.repository, self.task, self.columns, self.scale)
        return self


class PublicFile(SourceFile):
    """A file of a public data set: its place in the data root, and where else it may come from."""

    url: str = ""  # empty: it is not fetched


class RatedPairsEntry(Entry):
    """Rated pairs, a table for each split."""

    reader: Literal["rated_pairs"]
    files: dict[Literal["train", "dev", "test"], PublicFile]
    columns: tuple[str, str, str] | tuple[int, int, int]
    scale: Scale

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of its splits."""
        return tuple(self.files)


class CutDevEntry(Entry):
    """A retrieval set with train and test, of which we take dev out of train."""

    dev: Annotated[float, Field(gt=0, lt=1)]  # its share of train
    splits: ClassVar[tuple[str, ...]] = SPLITS


class AlignedFiles(_Strict):
    """Questions, and the passage that answers each on the same line of another file."""

    queries: PublicFile
    passages: PublicFile


class AlignedEntry(CutDevEntry):
    """Retrieval of the passages that stand beside questions."""

    reader: Literal["aligned"]
    files: dict[Literal["train", "test"], AlignedFiles]


class BeirEntry(CutDevEntry):
    """A BEIR folder of the data root."""

    reader: Literal["beir"]
    files: Annotated[tuple[PublicFile, ...], Field(min_length=1)]  # the corpus first


class QuestionsEntry(CutEntry):
    """Questions and answers in groups, about one matter each, which no split divides."""

    reader: Literal["questions"]
    file: PublicFile
    columns: tuple[str, str]  # question, answer
    group: str  # the column that names the matter
    negatives: Annotated[int, Field(ge=0)]  # at most: answers to other questions of the group


AnyEntry = Annotated[
    DocstringsEntry
    | LeeNewsEntry
    | WordPairsEntry
    | LeeSimilarityEntry
    | RatedPairsEntry
    | AlignedEntry
    | BeirEntry
    | QuestionsEntry
    | HubEntry,
    Field(discriminator="reader"),
]


_ENTRY: TypeAdapter[Entry] = TypeAdapter(AnyEntry)


def list_datasets(registry: str | Path | None = None) -> list[Entry]:
    """The entries of `data/registry.yaml`, or of another registry, in the order of the file.

    Raises:
        RegistryError: The file is missing, no YAML, or an entry has an unknown or wrong key.
    """
    path = Path(registry) if registry else project_root() / "data" / "registry.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise RegistryError(f"{path}: expected a YAML registry, found: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(e, dict) for e in content.values()):
        raise RegistryError(f"{path}: expected a mapping of data set names to their settings.")
    return [_entry(path, name, settings) for name, settings in content.items()]


def _entry(path: Path, name: str, settings: dict) -> Entry:
    try:
        return _ENTRY.validate_python(settings | {"name": name})
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc'][1:])) or 'reader'}: {problem['msg']}"
            for problem in error.errors()
        )
        raise RegistryError(f"{path}: data set {name!r}: {problems}.") from error


# --- Data sets ------------------------------------------------------------------------------------


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
            limit: At most so many records; None: all; 0: none, also of a split that is not there.
            seed: Decides which records a limit keeps.

        Raises:
            UnknownDatasetError: The data set has no such split.
            ValueError: A negative limit.
        """
        if limit is not None and limit < 0:
            raise ValueError(f"limit: expected None or a number >= 0, found {limit}.")
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
        if limit is not None and limit < 0:
            raise ValueError(f"limit: expected None or a number >= 0, found {limit}.")
        return _sample(self.corpus, self.corpus, limit, seed)

    def without(self, split: str, places: Collection[int]) -> Dataset:
        """The data set less the records that stand at some places of a split."""
        kept = (record for i, record in enumerate(self.splits[split]) if i not in places)
        splits = {**self.splits, split: tuple(kept)}
        content = _content_hash(splits, self.corpus)
        return replace(self, splits=MappingProxyType(splits), content_hash=content)


def _sample(items: Sequence[T], names: Sequence[str], limit: int | None, seed: int) -> list[T]:
    """All items, or `limit` of them by the hashes of their names, in their order."""
    if limit is None or limit >= len(items):
        return list(items)
    keys = [sha256_text(str(seed), name) for name in names]
    kept = sorted(sorted(range(len(items)), key=keys.__getitem__)[:limit])
    return [items[i] for i in kept]


def _content_hash(splits: Mapping[str, Iterable[Record]], corpus: Iterable[str]) -> str:
    # Hashed without the name, so that a moved folder keeps its hash.
    records = (replace(record, dataset="") for split in splits for record in splits[split])
    places = (split for split in splits for _ in splits[split])
    lines = [f"{place} {to_json(r)}" for place, r in zip(places, records, strict=True)]
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
        splits, corpus = _read_entry(entry, data_root(root), folder)
        task, licence, provenance = entry.task, entry.licence, entry.provenance
    elif (local := project_root() / name).exists():
        splits = read_path(local)
        corpus = read_beir_corpus(local).values() if is_beir(local) else ()
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


def _read_entry(
    entry: Entry, root: Path | None, cache: Path
) -> tuple[dict[str, list[Record]], Iterable[str]]:
    """The splits of an entry, and its corpus."""
    if type(entry) in _PUBLIC_READERS:
        find = partial(find_file, root=root, fetched=cache / "files")
        splits, corpus = _PUBLIC_READERS[type(entry)](entry, find)
        named = {  # so that a subsample does not hang on what else is there
            split: [replace(r, id=r.id or f"{split}-{i}") for i, r in enumerate(records)]
            for split, records in splits.items()
        }
        return named, corpus
    return _read_packaged(entry, cache), ()


def _read_packaged(entry: Entry, cache: Path) -> dict[str, list[Record]]:
    if isinstance(entry, HubEntry):
        options = entry.model_dump(include={"task", "columns", "scale", "config", "revision"})
        return {
            split: read_hub(entry.repository, split=entry.splits[split], **options)
            for split in SPLITS
            if split in entry.splits
        }
    if not isinstance(entry, DocstringsEntry):
        return _by_split(entry, _READERS[type(entry)](entry))
    versions = [_version(entry, package.distribution) for package in entry.packages.values()]
    recipe = sha256_file(__file__), sha256_file(docstrings.__file__)
    key = sha256_text(entry.model_dump_json(), *recipe, *versions)[:16]
    # One file a split, each atomic: two processes that build at once write the same bytes.
    files = {split: cache / f"{entry.name}-{key}.{split}.jsonl" for split in SPLITS}
    if not all(file.is_file() for file in files.values()):
        for split, records in _by_split(entry, read_docstrings(entry)).items():
            write_jsonl(files[split], records)
    return {split: read_jsonl(file) for split, file in files.items()}


def _by_split(entry: CutEntry, records: Iterable[tuple[str, Record]]) -> dict[str, list[Record]]:
    splits: dict[str, list[Record]] = {split: [] for split in SPLITS}
    for split, record in records:
        splits[split].append(record)
    for split, members in splits.items():
        if not members:
            raise RecordError(
                f"data set {entry.name!r}: expected records in the split {split!r}, found none. "
                "Give it a larger share in `fractions`."
            )
    return splits


def split_of(key: str, fractions: Mapping[str, float]) -> str:
    """The split of an item, decided by the hash of its key alone: stable when others come or go."""
    return _split_at(int(sha256_text(key)[:12], 16) / 16**12, fractions)


def _split_at(place: float, fractions: Mapping[str, float]) -> str:
    """The split in which a place in [0, 1) falls."""
    bounds = zip(fractions, accumulate(fractions.values()), strict=True)
    return next((split for split, bound in bounds if place < bound), SPLITS[-1])


# --- Sets of one's own ----------------------------------------------------------------------------


def hold_out(
    records: Sequence[Record], sizes: Mapping[str, int], seed: int = 0
) -> dict[str, list[Record]]:
    """Take further splits out of training records; `seed` alone decides which records move.

    Records of one query, or of one unordered pair, stay together, so that a split may get a few
    more than its size. A passage, or one text of a pair, may still stand in several splits.

    Returns:
        "train" and the splits of `sizes`, each in the order of `records`.

    Raises:
        RecordError: A split, or what is left for training, would have no record.
    """

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


def write_splits(folder: str | Path, splits: Mapping[str, Iterable[Record]]) -> dict[Path, int]:
    """Write a folder of unified JSONL, one file a split, which is a data set by its path.

    A file that stands there with the same content is kept, one with another content is refused
    before anything is written. The records lose the name of their data set.

    Returns:
        How many records each file has.

    Raises:
        RecordError: Records of both tasks, or a file with another content.
        UnwritableError: The folder cannot be written.
    """
    files = {
        Path(folder) / f"{split}.jsonl": [replace(record, dataset="") for record in records]
        for split, records in splits.items()
    }
    _one_task(str(folder), files)
    for file, records in files.items():
        content = "".join(f"{to_json(record)}\n" for record in records)
        if file.exists() and file.read_bytes() != content.encode():
            raise RecordError(
                f"{file}: expected no such file, or the same records, found others. Choose another "
                "folder, or remove the file."
            )
    for file, records in files.items():
        write_jsonl(file, records)
    return {file: len(records) for file, records in files.items()}


def describe(records: Sequence[Record]) -> dict[str, str]:
    """What the records of one split are like: names of measures and their values, to be printed.

    Lengths are those of distinct texts; an IR passage is a positive or a hard negative.
    """
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


# --- Source files ---------------------------------------------------------------------------------


def _version(entry: Entry, distribution: str) -> str:
    try:
        return f"{distribution}=={metadata.version(distribution)}"
    except metadata.PackageNotFoundError as error:
        raise MissingSourceError(_missing(entry, distribution, "none")) from error


def _missing(entry: Entry, package: str, found: str) -> str:
    return (
        f"data set {entry.name!r}: expected the installed package {package!r}, found {found}. "
        f"Install it: pip install --force-reinstall {package}"
    )


def _package_folder(entry: Entry, package: str) -> Path:
    spec = find_spec(package)  # finds a package without importing it
    if spec is None or not spec.submodule_search_locations:
        raise MissingSourceError(_missing(entry, package, "none"))
    return Path(spec.submodule_search_locations[0])


def _source_lines(entry: Entry, package: str, source: SourceFile) -> list[str]:
    path = _package_folder(entry, package) / source.path
    if not path.is_file():
        raise MissingSourceError(_missing(entry, package, f"no file {path}"))
    _check_bytes(path, source, f"Reinstall {package}")
    # Latin-1, as the Lee files are; the word lists are plain ASCII.
    return path.read_text(encoding="latin-1").strip("\n").split("\n")


# --- Readers of the files in gensim ---------------------------------------------------------------


def read_word_pairs(entry: WordPairsEntry) -> Iterator[tuple[str, Record]]:
    """Rated word pairs. A pair that stands twice, in either order, gets the mean of its ratings.

    The split hangs on the unordered pair alone, so two word sets never disagree about a pair.
    """
    ratings: dict[tuple[str, ...], list[float]] = defaultdict(list)
    pairs: dict[tuple[str, ...], tuple[str, str]] = {}
    for line in _source_lines(entry, entry.package, entry.pairs):
        if line.startswith("#"):
            continue
        left, right, rating = line.split("\t")
        key = tuple(sorted((normalise(left), normalise(right))))
        pairs.setdefault(key, (left, right))
        ratings[key].append(float(rating) / entry.scale)
    for key, (left, right) in pairs.items():
        name, score = " ".join(key), round(sum(ratings[key]) / len(ratings[key]), 6)
        yield split_of(name, entry.fractions), _pair(left, right, score, name)


def _pair(left: str, right: str, score: float, name: str) -> Record:
    return Record("sts", left, (right,), positive_scores=(score,), id=name)


def read_lee_similarity(entry: LeeSimilarityEntry) -> Iterator[tuple[str, Record]]:
    """Rated pairs of documents; both documents of a pair lie in the same split.

    The matrix holds its upper triangle and a diagonal of ones: row i, column j > i is a pair.
    """
    lines = _source_lines(entry, entry.package, entry.documents)
    documents = [" ".join(line.split()) for line in lines]
    # Fifty are too few to leave the sizes to chance: in the order of their hashes, cut by share.
    order = sorted(range(len(documents)), key=lambda i: sha256_text(normalise(documents[i])))
    splits = [""] * len(documents)
    for place, i in enumerate(order):
        splits[i] = _split_at((place + 0.5) / len(documents), entry.fractions)
    for i, line in enumerate(_source_lines(entry, entry.package, entry.similarities)):
        scores = [float(score) for score in line.split("\t")]
        for j in range(i + 1, len(documents)):
            if splits[i] == splits[j]:
                yield splits[i], _pair(documents[i], documents[j], scores[j], f"{i}-{j}")


def read_lee_news(entry: LeeNewsEntry) -> Iterator[tuple[str, Record]]:
    """Articles: the first sentence asks for the rest.

    Left out are articles that stand in the Lee similarity documents, or that repeat an earlier one.
    """
    seen = NearDuplicates()
    for document in _source_lines(entry, entry.package, entry.documents):
        seen.add(document)
    for number, line in enumerate(_source_lines(entry, entry.package, entry.background), start=1):
        article = " ".join(line.split())
        headline, *rest = _sentences(article)
        body = " ".join(rest)
        if len(headline.split()) < 5 or len(body.split()) < 20 or headline in body:
            continue
        if seen.add(article):
            split = split_of(normalise(article), entry.fractions)
            yield split, Record("ir", headline, (body,), id=f"lee-{number}")


def _sentences(text: str) -> list[str]:
    """Split where a sentence ends, not after initials and titles: "U.S. troops", "Mr. Smith"."""
    return re.split(
        r"(?<!\b[A-Z]\.)(?<!\b(?:Mr|Ms|Dr|St|Lt)\.)(?:(?<=[.!?])|(?<=[.!?][\"')]))\s+"
        r"(?=[\"'(]?[A-Z0-9])",
        text,
    )


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


# --- Docstrings -----------------------------------------------------------------------------------


def read_docstrings(entry: DocstringsEntry) -> list[tuple[str, Record]]:
    """Retrieval records from the docstrings of installed packages, read without importing them.

    Guarantees: queries are distinct, no passage serves two objects, no passage contains any query,
    no object repeats most of another's text, and a hard negative lies in its query's split.
    """
    kept: list[Documented] = []
    queries: set[str] = set()
    seen = NearDuplicates()
    for package, settings in entry.packages.items():
        left = settings.limit
        candidates = documented(
            _package_folder(entry, package),
            words=entry.words,
            private=settings.private,
            skip=settings.skip,
        )
        # First those with several passages, then by a hash (salted: the plain one is the split's),
        # so that a new object displaces few others.
        candidates.sort(key=lambda c: (len(c.passages) < 2, sha256_text("selection", c.name)))
        for candidate in candidates:
            query = normalise(candidate.query)
            if not left:
                break
            if query in queries or not seen.add(" ".join([query, *candidate.passages])):
                continue
            queries.add(query)
            kept.append(candidate)
            left -= 1
    _drop_ambiguous_passages(kept)
    kept = sorted((item for item in kept if item.passages), key=lambda item: item.name)
    splits = {item.name: split_of(item.name, entry.fractions) for item in kept}
    members: dict[tuple[str, str], list[Documented]] = defaultdict(list)
    for item in kept:
        members[item.module, splits[item.name]].append(item)
    records = []
    for item in kept:
        split = splits[item.name]
        records.append((split, _ir_record(item, members[item.module, split], entry.negatives)))
    return records


def _ir_record(item: Documented, members: list[Documented], most: int) -> Record:
    siblings = [member for member in members if member is not item]
    siblings.sort(key=lambda sibling: sha256_text(item.name, sibling.name))
    negatives = tuple(sibling.passages[0] for sibling in siblings[:most])
    return Record("ir", item.query, tuple(item.passages), negatives, id=item.name)


def _drop_ambiguous_passages(items: list[Documented]) -> None:
    """Drop passages that several objects share, and those in which somebody's query stands."""
    normal = {passage: normalise(passage) for item in items for passage in item.passages}
    times = Counter(normal[passage] for item in items for passage in item.passages)
    # A query can only stand where its first four words do.
    queries: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for item in items:
        query = normalise(item.query)
        queries[tuple(query.split()[:4])].append(query)

    def answers_itself(text: str) -> bool:
        words = text.split()
        starts = zip(*(words[start:] for start in range(4)), strict=False)
        return any(query in text for start in starts for query in queries.get(start, ()))

    for item in items:
        item.passages = [
            passage
            for passage in item.passages
            if times[normal[passage]] == 1 and not answers_itself(normal[passage])
        ]


# --- Public files ---------------------------------------------------------------------------------


Public = tuple[dict[str, list[Record]], Iterable[str]]
Find = Callable[[PublicFile], Path]


def find_file(file: PublicFile, root: Path | None, fetched: Path) -> Path:
    """A public file: of the data root, else of those fetched before, else fetched from its URL.

    Raises:
        MissingSourceError: It is in neither folder and has no URL, or that cannot be reached.
        ChecksumError: Its bytes are not those that the registry pins.
    """
    if root and (path := root / file.path).is_file():
        _check_bytes(path, file, "Take the file of the release that data/README.md names")
        return path
    path = fetched / file.path
    if not path.is_file():
        if not file.url:
            where = root or "a data root, for none is named"
            raise MissingSourceError(
                f"{file.path}: expected this file in the data root, found none in {where}. Set "
                "CODIEMB_DATA, or the preset's `data_root`, to a folder that has it; "
                "data/README.md says how it was made."
            )
        _fetch(file, path)
    _check_bytes(path, file, "Remove it, to have it fetched again")
    return path


def _check_bytes(path: Path, source: SourceFile, remedy: str) -> None:
    if (found := sha256_file(path)) != source.sha256:
        raise ChecksumError(
            f"{path}: expected sha256 {source.sha256}, found {found}. {remedy}; if the file has "
            "changed on purpose, look at it, then correct data/registry.yaml."
        )


def _fetch(file: PublicFile, path: Path) -> None:
    import pooch  # only here: whoever has the files needs no network

    try:
        pooch.retrieve(file.url, f"sha256:{file.sha256}", fname=path.name, path=path.parent)
    except OSError as error:  # those of requests are such
        raise MissingSourceError(
            f"{file.url}: expected a file to fetch, found: {error}. Without a connection, put it "
            f"into the data root as {file.path}, and name that folder by CODIEMB_DATA."
        ) from error
    except ValueError as error:  # other bytes, which pooch does not keep
        raise ChecksumError(f"{file.url}: expected sha256 {file.sha256}, found: {error}") from error


def read_rated_pairs(entry: RatedPairsEntry, find: Find) -> Public:
    """The official splits of a set of rated pairs."""
    options = {"columns": entry.columns, "scale": entry.scale}
    return {split: read_sts_table(find(file), **options) for split, file in entry.files.items()}, ()


def read_aligned_lines(entry: AlignedEntry, find: Find) -> Public:
    """Questions and their passages, line by line; the corpus is the passages of all splits."""
    splits = {
        split: read_aligned(find(files.queries), find(files.passages))
        for split, files in entry.files.items()
    }
    return cut_dev(splits, entry.dev), _passages(splits)


def read_beir_folder(entry: BeirEntry, find: Find) -> Public:
    """The judgements of a BEIR folder, and its whole corpus."""
    corpus, *_ = [find(file) for file in entry.files]  # all of them, each checked
    splits = read_beir(corpus.parent)
    return cut_dev(splits, entry.dev), read_beir_corpus(corpus.parent).values()


def read_questions(entry: QuestionsEntry, find: Find) -> Public:
    """Questions and answers; all of a group fall in one split, by the hash of the group's name.

    Hard negatives are first answers to other questions of the group, in the order of hashes. A
    question without a group is a group of its own. The corpus is the answers of all splits.
    """
    path = find(entry.file)
    question, _ = entry.columns
    groups = {row[question].strip(): normalise(row[entry.group]) for _, row in read_rows(path)}
    members: dict[str, list[Record]] = defaultdict(list)
    for record in read_pairs(path, columns=entry.columns):
        members[groups[record.query] or normalise(record.query)].append(record)
    splits: dict[str, list[Record]] = {split: [] for split in SPLITS}
    for group, records in members.items():
        splits[split_of(group, entry.fractions)] += [
            _with_siblings(record, records, entry.negatives) for record in records
        ]
    return splits, _passages(splits)


def _with_siblings(record: Record, members: list[Record], most: int) -> Record:
    own = set(map(normalise, record.positives))
    others = sorted(members, key=lambda member: sha256_text(record.query, member.query))
    answers = dict.fromkeys(m.positives[0] for m in others if m is not record)
    negatives = [text for text in answers if normalise(text) not in own]
    return replace(record, negatives=tuple(negatives[:most]))


def cut_dev(splits: Mapping[str, Sequence[Record]], share: float) -> dict[str, list[Record]]:
    """Take dev out of train, by the hash of a record's first passage: those of one stay together.

    A record that shares a passage with test stays in train, so that dev has none of test's.
    """
    test = set(map(normalise, _passages({"test": splits["test"]})))
    cut: dict[str, list[Record]] = {"train": [], "dev": [], "test": list(splits["test"])}
    for record in splits["train"]:
        passages = sorted(map(normalise, record.positives))
        place = split_of(passages[0], {"train": 1 - share, "dev": share})
        cut["train" if test.intersection(passages) else place].append(record)
    return cut


def _passages(splits: Mapping[str, Iterable[Record]]) -> Iterator[str]:
    return (text for split in splits for record in splits[split] for text in record.positives)


_PUBLIC_READERS: dict[type[Entry], Callable[..., Public]] = {
    RatedPairsEntry: read_rated_pairs,
    AlignedEntry: read_aligned_lines,
    BeirEntry: read_beir_folder,
    QuestionsEntry: read_questions,
}
_READERS: dict[type[Entry], Callable[..., Iterable[tuple[str, Record]]]] = {
    WordPairsEntry: read_word_pairs,
    LeeSimilarityEntry: read_lee_similarity,
    LeeNewsEntry: read_lee_news,
}
