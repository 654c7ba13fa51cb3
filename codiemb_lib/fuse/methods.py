r"""Merging models that were trained from one base: the methods, each a small pure function.

A method takes mappings from names to tensors, and returns such a mapping; a tensor is worked out
when it is asked for, so models larger than the memory can be merged. Options are checked by
`core/merge.py`; `moves.py` says what the letters mean. The method `delta` has a module of its own.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from codiemb_lib.core import layer_of, sha256_text
from codiemb_lib.fuse.delta import delta as delta
from codiemb_lib.fuse.moves import Moves, Weights, merged
from codiemb_lib.fuse.tensors import FusionError, Lazy, wide

_SAMPLE = 1 << 14  # about so many numbers say where a tensor's k-th largest lies


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
    return merged(base, models, lambda moves: moves.mix(shares))


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

    return merged(base, models, rule)


def task_arithmetic(
    base: Weights, models: Sequence[Weights], *, weights: Sequence[float] | None = None
) -> Lazy:
    r"""The sum of the deltas: :math:`\theta = \theta_0 + \sum_j w_j \delta_j`, by default w = 1.

    Source: Ilharco et al., Editing models with task arithmetic, ICLR 2023, arXiv 2212.04089. Its
    coefficient is the `scale` of a merge.
    """
    weights = torch.tensor(weights or [1.0] * len(models))
    return merged(base, models, lambda moves: moves.move(lambda d: weights.to(d.dtype) @ d))


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

    return merged(base, models, rule)


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

    return merged(base, models, rule)


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

    return merged(base, models, rule)


def learned(
    base: Weights,
    models: Sequence[Weights],
    *,
    gradient: Callable[[dict[str, Tensor]], Mapping[str, Tensor]],
    granularity: str = "model",
    steps: int = 50,
    rate: float = 0.02,
) -> Lazy:
    r"""Coefficients of the deltas that lower training losses, from the soup on, by Adam.

    .. math:: \theta = \theta_0 + \sum_j c_{jl} \delta_j, \quad
              \frac{\partial L}{\partial c_{jl}} = \sum_{t \in l}
              \langle \nabla_t L, \delta_{jt} \rangle

    with one coefficient for a model or, by layer, one for each of its layers l. `gradient` takes a
    model and returns, by tensor, the gradient of a loss on a training batch that it draws itself:
    never of dev or test. The result's `coefficients` are (layers, J).

    Source: Self Positioning, arXiv 2410.15035; AdaMerging (Yang et al., ICLR 2024, arXiv
    2310.02575), which lowers the entropy of predictions instead.
    """
    group = layer_of if granularity == "layer" else lambda name: None
    names = [name for name in base if base[name].is_floating_point()]
    rows = {key: row for row, key in enumerate(dict.fromkeys(map(group, names)))}
    chosen = torch.full((len(rows), len(models)), 1 / len(models), requires_grad=True)
    adam = torch.optim.Adam([chosen], lr=rate)

    def rule(moves: Moves) -> Tensor:
        own = chosen.detach()[rows[group(moves.name)]]
        return moves.move(lambda deltas: own.to(deltas.dtype) @ deltas)

    soup = merged(base, models, rule)
    for _ in range(steps):
        with torch.enable_grad():
            found = gradient({name: soup[name] for name in base})
        chosen.grad = torch.zeros_like(chosen)
        for name in names:
            if name in found:
                chosen.grad[rows[group(name)]] += Moves(name, base, models).along(found[name])
        adam.step()
    soup.coefficients = chosen.detach()
    return soup


def regmean(base: Weights, models: Sequence[Weights]) -> Lazy:
    r"""Each matrix follows each model on the inputs that this model's own delta reacts to.

    .. math:: \theta = \theta_0 + \Bigl(\sum_j \delta_j C_j\Bigr) \Bigl(\sum_j C_j\Bigr)^{+},
              \quad C_j = \delta_j^\top \delta_j

    for matrices (outputs, inputs) in layers: the least squares of RegMean, whose covariances of
    inputs :math:`C_j` are read off the deltas; with the pseudo-inverse, so that directions in which
    nobody moved stay. Vectors, embeddings and what lies outside layers are the mean.

    Source: Jin et al., Dataless knowledge fusion (RegMean), ICLR 2023, arXiv 2212.09849; the
    covariances as in ACE-Merging, arXiv 2603.02945.
    """

    def rule(moves: Moves) -> Tensor:
        layer = layer_of(moves.name)
        if moves.origin.ndim != 2 or layer is None or layer < 0:
            return moves.mix([1 / len(models)] * len(models))
        deltas = moves.whole_deltas().view(-1, *moves.origin.shape).double()  # (J, outputs, inputs)
        covariances = deltas.mT @ deltas
        both = (deltas @ covariances).sum(dim=0)
        move = both @ torch.linalg.pinv(covariances.sum(dim=0), hermitian=True)
        return moves.origin.to(wide(moves.origin.dtype)) + move.to(wide(moves.origin.dtype))

    return merged(base, models, rule)


def sce(base: Weights, models: Sequence[Weights], *, density: float = 1.0) -> Lazy:
    r"""Select where the models differ, calculate what each weighs, erase who disagrees.

    Of each tensor the entries whose deltas vary most over the models stay, a share of `density` of
    those that vary at all: :math:`\hat\delta_j`. With :math:`c_j` the mean of
    :math:`\hat\delta_j^2` over the tensor, as a part of its sum over models,

    .. math:: \theta = \theta_0 + \frac{\sum_{j \in A} c_j \hat\delta_j}{\sum_{j \in A} c_j}, \quad
              A = \{j : \operatorname{sgn} \hat\delta_j =
              \operatorname{sgn} \sum_i \hat\delta_i\},

    where a sum of zero counts as positive.

    Source: Wan et al., FuseChat, arXiv 2408.07990 (SCE), as in mergekit, but for this: there all
    :math:`c_j` are equal where their sum is below 1e-6 before they are parts of it, as in most
    tensors of fine-tuned models.
    """

    def rule(moves: Moves) -> Tensor:
        deltas = moves.whole_deltas()  # (J, n)
        if density < 1:
            variance = deltas.var(dim=0, unbiased=False)
            kept = int(torch.count_nonzero(variance) * density)
            mask = torch.zeros_like(variance)
            mask[variance.topk(kept).indices] = 1
            deltas = deltas * mask
        coefficients = deltas.square().mean(dim=1)
        total = coefficients.sum()
        even = torch.full_like(coefficients, 1 / len(models))
        coefficients = torch.where(total > 0, coefficients / total, even)
        elected = torch.where(deltas.sum(dim=0) >= 0, 1.0, -1.0)
        weights = coefficients[:, None] * (deltas.sign() == elected)
        move = (weights * deltas).sum(dim=0)
        move /= weights.sum(dim=0).clamp(min=torch.finfo(move.dtype).tiny)
        return moves.origin.to(move.dtype) + move.view(moves.origin.shape)

    return merged(base, models, rule)
