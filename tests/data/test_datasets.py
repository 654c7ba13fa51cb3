"""Data sets: what their splits guarantee, and what is refused."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from codiemb_lib.core.words import normalise
from codiemb_lib.data.datasets import (
    Dataset,
    describe,
    hold_out,
    load_dataset,
    write_splits,
)
from codiemb_lib.data.formats import SPLITS
from codiemb_lib.data.records import Record, RecordError, SourceError, write_jsonl
from codiemb_lib.data.registry import DatasetError


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(DatasetError, match="Did you mean 'simlex-999'"):
        load_dataset("simlex999")
    with pytest.raises(DatasetError, match=r"unknown split 'tests'.*Did you mean 'test'"):
        load_dataset("simlex-999").split("tests")


# --- What holds for every data set ---


@pytest.mark.parametrize(
    "name", ["api-docs", "lee-news", "simlex-999", "wordsim-353", "lee-similarity"]
)
def test_records_are_of_their_task_named_and_distinct(cache, name):
    dataset = load_dataset(name, cache=cache)
    assert tuple(dataset.splits) == SPLITS
    records = [record for split in SPLITS for record in dataset.splits[split]]
    assert {record.task for record in records} == {dataset.task}
    assert {record.dataset for record in records} == {name}
    assert len({record.id for record in records}) == len(records)
    assert load_dataset(name, cache=cache) == dataset


def passages(records):
    return {text for record in records for text in (*record.positives, *record.negatives)}


@pytest.mark.parametrize("name", ["api-docs", "lee-news"])
def test_retrieval_splits_share_neither_queries_nor_passages(cache, name):
    splits = load_dataset(name, cache=cache).splits
    queries = [normalise(record.query) for split in SPLITS for record in splits[split]]
    assert len(set(queries)) == len(queries)
    texts = {split: set(map(normalise, passages(splits[split]))) for split in SPLITS}
    for one, other in [("train", "dev"), ("train", "test"), ("dev", "test")]:
        assert not texts[one] & texts[other]


@pytest.mark.parametrize("name", ["api-docs", "lee-news"])
def test_a_passage_answers_one_query_and_holds_none(cache, name):
    splits = load_dataset(name, cache=cache).splits
    records = [record for split in SPLITS for record in splits[split]]
    times = Counter(normalise(text) for record in records for text in record.positives)
    assert max(times.values()) == 1
    for record in records:
        query = normalise(record.query)
        assert not any(query in normalise(text) for text in (*record.positives, *record.negatives))
        assert not set(record.positives) & set(record.negatives)


def test_a_limit_takes_a_nested_subsample_that_the_seed_decides():
    everything = load_dataset("wordsim-353").split("train")
    small, large = (load_dataset("wordsim-353").split("train", limit=n) for n in (10, 20))
    assert len(small) == 10
    assert set(small) < set(large) < set(everything)
    assert large == [record for record in everything if record in large]
    assert load_dataset("wordsim-353").split("train", limit=10, seed=1) != small
    assert load_dataset("wordsim-353").split("train", limit=10**6) == everything
    assert load_dataset("wordsim-353").split("train", limit=0) == []
    with pytest.raises(DatasetError, match="unknown split 'foo'"):
        load_dataset("wordsim-353").split("foo", limit=0)
    with pytest.raises(ValueError, match="limit: expected None or a number >= 0, found -1"):
        load_dataset("wordsim-353").split("train", limit=-1)


def made_up():
    records = [Record("ir", f"query {i}", (f"answer {i}",), id=f"r{i}") for i in range(20)]
    corpus = tuple(f"passage {i}" for i in range(40))
    return Dataset("d", "ir", {"train": tuple(records)}, "none", "made up", "hash", corpus)


def test_records_can_be_left_out_of_a_split():
    dataset = made_up()
    fewer = dataset.without("train", {0, 19})
    assert fewer.splits["train"] == dataset.splits["train"][1:19]
    assert fewer.content_hash != dataset.without("train", {0}).content_hash
    # What is left out moves no other record out of a subsample, or into it.
    left_out = {dataset.splits["train"][0], dataset.splits["train"][19]}
    assert {*fewer.split("train", limit=10)} >= {*dataset.split("train", limit=10)} - left_out


def test_a_sample_of_a_corpus_is_nested():
    dataset = made_up()
    small, large = dataset.sample_corpus(5), dataset.sample_corpus(20)
    assert (len(small), len(large)) == (5, 20)
    assert set(small) < set(large) < set(dataset.corpus)
    assert dataset.sample_corpus(0) == []
    assert dataset.sample_corpus() == list(dataset.corpus)
    assert dataset.sample_corpus(5, seed=1) != small
    with pytest.raises(ValueError, match="found -1"):
        dataset.sample_corpus(-1)


# --- Local records ---


def test_a_local_folder_and_a_local_file(tmp_path):
    records = [Record("ir", f"question {i}", (f"answer {i}",)) for i in range(5)]
    write_jsonl(tmp_path / "mine" / "train.jsonl", records[:4])
    write_jsonl(tmp_path / "mine" / "test.jsonl", records[4:])
    name = str(tmp_path / "mine")
    dataset = load_dataset(name)
    assert (dataset.name, dataset.task, tuple(dataset.splits)) == (name, "ir", ("train", "test"))
    assert [record.query for record in load_dataset(name).split("test")] == ["question 4"]
    assert {record.dataset for record in dataset.splits["train"]} == {name}
    assert len(load_dataset(name).split("train", limit=2)) == 2
    with pytest.raises(DatasetError, match="unknown split 'dev'"):
        load_dataset(name).split("dev")
    assert (
        load_dataset(name).split("dev", limit=0) == []
    )  # as a preset may say of a set without dev
    write_jsonl(tmp_path / "lone.jsonl", records)
    assert len(load_dataset(str(tmp_path / "lone.jsonl")).split("train")) == 5
    assert len(load_dataset(str(tmp_path / "mine" / "test.jsonl")).split("test")) == 1


def test_a_table_is_read_as_its_form_says(tmp_path):
    table = tmp_path / "rated.csv"
    table.write_text("x;a cat;a dog;5\nx;a bus;a cat;1\n")
    form = {"columns": (1, 2, 3), "scale": (1, 5), "delimiter": ";"}
    dataset = load_dataset(str(table), **form)
    assert [record.score for record in dataset.split("train")] == [1.0, 0.0]
    assert load_dataset(str(table), **form | {"columns": (2, 1, 3)}) != dataset
    assert load_dataset(str(table), columns=(1, 2), delimiter=";").task == "ir"
    with pytest.raises(RecordError, match="--scale LOW HIGH"):
        load_dataset(str(table))
    with pytest.raises(DatasetError, match="expected the registry alone to say its form"):
        load_dataset("wordsim-353", scale=(0, 10))


def test_bad_local_data(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="expected a file, or a folder of train, dev or"):
        load_dataset(str(tmp_path / "empty"))
    with pytest.raises(DatasetError, match=r"unknown data set .*none\.jsonl"):
        load_dataset(str(tmp_path / "none.jsonl"))
    pair = Record("sts", "cup", ("mug",), positive_scores=(0.9,))
    write_jsonl(tmp_path / "both.jsonl", [Record("ir", "a", ("b",)), pair])
    with pytest.raises(RecordError, match="expected one task in a data set"):
        load_dataset(str(tmp_path / "both.jsonl"))
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps({"task": "ir", "query": "a", "positives": []}) + "\n")
    with pytest.raises(RecordError, match=r"bad\.jsonl:1: field 'positives'"):
        load_dataset(str(bad))


# --- Sets of one's own ---


def test_held_out_records_are_decided_by_the_seed_and_keep_to_their_query():
    records = [Record("ir", f"query {i // 2}", (f"answer {i}",)) for i in range(100)]
    splits = hold_out(records, {"dev": 9, "test": 20}, seed=3)
    assert {split: len(members) for split, members in splits.items()} == {
        "train": 70,
        "dev": 10,  # five queries of two records each
        "test": 20,
    }
    assert sorted(r.positives for s in splits.values() for r in s) == sorted(
        r.positives for r in records
    )
    queries = [{record.query for record in members} for members in splits.values()]
    assert len(set.union(*queries)) == sum(map(len, queries)) == 50
    assert splits["dev"] == [record for record in records if record in splits["dev"]]
    assert hold_out(records, {"dev": 9, "test": 20}, seed=3) == splits
    assert hold_out(records, {"dev": 9, "test": 20}, seed=4) != splits


@pytest.mark.parametrize("sizes", [{"dev": 3}, {"dev": 2, "test": 1}, {"dev": 5}, {"dev": 0}])
def test_no_split_may_stay_empty(sizes):
    records = [Record("ir", f"query {i}", ("answer",)) for i in range(3)]
    with pytest.raises(RecordError, match=r"expected records for train .*found 3 in all"):
        hold_out(records, sizes)


@pytest.mark.parametrize("split", ["validation", "foo", "corpus", "../train"])
def test_a_split_that_would_not_be_read_back_is_not_written(tmp_path, split):
    records = [Record("ir", "a query", ("answer",))]
    with pytest.raises(RecordError, match=f"out: unknown split '{split}': expected one of"):
        write_splits(tmp_path / "out", {"train": records, split: records})
    assert [*tmp_path.iterdir()] == []
    with pytest.raises(RecordError, match="at least one split to write"):
        write_splits(tmp_path / "out", {})


@pytest.mark.parametrize("name", ["dev.csv", "validation.jsonl", "dev.jsonl.gz", "corpus.json"])
def test_nothing_is_written_beside_a_file_of_the_same_part(tmp_path, name):
    records = [Record("ir", "a query", ("answer",))]
    (tmp_path / name).write_text("")
    with pytest.raises(RecordError, match=rf"{name}: expected no such file, or the same .*\.jsonl"):
        write_splits(tmp_path, {"train": records, "dev": records})
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_written_splits_never_replace_others(tmp_path):
    records = [Record("ir", f"query {i}", ("answer",), dataset="old") for i in range(3)]
    files = write_splits(tmp_path / "out", {"train": records[:2], "dev": records[2:]})
    assert files == {tmp_path / "out" / "train.jsonl": 2, tmp_path / "out" / "dev.jsonl": 1}
    dataset = load_dataset(str(tmp_path / "out"))
    assert [record.query for record in dataset.splits["train"]] == ["query 0", "query 1"]
    assert "old" not in (tmp_path / "out" / "train.jsonl").read_text()
    assert write_splits(tmp_path / "out", {"train": records[:2]}) == {
        tmp_path / "out" / "train.jsonl": 2
    }
    with pytest.raises(RecordError, match=r"dev\.jsonl: expected no such file, or the same"):
        write_splits(tmp_path / "out", {"test": records, "dev": records})
    assert not (tmp_path / "out" / "test.jsonl").exists()  # nothing is written before the refusal
    pair = Record("sts", "a", ("b",), positive_scores=(1,))
    with pytest.raises(RecordError, match="expected one task"):
        write_splits(tmp_path / "both", {"train": [*records, pair]})


def test_a_corpus_is_written_beside_the_splits_and_read_back(tmp_path):
    records = [Record("ir", "a query", ("answer",))]
    files = write_splits(tmp_path / "out", {"test": records}, ["new passage", "another"])
    assert files == {tmp_path / "out" / "test.jsonl": 1, tmp_path / "out" / "corpus.jsonl": 2}
    dataset = load_dataset(str(tmp_path / "out"))
    assert [record.query for record in dataset.splits["test"]] == ["a query"]
    assert dataset.corpus == ("new passage", "another")
    with pytest.raises(RecordError, match=r"corpus\.jsonl: expected no such file"):
        write_splits(tmp_path / "out", {"dev": records})
    assert not (tmp_path / "out" / "dev.jsonl").exists()


@pytest.mark.parametrize("part", ["corpus", "test"])
@pytest.mark.parametrize("change", ["gone", "cut"])
def test_a_part_of_a_written_folder_is_not_taken_for_the_whole(tmp_path, part, change):
    records = [Record("ir", f"query {i}", (f"answer {i}",)) for i in range(9)]
    write_splits(tmp_path / "out", {"train": records[:5], "test": records[5:]}, ["a", "b"])
    assert len(load_dataset(str(tmp_path / "out")).corpus) == 2
    file = tmp_path / "out" / f"{part}.jsonl"
    file.unlink() if change == "gone" else file.write_text(file.read_text().splitlines()[0])
    with pytest.raises(
        SourceError, match=rf"manifest.json lists, found \['{part}\.jsonl'\] missing"
    ):
        load_dataset(str(tmp_path / "out"))


@pytest.mark.parametrize("content", ["[]", '{"files": ["train.jsonl"]}'])
def test_a_manifest_of_another_tool_says_nothing_of_a_folder(tmp_path, content):
    write_jsonl(tmp_path / "train.jsonl", [Record("ir", "a query", ("answer",))])
    (tmp_path / "manifest.json").write_text(content)
    assert len(load_dataset(str(tmp_path)).splits["train"]) == 1


def test_a_description_counts_what_it_says():
    assert describe([]) == {"records": "0"}
    records = [
        Record("ir", "one two", ("three", "four five six"), ("three four",)),
        Record("ir", "one", ("three",)),
    ]
    assert describe(records) == {
        "records": "2",
        "distinct texts": "5",
        "query words": "1 / 1.5 / 2",
        "query characters": "3 / 5 / 7",
        "passage words": "1 / 2 / 3",
        "passage characters": "5 / 10 / 13",
        "positives a record": "1 / 1.5 / 2",
        "negatives a record": "0 / 0.5 / 1",
        "records without negatives": "50%",
    }
    scores = (0, 0.19, 0.2, 0.6, 0.8, 1)
    pairs = [Record("sts", "a", ("b",), positive_scores=(score,)) for score in scores]
    histogram = [n for name, n in describe(pairs).items() if name.startswith("score")]
    assert histogram == ["2", "1", "0", "1", "2"]
