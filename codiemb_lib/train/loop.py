"""The training loop: from a preset's variant and a seed to a run folder, on any devices."""

import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from codiemb_lib import core
from codiemb_lib.data import Dataset, Record, load_datasets, write_jsonl
from codiemb_lib.evaluate import NUMERICS as OF_EVALUATE
from codiemb_lib.evaluate import encode_dataset, save_encoded, score, with_mined
from codiemb_lib.model import NUMERICS as OF_MODEL
from codiemb_lib.model import Encoder, model_hash
from codiemb_lib.train import NUMERICS
from codiemb_lib.train.batches import Batch, OptimizerSteps, Share
from codiemb_lib.train.checkpoint import Checkpoints, Progress, agreed
from codiemb_lib.train.devices import launch, make_accelerator, sparse_embedding_gradients
from codiemb_lib.train.sampling import MixedTaskPlan, PairedTaskPlan, SingleTaskPlan
from codiemb_lib.train.step import Loss, backward, batch_loss, gather, needs_middle

logger = logging.getLogger(__name__)

Watch = Callable[[list[dict], pd.DataFrame], None] | None
_FREE = {"workers", "trackers", "accelerate"}  # settings that change no result
_BOTH = core.VariantSettings()  # of both tasks


class DivergenceError(core.CodiembError, FloatingPointError):
    """A loss or its gradient is NaN or Inf."""

    status = 1


def learning_rate(step: int, steps: int, *, peak: float, warmup: float) -> float:
    """Linear warm-up to `peak`, then linear decay to zero: the rate of 0-based `step`."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return peak * (step + 1) / rising
    return peak * (steps - step) / max(1, steps - rising)


def train(
    preset: core.Preset,
    variant: str,
    seed: int,
    *,
    accelerate: str | None = None,
    progress: bool = True,
    watch: Watch = None,
) -> Path:
    """Train one variant of a preset and return its run folder.

    There lie `model/`, with the weights of the best dev score over the variant's own tasks, or the
    last ones if the preset says so, `log.csv`, `dev.csv` and `manifest.json`. Teachers that are not
    trained yet are trained first. A finished run of the same settings and data is
    returned as it is; one of other settings stays whole until this one is finished. An unfinished
    one goes on from its checkpoint: plan, draws and dropout depend on seed and step alone, so that
    on a CPU, with as many threads, it comes to the same bits. Whoever else trains it waits.

    Args:
        accelerate: A configuration of accelerate, a name in `presets/accelerate` or a path, under
            which processes of their own train. "": this process trains, or those that call this
            together under `accelerate launch`. None: what the preset says.
        progress: Whether to show it as a bar; processes of `accelerate` only report dev scores.
        watch: Called after every step, by this process, with the rows of the log and dev scores.

    Raises:
        SystemExit: With status 143, at SIGTERM, after the step and a checkpoint.
        KeyboardInterrupt: Likewise at SIGINT; at a second one at once.
        PresetError: The preset cannot be trained so, with the data, encoder and packages at hand.
        UnwritableError: The run's folder cannot be written; found before any training.
        DivergenceError: The last checkpoint stays, and beside it the records of the batch.
        subprocess.CalledProcessError: The processes of `accelerate` failed.
    """
    for teacher in dict.fromkeys(preset.variant(variant).teachers.values()):  # one order for all
        train(preset, teacher, seed, accelerate=accelerate, progress=progress)
    config = preset.training.accelerate if accelerate is None else accelerate
    folder = core.run_folder(preset.name, variant, seed)
    if config and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        launch(preset, variant, seed, config)
    else:  # of processes that train together one on each machine takes the lock
        first = int(os.environ.get("LOCAL_RANK", "0")) <= 0
        with core.alone(folder) if first else nullcontext():
            _train_here(preset, variant, seed, folder, progress=progress, watch=watch)
    return folder


def _train_here(
    preset: core.Preset, variant: str, seed: int, folder: Path, *, progress: bool, watch: Watch
) -> None:
    """Train in this process, which may be one of several."""
    settings, preset = preset.variant(variant), preset.as_trained(variant)
    datasets = with_mined(preset, load_datasets(preset))
    accelerator = make_accelerator(preset, folder)
    data = {name: dataset.content_hash for name, dataset in datasets.items()}
    sections = {"encoder", "datasets", "objective", "training"}
    resolved = preset.model_dump(mode="json", include=sections, exclude={"training": _FREE})
    resolved |= {
        "variant": settings.model_dump(mode="json"),
        "seed": seed,
        "model_hash": model_hash(preset.encoder),
        "processes": accelerator.num_processes,
        "devices": f"{accelerator.distributed_type} {accelerator.device.type}",
        "precision": accelerator.mixed_precision,
    }
    teachers = {t: core.run_folder(preset.name, v, seed) for t, v in settings.teachers.items()}
    data |= {t: core.manifest_of(folder)["fingerprint"] for t, folder in teachers.items()}
    # A run, finished or not, is the one that is asked for where all of this is the same.
    packages = [core.versions()[package] for package in ("torch", "transformers")]
    numerics = {"model": OF_MODEL, "evaluate": OF_EVALUATE, "train": NUMERICS}
    fingerprint = core.sha256_text(repr(resolved), repr(data), repr(packages), repr(numerics))
    checkpoints = Checkpoints(folder, fingerprint, accelerator)
    if agreed(core.is_complete(folder, fingerprint)):
        logger.info("%s: finished before, nothing to train", checkpoints.name)
    else:
        core.check_writable(folder)
        own = seed + 1000 * settings.draw
        trainer = _Trainer(preset, settings, datasets, own, checkpoints, teachers)
        if preset.training.trackers:  # all take dotted names, but not all take lists
            named = {"preset": preset.name, "model": variant} | resolved
            [flat] = pd.json_normalize(named).to_dict("records")
            own = {"name": f"{preset.name}/{variant}/seed-{seed}"}
            accelerator.init_trackers(
                "codiemb",
                config={k: str(v) if isinstance(v, list) else v for k, v in flat.items()},
                init_kwargs={"wandb": own, "trackio": own},
            )
        done = trainer.train(progress=progress, watch=watch)
        if accelerator.is_main_process:
            checkpoints.publish(done, trajectory=preset.training.trajectory)
            core.write_manifest(
                folder,
                preset=preset,
                model=variant,
                seed=seed,
                settings=resolved | {"selected_step": done.best_step},
                fingerprint=fingerprint,
                data=data,
                seconds=done.seconds,
            )
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    accelerator.end_training()


def _common(names: Iterable[str]) -> str:
    """The one name of all batches of an optimiser step, or "mixed"."""
    names = set(names)
    return names.pop() if len(names) == 1 else "mixed"


def training_records(
    preset: core.Preset,
    datasets: Mapping[str, Dataset],
    seed: int,
    variant: core.VariantSettings = _BOTH,
) -> list[Record]:
    """What a variant trains on: `train` records of each set, or, with teachers, all the others.

    A set whose `train` is 0 is never trained on. Of a student's records no labels are read: they
    come without hard negatives, and the teachers' cosines stand for scores.
    """
    draw = seed if preset.training.sample_by_seed else 0
    records: list[Record] = []
    for d in preset.datasets:
        if d.train != 0 and (dataset := datasets[d.name]).task in variant.tasks:
            drawn = dataset.split("train", limit=d.train, seed=draw)
            if variant.teachers:
                known = {*map(id, drawn)}
                others = (r for r in dataset.split("train") if id(r) not in known)
                drawn = [replace(r, negatives=(), negative_scores=()) for r in others]
            records += drawn
    return records


class _Trainer:
    """One training run, on one rank."""

    def __init__(
        self,
        preset: core.Preset,
        variant: core.VariantSettings,
        datasets: Mapping[str, Dataset],
        seed: int,
        checkpoints: Checkpoints,
        teachers: Mapping[core.Task, Path],
    ):
        began = time.perf_counter()
        self.variant, self.checkpoints = variant, checkpoints
        self.objective, self.settings = preset.objective, preset.training
        self.accelerator = checkpoints.accelerator
        self.records = training_records(preset, datasets, seed, variant)
        if not self.records:
            raise core.PresetError(
                f"preset {preset.name!r}: expected a data set to train on of the variant's tasks "
                f"{[*variant.tasks]}, found none whose `train` is not 0."
            )
        self.dev = [
            (d, datasets[d.name].split("dev", limit=d.dev)) for d in preset.datasets if d.dev != 0
        ]
        torch.manual_seed(seed)
        self.encoder = Encoder.load(preset.encoder)
        self.teachers: dict[str, Encoder] = {}
        for task, folder in teachers.items():
            saved = preset.encoder.model_copy(update={"name": str(folder / "model"), "lora": None})
            teacher = Encoder.load(saved).requires_grad_(False)
            self.teachers[task] = teacher.to(self.accelerator.device).eval()
        D = self.encoder.dimension
        if any(d >= D for d in self.objective.matryoshka):
            raise core.PresetError(
                f"preset {preset.name!r}: objective.matryoshka: expected dimensions below the "
                f"encoder's {D}, which counts anyway, found {[*self.objective.matryoshka]}."
            )
        for d in preset.datasets:
            self.encoder.prompts[d.name] = d.query_prompt
            if d.passage_prompt:
                self.encoder.prompts[f"{d.name}-passage"] = d.passage_prompt
        if self.settings.gradient_checkpointing:
            self.encoder.backbone.activation_checkpointing_enable({"use_reentrant": False})
        sparse_embedding_gradients(self.accelerator, self.encoder)
        optimizer = torch.optim.AdamW(
            (p for p in self.encoder.parameters() if p.requires_grad),
            lr=self.settings.learning_rate,
            weight_decay=self.settings.weight_decay,
            fused=True,
        )
        self.model, self.optimizer = self.accelerator.prepare(self.encoder, optimizer)
        self.steps = OptimizerSteps(
            self.records,
            self._plan(),
            self.encoder,
            preset,
            seed=seed,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            sts_objective=variant.sts_objective,
        )
        self.total = min(len(self.steps), variant.ends_at or len(self.steps))
        self.progress = checkpoints.load(self.model, self.optimizer)
        self.began = began - self.progress.seconds

    def _plan(self) -> SingleTaskPlan | MixedTaskPlan:
        sizes = self.settings.batch_sizes.model_dump()
        if self.variant.plan == "mixed":
            return MixedTaskPlan(self.records, batch_size=sizes["mixed"])
        if self.variant.plan == "paired":
            return PairedTaskPlan(self.records, batch_sizes=sizes)
        return SingleTaskPlan(
            self.records,
            batch_sizes=sizes,
            balance=self.variant.balance,
            ir_share=self.variant.ir_share,
            temperature=self.variant.balance_temperature,
        )

    def train(self, *, progress: bool, watch: Watch) -> Progress:
        """Take the steps that are left."""
        done, total = self.progress, self.total
        show = progress and self.accelerator.is_main_process
        bar = tqdm(total=total, initial=done.step, desc="train", disable=not show)
        if done.step == 0:
            self._evaluate()
        ahead = DataLoader(
            self.steps,
            batch_size=None,
            sampler=range(done.step, total),
            collate_fn=list,
            num_workers=self.settings.workers,
            prefetch_factor=4 if self.settings.workers else None,
            worker_init_fn=_as_worker,
        )
        began = time.perf_counter()
        with _signals() as received:
            for shares in ahead:
                row = self._optimizer_step(shares, began)
                done.log.append(row)
                self.accelerator.log(row, step=done.step)
                done.step += 1
                bar.update()
                bar.set_postfix(task=row["task"], loss=f"{row['loss']:.3f}")
                evaluates = done.step % self.settings.evaluate_every == 0 or done.step == total
                if evaluates:
                    self._evaluate()
                ends = done.step < total and self._of_all_ranks(len(received)) > 0
                if evaluates or ends:
                    done.seconds = time.perf_counter() - self.began
                    self.checkpoints.save(self.model, self.optimizer, done)
                if watch and self.accelerator.is_main_process:
                    watch(done.log, done.dev)
                if ends:
                    logger.warning("%s: told to end at step %d", self.checkpoints.name, done.step)
                    if received == [signal.SIGINT]:
                        raise KeyboardInterrupt
                    raise SystemExit(128 + signal.SIGTERM)
                began = time.perf_counter()  # drawing and tokenising is part of the next step
        bar.close()
        return done

    def _of_all_ranks(self, number: int) -> int:
        return int(self.accelerator.reduce(torch.tensor([number], device=self.accelerator.device)))

    def _optimizer_step(self, shares: list[Share], began: float) -> dict:
        """Forward, backward and update over the batches of one step; returns its log row."""
        peak, warmup = self.settings.learning_rate, self.settings.warmup
        rate = learning_rate(self.progress.step, len(self.steps), peak=peak, warmup=warmup)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = rate
        self.model.train()
        paired = self.variant.plan == "paired"
        losses, norms = (self._paired if paired else self._add_gradients)(shares)
        norms = {"gradient_norm": self._clip(shares, self.settings.clip_norm), **norms}
        self.optimizer.step()
        self.optimizer.zero_grad()
        tokens = self._of_all_ranks(sum(share.tokens for share in shares))
        texts = sum(len(share.batch.texts) for share in shares)
        seconds = time.perf_counter() - began
        planned = [share.batch.planned for share in shares]
        return {
            "step": self.progress.step,
            "epoch": self.steps.epoch(self.progress.step),
            "task": "paired" if paired else _common(step.task for step in planned),
            "dataset": _common(step.dataset for step in planned),
            "loss": float(np.mean([loss.total.item() for loss in losses])),
            "learning_rate": rate,
            **norms,
            "texts": texts,
            "tokens": tokens,
            "seconds": round(seconds, 4),
            "texts_per_second": round(texts / seconds, 1),
            "tokens_per_second": round(tokens / seconds, 1),
            **pd.DataFrame([loss.components for loss in losses]).mean().sort_index().to_dict(),
        }

    def _add_gradients(self, shares: list[Share]) -> tuple[list[Loss], dict[str, float]]:
        """Add the mean gradient of some batches to the parameters; returns their losses."""
        losses = [
            backward(
                self.accelerator,
                self.model,
                share,
                partial(self._loss, self._taught(share)),
                middle=needs_middle(share.batch, self.objective, self.variant.sts_objective),
                scale=1 / len(shares),
                gradient_cache=self.settings.gradient_cache,
                synchronise=share is shares[-1],
            )
            for share in shares
        ]
        return losses, {}

    def _paired(self, shares: list[Share]) -> tuple[list[Loss], dict[str, float]]:
        """The sum of both tasks' gradients, each as long as its weight unless they are `plain`."""
        losses: list[Loss] = []
        norms: dict[str, float] = {}
        sums: dict[torch.nn.Parameter, torch.Tensor] = {}
        for task in ("ir", "sts"):
            own = [share for share in shares if share.batch.planned.task == task]
            losses += self._add_gradients(own)[0]
            weight, norm = getattr(self.variant.weights, task), self._clip(own, None)
            norms[f"gradient_norm_{task}"] = norm / weight  # which the loss has been multiplied by
            unit = self.variant.gradients == "unit" and norm > 0
            factor = weight / norm if unit else 1.0
            for parameter in self.model.parameters():
                if (gradient := parameter.grad) is not None:
                    gradient.mul_(factor)
                    if parameter in sums:
                        gradient.add_(sums[parameter])
                    sums[parameter], parameter.grad = gradient, None
        for parameter, gradient in sums.items():
            parameter.grad = gradient
        return losses, norms

    def _clip(self, shares: list[Share], most: float | None) -> float:
        """The norm of the gradient before it is shortened to `most`; refused if not finite."""
        bound = float("inf") if most is None else most
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), bound)
        if not torch.isfinite(norm):
            self._stop("gradient", float(norm), [share.batch for share in shares])
        return float(norm)

    @torch.no_grad()
    def _taught(self, share: Share) -> dict[str, torch.Tensor]:
        """By task what its teacher makes of a batch's texts, (m, D)."""
        found = {}
        for task, teacher in self.teachers.items():
            states = torch.cat([teacher(blocks)[0] for blocks in share.forwards]).float()
            found[task] = gather(self.accelerator, states, share)
        return found

    def _loss(self, taught: Mapping[str, torch.Tensor], batch: Batch, *states) -> Loss:
        how = {"sts_objective": self.variant.sts_objective, "weights": self.variant.weights}
        loss = batch_loss(batch, *states, settings=self.objective, taught=taught, **how)
        if not torch.isfinite(loss.total):
            self._stop("loss", f"{loss.total.item()} {loss.components}", [batch])
        return loss

    def _stop(self, what: str, found: object, batches: list[Batch]) -> None:
        """Keep the batches for inspection, and raise."""
        where = self.checkpoints.folder / "nonfinite.jsonl"
        if self.accelerator.is_main_process:
            places = [i for batch in batches for i in batch.planned.indices]
            write_jsonl(where, (self.records[i] for i in places))
        self.accelerator.wait_for_everyone()  # whoever ends first takes the others down
        dataset = _common(batch.planned.dataset for batch in batches) or "mixed data"
        raise DivergenceError(
            f"expected a finite {what}, found {found} at step {self.progress.step} on {dataset}. "
            f"Its records are in {where}. Lower the learning rate, or raise the temperature."
        )

    def _evaluate(self) -> None:
        """Dev scores; the weights that do best on the variant's own tasks are set aside.

        Every rank computes them, for the forward passes of a sharded model take all of them.
        """
        done, budget = self.progress, self.settings.tokens_per_forward
        encoded = [
            encode_dataset(self.encoder, settings, records, tokens_per_forward=budget)
            for settings, records in self.dev
        ]
        rows = score(encoded)
        main = rows[rows["metric"] == rows["task"].map(core.MAIN_METRIC)].assign(step=done.step)
        done.dev = pd.concat([done.dev, main], ignore_index=True)
        means = core.task_means(rows)
        self.accelerator.log({f"dev_{task}": mean for task, mean in means.items()}, step=done.step)
        shown = ", ".join(f"{task} {mean:.4f}" for task, mean in means.items())
        run, total = self.checkpoints.name, self.total
        logger.info("%s: step %d of %d, dev %s", run, done.step, total, shown)
        own = agreed(float(np.mean([means[task] for task in self.variant.tasks])))
        last = done.step == total
        if last if self.settings.keep == "last" else done.step > 0 and own > done.best_score:
            done.best_score, done.best_step = own, done.step
            self.checkpoints.save_best(self.encoder, done)
        if self.settings.trajectory and self.accelerator.is_main_process:
            save_encoded(self.checkpoints.trajectory / f"{done.step:08d}.safetensors", encoded)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """A list that the first SIGINT and SIGTERM fill, by which a user or a batch system ends us."""
    received: list[int] = []

    def note(number: int, _) -> None:
        if number == signal.SIGINT and number in received:
            raise KeyboardInterrupt
        received.append(number)

    ours = threading.current_thread() is threading.main_thread()  # which alone has signals
    before = {n: signal.signal(n, note) for n in (signal.SIGINT, signal.SIGTERM) if ours}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _as_worker(_: int) -> None:
    """A worker is a fork: it ends with us, and its tokeniser starts no threads."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal, where all processes get it
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
