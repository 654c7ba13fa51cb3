"""The checks of the exercises: what a student may plausibly write, and what is said about it.

That right answers pass is tested where the solutions run.
"""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from classroom.checks import EXERCISES, check

from codiemb_lib.core import CodiembError
from codiemb_lib.data import Record


def unit(x):
    return F.normalize(x, dim=-1)


def own(logits, **options):
    return F.cross_entropy(logits, torch.arange(len(logits)), **options)


def rated(left, right, score):
    return Record("sts", left, (right,), positive_scores=(score,))


def pearson(a, b):
    return torch.corrcoef(torch.stack((a, b)).double())[0, 1]


def where_pearson(s, y):
    a, b = s - s.mean(), y - y.mean()
    correlation = a @ b / (a.norm() * b.norm())
    return torch.where(correlation.isnan(), 0.0 * s.sum(), 1 - correlation)


def unshuffled(tasks, sizes, seed):
    order = {t: [i for i, task in enumerate(tasks) if task == t] for t in sizes}
    return [
        own[k : k + sizes[t]]
        for t, own in order.items()
        for k in range(0, len(own) - sizes[t] + 1, sizes[t])
    ]


def shuffled(tasks, sizes, seed, *, mix=False, tail=False):
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(tasks), generator=generator).tolist()
    if mix:
        return [order[k : k + 4] for k in range(0, len(order), 4)]
    steps = []
    for t, size in sizes.items():
        members = [i for i in order if tasks[i] == t]
        last = len(members) if tail else len(members) - size + 1
        steps += [members[k : k + size] for k in range(0, last, size)]
    return steps


def steps_shuffled(tasks, sizes, seed):
    order = torch.randperm(8, generator=torch.Generator().manual_seed(seed))
    return [unshuffled(tasks, sizes, seed)[i] for i in order]


def merge_by(rule, *, add=True, norm=lambda deltas, checkpoints: deltas.flatten(1).norm(dim=1)):
    """A merge whose weights are a function of the powers of norms (J,)."""

    def merge(base, checkpoints, power):
        out = {}
        for name, start in base.items():
            deltas = torch.stack([c[name] - start for c in checkpoints])
            w = rule(norm(deltas, [(c[name], c, base) for c in checkpoints]) ** power)
            out[name] = start * add + torch.tensordot(w, deltas, dims=1)
        return out

    return merge


def shares(x):
    return x / x.sum()


def of_weights(_, checkpoints):
    return torch.stack([weight.norm() for weight, *_ in checkpoints])


def of_models(_, checkpoints):
    whole = [torch.cat([(c[k] - base[k]).flatten() for k in base]) for _, c, base in checkpoints]
    return torch.stack(whole).norm(dim=1)


def accumulating(layers, first, second):
    found = []
    for loss in (first, second):
        loss.backward(retain_graph=True)
        found.append({n: w.grad.flatten().clone() for n, w in layers.items()})
    return {n: F.cosine_similarity(found[0][n], found[1][n], dim=0).item() for n in layers}


def inner_products(layers, first, second):
    grad = lambda x, w: torch.autograd.grad(x, w, retain_graph=True)[0]  # noqa: E731
    return {n: (grad(first, w) * grad(second, w)).sum().item() for n, w in layers.items()}


WRONG = {
    "cosine": {
        "unit vectors": lambda q, p: q @ p.T,
        "passages are not normalised": lambda q, p: unit(q) @ p.T,
        "transpose": lambda q, p: unit(p) @ unit(q).T,
        "a vector is a row": lambda q, p: F.normalize(q, dim=0) @ F.normalize(p, dim=0).T,
        r"expected shape \(2, 3\).*found shape \(2, 2\)": lambda q, p: unit(q) @ unit(p[:2]).T,
        "found 'text'": lambda q, p: "text",
    },
    "mean_pool": {
        "padding counts": lambda s, lengths, prompts: s.mean(1),
        "prompt counts": lambda s, lengths, prompts: torch.stack(
            [x[:n].mean(0) for x, n in zip(s, lengths, strict=True)]
        ),
        "divisor": lambda s, lengths, prompts: torch.stack(
            [x[p:n].sum(0) / len(x) for x, n, p in zip(s, lengths, prompts, strict=True)]
        ),
    },
    "to_record": {
        "expected a Record, found a tuple": lambda a, b, stars: (a, b, stars),
        "task 'sts'": lambda a, b, stars: Record("ir", a, (b,)),
        "first text is the query": lambda a, b, stars: rated(b, a, stars / 5),
        "3.5 of 5 stars: expected the score 0.7": lambda a, b, stars: rated(a, b, round(stars / 5)),
    },
    "info_nce": {
        "yours multiplies": lambda q, d, t: own(unit(q) @ unit(d).T * t),
        "left out": lambda q, d, t: own(unit(q) @ unit(d).T),
        "of length one": lambda q, d, t: own(q @ d.T / t),
        "not the sum": lambda q, d, t: own(unit(q) @ unit(d).T / t, reduction="sum"),
        "chosen by passages": lambda q, d, t: own(unit(d) @ unit(q).T / t),
    },
    "several_positives": {
        "one slot at a time": lambda q, d, t: own(
            (unit(q) @ unit(d.flatten(0, 1)).T / t).repeat_interleave(2, dim=0)
        ),
        "not the sum": lambda q, d, t: sum(own(unit(q) @ unit(d[:, p]).T / t) for p in range(2)),
        "only the first positive": lambda q, d, t: own(unit(q) @ unit(d[:, 0]).T / t),
    },
    "spearman": {
        "Pearson's correlation": pearson,
        "its argsort again": lambda a, b: pearson(a.argsort(), b.argsort()),
        "share the average": lambda a, b: pearson(
            a.argsort().argsort(), b.argsort(stable=True).argsort()
        ),
    },
    "pearson_loss": {
        "one minus this": pearson,
        "not centred": lambda s, y: 1 - F.cosine_similarity(s, y, dim=0),
        "are equal, nothing can be learnt: expected 0, found nan": lambda s, y: 1 - pearson(s, y),
        "gradient is not": where_pearson,
        "some differ, the loss is cut off": lambda s, y: 1 - pearson(s, y).item(),
        "are equal, the loss is cut off": lambda s, y: (
            1 - pearson(s, y) if s.std() and y.std() else 0
        ),
        "mean is rounded, nothing can be learnt": lambda s, y: (
            1 - pearson(s, y) if s.std() and y.std() else s.sum() * 0
        ),
    },
    "single_task_plan": {
        "mixes ir and sts": lambda *task: shuffled(*task, mix=True),
        "has 4 records": lambda *task: shuffled(*task, tail=True),
        "comes twice": lambda *task: [*map(torch.tensor, 2 * unshuffled(*task))],
        "every full batch once": lambda *task: unshuffled(*task)[1:],
        "another seed gave the same": unshuffled,
        "shuffle the records before you cut": steps_shuffled,
        "one task comes first": shuffled,
        "same seed gave two plans": lambda tasks, sizes, seed: shuffled(
            tasks, sizes, int(torch.randint(10**9, ()))
        ),
    },
    "merge": {
        "where does the power come in": merge_by(lambda w: shares(torch.ones_like(w))),
        "do not sum to one": merge_by(lambda w: w),
        "not of the weights": merge_by(shares, norm=of_weights),
        "add them to the base": merge_by(shares, add=False),
        "then take equal ones": merge_by(shares),
        "tensor by tensor": merge_by(shares, norm=of_models),
    },
    "conflict": {
        "holds the first as well": accumulating,
        "divide by both lengths": inner_products,
    },
}


@pytest.mark.parametrize(
    ("exercise", "hint"), [(name, hint) for name, answers in WRONG.items() for hint in answers]
)
def test_a_wrong_answer_is_told_what_is_wrong(exercise, hint):
    verdict = check(exercise, WRONG[exercise][hint])
    assert not verdict.passed
    assert re.search(hint, verdict.message), verdict
    assert repr(verdict).startswith(f"✗ {exercise}: ")


def test_a_score_may_differ_by_rounding():
    assert check("to_record", lambda a, b, stars: rated(a, b, stars * 0.2)).passed


def test_there_are_ten_exercises_and_one_that_is_not_written_is_no_error():
    assert {*WRONG} == {*EXERCISES}
    assert len(EXERCISES) == 10
    for exercise in EXERCISES:
        assert check(exercise, lambda *_: None).message == "not written yet"
        assert check(exercise, lambda *_: ...).message == "not written yet"


def test_an_error_in_the_answer_goes_through_and_says_on_what_it_was_called():
    with pytest.raises(ZeroDivisionError) as caught:
        check("info_nce", lambda q, d, t: 1 / 0)
    [note] = caught.value.__notes__
    assert note.startswith("Your function was called with: shape (4, 3)")


def test_an_unknown_exercise_is_named_with_the_nearest():
    with pytest.raises(CodiembError, match="mean 'cosine'"):
        check("cosin", unit)
