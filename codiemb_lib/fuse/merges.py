"""The merges of a preset: made of its runs, compared on dev, and the path between two runs."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from codiemb_lib.core import (
    FusionSettings,
    FusionStudy,
    Preset,
    is_complete,
    layer_of,
    read_json,
    run_folder,
    sha256_text,
    task_means,
    write_manifest,
    write_rows,
)
from codiemb_lib.fuse import NUMERICS
from codiemb_lib.fuse.methods import delta_guided_weights, delta_norms, fuse, greedy, kept_tensors
from codiemb_lib.fuse.tensors import Folder
from codiemb_lib.model import Encoder, model_hash

Weights = Mapping[str, Tensor]


def study_of(preset: Preset) -> FusionStudy:
    """The fusion study of a preset; without one, soup and delta over its first fusion's runs."""
    first = next(iter(preset.fusion.values()))
    plain = {"uniform": ({},), "delta": ({},)}
    return preset.fusion_study or FusionStudy(ingredients=first.ingredients, candidates=plain)


def ingredients(preset: Preset) -> list[str]:
    """The trained variants that the preset's fusions, its study or its path need."""
    study = study_of(preset)
    merges = [merge for method in study.candidates for merge in study.merges(method)]
    named = [name for merge in (*merges, *preset.fusion.values()) for name in merge.ingredients]
    return [name for name in preset.variants if name in {*named, *(study.path or ())}]


def open_runs(preset: Preset, seed: int) -> dict[str, Folder]:
    """The weights of the `ingredients` of one seed, read from their folders when asked for.

    Raises:
        FileNotFoundError: A run is missing.
        FusionError: Its weights cannot be read.
    """
    return {
        name: Folder(run_folder(preset.name, name, seed) / "model") for name in ingredients(preset)
    }


def merge_runs(base: Weights, runs: Mapping[str, Weights], settings: FusionSettings) -> Weights:
    """The model that the settings make of the runs they name.

    Raises:
        FusionError: As for `fusion.fuse`.
    """
    return fuse(base, [dict(runs[name]) for name in settings.ingredients], **settings.options())


def save_merge(
    preset: Preset, model: str, seed: int, encoder: Encoder, base: Weights, runs: Mapping[str, Any]
) -> Path:
    """Make one fused model of a preset and return its run folder: `model/`, `fusion.csv`, manifest.

    A finished one of the same ingredients and settings is returned as it is.

    Args:
        preset: The experiment.
        model: Which of its fusions.
        seed: Of the ingredients.
        encoder: Of the preset; it takes the merged weights.
        base: The weights that all runs started from.
        runs: As `open_runs` gives them.

    Raises:
        FusionError: As for `fusion.fuse`.
    """
    started = time.perf_counter()
    recipe, folder = preset.fused(model), run_folder(preset.name, model, seed)
    manifests = {
        name: read_json(run_folder(preset.name, name, seed) / "manifest.json")
        for name in recipe.ingredients
    }
    origins = {name: manifest["fingerprint"] for name, manifest in manifests.items()}
    fingerprint = sha256_text(recipe.model_dump_json(), repr(origins), str(NUMERICS))
    if is_complete(folder, fingerprint):
        return folder
    (folder / "manifest.json").unlink(missing_ok=True)  # it says that the model is whole
    encoder.backbone.load_state_dict(merge_runs(base, runs, recipe))
    encoder.save(folder / "model")
    write_rows(folder / "fusion.csv", movements(base, runs, recipe).assign(seed=seed))
    write_manifest(
        folder,
        preset=preset,
        model=model,
        seed=seed,
        settings=recipe.model_dump(mode="json")
        | {"ingredient_fingerprints": origins, "model_hash": model_hash(preset.encoder)},
        fingerprint=fingerprint,
        data=next(iter(manifests.values()))["data"],
        seconds=time.perf_counter() - started,
    )
    return folder


def movements(base: Weights, runs: Mapping[str, Weights], settings: FusionSettings) -> pd.DataFrame:
    """How far each tensor of each ingredient moved, and what it weighs in the merge.

    Returns:
        Rows (ingredient, tensor, layer, module, delta_norm, weight). The weight is that of the
        delta family; other methods are shown with equal weights. A tensor that is kept has the
        whole weight in the ingredient that it comes from; none has any if that is the base.
        Tensors outside embeddings and layers, such as BERT's pooler, are not trained and left out.
    """
    checkpoints = [dict(runs[name]) for name in settings.ingredients]
    options = settings.model_extra if settings.method == "delta" else {"power": 0.0}
    keep = settings.options().get("keep", {})
    norms = delta_norms(base, checkpoints)
    weights = delta_guided_weights(base, checkpoints, keep=keep, **options)
    sources = kept_tensors(base, keep)

    def weight(tensor: str, j: int) -> float:
        if tensor in sources:
            return float(sources[tensor] == j)
        return weights[tensor][j].mean().item()

    return pd.DataFrame(
        {
            "ingredient": ingredient,
            "tensor": tensor,
            "layer": layer_of(tensor),
            "module": module_of(tensor),
            "delta_norm": norms[tensor][j].item(),
            "weight": weight(tensor, j),
        }
        for tensor in norms
        for j, ingredient in enumerate(settings.ingredients)
        if layer_of(tensor) is not None
    )


def module_of(tensor: str) -> str:
    """A tensor's name without layer number and parameter kind: `query`, `output.dense`."""
    name = re.sub(r"^.*\.\d+\.|\.(weight|bias)$", "", tensor)
    return re.sub(r"^(attention\.self|self_attn|mlp|embeddings)\.", "", name)


def try_on_dev(
    base: Weights,
    runs: Mapping[str, Weights],
    study: FusionStudy,
    scores: Callable[[Weights], pd.DataFrame],
) -> tuple[pd.DataFrame, dict[str, FusionSettings]]:
    """Score every candidate of a study on dev, and pick one for each method.

    The pick is the best mean of both tasks' means (`evaluation.task_means`); the first of equals.
    The greedy soup looks at dev by itself; its pick is the uniform soup of what it kept.

    Args:
        base: The weights that all runs started from.
        runs: By name.
        study: Of the preset.
        scores: The dev scores of a model, rows as from `evaluation.evaluate`.

    Returns:
        Rows (method, settings, looks, chosen, ...), `...` being those of the scores and `looks`
        how many models were scored for the row; and each method's pick.
    """
    tables: list[pd.DataFrame] = []
    picks: dict[str, FusionSettings] = {}
    for method in study.candidates:
        best = -np.inf
        for number, settings in enumerate(study.merges(method)):
            looks = 1
            if settings.method == "greedy":
                settings, looks = _greedy(base, runs, settings, scores)
            rows = scores(merge_runs(base, runs, settings))
            found = float(np.mean([*task_means(rows).values()]))
            label = _label(settings, study)
            tables.append(rows.assign(method=method, candidate=number, settings=label, looks=looks))
            if found > best:
                best, picks[method] = found, settings
    table = pd.concat(tables, ignore_index=True)
    chosen = {method: _label(settings, study) for method, settings in picks.items()}
    return table.assign(chosen=table["settings"] == table["method"].map(chosen)), picks


def _greedy(base, runs, settings, scores) -> tuple[FusionSettings, int]:
    """The uniform soup of the runs that the greedy one keeps, and at how many models it looked."""
    looks = 0

    def score(model: Weights) -> float:
        nonlocal looks
        looks += 1
        return float(np.mean([*task_means(scores(model)).values()]))

    with torch.no_grad():
        soup = greedy(base, [dict(runs[name]) for name in settings.ingredients], score=score)
    kept = tuple(settings.ingredients[number] for number in soup.kept)
    return settings.model_copy(update={"method": "uniform", "ingredients": kept}), looks


def _label(settings: FusionSettings, study: FusionStudy) -> str:
    """What sets a candidate apart, such as `power 2, scale 0.8`."""
    parts = dict(settings.model_extra or {})
    if settings.scale != 1:
        parts["scale"] = settings.scale
    parts |= {f"{pattern} of": source for pattern, source in settings.keep.items()}
    if settings.ingredients != study.ingredients:
        parts["of"] = " + ".join(settings.ingredients)
    return ", ".join(f"{name} {value}" for name, value in parts.items()) or "as it is"


def path(first: Weights, second: Weights, points: int) -> Iterator[tuple[float, dict[str, Tensor]]]:
    r"""Models on the straight line between two: :math:`\theta_t = (1 - t) \theta_0 + t \theta_1`.

    Yields `points` pairs (t, weights), with t from 0 to 1; the ends are the models themselves.
    """
    for t in np.linspace(0, 1, points):
        yield (
            float(t),
            {
                name: torch.lerp(tensor, second[name], float(t))
                if tensor.is_floating_point()
                else tensor
                for name, tensor in first.items()
            },
        )
