"""Maps of embedding spaces in two dimensions, to be laid side by side, and their trust."""

import hashlib
import logging
import warnings
from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.manifold import trustworthiness
from sklearn.neighbors import NearestNeighbors

from codiemb_lib.space.measures import unit_rows

logger = logging.getLogger(__name__)


def aligned_umap(spaces: Sequence[np.ndarray], *, neighbours: int, seed: int = 0) -> np.ndarray:
    """UMAP of several models' embeddings (n, D) of the same n texts, in one plane: (models, n, 2).

    One aligned fit (`umap.AlignedUMAP`): each model keeps the distances of a text to its own
    `neighbours`, and each text is drawn towards its place on the maps of the models before and
    after, so that the maps can be compared. A single fit to all rows joined would not do: a text's
    nearest neighbours then are itself in the other models, and all maps come out alike. One model
    gets plain UMAP.
    """
    from umap import UMAP, AlignedUMAP  # takes seconds to import

    units = [unit_rows(x, rows=3) for x in spaces]
    options = {"n_neighbors": neighbours, "metric": "cosine", "random_state": seed}
    with warnings.catch_warnings():  # that a seed leaves one thread
        warnings.filterwarnings("ignore", "n_jobs value")
        if len(units) == 1:
            return UMAP(n_jobs=1, **options).fit_transform(units[0])[None]
        same = [{i: i for i in range(len(units[0]))}] * (len(units) - 1)
        fit = AlignedUMAP(transform_seed=seed, **options).fit(units, relations=same)
    return np.stack([np.asarray(plane) for plane in fit.embeddings_])


def shared_pca(spaces: Sequence[np.ndarray]) -> np.ndarray:
    """The first two principal components of all models' unit rows together: (models, n, 2).

    One linear map for all of them, so that distances are true but for what other directions hold.
    """
    units = unit_rows(np.concatenate(spaces), rows=2)
    return PCA(2, svd_solver="full").fit_transform(units).reshape(len(spaces), -1, 2)


def neighbours_kept(plane: np.ndarray, other: np.ndarray, *, neighbours: int) -> float:
    """Share of a text's neighbours on one map (n, 2) that are its neighbours on another, mean.

    1 says that two fits show the same; rotation and shift do not matter.
    """
    search = NearestNeighbors(n_neighbors=neighbours)
    found = [search.fit(p).kneighbors(return_distance=False) for p in (plane, other)]
    shared = [len(np.intersect1d(a, b)) for a, b in zip(*found, strict=True)]
    return float(np.mean(shared) / neighbours)


def maps_of(
    spaces: Sequence[np.ndarray], *, neighbours: int, seeds: Sequence[int]
) -> list[pd.DataFrame]:
    """Both maps of each model, as rows (map, x, y, trust, trust_low, trust_high, agreement).

    `map` is `umap` (of the first seed) or `pca`, n rows of each in the order of the texts. The
    others are equal in all rows of a model's map: `trust`, its trustworthiness by cosine (Venna &
    Kaski, 2001: 1 is best, chance is 0.5), the least and the greatest over the fits of all seeds,
    and `agreement`, the mean of `neighbours_kept` between the first seed's map and each other (1
    for a single seed, and for the PCA, which has none).

    Neighbours are fewer than half of the texts, of few texts fewer than `neighbours`: it is logged.
    Fewer than five texts have no UMAP, and the trust of fewer than three is 1: no map can err.
    """
    n, fits = len(spaces[0]), {"pca": [shared_pca(spaces)]}
    if (k := min(neighbours, (n - 1) // 2)) > 1:  # UMAP takes no fewer
        fits = {"umap": [aligned_umap(spaces, neighbours=k, seed=seed) for seed in seeds]} | fits
    if k < neighbours:
        logger.warning("maps of %d texts: %d neighbours, not %d: %s", n, k, neighbours, [*fits])
    tables = []
    for number, space in enumerate(spaces):
        judge, parts = partial(trustworthiness, space, n_neighbors=k, metric="cosine"), []
        for name, of_seeds in fits.items():
            mine = [np.asarray(fit[number], dtype=np.float64) for fit in of_seeds]
            trusted = [judge(plane) if k else 1.0 for plane in mine]
            kept = [neighbours_kept(mine[0], p, neighbours=k) for p in mine[1:]]
            x, y = mine[0].T
            judged = {"trust": trusted[0], "trust_low": min(trusted), "trust_high": max(trusted)}
            judged["agreement"] = np.mean(kept) if kept else 1.0
            parts.append(pd.DataFrame({"map": name, "x": x, "y": y, **judged}))
        tables.append(pd.concat(parts, ignore_index=True))
    return tables


def coordinates_hash(rows: pd.DataFrame) -> str:
    """SHA-256 of the columns x and y as saved beside figures, with six significant digits."""
    written = rows[["x", "y"]].to_csv(index=False, float_format="%.6g", lineterminator="\n")
    return hashlib.sha256(written.encode()).hexdigest()
