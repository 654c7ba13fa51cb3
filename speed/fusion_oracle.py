"""Our linear, TIES, SLERP and Model Stock against mergekit's, tensor by tensor.

    python speed/fusion_oracle.py --mergekit PYTHON

PYTHON is that of a virtual environment made from speed/mergekit.txt. Small encoders of random
weights (BERT, XLM-R, Qwen2) with up to four checkpoints of each are merged by both. The largest
difference of any number must not exceed 1e-6, or the exit status is 1.

mergekit runs as its command `mergekit-pytorch` does, which merges any safetensors: `mergekit-yaml`
0.1.5 stops at a BertModel with a TypeError. Both call the same functions for a tensor.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from made_up import make_models, mergekit_config, mergekit_version, run_merges
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    BertConfig,
    BertModel,
    PreTrainedModel,
    Qwen2Config,
    Qwen2Model,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from codiemb_lib.core import hardware, versions, write_rows

TOLERANCE = 1e-6
SMALL = {
    "vocab_size": 1000,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}


class Case(NamedTuple):
    """A merge of the first `count` checkpoints; the options have the same names on both sides."""

    method: str
    count: int
    options: dict[str, Any] = {}  # noqa: RUF012 (never written to)


CASES = [
    Case("linear", 3, {"weights": [1.0, 1.0, 1.0]}),
    Case("linear", 3, {"weights": [0.2, 0.5, 0.9]}),
    Case("ties", 1, {"density": 0.2}),
    Case("ties", 2, {"density": 0.2}),
    Case("ties", 3, {"density": 0.2, "weights": [0.2, 0.5, 0.9]}),
    Case("ties", 4, {"density": 0.5}),
    Case("ties", 4, {"density": 1.0}),
    Case("slerp", 2, {"t": 0.3}),
    Case("slerp", 2, {"t": 0.5}),
    Case("model_stock", 2),
    Case("model_stock", 3),
    Case("model_stock", 4),
]
OURS = {"model_stock": {"floor": 1e-6}}  # an option that mergekit has built in; the paper has none


def backbones() -> dict[str, tuple[PreTrainedModel, float]]:
    """Random encoders, and how long the deltas are: in the last Model Stock's floor matters."""
    torch.manual_seed(0)
    return {
        "BERT": (BertModel(BertConfig(**SMALL)), 1.0),
        "XLM-R": (XLMRobertaModel(XLMRobertaConfig(**SMALL)), 1.0),
        "Qwen2": (Qwen2Model(Qwen2Config(**SMALL, num_key_value_heads=2)), 1.0),
        "BERT, hardly moved": (BertModel(BertConfig(**SMALL)), 1e-2),
    }


def unsettled(base: dict[str, Tensor], models: list[str], case: Case) -> dict[str, Tensor]:
    """Where TIES leaves a choice, which mergekit and ours take differently.

    Of deltas as large as the last that is kept, mergekit keeps just as many as the density says,
    whichever its sort puts first, ours all. Where what is kept sums up to zero, mergekit elects the
    positive sign, ours none, as the paper's sgn(0) = 0 has it.
    """
    masks = {name: torch.zeros_like(tensor, dtype=torch.bool) for name, tensor in base.items()}
    if case.method != "ties":
        return masks
    checkpoints = [load_file(f"{model}/model.safetensors") for model in models]
    weights = torch.tensor(case.options.get("weights", [1.0] * len(models)))
    for name, mask in masks.items():
        kept = []
        for checkpoint in checkpoints:
            delta = checkpoint[name] - base[name]
            count = max(1, int(case.options["density"] * delta.numel()))
            least = delta.abs().flatten().sort(descending=True).values[count - 1]
            kept.append(torch.where(delta.abs() >= least, delta, 0))
            if kept[-1].count_nonzero() > count:
                mask |= delta.abs() == least
        kept = torch.stack(kept, dim=-1) * weights  # (*shape, J)
        mask |= (kept.sum(dim=-1) == 0) & kept.any(dim=-1)
    return masks


def compare(
    folder: Path, backbone: PreTrainedModel, length: float, python: str
) -> list[dict[str, Any]]:
    """The largest difference in each case, over all numbers of one encoder that are settled."""
    base, models = make_models(folder, backbone, max(case.count for case in CASES), length=length)
    ours, theirs = [], []
    for number, case in enumerate(CASES):
        chosen = models[: case.count]
        arguments = {
            "base": base,
            "models": chosen,
            "options": {"method": case.method} | case.options | OURS.get(case.method, {}),
        }
        ours.append(("codiemb", f"{folder}/ours-{number}", arguments))
        origin = {"linear": None, "slerp": chosen[0]}.get(case.method, base)
        config = mergekit_config(case.method, origin, chosen, **case.options)
        theirs.append(("mergekit", f"{folder}/theirs-{number}", {"config": config}))
    run_merges(sys.executable, ours)
    run_merges(python, theirs)
    rows = []
    for case, (_, our, _), (_, their, _) in zip(CASES, ours, theirs, strict=True):
        a, b, start = (load_file(f"{f}/model.safetensors") for f in (our, their, base))
        assert a.keys() == b.keys() == start.keys(), a.keys() ^ b.keys()
        left_open = unsettled(start, models[: case.count], case)
        rows.append(
            {
                "method": case.method,
                "checkpoints": case.count,
                "options": " ".join(f"{key}={value}" for key, value in case.options.items()),
                "tensors": len(a),
                "numbers": sum(tensor.numel() for tensor in a.values()),
                "moved": max((b[name] - start[name]).abs().max().item() for name in b),
                "unsettled": sum(mask.sum().item() for mask in left_open.values()),
                "difference": max(
                    (a[name] - b[name]).masked_fill(left_open[name], 0).abs().max().item()
                    for name in b
                ),
            }
        )
    return rows


def main() -> None:
    """Compare all, print the table, keep the rows; exit with 1 if any case disagrees."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mergekit", required=True, metavar="PYTHON", help="of its environment")
    given = parser.parse_args()
    tables = []
    for name, (backbone, length) in backbones().items():
        with tempfile.TemporaryDirectory() as folder:
            rows = compare(Path(folder), backbone, length, given.mergekit)
        tables.append(pd.DataFrame(rows).assign(architecture=name))
        print(tables[-1].to_string(index=False), flush=True)
    table = pd.concat(tables, ignore_index=True)
    agree = table["difference"] <= TOLERANCE  # False for NaN
    table = table.assign(
        hardware=hardware(),
        torch=versions()["torch"],
        mergekit=mergekit_version(given.mergekit),
    )
    write_rows(Path(__file__).parent / "results" / "fusion_oracle.csv", table)
    sys.exit(0 if agree.all() else f"{(~agree).sum()} of {len(table)} differ by over {TOLERANCE}")


if __name__ == "__main__":
    main()
