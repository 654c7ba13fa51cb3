"""The figure of maps of embedding spaces."""

from __future__ import annotations

import numpy as np
import pandas as pd

from codiemb_lib.draw.frame import figure, first_seed, grid, legend_below
from codiemb_lib.draw.style import ROLES, TASK_ROLES, WIDTH_2, shades, variant_styles
from codiemb_lib.space import coordinates_hash

_MAPS = {"umap": "UMAP", "pca": "PCA"}


@figure(
    "umap",
    key="map task dataset text",
    values="x y trust trust_low trust_high agreement",
    caption="**Maps of the embedding space, preset {preset}.** Above: UMAP coordinates of IR "
    "passages (blue shades) and STS texts (orange shades), the same texts for every model, from "
    "one aligned fit that models share (each keeps its own neighbours; a text is drawn towards its "
    "place on the maps beside). Below: their first two principal components, of all models "
    "together. Common axes in a row; the first seed of each model. Neighbourhoods can be read; "
    "distances, sizes of groups and empty space on a UMAP cannot: the projection distorts them. "
    "{trust} Coordinates: SHA-256 {hash}.",
    facts=lambda rows: {"trust": _trust(rows), "hash": coordinates_hash(rows)[:12]},
)
def plot_umap(rows: pd.DataFrame, *, ax: np.ndarray | None = None) -> np.ndarray:
    """Draw both maps, a panel per map and variant (its first seed), coloured by data set.

    Args:
        rows: Rows of `maps.maps_of` with the data set and the number of each text.
        ax: One Axes per map and variant, a row per map; a new figure by default.
    """
    styles = variant_styles(rows["variant"])
    names = [name for name in _MAPS if (rows["map"] == name).any()]
    colours = {}
    for task, role in TASK_ROLES.items():
        datasets = rows.loc[rows["task"] == task, "dataset"].unique()
        colours |= {
            (task, name): (shade, ROLES[role].marker)
            for name, shade in zip(datasets, shades(ROLES[role].colour, len(datasets)), strict=True)
        }
    side = WIDTH_2 / max(2, len(styles))
    axes = grid(len(names), len(styles), ax, height=side)
    for row, name in zip(axes, names, strict=True):
        both = rows.loc[rows["map"] == name, ["x", "y"]]
        centre = (both.max() + both.min()) / 2
        half = 0.52 * (both.max() - both.min()).max() or 1.0
        for axis, (variant, look) in zip(row, styles.items(), strict=True):
            here = first_seed(rows[(rows["variant"] == variant) & (rows["map"] == name)])
            for (task, dataset), (colour, marker) in colours.items():
                mine = here[(here["task"] == task) & (here["dataset"] == dataset)]
                drawn = {"s": 2.5, "color": [colour], "marker": marker, "linewidths": 0}
                axis.scatter(
                    mine["x"], mine["y"], label=dataset, rasterized=True, alpha=0.7, **drawn
                )
            axis.set(xlim=(centre["x"] - half, centre["x"] + half))
            axis.set(ylim=(centre["y"] - half, centre["y"] + half))
            axis.set(aspect="equal", xticks=[], yticks=[])
            axis.spines[:].set_visible(True)
            axis.spines[:].set_color("#CCCCCC")
            if name == names[0]:
                axis.set_title(look.label)
        row[0].set_ylabel(_MAPS[name])
    legend = legend_below(axes[0], handletextpad=0.1, columnspacing=1.2)
    for handle in legend.legend_handles:
        handle.set(sizes=[22], alpha=1)
    return axes.ravel()


def _trust(rows: pd.DataFrame) -> str:
    """What a caption says about how far maps can be trusted."""
    said = []
    for name, label in _MAPS.items():
        of_models = rows[rows["map"] == name].drop_duplicates("variant")
        if of_models.empty:
            continue
        least, most = of_models["trust"].min(), of_models["trust"].max()
        said.append(f"{label} {least:.2f} to {most:.2f}")
        if name == "umap":
            spread = (of_models["trust_high"] - of_models["trust_low"]).max()
            said[-1] += (
                f" (by up to {spread:.3f} another with another seed, of which a map shares "
                f"{of_models['agreement'].mean():.0%} of each text's neighbours)"
            )
    return (
        "Trustworthiness (1: neighbours on the map are neighbours in the space; 0.5: chance), by "
        f"model: {'; '.join(said)}."
    )
