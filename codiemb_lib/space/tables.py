"""The space that a model makes of data sets: its measures by kind of text, and layer by layer.

A *space* is what `load_encoded` returns: the embeddings of one model. Retrieval and similarity
texts, and queries and passages, lie in different parts of it and are measured apart and together.
Kinds of which the data sets have too few texts are left out.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import torch

from codiemb_lib.evaluate import EncodedDataset, texts_of
from codiemb_lib.model import Encoder
from codiemb_lib.space import measures
from codiemb_lib.space.intervals import jackknife_intervals, mean_interval

COLUMNS = ("texts", "measure", "value", "low", "high", "n")  # of `measures_by_kind`
SIMILAR = 0.8  # from this score on, people's, an STS pair is a positive
DISSIMILAR = 0.2  # up to this score it is a negative
FEWEST_TEXTS = 20  # of a kind, for the measures that depend on how many there are
MOST_TEXTS = 5000  # of a kind whose pairs are all looked at, for uniformity
BINS = np.linspace(-1, 1, 41)  # edges of the histograms of cosines
_BLOCK = 512  # queries whose cosines with all passages are held at once
_BATCH = 32  # texts whose states of all layers are held at once

# Those that depend on how many texts there are, in the order in which `_by_rank` returns them.
_BY_RANK = ("effective_rank", "svd_entropy", "isoscore", "hubness", "intrinsic_dimension")


def positive_pairs(space: Iterable[EncodedDataset]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What should lie close, as two arrays (m, D) each: queries and their passages (`ir`), and
    pairs that people rated `SIMILAR` or more (`sts`); two pairs at least."""
    pairs: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"ir": [], "sts": []}
    for d in space:
        rows = _positives(d)
        pairs[d.task].append((d.queries[rows[:, 0]], d.passages[rows[:, 1]]))
    joined = {
        kind: tuple(map(np.concatenate, zip(*sides, strict=True)))
        for kind, sides in pairs.items()
        if sides
    }
    return {kind: sides for kind, sides in joined.items() if len(sides[0]) >= 2}


def _positives(dataset: EncodedDataset) -> np.ndarray:
    """Rows (query, passage) that belong together, (m, 2)."""
    if dataset.task == "ir":
        rows = [(i, row) for i, found in enumerate(dataset.gold) for row in found]
        return np.array(rows, dtype=int).reshape(-1, 2)
    return np.flatnonzero(np.asarray(dataset.gold) >= SIMILAR)[:, None].repeat(2, axis=1)


def equal_texts(space: Iterable[EncodedDataset], most: int = 300) -> dict[str, np.ndarray]:
    """As `texts_of`, but as many of each kind: of the smallest kind all, and `most` at most.

    They are evenly spaced over the data sets: the same for every model of the same texts. Kinds of
    fewer than `FEWEST_TEXTS` are left out.
    """
    texts = {kind: x for kind, x in texts_of(space).items() if len(x) >= FEWEST_TEXTS}
    count = min([most, *map(len, texts.values())])
    return {kind: _spread(x, count) for kind, x in texts.items()}


def _spread(x: np.ndarray, most: int) -> np.ndarray:
    """At most that many rows, evenly spaced."""
    return x if len(x) <= most else x[np.linspace(0, len(x) - 1, most).astype(int)]


def measures_by_kind(space: Sequence[EncodedDataset], *, most: int = 300) -> pd.DataFrame:
    """Rows (texts, measure, value, low, high, n): all measures of one model, with 95 % intervals.

    - of all texts of a kind: `anisotropy`, `uniformity` (of `MOST_TEXTS` at most); of what belongs
      together, as in `positive_pairs`: `alignment`, `cosine_gap`. Their intervals are Student's
      over texts; that of alignment over its pairs, as if they were independent, which is too short
      where queries have several passages.
    - of `equal_texts`, `most` of a kind, for they depend on n: `effective_rank`, `svd_entropy`,
      `isoscore`, `hubness`, `intrinsic_dimension`; their intervals are those of the jackknife. And
      `condition_number`, which is an extreme and has none: `low` and `high` are missing.

    `n` counts the texts, or the pairs. Embeddings of zeros, or not finite, are a ValueError.
    """
    rows = []

    def add(kind: str, name: str, by_text: np.ndarray, **options) -> None:
        found = mean_interval(by_text, **options)
        if name == "uniformity":  # the low end of an interval may lie below any potential
            found = np.log(np.maximum(found, np.exp(-8.0)))
        rows.append((kind, name, *map(float, found), len(by_text)))

    for kind, x in texts_of(space).items():
        add(kind, "anisotropy", measures.anisotropy_by_text(x), pairwise=True)
        potentials = measures.potential_by_text(_spread(x, MOST_TEXTS))
        add(kind, "uniformity", potentials, pairwise=True)
    for kind, pair in positive_pairs(space).items():
        add(kind, "alignment", measures.alignment_by_text(*pair))
        if len(gaps := _gaps(space, kind)) >= 2:
            add(kind, "cosine_gap", gaps)
    for kind, x in equal_texts(space, most).items():
        found = jackknife_intervals(_by_rank, x)
        rows += [
            (kind, name, *map(float, interval), len(x))
            for name, interval in zip(_BY_RANK, np.transpose(found), strict=True)
        ]
        number = measures.spectrum(x).condition_number
        rows.append((kind, "condition_number", number, np.nan, np.nan, len(x)))
    return pd.DataFrame(rows, columns=COLUMNS)


def _by_rank(x: np.ndarray) -> list[float]:
    found = measures.spectrum(x)
    others = [measures.isoscore(x), measures.hubness(x), measures.intrinsic_dimension(x)]
    return [found.effective_rank, found.svd_entropy, *others]


def _gaps(space: Iterable[EncodedDataset], kind: str) -> np.ndarray:
    """The cosine gap of every query that has a positive, and another passage, in its data set."""
    gaps = [np.empty(0)]
    for d in space:
        if d.task == kind:
            rows = _positives(d)
            count = np.bincount(rows[:, 0], minlength=len(d.queries))
            rows = rows[count[rows[:, 0]] < len(d.passages)]
            if len(rows):
                gaps.append(measures.cosine_gap_by_text(d.queries, d.passages, rows))
    return np.concatenate(gaps)


def measures_by_layer(
    encoder: Encoder, texts: Sequence[str], prompts: Sequence[str] | None = None
) -> pd.DataFrame:
    """Rows (level, layer, measure, value, low, high, n); layer 0 is the input embeddings.

    - `token`: of each text's own token matrix, `cosine`, `effective_rank` and `svd_entropy`, as
      means over texts with Student's interval, and the median `condition_number`, for
      one can be huge, without an interval (low and high are missing).
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
    for start in range(0, len(order), _BATCH):
        block = encoder.tokenizer.pad([tokens[i] for i in order[start : start + _BATCH]])
        layers, mask = encoder.token_states(block)
        smoothing.append([measures.over_smoothing(states, block.lengths) for states in layers])
        pooled.append(torch.stack([encoder.pool(states, mask) for states in layers]).numpy())
    of_tokens = np.concatenate(smoothing, axis=2)  # (L, measures, n)
    sentences = np.concatenate(pooled, axis=1)  # (L, n, D)
    rows, mean = [], mean_interval
    for layer, (of_texts, space) in enumerate(zip(of_tokens, sentences, strict=True)):
        cosines, ranks, entropies, numbers = of_texts
        by_text, rank = measures.anisotropy_by_text(space), measures.spectrum(space).effective_rank
        rows += [
            ("token", layer, "cosine", *mean(cosines)),
            ("token", layer, "effective_rank", *mean(ranks)),
            ("token", layer, "svd_entropy", *mean(entropies)),
            ("token", layer, "condition_number", np.median(numbers), np.nan, np.nan),
            ("sentence", layer, "cosine", *mean(by_text, pairwise=True)),
            ("sentence", layer, "effective_rank", rank, np.nan, np.nan),
        ]
    columns = ["level", "layer", "measure", "value", "low", "high"]
    return pd.DataFrame(rows, columns=columns).assign(n=len(tokens))


def spectra(space: Iterable[EncodedDataset], most: int = 300) -> pd.DataFrame:
    """Rows (texts, index, singular_value) of `equal_texts`: shares of their sum, index from 1."""
    rows = []
    for kind, x in equal_texts(space, most).items():
        values = measures.spectrum(x).singular_values
        rows += [(kind, i, share) for i, share in enumerate(values / values.sum(), start=1)]
    return pd.DataFrame(rows, columns=["texts", "index", "singular_value"])


def cosine_histograms(space: Iterable[EncodedDataset]) -> pd.DataFrame:
    """Rows (task, pairs, cosine, share, n): where the cosines of three sorts of pairs lie.

    - `positive`: a query and each of its passages; an STS pair that people rated `SIMILAR` or more.
    - `negative`: a query and the most similar passage that is none of its own, the one which costs
      rank; an STS pair rated `DISSIMILAR` or less.
    - `random`: all other combinations of a query and a passage of one data set, with different
      words. Of an STS set these are a first and a second text of two pairs; where texts recur, a
      few of them are rated pairs as well.

    `cosine` is the left end of a bin of `BINS`, `share` the part of the `n` pairs in it, which sum
    to one. Sorts without pairs are left out.
    """
    counts: dict[tuple[str, str], np.ndarray] = {}

    def count(task: str, pairs: str, cosines: np.ndarray) -> None:
        found, _ = np.histogram(np.clip(cosines, -1, 1), BINS)
        counts[task, pairs] = counts.get((task, pairs), 0) + found

    for d in space:
        rows = _positives(d)
        count(d.task, "positive", _cosines(d.queries[rows[:, 0]], d.passages[rows[:, 1]]))
        if d.task == "sts":
            low = np.asarray(d.gold) <= DISSIMILAR
            count("sts", "negative", _cosines(d.queries[low], d.passages[low]))
            rows = np.arange(len(d.queries))[:, None].repeat(2, axis=1)  # none with itself
        words = np.array(d.passage_texts, dtype=object)
        for top in range(0, len(d.queries), _BLOCK):
            cosines = d.queries[top : top + _BLOCK] @ d.passages.T
            other = words != np.array(d.query_texts[top : top + _BLOCK], dtype=object)[:, None]
            here = rows[(rows[:, 0] >= top) & (rows[:, 0] < top + _BLOCK)]
            other[here[:, 0] - top, here[:, 1]] = False
            count(d.task, "random", cosines[other])
            if d.task == "ir":
                nearest = np.where(other, cosines, -np.inf).max(axis=1)
                count("ir", "negative", nearest[np.isfinite(nearest)])
    table = [
        (task, pairs, cosine, number / found.sum(), found.sum())
        for (task, pairs), found in counts.items()
        if found.sum()
        for cosine, number in zip(BINS[:-1].round(6), found, strict=True)
    ]
    return pd.DataFrame(table, columns=["task", "pairs", "cosine", "share", "n"])


def rated_pairs(space: Iterable[EncodedDataset]) -> pd.DataFrame:
    """Rows (dataset, pair, gold, cosine): each STS pair's score by people, 0 to 1, and its
    cosine; `pair` counts from 0."""
    rows = []
    for d in space:
        if d.task == "sts":
            rated = zip(d.gold, _cosines(d.queries, d.passages).astype(float), strict=True)
            rows += [(d.name, i, float(gold), cosine) for i, (gold, cosine) in enumerate(rated)]
    return pd.DataFrame(rows, columns=["dataset", "pair", "gold", "cosine"])


def _cosines(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of each row with its partner, (n,)."""
    return np.einsum("nd,nd->n", x, y)
