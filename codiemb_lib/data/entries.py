"""The records behind an entry of the registry: a reader for each kind, and the cut into splits.

Where an entry has no official splits, the hash of an item's own text decides where it falls, so
that the splits stay as they are when other items come or go. What takes seconds to build is cached.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path

from codiemb_lib.core import normalise, sha256_file, sha256_text
from codiemb_lib.data import docstrings
from codiemb_lib.data.docstrings import Documented, documented
from codiemb_lib.data.formats import (
    SPLITS,
    read_aligned,
    read_beir,
    read_beir_corpus,
    read_hub,
    read_pairs,
    read_sts_table,
)
from codiemb_lib.data.records import Record, RecordError, read_jsonl, read_rows, write_jsonl
from codiemb_lib.data.registry import (
    AlignedEntry,
    BeirEntry,
    CutEntry,
    DocstringsEntry,
    Entry,
    HubEntry,
    LeeNewsEntry,
    LeeSimilarityEntry,
    PublicFile,
    QuestionsEntry,
    RatedPairsEntry,
    WordPairsEntry,
    find_file,
    package_folder,
    source_lines,
    version,
)

Contents = tuple[dict[str, list[Record]], Iterable[str]]  # splits, corpus
Find = Callable[[PublicFile], Path]


def read_entry(entry: Entry, root: Path | None, cache: Path) -> Contents:
    """The splits of an entry, and its corpus: passages beyond those of the records, or none.

    Args:
        entry: What the registry says of the data set.
        root: The data root, or None.
        cache: The folder for records that take seconds to build, and for files that were fetched.

    Raises:
        MissingSourceError, ChecksumError: A file is not there, or not the one that is pinned.
        RecordError: A split has no record.
    """
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
    versions = [version(entry, package.distribution) for package in entry.packages.values()]
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


# --- Readers of the files in gensim ---------------------------------------------------------------


def read_word_pairs(entry: WordPairsEntry) -> Iterator[tuple[str, Record]]:
    """Rated word pairs. A pair that stands twice, in either order, gets the mean of its ratings.

    The split hangs on the unordered pair alone, so two word sets never disagree about a pair.
    """
    ratings: dict[tuple[str, ...], list[float]] = defaultdict(list)
    pairs: dict[tuple[str, ...], tuple[str, str]] = {}
    for line in source_lines(entry, entry.package, entry.pairs):
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
    lines = source_lines(entry, entry.package, entry.documents)
    documents = [" ".join(line.split()) for line in lines]
    # Fifty are too few to leave the sizes to chance: in the order of their hashes, cut by share.
    order = sorted(range(len(documents)), key=lambda i: sha256_text(normalise(documents[i])))
    splits = [""] * len(documents)
    for place, i in enumerate(order):
        splits[i] = _split_at((place + 0.5) / len(documents), entry.fractions)
    for i, line in enumerate(source_lines(entry, entry.package, entry.similarities)):
        scores = [float(score) for score in line.split("\t")]
        for j in range(i + 1, len(documents)):
            if splits[i] == splits[j]:
                yield splits[i], _pair(documents[i], documents[j], scores[j], f"{i}-{j}")


def read_lee_news(entry: LeeNewsEntry) -> Iterator[tuple[str, Record]]:
    """Articles: the first sentence asks for the rest.

    Left out are articles that stand in the Lee similarity documents, or that repeat an earlier one.
    """
    seen = NearDuplicates()
    for document in source_lines(entry, entry.package, entry.documents):
        seen.add(document)
    for number, line in enumerate(source_lines(entry, entry.package, entry.background), start=1):
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
            package_folder(entry, package),
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


def read_rated_pairs(entry: RatedPairsEntry, find: Find) -> Contents:
    """The official splits of a set of rated pairs."""
    options = {"columns": entry.columns, "scale": entry.scale}
    return {split: read_sts_table(find(file), **options) for split, file in entry.files.items()}, ()


def read_aligned_lines(entry: AlignedEntry, find: Find) -> Contents:
    """Questions and their passages, line by line; the corpus is the passages of all splits."""
    splits = {
        split: read_aligned(find(files.queries), find(files.passages))
        for split, files in entry.files.items()
    }
    return cut_dev(splits, entry.dev), _passages(splits)


def read_beir_folder(entry: BeirEntry, find: Find) -> Contents:
    """The judgements of a BEIR folder, and its whole corpus."""
    corpus, *_ = [find(file) for file in entry.files]  # all of them, each checked
    splits = read_beir(corpus.parent)
    return cut_dev(splits, entry.dev), read_beir_corpus(corpus.parent).values()


def read_questions(entry: QuestionsEntry, find: Find) -> Contents:
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


_PUBLIC_READERS: dict[type[Entry], Callable[..., Contents]] = {
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
