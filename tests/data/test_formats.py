"""Readers: every form as users have it, and what is refused with its line."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import sys
from pathlib import Path

import pandas as pd
import pytest

from codiemb_lib.core.files import data_root
from codiemb_lib.data.formats import (
    read_beir,
    read_beir_corpus,
    read_file,
    read_hub,
    read_path,
)
from codiemb_lib.data.records import (
    Record,
    RecordError,
    SourceError,
    read_jsonl,
    say_grades,
)

SHARED = data_root("../shared/data")
real_files = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no real files in {SHARED}")


def write(path: Path, *rows, pack: bool = False) -> Path:
    """A file of these lines; what is no string is written as JSON."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    data = ("\n".join(lines) + "\n").encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if pack else data)
    return path


@pytest.fixture
def said(caplog):
    """What the readers log, without the path."""
    return lambda: [message.split(": ", 1)[1] for message in caplog.messages]


# --- JSON ---


def test_the_layout_of_the_authors(tmp_path):
    instruction = "Represent the sentence"
    pair = {
        "task_type": "sts",
        "query": [instruction, "", "cup"],
        "positives": [[instruction, "", "mug"]],
        "negatives": [],
        "positive_scores": [0.9],
    }
    search = {
        "task_type": "ir",
        "query": [instruction, "In Python: ", "mean"],
        "positives": [["", "", "The average."]],
        "negatives": [["", "", "The median."]],
    }
    expected = [
        Record("sts", "cup", ("mug",), positive_scores=(0.9,)),
        Record("ir", "In Python: mean", ("The average.",), ("The median.",)),
    ]
    path = write(tmp_path / "train.json", pair, search)
    assert read_jsonl(path) == expected
    path.write_text(json.dumps([pair, search]), encoding="utf-8")
    assert read_jsonl(path) == expected


def test_graded_texts_become_pairs_whichever_side_they_stand_on(tmp_path):
    row = {"query": "a", "pos": ["b", "c"], "pos_scores": [1, 0.5]}
    row |= {"neg": ["d"], "neg_scores": [0.1]}
    pairs = read_jsonl(write(tmp_path / "train.json", row), task="sts")
    assert [(pair.query, pair.positives, pair.score) for pair in pairs] == [
        ("a", ("b",), 1),
        ("a", ("c",), 0.5),
        ("a", ("d",), 0.1),
    ]


def test_the_layout_of_flagembedding(tmp_path, said):
    row = {"query": "q", "pos": ["p"], "neg": ["n", "p", "m"], "prompt": "Retrieve"}
    row |= {"pos_scores": [98.6], "neg_scores": [85.5, 98.6, 86.25]}
    path = write(tmp_path / "nq.jsonl", row, {"query": "r", "pos": ["p"], "neg": []})
    assert read_jsonl(path, task="ir") == [
        Record("ir", "q", ("p",), ("n", "m"), (98.6,), (85.5, 86.25)),
        Record("ir", "r", ("p",)),
    ]
    assert said() == [
        "1 rows whose key 'prompt' is passed over",
        "1 negatives left out, for they are positives of the same query",
    ]
    write(tmp_path / "typo.jsonl", {"query": "q", "pos": ["p"], "negs": ["n"]})
    assert read_jsonl(tmp_path / "typo.jsonl", task="ir") == [Record("ir", "q", ("p",))]
    assert said()[-1] == "1 rows whose key 'negs' is passed over"
    with pytest.raises(RecordError, match=r"nq\.jsonl:1: field 'task_type'.*prepare .*--task ir"):
        read_jsonl(path)


@pytest.mark.parametrize("form", ["unified", "authors", "FlagEmbedding", "table"])
def test_rows_of_one_query_are_one_record_in_every_form(tmp_path, said, form):
    rows = [("q", "p", "n"), ("r", "p", "m"), (" q", "o", "p")]
    made = {
        "unified": lambda q, p, n: {"task": "ir", "query": q, "positives": [p], "negatives": [n]},
        "authors": lambda q, p, n: {
            "task_type": "ir",
            "query": q,
            "positives": [p],
            "negatives": [n],
        },
        "FlagEmbedding": lambda q, p, n: {"query": q, "pos": [p], "neg": [n]},
        "table": lambda q, p, n: {"q": q, "p": p, "n": n},
    }[form]
    path = write(tmp_path / "rows.jsonl", *(made(*row) for row in rows))
    columns = ("q", "p", "n") if form == "table" else ()
    assert read_file(path, task="ir", columns=columns) == [
        Record("ir", "q", ("p", "o"), ("n",)),
        Record("ir", "r", ("p",), ("m",)),
    ]
    assert {*said()} == {
        "1 rows merged with an earlier one of the same query",
        "1 negatives left out, for they are positives of the same query",
    }


def test_merged_rows_keep_their_first_id_and_the_best_scores_or_none(tmp_path, said):
    row = {"task": "ir", "query": "q", "positives": ["a", "b"], "positive_scores": [1, 2]}
    row |= {"negatives": ["n"], "negative_scores": [0.1], "id": "first"}
    other = row | {"positives": ["c", "a"], "positive_scores": [1, 3], "id": "second"}
    other |= {"negatives": ["n", "m"], "negative_scores": [0.3, 0.2]}
    assert read_jsonl(write(tmp_path / "a.jsonl", row, other)) == [
        Record("ir", "q", ("a", "b", "c"), ("n", "m"), (3, 2, 1), (0.3, 0.2), id="first")
    ]
    bare = {"task": "ir", "query": "q", "positives": ["c"]}
    assert read_jsonl(write(tmp_path / "b.jsonl", row, bare)) == [
        Record("ir", "q", ("a", "b", "c"), ("n",), (), (0.1,), id="first")
    ]
    assert said()[-1] == "1 lists of scores left out, for not all rows of their query have one"


@pytest.mark.parametrize("scores", [{}, {"pos_scores": [1.0]}])
def test_ungraded_texts_are_no_pairs(tmp_path, scores):
    path = write(tmp_path / "sts.jsonl", {"query": "a", "pos": ["b"], "neg": ["c"]} | scores)
    with pytest.raises(RecordError, match=r":1: .*a score for each of 2 texts.*task 'ir'"):
        read_jsonl(path, task="sts")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"query": "q", "answer": "a"}, r"'positives' or 'pos', found \['answer', 'query'\]"),
        ({"query": ["", "text"], "pos": ["p"]}, r"'query': expected a string, or \["),
        ({"query": 3, "pos": ["p"]}, r"'query': expected a string, or \["),
        ({"query": "q", "pos": [["", "", None]]}, r"'positives': expected a string, or \["),
        ({"query": "q", "pos": "p"}, "'positives': expected a list of texts"),
        ({"query": "q", "pos": []}, "'positives': expected a list of non-empty strings, not empty"),
        ({"query": "q", "pos": ["p"], "neg": ["n"], "neg_scores": [1, 2]}, "a list of 1 scores"),
        ({"query": "q", "pos": ["p"], "pos_scores": 1}, "a list of 1 scores, or none"),
        ({"query": "q", "pos": ["p"], "pos_scores": ["1"]}, "a list of finite numbers"),
    ],
)
def test_a_bad_row_is_refused_with_its_line(tmp_path, row, message):
    path = write(tmp_path / "bad.jsonl", {"query": "q", "pos": ["p"]}, row)
    with pytest.raises(RecordError, match=rf"bad\.jsonl:2: field .*{message}"):
        read_jsonl(path, task="ir")


# --- Tables of rated pairs ---


def test_a_table_without_header_is_read_by_position(tmp_path, said):
    lines = ['"A plane, taking off.","A ""plane"".",5.0', "", "a,b,1", "a, ,1", ",b,1"]
    path = write(tmp_path / "sts.csv", *lines)
    assert read_file(path, scale=(0, 5)) == [
        Record("sts", "A plane, taking off.", ('A "plane".',), (), (1.0,)),
        Record("sts", "a", ("b",), (), (0.2,)),
    ]
    assert said() == ["2 rows left out, for they lack a text"]
    (record, _) = read_file(path, scale=(0, 5), columns=(1, 0, 2))
    assert record.positives == ("A plane, taking off.",)


def test_a_table_with_header_is_read_by_name_or_by_position(tmp_path):
    path = write(tmp_path / "sick.txt.gz", "id\tA\tB\tscore", '1\ta "b\tc\t4.5', pack=True)
    expected = [Record("sts", 'a "b', ("c",), positive_scores=(0.875,))]
    assert read_file(path, scale=(1, 5), columns=("A", "B", "score")) == expected
    assert read_file(path, scale=(1, 5), columns=(1, 2, 3)) == expected


def test_rated_pairs_in_json_lines_or_with_another_delimiter(tmp_path):
    expected = [Record("sts", "a", ("b",), positive_scores=(0.5,))]
    path = write(tmp_path / "pairs.jsonl", {"x": "a", "y": " b ", "gold": "2.5"})
    assert read_file(path, scale=(0, 5), columns=("x", "y", "gold")) == expected
    path = write(tmp_path / "pairs.csv", "a;b;2.5")
    assert read_file(path, scale=(0, 5), delimiter=";") == expected
    assert read_path(path, scale=(0, 5), delimiter=";") == {"train": expected}


@pytest.mark.parametrize("name", ["score", "Label", "relatedness_score", " gold ", "score2"])
def test_a_header_is_known_by_what_it_calls_the_rating(tmp_path, name):
    path = write(tmp_path / "sts.csv", f"x,y,{name}", "a,b,1")
    assert read_file(path, scale=(0, 1)) == [Record("sts", "a", ("b",), positive_scores=(1.0,))]


@pytest.mark.parametrize("score", ["n/a", "", "nan", "1_0", "good", "unlabelled"])
def test_a_rating_in_the_first_row_is_not_taken_for_a_header(tmp_path, score):
    path = write(tmp_path / "sts.csv", f"a,b,{score}", "c,d,1")
    with pytest.raises(RecordError, match=r"sts\.csv:1: .*a score in \[0, 5\], found .*name col"):
        read_file(path, scale=(0, 5))


@pytest.mark.parametrize("score", ["5.1", "-0.1", "nan", "1_0", "good"])
def test_a_score_off_the_scale_is_refused_with_its_line(tmp_path, score):
    path = write(tmp_path / "sts.csv", '"two\nlines",b,1', f"a,b,{score}")
    with pytest.raises(RecordError, match=rf"sts\.csv:3: .*a score in \[0, 5\], found '{score}'"):
        read_file(path, scale=(0, 5))


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        (["a,b,1", "a,b"], {}, r"sts\.csv:2: expected 3 cells separated by ',', .*found 2"),
        (["a,b,1", "a, or b,c,1"], {}, r":2: expected 3 cells .* found 4\. .*quotation marks"),
        (["a, or b,2,score", "a,b,1"], {"columns": (0, 1, 3)}, r":2: expected 4 cells .* found 3"),
        (["x\ty\tscore", "a\t1"], {}, r":2: expected 3 cells separated by '\\t'.*found 2"),
        (["x\ty\tscore", "a\tb\tc\t1"], {}, r":2: expected 3 cells separated by .* found 4"),
        (["a,b,4,5"], {}, r":1: expected each of the columns \[0, 1, 2\] once, found .*'4', '5'"),
        (["x;y;score", "a;b;4,5"], {"delimiter": ";"}, r":2: field 'score': .*'4,5'.*have a point"),
        (
            ["a;b;1"],
            {},
            r":1: .*\[0, 1, 2\] once, found .*by ','.*--delimiter ';'",
        ),
        (["x,y,z", "a,b,1"], {"columns": ("x", "q", "z")}, r":1: .*'q'.* once, found .*"),
        (["x;y;z", "a;b;1"], {"columns": ("x", "y", "z")}, r"by ','\. .*--delimiter ';'"),
        (["a;b;1"], {"delimiter": ""}, "by one character, '', found"),
        (["a;b;1"], {"delimiter": ";;"}, "by one character, ';;', found"),
        (["x,x,z", "a,b,1"], {"columns": ("x", "y", "z")}, "of its header"),
        (
            ["x,y,x,z", "a,b,c,1"],
            {"columns": ("x", "y", "z")},
            r":1: .* once, found .*of its header",
        ),
        (["x,y,z", "a,b,1"], {"columns": ("x", "x", "z")}, "none of them twice"),
        (["a,b,1"], {"columns": (0, 0, 2)}, "none of them twice"),
        (
            ["a,b,1", '"a,b,1'],
            {"quoting": "yes"},
            ":2: .* separated by one .*found: unexpected end",
        ),
        (["a,b,1"], {"scale": (5, 0)}, "LOW < HIGH"),
        (["a,b,1"], {"scale": (0, float("inf"))}, "LOW < HIGH"),
        (["a,b,1"], {"columns": (0, 1)}, "two texts and their score"),
        (["a,b,1"], {"columns": (0, 1, "score")}, "all names or all positions"),
        ([""], {}, "found an empty file"),
        (["x,y,score"], {}, "expected at least one record, found none"),
    ],
)
def test_a_bad_table_is_refused(tmp_path, lines, options, message):
    path = write(tmp_path / "sts.csv", *lines)
    with pytest.raises(RecordError, match=message):
        read_file(path, **{"scale": (0, 5)} | options)


def test_a_header_above_questions_is_no_record(tmp_path):
    header = write(tmp_path / "qa.csv", "id,question,Answer_1", "1,who?,me", "2,why?,text")
    found = [(r.query, r.positives) for r in read_file(header, columns=(1, 2))]
    assert found == [("who?", ("me",)), ("why?", ("text",))]
    none = write(tmp_path / "none.csv", "question,a word in French", "who?,me")
    assert len(read_file(none, columns=(0, 1))) == 2


def test_notes_behind_the_columns_of_tsv_are_passed_over(tmp_path):
    """The STS Benchmark's own files name sources behind some pairs."""
    first = "main-captions\tMSRvid\t2012\t1\t5.0\ta\tb"
    path = write(tmp_path / "sts-train.csv", first, "main-news\tx\t2014\t2\t2.5\tc\td\turl\turl")
    found = read_file(path, columns=(5, 6, 4), scale=(0, 5))
    assert [(r.query, *r.positives, r.score) for r in found] == [("a", "b", 1.0), ("c", "d", 0.5)]


def test_rows_in_json_are_read_by_their_keys_and_hold_one_text_a_side(tmp_path):
    path = write(
        tmp_path / "sts.jsonl", {"a": "x", "b": ["z"], "s": 1}, {"a": ["x", "y"], "b": "z", "s": 1}
    )
    with pytest.raises(
        RecordError, match=r"expected the columns \[0, 1, 2\], found \['a', 'b', 's'\]"
    ):
        read_file(path, scale=(0, 5))
    with pytest.raises(RecordError, match=r":2: field 'a': expected one text, found"):
        read_file(path, scale=(0, 5), columns=("a", "b", "s"))


# --- Dialects of tables ---


def pairs(path: Path, **form) -> list[tuple]:
    """The texts and scores of rated pairs."""
    return [(r.query, *r.positives, 5 * r.score) for r in read_file(path, scale=(0, 5), **form)]


@pytest.mark.parametrize("writer", ["csv", "pandas"])
@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_what_csv_and_pandas_write_is_read_back(tmp_path, writer, delimiter, quoting):
    rows = [('He said "no", she;\tleft.', 'two\nlines "x"', 1.0), ('"all"', "plain", 2.5)]
    path = tmp_path / "pairs.csv"
    if writer == "csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter=delimiter, quoting=quoting).writerows(
                [("a", "b", "score"), *rows]
            )
    else:
        table = pd.DataFrame(rows, columns=["a", "b", "score"])
        table.to_csv(path, sep=delimiter, quoting=quoting, index=False)
    assert pairs(path, delimiter=delimiter) == rows


def test_quotation_marks_that_are_text(tmp_path, said):
    path = write(tmp_path / "sts.csv", '"No, he" said.,b,1', 'c "x",d,2', "e,f,3", 'g,"h" i,4')
    with pytest.raises(RecordError, match=r":1: .* expected after.* Or: .*:1: .*'\"No', 'he"):
        pairs(path)
    path = write(tmp_path / "sts.csv", '"No" he said.,b,1', 'c "x",d,2', "e,f,3", 'g,"h" i,4')
    assert pairs(path) == [
        ('"No" he said.', "b", 1),
        ('c "x"', "d", 2),
        ("e", "f", 3),
        ("g", '"h" i', 4),
    ]
    assert said() == ["2 cells open with quotation marks, which were kept as text"]


def test_quotation_marks_behind_blanks_enclose_cells_too(tmp_path, said):
    path = write(tmp_path / "sts.csv", "a, b, score", 'c, "d, e", 1', '"f", "g", 2')
    assert pairs(path) == [("c", "d, e", 1), ("f", "g", 2)]
    path = write(tmp_path / "sts.csv", '"a", "b", 1', 'c, "d", 2')
    assert pairs(path) == [("a", "b", 1), ("c", "d", 2)]
    assert said() == [
        "3 cells open with quotation marks, which were taken off; --quoting no keeps them"
    ]


def test_quotation_marks_behind_backslashes_are_refused(tmp_path):
    path = write(tmp_path / "sts.csv", "a,b,score", r'"He said \"hi\"",x,3', '"y",z,2')
    with pytest.raises(RecordError, match=r"Or: .* found 2 rows by --quoting no"):
        pairs(path)


def test_quotation_marks_of_tsv(tmp_path, said):
    path = write(tmp_path / "sts.tsv", '"a"\t"b"\t"score"', '"a ""b"""\t"c"\t1', "d\te\t2")
    assert pairs(path) == [('a "b"', "c", 1), ("d", "e", 2)]
    kept = [('"a ""b"""', '"c"', 1), ("d", "e", 2)]
    assert pairs(path, quoting="no") == kept
    assert said() == [
        "2 cells open with quotation marks, which were taken off; --quoting no keeps them",
        "2 cells open with quotation marks, which were kept as text",
    ]


def test_a_table_that_reads_two_ways_is_refused_with_both(tmp_path, said):
    path = write(tmp_path / "sts.csv", "a,b,1", '"c,d,2', 'e",f,3', "g,h,4")
    with pytest.raises(
        RecordError, match=r"3 rows by --quoting yes.* Or: .*4 rows by --quoting no"
    ):
        pairs(path)
    assert pairs(path, quoting="no")[1:3] == [('"c', "d", 2), ('e"', "f", 3)]
    assert pairs(path, quoting="yes")[1] == ("c,d,2\ne", "f", 3)
    assert said()[-1] == "1 cells hold line breaks, the first in line 2"
    cut = write(tmp_path / "cut.csv", '"a","b","1"', '"c","d","2"', '"e","f","3')
    with pytest.raises(RecordError, match=r"cut\.csv:3: .*unexpected end.* Or: .*3 rows by"):
        pairs(cut)


def test_a_line_of_excel_names_the_delimiter(tmp_path):
    path = write(tmp_path / "sts.csv", "sep=;", "a;b;score", "x, y;z;1", "x;y;9")
    with pytest.raises(RecordError, match=r"sts\.csv:4: field 'score': .*found '9'"):
        pairs(path)
    assert pairs(write(path, '"sep=|"', "x;|y|1")) == [("x;", "y", 1)]


def test_cells_of_any_length_are_read(tmp_path):
    path = write(tmp_path / "qa.csv", "question,answer", f"who?,{'a' * 200_000}")
    [record] = read_file(path, columns=("question", "answer"))
    assert len(record.positives[0]) == 200_000


def test_ratings_are_not_taken_for_negatives(tmp_path):
    path = write(tmp_path / "sts.csv", "text1,text2,score", "a cat,a dog,3", "a bus,a cat,1")
    for columns in [("text1", "text2", "score"), (0, 1, 2)]:
        with pytest.raises(RecordError, match=r"column 'score', found numbers alone.*--scale LOW"):
            read_file(path, columns=columns)
    with pytest.raises(RecordError, match=r"two texts and their score.*found columns \[\]"):
        read_file(path)
    assert read_file(path, columns=(0, 1, 2), task="ir")[0].negatives == ("3",)


@pytest.mark.parametrize("header", ["Frage,Antwort", "anchor,response", "问题,答案", "q_1,a_1"])
def test_a_row_that_may_be_a_header_is_refused(tmp_path, header):
    path = write(tmp_path / "qa.csv", header, "who is it?,it is me", "why?,no text")
    with pytest.raises(RecordError, match=r"qa\.csv:1: expected a header or a record, found"):
        read_file(path, columns=(0, 1))
    assert len(read_file(path, columns=header.split(","))) == 2
    words = write(tmp_path / "words.csv", "cat,Katze", "dog,Hund")
    assert len(read_file(words, columns=(0, 1))) == 2


def test_the_names_of_sentence_transformers_are_a_header(tmp_path):
    path = write(tmp_path / "qa.csv", "anchor,positive,negative", "cat,Katze,Hund")
    assert read_file(path, columns=(0, 1, 2)) == [Record("ir", "cat", ("Katze",), ("Hund",))]


@pytest.mark.parametrize("columns", [("question", "answer"), (0, 1)])
def test_a_tab_inside_an_answer_is_refused_with_its_line(tmp_path, columns):
    path = write(tmp_path / "qa.tsv", "question\tanswer", "why?\tso it is", "who?\tme\tand you")
    with pytest.raises(RecordError, match=r"qa\.tsv:3: expected 2 cells .*found 3"):
        read_file(path, columns=columns)


# --- Forms by name ---


@pytest.mark.parametrize("name", ["a.xlsx", "a.jsonl.zst", "a.arrow", "a.dat", "a"])
def test_a_name_of_no_form_is_refused(tmp_path, name):
    path = write(tmp_path / name, "a,b,1")
    with pytest.raises(RecordError, match=r"expected a name in \.jsonl, .*found '.*\.csv, unpack"):
        read_file(path, scale=(0, 5))


@pytest.mark.parametrize("name", ["A.CSV", "a.Txt", "a.TSV.GZ", "a.csv.bz2"])
def test_capitals_and_packings_do_not_count(tmp_path, name):
    path = write(tmp_path / name, "a,b,1")
    packed = {"Z": gzip.compress, "2": bz2.compress}.get(name[-1], bytes)
    path.write_bytes(packed(b"a,b,1"))
    assert pairs(path) == [("a", "b", 1)]


def test_parquet_is_read_as_json_is(tmp_path):
    columns = {"left": ["a", "c"], "right": ["b", None], "score": [1, 2]}
    pd.DataFrame(columns).to_parquet(tmp_path / "test.parquet")
    assert pairs(tmp_path / "test.parquet", columns=("left", "right", "score")) == [("a", "b", 1)]
    whole = [
        {"task": "ir", "query": "q", "positives": ["p"], "negatives": ["n"], "id": None},
        {"task": "ir", "query": "r", "positives": ["p"], "negatives": None, "id": "1"},
    ]
    pd.DataFrame(whole).to_parquet(tmp_path / "TRAIN.parquet")
    pd.DataFrame({"_id": ["1"], "text": ["more"]}).to_parquet(tmp_path / "corpus.parquet")
    assert read_beir_corpus(tmp_path) == {"1": "more"}
    assert read_path(tmp_path / "TRAIN.parquet")["train"] == [
        Record("ir", "q", ("p",), ("n",)),
        Record("ir", "r", ("p",), id="1"),
    ]
    write(tmp_path / "bad.parquet", "PAR1")
    with pytest.raises(RecordError, match=r"bad\.parquet: expected Parquet, found"):
        read_file(tmp_path / "bad.parquet")


@pytest.mark.parametrize("option", [{"delimiter": ";"}, {"delimiter": ""}, {"quoting": "no"}])
def test_options_of_tables_are_refused_for_json(tmp_path, option):
    path = write(tmp_path / "a.jsonl", {"task": "ir", "query": "q", "positives": ["p"]})
    with pytest.raises(RecordError, match="expected no delimiter and no quoting, for it is JSON"):
        read_file(path, **option)


# --- Queries and answers ---


def test_equal_questions_become_one_record(tmp_path, said):
    path = write(
        tmp_path / "qa.jsonl.gz",
        {"question": "what?", "answer": "this", "wrong": ["that", "never"]},
        {"question": "who?", "answer": ["me", "you", ""], "wrong": None},
        {"question": " what?", "answer": "that", "wrong": "none"},
        {"question": "", "answer": "nobody asked", "wrong": []},
        {"question": "why?", "answer": None, "wrong": []},
        pack=True,
    )
    columns = ("question", "answer", "wrong")
    assert read_file(path, columns=columns) == [
        Record("ir", "what?", ("this", "that"), ("never", "none")),
        Record("ir", "who?", ("me", "you")),
    ]
    assert set(said()) == {
        "2 rows left out, for they lack a text",
        "1 rows merged with an earlier one of the same query",
        "1 negatives left out, for they are positives of the same query",
    }
    assert read_file(path, columns=columns[:2])[0].negatives == ()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"q": "what?"}, r"expected the columns \['q', 'a'\], found \['q'\]"),
        ({"q": "what?", "a": 7}, "field 'a': expected a text, or a list of texts, found 7"),
        ({"q": "what?", "a": ["x", {}]}, "field 'a': expected a text, or a list of texts"),
        ({"q": "half \ud800", "a": "x"}, "field 'query': expected a string that is not empty"),
        ({"q": ["what?", "who?"], "a": "x"}, "field 'q': expected one text"),
    ],
)
def test_a_bad_answer_is_refused_with_its_line(tmp_path, row, message):
    path = write(tmp_path / "qa.jsonl", {"q": "who?", "a": "me"}, row)
    with pytest.raises(RecordError, match=rf"qa\.jsonl:2: {message}"):
        read_file(path, columns=("q", "a"))


# --- BEIR ---


@pytest.fixture
def beir(tmp_path):
    """A BEIR folder with a header, grades, a document without text and a query without positive."""
    write(
        tmp_path / "corpus.jsonl",
        {"_id": "d1", "title": "Mean", "text": "An average."},
        {"_id": "d2", "title": "", "text": "A median."},
        {"_id": 3, "text": "A mode."},
        {"_id": "d4", "title": None, "text": ""},
    )
    write(tmp_path / "queries.jsonl", *({"_id": f"q{i}", "text": f"query {i}"} for i in range(3)))
    write(
        tmp_path / "qrels" / "train.tsv",
        "query-id\tcorpus-id\tscore",
        "q1\td2\t1",
        "q0\td1\t1",
        "q1\td1\t0",
        "q1\t3\t1",
        "q0\td4\t1",
        "q2\td1\t0",
    )
    write(tmp_path / "qrels" / "validation.tsv", "q2\td1\t2", "q2\t3\t1", "q2\td2\t-1")
    return tmp_path


def test_a_beir_folder(beir, said):
    mean, median, mode = "Mean An average.", "A median.", "A mode."
    assert read_path(beir) == {
        "train": [
            Record("ir", "query 1", (median, mode), (mean,), id="q1"),
            Record("ir", "query 0", (mean,), id="q0"),
        ],
        "dev": [Record("ir", "query 2", (mean, mode), (median,), (2, 1), id="q2")],
    }
    assert said() == [
        "1 judgements left out, for a text is empty",
        "1 queries left out, for nothing is relevant to them",
    ]
    corpus = {"d1": mean, "d2": median, "3": mode}
    assert read_beir_corpus(beir) == read_beir_corpus(beir / "corpus.jsonl") == corpus


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q9\td1\t1", r"field 'query-id': expected one of the 3 ids there are, found 'q9'"),
        ("q1\td9\t1", r"field 'corpus-id': expected one of the 4 ids there are, found 'd9'"),
        ("q1\td1\tyes", "field 'score': expected a whole number, .* found 'yes'"),
        ("q1\td1\t0.5", ".*expected a whole number, .* found '0.5'. Multiply all grades"),
        ("q1 d1 1", r"expected 3 cells separated by '\\t', .*found 1"),
    ],
)
def test_a_bad_judgement_is_refused_with_its_line(beir, line, message):
    write(beir / "qrels" / "test.tsv", "query-id\tcorpus-id\tscore", "q1\td1\t1", line)
    with pytest.raises(RecordError, match=rf"test\.tsv:3: {message}"):
        read_beir(beir)


@pytest.mark.parametrize(
    "lines",
    [
        ["1\t3\t2", "1\t0\t1"],
        ["1\t0\t3\t2", "1\t0\t0\t1"],
        ["1\tQ0\t3\t2", "1\tQ0\t0\t1"],
        ["corpus-id\tscore\tquery-id", "3\t2\t1", "0\t1\t1"],
        ['"query-id"\t"corpus-id"\t"score"', '"1"\t"3"\t"2"', '"1"\t"0"\t"1"'],
    ],
)
def test_judgements_are_read_by_name_or_by_the_number_of_their_cells(beir, lines):
    """Ids are whole numbers, so that a query, a document and a grade may be mistaken."""
    write(beir / "corpus.jsonl", *({"_id": i, "text": f"document {i}"} for i in range(4)))
    write(beir / "queries.jsonl", *({"_id": i, "text": f"query {i}"} for i in range(4)))
    write(beir / "qrels" / "test.tsv", *lines)
    for file in ("train", "validation"):
        (beir / "qrels" / f"{file}.tsv").unlink()
    [record] = read_beir(beir)["test"]
    assert (record.id, record.query) == ("1", "query 1")
    assert dict(zip(record.positives, record.positive_scores, strict=True)) == {
        "document 3": 2,
        "document 0": 1,
    }


@pytest.mark.parametrize("line", ["q1 0 d1 1", "q1 d1 1", "\nq1\t0\td1\t1", "q1,d1,1"])
def test_judgements_may_be_parted_by_blanks_or_commas(beir, line):
    write(beir / "qrels" / "test.tsv", line)
    [record] = read_beir(beir)["test"]
    assert (record.id, *record.positives) == ("q1", read_beir_corpus(beir)["d1"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q1\td1\t1\t0.5", "field 'iteration': expected 0 or Q0, as TREC has it, found 'd1'"),
        ("q1\t0\td1\t1\tx", r"expected each of the columns \[0, 1, 2\] once"),
        ("q1;0;d1;1", "expected each of the columns .*'query-id', 'corpus-id', 'score'"),
        ("query\tdocument\tscore", "expected each of the columns .*'query-id', 'corpus-id', 's"),
    ],
)
def test_judgements_of_another_shape_are_refused(beir, line, message):
    write(beir / "qrels" / "test.tsv", line)
    with pytest.raises(RecordError, match=rf"test\.tsv:1: {message}"):
        read_beir(beir)


def test_a_bad_first_judgement_is_no_header(beir):
    write(beir / "qrels" / "test.tsv", "q1\td1\tyes", "q1\td2\t1")
    with pytest.raises(RecordError, match=r"test\.tsv:1: .*'query-id', .*found \['q1'"):
        read_beir(beir)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"_id": "d2", "text": "twice"}, "field '_id': expected a string .* no other line has"),
        ({"_id": None, "text": "none"}, "field '_id': expected a string or whole number"),
        ({"_id": 1.0, "text": "none"}, "field '_id': expected a string or whole number"),
        ({"id": "d3", "text": "none"}, "expected the keys _id and text, .*found id, text"),
        ({"_id": "d3", "title": "Mean", "contents": "x"}, "expected the keys .*, title, contents"),
    ],
)
def test_keys_of_a_corpus_are_there_and_ids_distinct(beir, row, message):
    write(beir / "corpus.jsonl", {"_id": "d2", "text": "once"}, row)
    with pytest.raises(RecordError, match=rf"corpus\.jsonl:2: {message}"):
        read_beir_corpus(beir)


def test_half_a_surrogate_pair_in_a_corpus_is_refused_with_its_line(beir):
    write(beir / "corpus.jsonl", {"_id": "1", "text": "once"}, {"_id": "2", "text": "x \ud83d"})
    with pytest.raises(RecordError, match=r"corpus\.jsonl:2: field 'text': .* without"):
        read_beir_corpus(beir)


def test_what_documents_and_judgements_share_is_said(tmp_path, said):
    """Two documents of one text, judged otherwise; a query that is a document of its own id."""
    texts = {"d1": "same", "d2": "same", "d3": "", "q1": "claim", "q2": "an answer"}
    documents = [{"_id": name, "text": text} for name, text in texts.items()]
    write(tmp_path / "corpus.jsonl", *documents, {"_id": "q3", "title": "On", "text": "claim"})
    write(tmp_path / "queries.jsonl", *({"_id": f"q{i}", "text": "claim"} for i in (1, 2, 3)))
    judgements = [f"q{i}\t{d}\t{grade}" for i in (1, 2, 3) for d, grade in (("d1", 1), ("d2", 2))]
    write(tmp_path / "qrels" / "test.tsv", *judgements)
    records = read_beir(tmp_path)["test"]
    # Ids name the queries of a BEIR folder, so three of one text stay three.
    assert records == [
        Record("ir", "claim", ("same",), (), (2,), id=name, same_id=text)
        for name, text in (("q1", "claim"), ("q2", "an answer"), ("q3", "On claim"))
    ]
    assert len(read_beir_corpus(tmp_path)) == 5
    assert said() == [
        "3 judgements of a text that is judged otherwise too: the highest grade counts",
        "2 queries that are documents of the same id: ignore_identical_ids ranks without these",
        "2 documents left out, for they are empty or repeat another",
    ]
    read_beir(tmp_path)
    assert len(said()) == 3  # once


def test_a_beir_folder_that_lacks_a_file(beir):
    (beir / "queries.jsonl").unlink()
    with pytest.raises(SourceError, match=r"expected the file queries\.jsonl of BEIR"):
        read_beir(beir)
    write(beir / "queries.jsonl", {"_id": "q1", "text": "query"})
    for file in (beir / "qrels").iterdir():
        file.unlink()
    with pytest.raises(SourceError, match=r"qrels: expected train\.tsv"):
        read_beir(beir)
    write(beir / "qrels" / "test.tsv", "q1\td1\t0")
    with pytest.raises(RecordError, match=r"test\.tsv: expected at least one record, found none"):
        read_beir(beir)


# --- Paths ---


def test_a_folder_of_splits_in_several_forms(tmp_path):
    write(tmp_path / "train.jsonl.gz", {"query": "q", "pos": ["p"]}, pack=True)
    write(tmp_path / "validation.json", json.dumps([{"query": "q", "pos": ["p"]}]))
    write(tmp_path / "README.md", "what this is")
    splits = read_path(tmp_path, task="ir")
    assert [*splits] == ["train", "dev"]
    assert splits["train"] == splits["dev"] == [Record("ir", "q", ("p",))]
    write(tmp_path / "dev.jsonl", {"query": "q", "pos": ["p"]})
    with pytest.raises(RecordError, match=r"expected one file, found dev\.jsonl and validation"):
        read_path(tmp_path, task="ir")


def test_a_folder_of_tables(tmp_path):
    for split in ("train", "test"):
        write(tmp_path / f"{split}.csv", "a,b,2")
    expected = [Record("sts", "a", ("b",), positive_scores=(0.4,))]
    assert read_path(tmp_path, scale=(0, 5)) == {"train": expected, "test": expected}
    answers = [Record("ir", "a", ("b",))]
    found = read_path(tmp_path, task="ir", columns=(0, 1))
    assert found == {"train": answers, "test": answers}
    write(tmp_path / "val.csv", "a,b,2")
    assert [*read_path(tmp_path, scale=(0, 5))] == ["train", "dev", "test"]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *[("test.csv", "test"), ("validation.tsv.gz", "dev"), ("my.dev.csv", "train")],
        *[("val.csv", "dev"), ("Valid.txt", "dev"), ("TEST.TSV", "test")],
    ],
)
def test_a_lone_file_is_the_split_it_is_named_after(tmp_path, name, split):
    path = write(tmp_path / name, "a\tb\t2", pack=name.endswith(".gz"))
    assert [*read_path(path, scale=(0, 5))] == [split]


FORMS = [
    {},
    {"task": "sts"},
    {"task": "sts", "columns": (0, 1, 2)},
    {"columns": (0, 1), "scale": (0, 5)},
]


@pytest.mark.parametrize("form", FORMS)
def test_what_a_table_does_not_say_is_asked_for(tmp_path, form):
    path = write(tmp_path / "table.csv", "a,b,2")
    with pytest.raises(RecordError, match=r"table\.csv: expected the columns.*--scale LOW HIGH"):
        read_path(path, **form)


def test_a_path_with_nothing_known(tmp_path, beir):
    with pytest.raises(SourceError, match="expected a file, or a folder of train, dev or test"):
        read_path(tmp_path / "nowhere")
    with pytest.raises(SourceError, match=r"What save_to_disk of datasets has .* to_parquet"):
        read_path(tmp_path / "nowhere")
    for form in ({"scale": (0, 1)}, {"delimiter": ";"}, {"quoting": "no"}):
        with pytest.raises(SourceError, match="a BEIR folder and no word of its form"):
            read_path(beir, **form)


# --- The Hub ---


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Writes a folder as a data set of the Hub is laid out: one Parquet file a split."""
    datasets = pytest.importorskip("datasets", reason="the optional package of the Hub")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def make(**splits) -> str:
        for split, columns in splits.items():
            file = tmp_path / "hub" / "data" / f"{split}-00000-of-00001.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            datasets.Dataset.from_dict(columns).to_parquet(file)
        return str(tmp_path / "hub")

    return make


def test_rated_pairs_of_the_hub(hub):
    columns = {"sentence1": ["a", "c"], "sentence2": ["b", "d"], "score": [0, 1], "idx": [7, 8]}
    name = hub(train=columns, validation=columns)
    options = {"task": "sts", "columns": ("sentence1", "sentence2", "score"), "scale": (0, 1)}
    expected = [
        Record("sts", "a", ("b",), positive_scores=(0,)),
        Record("sts", "c", ("d",), positive_scores=(1,)),
    ]
    assert read_hub(name, split="train", **options) == expected
    assert read_hub(name, split="validation[1:]", **options) == expected[1:]


def test_ranked_passages_of_the_hub(hub):
    name = hub(dev={"query": ["q"], "positive": [["p", "r"]], "negative": [["n", "p"]]})
    records = read_hub(name, task="ir", columns=("query", "positive", "negative"), split="dev")
    assert records == [Record("ir", "q", ("p", "r"), ("n",))]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"split": "test"}, SourceError, r"hub\[test\]: .*Unknown split"),
        ({"config": "other"}, SourceError, "'other' not found"),
        ({"columns": ("q", "b")}, RecordError, r"\[train\]:1: expected the columns .* found \['a"),
        ({"columns": ("a",)}, RecordError, "the columns of query, positive"),
        ({"name": "/no/such/folder"}, SourceError, r"folder\[train\]: .*Check name"),
        ({"name": "nobody/knows"}, SourceError, "Hub"),  # the tests are offline
    ],
)
def test_what_the_hub_lacks_is_named(hub, change, error, message):
    name = hub(train={"a": ["x"], "b": ["y"]})
    options = {"name": name, "task": "ir", "columns": ("a", "b"), "split": "train"} | change
    with pytest.raises(error, match=message):
        read_hub(**options)


def test_the_missing_library_names_its_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SourceError, match="pip install datasets"):
        read_hub("C-MTEB/STSB", task="ir", columns=("a", "b"), split="train")


# --- Real files: what the registry's sets do not cover ---


@real_files
@pytest.mark.parametrize(("name", "negatives"), [("nq", 979), ("msmarco", 250), ("sts", 280)])
def test_real_flagembedding(name, negatives):
    path = SHARED / "flagembedding-format" / f"{name}.jsonl"
    records = read_jsonl(path, task="ir")
    assert len(records) == 10
    assert sum(len(record.negatives) for record in records) == negatives
    with pytest.raises(RecordError, match=":1: field 'task_type'"):
        read_jsonl(path)
    with pytest.raises(RecordError, match=":1: field 'positive"):
        read_jsonl(path, task="sts")


@pytest.mark.parametrize(
    "header", ["Question text\tBest answer", "input text\toutput", "0\t1", "सवाल\tजवाब"]
)
def test_headers_of_two_words_numbers_and_vowel_signs_are_no_records(tmp_path, header):
    path = write(tmp_path / "qa.tsv", header, *(f"what is thing {i}\tit is that" for i in range(3)))
    with pytest.raises(RecordError, match="a word or two unlike the other rows"):
        read_file(path, columns=(0, 1))


def test_files_of_no_split_are_named(tmp_path, said):
    for name in ("train", "eval", "test-00000-of-00001"):
        write(tmp_path / f"{name}.csv", "a,b,score", "c,d,1")
    assert [*read_path(tmp_path, scale=(0, 5))] == ["train"]
    assert said() == ["passed over, for its name is none of a split"] * 2


def test_blanks_around_texts_make_no_other_texts(tmp_path):
    row = {"query": " q", "pos": ["p "], "neg": ["p", " n "]}
    [record] = read_jsonl(write(tmp_path / "train.jsonl", row), task="ir")
    assert record == Record("ir", "q", ("p",), ("n",))


def test_rows_of_one_query_keep_the_document_of_its_id(tmp_path):
    rows = [{"task": "ir", "query": "q", "positives": [text]} for text in "ab"]
    rows[1]["same_id"] = "c"
    [record] = read_jsonl(write(tmp_path / "train.jsonl", *rows))
    assert (record.positives, record.same_id) == (("a", "b"), "c")


@pytest.mark.parametrize(
    ("name", "lines", "form", "found"),
    [
        ("x.csv", ["a cat;a dog,1", "a bus;a car,2"], {"columns": (0, 1)}, "--delimiter ';'"),
        ("x.csv", ["a;b;2,5", "c;d;3,5"], {"scale": (0, 5)}, "--delimiter ';'"),
        ("x.tsv", ["red\tblue\t1", "a cat\ta dog\t4\t3"], {"scale": (0, 5)}, "expected 3 cells"),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(tmp_path, name, lines, form, found):
    (tmp_path / name).write_text("\n".join(lines) + "\n")
    with pytest.raises(RecordError, match=found):
        read_file(tmp_path / name, **form)


@pytest.mark.parametrize("line", ["sep=;", "SEP=;", "Sep=;"])
def test_the_line_that_names_a_separator_is_no_record_whatever_its_case(tmp_path, line):
    (tmp_path / "x.csv").write_text(f"{line}\na cat;a dog;1\na bus;a car;2\n")
    found = read_file(tmp_path / "x.csv", scale=(0, 5))
    assert [record.query for record in found] == ["a cat", "a bus"]


@pytest.mark.parametrize("text", ["\u2800", "\u3164", "\ufe0f", "\uffa0 ", "\u180e"])
def test_what_nobody_sees_is_no_text(text):
    with pytest.raises(RecordError, match="not empty"):
        Record("ir", text, ("a",))
    assert Record("ir", f"a{text}b", ("c",)).query == f"a{text}b"


def test_files_of_splits_beside_a_beir_folder_are_named(beir, tmp_path, caplog):
    write(tmp_path / "train.jsonl", {"task": "ir", "query": "q", "positives": ["p"]})
    read_path(tmp_path)
    assert "train.jsonl: passed over" in caplog.text


def test_scores_that_are_no_grades_are_said(caplog):
    whole = [Record("ir", "q", ("a", "b"), (), (2.0, 1))]
    assert say_grades("whole", [*whole, Record("ir", "q", ("a",))])
    assert not caplog.messages
    for place, score in enumerate((0.7, 0, -1.5)):
        assert not say_grades(f"set {place}", [*whole, Record("ir", "q", ("a",), (), (score,))])
        assert caplog.messages[-1].startswith(f"set {place}: scores of positives are not all whole")
