"""Training: the loss of a step, the loop around it, checkpoints, and going on after a kill."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from codiemb_lib import objectives
from codiemb_lib.config import (
    DatasetSettings,
    ObjectiveSettings,
    Preset,
    PresetError,
    VariantSettings,
)
from codiemb_lib.encoder import Encoder, weights_hash
from codiemb_lib.evaluation import MAIN_METRIC, evaluate, task_means
from codiemb_lib.files import atomic_path, check_writable, read_json, sha256_text, write_json
from codiemb_lib.imports import source_hash
from codiemb_lib.records import Record
from codiemb_lib.runs import is_complete, run_folder, write_manifest, write_rows
from codiemb_lib.sampling import MixedTaskPlan, SingleTaskPlan
from codiemb_lib.sources import load_dataset, load_split

logger = logging.getLogger(__name__)


class StepLoss(NamedTuple):
    """The loss of one batch, its components before weighting, and what it cost."""

    total: Tensor
    components: dict[str, Tensor]
    texts: int
    tokens: int


def ir_loss(
    encoder: Encoder,
    batch: Sequence[Record],
    prompts: Mapping[str, DatasetSettings],
    settings: ObjectiveSettings,
    generator: np.random.Generator,
    *,
    tokens_per_forward: int = 2048,
) -> StepLoss:
    """Multi-positive InfoNCE of a retrieval batch (METHOD, "Objectives": IR).

    Each record gives `settings.positives` positives and, where it has any, `settings.negatives`
    hard negatives; too few are drawn again. A record without negatives adds none to the pool, and
    nobody's negative is a positive of the batch: the pool is everybody's.
    """
    return _contrast(encoder, batch, [], prompts, settings, generator, tokens_per_forward)


def mixed_loss(
    encoder: Encoder,
    batch: Sequence[Record],
    prompts: Mapping[str, DatasetSettings],
    settings: ObjectiveSettings,
    generator: np.random.Generator,
    *,
    tokens_per_forward: int = 2048,
) -> StepLoss:
    """One InfoNCE over records of both tasks: the common recipe that CoDiEmb argues against.

    An STS pair counts as query and positive from `settings.mixed_anchor_score` on; of a pair below
    it, the second text joins the pool of negatives. This use of graded pairs is our choice.
    """
    anchors = [r for r in batch if r.task == "ir" or r.score >= settings.mixed_anchor_score]
    low = [r for r in batch if r.task == "sts" and r.score < settings.mixed_anchor_score]
    if not anchors:  # nothing to pull together: a zero that is still connected to the graph
        embedded = encoder.embed([r.query for r in low])
        zero = embedded.final.sum() * 0
        return StepLoss(zero, {"info_nce": zero}, embedded.texts, embedded.tokens)
    return _contrast(encoder, anchors, low, prompts, settings, generator, tokens_per_forward)


def _contrast(
    encoder: Encoder,
    anchors: Sequence[Record],
    low: Sequence[Record],
    prompts: Mapping[str, DatasetSettings],
    settings: ObjectiveSettings,
    generator: np.random.Generator,
    tokens_per_forward: int,
) -> StepLoss:
    """InfoNCE of anchors against their positives and one pool: hard negatives, and low pairs."""
    drawn = [(r, _draw(r.positives, settings.positives, generator)) for r in anchors]
    taken = {text for record in anchors for text in record.positives}
    for record in anchors:
        if hard := [text for text in record.negatives if text not in taken]:
            drawn.append((record, _draw(hard, settings.negatives, generator)))
    drawn += [(r, [r.positives[0]]) for r in low if r.positives[0] not in taken]
    passages = [(text, _passage_prompt(prompts[r.dataset], r)) for r, ts in drawn for text in ts]
    queries = [(r.query, prompts[r.dataset].query_prompt) for r in anchors]
    texts, carried = zip(*queries, *passages, strict=True)
    embedded = encoder.embed(texts, prompts=carried, tokens_per_forward=tokens_per_forward)
    n, p = len(anchors), settings.positives
    query, passage = embedded.final[:n], embedded.final[n:]
    loss = objectives.multi_positive_info_nce(
        query,
        passage[: n * p].unflatten(0, (n, p)),  # (B, P, D)
        passage[n * p :].unsqueeze(1),  # (K, 1, D): the pool
        temperature=settings.temperature,
    )
    return StepLoss(loss, {"info_nce": loss}, embedded.texts, embedded.tokens)


def _passage_prompt(prompts: DatasetSettings, record: Record) -> str:
    return prompts.passage_prompt if record.task == "ir" else prompts.query_prompt


def _draw(texts: Sequence[str], count: int, generator: np.random.Generator) -> list[str]:
    """`count` texts at random; all of them once before any is drawn again."""
    drawn: list[int] = []
    while len(drawn) < count:
        drawn += generator.permutation(len(texts))[: count - len(drawn)].tolist()
    return [texts[i] for i in drawn]


def sts_loss(
    encoder: Encoder,
    batch: Sequence[Record],
    prompts: Mapping[str, DatasetSettings],
    settings: ObjectiveSettings,
    objective: str = "codiemb",
    *,
    tokens_per_forward: int = 2048,
) -> StepLoss:
    """The loss of a similarity batch (METHOD, "Objectives": STS).

    Args:
        encoder: The encoder in training.
        batch: n pairs.
        prompts: By data set; both sides of a pair carry the query's.
        settings: Weights and temperatures.
        objective: `codiemb`: the weighted sum of middle-layer InfoNCE, Pearson, RankKL and PRO;
            `cosent` or `angle`: a pairwise baseline.
        tokens_per_forward: Padded tokens of one forward pass.
    """
    n = len(batch)
    prompt = [prompts[record.dataset].query_prompt for record in batch]
    embedded = encoder.embed(
        [record.query for record in batch] + [record.positives[0] for record in batch],
        prompts=prompt * 2,
        middle=objective == "codiemb" and settings.info_nce_mid > 0,
        tokens_per_forward=tokens_per_forward,
    )
    left, right = embedded.final[:n], embedded.final[n:]
    scores = torch.tensor([record.score for record in batch], device=left.device)
    similarities = (left * right).sum(-1)
    soft = {"temperature": settings.rank_temperature}
    if objective == "cosent":
        parts = {"cosent": objectives.cosent_loss(similarities, scores, **soft)}
    elif objective == "angle":
        parts = {"angle": objectives.angle_loss(left, right, scores, **soft)}
    else:
        parts = {
            "pearson": objectives.pearson_loss(similarities, scores),
            "rank_kl": objectives.rank_kl_loss(similarities, scores, **soft),
            "pro": objectives.pro_loss(similarities, scores, **soft),
        }
        if embedded.middle is not None:
            parts["info_nce_mid"] = objectives.middle_layer_info_nce(
                embedded.middle[:n],
                embedded.middle[n:],
                scores,
                temperature=settings.temperature,
                anchor_score=settings.anchor_score,
            )
    weights = {name: getattr(settings, name, 1.0) for name in parts}
    total = sum(weights[name] * part for name, part in parts.items())
    return StepLoss(total, parts, embedded.texts, embedded.tokens)


def _common(names: Iterable[str]) -> str:
    """The one name of all batches of an optimiser step, or "mixed"."""
    names = set(names)
    return names.pop() if len(names) == 1 else "mixed"


def learning_rate(step: int, steps: int, *, peak: float, warmup: float) -> float:
    """Linear warm-up to `peak`, then linear decay to zero: the rate of 0-based `step`."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return peak * (step + 1) / rising
    return peak * (steps - step) / max(1, steps - rising)


def train(preset: Preset, variant: str, seed: int, *, progress: bool = True) -> Path:
    """Train one variant of a preset and return its run folder; see `runs` for what lies there.

    A finished run of the same settings, data and code is returned as it is. An unfinished one goes
    on from its checkpoint, to the same bits: plan, draws and dropout depend on seed and step alone.
    The weights kept in `model/` are those with the best dev score over the variant's own tasks.

    Raises:
        PresetError: The preset has no such variant, or no data set of one of the tasks.
        NotImplementedError: Several processes.
        UnwritableError: The run's folder cannot be written; found before any work.
        FloatingPointError: The loss is NaN or Inf. The last checkpoint stays.
    """
    settings = preset.variant(variant)
    datasets = [load_dataset(dataset.name) for dataset in preset.datasets]
    if missing := {"ir", "sts"} - {dataset.task for dataset in datasets}:
        raise PresetError(
            f"preset {preset.name!r}: expected data sets of both tasks, found none of "
            f"{missing.pop()!r}. Add one: every run is scored on both tasks."
        )
    folder = check_writable(run_folder(preset.name, variant, seed))
    data = {dataset.name: dataset.content_hash for dataset in datasets}
    resolved = {"encoder", "datasets", "objective", "training"}
    shaped_by = preset.model_dump(mode="json", include=resolved)
    shaped_by |= {"variant": settings.model_dump(mode="json"), "seed": seed}
    shaped_by["weights"] = weights_hash(preset.encoder)
    fingerprint = sha256_text(repr(shaped_by), repr(data), source_hash(__name__))
    if is_complete(folder, fingerprint):
        logger.info("%s: finished before, nothing to train", folder)
        return folder
    (folder / "manifest.json").unlink(missing_ok=True)

    started = time.perf_counter()
    run = _Run(preset, settings, seed, folder, fingerprint)
    run.loop(progress=progress)
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
    shutil.rmtree(run.checkpoint, ignore_errors=True)
    return folder


class _Run:
    """The state of one training run between steps."""

    def __init__(
        self,
        preset: Preset,
        variant: VariantSettings,
        seed: int,
        folder: Path,
        fingerprint: str,
    ):
        self.variant, self.seed, self.folder, self.fingerprint = variant, seed, folder, fingerprint
        self.objective, self.settings = preset.objective, preset.training
        self.datasets = {dataset.name: dataset for dataset in preset.datasets}
        loaded = {d.name: load_split(d.name, "train", limit=d.train) for d in preset.datasets}
        self.records = [r for rs in loaded.values() for r in rs if r.task in variant.tasks]
        self.dev = {d.name: load_split(d.name, "dev", limit=d.dev) for d in preset.datasets}

        self.accelerator = Accelerator()
        if self.accelerator.num_processes > 1:
            raise NotImplementedError(
                f"expected one process, found {self.accelerator.num_processes}: training on "
                "several is not built yet. Start it without `accelerate launch`."
            )
        torch.manual_seed(seed)
        encoder = Encoder.load(preset.encoder)
        optimizer = torch.optim.AdamW(
            (p for p in encoder.parameters() if p.requires_grad),
            lr=self.settings.learning_rate,
            weight_decay=self.settings.weight_decay,
            fused=True,
        )
        self.encoder, self.optimizer = self.accelerator.prepare(encoder, optimizer)
        self.batches = self._batches()
        self.step = self.best_step = 0
        self.best_score = -np.inf
        self.seconds_before = 0.0
        self.log: list[dict] = []
        self.dev_scores: list[pd.DataFrame] = []
        self.started = time.perf_counter()

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    def _batches(self) -> list[tuple[int, int, object]]:
        """The optimiser steps of the run: groups of (epoch, place in the epoch, sampling.Step)."""
        sizes = self.settings.batch_sizes
        if self.variant.plan == "mixed":
            plan = MixedTaskPlan(self.records, batch_size=sizes.mixed)
        else:
            plan = SingleTaskPlan(
                self.records,
                batch_sizes={"ir": sizes.ir, "sts": sizes.sts},
                balance=self.variant.balance,
                ir_share=self.variant.ir_share,
                temperature=self.variant.balance_temperature,
            )
        groups = []
        for epoch in range(self.settings.epochs):
            steps = plan.steps(
                epoch,
                seed=self.seed,
                world_size=self.accelerator.num_processes,
                rank=self.accelerator.process_index,
            )
            numbered = [(epoch, place, step) for place, step in enumerate(steps)]
            size = self.settings.accumulation
            groups += [numbered[i : i + size] for i in range(0, len(numbered), size)]
        return groups[: self.settings.max_steps or None]

    def loop(self, *, progress: bool) -> None:
        self._resume()
        total = len(self.batches)
        bar = tqdm(total=total, initial=self.step, desc="train", disable=not progress)
        if self.step == 0:
            self._evaluate()
        while self.step < total:
            row = self._optimizer_step(self.batches[self.step], total)
            self.log.append(row)
            self.step += 1
            bar.update()
            bar.set_postfix(task=row["task"], loss=f"{row['loss']:.3f}")
            if self.step % self.settings.evaluate_every == 0 or self.step == total:
                self._evaluate()
                self._save()
        bar.close()

    def _optimizer_step(self, group, total: int) -> dict:
        """Forward, backward and update over the batches of one group; returns its log row."""
        began = time.perf_counter()
        rate = learning_rate(
            self.step, total, peak=self.settings.learning_rate, warmup=self.settings.warmup
        )
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = rate
        self.encoder.train()
        losses = []
        for epoch, place, step in group:
            torch.manual_seed(self.seed * 1_000_003 + epoch * 100_003 + place)  # dropout
            loss = self._loss(epoch, place, step)
            if not torch.isfinite(loss.total):
                raise FloatingPointError(
                    f"{self.folder}: expected a finite loss, found {loss.total.item()} at step "
                    f"{self.step} on {step.dataset or 'mixed data'} "
                    f"({ {k: v.item() for k, v in loss.components.items()} }). "
                    "Lower the learning rate, or raise the temperature."
                )
            self.accelerator.backward(loss.total / len(group))
            losses.append(loss)
        norm = self.accelerator.clip_grad_norm_(self.encoder.parameters(), self.settings.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        names = {name for loss in losses for name in loss.components}
        return {
            "step": self.step,
            "epoch": group[0][0],
            "task": _common(step.task for _, _, step in group),
            "dataset": _common(step.dataset for _, _, step in group),
            "loss": float(np.mean([loss.total.item() for loss in losses])),
            **{
                name: float(np.mean([x.components[name].item() for x in losses if name in x[1]]))
                for name in sorted(names)
            },
            "learning_rate": rate,
            "gradient_norm": float(norm),
            "texts": sum(loss.texts for loss in losses),
            "tokens": sum(loss.tokens for loss in losses),
            "seconds": round(time.perf_counter() - began, 4),
        }

    def _loss(self, epoch: int, place: int, step) -> StepLoss:
        batch = [self.records[i] for i in step.indices]
        shared = (self.encoder, batch, self.datasets, self.objective)
        budget = {"tokens_per_forward": self.settings.tokens_per_forward}
        if step.task == "sts":
            return sts_loss(*shared, self.variant.sts_objective, **budget)
        rank = self.accelerator.process_index
        generator = np.random.default_rng([self.seed, epoch, place, rank])
        loss = ir_loss if step.task == "ir" else mixed_loss
        return loss(*shared, generator, **budget)

    def _evaluate(self) -> None:
        """Dev scores; the weights that do best on the variant's own tasks become `model/`."""
        encoder = self.accelerator.unwrap_model(self.encoder)
        rows = evaluate(encoder, self.datasets.values(), self.dev)
        main = rows[rows["metric"] == rows["task"].map(MAIN_METRIC)]
        self.dev_scores.append(main.assign(step=self.step))
        means = task_means(rows)
        score = float(np.mean([means[task] for task in self.variant.tasks]))
        if self.step > 0 and score > self.best_score:
            self.best_score, self.best_step = score, self.step
            encoder.save(self.folder / "model")
        self._write_tables(self.folder)

    def _write_tables(self, folder: Path) -> None:
        write_rows(folder / "log.csv", pd.DataFrame(self.log))
        write_rows(folder / "dev.csv", pd.concat(self.dev_scores, ignore_index=True))

    def _save(self) -> None:
        """Replace the checkpoint: weights, optimiser state, tables; all in safetensors and text."""
        state = self.optimizer.state_dict()["state"]
        tensors = {f"{i}.{k}": v for i, entry in state.items() for k, v in entry.items()}
        encoder = self.accelerator.unwrap_model(self.encoder)
        with atomic_path(self.checkpoint) as temporary:
            temporary.mkdir()
            save_file(dict(encoder.backbone.state_dict()), temporary / "weights.safetensors")
            save_file(tensors, temporary / "optimizer.safetensors")
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

    def _resume(self) -> None:
        """Take up the checkpoint of the same settings, data and code, if there is one."""
        state_file = self.checkpoint / "state.json"
        if not state_file.is_file() or read_json(state_file)["fingerprint"] != self.fingerprint:
            return
        state = read_json(state_file)
        encoder = self.accelerator.unwrap_model(self.encoder)
        encoder.backbone.load_state_dict(load_file(self.checkpoint / "weights.safetensors"))
        moments: dict[int, dict[str, Tensor]] = {}
        for key, tensor in load_file(self.checkpoint / "optimizer.safetensors").items():
            index, name = key.split(".")
            moments.setdefault(int(index), {})[name] = tensor
        optimizer = self.optimizer.state_dict()
        self.optimizer.load_state_dict(optimizer | {"state": moments})
        self.step, self.best_step = state["step"], state["best_step"]
        self.best_score, self.seconds_before = state["best_score"], state["seconds"]
        self.log = pd.read_csv(self.checkpoint / "log.csv").to_dict("records")
        self.dev_scores = [pd.read_csv(self.checkpoint / "dev.csv")]
        logger.info("%s: going on at step %d", self.folder, self.step)
