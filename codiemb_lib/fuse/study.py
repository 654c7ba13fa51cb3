"""The merges of a preset: made of its runs, compared on dev, and the path between two runs."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from codiemb_lib.core import (
    METHODS,
    FusionStudy,
    Merge,
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
from codiemb_lib.fuse.merging import kept_tensors, merge_weights, with_kept, work_out
from codiemb_lib.fuse.methods import Weights, delta_guided_weights, delta_norms
from codiemb_lib.fuse.tensors import Folder
from codiemb_lib.model import Encoder, model_hash


def study_of(preset: Preset) -> FusionStudy:
    """The fusion study of a preset; without one, soup and delta over its first fusion's runs."""
    first = next(iter(preset.fusion.values()))
    plain = {"uniform": ({},), "delta": ({},)}
    return preset.fusion_study or FusionStudy(ingredients=first.ingredients, candidates=plain)


def merged_variants(preset: Preset) -> list[str]:
    """The trained variants that the preset's fusions, its study or its path need."""
    named = {name for merge in preset.fusion.values() for name in merge.ingredients}
    return [name for name in preset.variants if name in named.union(study_of(preset).runs)]


def open_runs(preset: Preset, seed: int) -> dict[str, Folder]:
    """The weights of the `merged_variants` of one seed, read from their folders when asked for."""
    return {
        name: Folder(run_folder(preset.name, name, seed) / "model")
        for name in merged_variants(preset)
    }


def save_merge(
    preset: Preset, model: str, seed: int, encoder: Encoder, base: Weights, runs: Mapping
) -> Path:
    """Make one fused model of a preset and return its run folder: `model/`, `fusion.csv`, manifest.

    A finished one of the same ingredients and settings is returned as it is. The encoder, which is
    the preset's, takes the merged weights. `base` and `runs` are what :func:`merge_weights` takes.
    """
    started = time.perf_counter()
    settings, folder = preset.fused(model), run_folder(preset.name, model, seed)
    manifests = {
        name: read_json(run_folder(preset.name, name, seed) / "manifest.json")
        for name in settings.ingredients
    }
    origins = {name: manifest["fingerprint"] for name, manifest in manifests.items()}
    recipe = settings.model_dump(mode="json", exclude_none=True)
    fingerprint = sha256_text(repr(recipe), repr(origins), str(NUMERICS))
    if is_complete(folder, fingerprint):
        return folder
    (folder / "manifest.json").unlink(missing_ok=True)  # it says that the model is whole
    encoder.backbone.load_state_dict(merge_weights(base, runs, settings))
    encoder.save(folder / "model")
    write_rows(folder / "fusion.csv", movements(base, runs, settings).assign(seed=seed))
    made_of = {"ingredient_fingerprints": origins, "model_hash": model_hash(preset.encoder)}
    write_manifest(
        folder,
        preset=preset,
        model=model,
        seed=seed,
        settings=recipe | made_of,
        fingerprint=fingerprint,
        data=next(iter(manifests.values()))["data"],
        seconds=time.perf_counter() - started,
    )
    return folder


def movements(base: Weights, runs: Mapping[str, Weights], settings: Merge) -> pd.DataFrame:
    """How far each tensor of each ingredient moved, and what it weighs in the merge.

    Returns:
        Rows (ingredient, tensor, layer, module, delta_norm, weight). The weight is that of the
        delta family; other methods are shown with equal weights. A tensor that is kept has the
        whole weight in the ingredient that it comes from; none has any if that is the base.
        Tensors outside embeddings and layers, such as BERT's pooler, are not trained and left out.
    """
    models = [runs[name] for name in settings.ingredients]
    sources = kept_tensors(base, settings.keep)
    options = settings.options() if settings.method == "delta" else {"power": 0.0}
    weights = delta_guided_weights(*with_kept(base, models, runs, sources), **options)
    rows = []
    for tensor, norms in delta_norms(base, models).items():
        for j, ingredient in enumerate(settings.ingredients):
            kept = float(sources.get(tensor) == ingredient)
            weight = kept if tensor in sources else weights[tensor][j].mean().item()
            place = {"layer": layer_of(tensor), "module": module_of(tensor)}
            rows.append(
                {"ingredient": ingredient, "tensor": tensor}
                | place
                | {"delta_norm": norms[j].item(), "weight": weight}
            )
    return pd.DataFrame([row for row in rows if row["layer"] is not None])


def module_of(tensor: str) -> str:
    """A tensor's name without layer number and parameter kind: `query`, `output.dense`."""
    name = re.sub(r"^.*\.\d+\.|\.(weight|bias)$", "", tensor)
    return re.sub(r"^(attention\.self|self_attn|mlp|embeddings)\.", "", name)


def try_on_dev(
    base: Weights,
    runs: Mapping[str, Weights],
    study: FusionStudy,
    scores: Callable[[Weights], pd.DataFrame],
) -> tuple[pd.DataFrame, dict[str, Merge]]:
    """Score every candidate of a study on dev, and pick one for each method.

    The pick is the best mean of both tasks' means (`core.task_means`); the first of equals. The
    greedy soup looks at dev by itself; its pick is the uniform soup of what it kept.

    Args:
        base: The weights that all runs started from.
        runs: By name.
        study: Of the preset.
        scores: From a model to rows of its dev scores, as `evaluate.score` gives them.

    Returns:
        Rows (method, candidate, settings, looks, chosen, ...), `...` being those of the scores and
        `looks` how many models were scored for the row; and each method's pick.
    """
    tables: list[pd.DataFrame] = []
    picks: dict[str, Merge] = {}
    for method, tried in study.candidates.items():
        best = -np.inf
        for number, settings in enumerate(tried):
            seen: list[float] = []

            def mean(model: Weights, seen: list[float] = seen) -> float:
                seen.append(float(np.mean([*task_means(scores(model)).values()])))
                return seen[-1]

            if METHODS[settings.method].scored:
                with torch.no_grad():
                    soup = work_out(base, runs, settings, mean).kept
                kept = tuple(settings.ingredients[j] for j in soup)
                settings = settings.model_copy(update={"method": "uniform", "ingredients": kept})
            rows = scores(merge_weights(base, runs, settings))
            found = float(np.mean([*task_means(rows).values()]))
            label, looks = _label(settings, study), len(seen) or 1
            tables.append(rows.assign(method=method, candidate=number, settings=label, looks=looks))
            if found > best:
                best, picks[method] = found, settings
    table = pd.concat(tables, ignore_index=True)
    chosen = {method: _label(settings, study) for method, settings in picks.items()}
    return table.assign(chosen=table["settings"] == table["method"].map(chosen)), picks


def _label(settings: Merge, study: FusionStudy) -> str:
    """What sets a candidate apart, such as `power 2, scale 0.8`."""
    parts = settings.options() | ({"scale": settings.scale} if settings.scale != 1 else {})
    parts |= {f"{pattern} of": source for pattern, source in settings.keep.items()}
    if settings.ingredients != study.ingredients:
        parts["of"] = " + ".join(settings.ingredients)
    return ", ".join(f"{name} {_shown(value)}" for name, value in parts.items()) or "as it is"


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_shown, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def path(first: Weights, second: Weights, points: int) -> Iterator[tuple[float, dict[str, Tensor]]]:
    r"""Models on the straight line between two: :math:`\theta_t = (1 - t) \theta_0 + t \theta_1`.

    Yields `points` pairs (t, weights), with t from 0 to 1; the ends are the models themselves.
    """
    for t in np.linspace(0, 1, points).tolist():
        yield (
            t,
            {
                name: tensor.lerp(second[name], t) if tensor.is_floating_point() else tensor
                for name, tensor in first.items()
            },
        )
