"""The unified record: what it accepts, what it refuses, and that files give back what they got."""

from __future__ import annotations

import gzip
import json
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codiemb_lib.data.records import Record, RecordError, is_text, read_jsonl, write_jsonl

IR = {"task": "ir", "query": "mean", "positives": ["The average."], "negatives": ["The median."]}
STS = {"task": "sts", "query": "cup", "positives": ["mug"], "positive_scores": [0.9]}

text = st.text(st.characters(exclude_categories=("Cs",)), min_size=1).filter(is_text)
records = st.one_of(
    st.builds(
        lambda query, texts, n: Record("ir", query, tuple(texts[:n]), tuple(texts[n:])),
        text,
        st.lists(text, min_size=1, max_size=5, unique=True),
        st.integers(1, 5),
    ),
    st.builds(
        lambda left, right, score: Record("sts", left, (right,), positive_scores=(score,), id="a"),
        text,
        text,
        st.floats(0, 1),
    ),
)


def write_lines(path, *rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@given(st.lists(records, min_size=1, max_size=5, unique_by=lambda record: record.query.strip()))
def test_a_file_gives_back_what_it_got(tmp_path_factory, batch):
    path = tmp_path_factory.mktemp("records") / "records.jsonl"
    write_jsonl(path, batch)
    assert read_jsonl(path) == batch


def test_blank_lines_byte_order_mark_and_line_separators_inside_strings(tmp_path):
    path = tmp_path / "records.jsonl"
    row = json.dumps(IR | {"query": "two\u2028lines"}, ensure_ascii=False)
    path.write_bytes(b"\xef\xbb\xbf" + f"\n{row}\r\n\n".encode())
    (record,) = read_jsonl(path)
    assert record.query == "two\u2028lines"


def test_score_belongs_to_pairs():
    assert Record("sts", "a", ("b",), positive_scores=(0.25,)).score == 0.25
    with pytest.raises(RecordError, match="field 'task': expected 'sts'"):
        _ = Record("ir", "a", ("b",)).score


@pytest.mark.parametrize(
    ("score", "kept"),
    [(np.float32(0.5), 0.5), (np.float64(0.5), 0.5), (np.int64(1), 1), (Fraction(1, 2), 0.5)],
)
def test_scores_of_other_libraries_become_pythons(tmp_path, score, kept):
    record = Record("ir", "q", ("p",), ["n"], positive_scores=(score,), negative_scores=[score])
    for scores in (record.positive_scores, record.negative_scores):
        assert scores == (kept,)
        assert type(scores[0]) is type(kept)
    write_jsonl(tmp_path / "records.jsonl", [record])
    assert read_jsonl(tmp_path / "records.jsonl") == [record]


@pytest.mark.parametrize("score", [np.True_, np.float32("nan"), np.float64("inf"), 1j])
def test_what_is_no_finite_number_is_no_score(score):
    with pytest.raises(RecordError, match="field 'positive_scores': expected a list of finite"):
        Record("ir", "q", ("p",), positive_scores=(score,))


@pytest.mark.parametrize(
    ("change", "field", "expected"),
    [
        ({"task": "classify"}, "task", "'ir' or 'sts'"),
        ({"query": "  "}, "query", "a string that is not empty"),
        ({"query": "\u200b\x00 \ufeff"}, "query", "a string that is not empty"),
        ({"query": "half \ud800"}, "query", "a string that is not empty"),
        ({"positives": []}, "positives", "a list of non-empty strings, not empty"),
        ({"positives": "text"}, "positives", "a list of non-empty strings"),
        ({"positives": ["a", ""]}, "positives", "a list of non-empty strings"),
        ({"positives": ["a", "\u2060"]}, "positives", "a list of non-empty strings"),
        ({"negatives": [3]}, "negatives", "a list of non-empty strings"),
        ({"negatives": ["The average."]}, "negatives", "texts that are no positives"),
        ({"positive_scores": [1, 2]}, "positive_scores", "one score for each of 1 texts"),
        ({"positive_scores": ["1"]}, "positive_scores", "a list of finite numbers"),
        ({"positive_scores": [True]}, "positive_scores", "a list of finite numbers"),
        ({"negative_scores": [float("nan")]}, "negative_scores", "a list of finite numbers"),
        ({"positive_scores": [10**400]}, "positive_scores", "a list of finite numbers"),
        ({"dataset": 3}, "dataset", "a string"),
    ],
)
def test_a_bad_line_is_refused_with_its_place(tmp_path, change, field, expected):
    path = write_lines(tmp_path / "bad.jsonl", IR, IR, IR | change)
    with pytest.raises(RecordError) as error:
        read_jsonl(path)
    message = str(error.value)
    assert message.startswith(f"{path}:3: field {field!r}: expected {expected}")
    assert "found" in message


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"positives": ["a", "b"], "positive_scores": [0.1, 0.2]}, "positives"),
        ({"negatives": ["a"]}, "positives"),
        ({"positive_scores": []}, "positive_scores"),
        ({"positive_scores": [4.2]}, "positive_scores"),
        ({"positive_scores": [-0.1]}, "positive_scores"),
    ],
)
def test_a_pair_has_one_positive_with_a_score_in_the_unit_interval(tmp_path, change, field):
    path = write_lines(tmp_path / "bad.jsonl", STS | change)
    with pytest.raises(RecordError, match=rf":1: field '{field}': expected exactly one"):
        read_jsonl(path)


@pytest.mark.parametrize(
    "row",
    [{**IR, "positive": ["a"]}, {"task": "ir", "query": "mean"}, {**IR, "positives": None}],
)
def test_a_missing_or_unknown_key_is_refused(tmp_path, row):
    with pytest.raises(RecordError, match=r":1: expected the keys task, query, positives, .*found"):
        read_jsonl(write_lines(tmp_path / "bad.jsonl", row))


def test_lines_that_are_no_objects(tmp_path):
    path = write_lines(tmp_path / "bad.jsonl", IR, '{"task": "ir", ')
    with pytest.raises(RecordError, match=r"bad\.jsonl:2: expected JSON, found"):
        read_jsonl(path)
    path = write_lines(tmp_path / "bad.jsonl", IR, '{"positive_scores": [' + "1" * 5000 + "]}")
    with pytest.raises(RecordError, match=r"bad\.jsonl:2: expected JSON, found: Exceeds the limit"):
        read_jsonl(path)
    path = write_lines(tmp_path / "bad.jsonl", IR, '{"task": ' + "[" * 100_000)
    with pytest.raises(RecordError, match=r"bad\.jsonl:2: expected JSON, found: maximum recursion"):
        read_jsonl(path)
    with pytest.raises(RecordError, match=r"bad\.jsonl:1: expected a JSON object, found 'text'"):
        read_jsonl(write_lines(path, '"text"'))
    for data, place in [
        (json.dumps(IR).encode() + b"\n\xff\xfe\n", "2: expected UTF-8, found byte 0xff"),
        (json.dumps(IR).encode("utf-16"), "1: expected UTF-8, found byte 0xff.*iconv -f UTF-16"),
        (json.dumps(IR).encode("utf-16-le"), "1: expected UTF-8, found byte 0x00.*iconv"),
    ]:
        path.write_bytes(data)
        with pytest.raises(RecordError, match=rf"bad\.jsonl:{place}"):
            read_jsonl(path)


def test_a_packed_file_is_unpacked(tmp_path):
    path = tmp_path / "records.jsonl.gz"
    path.write_bytes(gzip.compress((json.dumps(IR) + "\n").encode()))
    assert read_jsonl(path) == [Record(**IR)]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(
        RecordError, match="expected a file that can be read, found: Compressed file"
    ):
        read_jsonl(path)
    path.write_text("no gzip")
    with pytest.raises(
        RecordError, match="expected a file that can be read, found: Not a gzipped file"
    ):
        read_jsonl(path)


def test_null_is_an_absent_key(tmp_path):
    """As pandas and datasets write what a row lacks."""
    absent = {"negatives": None, "positive_scores": None, "id": None}
    path = write_lines(
        tmp_path / "a.ndjson", IR | absent, {"task": None, "query": "q", "pos": ["p"]}
    )
    assert read_jsonl(path, task="ir") == [
        Record("ir", "mean", ("The average.",)),
        Record("ir", "q", ("p",)),
    ]


def test_no_records_are_not_written(tmp_path):
    with pytest.raises(RecordError, match="expected at least one record to write, found none"):
        write_jsonl(tmp_path / "records.jsonl", [])
    assert [*tmp_path.iterdir()] == []


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "records.jsonl"
    write_jsonl(path, [Record(**IR)])

    def broken():
        yield Record(**IR)
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        write_jsonl(path, broken())
    assert read_jsonl(path) == [Record(**IR)]
    assert list(tmp_path.iterdir()) == [path]
