"""Scores of a benchmark against those of the runs' tables; failures; what is kept."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest

from codiemb_lib.core import (
    DatasetSettings,
    EncoderSettings,
    Prompts,
    UnwritableError,
    data_root,
    say_once,
)
from codiemb_lib.data import Record, load_dataset, write_jsonl, write_splits
from codiemb_lib.evaluate import (
    BenchmarkError,
    EvaluationError,
    Store,
    benchmark,
    encode_dataset,
    load_encoded,
    local_task,
    run_tasks,
    save_encoded,
    score_dataset,
    text_scores,
)
from codiemb_lib.evaluate.benchmark import COLUMNS, own_prompts
from codiemb_lib.model import Embedder
from tests.made_up import ir_records, sts_records

ROOT = data_root("../shared/data")


@pytest.fixture
def store(make_encoder, tmp_path):
    folder = make_encoder(prompts={"query": "query: "}).save(tmp_path / "model")
    return Store(Embedder(EncoderSettings(name=str(folder)), tmp_path / "c" / "e"), tmp_path / "c")


@pytest.fixture
def data(tmp_path):
    """A folder of records by task."""
    write_jsonl(tmp_path / "ir" / "test.jsonl", ir_records(20))
    write_jsonl(tmp_path / "sts" / "test.jsonl", sts_records(20))
    return tmp_path


def test_scores_and_ties_are_those_of_the_runs_tables(store, data):
    """Upper case is another text with the same tokens."""
    texts = [f"a {'CAT'[:i]}{'cat'[i:]}" for i in range(4)] + ["a red dog"]
    ties = [Record("ir", x, (x,), tuple(t for t in texts if t != x)) for x in texts]
    write_jsonl(data / "ties" / "test.jsonl", ties)
    prompts = Prompts(query_prompt="find ", passage_prompt="the ")
    for name, records in {"ir": ir_records(20), "sts": sts_records(20), "ties": ties}.items():
        settings = DatasetSettings(name=str(data / name), **prompts.model_dump())
        encoded = encode_dataset(store.embedder.encoder, settings, records)
        expected = score_dataset(encoded).set_index("metric")["value"]
        rows = local_task(store, settings, prompts)
        assert {row["metric"]: row["value"] for row in rows} == pytest.approx(dict(expected))
        passages = None if name == "sts" else len(encoded.passages)
        assert {(row["n"], row["passages"]) for row in rows} == {(len(records), passages)}


@pytest.mark.parametrize(
    ("task", "value"),
    [("ir", math.nan), ("ir", 1.01), ("ir", -0.1), ("sts", -1.1), ("sts", math.nan)],
)
def test_a_value_that_is_no_score_fails_loudly_and_is_not_kept(store, task, value):
    rows = [{"task": task, "metric": "m", "value": value}]
    for _ in range(2):
        with pytest.raises(EvaluationError, match=f"expected a score from .* to 1, found {value}"):
            store.once(["a task"], lambda: rows)
    rows = [{"task": "sts", "metric": "m", "value": -1.0}]
    assert store.once(["a task"], lambda: rows)[0]["value"] == -1


@pytest.mark.parametrize("name", ["rated.tsv", "rated.CSV", "rated.txt", "folder/test.tsv"])
def test_a_table_is_read_as_it_is_said_whatever_its_name(store, data, name):
    rows = [f"{i}\ta {t}\ta dog\t{i}\n" for i, t in enumerate(["cat", "dog", "bus"])]
    (table := data / name).parent.mkdir(exist_ok=True)
    table.write_text("".join(rows))
    path = table if table.parent == data else table.parent
    form = {"columns": (1, 2, 3), "scale": (0, 5)}
    found = local_task(store, DatasetSettings(name=str(path)), Prompts(), **form)
    assert {row["n"] for row in found} == {3}


def test_columns_of_json_are_read_as_they_are_said_and_the_registry_says_its_own(store, data):
    rows = [{"a": f"a {t}", "b": "a dog", "s": i} for i, t in enumerate(["cat", "dog", "bus"])]
    (data / "rated.jsonl").write_text("\n".join(map(json.dumps, rows)))
    form = {"columns": ("a", "b", "s"), "scale": (0, 5)}
    for name, split in [(str(data / "rated.jsonl"), "train"), ("wordsim-353", "dev")]:
        found = local_task(store, DatasetSettings(name=name), Prompts(), split="dev", **form)
        assert {row["split"] for row in found} == {split}
    lone = local_task(store, DatasetSettings(name=str(data / "sts")), Prompts(), split="dev")
    assert {row["split"] for row in lone} == {"test"}


def test_a_beir_folder_is_searched_in_its_corpus_with_its_grades(store, tmp_path):
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    corpus = [{"_id": str(i), "title": "a", "text": t} for i, t in enumerate(("cat", "dog", "bus"))]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, corpus)))
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": "a cat"}')
    qrels = "query-id\tcorpus-id\tscore\nq\t0\t2\nq\t1\t1\n"
    (folder / "qrels" / "test.tsv").write_text(qrels)
    [ndcg, *_] = rows = local_task(store, DatasetSettings(name=str(folder)), Prompts())
    assert {(row["n"], row["passages"]) for row in rows} == {(1, 3)}
    vectors = store.embedder.encoder.encode(["a cat", "a dog", "a bus"])
    order = np.argsort(-(vectors @ vectors[0]))
    gains = [[2, 1, 0][i] for i in order]
    dcg = sum(gain / math.log2(rank + 2) for rank, gain in enumerate(gains))
    assert ndcg["value"] == pytest.approx(dcg / (2 + 1 / math.log2(3)))


@pytest.fixture
def arguana(tmp_path):
    """ArguAna's form: a query is a document of its own id; its counter-argument is relevant."""
    folder = tmp_path / "arguana"
    texts = {"a": ("a cat", "b"), "b": ("a cat on a bus", "a"), "c": ("the old dog", "a")}
    corpus = [{"_id": name, "title": "", "text": text} for name, (text, _) in texts.items()]
    queries = [{"_id": name, "text": texts[name][0]} for name in "ab"]
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, corpus)))
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    rows = "".join(f"{name}\t{texts[name][1]}\t1\n" for name in "ab")
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{rows}")
    return folder


def test_documents_of_the_querys_id_are_ranked_unless_they_are_ignored(store, arguana, caplog):
    """63.09 is 1 / log2(3): the query itself comes first, then the relevant document."""
    how = DatasetSettings(name=str(arguana))
    write_splits(arguana.parent / "prepared", load_dataset(str(arguana)).splits, ["the old dog"])
    prepared = DatasetSettings(name=str(arguana.parent / "prepared"))
    for settings in (how, prepared):
        [ndcg, *_] = local_task(store, settings, Prompts())
        assert ndcg["value"] == pytest.approx(1 / math.log2(3))
        assert not ndcg["ignore_identical_ids"]
        [ndcg, *_] = local_task(store, settings, Prompts(), ignore_identical_ids=True)
        assert ndcg["value"] == 1
        assert ndcg["ignore_identical_ids"]
    assert "2 queries that are documents of the same id" in caplog.text
    # As a preset's setting, and from a file of embeddings.
    data = load_dataset(str(arguana))
    on = how.model_copy(update={"ignore_identical_ids": True})
    encoded = encode_dataset(store, on, data.splits["test"], data.corpus)
    save_encoded(arguana / "e", [encoded])
    [loaded] = load_encoded(arguana / "e")
    assert loaded.ignored == encoded.ignored == {0: 1, 1: 0}
    assert loaded.gold == encoded.gold
    assert text_scores([loaded])[0].values.tolist() == [1, 1]


def test_one_query_in_several_rows_of_json_has_all_its_answers(store, tmp_path):
    """A perfect ranking of both had an nDCG of 0.8155: each row called the other's answer wrong."""
    rows = [Record("ir", "a cat", (text,)) for text in ("a cat", "a cat on a bus")]
    write_jsonl(tmp_path / "test.jsonl", [*rows, Record("ir", "the old dog", ("the old dog",))])
    [ndcg, *_] = local_task(store, DatasetSettings(name=str(tmp_path / "test.jsonl")), Prompts())
    assert (ndcg["value"], ndcg["n"]) == (1, 2)


def test_prompts_are_the_models_own_unless_they_are_given(store, data):
    named = {"query": "q: ", "passage": "p: ", "document": "d: ", "STS": "s: "}
    assert own_prompts(named, "ir") == Prompts(query_prompt="q: ", passage_prompt="d: ")
    assert own_prompts(named, "sts") == Prompts(query_prompt="s: ")
    assert own_prompts({"passage": "p: "}, "ir") == Prompts(passage_prompt="p: ")
    trained = named | {"mine": "m: ", "mine-passage": "n: ", "bare": ""}
    assert own_prompts(trained, "ir", "mine") == Prompts(query_prompt="m: ", passage_prompt="n: ")
    assert own_prompts(trained, "ir", "bare") == Prompts()  # trained without
    assert own_prompts(trained, "sts", "another") == Prompts(query_prompt="s: ")
    assert own_prompts(trained, "sts", default="d: ") == Prompts(query_prompt="s: ")
    assert own_prompts({}, "sts", default="d: ") == Prompts(query_prompt="d: ")
    assert own_prompts({}, "ir", default="d: ") == Prompts()
    settings = DatasetSettings(name=str(data / "ir"))
    own = local_task(store, settings)
    assert {row["query_prompt"] for row in own} == {"query: "}
    given = local_task(store, settings, Prompts(query_prompt="find "))
    assert {row["query_prompt"] for row in given} == {"find "}
    assert [row["value"] for row in given] != [row["value"] for row in own]
    one_side = local_task(store, settings, sides={"passage_prompt": "the "})
    assert {(row["query_prompt"], row["passage_prompt"]) for row in one_side} == {
        ("query: ", "the ")
    }


def test_a_finished_task_is_not_computed_again_until_something_changes(
    store, data, monkeypatch, make_encoder
):
    computed = []
    monkeypatch.setattr(
        benchmark, "score_dataset", lambda *a, **o: computed.append(1) or score_dataset(*a, **o)
    )
    settings = DatasetSettings(name=str(data / "ir"))
    first = local_task(store, settings, Prompts())
    again = local_task(Store(Embedder(store.embedder.settings), store.folder), settings, Prompts())
    assert again == first
    assert len(computed) == 1
    local_task(store, settings, Prompts(passage_prompt="the "))
    local_task(store, settings.model_copy(update={"test": 10}), Prompts())
    write_jsonl(data / "ir" / "test.jsonl", ir_records(21))
    local_task(store, settings, Prompts())
    other = make_encoder(seed=3).save(data / "other")
    local_task(Store(Embedder(EncoderSettings(name=str(other))), store.folder), settings, Prompts())
    assert len(computed) == 5


def test_failing_tasks_are_named_at_the_end_and_the_others_are_done(store, data, caplog):
    def broken():
        raise ZeroDivisionError("of all things")

    tasks = {
        "first": broken,
        "mine": lambda: local_task(store, DatasetSettings(name=str(data / "sts")), Prompts()),
        "none": lambda: local_task(store, DatasetSettings(name="nowhere"), Prompts()),
    }
    out = data / "out" / "scores.csv"
    with pytest.raises(BenchmarkError) as caught:
        run_tasks(tasks, store, out, model="tiny")
    message = str(caught.value)
    assert message.startswith("2 of 3 tasks failed")
    assert "first: ZeroDivisionError: of all things" in message
    assert "unknown data set 'nowhere'" in message
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert "Traceback" in caplog.text  # of what nobody expected
    assert "nowhere" not in caplog.text  # the end of the command says it, once
    rows = pd.read_csv(out)
    assert list(rows.columns) == COLUMNS
    assert set(rows["dataset"]) == set(caught.value.scores["dataset"]) == {"mine"}
    assert set(rows["metric"]) == {"spearman", "pearson"}
    assert (rows["model"] == "tiny").all()
    assert (rows["seconds"] > 0).all()
    with pytest.raises(BenchmarkError, match=r"1 of 1 .*scores\.csv is left as it was"):
        run_tasks({"first": broken}, store, out, model="tiny")
    assert pd.read_csv(out).equals(rows)  # there is nothing better
    with pytest.raises(UnwritableError, match="expected the name of a table to write"):
        run_tasks({"first": lambda: pytest.fail("it began")}, store, out.parent, model="tiny")


def test_an_interrupt_is_no_failing_task_and_leaves_what_is_done(store, data):
    def interrupted():
        raise KeyboardInterrupt

    settings = DatasetSettings(name=str(data / "ir"))
    tasks = {"mine": lambda: local_task(store, settings, Prompts()), "then": interrupted}
    with pytest.raises(KeyboardInterrupt):
        run_tasks(tasks, store, data / "scores.csv", model="tiny")
    assert set(pd.read_csv(data / "scores.csv")["dataset"]) == {"mine"}


@pytest.mark.skipif(
    not (ROOT / "stsb-en").is_dir(), reason=f"no stsb-en in {ROOT}: set CODIEMB_DATA"
)
def test_minilm_scores_on_stsb_what_is_known_of_it(tmp_path, no_network):
    store = Store(Embedder(EncoderSettings(name="minilm-l6")), tmp_path)
    settings = DatasetSettings(name="stsb")
    [spearman, _] = local_task(store, settings, Prompts(), root=str(ROOT))
    assert (spearman["metric"], spearman["n"]) == ("spearman", 1379)
    assert round(100 * spearman["value"], 2) == 82.03


def test_a_passage_with_blanks_around_it_is_the_one_of_the_corpus(store, tmp_path):
    texts = ["a red cat", "a dog"]
    records = [{"task": "ir", "query": text, "positives": [f"{text} "]} for text in texts]
    corpus = [{"_id": str(i), "text": text} for i, text in enumerate(texts)]
    for name, rows in {"test": records, "corpus": corpus}.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    row = local_task(store, DatasetSettings(name=str(tmp_path)))[0]
    assert (row["metric"], row["value"], row["passages"]) == ("ndcg@10", 1, 2)


def test_scores_that_are_no_grades_are_said_where_rows_are_kept(store, tmp_path, caplog):
    records = [Record("ir", "a cat", ("a red cat",), ("a dog",), positive_scores=(0.5,))]
    write_jsonl(tmp_path / "halves" / "test.jsonl", records)
    for _ in range(2):
        say_once.cache_clear()
        caplog.clear()
        local_task(store, DatasetSettings(name=str(tmp_path / "halves")))
        assert "in scoring each has grade 1" in caplog.text
