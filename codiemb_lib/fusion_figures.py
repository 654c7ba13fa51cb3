"""Figures of fusion: what runs changed and what a merge makes of it."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.colors import Normalize, TwoSlopeNorm

from codiemb_lib.plotting import figure, panels
from codiemb_lib.style import variant_styles


@figure(
    "fusion",
    key="ingredient tensor",
    values="layer module delta_norm weight",
    caption="**What the fused runs changed, and what they weigh, preset {preset}.** Upper row: "
    "norm of each run's deviation from the base encoder, by layer and module (emb.: embeddings). "
    "Lower rows: the run's merging weight there; white is the weight that a uniform soup gives. "
    "Grey: no such parameters. Of a module's tensors the norms are joined (root of the sum of "
    "squares) and the weights averaged; both are means over seeds; {seeds}.",
)
def plot_fusion_weights(rows: pd.DataFrame, *, ax: np.ndarray | None = None) -> np.ndarray:
    """Draw maps, layer by module: the norm of each ingredient's delta, and its merging weight.

    The first row of panels holds a norm map per ingredient; then follows a row of weight maps per
    fused variant. Variants that weigh all alike (the uniform soup) are left out beside others.

    Args:
        rows: Fusion rows.
        ax: The panels in reading order; a new figure by default.
    """
    methods = list(variant_styles(rows["variant"]))
    telling = rows.groupby("variant")["weight"].agg(np.ptp) > 1e-6
    methods = [method for method in methods if telling[method]] or methods[:1]
    rows = rows[rows["variant"].isin(methods)]
    ingredients = list(variant_styles(rows["ingredient"]))
    found = rows.groupby("variant")["ingredient"].agg(lambda names: sorted(names.unique()))
    if any(len(names) < len(ingredients) for names in found):
        raise ValueError(
            "fusion_weights: expected the same ingredients for every fused variant, found "
            f"{found.to_dict()}. Draw the variants apart."
        )
    uniform = 1 / len(ingredients)
    modules, layers = list(rows["module"].unique()), sorted(rows["layer"].unique())
    cells = rows.groupby(["variant", "seed", "ingredient", "module", "layer"]).agg(
        delta_norm=("delta_norm", np.linalg.norm), weight=("weight", "mean")
    )
    cells = cells.groupby(["variant", "ingredient", "module", "layer"]).mean()
    reach = max(float((cells["weight"] - uniform).abs().max()), 1e-6)
    kinds = [("delta_norm", methods[0], "viridis", Normalize(0, cells["delta_norm"].max()))]
    for method in methods:
        norm = TwoSlopeNorm(uniform, uniform - reach, uniform + reach)
        kinds.append(("weight", method, "RdBu_r", norm))

    height = 0.45 + 0.135 * len(modules)
    axes = panels(len(kinds) * len(ingredients), ax, columns=len(ingredients), height=height)
    grid = axes.reshape(len(kinds), len(ingredients))
    names = {**variant_styles(methods), **variant_styles(ingredients)}
    stride = -(-len(layers) // 8)  # at most eight layers are numbered
    ticks = [(at, "emb." if layers[at] < 0 else str(layers[at])) for at in range(len(layers))]
    for number, (row, (column, method, colours, norm)) in enumerate(zip(grid, kinds, strict=True)):
        for axis, ingredient in zip(row, ingredients, strict=True):
            table = cells.loc[(method, ingredient), column].unstack().reindex(modules)[layers]
            axis.set_facecolor("#E4E4E4")
            image = axis.imshow(table, cmap=colours, norm=norm, aspect="auto")
            axis.set_xticks(*zip(*ticks[::stride], strict=True))
            axis.set_yticks(range(len(modules)), modules if axis is row[0] else [])
            axis.tick_params(length=0)
            axis.spines[:].set_visible(False)
            if number == 0:
                axis.set_title(names[ingredient].label)
            if number == len(grid) - 1:
                axis.set_xlabel("layer")
        label = "‖delta‖" if column == "delta_norm" else f"weight, {names[method].label}"
        bar = row[0].figure.colorbar(image, ax=list(row), label=label, pad=0.01, aspect=14)
        bar.outline.set_visible(False)
    return axes
