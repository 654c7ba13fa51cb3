"""Do the tasks pull the encoder the same way? Cosines of their losses' gradients, by layer.

Two gradients of cosine below zero are in conflict: a small step that lowers the one loss raises the
other (Yu et al., "Gradient surgery for multi-task learning", NeurIPS 2020, arXiv 2001.06782). A
cosine says little by itself, since batches differ also within a task: compare it with that of two
batches of one task.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import combinations, count

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from codiemb_lib.core import ObjectiveSettings, Preset, layer_of
from codiemb_lib.data import load_datasets
from codiemb_lib.evaluate import with_mined
from codiemb_lib.model import Encoder
from codiemb_lib.train.batches import OptimizerSteps, Share
from codiemb_lib.train.loop import training_records
from codiemb_lib.train.sampling import SingleTaskPlan
from codiemb_lib.train.step import batch_loss, needs_middle


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


def training_gradient(
    preset: Preset, encoder: Encoder, seed: int
) -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
    """The function from a backbone's weights to the gradient of the loss of a training batch.

    Every call takes the next batch, retrieval and similarity equally often; the first one loads the
    data. The encoder takes the weights.
    """

    @cache
    def steps() -> OptimizerSteps:
        records = training_records(preset, with_mined(preset, load_datasets(preset)), seed)
        sizes = preset.training.batch_sizes.model_dump()
        plan = SingleTaskPlan(records, batch_sizes=sizes, balance="equal")
        return OptimizerSteps(records, plan, encoder, preset, seed=seed)

    turn = count()

    def gradient(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        encoder.backbone.load_state_dict(weights)
        share, *_ = steps()[next(turn) % len(steps())]
        return loss_gradient(encoder, share, preset.objective)

    return gradient


def cosine_by_layer(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[int, float]:
    """The cosine between two gradients in each layer, -1 being the embeddings.

    All tensors of a layer are taken as one vector; what only one of the two reaches counts in that
    one's length. Tensors outside the layers are left out. NaN where one of the two is zero.
    """
    sums: dict[int, np.ndarray] = defaultdict(lambda: np.zeros(3))  # a.b, a.a, b.b
    for name in dict.fromkeys([*first, *second]):  # in one order, for the sums
        if (layer := layer_of(name)) is not None:
            a, b = first.get(name), second.get(name)
            sums[layer] += [
                0.0 if x is None or y is None else torch.vdot(x.flatten(), y.flatten()).item()
                for x, y in ((a, b), (a, a), (b, b))
            ]
    return {
        layer: ab / np.sqrt(aa * bb) if aa and bb else float("nan")
        for layer, (ab, aa, bb) in sorted(sums.items())
    }


def conflict(
    encoder: Encoder,
    batches: Mapping[str, Sequence[Share]],
    settings: ObjectiveSettings,
    sts_objective: str = "codiemb",
) -> pd.DataFrame:
    """Cosines between the gradients of batches, by layer, at the encoder's weights.

    Batches stand by kind, such as `ir`, `sts` and `mixed`. Batch i of one kind is compared with
    batch i of another, and with batch i + 1 of its own.

    Returns:
        Rows (first, second, layer, batch, cosine); `first` and `second` are kinds.
    """
    rows: list[tuple] = []
    before: dict[str, dict[str, Tensor]] = {}
    for number in range(max(map(len, batches.values()))):
        now = {
            kind: loss_gradient(encoder, own[number], settings, sts_objective)
            for kind, own in batches.items()
            if number < len(own)
        }
        pairs = [(a, b, number, now[a], now[b]) for a, b in combinations(now, 2)]
        pairs += [(k, k, number - 1, before[k], now[k]) for k in now if k in before]
        for first, second, batch, *gradients in pairs:
            cosines = cosine_by_layer(*gradients).items()
            rows += [(first, second, layer, batch, cosine) for layer, cosine in cosines]
        before = now
    return pd.DataFrame(rows, columns=["first", "second", "layer", "batch", "cosine"])
