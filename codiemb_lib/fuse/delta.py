"""Delta-guided fusion: who moved farther weighs more."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from codiemb_lib.core import layer_of
from codiemb_lib.fuse.moves import Moves, Weights, by_tensor, merged
from codiemb_lib.fuse.tensors import Lazy


def delta(
    base: Weights,
    models: Sequence[Weights],
    *,
    granularity: str = "tensor",
    measure: str = "norm",
    weighting: str = "power",
    power: float = 1.0,
    temperature: float = 1.0,
) -> Lazy:
    r"""Delta-guided fusion: who moved farther weighs more (or less, with a negative power).

    .. math:: \theta = \theta_0 + \sum_j w_j \delta_j, \quad
              w_j \propto \lVert\delta_j\rVert^p \quad\text{or}\quad
              w_j \propto \exp(\lVert\delta_j\rVert / (m T))

    The norm is over the model, a layer, a tensor, a row of a matrix (a neuron; a vector is one row)
    or an element; m is its mean over the J models, so that the temperature T has no unit. With the
    measure "share" it is a part of the model's own movement, :math:`r_{jt} =
    \lVert\delta_{jt}\rVert^2 / \sum_t \lVert\delta_{jt}\rVert^2` and :math:`w_j \propto
    r_{jt}^{p/2}`: where a run worked, whatever its rate and length.

    Source: CoDiEmb, arXiv 2508.11442, gives no equation; this is the family that it allows. p = 0
    is the uniform soup; p = 2 a tensor FuseChat's VaRM (arXiv 2408.07990); p = 2 over the model
    MetaGPT's coefficient (arXiv 2406.11385). Rows and shares are ours.
    """
    weigh = partial(_shares, weighting=weighting, power=power, temperature=temperature)
    if granularity not in ("row", "element"):
        weights_of = _weights_of(base, models, granularity, measure, weigh)
        # The weights sum to one: the base cancels.
        return merged(base, models, lambda moves: moves.mix(weights_of(moves).tolist()))
    of_block = _of_block(base, models, measure, weigh)

    def rule(moves: Moves) -> Tensor:
        row = _row(moves, granularity)
        return moves.move(lambda deltas: (of_block(deltas, row) * deltas).sum(dim=0), row=row)

    return merged(base, models, rule)


def _shares(
    norms: Tensor, *, weighting: str = "power", power: float = 1.0, temperature: float = 1.0
) -> Tensor:
    """From norms (J, ...) to weights, which sum to one over J."""
    if weighting == "softmax":
        mean = norms.mean(dim=0)
        relative = torch.where(mean > 0, norms / mean, 1.0)
        heaviest = relative.amax(dim=0) if temperature > 0 else relative.amin(dim=0)
        return torch.softmax((relative - heaviest) / temperature, dim=0)  # none above zero
    # Relative to the norm that weighs most, powers cannot overflow; and the ratio that is 1 by
    # definition settles 0 / 0: all norms zero, or a zero norm under a negative power.
    heaviest = norms.amax(dim=0) if power > 0 else norms.amin(dim=0)
    weights = torch.where(norms == heaviest, 1.0, norms / heaviest) ** power
    return weights / weights.sum(dim=0)


def _totals(base: Weights, models: Sequence[Weights], measure: str) -> Tensor:
    """What norms are divided by, (J,): the norm of the whole delta for shares of it, else one."""
    if measure == "norm":
        return torch.ones(len(models), dtype=torch.float64)
    squares = (norms.square() for norms in delta_norms(base, models).values())
    total = sum(squares, start=torch.zeros(len(models), dtype=torch.float64)).sqrt()
    return total.masked_fill(total == 0, 1.0)


def _row(moves: Moves, granularity: str) -> int:
    """How many elements of a tensor share a weight."""
    if granularity == "element":
        return 1
    return max(1, moves.origin[0].numel() if moves.origin.ndim > 1 else moves.origin.numel())


def _of_block(
    base: Weights, models: Sequence[Weights], measure: str, weigh: Callable[[Tensor], Tensor]
) -> Callable[[Tensor, int], Tensor]:
    """The function from a block of deltas (J, block) and the length of its rows to its weights."""
    totals = _totals(base, models, measure)

    def of(deltas: Tensor, row: int) -> Tensor:
        by_row = deltas.unflatten(1, (-1, row))  # (J, rows, row)
        norms = deltas.abs() if row == 1 else torch.linalg.vector_norm(by_row, dim=2)
        if measure == "share":
            norms /= totals.to(norms.dtype)[:, None]
        weights = weigh(norms)
        return weights if row == 1 else weights.repeat_interleave(row, dim=1)

    return of


def _weights_of(
    base: Weights,
    models: Sequence[Weights],
    granularity: str,
    measure: str,
    weigh: Callable[[Tensor], Tensor],
) -> Callable[[Moves], Tensor]:
    """The function from one tensor's moves to its weights: (J,), or (J, *shape) by row, element."""
    if granularity in ("row", "element"):
        of_block = _of_block(base, models, measure, weigh)

        def of_tensor(moves: Moves) -> Tensor:
            row = _row(moves, granularity)
            blocks = [of_block(deltas, row) for deltas in moves.deltas(row=row)]
            return torch.cat(blocks, dim=1).view(-1, *moves.origin.shape)

        return of_tensor
    totals = _totals(base, models, measure)
    if granularity == "tensor":
        return lambda moves: weigh(moves.norms() / totals)
    group = layer_of if granularity == "layer" else lambda name: "model"
    squares: dict[int | str | None, Tensor] = defaultdict(lambda: torch.zeros(()))
    for name, norms in delta_norms(base, models).items():
        squares[group(name)] = squares[group(name)] + norms.square()
    weights = {key: weigh(total.sqrt() / totals) for key, total in squares.items()}
    return lambda moves: weights[group(moves.name)]


@torch.no_grad()
def delta_guided_weights(
    base: Weights,
    models: Sequence[Weights],
    *,
    granularity: str = "tensor",
    measure: str = "norm",
    **options: Any,
) -> dict[str, Tensor]:
    """What :func:`delta`, with the same options, weighs J models by, for each float tensor.

    They are (J,), or (J, *shape) by row and element, and sum to one over J, equal where all deltas
    are zero. With a negative power, models that did not move share the whole weight.
    """
    weigh = partial(_shares, **options)
    return by_tensor(base, models, _weights_of(base, models, granularity, measure, weigh))


@torch.no_grad()
def delta_norms(base: Weights, models: Sequence[Weights]) -> dict[str, Tensor]:
    """Euclidean norms of the J deltas, (J,), for each float tensor."""
    return by_tensor(base, models, Moves.norms)
