"""Objectives against slow, obvious references, and on the input that breaks naive versions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, rankdata
from torch.nn.functional import cosine_similarity

from codiemb_lib.train import objectives
from codiemb_lib.train.objectives import (
    anchored_info_nce,
    angle_loss,
    cosent_loss,
    multi_positive_info_nce,
    pearson_loss,
    pro_loss,
    rank_kl_loss,
)
from tests.memory import growth

PAIR_LOSSES = [pearson_loss, rank_kl_loss, pro_loss, cosent_loss]
SIDE_LOSSES = [angle_loss, anchored_info_nce]


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def cosine(x, y):
    return float(cosine_similarity(x, y, dim=0))


def log_sum_exp(values):
    return math.log(sum(math.exp(value) for value in values))


# Slow references: Python floats and loops, written from the formulas


def slow_info_nce(queries, positives, negatives, temperature, same=()):
    B, P = positives.shape[:2]
    pool = [row for rows in negatives for row in rows]
    losses = []
    for slot in range(P):
        for i in range(B):
            candidates = [positives[j, slot] for j in range(B)] + pool
            logits = [cosine(queries[i], c) / temperature for c in candidates]
            counted = [x for j, x in enumerate(logits) if (i, j) not in same]
            losses.append(log_sum_exp(counted) - logits[i])
    return sum(losses) / len(losses)


def slow_pearson(s, y):
    return 1 - pearsonr(s, y).statistic


def slow_rank_kl(s, y, temperature=0.05):
    n = len(s)
    ranks = [rank - 1 for rank in rankdata([-v for v in y], method="average")]
    heights = [(n - 1 - r) / (n - 1) / temperature for r in ranks]
    logits = [v / temperature for v in s]
    loss = 0.0
    for height, logit in zip(heights, logits, strict=True):
        log_target = height - log_sum_exp(heights)
        loss += math.exp(log_target) * (log_target - (logit - log_sum_exp(logits)))
    return loss / n


def slow_pro(s, y, temperature=0.05):
    losses = []
    for k in range(len(s)):
        lower = [j for j in range(len(s)) if y[j] < y[k]]
        if lower:
            own = s[k] * max(y[k] - y[j] for j in lower) / temperature
            others = [s[j] * (y[k] - y[j]) / temperature for j in lower]
            losses.append(log_sum_exp([own, *others]) - own)
    return sum(losses) / len(losses) if losses else 0.0


def slow_cosent(s, y, temperature=0.05):
    terms = [
        math.exp((s[j] - s[i]) / temperature)
        for i in range(len(s))
        for j in range(len(s))
        if y[i] > y[j]
    ]
    return math.log(1 + sum(terms))


def slow_angle_similarity(left, right):
    half = len(left) // 2
    z = [complex(left[i], left[half + i]) for i in range(half)]
    w = [complex(right[i], right[half + i]) for i in range(half)]
    length_z = math.sqrt(sum(abs(v) ** 2 for v in z))
    length_w = math.sqrt(sum(abs(v) ** 2 for v in w))
    quotient = sum(a * b.conjugate() for a, b in zip(z, w, strict=True)) / (length_z * length_w)
    return abs(quotient.real + quotient.imag)


REFERENCES = [
    (pearson_loss, slow_pearson),
    (rank_kl_loss, slow_rank_kl),
    (pro_loss, slow_pro),
    (cosent_loss, slow_cosent),
]
SCORES = {
    "distinct": torch.linspace(0, 1, 23, dtype=torch.float64)[normal(23).argsort()],
    "tied": torch.tensor([0, 0.2, 0.2, 1, 0.6, 1, 0, 0.2, 0.4, 0.6, 0.2], dtype=torch.float64),
}


# Values and gradients


@pytest.mark.parametrize(("B", "P", "M", "N"), [(5, 2, 5, 3), (4, 1, 4, 0), (1, 3, 7, 2)])
def test_info_nce_equals_its_loop(B, P, M, N):
    tensors = normal(B, 8), normal(B, P, 8, seed=1), normal(M, N, 8, seed=2)
    expected = slow_info_nce(*tensors, temperature=0.1)
    assert multi_positive_info_nce(*tensors, temperature=0.1).item() == pytest.approx(expected)


def test_info_nce_over_several_records_of_one_query_equals_its_loop():
    tensors = normal(4, 8), normal(4, 2, 8, seed=1), normal(4, 1, 8, seed=2)
    rows = torch.tensor([0, 1, 0, 2])
    expected = slow_info_nce(*tensors, temperature=0.1, same={(0, 2), (2, 0)})
    found = multi_positive_info_nce(
        *tensors, temperature=0.1, same=(rows[:, None] == rows)[:, :, None]
    )
    assert found.item() == pytest.approx(expected)


@pytest.mark.parametrize("scores", SCORES.values(), ids=SCORES.keys())
@pytest.mark.parametrize(("loss", "reference"), REFERENCES)
def test_pair_losses_equal_their_loops(loss, reference, scores):
    similarities = normal(len(scores)).tanh()
    expected = reference(similarities.tolist(), scores.tolist())
    assert loss(similarities, scores).item() == pytest.approx(expected, rel=1e-9)


def looped_pro(similarities, scores, temperature=0.05):
    """slow_pro in differentiable form, for gradients and for logits beyond math.exp."""
    losses = []
    for s, y in zip(similarities, scores, strict=True):
        lower = scores < y
        if lower.any():
            own = s * (y - scores).max() / temperature
            others = (similarities * (y - scores))[lower] / temperature
            losses.append(torch.cat((own[None], others)).logsumexp(0) - own)
    return torch.stack(losses).mean()


@pytest.mark.parametrize("block", [1, 40, 1 << 17])
@pytest.mark.parametrize("temperature", [0.05, 1e-4])  # at the lower, own weights underflow
@pytest.mark.parametrize("scores", SCORES.values(), ids=SCORES.keys())
def test_pro_and_its_gradient_equal_the_loop_whatever_the_block(
    monkeypatch, scores, temperature, block
):
    monkeypatch.setattr(objectives, "_PRO_BLOCK", block)
    leaf = normal(len(scores)).tanh().requires_grad_()
    values = [loss(leaf, scores, temperature=temperature) for loss in (pro_loss, looped_pro)]
    torch.testing.assert_close(*values)
    gradients = [torch.autograd.grad(3 * value, leaf)[0] for value in values]
    torch.testing.assert_close(*gradients)


def test_pro_in_float32_is_close_to_float64_on_a_large_batch():
    similarities, scores = normal(1024).tanh(), (5 * normal(1024, seed=1).sigmoid()).round() / 5
    results = []
    for dtype in (torch.float64, torch.float32):
        leaf = similarities.detach().to(dtype).requires_grad_()
        value = pro_loss(leaf, scores.to(dtype))
        value.backward()
        results.append((value.double(), leaf.grad.double()))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-6)


def looped_cosent(similarities, scores, temperature=0.05):
    """All pairs at once, in differentiable form."""
    differences = (similarities - similarities[:, None])[scores[:, None] > scores]
    return torch.cat((differences.new_zeros(1), differences / temperature)).logsumexp(0)


@pytest.mark.parametrize("temperature", [0.05, 1e-4])
@pytest.mark.parametrize("scores", [*SCORES.values(), SCORES["tied"][:1], SCORES["tied"][1:3]])
def test_cosent_and_its_gradient_equal_all_pairs(scores, temperature):
    leaf = normal(len(scores)).tanh().requires_grad_()
    values = [loss(leaf, scores, temperature=temperature) for loss in (cosent_loss, looped_cosent)]
    torch.testing.assert_close(*values, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(value, leaf)[0] for value in values]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


def test_losses_of_pairs_hold_no_pair_of_pairs():
    """4,096 pairs squared would be 67 MB and more; pro_loss has one block of fixed size."""
    before = """
import torch
from codiemb_lib.train.objectives import angle_loss, cosent_loss
def step(n):
    left, right, scores = torch.rand(n, 2, requires_grad=True), torch.rand(n, 2), torch.rand(n)
    (cosent_loss(left[:, 0], scores) + angle_loss(left, right, scores)).backward()
step(8)
"""
    assert growth(before, "step(4096)") < 20_000


def test_angle_is_cosent_on_the_complex_quotient():
    left, right = normal(7, 6), normal(7, 6, seed=1)
    scores = SCORES["tied"][:7]
    similarities = [
        slow_angle_similarity(a.tolist(), b.tolist()) for a, b in zip(left, right, strict=True)
    ]
    expected = slow_cosent(similarities, scores.tolist())
    assert angle_loss(left, right, scores).item() == pytest.approx(expected)


def test_cosent_and_angle_equal_sentence_transformers():
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    left, right = normal(11, 6, dtype=torch.float32), normal(11, 6, seed=1, dtype=torch.float32)
    scores = SCORES["tied"].float()
    cosines = cosine_similarity(left, right)
    for theirs, ours in [
        (losses.CoSENTLoss, cosent_loss(cosines, scores)),
        (losses.AnglELoss, angle_loss(left, right, scores)),
    ]:
        expected = theirs(torch.nn.Identity()).compute_loss_from_embeddings([left, right], scores)
        torch.testing.assert_close(ours, expected)


def test_middle_layer_has_anchors_at_or_above_the_score_alone():
    queries, passages = normal(5, 8), normal(5, 8, seed=1)
    scores = torch.tensor([0.2, 1.0, 0.99, 1.0, 0.0])
    losses = []
    for i in (1, 3):
        logits = [cosine(queries[i], passage) / 0.1 for passage in passages]
        losses.append(log_sum_exp(logits) - logits[i])
    actual = anchored_info_nce(queries, passages, scores, temperature=0.1)
    assert actual.item() == pytest.approx(sum(losses) / 2)
    assert anchored_info_nce(queries, passages, scores, anchor_score=1.1) == 0


def test_gradients_equal_finite_differences():
    def leaf(*shape, seed):
        return normal(*shape, seed=seed).requires_grad_()

    embeddings = leaf(3, 4, seed=0), leaf(3, 2, 4, seed=1), leaf(3, 2, 4, seed=2)
    scores = torch.tensor([0.5, 0.0, 1.0, 0.5, 1.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda *x: multi_positive_info_nce(*x, temperature=0.5), embeddings
    )
    for loss in PAIR_LOSSES:
        assert torch.autograd.gradcheck(lambda s, loss=loss: loss(s, scores), leaf(5, seed=3))
    for loss in SIDE_LOSSES:
        assert torch.autograd.gradcheck(
            lambda x, y, loss=loss: loss(x, y, scores, temperature=0.5),
            (leaf(5, 4, seed=4), leaf(5, 4, seed=5)),
        )


# Degenerate input


def degenerate(n):
    """Similarities and gold scores that leave little or nothing to learn."""
    varied = torch.linspace(-1, 1, n)
    constant = torch.full((n,), 0.7)
    return [
        (varied, constant),
        (constant, varied),
        (constant, constant),
        (torch.zeros(n), torch.zeros(n)),
        (varied, (varied > 0).float()),
        ((varied > 0).float(), varied),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", PAIR_LOSSES)
@pytest.mark.parametrize("n", [1, 2, 64])
def test_pair_losses_are_finite_on_degenerate_input(loss, n, dtype):
    for similarities, scores in degenerate(n):
        leaf = similarities.to(dtype).requires_grad_()
        value = loss(leaf, scores.to(dtype))
        value.backward()
        assert value.shape == ()
        assert value.isfinite()
        assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("loss", [pearson_loss, pro_loss, cosent_loss])
def test_nothing_to_learn_is_a_connected_zero(loss):
    for n in (1, 33):
        leaf = torch.full((n,), 0.3).requires_grad_()
        value = loss(leaf, torch.full((n,), 0.7))
        value.backward()
        assert value == 0
        assert (leaf.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vector", [torch.zeros(8), torch.ones(8)], ids=["zero", "equal"])
@pytest.mark.parametrize("n", [1, 3])
def test_embedding_losses_are_finite_on_degenerate_input(n, vector, dtype):
    for scores in (torch.zeros(n), torch.ones(n)):
        for loss in SIDE_LOSSES:
            left = vector.repeat(n, 1).to(dtype).requires_grad_()
            value = loss(left, vector.repeat(n, 1).to(dtype), scores)
            value.backward()
            assert value.isfinite()
            assert left.grad.isfinite().all()
    for negatives in (0, 2):
        leaf = vector.repeat(n, 1).to(dtype).requires_grad_()
        pool = vector.repeat(n, negatives, 1).to(dtype)
        value = multi_positive_info_nce(leaf, leaf[:, None], pool)
        value.backward()
        assert value.isfinite()
        assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("loss", [*PAIR_LOSSES, angle_loss, anchored_info_nce])
@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_non_finite_input_is_not_hidden(loss, number):
    good, spoiled = torch.tensor([0.0, 0.5, 1.0]), torch.tensor([0.1, number, 0.3])
    if loss in PAIR_LOSSES:
        sides, spoiled_sides = [good], [spoiled]
    else:
        sides = [normal(3, 4).float()] * 2
        spoiled_sides = [side * spoiled[:, None] for side in sides]
    assert loss(*sides, good).isfinite()
    assert not loss(*sides, spoiled).isfinite()
    assert not loss(*spoiled_sides, good).isfinite()
    if loss is not anchored_info_nce:  # without an anchor there is no logit
        assert not loss(*spoiled_sides, torch.zeros(3)).isfinite()  # all tied


def test_half_precision_and_autocast_compute_in_float32():
    queries, positives, negatives = normal(4, 8), normal(4, 2, 8, seed=1), normal(4, 3, 8, seed=2)
    half = [x.bfloat16() for x in (queries, positives, negatives)]
    expected = multi_positive_info_nce(*(x.float() for x in half))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = multi_positive_info_nce(*half)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    assert multi_positive_info_nce(queries, positives, negatives).dtype == torch.float64


@pytest.mark.parametrize("loss", [*PAIR_LOSSES, *SIDE_LOSSES])
def test_what_would_broadcast_without_a_word_is_refused(loss):
    D, sides = ((), 1) if loss in PAIR_LOSSES else ((4,), 2)
    for shape in ((3, *D, 1), (3, 1, *D), (0, *D)):
        with pytest.raises(ValueError, match="n >= 1"):
            loss(*[torch.zeros(shape)] * sides, torch.zeros(shape[0]))
    with pytest.raises(ValueError, match="n >= 1"):
        loss(*[torch.zeros(3, *D)] * sides, torch.zeros(3, 1))


# Properties

pairs = st.lists(
    st.tuples(st.floats(-1, 1, width=32), st.sampled_from([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])),
    min_size=1,
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(pairs=pairs, seed=st.integers(0, 2**16))
def test_the_order_of_pairs_does_not_matter(pairs, seed):
    similarities, scores = torch.tensor(pairs, dtype=torch.float64).T
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))
    for loss in PAIR_LOSSES:
        value = loss(similarities, scores)
        assert value.isfinite()
        torch.testing.assert_close(loss(similarities[order], scores[order]), value)
