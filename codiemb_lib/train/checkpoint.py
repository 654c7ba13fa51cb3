"""Checkpoints: what a run needs to go on after a kill, and how a finished one takes its place.

While a run is at work, all that it writes lies in `checkpoints/FINGERPRINT/`, in the run's folder:

    00000012.safetensors weights, optimiser and progress: training goes on from here
    00000008.safetensors those before, to go back to where the last are damaged
    best-00000008/       the model with the best dev score at either
    log.csv, dev.csv     to be read while it trains; written with every checkpoint
    trajectory/          the embeddings behind every dev score, where the preset asks for them
    nonfinite.jsonl      the records of a batch whose loss or gradient was NaN or Inf
"""

import hashlib
import json
import logging
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint import state_dict as sharded

from codiemb_lib.core import atomic_path, sha256_folder, write_rows
from codiemb_lib.model import Encoder

logger = logging.getLogger(__name__)

# Whole tensors, however they are sharded, of the parameters that train: read from a file, or
# brought to the processor to be written.
_READ = sharded.StateDictOptions(full_state_dict=True, ignore_frozen_params=True, strict=False)
_WRITTEN = replace(_READ, cpu_offload=True)


def agreed(value: Any) -> Any:
    """The first process' value, in all of them: disks and devices may differ."""
    [value] = broadcast_object_list([value])
    return value


@dataclass
class Progress:
    """How far a run is: all of its state but weights and optimiser."""

    step: int = 0  # optimiser steps done
    best_step: int = 0  # after which of them dev was best
    best_score: float = -math.inf  # the dev score there
    best_hash: str = ""  # of the model set aside there
    seconds: float = 0.0  # spent by all processes that went on with the run
    log: list[dict] = field(default_factory=list)  # a row for each step
    dev: pd.DataFrame = field(default_factory=pd.DataFrame)  # main metrics by step and data set


def _read(file: Path) -> tuple[Progress, dict[str, torch.Tensor], str]:
    """A checkpoint's progress, all of its tensors, and the hash that it states of them."""
    with safe_open(file, "pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        stated = (opened.metadata() or {}).get("sha256", "")
    return Progress(**json.loads(tensors["progress"].numpy().tobytes())), tensors, stated


def _hash(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of tensors and their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {[*tensor.shape]} ".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


class Checkpoints:
    """The checkpoints of one run, by its fingerprint: those of another one are not taken up.

    All ranks call its methods; the first one writes.
    """

    def __init__(self, run: Path, fingerprint: str, accelerator: Accelerator):
        self.run, self.folder = run, run / "checkpoints" / fingerprint[:12]
        self.name = "/".join(run.parts[-3:])  # preset, variant, seed; not where the project lies
        self.trajectory = self.folder / "trajectory"
        self.accelerator = accelerator

    def _best(self, progress: Progress) -> Path:
        return self.folder / f"best-{progress.best_step:08d}"

    def save_best(self, encoder: Encoder, progress: Progress) -> None:
        """Set the encoder aside; those before it stay as long as their checkpoints."""
        options = sharded.StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights = sharded.get_model_state_dict(encoder.backbone, options=options)
        if self.accelerator.is_main_process:
            progress.best_hash = sha256_folder(encoder.save(self._best(progress), weights))

    def save(self, model: nn.Module, optimizer: AcceleratedOptimizer, progress: Progress) -> None:
        """Write a checkpoint, which holds a hash of itself; of those before the last is kept."""
        weights, state = sharded.get_state_dict(model, optimizer.optimizer, options=_WRITTEN)
        if self.accelerator.is_main_process:
            write_rows(self.folder / "log.csv", pd.DataFrame(progress.log))
            write_rows(self.folder / "dev.csv", progress.dev)
            done = vars(progress) | {"dev": progress.dev.to_dict("records")}
            text = bytearray(json.dumps(done).encode())  # a header would not hold a long log
            tensors = {"progress": torch.frombuffer(text, dtype=torch.uint8)}
            tensors |= {f"weight {name}": weight for name, weight in weights.items()}
            for name, moments in state["state"].items():
                tensors |= {f"{key} {name}": moment for key, moment in moments.items()}
            target = self.folder / f"{progress.step:08d}.safetensors"
            with atomic_path(target) as temporary:
                save_file(tensors, temporary, metadata={"sha256": _hash(tensors)})
            *older, before, last = [None, *sorted(self.folder.glob("*.safetensors"))]
            for file in filter(None, older):
                file.unlink()
            kept = {self._best(_read(file)[0]) for file in (before, last) if file}
            for model in {*self.folder.glob("best-*")} - kept:
                shutil.rmtree(model)

    def _whole(self) -> Path | None:
        """The last checkpoint that is as it was written, with its best model; others go."""
        for file in sorted(self.folder.glob("*.safetensors"), reverse=True):
            try:
                progress, tensors, stated = _read(file)
                models = self._best(progress), self.run / "model"  # there if a kill met `publish`
                if progress.best_step and progress.best_hash not in map(sha256_folder, models):
                    stated = "of another model"
                if _hash(tensors) == stated:
                    return file
            except (SafetensorError, KeyError, TypeError, ValueError):  # not even read
                pass
            logger.warning("%s: the checkpoint %s is damaged and left out", self.name, file.stem)
            file.unlink()
        return None

    def load(self, model: nn.Module, optimizer: AcceleratedOptimizer) -> Progress:
        """Take up the last checkpoint that is whole, if there is one."""
        first = self.accelerator.is_main_process
        if (last := agreed(self._whole() if first else None)) is None:
            return Progress()
        progress, tensors, _ = _read(last)
        del tensors["progress"]
        parts: dict[str, dict[str, torch.Tensor]] = {}  # weight and moments of each parameter
        for key, tensor in tensors.items():
            kind, name = key.split(" ", 1)
            parts.setdefault(name, {})[kind] = tensor
        weights = {name: part.pop("weight") for name, part in parts.items()}
        own = optimizer.optimizer
        state = sharded.get_optimizer_state_dict(model, own, options=_READ) | {"state": parts}
        read = {"model_state_dict": weights, "optim_state_dict": state, "options": _READ}
        sharded.set_state_dict(model, own, **read)
        progress.dev = pd.DataFrame(progress.dev)
        logger.info("%s: going on at step %d", self.name, progress.step)
        return progress

    def publish(self, progress: Progress, *, trajectory: bool) -> None:
        """Put the best model, the tables and the trajectory in the place of an older run.

        Its manifest goes first. So a kill on the way leaves no run that seems finished, and the
        next try goes on from the last checkpoint, moves what is still here, and comes to the end.
        """
        (self.run / "manifest.json").unlink(missing_ok=True)
        if not trajectory:
            shutil.rmtree(self.run / "trajectory", ignore_errors=True)
        parts = {"model": self._best(progress), "trajectory": self.trajectory}
        for name, source in parts.items():
            if source.is_dir():
                shutil.rmtree(self.run / name, ignore_errors=True)
                source.rename(self.run / name)
        for table in ("log.csv", "dev.csv"):
            shutil.copy(self.folder / table, self.run)
