"""Scores against pytrec_eval, SciPy and plain loops."""

import math

import numpy as np
import pytest
import pytrec_eval
from scipy import stats

from codiemb_lib.core.preset import DatasetSettings
from codiemb_lib.core.words import task_means
from codiemb_lib.data.records import Record
from codiemb_lib.evaluate import scores as evaluation
from codiemb_lib.evaluate.scores import (
    EvaluationError,
    encode_dataset,
    evaluate,
    load_encoded,
    ranking_metrics,
    retrieval_metrics,
    save_encoded,
    score_dataset,
    sts_metrics,
)
from codiemb_lib.evaluate.search import SearchError
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


def by_loop(similarities, relevant, k):
    """nDCG and MRR at k of one query without ties, from their definitions."""
    ranked = sorted(range(len(similarities)), key=lambda i: -similarities[i])[:k]
    gains = [1.0 if i in relevant else 0.0 for i in ranked]
    dcg = sum(gain / math.log2(rank + 2) for rank, gain in enumerate(gains))
    ideal = sum(1 / math.log2(rank + 2) for rank in range(min(k, len(relevant))))
    first = next((rank for rank, gain in enumerate(gains) if gain), None)
    return dcg / ideal, 0.0 if first is None else 1 / (first + 1)


def test_retrieval_metrics_by_their_definition():
    generator = np.random.default_rng(0)
    similarities = generator.normal(size=(30, 250))
    relevant = [
        generator.choice(250, size=generator.integers(1, 15), replace=False) for _ in range(30)
    ]
    metrics = retrieval_metrics(similarities, relevant)
    for i, columns in enumerate(relevant):
        ndcg, reciprocal = by_loop(similarities[i], set(columns), 10)
        assert metrics["ndcg@10"][i] == pytest.approx(ndcg)
        assert metrics["mrr@10"][i] == pytest.approx(reciprocal)
        found = np.isin(np.argsort(-similarities[i])[:100], columns).sum()
        assert metrics["recall@100"][i] == pytest.approx(found / len(columns))


@pytest.mark.parametrize("levels", [0, 3, 1])
@pytest.mark.parametrize("graded", [False, True])
def test_rankings_score_as_whole_ones_do_in_pytrec_eval(levels, graded):
    """Random vectors; small integers, of which most products tie; and all products equal."""
    random = np.random.default_rng(levels)
    Q, C, D = 12, 300, 4
    if levels:
        draw = lambda n: random.integers(0, levels, (n, D)).astype(np.float32)  # noqa: E731
    else:
        draw = lambda n: random.normal(size=(n, D)).astype(np.float32)  # noqa: E731
    queries, passages = draw(Q), draw(C)
    grades = [
        {int(row): int(random.integers(1, 4)) if graded else 1 for row in rows}
        for rows in (random.choice(C, random.integers(1, 15), replace=False) for _ in range(Q))
    ]
    names = [f"d{row:03d}" for row in range(C)]
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
    if not graded:
        for metric, values in retrieval_metrics(queries @ passages.T, grades).items():
            np.testing.assert_array_equal(values, found[metric])
    for i in range(Q):
        expected = whole[f"q{i}"]
        reciprocal = expected["recip_rank"] if expected["recip_rank"] >= 0.1 else 0.0
        assert found["ndcg@10"][i] == pytest.approx(expected["ndcg_cut_10"], abs=1e-12)
        assert found["recall@100"][i] == pytest.approx(expected["recall_100"], abs=1e-12)
        assert found["mrr@10"][i] == pytest.approx(reciprocal, abs=1e-12)


def test_grades_are_gains_of_ndcg():
    passages = np.float32([[0.9], [0.8], [0.7]])
    found = ranking_metrics(np.float32([[1]]), passages, [{0: 1, 2: 3}])
    best = 3 + 1 / math.log2(3)
    assert found["ndcg@10"].item() == pytest.approx((1 + 3 / math.log2(4)) / best)
    of_numpy = [{np.int64(0): np.int64(1), np.int32(2): np.uint8(3)}]
    assert ranking_metrics(np.float32([[1]]), passages, of_numpy) == found


@pytest.mark.parametrize("grades", [{0: 1.5}, {0: 2.0}, {0: float("nan")}, {0.0: 1}])
def test_grades_and_rows_are_whole_numbers(grades):
    with pytest.raises(EvaluationError, match=r"query 0: expected .* all whole numbers, found"):
        ranking_metrics(np.float32([[1]]), np.float32([[1], [1]]), [grades])


def test_queries_come_back_in_their_order_whatever_the_block(monkeypatch):
    random = np.random.default_rng(0)
    queries, passages = random.normal(size=(25, 8)), random.normal(size=(50, 8))
    grades = [{int(random.integers(50)): 1} for _ in range(25)]
    whole = ranking_metrics(queries, passages, grades)
    monkeypatch.setattr(evaluation, "_QUERIES", 4)
    for metric, values in ranking_metrics(queries, passages, grades).items():
        np.testing.assert_array_equal(values, whole[metric])


def test_queries_without_relevant_passage_and_vectors_without_length_are_refused():
    vectors = np.eye(3, dtype=np.float32)
    with pytest.raises(EvaluationError, match="each of 3 queries, found grades for 1"):
        ranking_metrics(vectors, vectors, [{0: 1}, {}, {}])
    with pytest.raises(EvaluationError, match="each of 3 queries, found grades for 1"):
        ranking_metrics(vectors, vectors, [{0: 1}])
    with pytest.raises(SearchError, match="row 0"):
        ranking_metrics(np.full((1, 3), np.nan), vectors, [{0: 1}])


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
        ([0.5], [1.0], "a correlation needs two pairs"),
        ([0.5, 0.5], [0.0, 1.0], "similarities that differ"),
        ([0.4, 0.5], [1.0, 1.0], "scores that differ"),
        ([0.4, np.nan], [0.0, 1.0], "1 NaN or Inf"),
        ([0.4, 0.5, 0.6], [0.0, 1.0], "found shapes"),
    ],
)
def test_sts_that_has_no_score_fails_loudly(similarities, scores, message):
    with pytest.raises(EvaluationError, match=message):
        sts_metrics(similarities, scores)


def test_retrieval_that_has_no_score_fails_loudly():
    with pytest.raises(EvaluationError, match="NaN or Inf"):
        retrieval_metrics(np.array([[0.1, np.nan]]), [[0]])
    with pytest.raises(EvaluationError, match="each of 2 queries, found grades for 1"):
        retrieval_metrics(np.zeros((2, 3)), [[0], []])
    with pytest.raises(EvaluationError, match="each of 3 queries, found grades for 1"):
        retrieval_metrics(np.zeros((3, 3)), [[0]])
    with pytest.raises(EvaluationError, match=r"found shape \(3,\)"):
        retrieval_metrics(np.zeros(3), [[0]])


def test_a_retrieval_set_is_encoded_once_with_its_relevance(make_encoder):
    encoded = encode_dataset(make_encoder(), DatasetSettings(name="d"), IR)
    assert encoded.passages.shape == (5, 16)  # "old cat" stands twice
    assert encoded.gold == [[0, 1], [3], [4]]


def test_a_corpus_is_searched_after_the_passages_of_the_records(make_encoder):
    encoder, settings = make_encoder(), DatasetSettings(name="d", passage_prompt="find ")
    corpus = ["red bus", "a new car", "a cat is a cat", "a new car"]  # two are there already
    encoded = encode_dataset(encoder, settings, IR, corpus)
    plain = encode_dataset(encoder, settings, IR)
    assert encoded.passage_texts == [*plain.passage_texts, "a new car"]
    assert encoded.gold == plain.gold
    np.testing.assert_array_equal(
        encoded.passages[-1:], encoder.encode(["a new car"], prompt="find ")
    )
    rival = [IR[2].query]  # as near to its query as a text can be
    rows = evaluate(encoder, [DatasetSettings(name="d")], {"d": IR}, {"d": rival})
    without = evaluate(encoder, [DatasetSettings(name="d")], {"d": IR})
    assert task_means(rows)["ir"] < task_means(without)["ir"]


def test_prompts_go_where_they_belong(make_encoder):
    encoder = make_encoder()
    settings = DatasetSettings(name="d", query_prompt="query: ", passage_prompt="find ")
    ir = encode_dataset(encoder, settings, IR)
    np.testing.assert_array_equal(ir.queries[:1], encoder.encode(["the cat"], prompt="query: "))
    np.testing.assert_array_equal(ir.passages[2:3], encoder.encode(["red bus"], prompt="find "))
    sts = encode_dataset(encoder, settings, STS)  # both sides carry the query's
    np.testing.assert_array_equal(sts.passages[0], encoder.encode(["dog"], prompt="query: ")[0])


def test_evaluate_gives_tidy_rows_and_task_means(make_encoder):
    settings = [DatasetSettings(name="d"), DatasetSettings(name="s")]
    rows = evaluate(make_encoder(), settings, {"d": IR, "s": STS})
    assert list(rows.columns) == ["task", "dataset", "metric", "value", "n"]
    assert set(rows["metric"]) == {"ndcg@10", "recall@100", "mrr@10", "spearman", "pearson"}
    means = task_means(rows)
    assert means["sts"] == rows.query("metric == 'spearman'")["value"].item()
    again = evaluate(make_encoder(), settings, {"d": IR, "s": STS})
    assert again.equals(rows)


def test_records_of_two_tasks_are_no_data_set(make_encoder):
    with pytest.raises(EvaluationError, match="one task"):
        encode_dataset(make_encoder(), DatasetSettings(name="d"), IR + STS)
    with pytest.raises(EvaluationError, match="found none"):
        encode_dataset(make_encoder(), DatasetSettings(name="d"), [])


def test_one_pair_gives_no_score(make_encoder):
    encoded = encode_dataset(make_encoder(), DatasetSettings(name="s"), STS[:1])
    with pytest.raises(EvaluationError, match="a correlation needs two pairs"):
        score_dataset(encoded)


def test_encoded_data_sets_come_back_from_their_file(make_encoder, tmp_path):
    encoder = make_encoder()
    saved = [
        encode_dataset(encoder, DatasetSettings(name="d"), IR),
        encode_dataset(encoder, DatasetSettings(name="s"), STS),
    ]
    save_encoded(tmp_path / "e.safetensors", saved)
    loaded = {dataset.name: dataset for dataset in load_encoded(tmp_path / "e.safetensors")}
    for dataset in saved:
        assert score_dataset(loaded[dataset.name]).equals(score_dataset(dataset))
        np.testing.assert_array_equal(loaded[dataset.name].queries, dataset.queries)
        assert loaded[dataset.name].passage_texts == dataset.passage_texts


@pytest.mark.parametrize("relevant", [[[1], [3]], [[0], [-1]]])
def test_a_relevant_passage_that_is_not_there_is_refused(relevant):
    with pytest.raises(EvaluationError, match="expected passages from 0 to 2"):
        retrieval_metrics(np.eye(3)[:2], relevant)


def test_a_grade_below_one_is_refused():
    with pytest.raises(EvaluationError, match="found passage 1 with grade 0"):
        ranking_metrics(np.eye(3)[:1], np.eye(3), [{1: 0}])
