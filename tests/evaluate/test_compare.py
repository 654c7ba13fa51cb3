"""Paired comparisons against slow loops, SciPy and what chance really does."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from codiemb_lib.core import t_interval
from codiemb_lib.evaluate import EvaluationError
from codiemb_lib.evaluate.compare import (
    Comparison,
    Crossed,
    Spread,
    TextScores,
    bootstrap_scores,
    compare,
    crossed,
    directions,
    holm,
    load_text_scores,
    pooled,
    resample,
    save_text_scores,
    text_scores,
)
from codiemb_lib.evaluate.scores import EncodedDataset, score_dataset, texts_of

IR = {"c": [Comparison("a", "b", "ir")]}
BOTH = {"c": [Comparison("a", "b", "ir"), Comparison("a", "b", "sts")]}
SWAPPED = {"c": [Comparison("b", "a", "ir"), Comparison("b", "a", "sts")]}


def unit(generator, *shape):
    vectors = generator.normal(size=shape)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def one_run(seed, *, texts=40, gain=0.0):
    """Two retrieval sets and a similarity set, with chance of their own for each run."""
    chance = np.random.default_rng(seed)
    gold = np.random.default_rng(99).integers(0, 6, size=texts) / 5
    cosines = (0.1 + gain) * gold + 0.1 * chance.random(texts)
    return [
        TextScores("ir", "docs", chance.random(texts) + gain, None, [*range(texts)]),
        TextScores("ir", "news", chance.random(3) + gain, None, ["q", "r", "s"]),
        TextScores("sts", "words", cosines, gold, [*range(texts), gold.tolist()]),
    ]


def runs(models="ab", seeds=2, **gains):
    return {
        (model, seed): one_run(10 * place + seed, gain=gains.get(model, 0))
        for place, model in enumerate(models)
        for seed in range(seeds)
    }


def test_text_scores_are_what_a_data_sets_score_is_made_of():
    generator = np.random.default_rng(0)
    vectors = unit(generator, 3, 4), unit(generator, 5, 4)
    grades = [{0: 1}, {1: 3, 2: 1}, {4: 2}]
    ir = EncodedDataset("docs", "ir", list("abc"), list("vwxyz"), *vectors, grades)
    pairs, gold = unit(generator, 2, 6, 4), generator.random(6)
    sts = EncodedDataset("words", "sts", list("abcdef"), list("uvwxyz"), *pairs, gold)
    docs, words = text_scores([ir, sts])
    rows = score_dataset(ir).set_index("metric")["value"]
    assert docs.values.shape == (3,)
    assert docs.values.mean() == pytest.approx(rows["ndcg@10"])
    rows = score_dataset(sts).set_index("metric")["value"]
    assert stats.spearmanr(words.values, words.gold).statistic == pytest.approx(rows["spearman"])


def drawn_rows(n, resamples, seed):
    """The numbers of the texts that SciPy draws from this seed, (resamples, n)."""
    return stats.bootstrap(
        (np.arange(n),),
        lambda rows, axis: np.atleast_2d(rows).T.astype(float),
        vectorized=True,
        n_resamples=resamples,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).bootstrap_distribution.T.astype(int)


@pytest.mark.parametrize("tied", [False, True])
def test_correlations_of_resamples_are_those_of_scipy_on_the_texts_drawn(tied):
    generator = np.random.default_rng(1)
    values = generator.integers(0, 5, (3, 30)) if tied else generator.normal(size=(3, 30))
    gold = generator.integers(0, 4, 30)
    drawn = bootstrap_scores(values, gold, resamples=50, seed=5)
    assert drawn.shape == (3, 51)
    rows = drawn_rows(30, 50, seed=5)
    for i in range(3):
        slow = [stats.spearmanr(values[i], gold).statistic]
        slow += [stats.spearmanr(values[i, row], gold[row]).statistic for row in rows]
        np.testing.assert_allclose(drawn[i], slow, atol=1e-12)
        means = bootstrap_scores(values, resamples=50, seed=5)[i]
        np.testing.assert_allclose(means[1:], [values[i, row].mean() for row in rows])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_isotropy_of_resamples_is_that_of_a_loop_over_pairs_of_different_texts(dtype):
    generator = np.random.default_rng(8)
    models = unit(generator, 2, 12, 5).astype(dtype)
    drawn = bootstrap_scores(models, resamples=30, seed=5)
    rows = [np.arange(12), *drawn_rows(12, 30, seed=5)]
    for units, found in zip(models, drawn, strict=True):
        for row, value in zip(rows, found, strict=True):
            cosines = [units[i] @ units[j] for i in row for j in row if i != j]
            assert value == pytest.approx(-np.mean(cosines), abs=1e-6)


def test_directions_are_of_the_distinct_texts_of_a_task():
    generator = np.random.default_rng(10)
    words = EncodedDataset("a", "sts", ["x", "y"], ["y", "z"], *unit(generator, 2, 2, 4), [0, 1])
    other = EncodedDataset("b", "sts", ["v"], ["x"], *unit(generator, 2, 1, 4), [0])
    (texts,) = directions([words, other])
    assert texts.task == "sts_isotropy"
    assert texts.values.shape == (4, 4)
    (found,) = resample({("a", 0): [texts]}, resamples=20)
    assert found.n == 4
    units = texts_of([words, other])["sts"]
    mean_cosine = ((units @ units.T).sum() - 4) / 12
    assert found.by_run["a", 0][0] == pytest.approx(-mean_cosine)
    renamed = EncodedDataset("b", "sts", ["v"], ["w"], other.queries, other.passages, [0])
    with pytest.raises(EvaluationError, match=r"of \('a', 0\) for \('b', 0\) too"):
        resample({("a", 0): [texts], ("b", 0): directions([words, renamed])})


def test_interval_of_a_mean_is_that_of_scipys_paired_bootstrap():
    a, b = np.random.default_rng(2).normal(size=(2, 200))
    drawn = bootstrap_scores([a, b])
    ours = np.quantile(drawn[0, 1:] - drawn[1, 1:], [0.025, 0.975])
    theirs = stats.bootstrap(
        (a, b),
        lambda a, b, axis: (a - b).mean(axis),
        paired=True,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert ours == pytest.approx(theirs, abs=0.01)


def test_p_over_texts_is_near_that_of_an_exchange_of_the_models_for_each_query():
    a, b = np.random.default_rng(3).normal([[0.25], [0]], 1, size=(2, 150))
    drawn = bootstrap_scores([a, b])
    exchanged = stats.permutation_test(
        (a, b),
        lambda a, b, axis: (a - b).mean(axis),
        permutation_type="samples",
        vectorized=True,
        rng=np.random.default_rng(0),
    ).pvalue
    assert 0.01 < exchanged < 0.5
    drawn = drawn[0] - drawn[1]
    found = crossed(drawn[0], drawn[1:].std(), 150, Spread(0.0, 0), 1.0)
    assert found.p() == pytest.approx(exchanged, abs=0.02)


def test_interval_holds_the_true_difference_of_correlations_as_often_as_it_says():
    generator = np.random.default_rng(4)
    mix = np.linalg.cholesky([[1, 0.6, 0.5], [0.6, 1, 0.5], [0.5, 0.5, 1]])
    held = 0
    for trial in range(300):
        a, b, gold = mix @ generator.normal(size=(3, 150))  # both correlate alike with gold
        drawn = bootstrap_scores([a, b], gold, resamples=400, seed=trial)
        low, high = np.quantile(drawn[0, 1:] - drawn[1, 1:], [0.025, 0.975])
        held += low < 0 < high
    assert held / 300 == pytest.approx(0.95, abs=0.03)


def test_rows_by_hand():
    measured = runs(a=0.2)
    rows = compare(resample(measured, resamples=500), BOTH)

    def score(scores):
        if scores.gold is None:
            return scores.values.mean()
        return stats.spearmanr(scores.values, scores.gold).statistic

    docs, news, words = (
        np.array([score(measured["a", s][place]) - score(measured["b", s][place]) for s in (0, 1)])
        for place in range(3)
    )
    by_seed = {
        ("ir", "docs", 40): docs,
        ("ir", "news", 3): news,
        ("ir", "mean", 43): (docs + news) / 2,
        ("sts", "words", 40): words,
        ("sts", "mean", 40): words,
    }
    for (_, row), (place, expected) in zip(rows.iterrows(), by_seed.items(), strict=True):
        assert (row["task"], row["dataset"], row["n"]) == place
        assert row["difference"] == pytest.approx(expected.mean())
        interval = stats.ttest_1samp(expected, 0).confidence_interval()
        assert (row["seeds_low"], row["seeds_high"]) == pytest.approx(tuple(interval))
        assert row["low"] < row["difference"] < row["high"]
        assert row["seeds"] == 2
    for _, family in rows.groupby(rows["dataset"] == "mean"):
        np.testing.assert_array_equal(family["p_holm"], holm(family["p"]))


def test_means_are_resampled_within_each_test_set():
    measured = runs(seeds=1)
    ir = [s for s in resample(measured, resamples=4000) if s.task == "ir"]
    one, other = (s.by_run["a", 0][1:] for s in ir)
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.05
    row = compare(ir, IR).set_index("dataset").loc["mean"]
    spread = [np.std(s.by_run["a", 0][1:] - s.by_run["b", 0][1:]) for s in ir]
    expected = 2 * 1.96 * np.sqrt(np.square(spread).sum()) / 2
    assert row["high"] - row["low"] == pytest.approx(expected, rel=0.05)


def test_models_that_change_places_change_the_sign():
    sets = resample(runs(a=0.1), resamples=300)
    there, back = compare(sets, BOTH), compare(sets, SWAPPED)
    np.testing.assert_allclose(there["difference"], -back["difference"])
    np.testing.assert_allclose(
        there[["low", "seeds_low"]], -back[["high", "seeds_high"]].to_numpy()
    )
    np.testing.assert_array_equal(there[["p", "p_holm"]], back[["p", "p_holm"]])


def test_order_of_texts_and_increasing_maps_of_cosines_change_no_score():
    generator = np.random.default_rng(6)
    values, gold = generator.normal(size=(2, 25)), generator.integers(0, 4, 25)
    drawn = bootstrap_scores(values, gold, resamples=30)
    np.testing.assert_allclose(drawn, bootstrap_scores(np.exp(values), gold, resamples=30))
    order = generator.permutation(25)
    again = bootstrap_scores(values[:, order], gold[order], resamples=30)
    np.testing.assert_allclose(drawn[:, 0], again[:, 0])


def test_the_base_stands_against_each_seed_and_no_trained_model_of_one_seed_does():
    measured = runs(seeds=3)
    for seed in (1, 2):
        del measured["b", seed]
    with pytest.raises(EvaluationError, match=r"with the same seeds, found .*'b': \[0\]"):
        compare(resample(measured, resamples=50), IR)
    measured["base", 0] = measured.pop(("b", 0))
    against = {"c": [Comparison("a", "base", "ir")]}
    row = compare(resample(measured, resamples=50), against).iloc[0]
    score = {run: scores[0].values.mean() for run, scores in measured.items()}
    each = [score["a", seed] - score["base", 0] for seed in range(3)]
    assert row["seeds"] == 3
    assert row["difference"] == pytest.approx(np.mean(each))
    assert row["seeds_high"] == pytest.approx(t_interval(each)[1])


def test_equal_models_differ_by_nothing():
    measured = runs(seeds=1)
    measured["b", 0] = measured["a", 0]
    row = compare(resample(measured, resamples=50), IR).iloc[0]
    assert (row["difference"], row["low"], row["high"], row["p"]) == (0, 0, 0, 1)


def test_the_rule_by_hand():
    """Two models of three seeds, whose pooled variance has 4 degrees of freedom, and 100 texts."""
    found = crossed(0.5, 0.1, 100, pooled([[1.0, 1.2, 1.1], [2.0, 2.3, 2.0]]), 2 / 3)
    variance = (0.02 + 0.06) / 4
    by_seed = variance * 2 / 3
    assert found.se == pytest.approx(math.sqrt(0.01 + by_seed))
    assert found.df == pytest.approx((0.01 + by_seed) ** 2 / (0.01**2 / 99 + by_seed**2 / 4))
    low, high = found.interval()
    assert (low, high) == pytest.approx(stats.t.interval(0.95, found.df, 0.5, found.se))
    for bound in (low, high):
        assert found.p(bound) == pytest.approx(0.05)
    assert found.p(0.5) == pytest.approx(1)
    alone = crossed(0.5, 0.1, 100, pooled([[1.0], [2.0]]), 2.0)  # one seed: texts alone
    assert (alone.se, alone.df) == (0.1, pytest.approx(99))


def test_rows_have_the_rule_with_a_variance_pooled_over_all_models():
    measured = runs(seeds=3) | {
        ("c", s): v for (m, s), v in runs(a=0.4, seeds=3).items() if m == "a"
    }
    sets = [s for s in resample(measured, resamples=300) if s.task == "ir"]
    plain = compare(sets, IR).set_index("dataset").loc["mean"]
    scores = {
        run: np.mean([s.values.mean() for s in found if s.task == "ir"])
        for run, found in measured.items()
    }
    groups = [[scores[model, seed] for seed in range(3)] for model in "abc"]
    drawn = np.mean([s.by_run["a", n] - s.by_run["b", n] for s in sets for n in range(3)], axis=0)
    expected = crossed(drawn[0], drawn[1:].std(ddof=1), 43, pooled(groups), 2 / 3)
    assert (plain["se"], plain["df"]) == pytest.approx((expected.se, expected.df))
    assert plain["p"] == pytest.approx(expected.p())
    interval = plain[["crossed_low", "crossed_high"]].tolist()
    assert interval == pytest.approx([*expected.interval()])
    # Merges of the same runs vary together: only their difference counts.
    merges = compare(sets, IR, merges=("a", "b")).set_index("dataset").loc["mean"]
    each = np.subtract(*groups[:2])
    expected = crossed(drawn[0], drawn[1:].std(ddof=1), 43, pooled([each]), 1 / 3)
    assert merges["se"] == pytest.approx(expected.se)


def tried(trials, variants, seeds, difference=0.0, texts=60, seed=0):
    """The rule's p on made-up scores: variants x seeds x texts with known variances."""
    g = np.random.default_rng(seed)
    by_text = 0.3 * g.normal(size=(trials, variants, 1, texts))
    by_seed = 0.05 * g.normal(size=(trials, variants, seeds, 1))
    scores = by_text + by_seed + 0.1 * g.normal(size=(trials, variants, seeds, texts))
    scores[:, 0] += difference
    found = []
    for one in scores:
        d = (one[0] - one[1]).mean(axis=0)  # (texts,)
        error = d.std(ddof=1) / math.sqrt(texts)
        found.append(crossed(d.mean(), error, texts, pooled(one.mean(axis=2)), 2 / seeds))
    return found


@pytest.mark.parametrize("seeds", [3, 8, 20])
def test_the_rule_errs_as_often_as_it_says(seeds):
    """With no difference p is under 5 % in 5 % of the studies, within a point, at any number of
    seeds; asking the interval over texts and that over seeds each alone is not so."""
    found = tried(4000, 6, seeds)
    assert np.mean([one.p() < 0.05 for one in found]) == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize("seeds", [3, 8])
def test_the_rule_sees_a_difference_as_often_as_its_standard_error_says(seeds):
    variance = 2 * 0.3**2 / 60 + 2 * 0.05**2 / seeds + 2 * 0.1**2 / 60 / seeds
    difference = 2.5 * math.sqrt(variance)
    found = tried(2000, 6, seeds, difference)
    df = np.median([one.df for one in found])
    limit = stats.t.ppf(0.975, df)
    power = stats.nct.sf(limit, df, 2.5) + stats.nct.cdf(-limit, df, 2.5)
    assert np.mean([one.p() < 0.05 for one in found]) == pytest.approx(power, abs=0.04)


@pytest.mark.parametrize("seeds", [3, 8])
def test_at_the_margins_edge_no_verdict_is_given_more_often_than_its_level(seeds):
    margin = 0.2
    worse = [one.verdict(margin) for one in tried(2000, 6, seeds, -margin, seed=1)]
    assert np.mean([v in ("as good", "better") for v in worse]) < 0.035  # one side of 95 %
    assert np.mean([v == "equivalent" for v in worse]) < 0.06  # one side of 90 %
    assert np.mean([v == "worse" for v in worse]) > 0.5


@pytest.mark.parametrize(
    ("difference", "se", "expected"),
    [
        (0.5, 0.1, "better"),
        (0.0, 0.1, "equivalent"),
        (-0.15, 0.05, "equivalent"),  # surely worse, and by less than the margin
        (0.1, 0.2, "as good"),
        (-0.5, 0.1, "worse"),
        (-0.1, 0.3, "cannot tell"),
        (0.1, 0.4, "cannot tell"),
    ],
)
def test_four_verdicts_or_none(difference, se, expected):
    assert Crossed(difference, se, 1000).verdict(0.3) == expected


def test_p_tests_the_bound():
    sets = resample(runs(seeds=1), resamples=999)
    rows = [
        compare(sets, {"c": [Comparison("a", "b", "ir", bound)]}).set_index("dataset").loc["mean"]
        for bound in (0.0, 0.1)
    ]
    assert rows[0]["se"] == rows[1]["se"]
    for row in rows:
        t = abs(row["difference"] - row["bound"]) / row["se"]
        assert row["p"] == pytest.approx(2 * stats.t.sf(t, row["df"]))


def test_holm_by_his_own_words():
    """Reject the least p under alpha / m, the next under alpha / (m - 1), ... until one fails."""
    generator = np.random.default_rng(7)
    for _ in range(50):
        p = generator.random(6) ** 3
        alpha = generator.random()
        rejected = np.zeros(6, dtype=bool)
        for step, i in enumerate(np.argsort(p)):
            if p[i] > alpha / (6 - step):
                break
            rejected[i] = True
        np.testing.assert_array_equal(holm(p) <= alpha, rejected)
    assert holm([0.01, 0.04, 0.03]).tolist() == pytest.approx([0.03, 0.06, 0.06])


@pytest.mark.parametrize("change", ["other queries", "other passages", "other grades", "no set"])
def test_runs_on_different_texts_are_refused(change):
    vectors = unit(np.random.default_rng(0), 2, 2, 4)
    ours = EncodedDataset("docs", "ir", ["a", "b"], ["x", "y"], *vectors, [{0: 1}, {1: 1}])
    changed = {
        "other queries": {"query_texts": ["a", "c"]},
        "other passages": {"passage_texts": ["x", "z"]},
        "other grades": {"gold": [{0: 1}, {1: 2}]},
        "no set": {"name": "news"},
    }
    theirs = dataclasses.replace(ours, **changed[change])
    with pytest.raises(EvaluationError, match=r"of \('a', 0\) for \('b', 0\) too"):
        resample({("a", 0): text_scores([ours]), ("b", 0): text_scores([theirs])})


def test_the_order_in_which_right_passages_were_found_does_not_matter():
    vectors = unit(np.random.default_rng(0), 2, 2, 4)
    ours = EncodedDataset("docs", "ir", ["a", "b"], ["x", "y"], *vectors, [{0: 1, 1: 2}, {1: 1}])
    theirs = dataclasses.replace(ours, gold=[{1: 2, 0: 1}, {1: 1}])
    resample({("a", 0): text_scores([ours]), ("b", 0): text_scores([theirs])}, resamples=9)


def test_pairs_with_other_gold_scores_are_refused():
    vectors, gold = unit(np.random.default_rng(0), 2, 3, 4), np.array([0.1, 0.5, 1.0])
    ours = EncodedDataset("words", "sts", ["a", "b", "c"], ["x", "y", "z"], *vectors, gold)
    theirs = dataclasses.replace(ours, gold=gold / 2)
    with pytest.raises(EvaluationError, match=r"of \('a', 0\) for \('b', 0\) too"):
        resample({("a", 0): text_scores([ours]), ("b", 0): text_scores([theirs])})


@pytest.mark.filterwarnings("ignore:The BCa")  # SciPy meets it first
def test_a_resample_without_correlation_is_refused():
    measured = {("a", 0): [TextScores("sts", "s", np.array([0.1, 0.2]), np.array([0, 1]), [])]}
    with pytest.raises(EvaluationError, match="s: expected similarities and gold scores that dif"):
        resample(measured)


def test_models_without_common_seeds_and_tasks_without_sets_are_refused():
    measured = runs(seeds=3)
    del measured["b", 2]
    sets = resample(measured, resamples=20)
    with pytest.raises(EvaluationError, match=r"same seeds.*'a': \[0, 1, 2\], 'b': \[0, 1\]"):
        compare(sets, IR)
    with pytest.raises(EvaluationError, match=r"'x': \[\]"):
        compare(sets, {"c": [Comparison("a", "x", "ir")]})
    with pytest.raises(EvaluationError, match="test set of task 'sts', found none"):
        compare(sets[:2], {"c": [Comparison("a", "a", "sts")]})


def test_intervals_can_be_computed_again_from_the_scores_of_each_text(tmp_path):
    measured = runs(a=0.2)
    save_text_scores(tmp_path / "scores.npz", measured)
    again = load_text_scores(tmp_path / "scores.npz")
    assert [*again] == [*measured]
    for run, scores in again.items():
        for found, expected in zip(scores, measured[run], strict=True):
            assert (found.task, found.dataset) == (expected.task, expected.dataset)
            assert found.values.dtype == np.float32
    rows, others = (compare(resample(of, resamples=200), BOTH) for of in (measured, again))
    columns = ["difference", "low", "high", "se", "crossed_low", "crossed_high"]
    np.testing.assert_allclose(others[columns], rows[columns], atol=1e-6)
