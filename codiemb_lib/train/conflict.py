"""Do the tasks pull the encoder the same way? Cosines of their losses' gradients, by layer.

Two gradients of cosine below zero are in conflict: a small step that lowers the one loss raises the
other (Yu et al., "Gradient surgery for multi-task learning", NeurIPS 2020, arXiv 2001.06782). A
cosine says little by itself, since batches differ also within a task: compare it with that of two
batches of one task.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from codiemb_lib.core import CodiembError, ObjectiveSettings, Preset, layer_of
from codiemb_lib.data import Record
from codiemb_lib.model import Encoder
from codiemb_lib.train.batches import Share, make_batch, make_share
from codiemb_lib.train.sampling import MixedTaskPlan, SingleTaskPlan, Step
from codiemb_lib.train.step import batch_loss, needs_middle

KINDS = ("ir", "sts", "mixed")


class GradientError(CodiembError, ValueError):
    """Gradients that cannot be compared."""


def draw_shares(
    preset: Preset, records: Sequence[Record], encoder: Encoder, *, count: int, seed: int = 0
) -> dict[str, list[Share]]:
    """The first batches of each kind: `ir` and `sts` of a single-task plan, and `mixed` ones.

    Kinds without a batch are left out: a task without records, or fewer than a mixed batch takes.

    Args:
        preset: Batch sizes, prompts, how many positives and negatives are drawn.
        records: Training records.
        encoder: Its tokenizer cuts the texts.
        count: Batches of each kind; fewer where an epoch has no more.
        seed: Of plans and draws.
    """
    sizes = preset.training.batch_sizes
    single = SingleTaskPlan(records, batch_sizes={"ir": sizes.ir, "sts": sizes.sts})
    steps = single.steps(0, seed=seed)
    if len(records) >= sizes.mixed:
        steps += MixedTaskPlan(records, batch_size=sizes.mixed).steps(0, seed=seed)
    planned: dict[str, list[Step]] = {kind: [] for kind in KINDS}
    for step in steps:
        planned[step.task].append(step)
    prompts = {dataset.name: dataset for dataset in preset.datasets}
    generator = np.random.default_rng(seed)
    return {
        kind: [
            make_share(
                make_batch(step, records, prompts, preset.objective, generator),
                encoder.tokenizer,
                tokens_per_forward=preset.training.tokens_per_forward,
                seed=[seed, number],
                packing=encoder.packing,
            )
            for number, step in enumerate(steps[:count])
        ]
        for kind, steps in planned.items()
        if steps
    }


def loss_gradient(
    encoder: Encoder, share: Share, settings: ObjectiveSettings, sts_objective: str = "codiemb"
) -> dict[str, Tensor]:
    """The gradient of a batch's loss, without dropout, by the names of the backbone's parameters.

    Parameters that the loss does not reach are left out. The encoder stays as it is.
    """
    training = encoder.training
    encoder.eval()
    middle = needs_middle(share.batch, settings, sts_objective)
    outputs = [encoder(blocks, middle=middle) for blocks in share.forwards]
    states = [torch.cat(parts)[share.order] for parts in zip(*outputs, strict=True)]  # (m, D)
    loss = batch_loss(share.batch, *states, settings=settings, sts_objective=sts_objective).total
    own = {n: p for n, p in encoder.backbone.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(loss, [*own.values()], allow_unused=True)
    encoder.train(training)
    return {n: g for n, g in zip(own, gradients, strict=True) if g is not None}


def cosine_by_layer(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[int, float]:
    """The cosine between two gradients in each layer, -1 being the embeddings.

    All tensors of a layer are taken as one vector; what only one of the two reaches counts in that
    one's length. Tensors outside the layers are left out. NaN where one of the two is zero.
    """
    sums: dict[int, np.ndarray] = defaultdict(lambda: np.zeros(3))  # a.b, a.a, b.b
    for name in dict.fromkeys([*first, *second]):  # in one order, for the sums
        layer = layer_of(name)
        if layer is not None:
            a, b = first.get(name), second.get(name)
            products = [(a, b), (a, a), (b, b)]
            sums[layer] += [
                0.0 if x is None or y is None else torch.vdot(x.flatten(), y.flatten()).item()
                for x, y in products
            ]
    return {
        layer: ab / np.sqrt(aa * bb) if aa and bb else float("nan")
        for layer, (ab, aa, bb) in sorted(sums.items())
    }


def conflict(
    encoder: Encoder,
    shares: Mapping[str, Sequence[Share]],
    settings: ObjectiveSettings,
    sts_objective: str = "codiemb",
) -> pd.DataFrame:
    """Cosines between the gradients of batches, by layer.

    Batch i of one kind is compared with batch i of another, and with batch i + 1 of its own. Two
    gradients of each kind are held at a time.

    Args:
        encoder: At the weights where the gradients are taken.
        shares: Batches by kind, as `draw_shares` gives them.
        settings: Of the objectives.
        sts_objective: Of similarity batches.

    Returns:
        Rows (first, second, layer, batch, cosine); `first` and `second` are kinds.

    Raises:
        GradientError: A kind has no batch, or there is no kind.
    """
    if (empty := [kind for kind, batches in shares.items() if not batches]) or not shares:
        raise GradientError(
            f"expected a batch of every kind, found none of {', '.join(empty or KINDS)}. "
            "Leave out kinds without any."
        )
    return pd.DataFrame(
        [
            {"first": first, "second": second, "layer": layer, "batch": number, "cosine": cosine}
            for first, second, number, cosines in _compared(
                encoder, shares, settings, sts_objective
            )
            for layer, cosine in cosines.items()
        ]
    )


def _compared(
    encoder: Encoder,
    shares: Mapping[str, Sequence[Share]],
    settings: ObjectiveSettings,
    sts_objective: str,
) -> Iterator[tuple[str, str, int, dict[int, float]]]:
    before: dict[str, dict[str, Tensor]] = {}
    for number in range(max(map(len, shares.values()))):
        now = {
            kind: loss_gradient(encoder, batches[number], settings, sts_objective)
            for kind, batches in shares.items()
            if number < len(batches)
        }
        for first, second in combinations(now, 2):
            yield first, second, number, cosine_by_layer(now[first], now[second])
        for kind in (kind for kind in now if kind in before):
            yield kind, kind, number - 1, cosine_by_layer(before[kind], now[kind])
        before = now
