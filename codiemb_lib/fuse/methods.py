r"""Merging models that were trained from one base: the methods, each a small pure function.

Notation: :math:`\theta_0` is the base, :math:`\theta_1 \dots \theta_J` the models (checkpoints,
runs), :math:`\delta_j = \theta_j - \theta_0` how far model j moved. A method takes mappings from
names to tensors, and returns such a mapping; a tensor is worked out when it is asked for, so models
larger than the memory can be merged. Options are checked by `core/merge.py`.
"""

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from codiemb_lib.core import layer_of, sha256_text
from codiemb_lib.fuse.tensors import FusionError, Lazy, labels, wide

Weights = Mapping[str, Tensor]

_BLOCK = 1 << 21  # numbers; in smaller ones threads would wait for their turn in Python
_SAMPLE = 1 << 14  # about so many numbers say where a tensor's k-th largest lies


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

    def deltas(self, *, whole: bool = False) -> Iterator[Tensor]:
        r"""Blocks of :math:`\delta_j`, (J, block), or, where they are `whole`, :math:`\theta_j`."""
        origin, flat = self.origin.reshape(-1), [tensor.reshape(-1) for tensor in self.tensors]
        step = max(1, _BLOCK // len(flat))
        block = torch.empty(len(flat), min(len(origin), step), dtype=wide(origin.dtype))
        for at in range(0, len(origin), step):
            start, part = origin[at : at + step].to(block.dtype), block[:, : len(origin) - at]
            for row, tensor in zip(part, flat, strict=True):
                if whole:
                    row.copy_(tensor[at : at + step])
                else:
                    torch.sub(tensor[at : at + step].to(block.dtype), start, out=row)
            self._check_finite(part)
            yield part

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

    def move(self, rule: Callable[[Tensor], Tensor]) -> Tensor:
        """The base plus `rule(deltas)`, a function from (J, block) to (block,)."""
        origin, at = self.origin.reshape(-1), 0
        merged = torch.empty(len(origin), dtype=wide(origin.dtype))
        for deltas in self.deltas():
            where = slice(at, at := at + deltas.shape[1])
            torch.add(origin[where], rule(deltas), out=merged[where])
        return merged.view(self.origin.shape)

    def mix(self, coefficients: Sequence[float]) -> Tensor:
        r"""The sum of :math:`c_j \theta_j`; the base is not read."""
        merged = torch.empty(self.origin.numel(), dtype=wide(self.origin.dtype))
        flat = [tensor.reshape(-1) for tensor in self.tensors]
        for at in range(0, len(merged), _BLOCK):
            where = slice(at, at + _BLOCK)
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


def _merged(base: Weights, models: Sequence[Weights], rule: Callable[[Moves], Tensor]) -> Lazy:
    """The model whose tensors follow from a rule; integers, equal in all models, stay."""

    def work_out(name: str) -> Tensor:
        origin = base[name]
        return rule(Moves(name, base, models)) if origin.is_floating_point() else origin

    return Lazy(base, work_out)


def uniform(base: Weights, models: Sequence[Weights]) -> Lazy:
    r"""The uniform soup: :math:`\theta = \frac1J \sum_j \theta_j`.

    Source: Wortsman et al., Model soups, ICML 2022, arXiv 2203.05482.
    """
    return linear(base, models, weights=[1.0] * len(models))


def linear(base: Weights, models: Sequence[Weights], *, weights: Sequence[float]) -> Lazy:
    r"""The mean with given weights: :math:`\theta = \sum_j w_j \theta_j / \sum_j w_j`.

    Source: as for the uniform soup; the weights are normalised as mergekit does it.
    """
    shares = [weight / math.fsum(weights) for weight in weights]
    return _merged(base, models, lambda moves: moves.mix(shares))


def greedy(base: Weights, models: Sequence[Weights], *, score: Callable[[Weights], float]) -> Lazy:
    """The greedy soup: models join in the order of their scores if the soup is not worse for it.

    `score` takes a soup, before the `scale` of a merge, and returns a number, higher being better;
    measure on dev, never on test. The result's `kept` lists the numbers of the models in it.

    Source: Wortsman et al., Model soups, ICML 2022, arXiv 2203.05482, recipe 1.
    """

    def scored(model: Weights) -> float:
        if math.isnan(found := float(score(model))):
            raise FusionError("score: expected a number for every model, found NaN.")
        return found

    alone = [scored(model) for model in models]
    first, *others = sorted(range(len(models)), key=lambda j: -alone[j])
    kept, best = [first], alone[first]
    for j in others:
        found = scored(uniform(base, [models[k] for k in (*kept, j)]))
        if found >= best:
            kept, best = [*kept, j], found
    soup = uniform(base, [models[k] for k in kept])
    soup.kept = kept
    return soup


def slerp(base: Weights, models: Sequence[Weights], *, t: float = 0.5) -> Lazy:
    r"""Along the arc between two models, t = 0 being the first and t = 1 the second.

    .. math:: \theta = \frac{\sin((1-t)\omega)}{\sin\omega} \theta_1
              + \frac{\sin(t\omega)}{\sin\omega} \theta_2, \quad
              \cos\omega = \frac{\langle\theta_1, \theta_2\rangle}
              {\lVert\theta_1\rVert \lVert\theta_2\rVert}

    for each tensor; a straight line where they are nearly parallel (:math:`|\cos\omega| > 0.9995`).

    Source: Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985; per tensor of
    weights, and with these bounds, as in mergekit.
    """

    def rule(moves: Moves) -> Tensor:
        products = moves.products(whole=True)
        lengths = products.diagonal().sqrt()
        first, second = torch.where(lengths > 1e-8, lengths, 1.0).tolist()
        cosine = products[0, 1].item() / (first * second)
        if abs(cosine) > 0.9995:
            return moves.mix([1 - t, t])
        omega = math.acos(cosine)
        return moves.mix([math.sin(s * omega) / math.sin(omega) for s in (1 - t, t)])

    return _merged(base, models, rule)


def task_arithmetic(
    base: Weights, models: Sequence[Weights], *, weights: Sequence[float] | None = None
) -> Lazy:
    r"""The sum of the deltas: :math:`\theta = \theta_0 + \sum_j w_j \delta_j`, by default w = 1.

    Source: Ilharco et al., Editing models with task arithmetic, ICLR 2023, arXiv 2212.04089. Its
    coefficient is the `scale` of a merge.
    """
    weights = torch.tensor(weights or [1.0] * len(models))
    return _merged(base, models, lambda moves: moves.move(lambda d: weights.to(d.dtype) @ d))


def ties(
    base: Weights,
    models: Sequence[Weights],
    *,
    density: float = 0.2,
    weights: Sequence[float] | None = None,
) -> Lazy:
    r"""Trim, elect a sign, and average who agrees with it.

    Of each tensor's delta the entries of largest magnitude stay, a share of `density` (with all
    that equal the last of them): :math:`\hat\delta_j`. Then, entry by entry,

    .. math:: \gamma = \operatorname{sgn} \sum_j w_j \hat\delta_j, \quad
              \theta = \theta_0 + \frac{\sum_{j \in A} w_j \hat\delta_j}{\sum_{j \in A} w_j}, \quad
              A = \{j : \operatorname{sgn} \hat\delta_j = \gamma \ne 0\}.

    Source: Yadav et al., TIES-Merging, NeurIPS 2023, arXiv 2306.01708, with w = 1; it trims the
    model as one vector. By tensor, and with weights, as in mergekit.
    """
    weights = torch.tensor(weights or [1.0] * len(models))

    def rule(moves: Moves) -> Tensor:
        dropped = _most_dropped(moves, density)

        def elect(deltas: Tensor) -> Tensor:  # (J, block), changed in place
            # Signs as numbers: masks of bool would be slower.
            for row, limit, weight in zip(deltas, dropped, weights, strict=True):
                torch.hardshrink(row, limit, out=row)
                row.mul_(weight)
            # A matrix product would round w d - w d to more than zero.
            sign = sum(deltas.unbind()).sign_()
            agreeing = deltas.mul_(sign).clamp_(min=0)
            merged = sum(agreeing.unbind()).mul_(sign)
            total = torch.mv(agreeing.sign_().t(), weights.to(deltas.dtype))
            return merged.div_(total.clamp_(min=torch.finfo(total.dtype).tiny))

        return moves.move(elect)

    return _merged(base, models, rule)


def _most_dropped(moves: Moves, density: float) -> list[float]:
    """For each delta the number that exactly its share of largest magnitudes exceed."""
    size = moves.origin.numel()
    kept = max(1, int(density * size))
    if kept >= size:
        return [0.0] * len(moves.tensors)
    least = [_kth_largest(moves.only(j), kept) for j in range(len(moves.tensors))]
    # Just below the least that is kept: what equals it is kept as well.
    return [float(np.nextafter(number, number.dtype.type(0))) for number in least]


def _kth_largest(moves: Moves, k: int) -> np.floating:
    """The k-th largest magnitude of one delta, exactly.

    A sample says between which bounds it lies, all but surely; then only what lies there is sorted,
    a few numbers in a hundred. If it does not lie there, all are.
    """
    for low, high in (_sampled_bounds(moves, k), (0.0, math.inf)):
        above, to_high, to_low, between = 0, 0, 0, []  # how many are > high, >= high, >= low
        for deltas in moves.deltas():
            magnitudes = deltas[0].abs_().numpy()
            above += np.count_nonzero(magnitudes > high)
            to_high += np.count_nonzero(magnitudes >= high)
            to_low += np.count_nonzero(magnitudes >= low)
            between.append(magnitudes[(magnitudes > low) & (magnitudes < high)])
        if above < k <= to_low:
            break
    near, rank = np.concatenate(between), k - to_high
    if rank <= 0 or rank > len(near):  # many may equal a bound: they are counted, not kept
        return near.dtype.type(high if rank <= 0 else low)
    near.partition(len(near) - rank)
    return near[len(near) - rank]


def _sampled_bounds(moves: Moves, k: int) -> tuple[float, float]:
    """Two numbers with the k-th largest magnitude of one delta from one to the other, mostly."""
    size = moves.origin.numel()
    step = size // _SAMPLE | 1  # odd: else it might stay in one column of a matrix
    tensor, origin = (
        x.reshape(-1)[::step].to(wide(moves.origin.dtype)) for x in (moves.tensors[0], moves.origin)
    )
    sample = np.sort((tensor - origin).abs().numpy())[::-1]
    rank = k / size * len(sample)
    luck = 1 + 5 * math.sqrt(rank * (1 - k / size))  # rounding, and five standard deviations
    first, last = math.floor(rank - luck), math.ceil(rank + luck)
    return (
        float(sample[last]) if last < len(sample) else 0.0,
        float(sample[first]) if first >= 0 else math.inf,
    )


def dare(base: Weights, models: Sequence[Weights], *, density: float = 0.1, seed: int = 0) -> Lazy:
    r"""Drop entries of the deltas at random, rescale the rest, average.

    .. math:: \theta = \theta_0 + \frac1J \sum_j \frac{m_j \odot \delta_j}{\text{density}}, \quad
              m_j \sim \operatorname{Bernoulli}(\text{density})

    The random numbers depend on the seed, the tensor's name and the model's number alone.

    Source: Yu et al., Language models are Super Mario, ICML 2024, arXiv 2311.03099, whose drop rate
    is 1 - density.
    """

    def rule(moves: Moves) -> Tensor:
        digests = [sha256_text(str(seed), moves.name, str(j)) for j in range(len(models))]
        generators = [torch.Generator().manual_seed(int(text[:15], 16)) for text in digests]

        def drop(deltas: Tensor) -> Tensor:  # (J, block)
            size = deltas.shape[1]
            draws = torch.stack([torch.rand(size, generator=g) for g in generators])
            return (deltas * (draws < density)).mean(dim=0) / density

        return moves.move(drop)

    return _merged(base, models, rule)


def model_stock(base: Weights, models: Sequence[Weights], *, floor: float = 0.0) -> Lazy:
    r"""The point between base and mean that lies nearest to the centre of many such models.

    .. math:: \theta = t \bar\theta + (1 - t) \theta_0, \quad
              t = \frac{J \cos\omega}{1 + (J - 1) \cos\omega}

    for each tensor, :math:`\cos\omega` being the mean cosine between two of the deltas. Deltas that
    are zero count as at right angles to all, and where the denominator vanishes, the base stays.

    `floor` is the least product of two norms to divide by; mergekit has 1e-6, so that tensors
    which hardly moved stay nearer to the base.

    Source: Jang et al., Model Stock, ECCV 2024, arXiv 2403.19522, equation 7.
    """
    count = len(models)

    def rule(moves: Moves) -> Tensor:
        products = moves.products()
        norms = products.diagonal().sqrt()
        norms = torch.outer(norms, norms).clamp(min=max(floor, torch.finfo(norms.dtype).tiny))
        pairs = torch.triu_indices(count, count, offset=1).unbind()
        cosine = (products / norms).clamp(-1, 1)[pairs].mean().item()
        denominator = 1 + (count - 1) * cosine
        t = count * cosine / denominator if abs(denominator) >= 1e-6 else 0.0
        return moves.move(lambda deltas: t * deltas.mean(dim=0))

    return _merged(base, models, rule)


def delta(
    base: Weights,
    models: Sequence[Weights],
    *,
    granularity: str = "tensor",
    weighting: str = "power",
    power: float = 1.0,
    temperature: float = 1.0,
) -> Lazy:
    r"""Delta-guided fusion: who moved farther weighs more (or less, with a negative power).

    .. math:: \theta = \theta_0 + \sum_j w_j \delta_j, \quad
              w_j \propto \lVert\delta_j\rVert^p \quad\text{or}\quad
              w_j \propto \exp(\lVert\delta_j\rVert / (m T))

    The norm is over the model, a layer, a tensor or an element; m is its mean over the J models,
    so that the temperature T has no unit.

    Source: CoDiEmb, arXiv 2508.11442, gives no equation; this is the family that it allows. p = 0
    is the uniform soup; p = 2 a tensor FuseChat's VaRM (arXiv 2408.07990); p = 2 over the model
    MetaGPT's coefficient (arXiv 2406.11385).
    """
    weigh = partial(_shares, weighting=weighting, power=power, temperature=temperature)
    if granularity == "element":
        return _merged(base, models, lambda m: m.move(lambda d: (weigh(d.abs()) * d).sum(dim=0)))
    weights_of = _weights_of(base, models, granularity, weigh)
    # The weights sum to one: the base cancels.
    return _merged(base, models, lambda moves: moves.mix(weights_of(moves).tolist()))


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


def _weights_of(
    base: Weights, models: Sequence[Weights], granularity: str, weigh: Callable[[Tensor], Tensor]
) -> Callable[[Moves], Tensor]:
    """The function from one tensor's moves to its weights: (J,), or (J, *shape) by element."""
    if granularity == "tensor":
        return lambda moves: weigh(moves.norms())
    if granularity == "element":
        return lambda moves: weigh(
            torch.cat([deltas.abs() for deltas in moves.deltas()], dim=1)
        ).view(-1, *moves.origin.shape)
    group = layer_of if granularity == "layer" else lambda name: "model"
    squares: dict[int | str | None, Tensor] = defaultdict(lambda: torch.zeros(()))
    for name, norms in delta_norms(base, models).items():
        squares[group(name)] = squares[group(name)] + norms.square()
    weights = {key: weigh(total.sqrt()) for key, total in squares.items()}
    return lambda moves: weights[group(moves.name)]


def _by_tensor(
    base: Weights, models: Sequence[Weights], rule: Callable[[Moves], Tensor]
) -> dict[str, Tensor]:
    floats = (name for name in base if base[name].is_floating_point())
    return {name: rule(Moves(name, base, models)) for name in floats}


@torch.no_grad()
def delta_guided_weights(
    base: Weights, models: Sequence[Weights], *, granularity: str = "tensor", **options: Any
) -> dict[str, Tensor]:
    """What :func:`delta`, with the same options, weighs J models by, for each float tensor.

    They are (J,), or (J, *shape) by element, and sum to one over J, equal where all deltas
    are zero. With a negative power, models that did not move share the whole weight.
    """
    weigh = partial(_shares, **options)
    return _by_tensor(base, models, _weights_of(base, models, granularity, weigh))


@torch.no_grad()
def delta_norms(base: Weights, models: Sequence[Weights]) -> dict[str, Tensor]:
    """Euclidean norms of the J deltas, (J,), for each float tensor."""
    return _by_tensor(base, models, Moves.norms)
