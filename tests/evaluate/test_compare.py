"""Paired comparisons against slow loops, SciPy and what chance really does."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from codiemb_lib.core import load_preset, rows_file, run_folder
from codiemb_lib.evaluate import EvaluationError
from codiemb_lib.evaluate.compare import (
    Comparison,
    Crossed,
    Spread,
    TextScores,
    collect_text_scores,
    compare,
    contributions,
    crossed,
    holm,
    isotropies,
    load_text_scores,
    pooled,
    pseudo_values,
    save_text_scores,
    text_scores,
)
from codiemb_lib.evaluate.scores import EncodedDataset, score_dataset, texts_of
from tests.app.projects import ROOT

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
        TextScores("ir", "docs", chance.random(texts) + gain, None, str(texts)),
        TextScores("ir", "news", chance.random(3) + gain, None, "qrs"),
        TextScores("sts", "words", cosines, gold, str(gold)),
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


def weighted_rho(x, y, weights):
    """Spearman's rho of pairs that weigh so much, by a loop over the definition."""
    sides = []
    for values in (x, y):
        below = [
            sum(w * ((v < value) + (v == value) / 2) for v, w in zip(values, weights, strict=True))
            for value in values
        ]
        sides.append(np.array(below) - 0.5)
    a, b = sides
    return (weights @ (a * b)) / math.sqrt((weights @ a**2) * (weights @ b**2))


@pytest.mark.parametrize("tied", [False, True])
def test_contributions_to_a_correlation_are_its_change_as_a_pair_weighs_more(tied):
    generator = np.random.default_rng(1)
    x = generator.integers(0, 5, 30) if tied else generator.normal(size=30)
    y = generator.integers(0, 4, 30)
    found = contributions(TextScores("sts", "s", x, y, ""))
    assert found.mean() == pytest.approx(stats.spearmanr(x, y).statistic)
    even, step = np.full(30, 1 / 30), 1e-6
    assert weighted_rho(x, y, even) == pytest.approx(found.mean())
    for i, value in enumerate(found):
        heavier = (1 - step) * even + step * (np.arange(30) == i)
        slope = (weighted_rho(x, y, heavier) - found.mean()) / step
        assert value - found.mean() == pytest.approx(slope, abs=1e-4)


def test_contributions_to_a_mean_are_its_values():
    values = np.random.default_rng(1).random(9)
    np.testing.assert_array_equal(contributions(TextScores("ir", "d", values, None, "")), values)


@pytest.mark.parametrize("kind", ["means", "correlations"])
def test_standard_errors_are_those_of_scipys_paired_bootstrap(kind):
    rng = np.random.default_rng(2)
    gold = rng.integers(0, 6, 400) if kind == "correlations" else None
    a, b = rng.normal(size=(2, 400)) + (0 if gold is None else gold * np.array([[0.5], [0.3]]))

    def score(values, gold):
        return values.mean() if gold is None else stats.spearmanr(values, gold).statistic

    def difference(rows):
        of = None if gold is None else gold[rows.astype(int)]
        return score(a[rows.astype(int)], of) - score(b[rows.astype(int)], of)

    drawn = stats.bootstrap(
        (np.arange(400),), difference, vectorized=False, method="percentile", n_resamples=1000,
        rng=rng,
    ).standard_error  # fmt: skip
    both = {(m, 0): [TextScores("ir", "d", v, gold, "")] for m, v in (("a", a), ("b", b))}
    row = compare(both, IR).iloc[0]
    assert row["se"] == pytest.approx(drawn, rel=0.08)
    assert row["se"] == row["se_texts"]


def test_isotropies_are_the_pseudo_values_of_minus_the_mean_cosine():
    units = unit(np.random.default_rng(8), 12, 5)

    def mean_cosine(rows: np.ndarray) -> float:
        return np.mean([a @ b for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j])

    slow = [
        -12 * mean_cosine(units) + 11 * mean_cosine(np.delete(units, i, axis=0)) for i in range(12)
    ]
    np.testing.assert_allclose(pseudo_values(3 * units), slow, atol=1e-12)
    assert pseudo_values(units).mean() == pytest.approx(-mean_cosine(units))


def test_standard_error_of_isotropy_is_that_over_fresh_texts():
    """Texts about a common direction; the truth by drawing all of them anew, many times."""
    rng = np.random.default_rng(9)

    def drawn() -> np.ndarray:
        rows = np.array([1.0, 0, 0, 0]) + 0.5 * rng.normal(size=(300, 4))
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    means = [pseudo_values(drawn()).mean() for _ in range(1000)]
    errors = [pseudo_values(drawn()).std(ddof=1) / 300**0.5 for _ in range(200)]
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.1)


def test_isotropies_are_of_the_distinct_texts_of_a_task():
    generator = np.random.default_rng(10)
    words = EncodedDataset("a", "sts", ["x", "y"], ["y", "z"], *unit(generator, 2, 2, 4), [0, 1])
    other = EncodedDataset("b", "sts", ["v"], ["x"], *unit(generator, 2, 1, 4), [0])
    (texts,) = isotropies([words, other])
    assert texts.task == "sts_isotropy"
    assert len(texts.values) == 4
    units = texts_of([words, other])["sts"]
    mean_cosine = ((units @ units.T).sum() - 4) / 12
    assert texts.values.mean() == pytest.approx(-mean_cosine)
    renamed = EncodedDataset("b", "sts", ["v"], ["w"], other.queries, other.passages, [0])
    (others,) = isotropies([words, renamed])
    with pytest.raises(EvaluationError, match=r"of \('a', 0\) for \('b', 0\) too"):
        compare({("a", 0): [texts], ("b", 0): [others]}, {})


def test_p_over_texts_is_near_that_of_an_exchange_of_the_models_for_each_query():
    a, b = np.random.default_rng(3).normal([[0.25], [0]], 1, size=(2, 150))
    exchanged = stats.permutation_test(
        (a, b),
        lambda a, b, axis: (a - b).mean(axis),
        permutation_type="samples",
        vectorized=True,
        rng=np.random.default_rng(0),
    ).pvalue
    assert 0.01 < exchanged < 0.5
    both = {(m, 0): [TextScores("ir", "d", v, None, "")] for m, v in (("a", a), ("b", b))}
    assert compare(both, IR)["p"].iloc[0] == pytest.approx(exchanged, abs=0.02)


def test_interval_holds_the_true_difference_of_correlations_as_often_as_it_says():
    generator = np.random.default_rng(4)
    mix = np.linalg.cholesky([[1, 0.6, 0.5], [0.6, 1, 0.5], [0.5, 0.5, 1]])
    held = 0
    for _ in range(500):
        a, b, gold = mix @ generator.normal(size=(3, 150))  # both correlate alike with gold
        both = {(m, 0): [TextScores("ir", "d", v, gold, "")] for m, v in (("a", a), ("b", b))}
        row = compare(both, IR).iloc[0]
        held += row["low"] < 0 < row["high"]
    assert held / 500 == pytest.approx(0.95, abs=0.03)


def test_rows_by_hand():
    measured = runs(a=0.2)
    rows = compare(measured, BOTH)

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
        assert row["low"] < row["difference"] < row["high"]
        assert row["seeds"] == 2
    for _, family in rows.groupby(rows["dataset"] == "mean"):
        np.testing.assert_array_equal(family["p_holm"], holm(family["p"]))


def test_models_that_change_places_change_the_sign():
    measured = runs(a=0.1)
    there, back = compare(measured, BOTH), compare(measured, SWAPPED)
    np.testing.assert_allclose(there["difference"], -back["difference"])
    np.testing.assert_allclose(there["low"], -back["high"])
    np.testing.assert_array_equal(there[["p", "p_holm"]], back[["p", "p_holm"]])


def test_order_of_texts_and_increasing_maps_of_cosines_change_no_score():
    generator = np.random.default_rng(6)
    values, gold = generator.normal(size=25), generator.integers(0, 4, 25)
    found = contributions(TextScores("sts", "s", values, gold, ""))
    mapped = contributions(TextScores("sts", "s", np.exp(values), gold, ""))
    np.testing.assert_allclose(mapped, found)
    order = generator.permutation(25)
    again = contributions(TextScores("sts", "s", values[order], gold[order], ""))
    np.testing.assert_allclose(again, found[order])


def test_the_base_stands_against_each_seed_and_no_trained_model_of_one_seed_does():
    measured = runs(seeds=3)
    for seed in (1, 2):
        del measured["b", seed]
    with pytest.raises(EvaluationError, match=r"with the same seeds, found .*'b': \[0\]"):
        compare(measured, IR)
    measured["base", 0] = measured.pop(("b", 0))
    against = {"c": [Comparison("a", "base", "ir")]}
    row = compare(measured, against).iloc[0]
    score = {run: scores[0].values.mean() for run, scores in measured.items()}
    each = [score["a", seed] - score["base", 0] for seed in range(3)]
    assert row["seeds"] == 3
    assert row["difference"] == pytest.approx(np.mean(each))


def test_equal_models_differ_by_nothing():
    measured = runs(seeds=1)
    measured["b", 0] = measured["a", 0]
    row = compare(measured, IR).iloc[0]
    assert (row["difference"], row["se"], row["p"]) == (0, 0, 1)


def test_the_rule_by_hand():
    """Two models of three seeds, whose pooled variance has 4 degrees of freedom, and 100 texts."""
    variance = (0.02 + 0.06) / 4
    spread = pooled([[1.0, 1.2, 1.1], [2.0, 2.3, 2.0]])
    assert spread == pytest.approx((variance, 4))
    by_seed = variance * 2 / 3
    found = crossed(0.5, [Spread(0.01, 99), Spread(by_seed, 4)])
    assert found.se == pytest.approx(math.sqrt(0.01 + by_seed))
    assert found.df == pytest.approx((0.01 + by_seed) ** 2 / (0.01**2 / 99 + by_seed**2 / 4))
    low, high = found.interval()
    assert (low, high) == pytest.approx(stats.t.interval(0.95, found.df, 0.5, found.se))
    for bound in (low, high):
        assert found.p(bound) == pytest.approx(0.05)
    assert found.p(0.5) == pytest.approx(1)
    alone = crossed(0.5, [Spread(0.01, 99), pooled([[1.0], [2.0]])])  # one seed: texts alone
    assert (alone.se, alone.df) == (0.1, pytest.approx(99))


def test_rows_have_the_rule_with_a_variance_pooled_over_all_models():
    measured = runs(seeds=3) | {
        ("c", s): v for (m, s), v in runs(a=0.4, seeds=3).items() if m == "a"
    }
    plain = compare(measured, IR).set_index("dataset").loc["mean"]
    scores = {
        run: np.mean([s.values.mean() for s in found if s.task == "ir"])
        for run, found in measured.items()
    }
    groups = [[scores[model, seed] for seed in range(3)] for model in "abc"]
    parts = []
    for place, n in ((0, 40), (1, 3)):  # the two sets of retrieval, each half of the mean
        by_text = [
            measured["a", s][place].values - measured["b", s][place].values for s in range(3)
        ]
        parts.append(Spread(np.mean(by_text, axis=0).var(ddof=1) / n / 4, n - 1))
    spread, difference = pooled(groups), np.mean(np.subtract(*groups[:2]))
    expected = crossed(difference, [*parts, Spread(spread.variance * 2 / 3, spread.df)])
    assert (plain["se"], plain["df"]) == pytest.approx((expected.se, expected.df))
    assert plain["p"] == pytest.approx(expected.p())
    assert plain[["low", "high"]].tolist() == pytest.approx([*expected.interval()])
    assert plain["se_texts"] == pytest.approx(sum(part.variance for part in parts) ** 0.5)
    # Merges of the same runs vary together: only their difference counts.
    merges = compare(measured, IR, merges=("a", "b")).set_index("dataset").loc["mean"]
    spread = pooled([np.subtract(*groups[:2])])
    expected = crossed(difference, [*parts, Spread(spread.variance / 3, spread.df)])
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
        spread = pooled(one.mean(axis=2))
        parts = [Spread(d.var(ddof=1) / texts, texts - 1)]
        parts.append(Spread(spread.variance * 2 / seeds, spread.df))
        found.append(crossed(d.mean(), parts))
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
    measured = runs(seeds=1)
    rows = [
        compare(measured, {"c": [Comparison("a", "b", "ir", bound)]})
        .set_index("dataset")
        .loc["mean"]
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
        compare({("a", 0): text_scores([ours]), ("b", 0): text_scores([theirs])}, {})


def test_the_order_in_which_right_passages_were_found_does_not_matter():
    vectors = unit(np.random.default_rng(0), 2, 2, 4)
    ours = EncodedDataset("docs", "ir", ["a", "b"], ["x", "y"], *vectors, [{0: 1, 1: 2}, {1: 1}])
    theirs = dataclasses.replace(ours, gold=[{1: 2, 0: 1}, {1: 1}])
    compare({("a", 0): text_scores([ours]), ("b", 0): text_scores([theirs])}, IR)


def test_pairs_with_other_gold_scores_are_refused():
    vectors, gold = unit(np.random.default_rng(0), 2, 3, 4), np.array([0.1, 0.5, 1.0])
    ours = EncodedDataset("words", "sts", ["a", "b", "c"], ["x", "y", "z"], *vectors, gold)
    theirs = dataclasses.replace(ours, gold=gold / 2)
    with pytest.raises(EvaluationError, match=r"of \('a', 0\) for \('b', 0\) too"):
        compare({("a", 0): text_scores([ours]), ("b", 0): text_scores([theirs])}, {})


@pytest.mark.parametrize(("values", "gold"), [([0.1, 0.1], [0, 1]), ([0.1, 0.2], [1, 1])])
def test_constant_similarities_or_scores_are_refused(values, gold):
    constant = TextScores("sts", "s", np.array(values), np.array(gold), "")
    with pytest.raises(EvaluationError, match="s: expected similarities and gold scores that dif"):
        contributions(constant)


def test_models_without_common_seeds_and_tasks_without_sets_are_refused():
    measured = runs(seeds=3)
    del measured["b", 2]
    with pytest.raises(EvaluationError, match=r"same seeds.*'a': \[0, 1, 2\], 'b': \[0, 1\]"):
        compare(measured, IR)
    with pytest.raises(EvaluationError, match=r"'x': \[\]"):
        compare(measured, {"c": [Comparison("a", "x", "ir")]})
    with pytest.raises(EvaluationError, match="test set of task 'sts_unseen', found none"):
        compare(measured, {"c": [Comparison("a", "a", "sts_unseen")]})


def test_intervals_can_be_computed_again_from_the_scores_of_each_text(tmp_path):
    measured = runs(a=0.2)
    save_text_scores(tmp_path / "scores.npz", measured)
    again = load_text_scores(tmp_path / "scores.npz")
    assert [*again] == [*measured]
    for run, scores in again.items():
        for found, expected in zip(scores, measured[run], strict=True):
            assert (found.task, found.dataset) == (expected.task, expected.dataset)
            np.testing.assert_allclose(found.values, expected.values, rtol=1e-6)
    rows, others = (compare(of, BOTH) for of in (measured, again))
    columns = ["difference", "low", "high", "se"]
    np.testing.assert_allclose(others[columns], rows[columns], atol=1e-6)


def test_text_scores_are_those_of_runs_that_are_here_and_of_other_seeds_what_was_kept(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("CODIEMB_ROOT", str(tmp_path))
    preset = load_preset(str(ROOT / "notebooks" / "presets" / "smoke.yaml"))
    preset = preset.model_copy(update={"seeds": (0, 1)})
    kept = runs(["base", "codiemb"], seeds=2)
    for seed in preset.seeds:
        of_seed = {run: scores for run, scores in kept.items() if run[1] == seed}
        save_text_scores(rows_file("smoke", seed, "texts.npz"), of_seed)
    # The start is encoded anew, also where nothing else of its seed is here.
    save_text_scores(run_folder("smoke", "base", 0) / "texts.npz", {("base", 0): kept["base", 0]})
    assert [*collect_text_scores(preset)] == [*kept]
    ours = {("codiemb", 1): one_run(99)}
    save_text_scores(run_folder("smoke", "codiemb", 1) / "texts.npz", ours)
    found = collect_text_scores(preset)
    assert [*found] == [("base", 0), ("codiemb", 0), ("codiemb", 1)]
    np.testing.assert_allclose(found["codiemb", 1][0].values, ours["codiemb", 1][0].values)
    assert collect_text_scores(preset, merges=True) == {}
