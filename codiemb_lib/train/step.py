"""One step: the loss of a batch as a function of its embeddings, and the gradient of the encoder.

The two halves meet in the embeddings. The encoder makes them, in forward passes of a token budget;
the loss is taken on copies of them that know nothing of the encoder, and its gradient with respect
to these copies is all that the encoder's backward pass needs. Three things follow:

- every rank computes the loss of the whole batch from gathered copies and keeps its own rows of the
  gradient: gathered *with* gradient, without any collective operation in the backward pass;
- a text that stands in several places collects the gradients of all of them, in one backward pass;
- the gradient can be cached: forward passes without a graph first, then each of them again, with
  one, and its backward pass at once. Memory is then that of one forward pass, however large the
  batch (Gao et al., "Scaling deep contrastive learning batch size under memory limited setup",
  RepL4NLP 2021, arXiv 2101.06983).
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from inspect import signature
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional

from codiemb_lib.core import ObjectiveSettings, TaskWeights
from codiemb_lib.train import objectives
from codiemb_lib.train.batches import Batch, Share

# The terms of the objective of similarity that has several, beside InfoNCE of the middle layer.
_TERMS = {"codiemb": ("pearson", "rank_kl", "pro")}
_EQUAL = TaskWeights()


class Loss(NamedTuple):
    """The loss of one batch, and its components before weighting."""

    total: Tensor
    components: dict[str, float]


def needs_middle(batch: Batch, settings: ObjectiveSettings, sts_objective: str) -> bool:
    """Whether the loss of a batch looks at the middle layer."""
    pairs = any(len(part.scores) for part in batch.parts or (batch,))
    return pairs and sts_objective == "codiemb" and settings.info_nce_mid > 0


def batch_loss(
    batch: Batch,
    final: Tensor,
    middle: Tensor | None = None,
    *,
    settings: ObjectiveSettings,
    sts_objective: str = "codiemb",
    weights: TaskWeights = _EQUAL,
    taught: Mapping[str, Tensor] = MappingProxyType({}),
) -> Loss:
    """The loss of a batch (METHOD, "Objectives"), or the sum over its parts.

    Queries and passages: multi-positive InfoNCE over the whole global batch. Similarity pairs: the
    mean over the ranks' shards, which are not gathered, of the weighted sum of middle-layer
    InfoNCE, Pearson, RankKL and PRO, or of a pairwise baseline. With `settings.matryoshka`, the
    mean over the full length D and each number of leading dimensions (Kusupati et al., NeurIPS
    2022, arXiv 2205.13147); the components are those at the full length.

    Args:
        final, middle: (m, D), embeddings of the batch's texts, pooled from the last and from the
            middle layer; the latter is None where `needs_middle` is false.
        weights: Factors of the two tasks' losses.
        taught: By task the embeddings (m, D') of the batch's texts by a teacher. Its cosines then
            stand for the scores of pairs, and retrieval is `distilled_info_nce` from it.
        sts_objective: `codiemb`, or `x` for `x_loss` of `objectives`, given what it names out of
            `similarities`, `left`, `right`, `scores` and `temperature`.
    """
    losses = []
    for d in (final.shape[1], *settings.matryoshka):
        states = [functional.normalize(s[:, :d], dim=1) for s in (final, middle) if s is not None]
        total, components = final.sum() * 0, {}
        for part in batch.parts or (batch,):
            if len(part.scores):
                loss = _sts_loss(part, states, settings, sts_objective, taught.get("sts"))
                total = total + weights.sts * loss.total
            else:
                loss = _ir_loss(part, states[0], settings, taught.get("ir"))
                total = total + getattr(weights, part.planned.task, 1.0) * loss.total
            components |= loss.components
        losses.append(Loss(total, components))
    return Loss(torch.stack([loss.total for loss in losses]).mean(), losses[0].components)


def _ir_loss(
    batch: Batch, final: Tensor, settings: ObjectiveSettings, taught: Tensor | None
) -> Loss:
    if not len(batch.queries):  # nothing to pull together
        return Loss(final.sum() * 0, {"info_nce": 0.0})
    if taught is not None:
        passages = np.unique(np.concatenate([batch.positives.ravel(), batch.negatives]))
        rows = batch.queries, passages
        sides = [embeddings[of] for embeddings in (final, taught) for of in rows]
        loss = objectives.distilled_info_nce(*sides, temperature=settings.temperature)
        return Loss(loss, {"distilled_info_nce": loss.item()})
    loss = objectives.multi_positive_info_nce(
        final[batch.queries],
        final[batch.positives],  # (B, P, D)
        final[batch.negatives].unsqueeze(1),  # (K, 1, D): the pool
        temperature=settings.temperature,
        same=torch.from_numpy(batch.answers).to(final.device),
    )
    return Loss(loss, {"info_nce": loss.item()})


def _sts_loss(
    batch: Batch,
    states: list[Tensor],
    settings: ObjectiveSettings,
    objective: str,
    taught: Tensor | None,
) -> Loss:
    final, middle = [*states, None][:2]
    shards: list[dict[str, Tensor]] = []
    gold = batch.scores
    if taught is not None:
        left, right = taught[batch.queries], taught[batch.positives[:, 0]]
        gold, middle = functional.cosine_similarity(left, right).clamp(min=0).cpu().numpy(), None
    count = min(len(batch.planned.shards), len(gold))  # of a mixed batch's pairs one may have none
    pairs = (batch.queries, batch.positives[:, 0], gold)
    for queries, passages, gold in zip(
        *(np.array_split(side, count) for side in pairs), strict=True
    ):
        left, right = final[queries], final[passages]
        given = {"left": left, "right": right, "similarities": (left * right).sum(1)}
        given["scores"] = scores = torch.from_numpy(gold).to(final.device)
        given["temperature"] = settings.rank_temperature
        parts = {}
        for name in _TERMS.get(objective, (objective,)):
            loss = getattr(objectives, f"{name}_loss")
            parts[name] = loss(**{p: given[p] for p in signature(loss).parameters})
        if middle is not None:
            parts["info_nce_mid"] = objectives.anchored_info_nce(
                middle[queries],
                middle[passages],
                scores,
                temperature=settings.temperature,
                anchor_score=settings.anchor_score,
            )
        if objective == "codiemb" and settings.info_nce_final > 0:
            parts["info_nce_final"] = objectives.anchored_info_nce(
                left,
                right,
                scores,
                temperature=settings.temperature,
                anchor_score=settings.final_anchor_score,
            )
        shards.append(parts)
    components = {name: torch.stack([s[name] for s in shards]).mean() for name in shards[0]}
    total = sum(getattr(settings, name, 1.0) * part for name, part in components.items())
    return Loss(total, {name: part.item() for name, part in components.items()})


def backward(
    accelerator: Accelerator,
    model: nn.Module,
    share: Share,
    loss_of: Callable[..., Loss],
    *,
    middle: bool = False,
    scale: float = 1.0,
    gradient_cache: bool = False,
    synchronise: bool = True,
) -> Loss:
    """Add the gradient of a batch's loss to the parameters, and return the loss.

    Args:
        model: The encoder, prepared by the accelerator.
        loss_of: Takes (batch, final) or (batch, final, middle), embeddings of all its texts.
        middle: Whether the middle layer is pooled too.
        scale: The gradient's factor; 1 / n for n batches of an optimiser step.
        synchronise: Whether ranks average their gradients; at the last batch of an optimiser step.
    """
    # Forward passes of a sharded model are collective: all ranks take as many. One with fewer
    # repeats its first ones, and nobody looks at the result.
    count = torch.tensor([len(share.forwards)], device=accelerator.device)
    forwards = range(int(accelerator.gather(count).max()))
    for module in model.modules():  # sparse gradients get a dense one to be added to
        if isinstance(module, nn.Embedding) and module.sparse and module.weight.grad is None:
            module.weight.grad = torch.zeros_like(module.weight)
    cached = gradient_cache and len(forwards) > 1

    def forward(number: int) -> tuple[Tensor, ...]:
        torch.manual_seed(share.seeds[number % len(share.seeds)])  # a replay repeats its dropout
        return model(share.forwards[number % len(share.forwards)], middle=middle)

    def synchronised(at: bool):
        return nullcontext() if at else accelerator.no_sync(model)

    with synchronised(synchronise and not cached):
        with torch.set_grad_enabled(not cached):
            outputs = [forward(number) for number in forwards]
        states = [torch.cat(parts).float() for parts in zip(*outputs, strict=True)]  # (m_rank, D)
        copies = [gather(accelerator, state.detach(), share).requires_grad_() for state in states]
        loss = loss_of(share.batch, *copies)
        gradients = torch.autograd.grad(loss.total * scale, copies, materialize_grads=True)
        own = [_own_rows(accelerator, g, share, len(states[0])) for g in gradients]
        if not cached:
            accelerator.backward(_product(states, own))
    if cached:
        sizes = [len(parts[0]) for parts in outputs]
        pieces = zip(*(g.split(sizes) for g in own), strict=True)
        for number, piece in zip(forwards, pieces, strict=True):
            with synchronised(synchronise and number == forwards[-1]):
                accelerator.backward(_product(forward(number), piece))
    return loss


def _product(states, gradients) -> Tensor:
    """A scalar whose gradient with respect to the states is `gradients`."""
    return sum((state * gradient).sum() for state, gradient in zip(states, gradients, strict=True))


def gather(accelerator: Accelerator, state: Tensor, share: Share) -> Tensor:
    """(m, D): the states of all ranks in the order of the batch's texts.

    Text i lies at rank i % W, row i // W of its share.
    """
    state = state[share.order]
    total, ranks = len(share.batch.texts), accelerator.num_processes
    rows = -(-total // ranks)
    padded = functional.pad(state, (0, 0, 0, rows - len(state)))
    gathered = accelerator.gather(padded).unflatten(0, (ranks, rows))  # (W, rows, D)
    return gathered.transpose(0, 1).flatten(0, 1)[:total]


def _own_rows(accelerator: Accelerator, gradient: Tensor, share: Share, rows: int) -> Tensor:
    """(m_rank, D): a rank's rows of a gradient (m, D), in the order of its forward passes.

    Multiplied by the number of ranks, whose gradients are averaged. Rows of repeated passes are 0.
    """
    ranks = accelerator.num_processes
    mine = gradient[accelerator.process_index :: ranks] * ranks
    own = gradient.new_zeros(rows, gradient.shape[1])
    own[torch.from_numpy(share.order[: len(mine)])] = mine
    return own
