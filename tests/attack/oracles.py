"""What files say, read by rules of the tests' own: strict JSON, the module csv, YAML's nodes.

An oracle raises `Refused` where no careful reader would take a file. It shares no code with
codiemb_lib, and knows of settings only what the readers' results show.
"""

from __future__ import annotations

import ast
import csv
import io
import json
import math
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

Rows = list[tuple]
NUMBER = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*", re.ASCII)


class Refused(Exception):
    """No careful reader takes this."""


def need(condition: object, why: str = "") -> None:
    if not condition:
        raise Refused(why)


def text_of(file: Path) -> str:
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refused("encoding") from error
    need("\0" not in text and text.strip(), "NUL, or empty")
    return text


def strict_json(text: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        need(len(dict(pairs)) == len(pairs), "a key twice")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise Refused("no JSON") from error


# --- Records --------------------------------------------------------------------------------------


def is_said(value: Any) -> bool:
    kinds = {unicodedata.category(c) for c in value} if isinstance(value, str) else set()
    return "Cs" not in kinds and bool(kinds - {"Cc", "Cf", "Zs", "Zl", "Zp"})


def is_score(value: Any) -> bool:
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:
        return False


def record(task, query, positives, negatives=(), ps=(), ns=(), name="", same="") -> tuple:
    need(task in ("ir", "sts") and is_said(query), "task, query")
    need(type(name) is str and type(same) is str, "id")
    for texts, scores in ((positives, ps), (negatives, ns)):
        need(isinstance(texts, list | tuple) and all(map(is_said, texts)), "texts")
        need(isinstance(scores, list | tuple) and all(map(is_score, scores)), "scores")
        need(len(scores) in (0, len(texts)), "number of scores")
    query, positives, negatives = (
        query.strip(),
        *([*map(str.strip, x)] for x in (positives, negatives)),
    )
    need(positives and not {*positives} & {*negatives}, "positives")
    if task == "sts":
        need((len(positives), len(negatives), len(ps)) == (1, 0, 1) and 0 <= ps[0] <= 1, "pair")
    return task, query, tuple(positives), tuple(negatives), tuple(ps), tuple(ns), name, same


def joined(records: Rows) -> Rows:
    """Rows of one query are one: of its texts each once, at its best score, positives first."""
    need(records, "no record")
    groups: dict[Any, Rows] = {}
    for place, one in enumerate(records):
        groups.setdefault(one[1].strip() if one[0] == "ir" else place, []).append(one)
    return [group[0] if len(group) == 1 else one_of(group) for group in groups.values()]


def one_of(group: Rows) -> tuple:
    sides: list[tuple] = []
    scores: list[tuple] = []
    for texts, given in ((2, 4), (3, 5)):
        scored = all(len(one[texts]) == len(one[given]) for one in group)
        best: dict[str, float] = {}
        for one in group:
            for place, text in enumerate(one[texts]):
                if not (sides and text in sides[0]):
                    score = one[given][place] if scored else 0
                    best[text] = max(best.get(text, score), score)
        sides.append(tuple(best))
        scores.append(tuple(best.values()) if scored else ())
    return (*group[0][:2], *sides, *scores, *group[0][6:])


def json_rows(file: Path) -> list[dict[str, Any]]:
    text = text_of(file)
    if text.lstrip().startswith("["):
        rows = strict_json(text)
    else:
        rows = [strict_json(line) for line in text.split("\n") if line.strip()]
    need(all(isinstance(row, dict) for row in rows), "no objects")
    return rows


def unified(folder: Path) -> Rows:
    fields = ["task", "query", "positives", "negatives", "positive_scores", "negative_scores"]
    fields += ["dataset", "id", "same_id"]
    out = []
    for given in json_rows(folder / "x.jsonl"):
        row = {key: value for key, value in given.items() if value is not None}
        need({*fields[:3]} <= row.keys() <= {*fields}, "keys")
        need(type(row.pop("dataset", "")) is str, "dataset")
        empty: list = []
        sides = (row.get(name, empty) for name in fields[2:6])
        need(type(row["task"]) is str, "task")
        out.append(
            record(row["task"], row["query"], *sides, row.get("id", ""), row.get("same_id", ""))
        )
    return joined(out)


def authors(folder: Path) -> Rows:
    """CoDiEmb's and FlagEmbedding's own form; what they do not know they do not look at."""

    def joined_text(value: Any) -> str:
        if isinstance(value, list) and len(value) == 3 and all(type(v) is str for v in value):
            return value[1] + value[2]
        need(type(value) is str, "text")
        return value

    def side(row: dict, name: str) -> tuple[list, list]:
        texts = row.get(f"{name}s", row.get(name[:3])) or []
        scores = row.get(f"{name}_scores", row.get(f"{name[:3]}_scores")) or []
        need(type(texts) is list and type(scores) is list, "lists")
        need(len(scores) in (0, len(texts)), "number of scores")
        return [*map(joined_text, texts)], scores

    out = []
    for given in json_rows(folder / "x.json"):
        row = {key: value for key, value in given.items() if value is not None}
        need("task" not in row and {"positives", "pos"} & row.keys(), "keys")
        query = joined_text(row.get("query"))
        (texts, scores), (others, theirs) = side(row, "positive"), side(row, "negative")
        if (task := row.get("task_type", "ir")) == "sts":
            need(len(scores) + len(theirs) == len(texts) + len(others), "scores")
            pairs = zip(texts + others, scores + theirs, strict=True)
            out += [record("sts", query, [text], (), [score]) for text, score in pairs]
            continue
        need(task == "ir", "task")
        kept = [place for place, text in enumerate(others) if text not in texts]
        theirs = [theirs[place] for place in kept] if theirs else []
        out.append(record("ir", query, texts, [others[place] for place in kept], scores, theirs))
    return joined(out)


# --- Tables ---------------------------------------------------------------------------------------


def readings(file: Path, delimiter: str = "") -> list[list[list[str]]]:
    """The table with quotation marks that enclose cells, and with such as are text."""
    text = text_of(file)
    told = re.match(r'"?sep=(.)"?\r?\n(?=\s*\S)', text)
    text = text[told.end() :] if told else text
    tabbed = "\t" in text.lstrip("\r\n").split("\n", 1)[0]
    delimiter = delimiter or (told[1] if told else "\t" if tabbed else ",")
    out = []
    kinds = ({}, {"skipinitialspace": True}, {"quoting": csv.QUOTE_NONE})
    for kind in kinds:  # a blank may stand before the mark that opens a cell
        lines = io.StringIO(text, newline="")
        try:
            table = [
                row for row in csv.reader(lines, delimiter=delimiter, strict=True, **kind) if row
            ]
            out.append([[name.strip() for name in row] for row in table[:1]] + table[1:])
        except csv.Error:
            continue
    return out


def cell(text: str) -> str:
    return text.strip() if is_said(text) else ""


def rated(table: list[list[str]], columns: list, low: float, high: float) -> Rows:
    first, out = table[0], []
    if isinstance(columns[0], str):
        need(all(first.count(column) == 1 for column in columns), "header")
        columns, table = [first.index(column) for column in columns], table[1:]
    else:
        need(len(first) > max(columns), "cells")
        table = table[not NUMBER.fullmatch(first[columns[2]]) :]
    for row in table:
        need(len(row) >= len(first), "cells")
        left, right = cell(row[columns[0]]), cell(row[columns[1]])
        score = row[columns[2]].strip()
        if left and right:
            need(NUMBER.fullmatch(score) and low <= float(score) <= high, "score")
            value = round((float(score) - low) / (high - low), 6)
            out.append(record("sts", left, [right], (), [value]))
    return joined(out)


def answered(table: list[list[str]], columns: list[str]) -> Rows:
    first, out = table[0], []
    need(all(first.count(column) == 1 for column in columns), "header")
    places = [first.index(column) for column in columns]
    for row in table[1:]:
        need(len(row) == len(first), "cells")
        query, answer, *wrong = (cell(row[place]) for place in places)
        if query and answer:
            out.append(record("ir", query, [answer], [w for w in wrong if w and w != answer]))
    return joined(out)


def either(file: Path, read: Callable[[list[list[str]]], Rows], delimiter: str = "") -> list[Rows]:
    """What the readings of a table give: which of them is meant, the file may not say."""
    out = []
    for table in readings(file, delimiter):
        try:
            need(table, "no row")
            out.append(read(table))
        except Refused:
            continue
    need(out, "no reading")
    return out


def beir(folder: Path) -> dict[str, Rows]:
    def texts(name: str) -> dict[str, str]:
        out: dict[str, str] = {}
        for row in json_rows(folder / name):
            need({"_id", "text"} <= row.keys(), "keys")
            need(type(row["_id"]) in (str, int) and row["_id"] != "", "id")
            need(str(row["_id"]) not in out, "an id twice")
            parts = [row.get("title") or "", row["text"] or ""]
            need(all(type(part) is str for part in parts), "text")
            whole = cell(" ".join(parts))
            need(not whole or is_said(whole), "text")
            out[str(row["_id"])] = whole
        return out

    corpus, queries = texts("corpus.jsonl"), texts("queries.jsonl")

    def judged(table: list[list[str]]) -> Rows:
        first = table[0]
        names = ["query-id", "corpus-id", "score"]
        if any(NUMBER.fullmatch(c) for c in first):
            need(len(first) in (3, 4), "columns")
            names, body = [0, 1, 2] if len(first) == 3 else [0, 2, 3], table
            need(len(first) == 3 or all(row[1:2] in (["0"], ["Q0"]) for row in table), "TREC")
        elif all(first.count(name) == 1 for name in names):
            names, body = [first.index(name) for name in names], table[1:]
        else:
            need(len(first) == 3, "header")
            names, body = [0, 1, 2], table[1:]
        grades: dict[str, dict[str, float]] = {}
        for row in body:
            need(len(row) == len(first), "cells")
            query, document, grade = (row[name] for name in names)
            need(query in queries and document in corpus, "ids")
            need(NUMBER.fullmatch(grade) and float(grade).is_integer(), "grade")
            if queries[query] and corpus[document]:
                of = grades.setdefault(query, {})
                of[corpus[document]] = max(float(grade), of.get(corpus[document], float(grade)))
        out = []
        for query, of in grades.items():
            best = {text: grade for text, grade in of.items() if grade > 0}
            scores = list(best.values()) if {*best.values()} != {1.0} else []
            others = [text for text in of if text not in best]
            if best:
                same = corpus.get(query, "")
                out.append(record("ir", queries[query], [*best], others, scores, (), query, same))
        need(out, "no record")
        return out

    return {"test": either(folder / "qrels" / "test.tsv", judged)}


# --- YAML -----------------------------------------------------------------------------------------


def nodes(file: Path) -> yaml.Node:
    try:
        node = yaml.compose(text_of(file), yaml.BaseLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise Refused("no YAML") from error
    need(node, "no YAML")
    return node


def says(node: yaml.Node, held: Any, place: str = "") -> None:
    """Refuse a node that does not say what a reader holds: each key once and known, each value."""
    if isinstance(node, yaml.MappingNode):
        need(isinstance(held, dict), f"{place}: a mapping, held {held!r:.80}")
        keys = [key.value for key, _ in node.value]
        need(all(isinstance(key, str) and keys.count(key) == 1 for key in keys), f"{place}: keys")
        for key, value in node.value:
            need(key.value in held, f"{place}.{key.value}: not known")
            says(value, held[key.value], f"{place}.{key.value}")
    elif isinstance(node, yaml.SequenceNode):
        need(isinstance(held, list | tuple), f"{place}: a list, held {held!r:.80}")
        need(len(held) == len(node.value), f"{place}: of another length")
        for number, (value, of) in enumerate(zip(node.value, held, strict=True)):
            says(value, of, f"{place}[{number}]")
    else:
        need(scalar(node, held), f"{place}: {node.value!r:.80}, held {held!r:.80}")


def scalar(node: yaml.ScalarNode, held: Any) -> bool:
    text, plain = node.value, node.style is None
    if held is None:
        return plain and text in ("", "~", "null", "Null", "NULL")
    if isinstance(held, bool):
        said = (
            ("true", "yes", "on", "y", "t", "1") if held else ("false", "no", "off", "n", "f", "0")
        )
        return text.lower() in said  # a switch may be said in any of these words
    if isinstance(held, int) and re.fullmatch(r"[+-]?[0-9]+", text):
        return int(text) == held  # beyond what a float holds
    if isinstance(held, int | float):
        return bool(NUMBER.fullmatch(text)) and float(text) == held and math.isfinite(held)
    return text == held and isinstance(held, str)


# --- Notebooks ------------------------------------------------------------------------------------


def parameters(file: Path) -> dict[str, Any]:
    try:
        notebook = json.loads(text_of(file))  # with the last of two equal keys, as Jupyter does
    except (ValueError, RecursionError) as error:
        raise Refused("no JSON") from error
    need(isinstance(notebook, dict) and isinstance(notebook.get("cells"), list), "cells")
    found = []
    for one in notebook["cells"]:
        need(isinstance(one, dict) and isinstance(one.get("metadata"), dict), "a cell")
        tags = one["metadata"].get("tags", [])
        need(isinstance(tags, list), "tags")
        if "parameters" in tags:
            found.append(one)
    need(len(found) == 1 and found[0].get("cell_type") == "code", "one cell")
    source = found[0].get("source")
    lines = source if isinstance(source, list) else [source]
    need(all(isinstance(line, str) for line in lines), "source")
    out: dict[str, Any] = {}
    try:
        for node in ast.parse("".join(lines)).body:
            need(isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name), "a line")
            need(isinstance(node.annotation, ast.Name) and node.value, "a kind")
            value = ast.literal_eval(node.value)
            need(type(value).__name__ == node.annotation.id, "a value")
            out[node.target.id] = value
    except (SyntaxError, ValueError, RecursionError) as error:
        raise Refused("no Python") from error
    return out
