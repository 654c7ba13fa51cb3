"""The merges of a preset: made of its runs, compared on dev, and the path between two runs."""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from codiemb_lib import core
from codiemb_lib.fuse import NUMERICS
from codiemb_lib.fuse.delta import delta_guided_weights, delta_norms
from codiemb_lib.fuse.merging import mean_of_tasks, merge_weights, with_kept, work_out
from codiemb_lib.fuse.moves import Weights
from codiemb_lib.fuse.tensors import Folder
from codiemb_lib.model import Encoder, model_hash


def study_of(preset: core.Preset) -> core.FusionStudy:
    """The fusion study of a preset; without one, soup and delta over its first fusion's runs."""
    ingredients = next(iter(preset.fusion.values())).ingredients
    plain = {"uniform": ({},), "delta": ({},)}
    return preset.fusion_study or core.FusionStudy(ingredients=ingredients, candidates=plain)


def merged_variants(preset: core.Preset) -> list[str]:
    """The trained variants that the preset's fusions, its study or its path need."""
    named = [name for merge in preset.fusion.values() for name in merge.ingredients]
    return [name for name in preset.variants if name in (*named, *study_of(preset).runs)]


def open_runs(preset: core.Preset, seed: int) -> dict[str, Folder]:
    """The weights of the `merged_variants` of one seed, read from their folders when asked for."""
    folders = {name: core.run_folder(preset.name, name, seed) for name in merged_variants(preset)}
    return {name: Folder(folder / "model") for name, folder in folders.items()}


def save_merge(
    preset: core.Preset, model: str, seed: int, encoder: Encoder, base: Weights, runs: Mapping
) -> Path:
    """Make one fused model of a preset and return its run folder: `model/`, `fusion.csv`, manifest.

    A finished one of the same ingredients and settings is returned as it is. The preset's encoder
    takes the weights that :func:`merge_weights` makes of `base` and `runs`.
    """
    started = time.perf_counter()
    settings, folder = preset.fusion[model], core.run_folder(preset.name, model, seed)
    trained = [name for name in settings.ingredients if name != "base"]
    folders = {name: core.run_folder(preset.name, name, seed) for name in trained}
    manifests = {name: core.read_json(run / "manifest.json") for name, run in folders.items()}
    origins = {name: manifest["fingerprint"] for name, manifest in manifests.items()}
    recipe = settings.model_dump(mode="json", exclude_none=True)
    fingerprint = core.sha256_text(repr(recipe), repr(origins), str(NUMERICS))
    if core.is_complete(folder, fingerprint):
        return folder
    (folder / "manifest.json").unlink(missing_ok=True)  # it says that the model is whole
    encoder.backbone.load_state_dict(merge_weights(base, runs, settings))
    encoder.save(folder / "model")
    core.write_rows(folder / "fusion.csv", movements(base, runs, settings).assign(seed=seed))
    made_of = {"ingredient_fingerprints": origins, "model_hash": model_hash(preset.encoder)}
    core.write_manifest(
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


def movements(base: Weights, runs: Mapping[str, Weights], settings: core.Merge) -> pd.DataFrame:
    """How far each tensor of each ingredient moved, and what it weighs in the merge.

    Rows (ingredient, tensor, layer, module, delta_norm, weight), without tensors outside embeddings
    and layers, such as BERT's pooler, which is not trained. Other methods than delta are shown with
    equal weights. The whole weight of a kept tensor is with what it comes from.
    """
    ingredients, runs = settings.ingredients, {"base": base, **runs}
    sources, *merged = with_kept(base, runs, settings)
    options = settings.options() if settings.method == "delta" else {"power": 0.0}
    weights = delta_guided_weights(*merged, **options)
    weights |= {
        tensor: torch.tensor([float(name == source) for name in ingredients])
        for tensor, source in sources.items()
    }
    rows = [
        (name, tensor, core.layer_of(tensor), module_of(tensor), norm.item(), weight.mean().item())
        for tensor, norms in delta_norms(base, [runs[name] for name in ingredients]).items()
        if core.layer_of(tensor) is not None
        for name, norm, weight in zip(ingredients, norms, weights[tensor], strict=True)
    ]
    columns = ["ingredient", "tensor", "layer", "module", "delta_norm", "weight"]
    return pd.DataFrame(rows, columns=columns)


def module_of(tensor: str) -> str:
    """A tensor's name without layer number and parameter kind: `query`, `output.dense`."""
    name = re.sub(r"^.*\.\d+\.|\.(weight|bias)$", "", tensor)
    return re.sub(r"^(attention\.self|self_attn|mlp|embeddings)\.", "", name)


@torch.no_grad()
def try_on_dev(
    base: Weights,
    runs: Mapping[str, Weights],
    study: core.FusionStudy,
    scores: Callable[[Weights], pd.DataFrame],
    gradient: Callable | None = None,
) -> tuple[pd.DataFrame, dict[str, core.Merge]]:
    """Score every candidate of a study on dev, and pick one for each method.

    The pick has the best mean of both tasks' means. A greedy soup looks at dev by itself; its row
    is the uniform soup of what it kept. What `learned` found, by model, is a sum of deltas with
    these weights. `scores` gives a model's dev scores, as `evaluate.score`, and `gradient` that of
    a training loss, as `fuse/methods.py` says.

    Returns rows of the scores with method, candidate, settings, looks (how many models were scored
    for the row) and chosen; and each method's pick.
    """
    tables: list[pd.DataFrame] = []
    picks: dict[str, core.Merge] = {}
    for method, tried in study.tried.items():
        best = -np.inf
        for number, settings in enumerate(tried):
            looks = 1
            needs = core.METHODS[settings.method].needs
            if needs == "gradient":
                found = work_out(base, runs, settings, gradient).coefficients.tolist()[0]
                changed = {"method": "task_arithmetic", "weights": tuple(found)}
                changed |= dict.fromkeys(("granularity", "steps", "rate"))
                settings = settings.model_copy(update=changed)
            elif needs:
                soup = work_out(base, runs, settings, lambda model: mean_of_tasks(scores(model)))
                looks = 2 * len(settings.ingredients) - 1  # each alone; all but the best in a soup
                kept = tuple(settings.ingredients[number] for number in soup.kept)
                settings = settings.model_copy(update={"method": "uniform", "ingredients": kept})
            rows = scores(merge_weights(base, runs, settings))
            label = _label(settings, study)
            tables.append(rows.assign(method=method, candidate=number, settings=label, looks=looks))
            if (found := mean_of_tasks(rows)) > best:
                best, picks[method] = found, settings
    table = pd.concat(tables, ignore_index=True)
    chosen = {method: _label(settings, study) for method, settings in picks.items()}
    return table.assign(chosen=table["settings"] == table["method"].map(chosen)), picks


def _label(settings: core.Merge, study: core.FusionStudy) -> str:
    """What sets a candidate apart, such as `power 2, scale 0.8`."""
    parts = settings.options() | ({"scale": settings.scale} if settings.scale != 1 else {})
    parts |= {"at the soup's length": ""} if settings.match_length else {}
    parts |= {"depth": "{:g} to {:g}".format(*settings.depth)} if settings.depth else {}
    if settings.weights:
        parts["weights"] = f"[{', '.join(f'{weight:g}' for weight in settings.weights)}]"
    parts |= {f"{pattern} of": source for pattern, source in settings.keep.items()}
    if settings.ingredients != study.ingredients:
        parts["of"] = " + ".join(settings.ingredients)
    shown = (f"{n} {v:g}" if isinstance(v, float) else f"{n} {v}" for n, v in parts.items())
    return ", ".join(shown) or "as it is"


def path(first: Weights, second: Weights, points: int) -> Iterator[tuple[float, dict[str, Tensor]]]:
    r"""Pairs of t, from 0 to 1, and weights :math:`\theta_t = (1 - t) \theta_0 + t \theta_1`."""
    for t in np.linspace(0, 1, points).tolist():
        yield t, {n: x.lerp(second[n], t) if x.is_floating_point() else x for n, x in first.items()}
