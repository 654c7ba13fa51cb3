"""Over-smoothing: how alike a model makes the tokens of a text, layer by layer.

The measures of `geometry`, each taken of the token matrix of one text; pure functions of padded
token states.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from codiemb_lib.space.geometry import anisotropy, as_array, spectrum


class OverSmoothing(NamedTuple):
    """One value a text: float64 arrays of shape (B,), or (L, B) by layer.

    Of T tokens in D dimensions, L = min(T, D):

    - `cosine`: mean cosine of distinct tokens, in [-1/(T-1), 1]; 1 is a text whose tokens all point
      one way, so lower is better.
    - `rank`: of the token matrix, from 1 to L; `effective_rank`, in [1, L], and `svd_entropy`, in
      [0, 1], weigh its singular values; higher is better.
    - `condition_number`: at least 1, lower is better; infinite where the rank is below L.

    Formulas and sources: `geometry.anisotropy`, `geometry.spectrum`. A rank is bounded by the
    tokens of its text: compare models on the same texts.
    """

    cosine: np.ndarray
    rank: np.ndarray
    effective_rank: np.ndarray
    svd_entropy: np.ndarray
    condition_number: np.ndarray


def over_smoothing(states: ArrayLike, lengths: ArrayLike) -> OverSmoothing:
    """Measures of each text's own token matrix; what is padding is not looked at.

    The mean over texts is the measure of a layer (mean token cosine: Shi et al., ICLR 2022);
    `intervals.mean_interval` has its interval. Batches may be measured apart and joined. One
    condition number can be huge: beside the mean, look at the median.

    Args:
        states: (B, T, D), padded on the right.
        lengths: (B,), tokens of each text, from 2 to T.

    Raises:
        ValueError: Other shapes or lengths, or a token that is zeros, not real or not finite.
    """
    states, lengths = as_array(states), np.asarray(lengths)
    if states.ndim != 3 or lengths.shape != states.shape[:1] or not len(lengths):
        raise ValueError(
            "over_smoothing: expected states of shape (B, T, D) and lengths of shape (B,), found "
            f"{states.shape} and {lengths.shape}."
        )
    if wrong := [i for i, length in enumerate(lengths) if not 2 <= length <= states.shape[1]]:
        raise ValueError(
            f"over_smoothing: expected lengths from 2 to {states.shape[1]}, found "
            f"{lengths[wrong[0]]} of text {wrong[0]}. A single token has nothing to be like: leave "
            "such texts out."
        )
    values = []
    for i, length in enumerate(lengths):
        tokens = states[i, :length]
        try:
            found = spectrum(tokens)
            cosine = anisotropy(tokens)
        except ValueError as error:
            raise ValueError(f"over_smoothing: tokens of text {i}: {error}") from error
        values.append(
            (
                cosine,
                found.rank,
                found.effective_rank,
                found.svd_entropy,
                found.condition_number,
            )
        )
    return OverSmoothing(*np.array(values, dtype=np.float64).T)


def over_smoothing_by_layer(layers: Iterable[ArrayLike], lengths: ArrayLike) -> OverSmoothing:
    """`over_smoothing` of the states of each layer, (B, T, D) each: arrays of shape (L, B).

    `layers` are such as a transformers model returns as `hidden_states`: the input embeddings
    first. Averaged over their last axis, the arrays are curves by layer.

    Raises:
        ValueError: As `over_smoothing`, or no layers.
    """
    measured = [over_smoothing(states, lengths) for states in layers]
    if not measured:
        raise ValueError("over_smoothing_by_layer: expected a layer or more, found none.")
    return OverSmoothing(*map(np.stack, zip(*measured, strict=True)))
