"""Training on any number of devices: the loop, checkpoints, and going on after a kill.

From Python or a notebook it is `train`; on several processes
`accelerate launch --config_file CONFIG -m codiemb_lib.train.loop --preset NAME --variant NAME`.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint import state_dict as sharded
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from codiemb_lib.core import (
    MAIN_METRIC,
    CodiembError,
    Preset,
    PresetError,
    VariantSettings,
    alone,
    atomic_path,
    check_writable,
    clear_scratch,
    is_complete,
    load_preset,
    preset_path,
    read_json,
    run_folder,
    sha256_text,
    task_means,
    versions,
    write_json,
    write_manifest,
    write_rows,
)
from codiemb_lib.data import Dataset, load_datasets, write_jsonl
from codiemb_lib.evaluate import NUMERICS as OF_EVALUATE
from codiemb_lib.evaluate import encode_dataset, save_encoded, score_dataset
from codiemb_lib.model import NUMERICS as OF_MODEL
from codiemb_lib.model import Encoder, model_hash
from codiemb_lib.train import NUMERICS
from codiemb_lib.train.batches import Batch, OptimizerSteps, Share
from codiemb_lib.train.sampling import MixedTaskPlan, SingleTaskPlan
from codiemb_lib.train.step import Loss, backward, batch_loss, lean_embeddings, needs_middle

logger = logging.getLogger(__name__)

Watch = Callable[[list[dict], pd.DataFrame], None]

# Settings that change no result: a run may go on under others.
_FREE = {"workers", "trackers", "accelerate"}

# What a finished run consists of: by its manifest it is one.
_RUN = ("manifest.json", "model", "trajectory", "dev.csv", "log.csv")


class LaunchError(CodiembError, RuntimeError):
    """Training in processes of their own failed."""


def learning_rate(step: int, steps: int, *, peak: float, warmup: float) -> float:
    """Linear warm-up to `peak`, then linear decay to zero: the rate of 0-based `step`."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return peak * (step + 1) / rising
    return peak * (steps - step) / max(1, steps - rising)


def train(
    preset: Preset,
    variant: str,
    seed: int,
    *,
    accelerate: str | None = None,
    progress: bool = True,
    watch: Watch | None = None,
) -> Path:
    """Train one variant of a preset and return its run folder; see `runs` for what lies there.

    A finished run of the same settings, data and code is returned as it is. An unfinished one goes
    on from its checkpoint: plan, draws and dropout depend on seed and step alone, so that on a CPU,
    with as many threads, it comes to the same bits. The weights kept in `model/` are those with the
    best dev score over the variant's own tasks. A finished run of other settings lies in `earlier/`
    until this one is finished, and is found again if its settings come back before.

    Args:
        preset: The experiment.
        variant: Which of its training runs.
        seed: Of plan, draws and dropout.
        accelerate: A configuration of accelerate, a name in `presets/accelerate` or a path: how
            many processes, on which devices, in which precision, how sharded. Training then runs
            in processes of its own. "": in this one. None: what the preset says. Where several
            processes call this already, under `accelerate launch`, they are those that train.
        progress: Whether to show a progress bar.
        watch: Called after every step with the rows of the log and the dev scores so far;
            `live.LivePlot()` draws them. Not from processes of `accelerate`, which only report.

    Raises:
        PresetError: The preset has no such variant, no records of one of the tasks, asks for more
            dimensions than there are, or names a configuration or tracker that is not there.
        UnwritableError: The run's folder cannot be written; found before any training.
        FloatingPointError: The loss or its gradient is NaN or Inf. The last checkpoint stays, and
            `nonfinite/` holds the records of the batch.
        LaunchError: The processes of `accelerate` failed.
    """
    preset.variant(variant)  # known, before a folder is made
    if accelerate is None:
        accelerate = preset.training.accelerate
    folder = run_folder(preset.name, variant, seed)
    one_of_several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    with _guard(folder) as lock:
        if accelerate and not one_of_several:
            _launch(preset, variant, seed, accelerate, folder, lock)
        else:
            _train_here(preset, variant, seed, folder, progress=progress, watch=watch)
    return folder


def _guard(folder: Path) -> AbstractContextManager[int | None]:
    """The run's lock; of processes that train together one on each machine takes it."""
    return alone(folder) if int(os.environ.get("LOCAL_RANK", "0")) <= 0 else nullcontext()


def _train_here(
    preset: Preset, variant: str, seed: int, folder: Path, *, progress: bool, watch: Watch | None
) -> None:
    """Train in this process, which may be one of several."""
    settings, preset = preset.variant(variant), preset.as_trained(variant)
    datasets = load_datasets(preset)
    if not any(datasets[d.name].task in settings.tasks and d.train != 0 for d in preset.datasets):
        raise PresetError(
            f"preset {preset.name!r}, variant {variant!r}: expected a data set to train on of its "
            f"tasks {[*settings.tasks]}, found none whose `train` is not 0."
        )
    accelerator = _accelerator(preset, folder)
    data = {name: dataset.content_hash for name, dataset in datasets.items()}
    shaped_by = preset.model_dump(
        mode="json",
        include={"encoder", "datasets", "objective", "training"},
        exclude={"training": _FREE},
    )
    shaped_by |= {"variant": settings.model_dump(mode="json"), "seed": seed}
    shaped_by["model_hash"] = model_hash(preset.encoder)
    shaped_by["processes"] = accelerator.num_processes
    shaped_by["devices"] = f"{accelerator.distributed_type} {accelerator.device.type}"
    shaped_by["precision"] = accelerator.mixed_precision
    numerics = {"model": OF_MODEL, "evaluate": OF_EVALUATE, "train": NUMERICS}
    fingerprint = sha256_text(repr(shaped_by), repr(data), repr(versions()), repr(numerics))
    earlier = folder / "earlier"
    if accelerator.is_main_process and is_complete(earlier, fingerprint):
        _move(reversed(_RUN), earlier, folder)
    if _agreed(is_complete(folder, fingerprint)):
        logger.info("%s: finished before, nothing to train", folder)
    else:
        check_writable(folder)
        started = time.perf_counter()
        run = _Run(preset, settings, datasets, seed, folder, fingerprint, accelerator)
        if preset.training.trackers:
            name = f"{preset.name}/{variant}/seed-{seed}"
            accelerator.init_trackers(
                "codiemb",
                config=_flat({"preset": preset.name, "model": variant} | shaped_by),
                init_kwargs={"wandb": {"name": name}, "trackio": {"name": name}},
            )
        run.loop(progress=progress, watch=watch)
        if accelerator.is_main_process:
            run.keep_best()
            write_manifest(
                folder,
                preset=preset,
                model=variant,
                seed=seed,
                settings=shaped_by | {"selected_step": run.best_step},
                fingerprint=fingerprint,
                data=data,
                seconds=time.perf_counter() - started + run.seconds_before,
            )
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        for name in ("checkpoints", "nonfinite", "earlier"):  # of tries before this run
            shutil.rmtree(folder / name, ignore_errors=True)
    accelerator.end_training()


def _move(names: Iterable[str], source: Path, target: Path) -> None:
    """Move those of the files and folders that are there, in place of what lies there."""
    target.mkdir(exist_ok=True)
    for name in names:
        if (source / name).is_dir():
            shutil.rmtree(target / name, ignore_errors=True)
        if (source / name).exists():
            (source / name).replace(target / name)


def _agreed(value: Any) -> Any:
    """The first process' value, in all of them: disks and devices may differ."""
    [value] = broadcast_object_list([value])
    return value


def _accelerator(preset: Preset, folder: Path) -> Accelerator:
    """Devices and precision, as `accelerate launch` said; one process without it."""
    trackers = list(preset.training.trackers)
    known = {str(tracker) for tracker in get_available_trackers()}
    if missing := [name for name in trackers if name not in known]:
        raise PresetError(
            f"preset {preset.name!r}: expected trackers that are installed, {sorted(known)}, "
            f"found {missing}. Install one by its name: `pip install {missing[0]}`."
        )
    # Buffers are constants, and ranks may differ in their number of forward passes.
    parallel = DistributedDataParallelKwargs(broadcast_buffers=False)
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),
        log_with=trackers or None,
        project_dir=folder,
        kwargs_handlers=[parallel],
    )
    sharded_whole = accelerator.distributed_type == "FSDP" and not accelerator.is_fsdp2
    if (
        accelerator.mixed_precision not in ("no", "bf16")
        or accelerator.distributed_type == "DEEPSPEED"
        or accelerator.gradient_accumulation_steps != 1
        or sharded_whole
    ):
        raise PresetError(
            "expected a configuration of accelerate with precision `no` or `bf16`, without "
            "DeepSpeed and accumulation, and FSDP only with `fsdp_version: 2`; found "
            f"{accelerator.mixed_precision!r}, {accelerator.distributed_type}, accumulation "
            f"{accelerator.gradient_accumulation_steps}. Accumulation belongs into the preset."
        )
    if accelerator.is_fsdp2 and accelerator.mixed_precision == "bf16":
        plugin = accelerator.state.fsdp_plugin  # else unit vectors would be rounded to bf16
        plugin.mixed_precision_policy = dataclasses.replace(
            plugin.mixed_precision_policy, reduce_dtype=torch.float32, output_dtype=None
        )
    return accelerator


def _flat(settings: Mapping[str, Any]) -> dict[str, bool | int | float | str | None]:
    """Settings as all trackers take them: by dotted names, lists written out."""
    flat = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{name}": inner for name, inner in _flat(value).items()}
        else:
            flat[key] = str(value) if isinstance(value, list) else value
    return flat


def _launch(preset: Preset, variant: str, seed: int, accelerate: str, run: Path, lock: int) -> None:
    """Train in the processes that a configuration of accelerate describes.

    Should we or their launcher be killed, they end soon, and hold our lock until they are gone. It
    is their standard input: launchers hand on no other descriptor that could hold it.
    """
    folder = preset_path("x").parent / "accelerate"
    config = folder / f"{accelerate}.yaml"
    if not config.is_file():
        config = Path(accelerate)
    if not config.is_file():
        known = sorted(path.stem for path in folder.glob("*.yaml"))
        raise PresetError(
            f"accelerate: expected the path of a configuration, or one of {known}, found "
            f"{accelerate!r}. `accelerate config --config_file PATH` writes one."
        )
    check_writable(run)
    with tempfile.TemporaryDirectory() as scratch:
        resolved = Path(scratch) / f"{preset.name}.yaml"  # as it is, not as the file says
        resolved.write_text(yaml.safe_dump(preset.model_dump(mode="json")), encoding="utf-8")
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
        if yaml.safe_load(config.read_text()).get("num_machines", 1) == 1:
            command += ["--main_process_port", "0"]  # any free one
        command += ["-m", "codiemb_lib.train.loop", "--preset", str(resolved)]
        command += ["--variant", variant, "--seed", str(seed), "--no-progress"]
        command += ["--end-with-launcher"]
        environment = {"OMP_NUM_THREADS": "1"} | os.environ
        said: list[str] = []
        with subprocess.Popen(
            command,
            env=environment,
            stdin=lock,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        ) as process:
            for line in process.stderr:
                sys.stderr.write(line)
                said.append(line)
    if process.returncode:
        # torchrun ends with a traceback of its own, behind those of the ranks.
        ranks = [line for line in said if line.startswith("[rank")]
        raise LaunchError(
            f"expected training by {config} to succeed, found exit status {process.returncode}. "
            "The end of what it said:\n" + "".join((ranks or said)[-30:])
        )


def _common(names: Iterable[str]) -> str:
    """The one name of all batches of an optimiser step, or "mixed"."""
    names = set(names)
    return names.pop() if len(names) == 1 else "mixed"


class _Run:
    """The state of one training run between steps, on one rank."""

    def __init__(
        self,
        preset: Preset,
        variant: VariantSettings,
        datasets: Mapping[str, Dataset],
        seed: int,
        folder: Path,
        fingerprint: str,
        accelerator: Accelerator,
    ):
        self.variant, self.seed, self.folder, self.fingerprint = variant, seed, folder, fingerprint
        self.objective, self.settings = preset.objective, preset.training
        self.accelerator = accelerator
        self.datasets = {settings.name: settings for settings in preset.datasets}
        self.records = [
            record
            for name, settings in self.datasets.items()
            if datasets[name].task in variant.tasks
            for record in datasets[name].split("train", limit=settings.train)
        ]
        self.dev = {
            name: datasets[name].split("dev", limit=settings.dev)
            for name, settings in self.datasets.items()
            if settings.dev != 0
        }
        torch.manual_seed(seed)
        self.encoder = Encoder.load(preset.encoder)
        D = self.encoder.dimension
        if any(d >= D for d in self.objective.matryoshka):
            raise PresetError(
                f"preset {preset.name!r}: objective.matryoshka: expected dimensions below the "
                f"encoder's {D}, which counts anyway, found {[*self.objective.matryoshka]}."
            )
        self.encoder.prompts |= _named_prompts(preset)
        if self.settings.gradient_checkpointing:
            self.encoder.backbone.activation_checkpointing_enable({"use_reentrant": False})
        lean_embeddings(accelerator, self.encoder)
        optimizer = torch.optim.AdamW(
            (p for p in self.encoder.parameters() if p.requires_grad),
            lr=self.settings.learning_rate,
            weight_decay=self.settings.weight_decay,
            fused=True,
        )
        self.model, self.optimizer = accelerator.prepare(self.encoder, optimizer)
        self.steps = OptimizerSteps(
            self.records,
            self._plan(),
            self.encoder.tokenizer,
            self.datasets,
            self.objective,
            seed=seed,
            epochs=self.settings.epochs,
            accumulation=self.settings.accumulation,
            max_steps=self.settings.max_steps,
            tokens_per_forward=self.settings.tokens_per_forward,
            packing=self.encoder.packing,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
        )
        self.step = self.best_step = 0
        self.best_score = -np.inf
        self.seconds_before = 0.0
        self.log: list[dict] = []
        self.dev_scores = pd.DataFrame()
        self.started = time.perf_counter()

    def _plan(self) -> SingleTaskPlan | MixedTaskPlan:
        sizes = self.settings.batch_sizes
        if self.variant.plan == "mixed":
            return MixedTaskPlan(self.records, batch_size=sizes.mixed)
        return SingleTaskPlan(
            self.records,
            batch_sizes={"ir": sizes.ir, "sts": sizes.sts},
            balance=self.variant.balance,
            ir_share=self.variant.ir_share,
            temperature=self.variant.balance_temperature,
        )

    def loop(self, *, progress: bool, watch: Watch | None) -> None:
        if self.accelerator.is_main_process:
            if (self.folder / "manifest.json").is_file():
                _move(_RUN, self.folder, self.folder / "earlier")
            shutil.rmtree(self.folder / "nonfinite", ignore_errors=True)  # of a try before
            for name in ("log.csv", "dev.csv"):
                clear_scratch(self.folder / name)
        self._resume()
        total = len(self.steps)
        show = progress and self.accelerator.is_main_process
        bar = tqdm(total=total, initial=self.step, desc="train", disable=not show)
        if self.step == 0:
            if self.accelerator.is_main_process:
                shutil.rmtree(self.folder / "trajectory", ignore_errors=True)
            self._evaluate()
        ahead = DataLoader(
            self.steps,
            batch_size=None,
            sampler=range(self.step, total),
            collate_fn=_as_it_is,
            num_workers=self.settings.workers,
            prefetch_factor=4 if self.settings.workers else None,
            worker_init_fn=_quiet_tokenizers,
        )
        began = time.perf_counter()
        for shares in ahead:
            row = self._optimizer_step(shares, began)
            self.log.append(row)
            self.accelerator.log({k: v for k, v in row.items() if v == v}, step=self.step)
            self.step += 1
            bar.update()
            bar.set_postfix(task=row["task"], loss=f"{row['loss']:.3f}")
            if self.step % self.settings.evaluate_every == 0 or self.step == total:
                self._evaluate()
                self._save()
            if watch and self.accelerator.is_main_process:
                watch(self.log, self.dev_scores)
            began = time.perf_counter()  # drawing and tokenising is part of the next step
        bar.close()

    def _optimizer_step(self, shares: list[Share], began: float) -> dict:
        """Forward, backward and update over the batches of one step; returns its log row."""
        peak, warmup = self.settings.learning_rate, self.settings.warmup
        rate = learning_rate(self.step, len(self.steps), peak=peak, warmup=warmup)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = rate
        self.model.train()
        losses = [
            backward(
                self.accelerator,
                self.model,
                share,
                self._loss,
                middle=needs_middle(share.batch, self.objective, self.variant.sts_objective),
                scale=1 / len(shares),
                gradient_cache=self.settings.gradient_cache,
                synchronise=share is shares[-1],
            )
            for share in shares
        ]
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        if not torch.isfinite(norm):
            self._stop("gradient", float(norm), [share.batch for share in shares])
        self.optimizer.step()
        self.optimizer.zero_grad()
        own = torch.tensor([sum(share.tokens for share in shares)], device=norm.device)
        tokens = int(self.accelerator.reduce(own))
        texts = sum(len(share.batch.texts) for share in shares)
        seconds = time.perf_counter() - began
        planned = [share.batch.step for share in shares]
        names = {name for loss in losses for name in loss.components}
        return {
            "step": self.step,
            "epoch": self.steps.epoch(self.step),
            "task": _common(step.task for step in planned),
            "dataset": _common(step.dataset for step in planned),
            "loss": float(np.mean([loss.total.item() for loss in losses])),
            **{
                name: float(np.mean([x.components[name].item() for x in losses if name in x[1]]))
                for name in sorted(names)
            },
            "learning_rate": rate,
            "gradient_norm": float(norm),
            "texts": texts,
            "tokens": tokens,
            "seconds": round(seconds, 4),
            "texts_per_second": round(texts / seconds, 1),
            "tokens_per_second": round(tokens / seconds, 1),
        }

    def _loss(self, batch: Batch, *states: torch.Tensor) -> Loss:
        loss = batch_loss(
            batch, *states, settings=self.objective, sts_objective=self.variant.sts_objective
        )
        if not torch.isfinite(loss.total):
            parts = {name: part.item() for name, part in loss.components.items()}
            self._stop("loss", f"{loss.total.item()} {parts}", [batch])
        return loss

    def _stop(self, what: str, found: object, batches: list[Batch]) -> None:
        """Keep the batches for inspection, and raise."""
        where = self.folder / "nonfinite"
        if self.accelerator.is_main_process:
            places = [i for batch in batches for i in batch.step.indices]
            write_jsonl(where / "batch.jsonl", (self.records[i] for i in places))
            details = {"step": self.step, "what": what, "found": str(found)}
            details |= {"texts": [list(text) for batch in batches for text in batch.texts]}
            write_json(where / "details.json", details)
        self.accelerator.wait_for_everyone()  # whoever ends first takes the others down
        raise FloatingPointError(
            f"{self.folder}: expected a finite {what}, found {found} at step {self.step} on "
            f"{_common(batch.step.dataset for batch in batches) or 'mixed data'}. Its records are "
            f"in {where}. Lower the learning rate, or raise the temperature."
        )

    def _evaluate(self) -> None:
        """Dev scores; the weights that do best on the variant's own tasks are set aside.

        Every rank computes them, for the forward passes of a sharded model take all of them.
        """
        budget = {"tokens_per_forward": self.settings.tokens_per_forward}
        encoded = [
            encode_dataset(self.encoder, self.datasets[name], records, **budget)
            for name, records in self.dev.items()
        ]
        rows = pd.concat(map(score_dataset, encoded), ignore_index=True)
        main = rows[rows["metric"] == rows["task"].map(MAIN_METRIC)]
        parts = [self.dev_scores, main.assign(step=self.step)]
        self.dev_scores = pd.concat(parts, ignore_index=True)
        means = task_means(rows)
        for task, mean in means.items():
            self.accelerator.log({f"dev_{task}": mean}, step=self.step)
        shown = ", ".join(f"{task} {mean:.4f}" for task, mean in means.items())
        logger.info("%s: step %d of %d, dev %s", self.folder, self.step, len(self.steps), shown)
        score = _agreed(float(np.mean([means[task] for task in self.variant.tasks])))
        if self.step > 0 and score > self.best_score:
            self.best_score, self.best_step = score, self.step
            options = sharded.StateDictOptions(full_state_dict=True, cpu_offload=True)
            weights = sharded.get_model_state_dict(self.encoder.backbone, options=options)
            if self.accelerator.is_main_process:
                self.encoder.save(self._best, weights)
        if self.accelerator.is_main_process:
            self._write_tables(self.folder)
            if self.settings.trajectory:
                save_encoded(self.folder / "trajectory" / f"{self.step:08d}.safetensors", encoded)

    @property
    def _best(self) -> Path:
        """The model with the best dev score: beside the checkpoint that says so, until the end."""
        return self.folder / "checkpoints" / f"best-{self.best_step:08d}"

    def keep_best(self) -> None:
        """Make the best model the run's."""
        model = self.folder / "model"
        if self._best.is_dir():  # else a run that was killed just behind this had done it
            shutil.rmtree(model, ignore_errors=True)
            self._best.rename(model)

    def _write_tables(self, folder: Path) -> None:
        write_rows(folder / "log.csv", pd.DataFrame(self.log))
        write_rows(folder / "dev.csv", self.dev_scores)

    def _save(self) -> None:
        """Write a checkpoint and remove the one before: a complete one exists at any moment."""
        options = sharded.StateDictOptions(
            full_state_dict=True, cpu_offload=True, ignore_frozen_params=True
        )
        weights, state = sharded.get_state_dict(
            self.model, self.optimizer.optimizer, options=options
        )
        if not self.accelerator.is_main_process:
            return
        target = self.folder / "checkpoints" / f"{self.step:08d}"
        moments = {
            f"{name}/{key}": value
            for name, entry in state["state"].items()
            for key, value in entry.items()
        }
        with atomic_path(target) as temporary:
            temporary.mkdir()
            save_file(weights, temporary / "weights.safetensors")
            save_file(moments, temporary / "optimizer.safetensors")
            self._write_tables(temporary)
            write_json(
                temporary / "state.json",
                {
                    "fingerprint": self.fingerprint,
                    "step": self.step,
                    "best_step": self.best_step,
                    "best_score": self.best_score,
                    "seconds": self.seconds_before + time.perf_counter() - self.started,
                },
            )
        _keep_only(target, self._best)

    def _resume(self) -> None:
        """Take up the newest checkpoint of the same settings, data and code, if there is one."""
        states: list[Path] = []
        if self.accelerator.is_main_process:  # the others might look while it clears up
            states = sorted((self.folder / "checkpoints").glob("[0-9]*/state.json"))
        found = [file for file in states if read_json(file)["fingerprint"] == self.fingerprint]
        checkpoint = _agreed(found[-1].parent if found else None)
        if checkpoint is None:
            if self.accelerator.is_main_process:
                if states:
                    logger.warning("%s: of other settings, data or code: removed", states[-1])
                shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
            return
        state = read_json(checkpoint / "state.json")
        moments: dict[str, dict[str, torch.Tensor]] = {}
        for key, tensor in load_file(checkpoint / "optimizer.safetensors").items():
            name, _, part = key.rpartition("/")
            moments.setdefault(name, {})[part] = tensor
        options = sharded.StateDictOptions(
            full_state_dict=True, ignore_frozen_params=True, strict=False
        )
        optimizer = self.optimizer.optimizer
        fresh = sharded.get_optimizer_state_dict(self.model, optimizer, options=options)
        sharded.set_state_dict(
            self.model,
            optimizer,
            model_state_dict=load_file(checkpoint / "weights.safetensors"),
            optim_state_dict=fresh | {"state": moments},
            options=options,
        )
        self.step, self.best_step = state["step"], state["best_step"]
        self.best_score, self.seconds_before = state["best_score"], state["seconds"]
        self.log = pd.read_csv(checkpoint / "log.csv").to_dict("records")
        self.dev_scores = pd.read_csv(checkpoint / "dev.csv")
        logger.info("%s: going on at step %d", self.folder, self.step)


def _keep_only(*kept: Path) -> None:
    for older in kept[0].parent.iterdir():
        if older.is_dir() and older not in kept:
            shutil.rmtree(older)


def _as_it_is(item):
    return item


def _quiet_tokenizers(_: int) -> None:
    """A worker is a fork: a tokeniser must not start threads in it, nor warn that it does not."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _named_prompts(preset: Preset) -> dict[str, str]:
    """The prompts of a preset, by data set, to be saved with the model."""
    prompts = {d.name: d.query_prompt for d in preset.datasets}
    prompts |= {f"{d.name}-passage": d.passage_prompt for d in preset.datasets if d.passage_prompt}
    return prompts


def _end_with_launcher() -> None:
    """End this process soon after its parent, or whoever reads its standard error, a pipe."""
    parent = os.getppid()
    pipe = select.poll()
    pipe.register(sys.__stderr__.fileno(), 0)  # that nobody reads any more is always told

    def wait() -> None:
        while os.getppid() == parent and not pipe.poll(1000):  # milliseconds
            pass
        os._exit(1)  # as a kill would: the last checkpoint stays

    threading.Thread(target=wait, daemon=True).start()


def main(argv: list[str] | None = None) -> None:
    """The entry of every process that `accelerate launch` starts."""
    parser = argparse.ArgumentParser(prog="codiemb_lib.train.loop", description=train.__doc__)
    parser.add_argument("--preset", required=True, help="a name, or the path of a YAML file")
    parser.add_argument("--variant", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--progress", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--end-with-launcher", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    if given.end_with_launcher:
        _end_with_launcher()
    preset = load_preset(given.preset)
    preset.variant(given.variant)
    folder = check_writable(run_folder(preset.name, given.variant, given.seed))
    # A `train` that launched these has handed on the lock that it holds.
    with nullcontext() if given.end_with_launcher else _guard(folder):
        _train_here(preset, given.variant, given.seed, folder, progress=given.progress, watch=None)


if __name__ == "__main__":
    main()
