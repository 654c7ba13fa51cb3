"""Over-smoothing: what the layers of an encoder do to its tokens and its sentences, one by one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from codiemb_lib.core import mean_interval
from codiemb_lib.model import Encoder
from codiemb_lib.space.measures import OverSmoothing, anisotropy_by_text, over_smoothing, spectrum

BATCH = 32  # texts whose states of all layers are held at once


def measures_by_layer(
    encoder: Encoder, texts: Sequence[str], prompts: Sequence[str] | None = None
) -> pd.DataFrame:
    """Rows (level, layer, measure, value, low, high, n); layer 0 is the input embeddings.

    - `token`: of each text's own token matrix, `cosine` and `effective_rank`, as means over texts
      with the interval of the bootstrap, and the median `condition_number`, for one can be huge,
      without an interval (low and high are missing).
    - `sentence`: of the states of a layer pooled as the encoder pools its last, `cosine` (their
      anisotropy, with its interval) and `effective_rank` (without: it depends on n).

    Args:
        encoder: What is looked at; put in evaluation mode.
        texts: Two or more, each of two tokens or more, special tokens included.
        prompts: One for each; left out: none.
    """
    encoder.eval()
    tokens = encoder.tokenizer(texts, prompts or [""] * len(texts))
    order = np.argsort([len(text.ids) for text in tokens], kind="stable")
    smoothing, pooled = [], []
    for start in range(0, len(order), BATCH):
        block = encoder.tokenizer.pad([tokens[i] for i in order[start : start + BATCH]])
        layers, mask = encoder.token_states(block)
        smoothing.append([over_smoothing(states, block.lengths) for states in layers])
        pooled.append(torch.stack([encoder.pool(states, mask) for states in layers]).numpy())
    of_tokens = np.concatenate(smoothing, axis=2)  # (L, measures, n)
    sentences = np.concatenate(pooled, axis=1)  # (L, n, D)
    rows = []
    for layer, (measured, space) in enumerate(zip(of_tokens, sentences, strict=True)):
        alike = OverSmoothing(*measured)
        rows.append(("token", layer, "cosine", *_mean(alike.cosine)))
        rows.append(("token", layer, "effective_rank", *_mean(alike.effective_rank)))
        median = np.median(alike.condition_number)
        rows.append(("token", layer, "condition_number", median, np.nan, np.nan))
        rows.append(("sentence", layer, "cosine", *_mean(anisotropy_by_text(space), True)))
        rank = spectrum(space).effective_rank
        rows.append(("sentence", layer, "effective_rank", rank, np.nan, np.nan))
    columns = ["level", "layer", "measure", "value", "low", "high"]
    return pd.DataFrame(rows, columns=columns).assign(n=len(tokens))


def _mean(values: np.ndarray, pairwise: bool = False) -> tuple[float, float, float]:
    return mean_interval(values, resamples=999, pairwise=pairwise)
