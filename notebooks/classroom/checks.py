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

from codiemb_lib import fuse
from codiemb_lib.core import CodiembError, unknown
from codiemb_lib.data import Record
from codiemb_lib.train import cosine_by_layer, objectives

Judge = Callable[[Callable], str]  # "" where the answer is right
Case = Callable[[], tuple]  # makes the arguments anew, should an answer change them


class ExerciseError(CodiembError, ValueError):
    """There is no such exercise."""


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
        ExerciseError: No exercise has this name.
    """
    if exercise not in EXERCISES:
        raise ExerciseError(unknown("exercise", exercise, EXERCISES))
    wrong = EXERCISES[exercise](answer)
    return Verdict(exercise, not wrong, wrong or "right")


def _call(answer: Callable, *arguments: object) -> object:
    try:
        return answer(*arguments)
    except Exception as error:
        shown = ", ".join(f"{_show(argument)}" for argument in arguments)
        error.add_note(f"Your function was called with: {shown}")
        raise


def _compare(cases: Sequence[Case], truth: Callable, mistakes: Mapping[str, Callable]) -> Judge:
    """Judge by the library's `truth`, on all cases; `mistakes` are hints by what deserves them."""

    def judge(answer: Callable) -> str:
        for case in cases:
            found, expected = _call(answer, *case()), truth(*case())
            if found is None or found is ...:
                return "not written yet"
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
        found = torch.as_tensor(found, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):  # no numbers
        return False
    expected = torch.as_tensor(expected, dtype=torch.float64)
    same_shape = found.shape == expected.shape
    return same_shape and torch.allclose(found, expected, rtol=1e-4, atol=1e-6, equal_nan=True)


def _show(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_show(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Tensor):
        numbers = [round(x, 4) for x in value.detach().flatten().tolist()]
        if value.dim() == 0:
            return f"{numbers[0]}"
        shown = ", ".join(map(str, numbers[:4])) + (", ..." if len(numbers) > 4 else "")
        return f"shape {tuple(value.shape)} ({shown})"
    return f"{value!r:.80}"


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# 1 to 3: texts, vectors, records


def _cosine(queries: Tensor, passages: Tensor) -> Tensor:
    return F.normalize(queries, dim=1) @ F.normalize(passages, dim=1).T


def _mean_pool(states: Tensor, lengths: Tensor, prompts: Tensor) -> Tensor:
    texts = zip(states, lengths.tolist(), prompts.tolist(), strict=True)
    return torch.stack([state[start:end].mean(0) for state, end, start in texts])


def _judge_record(answer: Callable) -> str:
    for stars in (5.0, 0.0, 3.5):
        record = _call(answer, "a cat sleeps", "a dog sleeps", stars)
        if record is None or record is ...:
            return "not written yet"
        if not isinstance(record, Record):
            return f"expected a Record, found a {type(record).__name__}"
        if record.task != "sts":
            return "a rated pair is a record of the task 'sts'; 'ir' asks for relevant passages"
        if (record.query, record.positives) != ("a cat sleeps", ("a dog sleeps",)):
            return "the first text is the query, the second the only positive"
        if abs(record.score - stars / 5) > 1e-9:
            return f"{stars} of 5 stars: expected the score {stars / 5}, found {record.score}"
    return ""


# 4 and 5: retrieval


def _info_nce(queries: Tensor, positives: Tensor, temperature: float) -> Tensor:
    none = queries.new_empty(len(queries), 0, queries.shape[1])
    return objectives.multi_positive_info_nce(
        queries, positives[:, None], none, temperature=temperature
    )


def _cross_entropy(logits: Tensor, **options: str) -> Tensor:
    return F.cross_entropy(logits, torch.arange(len(logits)), **options)


def _several(queries: Tensor, positives: Tensor, temperature: float) -> Tensor:
    none = queries.new_empty(len(queries), 0, queries.shape[1])
    return objectives.multi_positive_info_nce(queries, positives, none, temperature=temperature)


def _rivals(queries: Tensor, positives: Tensor, temperature: float) -> Tensor:
    """All positives of a query in one row of logits."""
    B, P, _ = positives.shape
    logits = _cosine(queries, positives.flatten(0, 1)) / temperature  # (B, B * P)
    own = torch.arange(B * P).view(B, P)
    return torch.stack([F.cross_entropy(logits, own[:, p]) for p in range(P)]).mean()


# 6 and 7: similarity


def _spearman(first: Tensor, second: Tensor) -> float:
    return float(stats.spearmanr(first, second).statistic)


def _correlation(a: Tensor, b: Tensor) -> float:
    return float(stats.pearsonr(a, b).statistic)


def _judge_pearson(answer: Callable) -> str:
    similarities, scores = _random(6), _random(6, seed=1)
    judge = _compare(
        [lambda: (similarities, scores), lambda: (3 * similarities - 1, scores)],
        objectives.pearson_loss,
        {
            "this is the correlation; the loss is one minus it": lambda s, y: (
                1 - objectives.pearson_loss(s, y)
            ),
            "the correlation of vectors that are not centred is their cosine": lambda s, y: (
                1 - F.cosine_similarity(s, y, dim=0)
            ),
        },
    )
    if wrong := judge(answer):
        return wrong
    for name, s, y in (
        ("some differ", similarities.clone(), scores),
        ("all similarities are equal", torch.full((4,), 0.5).double(), torch.rand(4).double()),
        ("all similarities are 0.3, and their mean is rounded", torch.full((7,), 0.3), _random(7)),
        ("all scores are equal", torch.rand(4).double(), torch.ones(4).double()),
    ):
        y = y.to(s.dtype)
        loss = torch.as_tensor(_call(answer, s.requires_grad_(), y))
        if not torch.isfinite(loss):
            return f"where {name}, nothing can be learnt: expected 0, found {loss.item()}"
        if not loss.requires_grad:
            return f"where {name}, the loss is cut off from the similarities: `backward` would fail"
        (gradient,) = torch.autograd.grad(loss, s, allow_unused=True)
        if gradient is not None and not torch.isfinite(gradient).all():
            return (
                f"where {name}, the loss is finite but its gradient is not: torch.where does "
                "not help, for the branch that is thrown away is differentiated too"
            )
        if name != "some differ" and loss.abs() > 1e-6:
            return f"where {name}, nothing can be learnt: expected 0, found {loss.item():.3g}"
    return ""


# 8: sampling


def _judge_plan(answer: Callable) -> str:
    tasks = ["ir", "sts", "sts"] * 12
    sizes = {"ir": 3, "sts": 5}

    def plan(seed: int) -> list[list[int]]:
        return [[int(i) for i in step] for step in _call(answer, tasks, sizes, seed)]

    first = _call(answer, tasks, sizes, 0)
    if first is None or first is ...:
        return "not written yet"
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
    others = [plan(seed) for seed in range(1, 6)]
    if steps in others:
        return "another seed gave the same plan"
    batches = {frozenset(map(frozenset, steps)) for steps in (steps, *others)}
    if len(batches) == 1:
        return "every seed has the same batches: shuffle the records before you cut them"
    orders = [[tasks[step[0]] for step in plan] for plan in (steps, *others)]
    if all(len({*order[: found[order[0]]]}) == 1 for order in orders):
        return "one task comes first in all its steps: shuffle the steps of both together"
    if all(sorted(step) == step for step in steps):
        return "the records of a batch stand in their old order: shuffle before you cut batches"
    return ""


# 9 and 10: merging, conflict


def _merge(base: dict, checkpoints: list[dict], power: float) -> dict:
    return dict(fuse.merge(base, checkpoints, method="delta", power=power))


def _merge_with(weights: Callable) -> Callable:
    """A merge whose weights come from another rule."""

    def merge(base: dict, checkpoints: list[dict], power: float) -> dict:
        merged = {}
        for name, start in base.items():
            w = weights(name, base, checkpoints, power)
            deltas = torch.stack([c[name] - start for c in checkpoints])
            merged[name] = start + torch.tensordot(w, deltas, dims=1)
        return merged

    return merge


def _norms(models: list[dict], base: dict, names: Sequence[str]) -> Tensor:
    """The norm of each model's deltas over these tensors together."""
    return torch.stack(
        [torch.cat([(m[n] - base[n]).flatten() for n in names]).norm() for m in models]
    )


def _normalised(weights: Tensor) -> Tensor:
    return weights / weights.sum()


def _models() -> tuple[dict, list[dict]]:
    base = {name: _random(3, 2, seed=i) for i, name in enumerate(("w", "v"))}
    moves = [{"w": 0.1, "v": 2.0}, {"w": 1.0, "v": 0.3}]
    return base, [
        {name: t + move[name] * _random(3, 2, seed=10 + j) for name, t in base.items()}
        for j, move in enumerate(moves)
    ]


def _unmoved() -> tuple[dict, list[dict]]:
    base, checkpoints = _models()
    return base, [checkpoint | {"v": base["v"].clone()} for checkpoint in checkpoints]


def _two_losses() -> tuple[dict[str, Tensor], Tensor, Tensor]:
    layers = {f"layer.{i}.w": _random(4, 4, seed=i).requires_grad_() for i in range(2)}
    hidden = _random(5, 4, seed=7)
    for weight in layers.values():
        hidden = torch.tanh(hidden @ weight)
    return layers, hidden[:3].square().mean(), (hidden[2:] - 0.5).abs().mean()


def _gradients(layers: dict[str, Tensor], loss: Tensor) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss, [*layers.values()], retain_graph=True)
    return dict(zip(layers, found, strict=True))


def _conflict(layers: dict[str, Tensor], first: Tensor, second: Tensor) -> dict[str, float]:
    a, b = _gradients(layers, first), _gradients(layers, second)
    return {n: cosine_by_layer({n: a[n]}, {n: b[n]}).popitem()[1] for n in layers}


def _accumulated(layers: dict[str, Tensor], first: Tensor, second: Tensor) -> dict[str, float]:
    return _conflict(layers, first, first + second)


def _inner_products(layers: dict[str, Tensor], first: Tensor, second: Tensor) -> dict[str, float]:
    a, b = _gradients(layers, first), _gradients(layers, second)
    return {n: (a[n] * b[n]).sum().item() for n in layers}


EXERCISES: dict[str, Judge] = {
    "cosine": _compare(
        [lambda: (_random(2, 4), _random(3, 4, seed=1))],
        _cosine,
        {
            "inner products are cosines only of unit vectors: normalise both sides first": (
                lambda q, p: q @ p.T
            ),
            "the passages are not normalised": lambda q, p: F.normalize(q, dim=1) @ p.T,
            "queries go by rows, passages by columns: yours is the transpose": (
                lambda q, p: _cosine(p, q)
            ),
            "a vector is a row: normalise along dim=1": (
                lambda q, p: F.normalize(q, dim=0) @ F.normalize(p, dim=0).T
            ),
        },
    ),
    "mean_pool": _compare(
        [lambda: (_random(2, 5, 3), torch.tensor([5, 3]), torch.tensor([0, 1]))],
        _mean_pool,
        {
            "padding counts in your mean: tokens from `lengths` on belong to no text": (
                lambda s, lengths, prompts: s.mean(1)
            ),
            "the prompt's tokens count in your mean: the text starts at `prompts`": (
                lambda s, lengths, prompts: _mean_pool(s, lengths, torch.zeros_like(prompts))
            ),
            "the sums are right, the divisor is not: divide by the tokens that count": (
                lambda s, lengths, prompts: (
                    _mean_pool(s, lengths, prompts) * (lengths - prompts)[:, None] / s.shape[1]
                )
            ),
        },
    ),
    "to_record": _judge_record,
    "info_nce": _compare(
        [
            lambda: (_random(4, 3), _random(4, 3, seed=1), 0.1),
            lambda: (5 * _random(4, 3), _random(4, 3, seed=1), 0.5),
        ],
        _info_nce,
        {
            "the temperature divides the cosines, and yours multiplies": (
                lambda q, d, t: _cross_entropy(_cosine(q, d) * t)
            ),
            "the temperature is left out": lambda q, d, t: _cross_entropy(_cosine(q, d)),
            "logits are cosines over the temperature: the vectors must have length one": (
                lambda q, d, t: _cross_entropy(q @ d.T / t)
            ),
            "the mean over the queries, not the sum": (
                lambda q, d, t: _cross_entropy(_cosine(q, d) / t, reduction="sum")
            ),
            "the queries choose among the passages; yours are chosen by them": (
                lambda q, d, t: _cross_entropy(_cosine(d, q) / t)
            ),
        },
    ),
    "several_positives": _compare(
        [lambda: (_random(3, 4), _random(3, 2, 4, seed=1), 0.2)],
        _several,
        {
            "a query's other positive stands among its wrong answers: take one slot at a time": (
                _rivals
            ),
            "the mean over the slots, not the sum": lambda q, d, t: 2 * _several(q, d, t),
            "only the first positive of each query is used": (
                lambda q, d, t: _several(q, d[:, :1], t)
            ),
        },
    ),
    "spearman": _compare(
        [
            lambda: (_random(7), _random(7, seed=1)),
            lambda: (torch.tensor([0.1, 0.4, 0.2, 0.3]), torch.tensor([0.0, 1.0, 0.5, 1.0])),
        ],
        _spearman,
        {
            "this is Pearson's correlation of the values: take that of their ranks": _correlation,
            "argsort says which pair has which rank; its argsort again says the rank of each": (
                lambda a, b: _correlation(a.argsort().double(), b.argsort().double())
            ),
            "equal values must share the average of their ranks": (
                lambda a, b: _correlation(
                    a.argsort(stable=True).argsort().double(),
                    b.argsort(stable=True).argsort().double(),
                )
            ),
        },
    ),
    "pearson_loss": _judge_pearson,
    "single_task_plan": _judge_plan,
    "merge": _compare(
        [lambda: (*_models(), 1.0), lambda: (*_models(), 2.0), lambda: (*_unmoved(), 1.0)],
        _merge,
        {
            "these weights are equal: where does the power come in?": _merge_with(
                lambda name, base, models, p: torch.full((2,), 0.5, dtype=torch.float64)
            ),
            "these are weights of whole models: take the norm tensor by tensor": _merge_with(
                lambda name, base, models, p: _normalised(_norms(models, base, [*base]) ** p)
            ),
            "the weights do not sum to one": _merge_with(
                lambda name, base, models, p: _norms(models, base, [name]) ** p
            ),
            "the norm is that of the deviation from the base, not of the weights": _merge_with(
                lambda name, base, models, p: _normalised(
                    torch.stack([m[name].norm() for m in models]) ** p
                )
            ),
            "these are the merged deltas: add them to the base": (
                lambda base, models, p: {
                    n: merged - base[n] for n, merged in _merge(base, models, p).items()
                }
            ),
            "nobody moved this tensor, so the weights are 0 / 0: then take equal ones": _merge_with(
                lambda name, base, models, p: _normalised(_norms(models, base, [name]) ** p)
            ),
        },
    ),
    "conflict": _compare(
        [_two_losses],
        _conflict,
        {
            "the second gradient holds the first as well: `backward` adds to `.grad`": _accumulated,
            "these are inner products: divide by both lengths": _inner_products,
        },
    ),
}
