"""Maps of three clusters, which any good map must keep apart, and how they are judged."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.manifold import trustworthiness

from codiemb_lib.space import maps


@pytest.fixture(scope="module")
def models() -> list[np.ndarray]:
    """Three clusters of 15 texts in six dimensions, seen by two models that differ a little."""
    rng = np.random.default_rng(0)
    space = np.repeat(np.eye(6)[:3], 15, axis=0) + 0.1 * rng.normal(size=(45, 6))
    return [space, space + 0.05 * rng.normal(size=space.shape)]


def test_each_model_gets_both_maps_of_all_texts(models, monkeypatch):
    def noisy_pca(spaces, *, neighbours, seed):  # the real one takes its time
        planes = maps.shared_pca(spaces)
        return planes + 0.1 * np.random.default_rng(seed).normal(size=planes.shape)

    monkeypatch.setattr(maps, "aligned_umap", noisy_pca)
    for table in maps.maps_of(models, neighbours=8, seeds=(0, 1)):
        assert table["map"].tolist() == ["umap"] * 45 + ["pca"] * 45
        assert np.isfinite(table[["x", "y"]]).all(axis=None)
        pca = table[table["map"] == "pca"]
        assert (pca["agreement"] == 1).all()
        assert pca["trust_low"].equals(pca["trust_high"])
        umap = table[table["map"] == "umap"].iloc[0]
        assert pca["trust"].iloc[0] > 0.9  # neighbours of clusters as clear as these are kept
        assert umap["trust_low"] <= umap["trust"] <= umap["trust_high"]
        assert 0 < umap["agreement"] < 1


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 20, 30])
def test_of_few_texts_fewer_neighbours_count_and_of_a_handful_the_pca_alone(models, caplog, n):
    spaces = [space[:: 45 // n][:n] for space in models]
    tables = maps.maps_of(spaces, neighbours=15, seeds=[0])
    for number, table in enumerate(tables):
        assert [*table["map"]] == ["umap"] * n * (n >= 5) + ["pca"] * n
        assert table.notna().all(axis=None)
        pca = table[table["map"] == "pca"]
        np.testing.assert_array_equal(pca[["x", "y"]], maps.shared_pca(spaces)[number])
        expected = 1.0
        if k := (n - 1) // 2:
            expected = trustworthiness(
                spaces[number], pca[["x", "y"]].to_numpy(), n_neighbors=k, metric="cosine"
            )
        assert pca["trust"].iloc[0] == expected
    assert f"maps of {n} texts: {(n - 1) // 2} neighbours, not 15: ['" in caplog.text


def test_aligned_maps_keep_clusters_in_one_place(models):
    planes = maps.aligned_umap(models, neighbours=8)
    assert planes.shape == (2, 45, 2)
    centres = planes.reshape(2, 3, 15, 2).mean(axis=2)
    apart = np.linalg.norm(centres[0] - np.roll(centres[0], 1, axis=0), axis=1).min()
    moved = np.linalg.norm(centres[0] - centres[1], axis=1).max()
    assert moved < apart / 2


def test_shared_pca_is_one_linear_map(models):
    first, second = maps.shared_pca(models)
    units = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in models]
    both = np.concatenate(units) - np.concatenate(units).mean(axis=0)
    energy = (np.concatenate([first, second]) ** 2).sum()
    assert energy == pytest.approx((np.linalg.svd(both, compute_uv=False)[:2] ** 2).sum())
    turned = maps.shared_pca([3 * models[0], models[1]])  # lengths do not count
    np.testing.assert_allclose(np.abs(turned[0]), np.abs(first), atol=1e-9)


def test_turned_and_shifted_maps_show_the_same():
    plane = np.random.default_rng(0).normal(size=(50, 2))
    assert maps.neighbours_kept(plane, plane @ [[0, 1], [-1, 0]] + 3, neighbours=5) == 1
    other = np.random.default_rng(1).normal(size=(50, 2))
    assert maps.neighbours_kept(plane, other, neighbours=5) < 0.3


def test_hash_is_that_of_the_saved_rows(tmp_path):
    points = pd.DataFrame({"x": [1 / 3, 2.0], "y": [1e-9 / 7, -5.123456789]})
    points.to_csv(tmp_path / "umap.csv", index=False, float_format="%.6g")
    saved = pd.read_csv(tmp_path / "umap.csv")
    assert maps.coordinates_hash(saved) == maps.coordinates_hash(points)
    assert maps.coordinates_hash(points.assign(x=[1 / 3, 2.001])) != maps.coordinates_hash(points)
