"""Records from files as users have them: JSON of three forms, tables, BEIR folders, the Hub.

A line that cannot be used is a RecordError that names it; what is not there is a SourceError. What
is left out of a file, and what is merged, is said once.
"""

import csv
import io
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal

from codiemb_lib.core import PACKED, Task, read_text, say_once
from codiemb_lib.data import records
from codiemb_lib.data.records import FORMS, Record, RecordError, SourceError, is_number, refuse

SPLITS = ("train", "dev", "test")
_STEMS = {"dev": ("dev", "validation", "valid", "val")}
_NO_TEXT = "rows left out, for they lack a text"
_DIFFER = "judgements of a text that is judged otherwise too: the highest grade counts"
_ITSELF = "queries that are documents of the same id: ignore_identical_ids ranks without these"

Scale = tuple[float, float]
Columns = Sequence[str | int]
Dialect = tuple[str | None, str | None]  # delimiter, quoting
Rows = Iterable[tuple[int, Mapping[str | int, Any]]]  # with their lines


def read_path(
    path: str | Path, *, task: Task | None = None, **form: Any
) -> dict[str, list[Record]]:
    """The splits of a file, a folder of `train`, `dev` and `test` in any form, or a BEIR folder.

    Beside the files of splits, a folder may have a corpus, which `read_beir_corpus` reads.
    `validation`, `valid` and `val` count as `dev`. A lone file is the split that it is named
    after, else `train`. `task` and `form` go to `read_file`.
    """
    path = Path(path)
    if path.is_file():
        stem = path.name.lower().split(".")[0]
        split = next((split for split in SPLITS if stem in _STEMS.get(split, (split,))), "train")
        return {split: read_file(path, task=task, **form)}
    files = {split: file for split in SPLITS if (file := find_part(path, split))}
    judged = (path / "qrels").is_dir() or not files
    if judged and find_part(path, "corpus") and task != "sts" and not any(form.values()):
        for file in files.values():
            say_once(f"{file}: passed over, for the folder is one of BEIR, with qrels")
        return read_beir(path)
    if not files:
        raise SourceError(
            f"{path}: expected a file, or a folder of train, dev or test in {', '.join(FORMS)}, or "
            "a BEIR folder and no word of its form, found none. What save_to_disk of datasets has "
            "written, write with to_parquet."
        )
    for file in {*path.glob("*.*")} - {*files.values(), find_part(path, "corpus")}:
        if file.name.lower().endswith((".csv", ".tsv", ".parquet", "jsonl")):
            say_once(f"{file}: passed over, for its name is none of a split")
    return {split: read_file(file, task=task, **form) for split, file in files.items()}


def find_part(folder: str | Path, part: str) -> Path | None:
    """The one file of a folder that a split, "corpus" or "queries" is read from, packed or not."""
    names = {*map("".join, product(_STEMS.get(part, (part,)), FORMS, PACKED))}
    files = sorted(Path(folder).glob("*.*"))
    found = [file for file in files if file.name.lower() in names and file.is_file()]
    if len(found) > 1:
        raise RecordError(
            f"{folder}: expected one file, found {found[0].name} and {found[1].name}. Remove one."
        )
    return found[0] if found else None


def read_file(
    path: str | Path,
    *,
    task: Task | None = None,
    columns: Columns = (),
    scale: Scale | None = None,
    delimiter: str | None = None,
    quoting: Literal["yes", "no"] | None = None,
) -> list[Record]:
    """Read JSON of records as `read_jsonl`; with `columns` or `scale`, rows of a table.

    Such rows stand in CSV, TSV, JSON lines or Parquet, and are rated pairs (STS), or queries and
    their answers (IR). Ratings are mapped from `scale` to [0, 1]. Rows of one query become one IR
    record with several positives, in the order of the file; in JSON, a positive or negative may be
    a list of texts. Left out are rows that lack a text, and negatives that are positives of the
    same query. All rows of a table have as many cells as the first; those of rated pairs in TSV
    without a header may have more, which are notes, as in the STS Benchmark's own files.

    Args:
        path: The file, whose suffix says its form: data/README.md has a table of them.
        task: What the records are for; None: what the file says, of a table STS if it has a scale.
        columns: Two texts and their rating (STS; by default the only three, or those of a
            header), or query, positive and, optionally, negative (IR): names of a header, or
            positions from 0. With positions, the first row is taken for a header if its rating is
            called score, label or the like, or all its texts query, answer or the like.
        scale: The lowest and the highest rating (STS).
        delimiter: None: of a line `sep=;` above the table, a tab if the first row has one, a comma.
        quoting: "yes": quotation marks enclose cells; "no": they are text; None: as the file shows.
    """
    if (form := records.form_of(path)) != "table":
        if delimiter is not None or quoting:
            raise RecordError(f"{path}: expected no delimiter and no quoting, for it is {form}.")
        if not columns and scale is None:
            return records.read_jsonl(path, task=task)
    inferred = task or ("sts" if scale else "ir")
    wanted = check_columns(path, inferred, columns or ((0, 1, 2) if scale else ()), scale)
    counts: Counter[str] = Counter()
    if form == "table":
        rows = _read_cells(path, columns, (delimiter, quoting), counts, rated=inferred == "sts")
        wanted = [*rows[0][1]] if rows else wanted  # by the names of the header
    else:
        rows = [*records.read_rows(path)]
    last = [row.get(wanted[-1]) for _, row in rows]
    if not (task or scale) and wanted[2:] and last and all(map(is_number, last)):
        raise RecordError(
            f"{path}: expected texts in the column {wanted[-1]!r}, found numbers alone. Say what "
            "they are: --scale LOW HIGH for ratings, or --task ir."
        )
    return _from_rows(path, rows, wanted, scale, counts)


def check_columns(source: str | Path, task: Task, columns: Columns, scale: Scale | None) -> Columns:
    """The columns, if they and the scale say how a row becomes a record of the task."""
    if task == "sts":
        valid = len(columns) == 3 and scale and -math.inf < scale[0] < scale[1] < math.inf
    else:
        valid = len(columns) in (2, 3) and scale is None
    if not valid or len(set(map(type, columns))) > 1 or len(set(columns)) < len(columns):
        raise RecordError(
            f"{source}: expected the columns of two texts and their score, and a scale (LOW, HIGH) "
            "with LOW < HIGH; or the columns of query, positive and, optionally, negative, and no "
            "scale; all names or all positions, none of them twice; found columns "
            f"{list(columns)}, scale {scale} and task {task}. Say them: codiemb data prepare "
            f"{source} FOLDER --columns A B SCORE --scale LOW HIGH, or --columns QUERY POSITIVE."
        )
    return columns


# --- Tables ---------------------------------------------------------------------------------------


# What headers call a rating or a text. Anything else in the first row counts as a row's own.
_HEADING = re.compile(
    r"[\w.-]*(score|rating|label|grade|gold|similarity|relatedness|relevance|quer(y|ie)|question"
    r"|answer|passage|document|positive|negative|text|pos|neg|anchor|sentence)s?[_\d]*",
    re.IGNORECASE,
)
_LABEL = re.compile(r"[\w\u0900-\u0eff.-]{1,30}( [\w\u0900-\u0eff.-]{1,30})?")  # in any language
_QUOTED = re.compile(r'"([^"]|""|\\")*"')  # some libraries write \"


def _read_cells(
    path: str | Path, columns: Columns, dialect: Dialect, counts: Counter[str], *, rated: bool
) -> list[tuple[int, dict[str | int, str]]]:
    """The cells of some columns, row by row, without the header.

    Quotation marks enclose cells if each that opens a cell closes it, doubled inside, and the rows
    are as wide as each other then. Otherwise they are text, unless most of them are closed.
    """
    text, (delimiter, quoting) = read_text(path, RecordError), dialect
    if told := re.match(r'"?(?i:sep)=(.)"?\r?(?=\n\s*\S)', text):  # as Excel has it
        text = text[told.end() :]  # so that the line still counts
    if delimiter is None:
        tabbed = "\t" in text.lstrip("\r\n").split("\n", 1)[0]
        delimiter = told[1] if told else "\t" if tabbed else ","
        marks = [(line.count(","), line.count(";")) for line in text.splitlines() if line]
        if not (told or tabbed) and len(marks) > 1 and len({*marks}) == 1 and all(marks[0]):
            raise RecordError(
                f"{path}: expected one separator, found as many ',' as in the first row in each, "
                "and as many ';'. Say which it is: --delimiter ';'."
            )
    tables, found = {}, {}
    for way in [quoting] if quoting else ["yes", "no"][: 1 + ('"' in text)]:
        try:
            tables[way] = rows = _split_cells(path, text, columns, delimiter, way, rated=rated)
            said = f"{path}: expected one reading, found {len(rows)} rows by --quoting {way}."
        except RecordError as error:
            said = str(error)
        found[said] = way
    opened = [c for _, row in tables.get("no", ()) for c in row.values() if c.startswith('"')]
    closed = sum(bool(_QUOTED.fullmatch(cell)) for cell in opened)
    doubtful = {*found.values()} - {*tables} and 2 * closed > len(opened)
    if doubtful or len({*map(len, tables.values())}) != 1:
        raise RecordError(" Or: ".join(found))
    way, rows = next(iter(tables.items()))
    taken = "taken off; --quoting no keeps them" if way == "yes" else "kept as text"
    counts[f"cells open with quotation marks, which were {taken}"] += len(opened)
    if broken := [line for line, row in rows for cell in row.values() if "\n" in cell]:
        counts[f"cells hold line breaks, the first in line {broken[0]}"] += len(broken)
    return rows


def _split_cells(
    path: str | Path, text: str, columns: Columns, delimiter: str, quoting: str, *, rated: bool
) -> list[tuple[int, dict[str | int, str]]]:
    # By the module csv: pandas fills rows that are too short, and knows no line of a row.
    csv.field_size_limit(2**31 - 1)  # a cell may hold a whole document
    marks = {"yes": csv.QUOTE_MINIMAL, "no": csv.QUOTE_NONE}[quoting]
    lines, rows, number = io.StringIO(text, newline=""), [], 1
    try:
        form = {"delimiter": delimiter, "skipinitialspace": delimiter != " "}
        reader = csv.reader(lines, quoting=marks, strict=True, **form)
        for row in reader:
            rows += [(number, row)] if row else []
            number = reader.line_num + 1  # a quoted cell may hold several lines
    except (csv.Error, TypeError) as error:  # TypeError: of a delimiter of no or several characters
        raise RecordError(
            f"{path}:{number}: expected cells separated by one character, {delimiter!r}, found: "
            f"{error}. Look for a quotation mark that is not closed; a tab is $'\\t' in a shell."
        ) from error
    number, first = rows[0]
    wanted = columns or (0, 1, 2)
    keys = first if isinstance(wanted[0], str) else range(len(first))
    places = [keys.index(column) for column in wanted if keys.count(column) == 1]
    cells = [first[place] for place in places]
    telling = [cell.strip(' "') for cell in cells[2 if rated else 0 :]]
    headed = keys is first or all(map(_HEADING.fullmatch, telling))
    if len(places) < len(wanted) or not (columns or headed or len(first) == 3):
        raise RecordError(
            f"{path}:{number}: expected each of the columns {list(wanted)} once, found "
            f"{first!r:.120} separated by {delimiter!r}. Name the columns of its header, "
            "positions from 0 where there is none, or name another delimiter: --delimiter ';'."
        )
    notes = rated and not headed and delimiter == "\t"
    for line, row in rows:
        # A separator inside a text moves the cells behind it, in this row or in the first.
        noted = notes and not is_number(row[-1])  # a number there might be the rating
        if len(row) < len(first) or (len(row) > len(first) and not noted):
            raise RecordError(
                f"{path}:{line}: expected {len(first)} cells separated by {delimiter!r}, as in the "
                f"first row, found {len(row)}. A text that holds one stands in quotation marks."
            )
    words = (all(_LABEL.fullmatch(row[place].strip()) for place in places) for _, row in rows)
    if not (rated or headed) and next(words) and 10 * sum(words) < len(rows) - 1:
        raise RecordError(
            f"{path}:{number}: expected a header or a record, found {first!r:.120}, a word or "
            "two unlike the other rows. Name them as columns, or set `query` and `positive` above."
        )
    labels = cells if headed and len({*cells}) == len(cells) else wanted
    kept = ((line, [row[place] for place in places]) for line, row in rows[headed:])
    return [(line, dict(zip(labels, row, strict=True))) for line, row in kept]


# --- Rows of columns, whatever they were read from ------------------------------------------------


def _from_rows(
    source: str | Path, rows: Rows, columns: Columns, scale: Scale | None, counts: Counter[str]
) -> list[Record]:
    def convert(row: Mapping) -> list[Record]:
        return _rated(row, columns, scale, counts) if scale else _answered(row, columns, counts)

    return records.collect(source, rows, convert, counts)


def _rated(row: Mapping, columns: Columns, scale: Scale, counts: Counter[str]) -> list[Record]:
    (low, high), (*sides, score) = scale, _cells(row, columns)
    texts = [_texts(column, side, most=1) for column, side in zip(columns, sides, strict=False)]
    if not all(texts):
        counts[_NO_TEXT] += 1
        return []
    if not is_number(score) or not low <= float(score) <= high:
        remedy = "Correct it (decimals have a point) or the scale; name columns below a header"
        refuse(str(columns[2]), f"a score in [{low:g}, {high:g}]", score, remedy)
    mapped = round((float(score) - low) / (high - low), 6)
    [[first], [second]] = texts
    return [Record("sts", first, (second,), positive_scores=(mapped,))]


def _answered(row: Mapping, columns: Columns, counts: Counter[str]) -> list[Record]:
    query, *sides = _cells(row, columns)
    query = _texts(columns[0], query, most=1)
    texts = ([*dict.fromkeys(_texts(*of))] for of in zip(columns[1:], sides, strict=True))
    row = dict(zip(("pos", "neg"), texts, strict=False))
    if not query or not row["pos"]:
        counts[_NO_TEXT] += 1
        return []
    return records.scored_texts(row | {"query": query[0]}, "ir", counts)


def _cells(row: Mapping, columns: Columns) -> list[Any]:
    try:
        return [row[column] for column in columns]
    except KeyError:
        raise RecordError(f"expected the columns {list(columns)}, found {sorted(row)}.") from None


def _texts(column: str | int, cell: Any, most: float = math.inf) -> list[str]:
    texts = cell if isinstance(cell, list) else [cell]
    if len(texts) > most or not all(text is None or isinstance(text, str) for text in texts):
        refuse(str(column), "one text" if most == 1 else "a text, or a list of texts", cell)
    return [seen for text in texts if text and (seen := records.stripped(text))]


# --- BEIR -----------------------------------------------------------------------------------------


def read_beir(folder: str | Path) -> dict[str, list[Record]]:
    """Read a BEIR folder: `corpus.jsonl`, `queries.jsonl`, and judgements in `qrels/*.tsv`.

    A record is a query of one file of judgements (`train`, `dev` or `validation`, `test`), in their
    order: what is judged above 0 is a positive, what is judged 0 or lower a hard negative.
    Positives carry their grades unless all are 1. Title and text of a document are joined by a
    space. Left out are judgements of empty documents, and queries without a positive. Two queries
    of one text stay two, for here ids name them. `same_id` is the document of the query's id.
    """
    folder = Path(folder)
    corpus, queries = _beir_texts(folder, "corpus"), _beir_texts(folder, "queries")
    found = {split: find_part(folder / "qrels", split) for split in SPLITS}
    if not any(found.values()):
        raise SourceError(f"{folder}/qrels: expected train.tsv, dev.tsv or test.tsv, found none.")
    return {split: _judged(file, corpus, queries) for split, file in found.items() if file}


def read_beir_corpus(path: str | Path) -> dict[str, str]:
    """The texts of a corpus by their ids, of a folder or of a file; empty ones are left out."""
    texts = _beir_texts(Path(path), "corpus")
    if n := len(texts) - len({*texts.values()} - {""}):
        say_once(f"{path}: {n} documents left out, for they are empty or repeat another")
    return {name: text for name, text in texts.items() if text}


def _beir_texts(folder: Path, stem: str) -> dict[str, str]:
    file = folder if folder.is_file() else find_part(folder, stem)
    if file is None:
        raise SourceError(f"{folder}: expected the file {stem}.jsonl of BEIR, found none.")
    texts: dict[str, str] = {}

    def convert(row: dict[str, Any]) -> tuple[str, str]:
        if not {"_id", "text"} <= row.keys():
            expected = "the keys _id and text, and perhaps title"
            raise RecordError(f"expected {expected}, found {', '.join(row)}. Rename them.")
        name, *parts = row["_id"], row.get("title") or "", row["text"] or ""
        if not isinstance(name, (str, int)) or name == "" or str(name) in texts:
            refuse("_id", "a string or whole number that no other line has", name)
        joined = records.stripped(" ".join(map(str, parts)))
        whole = not joined or records.is_text(joined)
        if not whole or not all(isinstance(part, str) for part in parts):
            refuse("text", "a string without half a surrogate pair", joined)
        return str(name), joined

    for _, (name, text) in records.convert_rows(file, records.read_rows(file), convert):
        texts[name] = text
    return texts


def _judged(file: Path, corpus: dict[str, str], queries: dict[str, str]) -> list[Record]:
    counts: Counter[str] = Counter()

    def convert(row: Mapping) -> tuple[str, str, float]:
        query, document, grade, *unused = row.values()
        if {*unused} - {"0", "Q0"}:
            refuse("iteration", "0 or Q0, as TREC has it", unused[0], "Set BEIR's header above")
        for kind, name, known in (("query-id", query, queries), ("corpus-id", document, corpus)):
            if name not in known:
                refuse(kind, f"one of the {len(known)} ids there are", name)
        if not is_number(grade) or not float(grade).is_integer():
            remedy = "Multiply all grades by the number that makes them whole: nDCG stays the same"
            refuse("score", "a whole number, as trec_eval takes them", grade, remedy)
        return query, corpus[document], float(grade)

    def build(judged: tuple[str, dict[str, float]]) -> list[Record]:
        name, grades = judged
        query, same = queries[name], corpus.get(name, "")
        positives = {text: grade for text, grade in grades.items() if grade > 0}
        if not positives:
            counts["queries left out, for nothing is relevant to them"] += 1
            return []
        counts[_ITSELF] += same not in positives and same.endswith(query)  # behind a title
        negatives = tuple(text for text in grades if text not in positives)
        scores = tuple(positives.values()) if set(positives.values()) != {1.0} else ()
        return [Record("ir", query, tuple(positives), negatives, scores, id=name, same_id=same)]

    found: dict[str, dict[str, float]] = defaultdict(dict)  # by query the grades of texts
    line = read_text(file, RecordError).lstrip("\r\n").split("\n", 1)[0].rstrip("\r")
    delimiter = next((mark for mark in "\t, " if mark in line), "\t")  # TREC's own have blanks
    columns = ("query-id", "corpus-id", "score")
    if any(map(is_number, line.split(delimiter))):
        columns = (0, 2, 3, 1) if line.count(delimiter) == 3 else ()  # of TREC, or three of BEIR
    rows = _read_cells(file, columns, (delimiter, None), counts, rated=False)
    for _, (query, text, grade) in records.convert_rows(file, rows, convert):
        if not queries[query] or not text:
            counts["judgements left out, for a text is empty"] += 1
            continue
        earlier = found[query].get(text, grade)
        counts[_DIFFER] += earlier != grade
        found[query][text] = max(grade, earlier)
    # Ids name the queries here, as MTEB counts them.
    return records.collect(file, enumerate(found.items()), build, counts, join=False)


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
) -> list[Record]:
    """Read a split of a data set on the Hugging Face Hub, or of a local folder of that layout.

    The optional library `datasets` downloads it once, into its own cache. With HF_HUB_OFFLINE=1
    only what lies there is read. `split` is its name there, or a slice such as `train[:5%]`; an
    empty `revision` is the newest. Rows become records as those of JSON in `read_file`.
    """
    try:
        import datasets
    except ImportError as error:
        raise SourceError(f"{name}: expected a package: pip install datasets") from error
    source = f"{name}[{split}]"
    columns = check_columns(source, task, columns, scale)
    try:
        table = datasets.load_dataset(name, config or None, split=split, revision=revision or None)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise SourceError(
            f"{source}: expected a data set of the Hub or a local folder, found: "
            f"{' '.join(str(error).split())}. Check name, split, revision and connection."
        ) from error
    return _from_rows(source, enumerate(table, start=1), columns, scale, Counter())
