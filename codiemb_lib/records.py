"""The unified record (t, q, {d+}, {d-}, {y+}, {y-}), its validation and its JSONL form."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from codiemb_lib.files import atomic_path

Task = Literal["ir", "sts"]


class RecordError(ValueError):
    """A record, or a line of a file of records, that cannot be used."""


@dataclass(frozen=True, slots=True)
class Record:
    """One training or evaluation example, of either task.

    An IR record is a query with m >= 1 positives and n >= 0 hard negatives. An STS record is a
    pair: the query, exactly one positive, and its gold score in [0, 1]. Scores of IR passages are
    optional and unbounded: some collections carry those of a teacher.

    Attributes:
        task: "ir" or "sts".
        query: The query, or the first text of the pair.
        positives: The relevant passages, or the second text of the pair alone.
        negatives: Hard negatives, none of them a positive; empty in an STS record.
        positive_scores: One score a positive, or none at all.
        negative_scores: One score a negative, or none at all.
        dataset: The data set's name; a training step never mixes two of them.
        id: The record's name within its data set.

    Raises:
        RecordError: A field has another type, size or range.
    """

    task: Task
    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...] = ()
    positive_scores: tuple[float, ...] = ()
    negative_scores: tuple[float, ...] = ()
    dataset: str = ""
    id: str = ""

    def __post_init__(self) -> None:
        if self.task not in get_args(Task):
            _refuse("task", "'ir' or 'sts'", self.task)
        if not _is_text(self.query):
            _refuse("query", "a string that is not empty", self.query)
        for name in ("dataset", "id"):
            if not isinstance(getattr(self, name), str):
                _refuse(name, "a string", getattr(self, name))
        for name in ("positives", "negatives"):
            texts = _tuple(self, name, _is_text, "a {}list of non-empty strings")
            scores = _tuple(self, f"{name[:-1]}_scores", _is_score, "a list of finite numbers")
            if scores and len(scores) != len(texts):
                _refuse(f"{name[:-1]}_scores", f"one score for each of {len(texts)} texts", scores)
        if not self.positives:
            _refuse("positives", "a non-empty list of non-empty strings", [])
        if both := set(self.positives) & set(self.negatives):
            _refuse("negatives", "texts that are no positives of the same record", both.pop())
        if self.task == "sts":
            if len(self.positives) != 1 or self.negatives:
                found = f"{len(self.positives)} positives and {len(self.negatives)} negatives"
                remedy = "Write every scored pair as a record of its own"
                _refuse("positives", "exactly one positive, no negatives (STS)", found, remedy)
            if len(self.positive_scores) != 1 or not 0 <= self.positive_scores[0] <= 1:
                remedy = "Divide the ratings by the top of their scale"
                expected = "exactly one score in [0, 1] (STS)"
                _refuse("positive_scores", expected, list(self.positive_scores), remedy)

    @property
    def score(self) -> float:
        """The gold similarity of an STS pair, in [0, 1].

        Raises:
            RecordError: The record is no STS pair.
        """
        if self.task != "sts":
            _refuse("task", "'sts', for only a pair has a gold score", self.task)
        return self.positive_scores[0]


def _refuse(field: str, expected: str, found: Any, remedy: str = "Correct the field") -> None:
    raise RecordError(f"field {field!r}: expected {expected}, found {found!r:.120}. {remedy}.")


def _is_text(value: Any) -> bool:
    if not isinstance(value, str) or not value.strip():
        return False
    # Half a surrogate pair passes JSON, but neither a tokeniser nor a file takes it.
    return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)


def _is_score(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _tuple(record: Record, field: str, valid: Callable[[Any], bool], expected: str) -> tuple:
    values = getattr(record, field)
    if not isinstance(values, (list, tuple)) or not all(map(valid, values)):
        _refuse(field, expected.format("non-empty " if field == "positives" else ""), values)
    if isinstance(values, list):
        values = tuple(values)
        object.__setattr__(record, field, values)
    return values


_FIELDS = tuple(Record.__slots__)


def read_jsonl(path: str | Path) -> list[Record]:
    """Read a file with one record a line, as JSON objects whose keys are the record's fields.

    `task`, `query` and `positives` (for STS `positive_scores` too) are required. Blank lines count
    as nothing.

    Raises:
        RecordError: A line is no such record, or the file holds none; the message names the file,
            the line, the field, what was expected and what was found.
    """
    return _read(path, lambda row: [_from_row(row)])


def write_jsonl(path: str | Path, records: Iterable[Record]) -> None:
    """Write records so that `read_jsonl` gives them back; empty fields are left out.

    Raises:
        RecordError: There is no record to write.
        UnwritableError: The folder cannot be written.
    """
    lines = [to_json(record) for record in records]
    if not lines:
        raise RecordError(f"{path}: expected at least one record to write, found none.")
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


def to_json(record: Record) -> str:
    """The record's line in a JSONL file: fields in fixed order, empty ones left out."""
    row = {field: value for field in _FIELDS if (value := getattr(record, field))}
    return json.dumps(row, ensure_ascii=False)


def read_authors_json(
    path: str | Path, *, task: Task | None = None, dataset: str = ""
) -> list[Record]:
    """Read the training data of the public CoDiEmb code, or of FlagEmbedding.

    CoDiEmb (`training/CoDiEmb` of Youtu-Embedding) keeps one JSON object a line with `task_type`,
    `query`, `positives`, `negatives`, `positive_scores`, `negative_scores`. Each of its texts is a
    triple [instruction of the task, instruction of the example, text]. As there, the latter two
    are joined; the first is dropped, for it belongs to the data set and is the `query_prompt` of a
    preset. FlagEmbedding writes `query`, `pos`, `neg`, `pos_scores`, `neg_scores`, with plain
    strings. Both are read, also mixed, as JSONL or as one JSON list; other keys are ignored. An
    STS row with several scored positives becomes as many pairs.

    Args:
        path: The file.
        task: The task of rows that do not name one, as in FlagEmbedding.
        dataset: The name that the records carry.

    Raises:
        RecordError: As `read_jsonl`; the line of a JSON list is the item's place in it.
    """

    def convert(row: dict[str, Any]) -> list[Record]:
        row_task = row.get("task_type", task)
        if row_task is None:
            remedy = "Name the task of the file: read_authors_json(path, task='ir')"
            _refuse("task_type", "'ir' or 'sts'", None, remedy)
        fields: dict[str, Any] = {"task": row_task, "dataset": dataset}
        fields["query"] = _join_instruction("query", row.get("query"))
        for name, short in (("positive", "pos"), ("negative", "neg")):
            texts = row.get(f"{name}s", row.get(short)) or []
            if not isinstance(texts, list):
                _refuse(f"{name}s", "a list of texts", texts)
            fields[f"{name}s"] = [_join_instruction(f"{name}s", text) for text in texts]
            fields[f"{name}_scores"] = row.get(f"{name}_scores", row.get(f"{short}_scores")) or []
        pairs = list(zip(fields["positives"], fields["positive_scores"], strict=False))
        if row_task == "sts" and len(pairs) == len(fields["positives"]) > 1:
            return [
                Record(**fields | {"positives": [text], "positive_scores": [score]})
                for text, score in pairs
            ]
        return [Record(**fields)]

    return _read(path, convert)


def _join_instruction(field: str, text: Any) -> Any:
    if isinstance(text, str):
        return text
    if isinstance(text, list) and len(text) == 3 and all(isinstance(part, str) for part in text):
        return text[1] + text[2]
    expected = "a string, or [task instruction, example instruction, text]"
    return _refuse(field, expected, text)


def _from_row(row: dict[str, Any]) -> Record:
    if unknown := row.keys() - set(_FIELDS):
        _refuse(min(unknown), f"one of the keys {', '.join(_FIELDS)}", min(unknown))
    for field in ("task", "query", "positives"):
        if field not in row:
            _refuse(field, "this key in every line", "none", "Add the field")
    return Record(**row)


def _read(path: str | Path, convert: Callable[[dict[str, Any]], list[Record]]) -> list[Record]:
    path = Path(path)
    records: list[Record] = []
    for number, row in _rows(path):
        try:
            if not isinstance(row, dict):
                raise RecordError(f"expected a JSON object, found {row!r:.120}.")
            records += convert(row)
        except RecordError as error:
            raise RecordError(f"{path}:{number}: {error}") from error
    if not records:
        raise RecordError(f"{path}: expected at least one record, found an empty file.")
    return records


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    """The JSON values of a file of lines, or of one list, with their 1-based places."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RecordError(
            f"{path}: expected a file of records, found: {error.strerror}."
        ) from error
    data = data.removeprefix(b"\xef\xbb\xbf")  # the mark that some editors set before UTF-8
    if data.lstrip().startswith(b"["):
        yield from enumerate(_json(path, 1, data), start=1)
        return
    # Split at line feeds alone: JSON strings may hold the other separators that Python knows.
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line.strip():
            yield number, _json(path, number, line)


def _json(path: Path, number: int, data: bytes) -> Any:
    try:
        return json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        found = f"byte {data[error.start]:#04x} at position {error.start}"
        raise RecordError(f"{path}:{number}: expected UTF-8, found {found}. Convert it.") from error
    except json.JSONDecodeError as error:
        place = f"{error.msg} (column {error.colno})"
        raise RecordError(
            f"{path}:{number + error.lineno - 1}: expected JSON, found: {place}. "
            "Write one JSON object a line."
        ) from error
