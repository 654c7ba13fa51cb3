"""Which of two models is better, and is it noise? Of texts and of seeds, which add up.

A score y(seed, text) has two sources of chance. Other test texts: a score is a mean of numbers of
texts (`contributions`), whose spread says how far it moves. Other training runs: the variance of
scores over seeds, pooled over the models. `crossed` adds the two; to ask each of two intervals
alone errs the more often, the more seeds there are.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from codiemb_lib.core import (
    MAIN_METRIC,
    Preset,
    kept_of,
    run_folder,
    sha256_text,
    write_arrays,
)
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

    `values` (n,) are the nDCG@10 of queries, the cosines of pairs, or the `pseudo_values` of texts;
    `gold` (n,) are the pairs' scores. `material` is the hash of the texts and judgements, which
    compared runs must share.
    """

    task: str
    dataset: str
    values: np.ndarray
    gold: np.ndarray | None
    material: str


def text_scores(datasets: Iterable[EncodedDataset]) -> list[TextScores]:
    """Of a run's embeddings, what its scores are compared by: a number a text."""
    found = []
    for d in datasets:
        values = by_text(d)[MAIN_METRIC["ir"] if d.task == "ir" else "cosine"]
        gold = np.asarray(d.gold) if d.task == "sts" else None
        judged = [sorted(of.items()) for of in d.gold] if gold is None else gold.tolist()
        facts = str((judged, sorted(d.ignored.items())))
        material = sha256_text(*d.query_texts, *d.passage_texts, facts)
        found.append(TextScores(d.label, d.name, values, gold, material))
    return found


def isotropies(datasets: Sequence[EncodedDataset]) -> list[TextScores]:
    """Of a run's embeddings, what its isotropy is compared by: `pseudo_values` of distinct texts.

    They are the texts of a task (`texts_of`), three at least, of all its data sets as one.
    """
    found = []
    for task, rows in texts_of(datasets).items():
        if task in ISOTROPY and len(rows) > 2:
            sides = [(d.query_texts, d.passage_texts) for d in datasets if d.task == task]
            material = sha256_text(*(text for side in sides for texts in side for text in texts))
            found.append(TextScores(ISOTROPY[task], "all", pseudo_values(rows), None, material))
    return found


def pseudo_values(rows: np.ndarray) -> np.ndarray:
    r"""Of texts (n, D) numbers (n,) whose mean is minus the mean cosine of two of them.

    They are its jackknife pseudo-values (Tukey, 1958), :math:`n U - (n - 1) U_{-i}` with
    :math:`U_{-i}` of the texts without the i-th.
    """
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    units, n = units.astype(np.float64), len(rows)
    with_others = units @ units.sum(axis=0) - np.einsum("nd,nd->n", units, units)
    total = with_others.sum()
    without = (total - 2 * with_others) / ((n - 1) * (n - 2))
    return (n - 1) * without - total / (n - 1)


def save_text_scores(path: str | Path, runs: Mapping[Run, Sequence[TextScores]]) -> None:
    """Write what runs make of each text to an .npz, from which `compare` can be called again.

    Scores are float32; pseudo-values, of which there are most, float16.
    """
    arrays: dict[str, np.ndarray] = {}
    for (model, seed), scores in runs.items():
        for s in scores:
            kind = np.float16 if s.task in ISOTROPY.values() else np.float32
            arrays[f"{s.task}/{s.dataset}/{model}/{seed}"] = s.values.astype(kind)
            arrays[f"material/{s.task}/{s.dataset}"] = np.array(s.material)
            if s.gold is not None:
                arrays[f"gold/{s.task}/{s.dataset}"] = np.asarray(s.gold, np.float32)
    write_arrays(path, arrays)


def load_text_scores(path: str | Path) -> dict[Run, list[TextScores]]:
    """What `save_text_scores` wrote, as `compare` takes it."""
    runs: dict[Run, list[TextScores]] = {}
    with np.load(path) as arrays:
        for name in arrays.files:
            task, rest = name.split("/", 1)
            if task not in ("gold", "material"):
                dataset, model, seed = rest.rsplit("/", 2)
                gold = arrays.get(f"gold/{task}/{dataset}")
                material = str(arrays[f"material/{task}/{dataset}"])
                values = arrays[name].astype(np.float64)
                scores = TextScores(task, dataset, values, gold, material)
                runs.setdefault((model, int(seed)), []).append(scores)
    return runs


def collect_text_scores(preset: Preset, *, merges: bool = False) -> dict[Run, list[TextScores]]:
    """The text scores of all runs of a preset that were measured; or of the merges of its study.

    A seed of which there are no runs here has those that `publish` has kept of it.
    """
    found: dict[Run, list[TextScores]] = {}
    for seed in preset.seeds:
        paths = [kept_of(preset, seed, "merges.npz" if merges else "texts.npz")]
        if paths == [None]:
            models = ["fusion"] if merges else preset.models
            paths = [run_folder(preset.name, model, seed) / "texts.npz" for model in models]
        for path in paths:
            found |= load_text_scores(path) if path.is_file() else {}
    order = {model: place for place, model in enumerate(preset.models)}
    return dict(sorted(found.items(), key=lambda run: (order.get(run[0][0], 0), run[0][1])))


def contributions(scores: TextScores) -> np.ndarray:
    r"""Numbers of texts (n,) whose mean is a run's score on a test set.

    The score moves with other texts as their mean does, so its standard error is their standard
    deviation over :math:`\sqrt n`. Of a mean over texts they are its values. Of Spearman's rho they
    are rho plus the influence of each pair on it (the infinitesimal jackknife, Jaeckel, 1972).
    Pairs that share a text count as independent, as everywhere in the field: where few texts form
    many pairs (`lee-similarity`), standard errors come out too small.

    With mid-distributions :math:`a_i = F(x_i) - 1/2` and :math:`b_i = G(y_i) - 1/2`, rho is
    :math:`C / \sqrt{V_x V_y}` of :math:`C = \overline{ab}`, :math:`V_x = \overline{a^2}` and
    :math:`V_y = \overline{b^2}`. Pair i adds :math:`a_i b_i` to C, and raises :math:`F` above
    :math:`x_i` and :math:`G` above :math:`y_i`.

    Raises:
        EvaluationError: The similarities or the gold scores are constant.
    """
    if scores.gold is None:
        return scores.values
    (a, above_x), (b, above_y) = map(_mid_distribution, (scores.values, scores.gold))
    c, of_x, of_y = np.mean([a * b, a * a, b * b], axis=1)
    if not of_x * of_y:
        raise EvaluationError(
            f"{scores.dataset}: expected similarities and gold scores that differ, found constant "
            "ones. Look at the scores, or test on more texts."
        )
    in_c = a * b + above_x(b) + above_y(a) - 3 * c
    in_x, in_y = a * a + 2 * above_x(a) - 3 * of_x, b * b + 2 * above_y(b) - 3 * of_y
    size = (of_x * of_y) ** 0.5
    return c / size + in_c / size - c / size * (in_x / of_x + in_y / of_y) / 2


def _mid_distribution(values: ArrayLike) -> tuple[np.ndarray, Callable]:
    """Of values (n,) the shares that lie below each, ties by half, less 1/2; and a function from
    weights (n,) to 1/n of their sums over what lies above each value, ties by half."""
    _, group = np.unique(values, return_inverse=True)  # (n,) 0 for the least

    def above(weights: np.ndarray) -> np.ndarray:
        own = np.bincount(group, weights)
        return (own.sum() - np.cumsum(own) + own / 2)[group] / len(group)

    return 0.5 - above(np.ones(len(group))), above


def _by_set(runs: Mapping[Run, Sequence[TextScores]]) -> list[tuple[str, str, dict]]:
    """Of each test set its task, its name, and the `contributions` (n,) by run."""
    first, *_ = runs
    expected = [(s.dataset, s.task, s.material) for s in runs[first]]
    for run, scores in runs.items():
        if [(s.dataset, s.task, s.material) for s in scores] != expected:
            raise EvaluationError(
                f"expected the test sets and texts of {first} for {run} too, found others. Run "
                "notebook 05 anew for the older of the two."
            )
    return [
        (one.task, one.dataset, {run: contributions(s[place]) for run, s in runs.items()})
        for place, one in enumerate(runs[first])
    ]


def compare(
    runs: Mapping[Run, Sequence[TextScores]],
    comparisons: Mapping[str, Iterable[Comparison]],
    *,
    merges: Collection[str] = (),
) -> pd.DataFrame:
    """Rows of paired comparisons: on every test set of the task, and on their mean.

    `runs` holds what `text_scores`, `isotropies` or both give of each. `comparisons` stand by the
    claim that they decide, or any other name. The untrained encoder, `base`, has one seed and
    stands against each of the other. Of `merges` of the same runs the differences by seed count,
    not the scores.

    Returns:
        claim, variant, reference, task, dataset (`mean`: the mean over the task's sets); difference
        (variant less reference, mean over seeds); low and high (95 %), bound, se, df, p and p_holm
        (`crossed`; of one seed a model, texts alone; Holm over all comparisons of the call: the
        means one family, the single sets another); se_texts, the part of the texts; n texts, and
        seeds.

    Raises:
        EvaluationError: The runs were measured on different texts; a model, its seed, or a test set
            of the task is missing; or some similarities are constant.
    """
    sets, rows = _by_set(runs), []
    for claim, members in comparisons.items():
        for c in members:
            own = [(dataset, by_run) for task, dataset, by_run in sets if task == c.task]
            if not own:
                raise EvaluationError(f"expected a test set of task {c.task!r}, found none.")
            named = {dataset: [by_run] for dataset, by_run in own}
            named["mean"] = [by_run for _, by_run in own]
            labels = {"claim": claim, "variant": c.model, "reference": c.reference, "task": c.task}
            for dataset, of in named.items():
                differences = [_paired(by_run, c) for by_run in of]  # (seeds, n) each
                by_seed = np.mean([d.mean(axis=1) for d in differences], axis=0)
                texts = [
                    Spread(d.mean(axis=0).var(ddof=1) / d.shape[1] / len(of) ** 2, d.shape[1] - 1)
                    for d in differences
                ]
                if {c.model, c.reference} <= {*merges}:
                    seeds, share = pooled([by_seed]), 1 / len(by_seed)
                else:
                    seeds = pooled(_by_model(of).values())
                    share = (2 - ("base" in (c.model, c.reference))) / len(by_seed)
                found = crossed(by_seed.mean(), [*texts, Spread(seeds.variance * share, seeds.df)])
                low, high = found.interval()
                rows.append(
                    labels
                    | {"dataset": dataset, "difference": found.difference, "low": low, "high": high}
                    | {"bound": c.bound, "p": found.p(c.bound), "se": found.se, "df": found.df}
                    | {"se_texts": sum(part.variance for part in texts) ** 0.5}
                    | {"n": sum(d.shape[1] for d in differences), "seeds": len(by_seed)}
                )
    table = pd.DataFrame(rows)
    families = table.groupby(table["dataset"] == "mean")["p"]
    table.insert(table.columns.get_loc("p") + 1, "p_holm", families.transform(holm))
    return table


class Spread(NamedTuple):
    """A variance, and its degrees of freedom."""

    variance: float
    df: int


def pooled(groups: Iterable[ArrayLike]) -> Spread:
    """The variance within groups of scores, each of one model by seed; 0 where all have one."""
    deviations = [np.asarray(group) - np.mean(group) for group in groups]
    df = sum(len(own) - 1 for own in deviations)
    squares = sum(float(own @ own) for own in deviations)
    return Spread(squares / df if df else 0.0, df)


def _by_model(sets: Sequence[Mapping[Run, np.ndarray]]) -> dict[str, np.ndarray]:
    """Of each model its scores by seed, (seeds,): the means over some test sets."""
    runs: dict[str, list[Run]] = {}
    for run in sets[0]:
        runs.setdefault(run[0], []).append(run)
    return {
        model: np.mean([[by_run[run].mean() for run in own] for by_run in sets], axis=0)
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


def crossed(difference: float, parts: Iterable[Spread]) -> Crossed:
    r"""The rule for scores y(seed, text): variances of texts and seeds add.

    .. math:: \mathrm{SE}^2 = \mathrm{SE}_{texts}^2 + s^2 \Bigl(\frac{1}{n_1} + \frac{1}{n_2}\Bigr)

    with the degrees of freedom of Satterthwaite (1946). What is random for each seed and text alone
    counts in both terms: that makes intervals wider, not narrower.

    Args:
        parts: The squared standard errors that add, each with its degrees of freedom: over the
            texts of each test set, of the mean over seeds; and over seeds, s^2 (1/n1 + 1/n2) of two
            models with so many, or s^2/n1 where the other is the base, or where s is that of
            differences by seed.
    """
    parts = [*parts]
    total = sum(part.variance for part in parts)
    spread = sum(part.variance**2 / part.df for part in parts if part.df)
    least = max(1, *(part.df for part in parts))
    return Crossed(difference, total**0.5, total**2 / spread if spread else float(least))


def _paired(by_run: Mapping[Run, np.ndarray], comparison: Comparison) -> np.ndarray:
    """The differences of two models by seed and text, (seeds, n)."""
    by_seed = {
        model: {seed: values for (name, seed), values in by_run.items() if name == model}
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
