"""Golden values of merging: every method with several settings, on fixed tensors and on folders."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from codiemb_lib.core.merge import METHODS, Merge
from codiemb_lib.core.words import layer_of
from codiemb_lib.fuse.delta import delta_guided_weights, delta_norms
from codiemb_lib.fuse.merging import merge, with_kept, work_out
from codiemb_lib.fuse.study import module_of, path
from tests.conftest import tiny_architecture
from tests.golden import check, digest, summary

Weights = dict[str, torch.Tensor]

SHAPES = {
    "embeddings.word_embeddings.weight": ((150, 120), torch.float32),  # enough to be sampled
    "encoder.layer.0.attention.self.query.weight": ((8, 8), torch.float32),
    "encoder.layer.0.output.dense.bias": ((8,), torch.float32),
    "encoder.layer.1.attention.self.query.weight": ((8, 8), torch.bfloat16),
    "encoder.layer.1.output.dense.weight": ((4, 8), torch.float64),
    "pooler.dense.weight": ((4, 4), torch.float32),
}


def made_up() -> tuple[Weights, list[Weights]]:
    """A base and three models that moved by unlike lengths, one of them not everywhere."""
    generator = torch.Generator().manual_seed(0)

    def near(origin: Weights | None, length: float) -> Weights:
        found = {"embeddings.position_ids": torch.arange(8)[None]}
        for name, (shape, dtype) in SHAPES.items():
            drawn = length * torch.randn(shape, generator=generator, dtype=torch.float64)
            if origin is not None:
                drawn = drawn + origin[name].double()
            found[name] = drawn.to(dtype)
        return found

    base = near(None, 1.0)
    models = [near(base, length) for length in (0.1, 0.3, 0.5)]
    models[0]["pooler.dense.weight"] = base["pooler.dense.weight"].clone()
    return base, models


def nearness(model: Weights) -> float:
    """A score of which the greedy soup keeps two models of three."""
    _, models = made_up()
    name = "encoder.layer.0.attention.self.query.weight"
    return -(model[name] - (models[0][name] + models[1][name]) / 2).norm().item()


def pull(model: Weights) -> Weights:
    """The gradient of half the squared distance to the third model, in the tensors of layers."""
    _, models = made_up()
    return {n: model[n] - models[2][n] for n in SHAPES if layer_of(n) in (0, 1)}


OPTIONS = {  # of a method that is not here, its defaults
    "delta": [
        {},
        *({"granularity": g} for g in ("model", "layer", "element")),
        {"power": 2.0, "scale": 0.7},
        {"power": -1.0},
        {"weighting": "softmax", "temperature": 0.5},
        {"weighting": "softmax", "temperature": -2.0, "granularity": "element"},
        {"granularity": "layer", "keep": {"*embeddings*": "base", "*layer.1*": 2}},
    ],
    "uniform": [{}, {"scale": 1.5}, {"scale": 0.0}, {"keep": {"*query*": 0}}],
    "linear": [{"weights": [1.0, 2.0, 1.0]}, {"weights": [2.0, -1.0, 0.5], "scale": 0.5}],
    "greedy": [{"score": nearness}],
    "learned": [{"gradient": pull, "steps": 5}, {"gradient": pull, "granularity": "layer"}],
    "task_arithmetic": [{}, {"weights": [0.5, 0.3, -0.2], "scale": 0.4}],
    "ties": [{}, {"density": 0.5}, {"density": 1.0, "weights": [1.0, 2.0, 0.5], "scale": 0.8}],
    "dare": [{}, {"density": 0.5, "seed": 3}, {"density": 0.5, "seed": 4, "scale": 0.5}],
    "slerp": [{}, {"t": 0.25}, {"t": 1.5}],
    "model_stock": [{}, {"floor": 1e-1}, {"scale": 1.2}],
}


def merged(method: str) -> dict:
    base, models = made_up()
    models = models[1:] if method == "slerp" else models
    found = {}
    for options in OPTIONS.get(method, [{}]):
        label = ", ".join(f"{k} {getattr(v, '__name__', v)}" for k, v in options.items())
        weights = merge(base, models, method=method, **options)
        found[label or "as it is"] = {name: summary(tensor) for name, tensor in weights.items()}
    return found


def weights_of_delta() -> dict:
    base, models = made_up()
    trials = [options for options in OPTIONS["delta"] if "scale" not in options]
    found = {}
    for options in trials:
        keep = {pattern: str(source) for pattern, source in options.get("keep", {}).items()}
        runs = {str(j): model for j, model in enumerate(models)}
        _, *kept = with_kept(base, runs, Merge(ingredients=[*runs], keep=keep))
        by_name = delta_guided_weights(*kept, **{k: v for k, v in options.items() if k != "keep"})
        short = options.get("granularity") == "element"
        label = ", ".join(f"{k} {v}" for k, v in options.items()) or "as it is"
        found[label] = {n: summary(w) if short else w for n, w in by_name.items()}
    return found


def norms() -> dict:
    return delta_norms(*made_up())


def kept_by_greedy() -> list[int]:
    base, models = made_up()
    runs = {str(j): model for j, model in enumerate(models)}
    return work_out(base, runs, Merge(ingredients=[*runs], method="greedy"), nearness).kept


def parts_of_names() -> dict:
    return {name: [layer_of(name), module_of(name)] for name in SHAPES}


def line() -> dict:
    _, models = made_up()
    return {
        f"{t:.2f}": {name: summary(tensor) for name, tensor in weights.items()}
        for t, weights in path(models[0], models[2], 4)
    }


def adapters() -> dict:
    """Folders of two LoRA adapters and one whole model, merged into a folder."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        base = tiny_architecture("bert").save(folder / "base")
        whole = tiny_architecture("bert", seed=5).save(folder / "whole")
        loras = [folder / f"lora-{seed}" for seed in (1, 2)]
        for seed, lora in enumerate(loras):
            torch.manual_seed(seed)
            config = LoraConfig(r=4, lora_alpha=6, target_modules=["query", "dense"])
            model = get_peft_model(tiny_architecture("bert").backbone, config)
            for parameter in filter(lambda p: p.requires_grad, model.parameters()):
                parameter.data += 0.1 * torch.randn(parameter.shape)
            model.save_pretrained(lora)
        found = {}
        for label, models in {"adapters": loras, "with a model": [whole, *loras]}.items():
            output = merge(base, models, method="delta", output=folder / label)
            tensors = load_file(output / "model.safetensors")
            joined = torch.cat([tensors[name].flatten().double() for name in sorted(tensors)])
            found[label] = {
                "names": digest(sorted(tensors)),
                "all": summary(joined),
                "query": summary(tensors["encoder.layer.1.attention.self.query.weight"]),
                "files": sorted(file.name for file in output.iterdir()),
            }
        return found


CASES = {f"method {method}": partial(merged, method) for method in METHODS} | {
    "delta-guided weights": weights_of_delta,
    "delta norms": norms,
    "kept by greedy": kept_by_greedy,
    "parts of names": parts_of_names,
    "path": line,
    "adapters": adapters,
}


@pytest.mark.parametrize("case", CASES)
def test_golden(case):
    check("fuse", {case: CASES[case]()})
