"""The unified record (t, q, {d+}, {d-}, {y+}, {y-}), its validation, and JSON files of records."""

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import compress, zip_longest
from numbers import Integral, Real
from operator import itemgetter
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args

from codiemb_lib import core

T = TypeVar("T")
# Neither a blank nor of Unicode's categories Cc and Cf: NUL, zero-width spaces, marks of direction.
_SEEN = re.compile(
    r"[^\s\0-\x1f\x7f-\x9f\xad\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    r"\u202a-\u202e\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0]"
)
_REPEATED = "negatives left out, for they are positives of the same query"
_KEYS = {f"{of}_scores" for of in ("pos", "neg", "positive", "negative")} | {"query", "task_type"}
_KEYS |= {"pos", "neg", "positives", "negatives"}
_MERGED = "rows merged with an earlier one of the same query"
_UNSCORED = "lists of scores left out, for not all rows of their query have one"


class RecordError(core.CodiembError, ValueError):
    """A record, or a line of a file of records, that cannot be used."""


class SourceError(core.CodiembError, FileNotFoundError):
    """What a data set is read from is not there, or has other bytes than the registry says."""


@dataclass(frozen=True, slots=True)
class Record:
    """One training or evaluation example, of either task.

    An IR record is a query with m >= 1 positives and n >= 0 hard negatives. An STS record is a
    pair: the query, exactly one positive, and its gold score in [0, 1]. Scores of IR passages are
    optional and unbounded: some collections carry those of a teacher. Blanks around a text go. What
    has another type, size or range is refused.
    """

    task: core.Task
    query: str  # or the first text of the pair
    positives: tuple[str, ...]  # the relevant passages, or the second text of the pair alone
    negatives: tuple[str, ...] = ()  # hard ones, none of them a positive
    positive_scores: tuple[float, ...] = ()  # one a positive, or none at all
    negative_scores: tuple[float, ...] = ()
    dataset: str = ""  # a training step never mixes two of them
    id: str = ""  # within the data set
    same_id: str = ""  # the document of the query's id: see `ignore_identical_ids`

    def __post_init__(self) -> None:
        if self.task not in get_args(core.Task):
            refuse("task", "'ir' or 'sts'", self.task)
        if not is_text(self.query):
            refuse("query", "a string that is not empty", self.query)
        object.__setattr__(self, "query", self.query.strip())
        for name in ("dataset", "id", "same_id"):
            if not isinstance(getattr(self, name), str):
                refuse(name, "a string", getattr(self, name))
        for name in ("positives", "negatives"):
            texts = _tuple(self, name, is_text, "a list of non-empty strings")
            scores = _tuple(self, f"{name[:-1]}_scores", _is_score, "a list of finite numbers")
            if scores and len(scores) != len(texts):
                refuse(f"{name[:-1]}_scores", f"one score for each of {len(texts)} texts", scores)
            # Those of NumPy neither JSON nor pytrec_eval takes.
            plain = tuple(int(s) if isinstance(s, Integral) else float(s) for s in scores)
            object.__setattr__(self, f"{name[:-1]}_scores", plain)
        if not self.positives:
            refuse("positives", "a list of non-empty strings, not empty", [])
        if both := set(self.positives) & set(self.negatives):
            refuse("negatives", "texts that are no positives of the same record", both.pop())
        if self.task == "sts":
            if len(self.positives) != 1 or self.negatives:
                found = f"{len(self.positives)} positives and {len(self.negatives)} negatives"
                refuse("positives", "exactly one positive, no negatives (STS)", found)
            if len(self.positive_scores) != 1 or not 0 <= self.positive_scores[0] <= 1:
                expected = "exactly one score in [0, 1] (STS)"
                refuse("positive_scores", expected, list(self.positive_scores))

    @property
    def score(self) -> float:
        """The gold similarity of an STS pair, in [0, 1]; no other record has one."""
        if self.task != "sts":
            refuse("task", "'sts', for only a pair has a gold score", self.task)
        return self.positive_scores[0]


def refuse(field: str, expected: str, found: Any, remedy: str = "Correct the field") -> NoReturn:
    """Raise the RecordError of a field; `convert_rows` adds the place."""
    raise RecordError(f"field {field!r}: expected {expected}, found {found!r:.120}. {remedy}.")


def is_text(value: Any) -> bool:
    """Whether it is a string that says something, and that a file takes."""
    if not isinstance(value, str) or not stripped(value):
        return False
    # Half a surrogate pair passes JSON, but neither a tokeniser nor a file takes it.
    return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)


def stripped(text: str) -> str:
    """The text without blanks around it; empty if no character can be seen, as of NUL or U+200B."""
    return text.strip() if _SEEN.search(text) else ""


def is_number(value: Any) -> bool:
    """Whether it is a finite number, or text that says one; 1_000 is one for Python alone."""
    if isinstance(value, bool) or (isinstance(value, str) and "_" in value):
        return False
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError):  # a whole number may be beyond any float
        return False


def _is_score(value: Any) -> bool:
    return isinstance(value, Real) and is_number(value)


def _tuple(record: Record, field: str, valid: Callable[[Any], bool], expected: str) -> tuple:
    values = getattr(record, field)
    if not isinstance(values, (list, tuple)) or not all(map(valid, values)):
        refuse(field, expected, values)
    values = tuple(value.strip() if isinstance(value, str) else value for value in values)
    object.__setattr__(record, field, values)
    return values


def read_jsonl(path: str | Path, *, task: core.Task | None = None) -> list[Record]:
    """Read JSON lines, or one JSON list, of three forms, told apart by the keys of each row.

    - `task`: the unified record, whose fields are all checked.
    - `task_type`, `positives`, `negatives`, `positive_scores`, `negative_scores`: CoDiEmb's own
      (`training/CoDiEmb` of Youtu-Embedding). Each text is a triple [instruction of the task,
      instruction of the example, text]. As there, the latter two are joined; the first belongs to
      the data set, as the `query_prompt` of a preset.
    - `pos`, `neg`, `pos_scores`, `neg_scores`: FlagEmbedding's. Its rows name no task; `task` does.

    A key whose value is null counts as absent. IR rows of one query become one record (`collect`).
    An STS row becomes a pair for each of its texts, positive or negative, with the text's score;
    without scores it is refused.
    """
    counts: Counter[str] = Counter()

    def convert(row: dict[str, Any]) -> list[Record]:
        row = {key: value for key, value in row.items() if value is not None}
        if "task" in row:
            if not {"query", "positives"} <= row.keys() <= set(Record.__slots__):
                expected = f"{', '.join(Record.__slots__)}, the first three at least"
                raise RecordError(f"expected the keys {expected}, found {', '.join(row)}.")
            return [Record(**row)]
        if not row.keys() & {"positives", "pos"}:
            remedy = f"Name columns of a table: codiemb data prepare {path} FOLDER --columns A B"
            refuse("positives", "the key 'positives' or 'pos'", sorted(row), remedy)
        row_task = row.get("task_type", task)
        if row_task is None:
            remedy = f"Name the task: codiemb data prepare {path} FOLDER --task ir"
            refuse("task_type", "'ir' or 'sts'", None, remedy)
        for key in row.keys() - _KEYS:
            counts[f"rows whose key {key!r} is passed over"] += 1
        return scored_texts(row, row_task, counts)

    return collect(path, read_rows(path), convert, counts)


def scored_texts(row: dict[str, Any], task: core.Task, counts: Counter[str]) -> list[Record]:
    """The records of a row of the authors' code or of FlagEmbedding."""
    query = _join_instruction("query", row.get("query"))
    positives, positive_scores = _side(row, "positive")
    negatives, negative_scores = _side(row, "negative")
    if task == "sts":
        texts, scores = positives + negatives, positive_scores + negative_scores
        if len(scores) != len(texts):
            expected = f"a score for each of {len(texts)} texts, unless read as task 'ir'"
            refuse("positive_scores", expected, scores)
        pairs = zip(texts, scores, strict=True)
        return [Record("sts", query, (text,), positive_scores=(score,)) for text, score in pairs]
    kept = [text not in positives for text in negatives]
    counts[_REPEATED] += kept.count(False)
    negatives, negative_scores = ([*compress(s, kept)] for s in (negatives, negative_scores))
    return [Record(task, query, positives, negatives, positive_scores, negative_scores)]


def _side(row: dict[str, Any], name: str) -> tuple[list[str], list[Any]]:
    """The texts of one side of a row, and their scores or none."""
    texts = row.get(f"{name}s", row.get(name[:3])) or []
    if not isinstance(texts, list):
        refuse(f"{name}s", "a list of texts", texts)
    scores = row.get(f"{name}_scores", row.get(f"{name[:3]}_scores")) or []
    if not isinstance(scores, list) or (scores and len(scores) != len(texts)):
        refuse(f"{name}_scores", f"a list of {len(texts)} scores, or none", scores)
    return [_join_instruction(f"{name}s", text) for text in texts], scores


def _join_instruction(field: str, text: Any) -> str:
    if isinstance(text, str):
        return text.strip()
    if isinstance(text, list) and len(text) == 3 and all(isinstance(part, str) for part in text):
        return (text[1] + text[2]).strip()
    refuse(field, "a string, or [task instruction, example instruction, text]", text)


def write_jsonl(path: str | Path, records: Iterable[Record]) -> None:
    """Write records, at least one, so that `read_jsonl` gives them back."""
    if not (text := "".join(f"{to_json(record)}\n" for record in records)):
        raise RecordError(f"{path}: expected at least one record to write, found none.")
    core.write_text(path, text)


def to_json(record: Record, *, named: bool = True) -> str:
    """The record's line in a JSONL file: fields in fixed order, empty ones left out.

    Unless `named`, the name of its data set is, too.
    """
    fields = [field for field in Record.__slots__ if named or field != "dataset"]
    row = {field: value for field in fields if (value := getattr(record, field))}
    return json.dumps(row, ensure_ascii=False)


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


def collect(
    source: str | Path,
    rows: Iterable[tuple[int, Any]],
    convert: Callable[[Any], list[Record]],
    counts: Counter[str],
    *,
    join: bool = True,
) -> list[Record]:
    """The records of rows, at least one in all; what became of the others is said.

    Here is decided what one query is: with `join`, all IR rows of the same text, blanks around it
    aside, whatever they are called. They become one record at the place of the first: its id, all
    positives, and the negatives that are no positives. A text that comes again has its best score.
    """
    records = [record for _, found in convert_rows(source, rows, convert) for record in found]
    if join:
        queries: dict[Any, list[Record]] = defaultdict(list)
        for place, record in enumerate(records):
            queries[record.query if record.task == "ir" else place].append(record)
        counts[_MERGED] += len(records) - len(queries)
        records = [_joined(of, counts) if len(of) > 1 else of[0] for of in queries.values()]
    for what, n in counts.items():
        if n:
            core.say_once(f"{source}: {n} {what}")
    if not records:
        raise RecordError(f"{source}: expected at least one record, found none.")
    return records


def _joined(members: Sequence[Record], counts: Counter[str]) -> Record:
    fields: dict[str, Any] = {"positives": ()}
    for side in ("positive", "negative"):
        given = [(getattr(m, f"{side}s"), getattr(m, f"{side}_scores")) for m in members]
        scored = all(len(texts) == len(scores) for texts, scores in given)
        counts[_UNSCORED] += not scored and any(scores for _, scores in given)
        pairs = [pair for ts, ss in given for pair in zip_longest(ts, ss if scored else ())]
        texts = dict.fromkeys(text for text, _ in pairs if text not in fields["positives"])
        counts[_REPEATED] += len({text for text, _ in pairs}) - len(texts)
        best = dict(sorted(pairs, key=itemgetter(1))) if scored else {}  # the last one stays
        fields |= {f"{side}s": tuple(texts), f"{side}_scores": (*map(best.get, texts),) * scored}
    fields["same_id"] = next(filter(None, (m.same_id for m in members)), "")
    return replace(members[0], **fields)


def say_grades(source: str, records: Sequence[Record]) -> bool:
    """Whether scores of positives are grades, whole numbers from 1; if not, says what counts."""
    scores = [score for r in records if r.task == "ir" for score in r.positive_scores]
    graded = all(score >= 1 and float(score).is_integer() for score in scores)
    if not graded:
        what = "scores of positives are not all whole numbers from 1: in scoring each has grade 1"
        core.say_once(f"{source}: {what}")
    return graded


def answers_of(records: Iterable[Record]) -> dict[str, set[str]]:
    """The positives of each query, over all records, by `normalise`: none is a negative of it."""
    known: dict[str, set[str]] = defaultdict(set)
    for record in records:
        known[core.normalise(record.query)].update(map(core.normalise, record.positives))
    return known


FORMS = dict.fromkeys((".jsonl", ".ndjson", ".json"), "JSON") | {".parquet": "Parquet"}
FORMS |= dict.fromkeys((".csv", ".tsv", ".txt"), "table")


def form_of(path: str | Path) -> str:
    """What a file holds by its name, packed or not: "JSON", "Parquet" or a "table"."""
    name = Path(path).name.lower()
    suffix = Path(Path(name).stem if Path(name).suffix in core.PACKED else name).suffix
    if suffix not in FORMS:
        raise RecordError(
            f"{path}: expected a name in {', '.join(FORMS)}, behind it perhaps .gz or .bz2, found "
            f"{suffix!r}. Export a workbook as .csv, unpack what is packed otherwise."
        )
    return FORMS[suffix]


def read_rows(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a file of JSON lines, of one JSON list, or of Parquet, with 1-based places."""
    if form_of(path) == "Parquet":
        values = enumerate(_parquet(path), start=1)
    elif (text := core.read_text(path, RecordError)).lstrip().startswith("["):
        values = enumerate(core.parse_json(text, path, error=RecordError), start=1)
    else:  # split at line feeds alone: JSON strings may hold the other separators that Python knows
        lines = ((n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip())
        values = ((n, core.parse_json(line, path, n, RecordError)) for n, line in lines)
    for number, row in values:
        if not isinstance(row, dict):
            raise RecordError(f"{path}:{number}: expected a JSON object, found {row!r:.120}.")
        yield number, row


def _parquet(path: str | Path) -> list[dict[str, Any]]:
    try:
        from pyarrow import parquet

        return parquet.read_table(path, partitioning=None).to_pylist()
    except ImportError as error:
        raise SourceError(f"{path}: expected a package: pip install pyarrow") from error
    except (OSError, ValueError) as error:
        raise RecordError(f"{path}: expected Parquet, found: {error}.") from error
