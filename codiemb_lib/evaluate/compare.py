"""Which of two models is better, and is it noise? Of texts and of seeds, which add up.

A score y(seed, text) has two sources of chance. Other test texts: all models are scored on the same
resamples of the texts of each test set, and the scores of a resample are averaged over the seeds of
a model. Other training runs: the variance of scores over seeds, pooled over the models. `crossed`
adds the two; to ask each of two intervals alone errs the more often, the more seeds there are.
"""

import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from codiemb_lib.core import MAIN_METRIC, atomic_path, t_interval
from codiemb_lib.evaluate.scores import EncodedDataset, by_text, texts_of
from codiemb_lib.evaluate.search import EvaluationError

Run = tuple[str, int]  # a model and its seed

ISOTROPY = {"ir": "ir_isotropy", "sts": "sts_isotropy"}  # of a task's texts: minus mean cosine


@dataclass(frozen=True, slots=True)
class Comparison:
    """A model against a reference: the claim is that it is better by more than `bound`.

    `task` is of what more is better: the score of `ir` or `sts`, or the `ISOTROPY` of its texts.
    """

    model: str
    reference: str
    task: str
    bound: float = 0.0


@dataclass(frozen=True)
class TextScores:
    """What one run makes of each text of a test set.

    `values` (n,) are the nDCG@10 of queries, or the cosines of pairs, or (n, D) the directions of
    texts; `gold` (n,) are the pairs' scores. `material` is what compared runs must share.
    """

    task: str
    dataset: str
    values: np.ndarray
    gold: np.ndarray | None
    material: list  # texts and judgements


@dataclass(frozen=True)
class SetScores:
    """Of each run the scores (1 + resamples,) on a test set of `n` texts and on resamples of it."""

    task: str
    dataset: str
    n: int
    by_run: dict[Run, np.ndarray]


def text_scores(datasets: Iterable[EncodedDataset]) -> list[TextScores]:
    """Of a run's embeddings, what its scores are compared by: a number a text."""
    found = []
    for d in datasets:
        values = by_text(d)[MAIN_METRIC["ir"] if d.task == "ir" else "cosine"]
        material = [d.query_texts, d.passage_texts, [*d.gold], d.ignored]
        gold = d.gold if d.task == "sts" else None
        found.append(TextScores(d.task, d.name, values, gold, material))
    return found


def directions(datasets: Sequence[EncodedDataset]) -> list[TextScores]:
    """Of a run's embeddings, what its isotropy is compared by: the directions of the distinct texts
    of each task (`texts_of`), of all its data sets as one."""
    found = []
    for task, rows in texts_of(datasets).items():
        if task in ISOTROPY:
            units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
            material = [(d.query_texts, d.passage_texts) for d in datasets if d.task == task]
            found.append(TextScores(ISOTROPY[task], "all", units, None, material))
    return found


def save_text_scores(path: str | Path, runs: Mapping[Run, Sequence[TextScores]]) -> None:
    """Write what runs make of each text, float32, to an .npz from which intervals can be computed.

    Directions of texts are left out: they would be as large as the embeddings.
    """
    arrays: dict[str, np.ndarray] = {}
    for (model, seed), scores in runs.items():
        for s in scores:
            if s.values.ndim == 1:
                arrays[f"{s.task}/{s.dataset}/{model}/{seed}"] = s.values.astype(np.float32)
                if s.gold is not None:
                    arrays[f"gold/{s.task}/{s.dataset}"] = np.asarray(s.gold, np.float32)
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def load_text_scores(path: str | Path) -> dict[Run, list[TextScores]]:
    """What `save_text_scores` wrote, as `resample` takes it."""
    runs: dict[Run, list[TextScores]] = {}
    with np.load(path) as arrays:
        for name in arrays.files:
            task, rest = name.split("/", 1)
            if task != "gold":
                dataset, model, seed = rest.rsplit("/", 2)
                gold = f"gold/{task}/{dataset}"
                known = arrays[gold] if gold in arrays.files else None
                scores = TextScores(task, dataset, arrays[name], known, [])
                runs.setdefault((model, int(seed)), []).append(scores)
    return runs


def resample(
    runs: Mapping[Run, Sequence[TextScores]], *, resamples: int = 9999, seed: int = 0
) -> list[SetScores]:
    """Score all runs on the same resamples of the texts of each test set, by SciPy's bootstrap.

    `runs` holds what `text_scores`, `directions` or both give of each. Test sets are resampled
    independently of each other. Pairs that share a text count as independent, as everywhere in the
    field: where few texts form many pairs (`lee-similarity`), intervals come out too short.

    Raises:
        EvaluationError: The runs were measured on different texts, or the similarities or gold
            scores of some resample are constant, so that it has no correlation.
    """
    first, *_ = runs
    expected = [(s.dataset, s.task, s.material) for s in runs[first]]
    for run, scores in runs.items():
        if [(s.dataset, s.task, s.material) for s in scores] != expected:
            raise EvaluationError(
                f"expected the test sets and texts of {first} for {run} too, found others. Run "
                "notebook 05 anew for the older of the two."
            )
    sets = []
    for place, one in enumerate(runs[first]):
        values = np.stack([scores[place].values for scores in runs.values()])
        drawn = bootstrap_scores(values, one.gold, resamples=resamples, seed=(seed, place))
        if not np.isfinite(drawn).all():
            raise EvaluationError(
                f"{one.dataset}: expected similarities and gold scores that differ within every "
                "resample, found constant ones. Look at the scores, or test on more texts."
            )
        by_run = dict(zip(runs, drawn, strict=True))
        sets.append(SetScores(one.task, one.dataset, values.shape[1], by_run))
    return sets


def bootstrap_scores(
    values: ArrayLike,
    gold: ArrayLike | None = None,
    *,
    resamples: int = 9999,
    seed: int | tuple[int, ...] = 0,
) -> np.ndarray:
    """Scores of models on a test set and on resamples of its texts, the same ones for all models.

    `values` are those of M models for each of n texts, (M, n), or unit vectors, (M, n, D). Without
    `gold` a model's score is its mean, and of vectors minus their mean cosine (`_isotropy`). With
    gold scores (n,) it is the Spearman correlation with them, NaN where a side is constant.

    Returns:
        (M, 1 + resamples); column 0 is the score on the texts themselves.
    """
    values = np.asarray(values)
    n = values.shape[1]
    cells = 2**15  # 256 KB, which a processor keeps at hand
    if values.ndim == 3:
        of_counts, cells = partial(_isotropy, values), 2**21  # products of large matrices
    elif gold is None:
        of_counts = lambda counts: values @ counts / n  # noqa: E731
    else:
        of_counts = partial(_correlations, [*map(_Ranks, values)], _Ranks(gold))

    def score(rows: np.ndarray) -> np.ndarray:
        """(B, n) numbers of texts -> (M, B)."""
        at = n * np.arange(len(rows))[:, None] + rows
        counts = np.bincount(at.ravel(), minlength=at.size).reshape(at.shape)
        return of_counts(np.ascontiguousarray(counts.T))

    drawn = stats.bootstrap(
        (np.arange(n),),
        lambda rows, axis: score(np.atleast_2d(rows)),
        n_resamples=resamples,
        batch=max(1, cells // n),
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).bootstrap_distribution
    return np.concatenate([score(np.arange(n)[None]), drawn], axis=1)


class _Ranks:
    """Average ranks of values (n,) within resamples, which are how often each text stands in them.

    The values are sorted once; a rank is the number of texts in front, and half of those that tie.
    """

    def __init__(self, values: ArrayLike) -> None:
        _, self.group = np.unique(values, return_inverse=True)  # (n,) 0 for the least
        self.order = np.argsort(self.group, kind="stable")
        self.starts = np.flatnonzero(np.diff(self.group[self.order], prepend=-1))

    def centred(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Counts (n, B) -> ranks less their mean (n, B), and the sum of their squares (B,)."""
        ties = np.add.reduceat(counts[self.order], self.starts, axis=0)  # (groups, B)
        ranks = np.cumsum(ties, axis=0) - (ties + len(counts)) / 2
        return ranks[self.group], np.einsum("gb,gb->b", ties, ranks**2)


def _correlations(models: list[_Ranks], gold: _Ranks, counts: np.ndarray) -> np.ndarray:
    """Spearman's rho (M, B) from how often each of n texts was drawn, (n, B)."""
    y, y_square = gold.centred(counts)
    y = y * counts
    centred = (ranks.centred(counts) for ranks in models)
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN
        return np.stack([np.einsum("nb,nb->b", x, y) / np.sqrt(xx * y_square) for x, xx in centred])


def _isotropy(models: np.ndarray, counts: np.ndarray) -> np.ndarray:
    r"""Minus the mean cosine of two different texts, from unit vectors `models` (M, n, D).

    A text and its own copies in a resample are no pair. With :math:`w_i` copies of :math:`u_i`,
    :math:`\sum_{i \ne j} w_i w_j\, u_i \cdot u_j = \lVert \sum_i w_i u_i \rVert^2 - \sum_i w_i^2
    \lVert u_i \rVert^2`, over :math:`(\sum_i w_i)^2 - \sum_i w_i^2` such pairs.
    """
    squares = np.square(counts, dtype=np.float64)
    pairs = counts.sum(axis=0) ** 2 - squares.sum(axis=0)
    counts = counts.astype(models.dtype)
    own = np.einsum("mnd,mnd->mn", models, models, dtype=np.float64) @ squares
    totals = [np.square(units.T @ counts, dtype=np.float64).sum(axis=0) for units in models]
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN
        return (own - np.stack(totals)) / pairs


def compare(
    sets: Sequence[SetScores],
    comparisons: Mapping[str, Iterable[Comparison]],
    *,
    merges: Collection[str] = (),
) -> pd.DataFrame:
    """Rows of paired comparisons: on every test set of the task, and on their mean.

    `comparisons` stand by the claim that they decide, or any other name. The untrained encoder,
    `base`, has one seed and stands against each of the other. Of `merges` of the same runs the
    differences by seed count, not the scores.

    Returns:
        claim, variant, reference, task, dataset (`mean`: the mean over the task's sets); difference
        (variant less reference, mean over seeds) with low and high (95 % interval by percentiles of
        the bootstrap over texts); bound; se, df, crossed_low, crossed_high and p (`crossed`; of one
        seed a model, texts alone) and p_holm (over all comparisons of the call: the means one
        family, the single sets another); seeds_low and seeds_high (95 % t-interval of the
        difference over seeds, unbounded for one); n texts, and seeds.

    Raises:
        EvaluationError: A model, its seed, or a test set of the task is missing.
    """
    rows = []
    for claim, members in comparisons.items():
        for c in members:
            own = [s for s in sets if s.task == c.task]
            if not own:
                raise EvaluationError(f"expected a test set of task {c.task!r}, found none.")
            by_set = np.stack([_paired(s, c) for s in own])  # (sets, seeds, 1 + resamples)
            named = {s.dataset: ([s], by_set[i]) for i, s in enumerate(own)}
            named["mean"] = own, by_set.mean(axis=0)
            labels = {"claim": claim, "variant": c.model, "reference": c.reference, "task": c.task}
            for dataset, (of, differences) in named.items():
                drawn, n = differences.mean(axis=0)[1:], sum(s.n for s in of)
                low, high = np.quantile(drawn, [0.025, 0.975])
                seeds_low, seeds_high = t_interval(differences[:, 0])
                if {c.model, c.reference} <= {*merges}:
                    seeds, share = pooled([differences[:, 0]]), 1 / len(differences)
                else:
                    seeds = pooled(_by_model(of).values())
                    share = (2 - ("base" in (c.model, c.reference))) / len(differences)
                found = crossed(differences[:, 0].mean(), drawn.std(ddof=1), n, seeds, share)
                rows.append(
                    labels
                    | {"dataset": dataset, "difference": found.difference}
                    | {"low": low, "high": high, "bound": c.bound, "p": found.p(c.bound)}
                    | {"se": found.se, "df": found.df}
                    | dict(zip(("crossed_low", "crossed_high"), found.interval(), strict=True))
                    | {"seeds_low": seeds_low, "seeds_high": seeds_high}
                    | {"n": n, "seeds": len(differences)}
                )
    table = pd.DataFrame(rows)
    families = table.groupby(table["dataset"] == "mean")["p"]
    table.insert(table.columns.get_loc("p") + 1, "p_holm", families.transform(holm))
    return table


class Spread(NamedTuple):
    """A variance of scores over seeds, and its degrees of freedom."""

    variance: float
    df: int


def pooled(groups: Iterable[ArrayLike]) -> Spread:
    """The variance within groups of scores, each of one model by seed; 0 where all have one."""
    deviations = [np.asarray(group) - np.mean(group) for group in groups]
    df = sum(len(own) - 1 for own in deviations)
    squares = sum(float(own @ own) for own in deviations)
    return Spread(squares / df if df else 0.0, df)


def _by_model(sets: Sequence[SetScores]) -> dict[str, np.ndarray]:
    """Of each model its scores by seed, (seeds,): the means over some test sets."""
    runs: dict[str, list[Run]] = {}
    for run in sets[0].by_run:
        runs.setdefault(run[0], []).append(run)
    return {
        model: np.mean([[s.by_run[run][0] for run in own] for s in sets], axis=0)
        for model, own in runs.items()
    }


class Crossed(NamedTuple):
    """A difference with the standard error of both sources of chance."""

    difference: float
    se: float
    df: float

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Student's interval of the difference."""
        half = stats.t.ppf((1 + level) / 2, self.df) * self.se
        return self.difference - half, self.difference + half

    def p(self, bound: float = 0.0) -> float:
        """Two-sided p of the difference being `bound`."""
        if self.se == 0:
            return float(self.difference == bound)
        return float(2 * stats.t.sf(abs(self.difference - bound) / self.se, self.df))

    def verdict(self, margin: float) -> str:
        """What the difference says of a model against its reference, by 95 % intervals.

        `better`, or `equivalent` (within the margin on both sides, by the 90 % interval: two
        one-sided tests at 5 %, Schuirmann, 1987), or `as good` (not worse than the margin), or
        `worse`; else `cannot tell`. A model may be surely worse by less than the margin: that is
        `equivalent`, and the interval says it.
        """
        (low, high), (inner_low, inner_high) = self.interval(), self.interval(0.9)
        if low > 0:
            return "better"
        if -margin < inner_low and inner_high < margin:
            return "equivalent"
        if low > -margin:
            return "as good"
        return "worse" if high < 0 else "cannot tell"


def crossed(difference: float, texts: float, n: int, seeds: Spread, share: float) -> Crossed:
    r"""The rule for scores y(seed, text): variances of texts and seeds add.

    .. math:: \mathrm{SE}^2 = \mathrm{SE}_{texts}^2 + s^2 \Bigl(\frac{1}{n_1} + \frac{1}{n_2}\Bigr)

    with the degrees of freedom of Satterthwaite (1946), n - 1 for the texts. What is random for
    each seed and text alone counts in both terms: that makes intervals wider, not narrower.

    Args:
        texts: Standard error over n texts of the mean over seeds, as by the bootstrap.
        seeds: s^2, of one model's scores over seeds, and its degrees of freedom.
        share: 1/n1 + 1/n2 for two models with so many seeds; 1/n1 where the other is the base, or
            where s is that of differences by seed.
    """
    by_text, by_seed = texts**2, seeds.variance * share
    total = by_text + by_seed
    parts = by_text**2 / max(n - 1, 1) + (by_seed**2 / seeds.df if seeds.df else 0.0)
    return Crossed(difference, total**0.5, total**2 / parts if parts else float(n - 1))


def _paired(scores: SetScores, comparison: Comparison) -> np.ndarray:
    """The differences of two models by seed, (seeds, 1 + resamples)."""
    by_seed = {
        model: {seed: s for (name, seed), s in scores.by_run.items() if name == model}
        for model in (comparison.model, comparison.reference)
    }
    if start := by_seed.get("base"):  # no seed has to do with it: it stands beside each
        most = max(by_seed.values(), key=len)
        by_seed["base"] = dict.fromkeys(most, next(iter(start.values())))
    ours, theirs = by_seed[comparison.model], by_seed[comparison.reference]
    if not ours or ours.keys() != theirs.keys():
        found = {model: sorted(seeds) for model, seeds in by_seed.items()}
        raise EvaluationError(
            f"expected runs of {comparison.model!r} and {comparison.reference!r} with the same "
            f"seeds, found {found}. Run notebook 05 for the missing ones."
        )
    return np.stack([ours[seed] - theirs[seed] for seed in sorted(ours)])


def holm(p: ArrayLike) -> np.ndarray:
    """P-values (m,) of one family, adjusted by Holm (1979): each holds whatever the others do."""
    p = np.asarray(p)
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return np.minimum(adjusted, 1)
