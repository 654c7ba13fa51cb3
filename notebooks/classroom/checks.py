"""Checks of notebook 10: each says whether an answer is right, and if not, what is wrong with it.

A judge calls the answer on a few inputs and compares what comes back with the library's. Usual
mistakes are written down as functions too: an answer that agrees with one of them gets its hint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

from codiemb_lib.core import CodiembError, unknown
from codiemb_lib.data import Record
from codiemb_lib.fuse import delta_guided_weights
from codiemb_lib.train import cosine_by_layer, objectives

Judge = Callable[[Callable], str]  # "" where the answer is right
Case = Callable[[], tuple]  # makes the arguments anew, should an answer change them
EXERCISES: dict[str, Judge] = {}


class _NotWrittenError(Exception):
    """An answer gave nothing, or the dots that stood in its place."""


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, in a line that a notebook shows."""

    exercise: str
    passed: bool
    message: str

    def __repr__(self) -> str:
        return f"{'✓' if self.passed else '✗'} {self.exercise}: {self.message}"


def check(exercise: str, answer: Callable) -> Verdict:
    """Judge the function that answers an exercise.

    An error inside the answer goes through, with a note that says on what it was called.

    Raises:
        CodiembError: No exercise has this name.
    """
    if exercise not in EXERCISES:
        raise CodiembError(unknown("exercise", exercise, EXERCISES))
    try:
        wrong = EXERCISES[exercise](answer)
    except _NotWrittenError:
        wrong = "not written yet"
    return Verdict(exercise, not wrong, wrong or "right")


def _call(answer: Callable, *arguments: object) -> object:
    try:
        found = answer(*arguments)
    except Exception as error:
        error.add_note(f"Your function was called with: {', '.join(map(_show, arguments))}")
        raise
    if found is None or found is ...:
        raise _NotWrittenError
    return found


def _compare(cases: Sequence[Case], truth: Callable, mistakes: Mapping[str, Callable]) -> Judge:
    """Judge by the library's `truth`, on all cases; `mistakes` are hints by what deserves them."""

    def judge(answer: Callable) -> str:
        for case in cases:
            found, expected = _call(answer, *case()), truth(*case())
            if _alike(found, expected):
                continue
            for hint, mistake in mistakes.items():
                if _alike(found, mistake(*case())):
                    return hint
            return f"expected {_show(expected)}, found {_show(found)}"
        return ""

    return judge


def _alike(found: object, expected: object) -> bool:
    if isinstance(expected, Mapping):
        return (
            isinstance(found, Mapping)
            and found.keys() == expected.keys()
            and all(_alike(found[key], expected[key]) for key in expected)
        )
    try:
        found, expected = (torch.as_tensor(x, dtype=torch.float64) for x in (found, expected))
    except (TypeError, ValueError, RuntimeError):  # no numbers
        return False
    same_shape = found.shape == expected.shape
    return same_shape and torch.allclose(found, expected, rtol=1e-4, atol=1e-6, equal_nan=True)


def _show(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_show(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Tensor):
        numbers = ", ".join(f"{x:.4g}" for x in value.detach().flatten()[:4].tolist())
        dots = ", ..." * (value.numel() > 4)
        return f"shape {tuple(value.shape)} ({numbers}{dots})" if value.dim() else numbers
    return f"{value!r:.80}"


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# 1 to 3: vectors, texts, records


def _cosine(queries: Tensor, passages: Tensor) -> Tensor:
    return F.normalize(queries, dim=1) @ F.normalize(passages, dim=1).T


EXERCISES["cosine"] = _compare(
    [lambda: (_random(2, 4), _random(3, 4, seed=1))],
    _cosine,
    {
        "cosines are of unit vectors: normalise both sides first": lambda q, p: q @ p.T,
        "the passages are not normalised": lambda q, p: F.normalize(q, dim=1) @ p.T,
        "queries go by rows: yours is the transpose": lambda q, p: _cosine(p, q),
        "a vector is a row: normalise along dim=1": lambda q, p: (
            F.normalize(q, dim=0) @ F.normalize(p, dim=0).T
        ),
    },
)


def _mean_pool(states: Tensor, lengths: Tensor, prompts: Tensor) -> Tensor:
    texts = zip(states, lengths.tolist(), prompts.tolist(), strict=True)
    return torch.stack([state[start:end].mean(0) for state, end, start in texts])


EXERCISES["mean_pool"] = _compare(
    [lambda: (_random(2, 5, 3), torch.tensor([5, 3]), torch.tensor([0, 1]))],
    _mean_pool,
    {
        "padding counts: tokens from `lengths` on belong to no text": lambda s, n, p: s.mean(1),
        "the prompt counts: the text starts at `prompts`": lambda s, n, p: _mean_pool(s, n, 0 * p),
        "the sums are right, the divisor is not: divide by the tokens that count": (
            lambda s, n, p: _mean_pool(s, n, p) * (n - p)[:, None] / s.shape[1]
        ),
    },
)


def _judge_record(answer: Callable) -> str:
    for stars in (5.0, 0.0, 3.5):
        record = _call(answer, "a cat sleeps", "a dog sleeps", stars)
        if not isinstance(record, Record):
            return f"expected a Record, found a {type(record).__name__}"
        if record.task != "sts":
            return "a rated pair is a record of the task 'sts'; 'ir' asks for relevant passages"
        if (record.query, record.positives) != ("a cat sleeps", ("a dog sleeps",)):
            return "the first text is the query, the second the only positive"
        if abs(record.score - stars / 5) > 1e-9:
            return f"{stars} of 5 stars: expected the score {stars / 5}, found {record.score}"
    return ""


EXERCISES["to_record"] = _judge_record


# 4 and 5: retrieval


def _several(queries: Tensor, positives: Tensor, temperature: float) -> Tensor:
    none = queries.new_empty(len(queries), 0, queries.shape[1])
    return objectives.multi_positive_info_nce(queries, positives, none, temperature=temperature)


def _own(logits: Tensor) -> Tensor:
    """The loss of queries that want the passage of their own number."""
    return F.cross_entropy(logits, torch.arange(len(logits)))


EXERCISES["info_nce"] = _compare(
    [
        lambda: (_random(4, 3), _random(4, 3, seed=1), 0.1),
        lambda: (5 * _random(4, 3), _random(4, 3, seed=1), 0.5),
    ],
    lambda q, d, t: _several(q, d[:, None], t),
    {
        "yours multiplies by the temperature: divide": lambda q, d, t: _own(_cosine(q, d) * t),
        "the temperature is left out": lambda q, d, t: _own(_cosine(q, d)),
        "cosines are of vectors of length one": lambda q, d, t: _own(q @ d.T / t),
        "the mean over queries, not the sum": lambda q, d, t: 4 * _own(_cosine(q, d) / t),
        "the queries choose; yours are chosen by passages": lambda q, d, t: _own(_cosine(d, q) / t),
    },
)


def _rivals(queries: Tensor, positives: Tensor, temperature: float) -> Tensor:
    """All positives of a query in one row of logits."""
    B, P, _ = positives.shape
    logits = _cosine(queries, positives.flatten(0, 1)) / temperature  # (B, B * P)
    own = torch.arange(B * P).view(B, P)
    return torch.stack([F.cross_entropy(logits, own[:, p]) for p in range(P)]).mean()


EXERCISES["several_positives"] = _compare(
    [lambda: (_random(3, 4), _random(3, 2, 4, seed=1), 0.2)],
    _several,
    {
        "a query's other positive is a wrong answer in yours: take one slot at a time": _rivals,
        "the mean over the slots, not the sum": lambda q, d, t: 2 * _several(q, d, t),
        "only the first positive of each query is used": lambda q, d, t: _several(q, d[:, :1], t),
    },
)


# 6 and 7: similarity


def _correlation(a: Tensor, b: Tensor) -> float:
    return float(stats.pearsonr(a, b).statistic)


EXERCISES["spearman"] = _compare(
    [
        lambda: (_random(7), _random(7, seed=1)),
        lambda: (torch.tensor([0.1, 0.4, 0.2, 0.3]), torch.tensor([0.0, 1.0, 0.5, 1.0])),
    ],
    lambda a, b: float(stats.spearmanr(a, b).statistic),
    {
        "this is Pearson's correlation of the values: take that of their ranks": _correlation,
        "argsort says which pair has which rank; its argsort again says the rank of each": (
            lambda a, b: _correlation(a.argsort(), b.argsort())
        ),
        "equal values must share the average of their ranks": lambda a, b: _correlation(
            *(x.argsort(stable=True).argsort() for x in (a, b))
        ),
    },
)

_pearson_of_values = _compare(
    [lambda: (_random(6), _random(6, seed=1)), lambda: (3 * _random(6) - 1, _random(6, seed=1))],
    objectives.pearson_loss,
    {
        "the loss is one minus this correlation": lambda s, y: 1 - objectives.pearson_loss(s, y),
        "not centred, this is a cosine": lambda s, y: 1 - F.cosine_similarity(s, y, dim=0),
    },
)


def _judge_pearson(answer: Callable) -> str:
    if wrong := _pearson_of_values(answer):
        return wrong
    for name, s, y in (
        ("some differ", _random(6), _random(6, seed=1)),
        ("all similarities are equal", torch.full((4,), 0.5).double(), _random(4)),
        ("all similarities are 0.3, and their mean is rounded", torch.full((7,), 0.3), _random(7)),
        ("all scores are equal", _random(4), torch.ones(4)),
    ):
        loss = torch.as_tensor(_call(answer, s.requires_grad_(), y.to(s.dtype)))
        if not torch.isfinite(loss) or (name != "some differ" and loss.abs() > 1e-6):
            return f"where {name}, nothing can be learnt: expected 0, found {loss.item():.3g}"
        if not loss.requires_grad:
            return f"where {name}, the loss is cut off from the similarities: `backward` would fail"
        (gradient,) = torch.autograd.grad(loss, s, allow_unused=True)
        if gradient is not None and not torch.isfinite(gradient).all():
            return (
                f"where {name}, the loss is finite but its gradient is not: torch.where does "
                "not help, for the branch that is thrown away is differentiated too"
            )
    return ""


EXERCISES["pearson_loss"] = _judge_pearson


# 8: sampling


def _judge_plan(answer: Callable) -> str:
    tasks = ["ir", "sts", "sts"] * 12
    sizes = {"ir": 3, "sts": 5}

    def plan(seed: int) -> list[list[int]]:
        return [[int(i) for i in step] for step in _call(answer, tasks, sizes, seed)]

    steps = plan(0)
    for step in steps:
        found = {tasks[i] for i in step}
        if len(found) != 1:
            return f"a step mixes {' and '.join(sorted(found))}: its loss would see both tasks"
        if len(step) != sizes[tasks[step[0]]]:
            return f"a step of {found.pop()} has {len(step)} records, expected batches of {sizes}"
    dealt = [i for step in steps for i in step]
    if len({*dealt}) < len(dealt):
        return "a record comes twice in the epoch"
    expected = {"ir": 12 // 3, "sts": 24 // 5}
    found = {task: sum(tasks[step[0]] == task for step in steps) for task in sizes}
    if found != expected:
        return f"expected every full batch once, {expected}, found {found} steps"
    if steps != plan(0):
        return "the same seed gave two plans: draw from a generator that is made of the seed"
    plans = [steps, *map(plan, range(1, 6))]
    if steps in plans[1:]:
        return "another seed gave the same plan"
    if len({frozenset(map(frozenset, steps)) for steps in plans}) == 1:
        return "every seed has the same batches: shuffle the records before you cut them"
    orders = [[tasks[step[0]] for step in steps] for steps in plans]
    if all(len({*order[: found[order[0]]]}) == 1 for order in orders):
        return "one task comes first in all its steps: shuffle the steps of both together"
    if all(sorted(step) == step for step in steps):
        return "the records of a batch stand in their old order: shuffle before you cut batches"
    return ""


EXERCISES["single_task_plan"] = _judge_plan


# 9: merging


def _merge(weights: Callable) -> Callable:
    """A merge whose weights, of a tensor of the base, come from a rule."""

    def merge(base: dict, checkpoints: list[dict], power: float) -> dict:
        merged = {}
        for name, start in base.items():
            deltas = torch.stack([c[name] - start for c in checkpoints])
            w = weights(name, base, checkpoints, power).to(deltas)
            merged[name] = start + torch.tensordot(w, deltas, dims=1)
        return merged

    return merge


_delta_guided = _merge(lambda n, b, m, p: delta_guided_weights(b, m, power=p)[n])


def _norms(models: list[dict], base: dict, *names: str) -> Tensor:
    """The norm of each model's deltas over these tensors together."""
    deltas = [torch.cat([(m[n] - base[n]).flatten() for n in names]) for m in models]
    return torch.stack(deltas).norm(dim=1)


def _shares(norms: Tensor, power: float) -> Tensor:
    return norms**power / (norms**power).sum()


def _models(unmoved: str = "") -> tuple[dict, list[dict]]:
    base = {name: _random(3, 2, seed=i) for i, name in enumerate(("w", "v"))}
    moves = [{"w": 0.1, "v": 2.0}, {"w": 1.0, "v": 0.3}]
    return base, [
        {n: t + (n != unmoved) * move[n] * _random(3, 2, seed=10 + j) for n, t in base.items()}
        for j, move in enumerate(moves)
    ]


EXERCISES["merge"] = _compare(
    [lambda: (*_models(), 1.0), lambda: (*_models(), 2.0), lambda: (*_models("v"), 1.0)],
    _delta_guided,
    {
        "equal weights: where does the power come in?": _merge(lambda *_: torch.full((2,), 0.5)),
        "take the norm tensor by tensor": _merge(lambda n, b, m, p: _shares(_norms(m, b, *b), p)),
        "the weights do not sum to one": _merge(lambda n, b, m, p: _norms(m, b, n) ** p),
        "the norm is that of the deviation from the base, not of the weights": _merge(
            lambda n, b, m, p: _shares(torch.stack([model[n].norm() for model in m]), p)
        ),
        "these are the merged deltas: add them to the base": lambda base, models, p: {
            name: merged - base[name] for name, merged in _delta_guided(base, models, p).items()
        },
        "nobody moved this tensor, so the weights are 0 / 0: then take equal ones": _merge(
            lambda n, b, m, p: _shares(_norms(m, b, n), p)
        ),
    },
)


# 10: conflict


def _two_losses() -> tuple[dict[str, Tensor], Tensor, Tensor]:
    layers = {f"layer.{i}.w": _random(4, 4, seed=i).requires_grad_() for i in range(2)}
    hidden = _random(5, 4, seed=7)
    for weight in layers.values():
        hidden = torch.tanh(hidden @ weight)
    return layers, hidden[:3].square().mean(), (hidden[2:] - 0.5).abs().mean()


def _of_gradients(compare: Callable[[Tensor, Tensor], float]) -> Callable:
    """By layer, what a function says of the gradients of two losses."""

    def by_layer(layers: dict[str, Tensor], first: Tensor, second: Tensor) -> dict[str, float]:
        weights = [*layers.values()]
        a, b = (torch.autograd.grad(x, weights, retain_graph=True) for x in (first, second))
        return {name: float(compare(*pair)) for name, *pair in zip(layers, a, b, strict=True)}

    return by_layer


_conflict = _of_gradients(
    lambda a, b: cosine_by_layer({"layer.0.w": a}, {"layer.0.w": b}).popitem()[1]
)

EXERCISES["conflict"] = _compare(
    [_two_losses],
    _conflict,
    {
        "the second gradient holds the first as well: `backward` adds to `.grad`": (
            lambda layers, first, second: _conflict(layers, first, first + second)
        ),
        "these are inner products: divide by both lengths": _of_gradients(
            lambda a, b: (a * b).sum()
        ),
    },
)
