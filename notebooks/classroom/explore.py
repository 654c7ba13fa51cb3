"""Tables to search and pictures to turn: two models side by side, and what a merge does.

Every explorer is two things: a pure function that gives the table or draws the picture, and a
widget that calls it again when a control changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from classroom.knobs import Exhibit, knobs
from matplotlib.figure import Figure
from scipy import stats
from torch import Tensor

from codiemb_lib.core import CodiembError, layer_of
from codiemb_lib.draw import ROLES, shades
from codiemb_lib.evaluate import EncodedDataset
from codiemb_lib.fuse import delta_guided_weights

# Search


@dataclass(frozen=True)
class Index:
    """Passages as one model sees them."""

    name: str
    passages: Sequence[str]  # m texts
    vectors: np.ndarray  # (m, D), their embeddings
    encode: Callable[[str], np.ndarray]  # of a query, (D,)


def compare_search(query: str, first: Index, second: Index, k: int = 5) -> pd.DataFrame:
    """The union of what two models find for a query (top k), best first by the second model.

    Columns: the rank from 1 by either model, under its name; `moved` (up is positive); passage.

    Raises:
        CodiembError: The models do not search the same passages.
    """
    _check_same(first.passages, second.passages, (first.name, second.name))
    ranks = [
        stats.rankdata(-index.vectors @ index.encode(query), method="ordinal").astype(int)
        for index in (first, second)
    ]
    table = pd.DataFrame({first.name: ranks[0], second.name: ranks[1]})
    table = table.assign(moved=ranks[0] - ranks[1], passage=list(first.passages))
    return table[np.minimum(*ranks) <= k].sort_values(second.name).reset_index(drop=True)


def search_box(first: Index, second: Index, query: str, *, k: int = 5) -> Exhibit:
    """:func:`compare_search` with a box to type in, which acts on Enter."""

    def show(query: str, k: int) -> str:
        asked = query.strip()
        return _html(compare_search(query, first, second, k)) if asked else "Type a question."

    wide = {"width": "30em"}
    box = widgets.Text(query, description="query", continuous_update=False, layout=wide)
    many = widgets.IntSlider(k, 1, 20, description="top", continuous_update=False)
    return Exhibit([box, many], widgets.HTML(), show)


# Pairs


def compare_pairs(
    first: EncodedDataset, second: EncodedDataset, names: tuple[str, str]
) -> pd.DataFrame:
    """Each pair of a similarity set as people and two models see it.

    Columns: left, right, people (0 to 1); the cosine by either model, under its name; `off, NAME`:
    the pair's rank by the model less that by people, so that above zero the model finds it too
    similar; `better`: by how many ranks the second model is nearer.

    Raises:
        CodiembError: The models do not rate the same pairs.
    """
    for side in ("query_texts", "passage_texts"):
        _check_same(getattr(first, side), getattr(second, side), names)
    table = pd.DataFrame({"left": first.query_texts, "right": first.passage_texts})
    table["people"] = first.gold
    for name, encoded in zip(names, (first, second), strict=True):
        table[name] = np.einsum("nd,nd->n", encoded.queries, encoded.passages)
    for name in names:
        table[f"off, {name}"] = table[name].rank() - table["people"].rank()
    off = [table[f"off, {name}"].abs() for name in names]
    return table.assign(better=off[0] - off[1])


ORDERS = {  # of pairs: which column, what of it, largest first
    "furthest off": lambda table, name: table[f"off, {name}"].abs(),
    "rated too similar": lambda table, name: table[f"off, {name}"],
    "rated too different": lambda table, name: -table[f"off, {name}"],
    "most improved": lambda table, name: table["better"],
    "most worsened": lambda table, name: -table["better"],
}


def select_pairs(
    table: pd.DataFrame, name: str, order: str, contains: str = "", limit: int = 8
) -> pd.DataFrame:
    """The first pairs of `compare_pairs` in one of `ORDERS`, by model `name`."""
    text = (table["left"] + " " + table["right"]).str.lower()
    kept = table[text.str.contains(contains.lower(), regex=False)]
    wanted = ORDERS[order](kept, name).sort_values(ascending=False, kind="stable")
    return kept.loc[wanted.index].head(limit)


def pair_explorer(tables: Mapping[str, pd.DataFrame], names: tuple[str, str]) -> Exhibit:
    """:func:`select_pairs` with controls for the data set (a table of each), order, model, word."""
    controls = [
        widgets.Dropdown(options=[*tables], description="data set"),
        widgets.Dropdown(options=[*ORDERS], description="order"),
        widgets.Dropdown(options=names, value=names[1], description="model"),
        widgets.Text(description="contains", continuous_update=False),
    ]

    def show(dataset: str, order: str, name: str, contains: str) -> str:
        return _html(select_pairs(tables[dataset], name, order, contains).round(2))

    return Exhibit(controls, widgets.HTML(), show)


def _check_same(first: Sequence[str], second: Sequence[str], names: tuple[str, str]) -> None:
    if list(first) != list(second):
        raise CodiembError(
            f"expected the same texts for both models, found others in {names[1]!r} than in "
            f"{names[0]!r}, or another order. Encode both anew with notebook 05."
        )


def _html(table: pd.DataFrame) -> str:
    """A table with its texts cut short; what stands in a text is not taken as HTML."""
    short = table.map(lambda cell: f"{cell[:117]}..." if len(str(cell)) > 120 else cell)
    return short.to_html(index=False, border=0, justify="left")


# Fusion


@torch.no_grad()
def delta_products(
    base: Mapping[str, Tensor], checkpoints: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """Inner products (J, J) of the checkpoints' deviations from the base, by tensor: with them a
    merge's weights and length can be told without the models."""
    products = {}
    for name, start in base.items():
        if start.is_floating_point():
            moved = [(weights[name] - start).flatten() for weights in checkpoints.values()]
            deltas = torch.stack(moved).double()
            products[name] = deltas @ deltas.T
    return products


def merged_lengths(
    products: Mapping[str, Tensor],
    names: Sequence[str],
    *,
    power: float,
    scale: float,
    granularity: str,
) -> pd.DataFrame:
    """Rows (layer, ingredient, weight, length) of a delta-guided merge.

    An ingredient is a name, or "merged", whose weight is NaN. A layer's weight is the mean over its
    tensors. Tensors of no layer have no row, but count in the norms of the whole model.
    """
    # Weights hang on norms alone: tensors of one number have the same ones.
    norms = {name: product.diagonal().sqrt() for name, product in products.items()}
    origin = {name: torch.zeros(1, dtype=torch.float64) for name in norms}
    alike = [{name: norm[j : j + 1] for name, norm in norms.items()} for j in range(len(names))]
    weights = delta_guided_weights(origin, alike, power=power, granularity=granularity)
    rows = []
    for name, product in products.items():
        w, layer = weights[name].double(), layer_of(name)
        if layer is not None:
            own = zip(names, w.tolist(), product.diagonal().tolist(), strict=True)
            rows += [(layer, *row) for row in own]
            rows.append((layer, "merged", np.nan, (scale**2 * w @ product @ w).item()))
    table = pd.DataFrame(rows, columns=["layer", "ingredient", "weight", "length"])
    grouped = table.groupby(["layer", "ingredient"], sort=False)
    return grouped.agg({"weight": "mean", "length": lambda s: np.sqrt(s.sum())}).reset_index()


def plot_fusion(lengths: pd.DataFrame) -> Figure:
    """The weight of each ingredient by layer; how far each moved, and the merge of them."""
    *names, merged = lengths["ingredient"].unique()
    palette = dict(zip(names, shades(ROLES["joint"].colour, len(names)), strict=True))
    palette[merged] = ROLES["baseline"].colour
    figure, axes = plt.subplots(1, 2, figsize=(6.8, 2.2))
    for ax, column in zip(axes, ("weight", "length"), strict=True):
        look = {"hue": "ingredient", "style": "ingredient", "markers": True, "palette": palette}
        sns.lineplot(lengths, x="layer", y=column, legend=column == "length", ax=ax, **look)
        ax.set(xlabel="layer (-1: embeddings)", xticks=lengths["layer"].unique())
    axes[0].axhline(1 / len(names), color="grey", lw=0.6)
    axes[0].set(ylim=(0, 1))
    axes[1].set(ylim=(0, None), ylabel="distance from the start")
    sns.move_legend(axes[1], "upper left", bbox_to_anchor=(1, 1), title=None)
    return figure


def fusion_knobs(
    base: Mapping[str, Tensor], checkpoints: Mapping[str, Mapping[str, Tensor]]
) -> Exhibit:
    """Power, scale and granularity of a delta-guided merge as knobs on :func:`plot_fusion`."""
    products = delta_products(base, checkpoints)
    return knobs(
        lambda **turned: plot_fusion(merged_lengths(products, [*checkpoints], **turned)),
        power=widgets.FloatSlider(1.0, min=-2, max=6, step=0.5),
        scale=widgets.FloatSlider(1.0, min=0, max=2, step=0.1),
        granularity=widgets.Dropdown(options=["tensor", "layer", "model"]),
    )
