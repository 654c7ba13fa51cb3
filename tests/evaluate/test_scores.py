"""Scores against pytrec_eval, SciPy and plain loops."""

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import pytrec_eval
import torch
from scipy import stats

from codiemb_lib.core import DatasetSettings, load_preset, task_means
from codiemb_lib.data import Record, load_dataset
from codiemb_lib.evaluate import EvaluationError, scores
from codiemb_lib.evaluate.compare import text_scores
from codiemb_lib.evaluate.scores import (
    encode_dataset,
    encode_split,
    is_constant,
    load_encoded,
    ranking_metrics,
    save_encoded,
    score,
    score_dataset,
    sts_metrics,
)
from tests.memory import growth

IR = [
    Record("ir", "the cat", ("a cat is a cat", "old cat"), ("red bus",), dataset="d"),
    Record("ir", "the dog", ("a fast dog",), ("old cat",), dataset="d"),
    Record("ir", "blue car", ("a slow blue car",), (), dataset="d"),
]
STS = [
    Record("sts", "cat", ("dog",), positive_scores=(0.6,), dataset="s"),
    Record("sts", "cat", ("bus",), positive_scores=(0.1,), dataset="s"),
    Record("sts", "car", ("bus",), positive_scores=(0.8,), dataset="s"),
]


def random_grades(generator, queries, passages, highest):
    return [
        {int(row): int(generator.integers(1, highest + 1)) for row in rows}
        for rows in (
            generator.choice(passages, generator.integers(1, 15), replace=False)
            for _ in range(queries)
        )
    ]


def test_ranking_metrics_by_their_definition():
    generator = np.random.default_rng(0)
    queries, passages = generator.normal(size=(30, 8)), generator.normal(size=(250, 8))
    grades = random_grades(generator, 30, 250, highest=3)
    found = ranking_metrics(queries, passages, grades)
    for i, graded in enumerate(grades):
        ranked = np.argsort(-(queries[i] @ passages.T))
        gains = [graded.get(row, 0) / math.log2(place + 2) for place, row in enumerate(ranked[:10])]
        best = sorted(graded.values(), reverse=True)[:10]
        ideal = sum(grade / math.log2(place + 2) for place, grade in enumerate(best))
        first = next((place for place, gain in enumerate(gains) if gain), math.inf)
        assert found["ndcg@10"][i] == pytest.approx(sum(gains) / ideal)
        assert found["mrr@10"][i] == pytest.approx(1 / (first + 1))
        share = np.isin(ranked[:100], [*graded]).sum() / len(graded)
        assert found["recall@100"][i] == pytest.approx(share)


@pytest.mark.parametrize("levels", [0, 3, 1])
@pytest.mark.parametrize("highest", [1, 3])
def test_rankings_score_as_whole_ones_do_in_pytrec_eval(levels, highest):
    """Random vectors; small integers, of which most products tie; and all products equal."""
    random = np.random.default_rng(levels)
    sizes = (12, 4), (300, 4)
    if levels:
        queries, passages = (random.integers(0, levels, size) for size in sizes)
    else:
        queries, passages = (random.normal(size=size).astype(np.float32) for size in sizes)
    grades = random_grades(random, 12, 300, highest)
    names = [f"d{row:03d}" for row in range(300)]
    run = {
        f"q{i}": dict(zip(names, map(float, similarities), strict=True))
        for i, similarities in enumerate(queries @ passages.T)
    }
    qrels = {
        f"q{i}": {names[row]: g for row, g in by_row.items()} for i, by_row in enumerate(grades)
    }
    measures = {"ndcg_cut.10", "recall.100", "recip_rank"}
    whole = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run)
    found = ranking_metrics(queries, passages, grades)
    for i in range(12):
        expected = whole[f"q{i}"]
        reciprocal = expected["recip_rank"] if expected["recip_rank"] >= 0.1 else 0.0
        assert found["ndcg@10"][i] == pytest.approx(expected["ndcg_cut_10"], abs=1e-12)
        assert found["recall@100"][i] == pytest.approx(expected["recall_100"], abs=1e-12)
        assert found["mrr@10"][i] == pytest.approx(reciprocal, abs=1e-12)


def test_queries_come_back_in_their_order_whatever_the_block(monkeypatch):
    random = np.random.default_rng(0)
    queries, passages = random.normal(size=(25, 8)), random.normal(size=(50, 8))
    grades = [{int(random.integers(50)): 1} for _ in range(25)]
    whole = ranking_metrics(queries, passages, grades)
    monkeypatch.setattr(scores, "_QUERIES", 4)
    for metric, values in ranking_metrics(queries, passages, grades).items():
        np.testing.assert_array_equal(values, whole[metric])


def test_memory_is_not_that_of_all_pairs():
    before = """
import numpy as np
from codiemb_lib.evaluate.scores import ranking_metrics
random = np.random.default_rng(0)
queries, passages = (random.normal(size=(n, 2)).astype(np.float32) for n in (5000, 50000))
ranking_metrics(queries[:64], passages[:64], [{0: 1}] * 64)
"""
    grown = growth(before, "ranking_metrics(queries, passages, [{0: 1}] * 5000)")
    assert grown < 500_000  # kB; all pairs are 1,000,000


def test_sts_metrics_are_those_of_scipy_with_ties():
    generator = np.random.default_rng(2)
    predicted, gold = generator.normal(size=50), generator.integers(0, 5, size=50)
    assert sts_metrics(predicted, gold) == {
        "spearman": pytest.approx(stats.spearmanr(predicted, gold).statistic),
        "pearson": pytest.approx(stats.pearsonr(predicted, gold).statistic),
    }


@pytest.mark.parametrize(
    ("similarities", "scores", "message"),
    [
        ([0.5], [1.0], "two or more"),
        ([0.5, 0.5], [0.0, 1.0], "similarities that differ"),
        ([0.4, 0.5], [1.0, 1.0], "scores that differ"),
        ([0.4, np.nan], [0.0, 1.0], r"finite similarities .* nan\]"),
        ([0.4, np.inf], [0.0, 1.0], r"finite similarities .* inf\]"),
    ],
)
def test_sts_that_has_no_score_fails_loudly(similarities, scores, message):
    with pytest.raises(EvaluationError, match=message):
        sts_metrics(similarities, scores)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("share", [0.0, 1e-6, 1e-4])  # of the states in what the layer norm gives
def test_a_collapsed_encoder_has_no_score(make_encoder, pooling, share):
    encoder = make_encoder(pooling=pooling, max_length=60)
    norm = encoder.backbone.encoder.layer[-1].output.LayerNorm
    norm.weight.data.mul_(share)
    norm.bias.data.copy_(torch.linspace(-1, 1, 16))
    texts = [" ".join(["cat", "old", "is", "fast"] * n)[n:] for n in range(1, 15)]
    pairs = [
        Record("sts", a, (b,), positive_scores=(n / 13,))
        for n, (a, b) in enumerate(zip(texts, texts[::-1], strict=True))
    ]
    searches = [Record("ir", f"the {text}", (text,)) for text in texts]
    for records in (pairs, searches):
        encoded = encode_dataset(encoder, DatasetSettings(name="d"), records)
        with pytest.raises(EvaluationError, match=r"d: expected .* similarities that differ"):
            score_dataset(encoded)
        with pytest.raises(EvaluationError, match="alike up to rounding"):
            text_scores([encoded])


def test_a_narrow_cone_is_no_collapse():
    cosines = 1 - 1e-5 * np.random.default_rng(0).random(50)
    assert not is_constant(cosines.astype(np.float32))
    assert is_constant((1 - 1e-3 * (cosines - 1)).astype(np.float32))
    assert is_constant(np.zeros((3, 2)))
    assert not is_constant(np.array([[0.0, 1.0], [0.0, 1.1]]))


@pytest.mark.parametrize(("records", "message"), [(IR, "d: .* row 0"), (STS, "d: .* found .nan")])
def test_a_broken_encoder_fails_loudly_with_the_data_sets_name(make_encoder, records, message):
    encoded = encode_dataset(make_encoder(), DatasetSettings(name="d"), records)
    broken = replace(encoded, queries=np.full_like(encoded.queries, np.nan))
    with pytest.raises(EvaluationError, match=message):
        score_dataset(broken)


def test_a_corpus_is_searched_after_the_passages_of_the_records(make_encoder):
    encoder, settings = make_encoder(), DatasetSettings(name="d", passage_prompt="find ")
    corpus = ["red bus", "a new car", "a cat is a cat", "a new car"]  # two are there already
    encoded = encode_dataset(encoder, settings, IR, corpus)
    plain = encode_dataset(encoder, settings, IR)
    assert plain.passages.shape == (5, 16)  # "old cat" stands twice
    assert encoded.passage_texts == [*plain.passage_texts, "a new car"]
    assert encoded.gold == plain.gold == [{0: 1, 1: 1}, {3: 1}, {4: 1}]
    last = encoder.encode(["a new car"], prompt="find ")
    np.testing.assert_allclose(encoded.passages[-1:], last, atol=1e-6)
    rival = encode_dataset(encoder, settings, IR, [IR[2].query])  # as near as a text can be
    assert task_means(score([rival]))["ir"] < task_means(score([plain]))["ir"]


@pytest.mark.parametrize(
    ("given", "gold"),
    [
        ((1, 3, 2), {0: 1, 1: 3, 2: 2}),
        ((1.0, 3.0, 2.0), {0: 1, 1: 3, 2: 2}),
        ((1, 3, 0.5), {0: 1, 1: 1, 2: 1}),  # a teacher's
        ((), {0: 1, 1: 1, 2: 1}),
    ],
)
def test_whole_scores_are_grades_that_count_and_that_a_file_keeps(
    make_encoder, tmp_path, given, gold
):
    texts = ("a cat", "the old cat is red", "a dog")
    record = Record("ir", "a cat", texts, positive_scores=given)
    encoded = encode_dataset(make_encoder(), DatasetSettings(name="d"), [record, *IR])
    assert encoded.gold[0] == gold
    ndcg = ranking_metrics(encoded.queries, encoded.passages, encoded.gold)["ndcg@10"].mean()
    assert score_dataset(encoded).set_index("metric").loc["ndcg@10", "value"] == ndcg
    save_encoded(tmp_path / "e", [encoded])
    assert load_encoded(tmp_path / "e")[0].gold == encoded.gold


def test_of_a_positive_that_stands_twice_the_higher_grade_counts(make_encoder):
    record = Record("ir", "a cat", ("a dog", "a dog"), positive_scores=(3, 1))
    assert encode_dataset(make_encoder(), DatasetSettings(name="d"), [record]).gold == [{0: 3}]


def test_scores_that_are_no_grades_are_said(make_encoder, caplog):
    record = Record("ir", "a cat", ("a dog", "a bus"), positive_scores=(0.5, 1.5), dataset="halves")
    assert encode_dataset(make_encoder(), DatasetSettings(name="d"), [record]).gold == [
        {0: 1, 1: 1}
    ]
    assert "halves: scores of positives are not all whole numbers from 1" in caplog.text


def test_prompts_go_where_they_belong(make_encoder):
    encoder = make_encoder()
    settings = DatasetSettings(name="d", query_prompt="query: ", passage_prompt="find ")
    ir, sts = encode_dataset(encoder, settings, IR), encode_dataset(encoder, settings, STS)
    for found, text, prompt in (
        (ir.queries[:1], "the cat", "query: "),
        (ir.passages[2:3], "red bus", "find "),
        (sts.passages[:1], "dog", "query: "),  # both sides of a pair carry the query's
    ):
        np.testing.assert_allclose(found, encoder.encode([text], prompt=prompt), atol=1e-6)


def test_records_of_two_tasks_are_no_data_set(make_encoder):
    with pytest.raises(EvaluationError, match="one task"):
        encode_dataset(make_encoder(), DatasetSettings(name="d"), IR + STS)
    with pytest.raises(EvaluationError, match="found none"):
        encode_dataset(make_encoder(), DatasetSettings(name="d"), [])


def test_a_split_has_the_presets_data_sets_limits_prompts_and_in_test_the_corpus(make_encoder):
    words = DatasetSettings(name="wordsim-353", dev=5, test=7, query_prompt="find ")
    mine = DatasetSettings(name="mine", dev=0, test=2, corpus=1)
    preset = load_preset("smoke").model_copy(update={"datasets": (words, mine)})
    loaded = load_dataset("wordsim-353")
    splits = {"dev": tuple(IR), "test": tuple(IR)}
    data = {"wordsim-353": loaded}
    data["mine"] = replace(loaded, name="mine", task="ir", splits=splits, corpus=("x", "y"))
    encoder = make_encoder()
    (dev,) = encode_split(encoder, preset, "dev", data=data)
    assert dev.query_texts == [r.query for r in loaded.split("dev", limit=5)]
    pairs, ir = encode_split(encoder, preset, "test", data=data)
    expected = encoder.encode(pairs.query_texts, prompt="find ")
    np.testing.assert_allclose(pairs.queries, expected, atol=1e-6)
    own = {text for r in data["mine"].split("test", limit=2) for text in r.positives + r.negatives}
    assert len({*ir.passage_texts} - own) == 1
    rows = score([pairs, ir])
    assert list(rows.columns) == ["task", "dataset", "metric", "value", "n"]
    assert rows["metric"].tolist() == ["spearman", "pearson", "ndcg@10", "recall@100", "mrr@10"]
    only_words = preset.model_copy(update={"datasets": (words,)})
    assert score(encode_split(encoder, only_words, "test")).equals(score([pairs]))


def test_encoded_data_sets_come_back_from_their_file(make_encoder, tmp_path):
    encoder, path = make_encoder(), tmp_path / "e.safetensors"
    saved = [
        encode_dataset(encoder, DatasetSettings(name="d"), IR),
        encode_dataset(encoder, DatasetSettings(name="s"), STS),
    ]
    save_encoded(path, saved)
    for found, dataset in zip(load_encoded(path), saved, strict=True):
        assert score_dataset(found).equals(score_dataset(dataset))
        np.testing.assert_array_equal(found.queries, dataset.queries)
        assert found.passage_texts == dataset.passage_texts
    for again in range(8):  # a mapping of Rust has another order each time
        save_encoded(tmp_path / str(again), saved)
        assert (tmp_path / str(again)).read_bytes() == path.read_bytes()


def test_scores_comparisons_and_claims_load_no_torch():
    code = """
import sys
from codiemb_lib.evaluate import CLAIMS, compare, encode_dataset, load_encoded, local_task, mine
assert not {"torch", "transformers"} & {*sys.modules}
"""
    subprocess.run([sys.executable, "-c", code], check=True)
