r"""How models moved from one base: tensor by tensor, in blocks of their elements.

Notation, in the whole room: :math:`\theta_0` is the base, :math:`\theta_1 \dots \theta_J` the
models (checkpoints, runs), :math:`\delta_j = \theta_j - \theta_0` how far model j moved.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Self

import torch
from torch import Tensor

from codiemb_lib.fuse.tensors import FusionError, Lazy, labels, wide

Weights = Mapping[str, Tensor]

BLOCK = 1 << 21  # numbers; in smaller ones threads would wait for their turn in Python


class Moves:
    """One tensor in the base and in J models, gone through in blocks of its elements.

    Blocks are in float32 or wider, each overwritten by the next; what is not finite is refused.
    """

    def __init__(self, name: str, base: Weights, models: Sequence[Weights]) -> None:
        self.name = name
        self.origin = base[name]  # (*shape)
        self.tensors = [model[name] for model in models]
        self._labels = labels(base, models)

    def only(self, j: int) -> Self:
        """Those of model j alone."""
        alone = copy.copy(self)
        alone.tensors, alone._labels = [self.tensors[j]], [self._labels[0], self._labels[1 + j]]
        return alone

    def deltas(self, *, whole: bool = False, row: int = 1) -> Iterator[Tensor]:
        r"""Blocks of :math:`\delta_j`, (J, block), or, where they are `whole`, :math:`\theta_j`.

        A block is a number of `row`s of so many elements.
        """
        origin, flat = self.origin.reshape(-1), [tensor.reshape(-1) for tensor in self.tensors]
        step = max(1, BLOCK // len(flat) // row) * row
        block = torch.empty(len(flat), min(len(origin), step), dtype=wide(origin.dtype))
        for at in range(0, len(origin), step):
            start, part = origin[at : at + step].to(block.dtype), block[:, : len(origin) - at]
            for own, tensor in zip(part, flat, strict=True):
                if whole:
                    own.copy_(tensor[at : at + step])
                else:
                    torch.sub(tensor[at : at + step].to(block.dtype), start, out=own)
            self._check_finite(part)
            yield part

    def whole_deltas(self) -> Tensor:
        """All blocks at once, (J, n), for a rule that needs to look twice."""
        return torch.cat([deltas.clone() for deltas in self.deltas()], dim=1)

    def along(self, direction: Tensor) -> Tensor:
        """Inner products of the deltas with a tensor of their shape, (J,), in float64."""
        flat, at = direction.reshape(-1), 0
        total = torch.zeros(len(self.tensors), dtype=torch.float64)
        for deltas in self.deltas():
            total += (deltas @ flat[at : (at := at + deltas.shape[1])].to(deltas.dtype)).double()
        return total

    def products(self, *, whole: bool = False) -> Tensor:
        """Inner products of what :meth:`deltas` yields, (J, J), in float64."""
        # In float32 the sum over a large tensor (an embedding table) is off by a thousandth.
        none = torch.zeros(len(self.tensors), len(self.tensors), dtype=torch.float64)
        return sum(((d @ d.T).double() for d in self.deltas(whole=whole)), start=none)

    def norms(self) -> Tensor:
        """Euclidean norms of the deltas, (J,), in float64."""
        none = torch.zeros(len(self.tensors), dtype=torch.float64)
        squares = (torch.stack([torch.dot(row, row) for row in d]) for d in self.deltas())
        return sum((square.double() for square in squares), start=none).sqrt()

    def move(self, rule: Callable[[Tensor], Tensor], *, row: int = 1) -> Tensor:
        """The base plus `rule(deltas)`, a function from (J, block) to (block,)."""
        origin, at = self.origin.reshape(-1), 0
        merged = torch.empty(len(origin), dtype=wide(origin.dtype))
        for deltas in self.deltas(row=row):
            where = slice(at, at := at + deltas.shape[1])
            torch.add(origin[where], rule(deltas), out=merged[where])
        return merged.view(self.origin.shape)

    def mix(self, coefficients: Sequence[float]) -> Tensor:
        r"""The sum of :math:`c_j \theta_j`; the base is not read."""
        merged = torch.empty(self.origin.numel(), dtype=wide(self.origin.dtype))
        flat = [tensor.reshape(-1) for tensor in self.tensors]
        for at in range(0, len(merged), BLOCK):
            where = slice(at, at + BLOCK)
            block = merged[where]
            torch.mul(flat[0][where].to(block.dtype), coefficients[0], out=block)
            for coefficient, tensor in zip(coefficients[1:], flat[1:], strict=True):
                block.add_(tensor[where].to(block.dtype), alpha=coefficient)
            self._check_finite(block)
        return merged.view(self.origin.shape)

    def _check_finite(self, block: Tensor) -> None:
        if math.isfinite(block.sum()):
            return
        for label, tensor in zip(self._labels, (self.origin, *self.tensors), strict=True):
            if not tensor.isfinite().all():
                raise FusionError(
                    f"{label}: expected finite weights, found NaN or infinity in {self.name}."
                )


def merged(base: Weights, models: Sequence[Weights], rule: Callable[[Moves], Tensor]) -> Lazy:
    """The model whose tensors follow from a rule; integers, equal in all models, stay."""

    def work_out(name: str) -> Tensor:
        origin = base[name]
        return rule(Moves(name, base, models)) if origin.is_floating_point() else origin

    return Lazy(base, work_out)


def by_tensor(
    base: Weights, models: Sequence[Weights], rule: Callable[[Moves], Tensor]
) -> dict[str, Tensor]:
    """What a rule makes of each float tensor."""
    floats = (name for name in base if base[name].is_floating_point())
    return {name: rule(Moves(name, base, models)) for name in floats}
