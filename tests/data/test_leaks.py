"""Leaks: the rule on made-up records, its search against all comparisons, the known counts."""

from __future__ import annotations

import random
from types import MappingProxyType

import pytest
from rapidfuzz.distance import Indel

from codiemb_lib.core.files import data_root
from codiemb_lib.core.preset import load_preset
from codiemb_lib.data.datasets import Dataset, load_dataset, load_datasets
from codiemb_lib.data.formats import SPLITS
from codiemb_lib.data.leaks import (
    find_leaks,
    leak_counts,
    near_identical,
    remove_leaks,
)
from codiemb_lib.data.records import Record

ROOT = data_root("../shared/data")
real_files = pytest.mark.skipif(
    not all((ROOT / name).is_dir() for name in ("stsb-en", "sick", "squad-nqg", "medquad")),
    reason=f"no public sets in {ROOT}: set CODIEMB_DATA",
)


def pair(first, second, score=0.5):
    return Record("sts", first, (second,), positive_scores=(score,))


def ir(query, *positives, negatives=()):
    return Record("ir", query, positives, negatives)


def made(task, **splits):
    named = MappingProxyType({split: tuple(records) for split, records in splits.items()})
    return Dataset("d", task, named, "none", "made up", "hash")


CAPTION = "a small black dog runs along the beach in the evening sun"
OTHER = "two people are walking slowly over the long wooden bridge"


def rows(leaks, *columns):
    return [tuple(row) for row in leaks[list(columns)].itertuples(index=False)]


# --- Near-identical texts ---


def by_all_comparisons(texts, others, near):
    return {
        (a, b)
        for a in set(texts)
        for b in set(others)
        if a and b and Indel.normalized_similarity(a, b) >= near
    }


@pytest.mark.parametrize("near", [0.95, 0.8, 1.0])
def test_the_search_finds_what_all_comparisons_find(near):
    generator = random.Random(0)
    alphabet = "abcde éд中 "

    def text():
        return "".join(generator.choices(alphabet, k=generator.randint(0, 60)))

    def changed(old):
        letters = list(old)
        for _ in range(generator.randint(0, 4)):
            at = generator.randint(0, len(letters))
            letters[at : at + generator.randint(0, 1)] = generator.choices(
                alphabet, k=generator.randint(0, 1)
            )
        return "".join(letters)

    texts = [text() for _ in range(600)]
    others = [changed(t) for t in texts] + [text() for _ in range(100)]
    found = list(near_identical(texts, others, near))
    assert len(found) == len(set(found))
    expected = by_all_comparisons(texts, others, near)
    assert set(found) == expected
    assert len(expected) > 50


def test_an_article_is_near_and_another_word_is_not():
    near = CAPTION.replace("the evening", "an evening")
    assert set(near_identical([CAPTION], [near, CAPTION, OTHER])) == {
        (CAPTION, near),
        (CAPTION, CAPTION),
    }
    assert not list(near_identical([CAPTION], [CAPTION.replace("black", "young")]))
    assert not list(near_identical(["", "a"], ["", "b"]))
    assert not list(near_identical([], ["a"]))


# --- Pairs ---


def test_a_pair_leaks_in_either_order_whatever_its_letters_and_marks():
    train = [pair(OTHER + "!", CAPTION.upper()), pair(CAPTION, OTHER), pair(CAPTION, "a cat")]
    leaks = find_leaks({"d": made("sts", train=train, test=[pair(CAPTION, OTHER, 0.9)])})
    assert rows(leaks, "dataset", "split", "place", "kind", "found_in", "found_in_split") == [
        ("d", "train", 0, "pair", "d", "test"),
        ("d", "train", 1, "pair", "d", "test"),
    ]
    assert rows(leaks, "identical", "same_order") == [(True, False), (True, True)]
    assert leaks["item"].unique().tolist() == [f"{CAPTION} | {OTHER}"]


def test_both_texts_of_a_near_identical_pair_must_be_near():
    near = pair(CAPTION.replace("the evening", "an evening"), OTHER.replace("the long", "a long"))
    far = pair(near.query, OTHER.replace("two people", "three men"))
    crossed = pair(CAPTION, CAPTION)  # each text stands in the test pair, but not both
    datasets = {"d": made("sts", train=[far, near, crossed], test=[pair(OTHER, CAPTION)])}
    leaks = find_leaks(datasets)
    assert rows(leaks, "place", "identical", "same_order") == [(1, False, False)]
    [row] = leaks.to_dict("records")
    assert row["found"] == f"{CAPTION} | {OTHER}"
    assert row["item"] != row["found"]
    assert find_leaks(datasets, near=1.0).empty


def test_an_identical_pair_is_not_reported_as_near():
    near = CAPTION.replace("the evening", "an evening")
    leaks = find_leaks(
        {
            "d": made("sts", train=[pair(CAPTION, OTHER)], test=[pair(near, OTHER)]),
            "e": made("sts", test=[pair(near, OTHER), pair(OTHER, CAPTION)]),
        }
    )
    assert sorted(rows(leaks, "found_in", "identical")) == [("d", False), ("e", True)]


# --- Queries and passages ---


def test_queries_leak_if_identical_and_passages_if_near_identical():
    train = [
        ir("What is it?", "something else"),
        ir("What are the symptoms of one illness?", "a third thing"),
        ir("who", CAPTION.replace("the evening", "an evening")),
        ir("how", "a fourth thing", negatives=("a fifth thing", OTHER + ".")),
        ir("why", "unlike"),
        ir("∑ ∫ ?", "a seventh thing"),
    ]
    test = [
        ir("→ !!", "an eighth thing"),  # neither has a letter
        ir("what is it", "a sixth thing"),
        ir("What are the symptoms of two illness?", CAPTION),
        ir("where", OTHER, negatives=("unlike",)),  # judged to answer nothing
    ]
    leaks = find_leaks({"d": made("ir", train=train, test=test)})
    assert rows(leaks, "place", "kind", "identical") == [
        (0, "query", True),
        (2, "passage", False),
        (3, "passage", True),
    ]


# --- Splits, data sets and tasks ---


def test_data_sets_are_compared_within_their_task_and_dev_gives_nothing_up():
    one, two = pair(CAPTION, OTHER), pair("a cat", "a dog")
    datasets = {
        "a": made("sts", train=[one, two], dev=[one], test=[two]),
        "b": made("sts", train=[one], dev=[], test=[one]),
        "c": made("ir", train=[ir(CAPTION, OTHER)], dev=[], test=[ir("q", "p")]),
        "e": made("sts", test=[pair("x", "y")]),  # without train
    }
    leaks = find_leaks(datasets)
    assert sorted(rows(leaks, "dataset", "split", "place", "found_in", "found_in_split")) == [
        ("a", "dev", 0, "b", "test"),
        ("a", "train", 0, "a", "dev"),
        ("a", "train", 0, "b", "test"),
        ("a", "train", 1, "a", "test"),
        ("b", "train", 0, "a", "dev"),
        ("b", "train", 0, "b", "test"),
    ]
    cleared = remove_leaks(datasets, leaks)
    assert cleared["a"].splits["train"] == cleared["b"].splits["train"] == ()
    for name in datasets:
        for split in ("dev", "test"):
            assert cleared[name].splits.get(split) == datasets[name].splits.get(split)
    assert cleared["c"] is datasets["c"]  # so its hash stays
    assert cleared["a"].content_hash != datasets["a"].content_hash
    assert not (find_leaks(cleared)["split"] == "train").any()


def test_counts_are_of_distinct_items_and_of_records(caplog):
    near = CAPTION.replace("the evening", "an evening")
    train = [pair(CAPTION, OTHER), pair(OTHER, CAPTION), pair(near, OTHER), pair("a", "b")]
    datasets = {"d": made("sts", train=train, test=[pair(CAPTION, OTHER), pair("z", "b")])}
    leaks = find_leaks(datasets)
    [row] = leak_counts(leaks).to_dict("records")
    assert row == {
        "task": "sts",
        "dataset": "d",
        "split": "train",
        "kind": "pair",
        "found_in": "d",
        "found_in_split": "test",
        "identical": 1,
        "same_order": 1,
        "records": 3,
    }
    assert remove_leaks(datasets, leaks)["d"].splits["train"] == (train[3],)
    assert "d: 3 of 4 training records left out" in caplog.text
    assert "3 by a pair of d test" in caplog.text


def test_a_preset_says_whether_leaks_are_removed():
    preset = load_preset("mini")
    plain = load_datasets(preset)
    assert [*plain] == [dataset.name for dataset in preset.datasets]
    assert plain["simlex-999"] == load_dataset("simlex-999")
    cleared = load_datasets(preset.model_copy(update={"remove_leaks": True}))
    assert not (find_leaks(cleared)["split"] == "train").any()
    for name, dataset in plain.items():
        assert cleared[name].splits["test"] == dataset.splits["test"]


# --- The real files ---


@pytest.fixture(scope="module")
def english():
    preset = load_preset("english").model_copy(update={"remove_leaks": False})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CODIEMB_DATA", str(ROOT))
        datasets = load_datasets(preset)
    return datasets, find_leaks(datasets)


COUNTS = [  # identical, in the same order, records: the table of data/README.md
    ("stsb", "pair", "stsb", "test", 12, 7, 30),
    ("stsb", "pair", "stsb", "dev", 8, 6, 18),
    ("stsb", "pair", "sick", "test", 53, 29, 76),
    ("stsb", "pair", "sick", "dev", 2, 1, 7),
    ("sick", "pair", "sick", "test", 73, 45, 392),
    ("sick", "pair", "sick", "dev", 7, 3, 52),
    ("sick", "pair", "stsb", "test", 12, 6, 22),
    ("sick", "pair", "stsb", "dev", 11, 5, 20),
    ("squad-sentences", "query", "squad-sentences", "dev", 4, 0, 4),
    ("scifact", "passage", "scifact", "test", 166, 0, 272),
    ("scifact", "query", "scifact", "test", 2, 0, 2),
    ("scifact", "passage", "scifact", "dev", 3, 0, 5),
    ("medquad", "passage", "medquad", "test", 24, 0, 1651),
    ("medquad", "passage", "medquad", "dev", 23, 0, 1565),
]


@real_files
def test_the_known_counts(english):
    """Of STS-B, 7 pairs stand in train and test, of SICK 73; SICK's test and STS-B's train share
    53: the latter two whatever the order."""
    counts = leak_counts(english[1])
    columns = ["dataset", "kind", "found_in", "found_in_split"]
    columns += ["identical", "same_order", "records"]
    assert sorted(rows(counts[counts["split"] == "train"], *columns)) == sorted(COUNTS)
    dev = counts[counts["split"] == "dev"].set_index(["dataset", "found_in"])
    assert dev.loc[("stsb", "stsb"), "same_order"] == 2


@real_files
def test_what_is_left_of_train_stands_nowhere_else(english):
    datasets, leaks = english
    cleared = remove_leaks(datasets, leaks)
    left = {name: len(dataset.splits["train"]) for name, dataset in cleared.items()}
    assert left == {
        "stsb": 5626,
        "sick": 4047,
        "squad-sentences": 10639,
        "scifact": 450,
        "medquad": 8704,
    }
    assert not (find_leaks(cleared)["split"] == "train").any()
    assert all(
        cleared[name].splits[split] == datasets[name].splits[split]
        for name in datasets
        for split in SPLITS[1:]
    )
