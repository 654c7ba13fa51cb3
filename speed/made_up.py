"""What the benchmarks of fusion share: models of random weights, and merges in other processes."""

from __future__ import annotations

import json
import math
import re
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from codiemb_lib.core import EncoderSettings
from codiemb_lib.model import Encoder

CHILD = Path(__file__).with_name("merge_once.py")


def make_models(
    folder: Path, backbone: PreTrainedModel, count: int, *, length: float = 1.0
) -> tuple[str, list[str]]:
    """A base of random weights and `count` checkpoints of it, as sentence-transformers folders.

    A delta is half common to all checkpoints and half its own. How long it is differs by tensor and
    by checkpoint, from a thirtieth of the weights' spread to thrice it, times `length`.
    """
    tokenizer = Encoder.load(EncoderSettings(name="minilm-l6")).tokenizer.base
    base = Encoder(backbone, tokenizer, pooling="mean")
    folders = [base.save(folder / "base")]
    for j in range(count):
        weights = {}
        for i, (name, tensor) in enumerate(backbone.state_dict().items()):
            common, own = (torch.Generator().manual_seed(1000 * i + k) for k in (999, j))
            spread = 0.02 * length * 10 ** torch.empty(()).uniform_(-1.5, 0.5, generator=own)
            delta = torch.randn(tensor.shape, generator=common)
            delta += torch.randn(tensor.shape, generator=own)
            weights[name] = tensor + delta.mul_(spread / math.sqrt(2))
        folders.append(base.save(folder / f"checkpoint-{j}", weights))
        del weights
    return str(folders[0]), [str(f) for f in folders[1:]]


def mergekit_config(method: str, base: str | None, models: Sequence[str], **given: Any) -> dict:
    """A configuration of `mergekit-pytorch`; `weights` go to the models, all else is global."""
    weights = given.pop("weights", None) or [1.0] * len(models)
    places = [f"{model}/model.safetensors" for model in models]
    weighted = method in ("linear", "ties")
    return {
        "merge_method": method,
        "base_model": base and f"{base}/model.safetensors",
        "models": [
            {"model": place, "parameters": {"weight": weight} if weighted else {}}
            for place, weight in zip(places, weights, strict=True)
        ],
        "parameters": given,
        "dtype": "float32",
    }


def mergekit_version(python: str) -> str:
    """The version of mergekit in the environment of a Python."""
    command = "from importlib import metadata; print(metadata.version('mergekit'))"
    found = subprocess.run([python, "-c", command], check=True, capture_output=True, text=True)
    return found.stdout.strip()


def run_merges(python: str, jobs: Sequence[tuple[str, str, dict]]) -> list[dict[str, float]]:
    """What merge_once.py measured of each job, in one process of the given Python.

    Adds to the last the most memory that was the process's own, which leaves out pages of mapped
    files: seen from here, every hundredth of a second.

    Raises:
        RuntimeError: The process failed.
    """
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen([python, str(CHILD)], text=True, **pipes)
    with ThreadPoolExecutor(1) as pool:
        own = pool.submit(_most_anonymous, process)
        out, errors = process.communicate(json.dumps(jobs))
    if process.returncode:
        raise RuntimeError(f"{python} {CHILD}: ended with {process.returncode}:\n{errors[-3000:]}")
    measured = [json.loads(line) for line in out.splitlines()]
    measured[-1]["peak_anonymous_mib"] = own.result() / 2**10
    return measured


def _most_anonymous(process: subprocess.Popen) -> int:
    most = 0
    while process.returncode is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):  # it ended just now
            break
        if found := re.search(r"RssAnon:\s+(\d+)", status):  # a process that has ended has none
            most = max(most, int(found[1]))
        time.sleep(0.01)
    return most
