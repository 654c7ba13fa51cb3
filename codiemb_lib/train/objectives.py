"""The training objectives: pure functions of embeddings, or of similarities and gold scores.

Letters in shapes: B queries, P positives and N negatives a query, D dimensions, n pairs.
Similarities (n,) are cosines, scores (n,) are gold, and temperatures are the authors' by default.
Every objective returns one finite scalar with finite gradients, also on constant, tied or single
input; where there is nothing to learn it is a zero that is still connected to the graph. Half
precision, autocast included, is computed in float32; float64 stays float64. Non-finite input gives
non-finite output: it is for the training loop to stop on. Scores that do not fit might broadcast
without a word, so they raise ValueError.

The retrieval and similarity objectives follow CoDiEmb (Zhang et al., arXiv 2508.11442) as its
authors' public training code computes them; CoSENT and AnglE are the pairwise baselines. Their kin:
InfoNCE (van den Oord et al., 2018; with in-batch negatives also "multiple negatives ranking",
Henderson et al., 2017), ListNet (Cao et al., 2007) and ListMLE (Xia et al., 2008) for RankKL,
preference ranking optimisation (Song et al., 2023) for PRO.
"""

import functools
import math
from bisect import bisect_right
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_PRO_BLOCK = 150_000  # entries of a block of pro_loss, which fit in a core's cache


def _full_precision(objective: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Give `objective` its numbers in one dtype, float32 or wider, and switch autocast off."""

    @functools.wraps(objective)
    def wrapped(*args, **kwargs):
        tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        dtype = functools.reduce(torch.promote_types, (x.dtype for x in tensors), torch.float32)

        def cast(x):
            return x.to(dtype) if isinstance(x, Tensor) and x.dtype != torch.bool else x

        with torch.autocast(tensors[0].device.type, enabled=False):
            return objective(*map(cast, args), **{name: cast(x) for name, x in kwargs.items()})

    return wrapped


@_full_precision
def multi_positive_info_nce(
    queries: Tensor,
    positives: Tensor,
    negatives: Tensor,
    *,
    temperature: float = 0.02,
    same: Tensor | None = None,
) -> Tensor:
    r"""Retrieval: InfoNCE for each positive slot apart, so other positives are never negatives.

    With cosines over the temperature :math:`\tau`, and :math:`H` the hard negatives of all queries,

    .. math:: L = -\frac{1}{BP} \sum_{p,i} \log \frac{e^{\cos(q_i, d_{ip})/\tau}}
              {\sum_{j} e^{\cos(q_i, d_{jp})/\tau} + \sum_{h \in H} e^{\cos(q_i, h)/\tau}}

    Args:
        queries: (B, D), of any length; they are normalised here, like all others.
        positives: (B, P, D), P >= 1.
        negatives: (M, N, D), one flat pool of M * N hard negatives for every query. M is B where
            each query brings its own, and may be any number; N may be 0.
        same: (B, B, P) bool, true where positive p of row j answers query i, too. It is then left
            out of the sum over j, where else it would be a negative.
    """
    queries, positives, negatives = (
        F.normalize(x, dim=-1) for x in (queries, positives, negatives)
    )
    slots = queries @ positives.permute(1, 2, 0) / temperature  # (P, B, B)
    hard = queries @ negatives.flatten(0, 1).T / temperature  # (B, M * N)
    own = slots.diagonal(dim1=1, dim2=2)  # (P, B)
    if same is not None:
        others = same & ~torch.eye(len(same), dtype=torch.bool, device=same.device)[:, :, None]
        slots = slots.masked_fill(others.permute(2, 0, 1), -torch.inf)
    return (torch.logaddexp(slots.logsumexp(2), hard.logsumexp(1)) - own).mean()


@_full_precision
def distilled_info_nce(
    queries: Tensor,
    passages: Tensor,
    teacher_queries: Tensor,
    teacher_passages: Tensor,
    *,
    temperature: float = 0.02,
) -> Tensor:
    r"""Retrieval without labels: the student ranks the passages of a batch as its teacher does.

    .. math:: L = \frac1B \sum_i \mathrm{KL}\Bigl(\mathrm{softmax}_k \frac{\cos(q'_i, d'_k)}{\tau}
              \,\Big\|\, \mathrm{softmax}_k \frac{\cos(q_i, d_k)}{\tau}\Bigr)

    Queries are (B, D) and passages (K, D), those of the teacher, :math:`q'` and :math:`d'`, of
    any dimension. Source: Hinton et al., arXiv 1503.02531; for rankings of passages, Hofstätter et
    al., arXiv 2010.02666.
    """
    student, teacher = (
        torch.log_softmax(F.normalize(q, dim=1) @ F.normalize(d, dim=1).T / temperature, dim=1)
        for q, d in ((queries, passages), (teacher_queries, teacher_passages))
    )
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True)


@_full_precision
def anchored_info_nce(
    queries: Tensor,
    passages: Tensor,
    scores: Tensor,
    *,
    temperature: float = 0.02,
    anchor_score: float = 1.0,
) -> Tensor:
    """Similarity: InfoNCE between the two sides of a batch, for its best pairs alone.

    CoDiEmb applies it to the pooled hidden state of the middle layer; on the final one it is our
    choice. Both sides are (n, D) and normalised here. A pair with score >= `anchor_score` asks its
    first side to find its second among the second sides of the whole batch; of these the mean, zero
    where there is none.
    """
    _check(scores, queries, passages)
    logits = F.normalize(queries, dim=1) @ F.normalize(passages, dim=1).T / temperature  # (n, n)
    anchors = (scores >= anchor_score).to(logits.dtype)
    losses = logits.logsumexp(1) - logits.diagonal()
    return losses @ anchors / anchors.sum().clamp(min=1) + _nothing(scores)


@_full_precision
def pearson_loss(similarities: Tensor, scores: Tensor) -> Tensor:
    """Similarity: one minus Pearson's correlation of similarities (n,) and gold scores (n,).

    In [0, 2]. The correlation is undefined where one side is constant up to rounding: zero there.
    """
    _check(scores, similarities)
    sides = torch.stack((similarities, scores))  # (2, n)
    centred = sides - sides.mean(dim=1, keepdim=True)
    norms = torch.linalg.vector_norm(centred, dim=1)
    rounding = 16 * torch.finfo(sides.dtype).eps * torch.linalg.vector_norm(sides, dim=1)
    constant = (norms <= rounding).any()
    # No division by zero, even where its result is thrown away: 0 * inf is NaN on the way back.
    correlation = centred[0] @ centred[1] / norms.prod().masked_fill(constant, 1)
    return (1 - correlation).masked_fill(constant, 0) + _nothing(sides)


@_full_precision
def rank_kl_loss(similarities: Tensor, scores: Tensor, *, temperature: float = 0.05) -> Tensor:
    r"""Similarity: divergence of the predicted from the gold distribution over ranks.

    With :math:`r_i` the 0-based rank of :math:`y_i`, best first, ties sharing their average rank:

    .. math:: L = \frac{1}{n} \mathrm{KL}\Bigl(
              \mathrm{softmax}\frac{(n-1-r)/(n-1)}{\tau} \,\Big\|\, \mathrm{softmax}\frac{s}{\tau}
              \Bigr)

    The division by n is the authors': they reduce one distribution of n entries as if it were a
    batch of n. So a larger batch weakens this term relative to the others.
    """
    _check(scores, similarities)
    n = len(scores)
    ascending, scores = scores.sort().values, scores.contiguous()
    lower = torch.searchsorted(ascending, scores)  # how many are strictly lower
    not_higher = torch.searchsorted(ascending, scores, right=True)
    height = (lower + not_higher - 1) / 2  # n - 1 - r
    target = torch.log_softmax(height.to(similarities) / max(n - 1, 1) / temperature, dim=0)
    predicted = torch.log_softmax(similarities / temperature, dim=0)
    return F.kl_div(predicted, target, reduction="sum", log_target=True) / n + _nothing(scores)


@_full_precision
def pro_loss(similarities: Tensor, scores: Tensor, *, temperature: float = 0.05) -> Tensor:
    r"""Similarity: each pair is preferred to all pairs of lower gold, weighted by the gap.

    .. math:: L = -\operatorname{mean}_k \log \frac{e^{s_k m_k/\tau}}
              {e^{s_k m_k/\tau} + \sum_{j: y_j < y_k} e^{s_j (y_k - y_j)/\tau}},
              \quad m_k = \max_j (y_k - y_j)

    over the k that have a lower j; zero where all scores are equal. The scores are constants, and
    there are first derivatives only. Time O(n^2); memory O(n): some 2 MB for 4,096 pairs.
    """
    _check(scores, similarities)
    return _Pro.apply(similarities, scores, temperature)


class _Pro(torch.autograd.Function):
    """:func:`pro_loss`; its gradient is found with it, while a block's softmax is at hand."""

    @staticmethod
    def forward(ctx, similarities: Tensor, scores: Tensor, temperature: float) -> Tensor:
        scores, order = scores.sort(descending=True)
        bits = similarities[order] / (temperature * math.log(2))  # exp2 is the fastest exponential
        widest = scores - scores[-1]  # m
        own = bits * widest
        largest, sums = torch.zeros_like(bits), torch.empty_like(bits)  # of each row
        factors = torch.stack((torch.ones_like(widest), widest))
        moments = torch.zeros_like(factors)  # of column j: the sums over k of p_kj and p_kj m_k
        ascending = (-scores).tolist()
        moderate = bool(bits.abs().max() * widest[0] < 100)  # no 2**logit overflows or vanishes
        start, n = 0, len(scores)
        block = bits.new_empty(max(n, min(n * n, _PRO_BLOCK)))
        while start < n:
            # Scores descend: what is lower than a block's rows stands in their columns or beyond.
            stop = min(n, start + max(1, _PRO_BLOCK // (n - start)))
            rows = slice(start, stop)
            shared = slice(0, bisect_right(ascending, ascending[stop - 1]) - start)
            area = block[: (stop - start) * (n - start)].view(stop - start, n - start)
            gaps = torch.sub(scores[rows, None], scores[start:], out=area)
            barred = gaps[:, shared].sign().sub_(1)  # below 0 if not lower; beyond, all are lower
            logits = gaps.mul_(bits[start:])
            logits[:, shared].add_(barred, alpha=1e30)  # faster than a mask of bool
            # A row's own column is free (its gap is zero) and holds the preferred entry, so that a
            # row with nothing below it is log(1) = 0 rather than the logarithm of an empty sum.
            logits.diagonal().copy_(own[rows])
            if not moderate:
                torch.amax(logits, 1, out=largest[rows])
                logits.sub_(largest[rows, None])
            weights = logits.exp2_()  # softmax, but for its denominator
            torch.sum(weights, 1, out=sums[rows])
            moments[:, start:].addmm_(factors[:, rows] / sums[rows], weights)
            start = stop
        total = (sums.log2() + largest - own).sum()
        count = (widest > 0).sum().clamp(min=1)
        # The sum over rows k of p_kj (y_k - y_j), where a row's own p goes with m_k.
        own_share = (own - largest).exp2_() / sums
        gradient = moments[1] - widest * (moments[0] - own_share + 1)
        gradient = gradient / (temperature * count)
        ctx.save_for_backward(gradient.scatter(0, order, gradient))  # in the order of the input
        return math.log(2) * total / count

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return upstream * gradient, None, None


@_full_precision
def cosent_loss(similarities: Tensor, scores: Tensor, *, temperature: float = 0.05) -> Tensor:
    r"""Similarity, baseline: CoSENT (Su, 2022; Huang et al., IEEE/ACM TASLP 2024).

    .. math:: L = \log \Bigl(1 + \sum_{y_i > y_j} e^{(s_j - s_i)/\tau}\Bigr)

    Time O(n log n); memory O(n).
    """
    _check(scores, similarities)
    scores, order = scores.sort()
    logits = similarities[order] / temperature
    lower = torch.searchsorted(scores, scores)  # how many have a lower score: they come first
    entries = logits.logcumsumexp(0)[lower - 1] - logits  # each pair's, summed over its j
    entries = F.pad(entries.masked_fill(lower == 0, -torch.inf), (1, 0))  # by the zero of the 1
    return entries.logsumexp(0) + _nothing(scores) + _nothing(similarities)


@_full_precision
def angle_loss(left: Tensor, right: Tensor, scores: Tensor, *, temperature: float = 0.05) -> Tensor:
    r"""Similarity, baseline: the angle objective of AnglE (Li & Li, arXiv 2309.12871).

    The halves of an embedding, (n, D) with D even, normalised here, are the real and the imaginary
    part of a vector of D/2 complex numbers. For unit vectors z and w the quotient has the real part
    cos = sum(a c + b d) and the imaginary part sin = sum(b c - a d), with z = a + bi, w = c + di;
    the similarity |cos + sin| goes into :func:`cosent_loss`. This is the form of the authors' code;
    the temperature is the inverse of the usual scale, 20.
    """
    _check(scores, left, right)
    left, right = F.normalize(left, dim=1), F.normalize(right, dim=1)
    (a, b), (c, d) = left.chunk(2, dim=1), right.chunk(2, dim=1)
    similarities = (a * c + b * d + b * c - a * d).sum(dim=1).abs()
    return cosent_loss(similarities, scores, temperature=temperature)


def _nothing(numbers: Tensor) -> Tensor:
    """Zero; NaN where one is not finite, of which comparisons alone would leave no trace."""
    return 0 * numbers.sum()


def _check(scores: Tensor, *sides: Tensor) -> None:
    """One side: similarities (n,). Two: embeddings (n, D). (n, 1) would become n x n pairs."""
    shapes = [tuple(x.shape) for x in (*sides, scores)]
    n, *D = shapes[0] or (0,)
    if n == 0 or len(D) != len(sides) - 1 or shapes != [(n, *D)] * len(sides) + [(n,)]:
        expected = "similarities (n,)" if len(sides) == 1 else "both sides (n, D)"
        raise ValueError(f"Expected {expected} and scores (n,) with n >= 1, found {shapes}.")
