"""Kinds of texts and the table of measures, on made-up data sets with texts that recur."""

from __future__ import annotations

import numpy as np
import pytest

from codiemb_lib.evaluate import EncodedDataset, texts_of
from codiemb_lib.space import tables as spaces
from codiemb_lib.space.measures import (
    alignment_by_text,
    anisotropy,
    cosine_gap_by_text,
    hubness,
    intrinsic_dimension,
    spectrum,
    uniformity,
)

D = 6


def vector(text: str) -> np.ndarray:
    row = np.random.default_rng(list(text.encode())).normal(size=D).astype(np.float32)
    return row / np.linalg.norm(row)


def dataset(task: str, queries: list[str], passages: list[str], gold, name="a") -> EncodedDataset:
    rows = (np.stack([vector(text) for text in side]) for side in (queries, passages))
    return EncodedDataset(name, task, queries, passages, *rows, gold)


@pytest.fixture
def space() -> list[EncodedDataset]:
    ir_gold = [[i, i + 1] for i in range(30)]
    sts_gold = np.linspace(0, 1, 40)
    return [
        dataset("ir", [f"q{i % 29}" for i in range(30)], [f"p{i}" for i in range(50)], ir_gold),
        dataset("sts", [f"s{i}" for i in range(40)], [f"s{i + 3}" for i in range(40)], sts_gold),
    ]


def test_texts_count_once_in_each_kind(space):
    sizes = {kind: len(x) for kind, x in texts_of(space).items()}
    assert sizes == {"ir_queries": 29, "ir_passages": 50, "ir": 79, "sts": 43, "all": 122}
    both = texts_of([dataset("ir", ["a", "b"], ["b", "c"], [[0], [1]])])  # "b" is of either kind
    assert {kind: len(x) for kind, x in both.items()} == {
        "ir_queries": 2,
        "ir_passages": 2,
        "ir": 4,
        "all": 4,
    }


def test_positives_are_gold_passages_and_pairs_that_people_rate_high(space):
    pairs = spaces.positive_pairs(space)
    x, y = pairs["ir"]
    assert len(x) == 60
    np.testing.assert_array_equal(x[3], vector("q1"))
    np.testing.assert_array_equal(y[3], vector("p2"))
    assert len(pairs["sts"][0]) == (space[1].gold >= 0.8).sum() == 8
    low = dataset("sts", ["a", "b"], ["c", "d"], np.array([0.1, 0.9]))
    assert spaces.positive_pairs([low]) == {}  # one pair is too few


def test_equal_texts_are_as_many_of_each_kind_and_the_same_for_every_model(space):
    texts = spaces.equal_texts(space)
    assert {len(x) for x in texts.values()} == {29}
    assert {len(x) for x in spaces.equal_texts(space, most=25).values()} == {25}
    few = [space[0], dataset("sts", ["a", "b"], ["c", "d"], np.array([0.9, 0.9]))]
    assert "sts" not in spaces.equal_texts(few)  # nor does it shrink the others
    assert len(spaces.equal_texts(few)["ir"]) == 29


def test_what_has_too_few_terms_is_left_out():
    one = dataset("ir", ["q", "r"], ["a", "b"], [[0, 1], []])  # all passages are positives
    pair = dataset("sts", ["s"], ["t"], np.array([1.0]))
    wide = dataset("sts", list("klmn"), list("opqu"), np.array([0.9, 0.9, 0.1, 0.9]), name="b")
    found = spaces.measures_by_kind([one, pair, wide]).set_index(["texts", "measure"])
    assert ("ir", "alignment") in found.index
    assert ("ir", "cosine_gap") not in found.index
    assert found.loc[("sts", "cosine_gap"), "n"] == 3  # of the one pair there is no gap
    assert spaces.spectra([pair]).empty


def test_measures_are_those_of_the_texts_with_intervals_about_them(space):
    rows = spaces.measures_by_kind(space)
    assert list(rows.columns) == ["texts", "measure", "value", "low", "high", "n"]
    assert not rows.duplicated(["texts", "measure"]).any()
    found = rows.set_index(["texts", "measure"])
    texts, equal, pairs = (
        texts_of(space),
        spaces.equal_texts(space),
        spaces.positive_pairs(space),
    )
    gold = np.array([(i, j) for i in range(30) for j in (i, i + 1)])
    expected = {
        ("sts", "anisotropy"): (anisotropy(texts["sts"]), 43),
        ("all", "uniformity"): (uniformity(texts["all"]), 122),
        ("ir", "alignment"): (alignment_by_text(*pairs["ir"]).mean(), 60),
        ("ir", "cosine_gap"): (
            cosine_gap_by_text(space[0].queries, space[0].passages, gold).mean(),
            30,
        ),
        ("ir_passages", "effective_rank"): (spectrum(equal["ir_passages"]).effective_rank, 29),
        ("ir_passages", "condition_number"): (spectrum(equal["ir_passages"]).condition_number, 29),
        ("sts", "hubness"): (hubness(equal["sts"], k=10), 29),
        ("ir", "intrinsic_dimension"): (intrinsic_dimension(equal["ir"]), 29),
    }
    for key, (value, n) in expected.items():
        assert found.loc[key, "value"] == pytest.approx(value), key
        assert found.loc[key, "n"] == n, key
    bounded = rows[rows["measure"] != "condition_number"]
    assert (bounded["low"] <= bounded["value"]).all()
    assert (bounded["value"] <= bounded["high"]).all()
    assert rows.loc[rows["measure"] == "condition_number", ["low", "high"]].isna().all(axis=None)
    assert set(spaces.measures_by_kind(space[1:])["texts"]) == {"sts", "all"}


def test_spectra_are_shares_that_fall(space):
    rows = spaces.spectra(space)
    for _, spectrum_of_kind in rows.groupby("texts"):
        assert spectrum_of_kind["index"].tolist() == list(range(1, D + 1))
        assert spectrum_of_kind["singular_value"].sum() == pytest.approx(1)
        assert spectrum_of_kind["singular_value"].is_monotonic_decreasing
    assert set(rows["texts"]) == set(texts_of(space))


def by_loop(space, task, sort):
    """The cosines of a sort of pairs, one by one."""
    found = []
    for d in space:
        if d.task != task:
            continue
        for i, query in enumerate(d.queries):
            ir = task == "ir"
            own = d.gold[i] if ir else [i]
            other = [
                query @ d.passages[j]
                for j in range(len(d.passages))
                if j not in own and d.passage_texts[j] != d.query_texts[i]
            ]
            if sort == "random":
                found += other
            elif sort == "negative":
                low = not ir and d.gold[i] <= 0.2
                found += [max(other)] if ir else [query @ d.passages[i]] * int(low)
            else:
                found += [query @ d.passages[j] for j in own if ir or d.gold[i] >= 0.8]
    return found


@pytest.mark.parametrize("task", ["ir", "sts"])
@pytest.mark.parametrize("sort", ["positive", "negative", "random"])
def test_histograms_count_every_pair_of_its_sort(space, monkeypatch, task, sort):
    monkeypatch.setattr(spaces, "_BLOCK", 7)  # of 30 and 40 queries
    rows = spaces.cosine_histograms(space)
    mine = rows[(rows["task"] == task) & (rows["pairs"] == sort)]
    expected = by_loop(space, task, sort)
    assert set(mine["n"]) == {len(expected)}
    counts, edges = np.histogram(expected, spaces.BINS)
    np.testing.assert_allclose(mine["share"], counts / len(expected))
    np.testing.assert_allclose(mine["cosine"], edges[:-1], atol=1e-9)


def test_rated_pairs_stand_with_their_cosine(space):
    rows = spaces.rated_pairs(space)
    assert list(rows.columns) == ["dataset", "pair", "gold", "cosine"]
    assert len(rows) == 40
    assert rows["cosine"][5] == pytest.approx(vector("s5") @ vector("s8"))
    assert spaces.rated_pairs(space[:1]).empty
