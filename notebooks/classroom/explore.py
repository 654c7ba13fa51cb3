"""Knobs to turn and tables to search in a notebook, each with a still picture for print.

Every explorer is two things: a pure function that gives the table or draws the picture, and a
widget that calls it again when a control changes. What the widget shows is also in the output as a
plain picture or table, for printers, web pages and executed copies, where no kernel answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from classroom.knobs import Exhibit, knobs
from matplotlib.figure import Figure
from torch import Tensor

from codiemb_lib.core import CodiembError, layer_of
from codiemb_lib.draw import ROLES, shades
from codiemb_lib.evaluate import EncodedDataset
from codiemb_lib.fuse import delta_guided_weights


class ExploreError(CodiembError, ValueError):
    """Two models that cannot be shown side by side."""


# Search


@dataclass(frozen=True)
class Index:
    """Passages as one model sees them.

    Attributes:
        name: Of the model.
        passages: m texts.
        vectors: (m, D), their embeddings.
        encode: Gives a query's embedding (D,).
    """

    name: str
    passages: Sequence[str]
    vectors: np.ndarray
    encode: Callable[[str], np.ndarray]


def compare_search(query: str, first: Index, second: Index, k: int = 5) -> pd.DataFrame:
    """What either of two models finds for a query, and where the other ranks it.

    Returns:
        The union of both top k, best first by the second model: a column of ranks from 1 for each
        model, `moved` (up is positive), and the passage.

    Raises:
        ExploreError: The models do not search the same passages.
    """
    if list(first.passages) != list(second.passages):
        raise ExploreError(
            f"expected the same passages for both models, found {len(first.passages):,} for "
            f"{first.name!r} and {len(second.passages):,} for {second.name!r}, or another order. "
            "Encode both anew with notebook 05."
        )
    ranks = []
    for index in (first, second):
        order = np.argsort(-(index.vectors @ index.encode(query)), kind="stable")
        ranks.append(np.empty(len(order), dtype=int))
        ranks[-1][order] = np.arange(1, len(order) + 1)
    table = pd.DataFrame(
        {
            first.name: ranks[0],
            second.name: ranks[1],
            "moved": ranks[0] - ranks[1],
            "passage": list(first.passages),
        }
    )
    found = table[np.minimum(*ranks) <= k]
    return found.sort_values(second.name).reset_index(drop=True)


def search_box(first: Index, second: Index, query: str, *, k: int = 5) -> Exhibit:
    """:func:`compare_search` with a box to type in, which acts on Enter."""

    def show(query: str, k: int) -> str:
        if not query.strip():
            return "Type a question."
        return _html(compare_search(query, first, second, k))

    box = widgets.Text(
        query, description="query", continuous_update=False, layout={"width": "30em"}
    )
    many = widgets.IntSlider(k, 1, 20, description="top", continuous_update=False)
    return Exhibit([box, many], widgets.HTML(), show)


# Pairs


def compare_pairs(
    first: EncodedDataset, second: EncodedDataset, names: tuple[str, str]
) -> pd.DataFrame:
    """Each pair of a similarity set as people and two models see it.

    Returns:
        Columns left, right, people (0 to 1); for each model its cosine, under the model's name,
        and `off, <name>`: the pair's rank by the model less that by people, so that above zero the
        model finds it too similar; `better`: by how many ranks the second model is nearer.

    Raises:
        ExploreError: The models do not rate the same pairs.
    """
    sides = [(e.query_texts, e.passage_texts) for e in (first, second)]
    if sides[0] != sides[1]:
        raise ExploreError(
            f"expected the same pairs for both models, found others in {second.name!r} than in "
            f"{first.name!r}. Encode both anew with notebook 05."
        )
    table = pd.DataFrame(
        {"left": first.query_texts, "right": first.passage_texts, "people": first.gold}
    )
    off = {}
    for name, encoded in zip(names, (first, second), strict=True):
        table[name] = np.einsum("nd,nd->n", encoded.queries, encoded.passages)
        off[name] = table[name].rank() - table["people"].rank()
    for name in names:
        table[f"off, {name}"] = off[name]
    table["better"] = off[names[0]].abs() - off[names[1]].abs()
    return table


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
    return kept.loc[ORDERS[order](kept, name).sort_values(ascending=False, kind="stable").index][
        :limit
    ]


def pair_explorer(tables: Mapping[str, pd.DataFrame], names: tuple[str, str]) -> Exhibit:
    """:func:`select_pairs` with controls for data set, order, model and a word.

    Args:
        tables: By data set, from `compare_pairs`.
        names: Of the two models.
    """
    controls = [
        widgets.Dropdown(options=[*tables], description="data set"),
        widgets.Dropdown(options=[*ORDERS], description="order"),
        widgets.Dropdown(options=names, value=names[1], description="model"),
        widgets.Text(description="contains", continuous_update=False),
    ]

    def show(dataset: str, order: str, name: str, contains: str) -> str:
        return _html(select_pairs(tables[dataset], name, order, contains).round(2))

    return Exhibit(controls, widgets.HTML(), show)


def _html(table: pd.DataFrame) -> str:
    """A table with its texts cut short; what stands in a text is not taken as HTML."""
    short = table.map(lambda cell: f"{cell[:117]}..." if len(str(cell)) > 120 else cell)
    return short.to_html(index=False, border=0, justify="left")


# Fusion


@torch.no_grad()
def delta_products(
    base: Mapping[str, Tensor], checkpoints: Sequence[Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """Inner products (J, J) of the checkpoints' deviations from the base, by tensor.

    They are all that is needed to tell how long a merged deviation is, so a knob can be turned
    without the models.
    """
    products = {}
    for name, start in base.items():
        if start.is_floating_point():
            deltas = torch.stack([(c[name] - start).flatten() for c in checkpoints]).double()
            products[name] = deltas @ deltas.T
    return products


def merged_lengths(
    products: Mapping[str, Tensor], *, power: float, scale: float = 1.0, granularity: str = "tensor"
) -> pd.DataFrame:
    """Weights and lengths of a delta-guided merge, by layer.

    Args:
        products: From `delta_products`.
        power: Of the norms.
        scale: Of the merged deviation.
        granularity: `tensor`, `layer` or `model`.

    Returns:
        Rows (layer, ingredient, weight, length); the ingredient is its place, or "merged", whose
        weight is NaN. A layer's weight is the mean over its tensors. Tensors of no layer have no
        row, but count in the norms of the whole model.
    """
    norms = {name: product.diagonal().sqrt() for name, product in products.items()}
    # Weights hang on norms alone: tensors of one number have the same ones.
    origin = {name: torch.zeros(1, dtype=torch.float64) for name in norms}
    count = len(next(iter(norms.values())))
    alike = [{name: norm[j : j + 1] for name, norm in norms.items()} for j in range(count)]
    weights = delta_guided_weights(origin, alike, power=power, granularity=granularity)
    rows = []
    for name, product in products.items():
        w = weights[name].double()
        squares = [*product.diagonal().tolist(), (scale**2 * w @ product @ w).item()]
        labels = [*range(count), "merged"]
        for label, weight, square in zip(labels, [*w.tolist(), np.nan], squares, strict=True):
            rows.append((layer_of(name), label, weight, square))
    rows = [row for row in rows if row[0] is not None]
    table = pd.DataFrame(rows, columns=["layer", "ingredient", "weight", "length"])
    grouped = table.groupby(["layer", "ingredient"], sort=False)
    return grouped.agg({"weight": "mean", "length": lambda s: np.sqrt(s.sum())}).reset_index()


def plot_fusion(lengths: pd.DataFrame, names: Sequence[str]) -> Figure:
    """The weight of each ingredient by layer; how far each moved, and the merge of them."""
    figure, axes = plt.subplots(1, 2, figsize=(6.8, 2.2), layout="constrained")
    for number, (name, colour) in enumerate(
        zip(names, shades(ROLES["joint"].colour, len(names)), strict=True)
    ):
        rows = lengths[lengths["ingredient"] == number]
        for ax, column in zip(axes, ("weight", "length"), strict=True):
            ax.plot(rows["layer"], rows[column], "o-", ms=3, color=colour, label=name)
    merged = lengths[lengths["ingredient"] == "merged"]
    axes[1].plot(merged["layer"], merged["length"], "^:", color="#333333", label="merged")
    axes[0].axhline(1 / len(names), color="#999999", lw=0.6)
    axes[0].set(ylim=(0, 1), ylabel="weight", xlabel="layer (-1: embeddings)")
    axes[1].set(ylim=(0, None), ylabel="distance from the start", xlabel="layer (-1: embeddings)")
    axes[1].legend(loc="upper left", bbox_to_anchor=(1, 1))
    for ax in axes:
        ax.set_xticks(lengths["layer"].unique())
    return figure


def fusion_knobs(
    base: Mapping[str, Tensor], checkpoints: Sequence[Mapping[str, Tensor]], names: Sequence[str]
) -> Exhibit:
    """Power, scale and granularity of a delta-guided merge as knobs on :func:`plot_fusion`."""
    products = delta_products(base, checkpoints)

    def draw(power: float, scale: float, granularity: str) -> Figure:
        lengths = merged_lengths(products, power=power, scale=scale, granularity=granularity)
        return plot_fusion(lengths, names)

    return knobs(
        draw,
        power=widgets.FloatSlider(1.0, min=-2, max=6, step=0.5),
        scale=widgets.FloatSlider(1.0, min=0, max=2, step=0.1),
        granularity=widgets.Dropdown(options=["tensor", "layer", "model"]),
    )
