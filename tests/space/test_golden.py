"""Golden values of geometry: every measure on fixed vectors, by kind of text and by layer."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from codiemb_lib.evaluate import EncodedDataset
from codiemb_lib.space import associations, maps, measures, tables
from tests.conftest import tiny_architecture
from tests.golden import check, summary, unit_rows

D = 12


def cone(n: int, seed: int) -> np.ndarray:
    """Rows about a common direction, of unlike lengths."""
    rows = np.random.default_rng(seed).normal(size=(n, D)) * np.linspace(0.3, 1.5, D) + 0.4
    return rows.astype(np.float32)


def space() -> list[EncodedDataset]:
    texts = {kind: [f"{kind} {i}" for i in range(60)] for kind in "qps"}
    rng = np.random.default_rng(3)

    def near(x: np.ndarray) -> np.ndarray:
        y = x + 0.4 * rng.normal(size=x.shape)
        return (y / np.linalg.norm(y, axis=1, keepdims=True)).astype(np.float32)

    passages, left = measures.unit_rows(cone(50, 1), 2), measures.unit_rows(cone(40, 2), 2)
    gold = [[i, i + 1] for i in range(30)]
    queries, right = near(passages[:30]), near(left)
    scores = rng.integers(0, 6, 40) / 5
    return [
        EncodedDataset("a", "ir", texts["q"][:30], texts["p"][:50], queries, passages, gold),
        EncodedDataset("b", "sts", texts["s"][:40], texts["s"][20:60], left, right, scores),
    ]


def geometric() -> dict:
    x, y = cone(600, 0), cone(600, 1)  # more than a tile
    pairs = np.array([[0, 1], [0, 2], [3, 3], [5, 0], [3, 3]])
    same = np.arange(600)[:, None].repeat(2, axis=1)
    return {
        "anisotropy": measures.anisotropy(x),
        "anisotropy_by_text": summary(measures.anisotropy_by_text(x)),
        "uniformity": [measures.uniformity(x), measures.uniformity(x, t=1.0)],
        "potential_by_text": summary(measures.potential_by_text(x)),
        "alignment": [measures.alignment_by_text(x, y, alpha).mean() for alpha in (2.0, 1.0)],
        "alignment_by_text": summary(measures.alignment_by_text(x, y)),
        "cosine_gap": [measures.cosine_gap_by_text(x, y, rows).mean() for rows in (same, pairs)],
        "cosine_gap_by_text": measures.cosine_gap_by_text(x, y, pairs),
        "spectrum": measures.spectrum(x)._asdict(),
        "spectrum, few": measures.spectrum(np.vstack([x[:4], x[:4]]))._asdict(),
        "isoscore": measures.isoscore(x),
        "hubness": [measures.hubness(x, k=k) for k in (1, 10)],
        "intrinsic_dimension": measures.intrinsic_dimension(x),
    }


def tokens() -> dict:
    states, lengths = np.random.default_rng(5).normal(size=(2, 4, 7, D)) + 0.5, [7, 2, 5, 3]
    names = ("cosine", "effective_rank", "svd_entropy", "condition_number")
    layers = [measures.over_smoothing(layer, lengths) for layer in states]
    by_layer = np.stack(layers, axis=1)
    return {
        "one": dict(zip(names, layers[0], strict=True)),
        "by layer": dict(zip(names, by_layer, strict=True)),
    }


def of_space() -> dict:
    return {
        "measures": tables.measures_by_kind(space(), most=30),
        "equal texts": {kind: summary(x) for kind, x in tables.equal_texts(space(), 25).items()},
        "spectra": tables.spectra(space(), 25),
        "rated pairs": tables.rated_pairs(space()).drop(columns="dataset"),
        "histograms": {
            f"{task} {pairs}": [int(rows["n"].iloc[0]), rows["share"].tolist()]
            for (task, pairs), rows in tables.cosine_histograms(space()).groupby(["task", "pairs"])
        },
    }


def by_layer() -> dict:
    texts = ["find the old cat", "a red bus is fast", "the dog", "blue car in the new bus"]
    encoder = tiny_architecture("bert")
    return {
        "plain": tables.measures_by_layer(encoder, texts),
        "with prompts": tables.measures_by_layer(encoder, texts, ["query: "] * len(texts)),
    }


def of_maps() -> dict:
    spaces = [unit_rows(40, D, seed=seed) for seed in (0, 1)]
    planes = maps.shared_pca(spaces)
    return {
        "pca": summary(planes),
        "kept": maps.neighbours_kept(*planes, neighbours=5),
        "hash": maps.coordinates_hash(pd.DataFrame({"x": [1.0, 0.25], "y": [-3.5, 1 / 3]})),
    }


def of_models() -> dict:
    rng = np.random.default_rng(2)
    models = [(f"m{i}", seed) for i in range(7) for seed in (0, 1)]
    of_model = rng.normal(size=len(models))
    rows = [
        {"variant": variant, "seed": seed, "texts": "all", "measure": name, "value": value}
        for (variant, seed), x in zip(models, of_model, strict=True)
        for name, value in {"a": x + 0.5 * rng.normal(), "b": np.inf if x > 1 else -x}.items()
    ]
    scores = [
        {"variant": variant, "seed": seed, "task": task, "dataset": dataset, "metric": metric}
        | {"value": x + rng.normal() / 3}
        for (variant, seed), x in zip(models, of_model, strict=True)
        for task, metric in {"ir": "ndcg@10", "sts": "spearman"}.items()
        for dataset in "xy"
    ]
    points = associations.with_scores(pd.DataFrame(rows), pd.DataFrame(scores), ["variant", "seed"])
    found = associations.rank_correlations(points, ["measure", "task"])
    return {"correlations": found, "points": points[["value", "score"]].sum().to_dict()}


CASES = {
    "geometry": geometric,
    "tokens": tokens,
    "space": of_space,
    "layers": by_layer,
    "maps": of_maps,
    "associations": of_models,
}


@pytest.mark.parametrize("case", CASES)
def test_golden(case):
    check("space", {case: CASES[case]()})
