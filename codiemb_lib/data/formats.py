"""Records from files as users have them: JSON of three forms, tables, BEIR folders, the Hub.

What is left out of a file, and what is merged, is logged; `codiemb data prepare` shows it.
"""

from __future__ import annotations

import csv
import io
import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from codiemb_lib.core import CodiembError, Task
from codiemb_lib.data.records import (
    Record,
    RecordError,
    convert_rows,
    from_row,
    is_text,
    read_rows,
    read_text,
    refuse,
)

logger = logging.getLogger(__name__)

SPLITS = ("train", "dev", "test")
_STEMS = {"train": ("train",), "dev": ("dev", "validation"), "test": ("test",)}
_JSON = (".jsonl", ".json")
_TABLES = (".csv", ".tsv")
_NO_TEXT = "rows left out, for they lack a text"
_REPEATED = "negatives left out, for they are positives of the same query"
_MERGED = "rows merged with an earlier one of the same query"

Scale = tuple[float, float]
Columns = Sequence[str | int]


class MissingSourceError(CodiembError, FileNotFoundError):
    """A package or a file that a data set is read from is not there."""


def read_path(
    path: str | Path,
    *,
    task: Task | None = None,
    columns: Columns = (),
    scale: Scale | None = None,
    delimiter: str | None = None,
) -> dict[str, list[Record]]:
    """The splits of a file, a folder of `{train,dev,test}.{jsonl,json,csv,tsv}`, or a BEIR folder.

    Beside the files of splits, a folder may have a corpus, which `read_beir_corpus` reads. Files
    may end in `.gz`, and `validation` counts as `dev`. A lone file is the split that it is
    named after, else `train`. With `columns` or `scale`, files are read as tables.

    Args:
        path: The file or folder.
        task: What the records are for, where the file does not say it.
        columns: Of a table: two texts and their score (STS; by default the first three columns), or
            query, positive and, optionally, negative (IR).
        scale: The lowest and highest score of an STS table.
        delimiter: Of CSV, as in `read_sts_table`.

    Raises:
        MissingSourceError: There is no such file, or nothing known in the folder.
        RecordError: A line is no record, or the file does not say what the arguments should.
    """
    path = Path(path)
    form = {"task": task, "columns": columns, "scale": scale, "delimiter": delimiter}
    if path.is_file():
        stem = path.name.split(".")[0]
        split = next((split for split, stems in _STEMS.items() if stem in stems), "train")
        return {split: _read_file(path, **form)}
    if is_beir(path):
        if columns or scale or delimiter is not None or task == "sts":
            raise RecordError(
                f"{path}: expected no columns, scale, delimiter or STS task for a BEIR folder, "
                f"found {form}."
            )
        return read_beir(path)
    files = {split: find_part(path, split) for split in SPLITS}
    if not any(files.values()):
        found = ", ".join(sorted(file.name for file in path.glob("*"))[:9]) or "nothing"
        raise MissingSourceError(
            f"{path}: expected a file, or a folder of train, dev or test as .jsonl, .json, .csv or "
            f".tsv, or a BEIR folder, found {found}."
        )
    return {split: _read_file(file, **form) for split, file in files.items() if file}


def find_part(folder: str | Path, part: str) -> Path | None:
    """The file that a folder is read from for a split or for "corpus", if there is one.

    Raises:
        RecordError: There are several.
    """
    forms = _JSON if part == "corpus" else _JSON + _TABLES
    return _find(Path(folder), _STEMS.get(part, (part,)), forms)


def _find(folder: Path, stems: Iterable[str], suffixes: Iterable[str]) -> Path | None:
    """The one file of these names in the folder, packed or not."""
    names = (f"{stem}{suffix}{gz}" for stem in stems for suffix in suffixes for gz in ("", ".gz"))
    found = [folder / name for name in names if (folder / name).is_file()]
    if len(found) > 1:
        raise RecordError(
            f"{folder}: expected one file, found {found[0].name} and {found[1].name}. Remove one."
        )
    return found[0] if found else None


def _read_file(
    path: Path, task: Task | None, columns: Columns, scale: Scale | None, delimiter: str | None
) -> list[Record]:
    if _is_json(path) and delimiter is not None:
        raise RecordError(f"{path}: expected no delimiter for JSON, found {delimiter!r}. Drop it.")
    if _is_json(path) and not columns and scale is None:
        return read_records(path, task=task)
    task = task or ("sts" if scale else None)
    if task == "sts" and scale:
        columns = columns or (0, 1, 2)
        return read_sts_table(path, columns=columns, scale=scale, delimiter=delimiter)
    if task == "ir" and columns and not scale:
        return read_pairs(path, columns=columns, delimiter=delimiter)
    command = f"codiemb data prepare {path} FOLDER"
    raise RecordError(
        f"{path}: expected to be told what the columns of this table are, found task {task}, "
        f"columns {list(columns)}, scale {scale}. Do: {command} --task sts --columns A B SCORE "
        f"--scale LOW HIGH, or: {command} --task ir --columns QUERY POSITIVE."
    )


def _is_json(path: Path) -> bool:
    return path.name.removesuffix(".gz").endswith(_JSON)


def _say(source: str | Path, counts: Counter[str]) -> None:
    for what, n in counts.items():
        if n:
            logger.info("%s: %d %s", source, n, what)


# --- JSON -----------------------------------------------------------------------------------------


def read_records(path: str | Path, *, task: Task | None = None, dataset: str = "") -> list[Record]:
    """Read JSON lines, or one JSON list, of the unified, the authors' or FlagEmbedding's form.

    Each row is told apart by its keys: `task` is the unified record's, which is read as strictly as
    by `read_jsonl`. The other two:

    - CoDiEmb (`training/CoDiEmb` of Youtu-Embedding) has `task_type`, `query`, `positives`,
      `negatives`, `positive_scores`, `negative_scores`. Each of its texts is a triple [instruction
      of the task, instruction of the example, text]. As there, the latter two are joined; the first
      is dropped, for it belongs to the data set and is the `query_prompt` of a preset.
    - FlagEmbedding has `query`, `pos`, `neg`, `pos_scores`, `neg_scores`, with plain strings.

    Their other keys are ignored. A negative that is also a positive of its row is left out. An STS
    row becomes a pair for each of its texts, positive or negative, with the text's score; a row
    without scores is no STS row, whatever its data set is called: FlagEmbedding's `sts.jsonl` is
    such, and is read as IR.

    Args:
        path: The file, which may end in `.gz`.
        task: The task of rows that do not name one, as in FlagEmbedding.
        dataset: The name that the records carry.

    Raises:
        RecordError: A line is no such row, or the file holds none; the line of a JSON list is the
            item's place in it.
    """
    counts: Counter[str] = Counter()

    def convert(row: dict[str, Any]) -> list[Record]:
        if "task" in row:
            return [from_row(row | ({"dataset": dataset} if dataset else {}))]
        if not row.keys() & {"positives", "pos"}:
            remedy = f"If it is a table, name its columns: codiemb data prepare {path} FOLDER "
            remedy += "--task ir --columns QUERY POSITIVE"
            refuse("positives", "the key 'positives' or 'pos'", sorted(row), remedy)
        row_task = row.get("task_type", task)
        if row_task is None:
            remedy = f"Name the task: codiemb data prepare {path} FOLDER --task ir"
            refuse("task_type", "'ir' or 'sts'", None, remedy + ", or task='ir' in Python")
        return _scored_texts(row, row_task, dataset, counts)

    rows = convert_rows(path, read_rows(path), convert)
    records = [record for _, converted in rows for record in converted]
    _say(path, counts)
    return records


def _scored_texts(
    row: dict[str, Any], task: Task, dataset: str, counts: Counter[str]
) -> list[Record]:
    """The records of a row of the authors' code or of FlagEmbedding."""
    query = _join_instruction("query", row.get("query"))
    sides = []
    for name in ("positive", "negative"):
        texts = row.get(f"{name}s", row.get(name[:3])) or []
        if not isinstance(texts, list):
            refuse(f"{name}s", "a list of texts", texts)
        texts = [_join_instruction(f"{name}s", text) for text in texts]
        scores = row.get(f"{name}_scores", row.get(f"{name[:3]}_scores")) or []
        if not isinstance(scores, list) or (scores and len(scores) != len(texts)):
            refuse(f"{name}_scores", f"a list of {len(texts)} scores, or none", scores)
        sides.append((texts, scores))
    (positives, positive_scores), (negatives, negative_scores) = sides
    if task == "sts":
        texts, scores = positives + negatives, positive_scores + negative_scores
        if len(scores) != len(texts):
            remedy = "Ungraded texts are retrieval data: read them as task 'ir'"
            refuse("positive_scores", f"a score for each of {len(texts)} texts", scores, remedy)
        return [
            Record("sts", query, (text,), positive_scores=(score,), dataset=dataset)
            for text, score in zip(texts, scores, strict=True)
        ]
    kept = [i for i, text in enumerate(negatives) if text not in positives]
    counts[_REPEATED] += len(negatives) - len(kept)
    negatives = [negatives[i] for i in kept]
    negative_scores = [negative_scores[i] for i in kept] if negative_scores else []
    return [Record(task, query, positives, negatives, positive_scores, negative_scores, dataset)]


def _join_instruction(field: str, text: Any) -> str:
    if isinstance(text, str):
        return text
    if isinstance(text, list) and len(text) == 3 and all(isinstance(part, str) for part in text):
        return text[1] + text[2]
    refuse(field, "a string, or [task instruction, example instruction, text]", text)


# --- Tables ---------------------------------------------------------------------------------------


def read_sts_table(
    path: str | Path,
    *,
    scale: Scale,
    columns: Columns = (0, 1, 2),
    delimiter: str | None = None,
    dataset: str = "",
) -> list[Record]:
    """Read rated pairs from CSV, TSV or JSON lines; ratings are mapped from `scale` to [0, 1].

    A row that lacks one of its texts is left out. All rows of CSV have as many cells as the first.
    In TSV a quotation mark is a plain character, and a row may have more cells, which are notes, as
    in the STS Benchmark's own files.

    Args:
        path: The file, which may end in `.gz`.
        scale: The lowest and the highest rating.
        columns: First text, second text, rating: names of a header, or positions from 0. With
            positions, the first row is taken for a header if its rating is called score, rating,
            label or the like.
        delimiter: What separates columns; None: a tab if the first line has one, else a comma.
        dataset: The name that the records carry.

    Raises:
        RecordError: A column is missing or stands twice, a row has another number of cells, or a
            rating is no number on the scale; the message names the line.
    """
    columns = check_columns(path, "sts", columns, scale)
    rows, places = _table(path, columns, delimiter)
    if isinstance(columns[2], int):
        rows = _without_header(path, rows, columns[2])
    return _pairs(path, rows, places, scale, dataset)


def read_pairs(
    path: str | Path, *, columns: Columns, delimiter: str | None = None, dataset: str = ""
) -> list[Record]:
    """Read queries and their answers from CSV, TSV or JSON lines, as IR records.

    Rows of one query become one record with several positives, in the order of the file. In JSON, a
    positive or negative may be a list of texts. A row without query or positive is left out, and
    so is a negative that is a positive of the same query.

    Args:
        path: The file, which may end in `.gz`.
        columns: Query, positive and, optionally, negative: names of a header, or positions from 0.
            With positions, the first row is taken for a header if all its texts are called query,
            question, answer, positive or the like.
        delimiter: As in `read_sts_table`.
        dataset: The name that the records carry.

    Raises:
        RecordError: A column is missing or stands twice, a row has another number of cells, or a
            cell is no text; the message names the line.
    """
    columns = check_columns(path, "ir", columns, None)
    rows, places = _table(path, columns, delimiter)
    if isinstance(columns[0], int):
        rows = _without_names(rows, columns)
    return _answers(path, rows, places, dataset)


def read_aligned(queries: str | Path, passages: str | Path, *, dataset: str = "") -> list[Record]:
    """Read two files of which line i of one asks for line i of the other, as IR records.

    The tokens of the Penn Treebank are undone that stand for brackets and double quotation marks:
    `-lrb-` becomes `(`, two grave accents `"`. Each line is a record; its id is the number of the
    line.

    Raises:
        RecordError: The files differ in their number of lines, or a line is blank.
    """
    lines = [_untokenised(file) for file in (queries, passages)]
    if len(lines[0]) != len(lines[1]):
        raise RecordError(
            f"{queries} and {passages}: expected as many lines in one as in the other, found "
            f"{len(lines[0])} and {len(lines[1])}. Take both from one release."
        )
    rows = ((i, (str(i), *pair)) for i, pair in enumerate(zip(*lines, strict=True), start=1))

    def convert(row: tuple[str, str, str]) -> Record:
        number, query, passage = row
        return Record("ir", query, (passage,), dataset=dataset, id=number)

    return [record for _, record in convert_rows(queries, rows, convert)]


_TREEBANK = {"-lrb-": "(", "-rrb-": ")", "-lsb-": "[", "-rsb-": "]", "-lcb-": "{", "-rcb-": "}"}
_TREEBANK |= {"``": '"', "''": '"'}
_TOKEN = re.compile("|".join(_TREEBANK))


def _untokenised(file: str | Path) -> list[str]:
    lines = read_text(file).removesuffix("\n").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise RecordError(
                f"{file}:{number}: expected a text, found a blank line. Fill it, or remove this "
                "line from both files."
            )
    # A token may stick to others, where a tokeniser took a mark for a part of them.
    return [" ".join(_TOKEN.sub(lambda m: _TREEBANK[m[0]], line).split()) for line in lines]


def check_columns(source: str | Path, task: Task, columns: Columns, scale: Scale | None) -> Columns:
    """The columns, if they and the scale say how a row becomes a record of the task.

    Raises:
        RecordError: They do not.
    """
    if task == "sts":
        shape = "the columns of two texts and their score, and a scale (LOW, HIGH) with LOW < HIGH"
        valid = len(columns) == 3 and scale is not None and len(scale) == 2
        valid = valid and all(map(math.isfinite, scale)) and scale[0] < scale[1]
    else:
        shape = "the columns of query, positive and, optionally, negative, and no scale"
        valid = len(columns) in (2, 3) and scale is None
    kinds = {type(column) for column in columns}
    if not valid or len(kinds) > 1 or len(set(columns)) < len(columns):
        raise RecordError(
            f"{source}: expected {shape}, all names or all positions, none of them twice, found "
            f"columns {list(columns)} and scale {scale}."
        )
    return columns


def _table(
    path: str | Path, columns: Columns, delimiter: str | None
) -> tuple[Iterator[tuple[int, Any]], Columns]:
    """The rows of a table with their lines, and the keys of the columns in such a row."""
    if _is_json(Path(path)):
        if isinstance(columns[0], int):
            raise RecordError(
                f"{path}: expected the names of columns, for rows in JSON have no order, found "
                f"{list(columns)}. Give the keys of a row: --columns KEY KEY KEY."
            )
        return read_rows(path), columns
    rows, used = _separated(path, delimiter)
    number, first = next(rows)
    named = isinstance(columns[0], str)
    known = first if named else range(len(first))
    if missing := [column for column in columns if column not in known]:
        remedy = f"Correct {missing[0]!r} or the line"
        if named:
            remedy += ", or give positions from 0 if there is no header"
        if delimiter is None:
            remedy += ". Name another delimiter by --delimiter ';', or delimiter=';' in Python"
        raise RecordError(
            f"{path}:{number}: expected the columns {list(columns)}{' in the header' * named}, "
            f"found {first!r:.120} separated by {used!r}. {remedy}."
        )
    if not named:
        return chain([(number, first)], rows), columns
    if twice := [column for column in columns if first.count(column) > 1]:
        raise RecordError(
            f"{path}:{number}: expected the columns {list(columns)} once each in the header, found "
            f"{twice[0]!r} {first.count(twice[0])} times. Rename all but one."
        )
    return rows, [first.index(column) for column in columns]


def _separated(
    path: str | Path, delimiter: str | None
) -> tuple[Iterator[tuple[int, list[str]]], str]:
    """The rows of a table with their lines, at least one, and what separates their cells."""
    text = read_text(path)
    if not text.strip():
        raise RecordError(f"{path}: expected at least one record, found an empty file.")
    if delimiter is None:
        delimiter = "\t" if "\t" in text.split("\n", 1)[0] else ","
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise RecordError(
            f"{path}: expected one character that separates cells, found {delimiter!r}. Give one "
            "such as ';'; a tab is $'\\t' in a shell."
        )
    return _rows_of_cells(path, text, delimiter), delimiter


def _rows_of_cells(path: str | Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
    number, width = 1, 0
    try:
        for row in reader:
            width = width or len(row)
            # A separator inside a text moves the cells behind it, in this row or in the first.
            if row and (len(row) < width or (len(row) > width and delimiter != "\t")):
                cure = "remove it" if delimiter == "\t" else "put the text in quotation marks"
                raise RecordError(
                    f"{path}:{number}: expected {width} cells separated by {delimiter!r}, as in "
                    f"the first row, found {len(row)}. Look in both for {delimiter!r} inside a "
                    f"text and {cure}, or write JSON lines."
                )
            if row:
                yield number, row
            number = reader.line_num + 1  # a quoted cell may hold several lines
    except csv.Error as error:
        raise RecordError(
            f"{path}:{number}: expected cells separated by {delimiter!r}, found: {error}. Look for "
            "a quotation mark that is not closed, or write JSON lines."
        ) from error


# What headers call a rating. Anything else in its place may be a rating that was written wrongly.
_RATING = re.compile(
    r"[\w.-]*(score|rating|label|grade|gold|similarity|relatedness|relevance)s?\d*", re.IGNORECASE
)


def _without_header(
    path: str | Path, rows: Iterator[tuple[int, Any]], score: int
) -> Iterator[tuple[int, Any]]:
    number, first = next(rows)
    if _RATING.fullmatch(first[score].strip()):
        return rows
    if not _is_number(first[score]):
        raise RecordError(
            f"{path}:{number}: expected a number, or a header that says 'score', found "
            f"{first[score]!r} in column {score}. Correct the line; of a header, give the columns "
            "by name, or call this one 'score'."
        )
    return chain([(number, first)], rows)


# What headers call the columns of questions and answers.
_TEXTS = re.compile(
    r"[\w.-]*(quer(y|ie)|question|answer|passage|document|positive|negative|text|pos|neg)s?[_\d]*",
    re.IGNORECASE,
)


def _without_names(rows: Iterator[tuple[int, Any]], columns: Columns) -> Iterator[tuple[int, Any]]:
    number, first = next(rows)
    if all(_TEXTS.fullmatch(first[column].strip()) for column in columns):
        return rows
    return chain([(number, first)], rows)


def _is_number(cell: Any) -> bool:
    """Whether it is a finite number, or says one; 1_000 is one for Python alone."""
    if isinstance(cell, bool) or (isinstance(cell, str) and "_" in cell):
        return False
    try:
        return math.isfinite(float(cell))
    except (TypeError, ValueError, OverflowError):
        return False


def _cells(row: Any, columns: Columns) -> list[Any]:
    try:
        return [row[column] for column in columns]
    except KeyError:
        raise RecordError(f"expected the columns {list(columns)}, found {sorted(row)}.") from None


def _texts(column: str | int, cell: Any) -> list[str]:
    texts = cell if isinstance(cell, list) else [cell]
    if not all(text is None or isinstance(text, str) for text in texts):
        refuse(str(column), "a text, or a list of texts", cell)
    return [stripped for text in texts if text and (stripped := text.strip())]


def _text(column: str | int, cell: Any) -> list[str]:
    texts = _texts(column, cell)
    if len(texts) > 1:
        refuse(str(column), "one text", cell, "Make a row of each")
    return texts


def _pairs(
    source: str | Path,
    rows: Iterable[tuple[int, Any]],
    columns: Columns,
    scale: Scale,
    dataset: str,
) -> list[Record]:
    low, high = scale

    def convert(row: Any) -> Record | None:
        *texts, score = _cells(row, columns)
        texts = [_text(column, cell) for column, cell in zip(columns, texts, strict=False)]
        if not all(texts):
            return None
        if not _is_number(score) or not low <= float(score) <= high:
            remedy = "Correct the line, or give the true scale"
            refuse(str(columns[2]), f"a score in [{low:g}, {high:g}]", score, remedy)
        (first,), (second,) = texts
        mapped = round((float(score) - low) / (high - low), 6)
        return Record("sts", first, (second,), positive_scores=(mapped,), dataset=dataset)

    converted = [record for _, record in convert_rows(source, rows, convert)]
    records = [record for record in converted if record]
    return _some(source, records, Counter({_NO_TEXT: len(converted) - len(records)}))


def _answers(
    source: str | Path, rows: Iterable[tuple[int, Any]], columns: Columns, dataset: str
) -> list[Record]:
    counts: Counter[str] = Counter()
    # Dictionaries as sets that keep their order. The line is that of the query's first row.
    merged: dict[str, tuple[int, dict[str, None], dict[str, None]]] = {}

    def convert(row: Any) -> list[list[str]]:
        query, *others = zip(columns, _cells(row, columns), strict=True)
        return [_text(*query), *(_texts(column, cell) for column, cell in others)]

    for number, (query, positives, *negatives) in convert_rows(source, rows, convert):
        if not query or not positives:
            counts[_NO_TEXT] += 1
            continue
        counts[_MERGED] += query[0] in merged
        _, relevant, others = merged.setdefault(query[0], (number, {}, {}))
        relevant.update(dict.fromkeys(positives))
        others.update(dict.fromkeys(*negatives) if negatives else {})

    def build(item: tuple[str, dict[str, None], dict[str, None]]) -> Record:
        query, relevant, others = item
        negatives = tuple(text for text in others if text not in relevant)
        counts[_REPEATED] += len(others) - len(negatives)
        return Record("ir", query, tuple(relevant), negatives, dataset=dataset)

    items = ((number, (query, *texts)) for query, (number, *texts) in merged.items())
    return _some(source, [record for _, record in convert_rows(source, items, build)], counts)


def _some(source: str | Path, records: list[Record], counts: Counter[str]) -> list[Record]:
    _say(source, counts)
    if not records:
        raise RecordError(f"{source}: expected at least one record, found none.")
    return records


# --- BEIR -----------------------------------------------------------------------------------------


def read_beir(folder: str | Path, *, dataset: str = "") -> dict[str, list[Record]]:
    """Read a BEIR folder: `corpus.jsonl`, `queries.jsonl`, and judgements in `qrels/*.tsv`.

    A record is a query of one file of judgements (`train`, `dev` or `validation`, `test`): what is
    judged above 0 is a positive, what is judged 0 or lower a hard negative. Positives carry their
    grades unless all are 1. Title and text of a document are joined by a space. Judgements of a
    document without any text are left out, and so are queries without a positive.

    Returns:
        The records of each split that is there, in the order of the judgements.

    Raises:
        MissingSourceError: A file is missing.
        RecordError: A line cannot be used, or a judgement names an id that is not there; the
            message names the line.
    """
    folder = Path(folder)
    corpus, queries = _beir_texts(folder, "corpus"), _beir_texts(folder, "queries")
    found = {split: _find(folder / "qrels", stems, (".tsv",)) for split, stems in _STEMS.items()}
    if not any(found.values()):
        raise MissingSourceError(
            f"{folder / 'qrels'}: expected train.tsv, dev.tsv, validation.tsv or test.tsv, found "
            "none."
        )
    return {split: _judged(file, corpus, queries, dataset) for split, file in found.items() if file}


def is_beir(path: str | Path) -> bool:
    """Whether a path is a folder with a corpus, and with judgements in place of records."""
    folder = Path(path)
    judged = (folder / "qrels").is_dir() or not any(find_part(folder, s) for s in SPLITS)
    return judged and has_corpus(folder)


def has_corpus(path: str | Path) -> bool:
    """Whether a path is a folder with a corpus, as those of BEIR and of `write_splits` are."""
    return find_part(path, "corpus") is not None


def read_beir_corpus(path: str | Path) -> dict[str, str]:
    """The texts of a corpus by their ids: of a folder, or of a file like BEIR's `corpus.jsonl`.

    Documents without any text are left out.

    Raises:
        MissingSourceError: There is no corpus.
        RecordError: A line is no document, or an id stands twice.
    """
    return {name: text for name, text in _beir_texts(Path(path), "corpus").items() if text}


def _beir_texts(folder: Path, stem: str) -> dict[str, str]:
    file = folder if folder.is_file() else _find(folder, (stem,), _JSON)
    if file is None:
        raise MissingSourceError(f"{folder}: expected the file {stem}.jsonl of BEIR, found none.")
    texts: dict[str, str] = {}

    def convert(row: dict[str, Any]) -> tuple[str, str]:
        name, title, text = (row.get(key, "") for key in ("_id", "title", "text"))
        if not isinstance(name, (str, int)) or name == "" or str(name) in texts:
            refuse("_id", "an id that no other line has", name)
        if not all(part is None or isinstance(part, str) for part in (title, text)):
            refuse("text", "a string", text)
        joined = f"{title or ''} {text or ''}".strip()
        if joined and not is_text(joined):
            refuse("text", "text without half a surrogate pair", joined)
        return str(name), joined

    for _, (name, text) in convert_rows(file, read_rows(file), convert):
        texts[name] = text
    return texts


def _judged(
    file: Path, corpus: dict[str, str], queries: dict[str, str], dataset: str
) -> list[Record]:
    counts: Counter[str] = Counter()
    judged: dict[str, tuple[int, dict[str, float]]] = {}  # by query: line, grades of texts

    def convert(row: list[str]) -> tuple[str, str, float]:
        query, document, grade = row[:3]
        for kind, name, known in (("query-id", query, queries), ("corpus-id", document, corpus)):
            if name not in known:
                remedy = "Add it to the file of texts, or remove the judgement"
                refuse(kind, f"one of the {len(known)} ids there are", name, remedy)
        if not _is_number(grade):
            refuse("score", "a number", grade)
        return query, corpus[document], float(grade)

    rows = _without_header(file, _table(file, (0, 1, 2), "\t")[0], 2)
    for number, (query, text, grade) in convert_rows(file, rows, convert):
        if not text or not queries[query]:
            counts["judgements left out, for a text is empty"] += 1
            continue
        _, grades = judged.setdefault(query, (number, {}))
        grades[text] = max(grade, grades.get(text, grade))

    def build(item: tuple[str, dict[str, float]]) -> Record | None:
        query, grades = item
        positives = {text: grade for text, grade in grades.items() if grade > 0}
        if not positives:
            counts["queries left out, for nothing is relevant to them"] += 1
            return None
        return Record(
            "ir",
            queries[query],
            tuple(positives),
            tuple(text for text in grades if text not in positives),
            tuple(positives.values()) if set(positives.values()) != {1.0} else (),
            dataset=dataset,
            id=query,
        )

    items = ((number, (query, grades)) for query, (number, grades) in judged.items())
    records = [record for _, record in convert_rows(file, items, build) if record]
    return _some(file, records, counts)


# --- The Hub --------------------------------------------------------------------------------------


def read_hub(
    name: str,
    *,
    task: Task,
    columns: Sequence[str],
    split: str,
    scale: Scale | None = None,
    config: str = "",
    revision: str = "",
    dataset: str = "",
) -> list[Record]:
    """Read a split of a data set on the Hugging Face Hub, or of a local folder of that layout.

    The library `datasets` (an optional one) downloads it once, into its own cache. With
    HF_HUB_OFFLINE=1 only what lies there is read. Rows become records as in `read_sts_table` or
    `read_pairs`; an IR cell holds a text or a list of texts.

    Args:
        name: `organisation/data_set`, or the folder.
        task: What the records are for.
        columns: Two texts and their score (STS), or query, positive and, optionally, negative (IR).
        split: The split's name there, or a slice such as `train[:5%]`.
        scale: The lowest and highest score (STS).
        config: The configuration, where the data set has several.
        revision: A commit, a tag or a branch; empty: the newest.
        dataset: The name that the records carry.

    Raises:
        MissingSourceError: The library is not installed, or the data set, its configuration or its
            split is not there or cannot be reached.
        RecordError: A column is missing, or a row is no record; the message names the row.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingSourceError(
            f"data set {name!r} of the Hub: expected the package `datasets`, found none. "
            "Install it: pip install datasets"
        ) from error
    source = f"{name}[{split}]"
    columns = check_columns(source, task, columns, scale)
    try:
        table = datasets.load_dataset(name, config or None, split=split, revision=revision or None)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        found = " ".join(str(error).split())
        raise MissingSourceError(
            f"{source}: expected a data set of the Hub or a local folder, found: {found}. "
            "Check name, split, revision and connection."
        ) from error
    rows = enumerate(table, start=1)
    if task == "sts":
        return _pairs(source, rows, columns, scale, dataset)
    return _answers(source, rows, columns, dataset)
