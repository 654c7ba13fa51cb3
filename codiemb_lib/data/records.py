"""The unified record (t, q, {d+}, {d-}, {y+}, {y-}), its validation and its JSONL form."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args

from codiemb_lib.core import CodiembError, Task, atomic_path

T = TypeVar("T")


class RecordError(CodiembError, ValueError):
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
            refuse("task", "'ir' or 'sts'", self.task)
        if not is_text(self.query):
            refuse("query", "a string that is not empty", self.query)
        for name in ("dataset", "id"):
            if not isinstance(getattr(self, name), str):
                refuse(name, "a string", getattr(self, name))
        for name in ("positives", "negatives"):
            texts = _tuple(self, name, is_text, "a {}list of non-empty strings")
            scores = _tuple(self, f"{name[:-1]}_scores", _is_score, "a list of finite numbers")
            if scores and len(scores) != len(texts):
                refuse(f"{name[:-1]}_scores", f"one score for each of {len(texts)} texts", scores)
            if not all(type(score) in (int, float) for score in scores):
                # Those of NumPy, which neither JSON nor pytrec_eval takes.
                plain = (int(s) if isinstance(s, Integral) else float(s) for s in scores)
                object.__setattr__(self, f"{name[:-1]}_scores", tuple(plain))
        if not self.positives:
            refuse("positives", "a non-empty list of non-empty strings", [])
        if both := set(self.positives) & set(self.negatives):
            refuse("negatives", "texts that are no positives of the same record", both.pop())
        if self.task == "sts":
            if len(self.positives) != 1 or self.negatives:
                found = f"{len(self.positives)} positives and {len(self.negatives)} negatives"
                remedy = "Write every scored pair as a record of its own"
                refuse("positives", "exactly one positive, no negatives (STS)", found, remedy)
            if len(self.positive_scores) != 1 or not 0 <= self.positive_scores[0] <= 1:
                remedy = "Divide the ratings by the top of their scale"
                expected = "exactly one score in [0, 1] (STS)"
                refuse("positive_scores", expected, list(self.positive_scores), remedy)

    @property
    def score(self) -> float:
        """The gold similarity of an STS pair, in [0, 1].

        Raises:
            RecordError: The record is no STS pair.
        """
        if self.task != "sts":
            refuse("task", "'sts', for only a pair has a gold score", self.task)
        return self.positive_scores[0]


def refuse(field: str, expected: str, found: Any, remedy: str = "Correct the field") -> NoReturn:
    """Raise the RecordError of a field; `convert_rows` adds the place."""
    raise RecordError(f"field {field!r}: expected {expected}, found {found!r:.120}. {remedy}.")


def is_text(value: Any) -> bool:
    """Whether it is a string that says something, and that a file takes."""
    if not isinstance(value, str) or not value.strip():
        return False
    # Half a surrogate pair passes JSON, but neither a tokeniser nor a file takes it.
    return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)


def _is_score(value: Any) -> bool:
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float reaches
        return False


def _tuple(record: Record, field: str, valid: Callable[[Any], bool], expected: str) -> tuple:
    values = getattr(record, field)
    if not isinstance(values, (list, tuple)) or not all(map(valid, values)):
        refuse(field, expected.format("non-empty " if field == "positives" else ""), values)
    if isinstance(values, list):
        values = tuple(values)
        object.__setattr__(record, field, values)
    return values


_FIELDS = tuple(Record.__slots__)


def read_jsonl(path: str | Path) -> list[Record]:
    """Read a file with one record a line, as JSON objects whose keys are the record's fields.

    `task`, `query` and `positives` (for STS `positive_scores` too) are required. Blank lines count
    as nothing. A file whose name ends in `.gz` is unpacked.

    Raises:
        RecordError: A line is no such record, or the file holds none; the message names the file,
            the line, the field, what was expected and what was found.
    """
    return [record for _, record in convert_rows(path, read_rows(path), from_row)]


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
        content = ("\n".join(lines) + "\n").encode("utf-8")
        if Path(path).suffix == ".gz":
            content = gzip.compress(content, mtime=0)  # the same records give the same bytes
        temporary.write_bytes(content)


def to_json(record: Record) -> str:
    """The record's line in a JSONL file: fields in fixed order, empty ones left out."""
    row = {field: value for field in _FIELDS if (value := getattr(record, field))}
    return json.dumps(row, ensure_ascii=False)


def from_row(row: dict[str, Any]) -> Record:
    """The record of a JSON object whose keys are its fields.

    Raises:
        RecordError: A key is missing or unknown, or a field has another type, size or range.
    """
    if unknown := row.keys() - set(_FIELDS):
        refuse(min(unknown), f"one of the keys {', '.join(_FIELDS)}", min(unknown))
    for field in ("task", "query", "positives"):
        if field not in row:
            refuse(field, "this key in every line", "none", "Add the field")
    return Record(**row)


# --- Files of rows, of any form -------------------------------------------------------------------


def convert_rows(
    source: str | Path, rows: Iterable[tuple[int, Any]], convert: Callable[[Any], T]
) -> Iterator[tuple[int, T]]:
    """Convert rows one by one; the error of a row gets its place, `source:line: `, in front."""
    for number, row in rows:
        try:
            converted = convert(row)
        except RecordError as error:
            raise RecordError(f"{source}:{number}: {error}") from error
        yield number, converted


def read_rows(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file of JSON lines, or of one JSON list, with their 1-based places.

    Raises:
        RecordError: The file cannot be read, is no UTF-8 or no JSON, or has no object.
    """
    number = 0
    for number, row in _json_values(path):
        if not isinstance(row, dict):
            raise RecordError(f"{path}:{number}: expected a JSON object, found {row!r:.120}.")
        yield number, row
    if not number:
        raise RecordError(f"{path}: expected at least one record, found an empty file.")


def _json_values(path: str | Path) -> Iterator[tuple[int, Any]]:
    text = read_text(path)
    if text.lstrip().startswith("["):
        yield from enumerate(_json(path, 1, text), start=1)
        return
    # Split at line feeds alone: JSON strings may hold the other separators that Python knows.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, _json(path, number, line)


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file, unpacked if its name ends in `.gz`.

    Raises:
        RecordError: The file cannot be read, or is no UTF-8.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        found = getattr(error, "strerror", None) or error
        raise RecordError(f"{path}: expected a file of records, found: {found}.") from error
    data = data.removeprefix(b"\xef\xbb\xbf")  # the mark that some editors set before UTF-8
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        position = error.start - data.rfind(b"\n", 0, error.start) - 1
        found = f"byte {data[error.start]:#04x} at position {position}"
        raise RecordError(f"{path}:{number}: expected UTF-8, found {found}. Convert it.") from error


def _json(path: str | Path, number: int, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"{error.msg} (column {error.colno})"
        raise RecordError(
            f"{path}:{number + error.lineno - 1}: expected JSON, found: {place}. "
            "Write one JSON object a line."
        ) from error
    except ValueError as error:  # a number of more digits than Python converts
        raise RecordError(
            f"{path}:{number}: expected JSON, found: {error}. Correct the number."
        ) from error
