"""Training: records per second against sentence-transformers, and how far from the machine's peak.

    python speed/training_speed.py [--data FOLDER] [--rounds 5] [--threads 2 1]
                                        [--encoder minilm-l6]

Both train the same encoder (all-MiniLM-L6-v2, texts cut at 96 tokens, dropout on, fp32) for one
epoch of the same records in global batches of 32, with the same objectives: InfoNCE over in-batch
and hard negatives (their MultipleNegativesRankingLoss), CoSENT, and fused AdamW with the gradient
clipped. They take turns; a round is one of each, after a round that does not count. The clock runs
from the first step to the last. On a GPU both train in bf16, more batches, with workers that
tokenise ahead; on a CPU without. `--encoder` may name another one, of BERT's kind, in a folder.

With `--data` or CODIEMB_DATA, the sets are STS-B, SQuAD sentences and MedQuAD from that folder; a
hard negative is the next sentence, or the next answer. Else they are sets that come with packages.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers import SentenceTransformerTrainingArguments as Arguments
from sentence_transformers.sentence_transformer.losses import (
    CoSENTLoss,
    MultipleNegativesRankingLoss,
)
from torch.utils.data import DataLoader
from transformers import TrainerCallback
from transformers.utils import logging as transformers_logging

from codiemb_lib.core import (
    DatasetSettings,
    EncoderSettings,
    ObjectiveSettings,
    Preset,
    hardware,
    versions,
    write_rows,
)
from codiemb_lib.data import Record, load_dataset, read_beir, read_file
from codiemb_lib.model import Encoder
from codiemb_lib.train import (
    OptimizerSteps,
    SingleTaskPlan,
    backward,
    batch_loss,
    sparse_embedding_gradients,
)

GPU = torch.cuda.is_available()
BATCH, MAX_LENGTH = 32, 96
BATCHES = {"alone": 20, "mixed": 10} if GPU else {"alone": 4, "mixed": 2}  # of each set
WORKERS = 4 if GPU else 0  # on a CPU they take the cores from the step, with either library
OBJECTIVE = ObjectiveSettings(positives=1, negatives=1)


def local_sets(folder: Path, count: int) -> dict[str, list[Record]]:
    """`count` records of STS-B, SQuAD sentences and MedQuAD each."""
    stsb = read_file(folder / "stsb-en" / "stsb-en-train.csv", scale=(0, 5))
    squad = read_beir(folder / "squad-nqg")["train"]
    columns = ("question", "answer")
    medquad = read_file(folder / "medquad" / "medquad_qa.jsonl.gz", columns=columns)
    return {"stsb": stsb[:count]} | {
        name: next_as_negative(records)[:count]
        for name, records in {"squad": squad, "medquad": medquad}.items()
    }


def packaged_sets(count: int) -> dict[str, list[Record]]:
    """`count` records of what is installed anyway."""
    return {
        "simlex": load_dataset("simlex-999").split("train")[:count],
        "lee-pairs": load_dataset("lee-similarity").split("train")[:count],
        "api-docs": next_as_negative(load_dataset("api-docs").split("train"))[:count],
    }


def next_as_negative(records: Sequence[Record]) -> list[Record]:
    """One positive each, and as hard negative the positive of the record that follows."""
    return [
        Record("ir", a.query, a.positives[:1], b.positives[:1])
        for a, b in zip(records, [*records[1:], records[0]], strict=True)
        if a.positives[0] != b.positives[0]
    ]


def preset(sets: dict[str, list[Record]]) -> Preset:
    """What our steps need to know: prompts, batch sizes, objective, tokens of a forward pass."""
    training = {"batch_sizes": dict.fromkeys(("ir", "sts", "mixed"), BATCH)}
    training["tokens_per_forward"] = 16384 if GPU else 2048
    return Preset(
        name="speed",
        description="training beside sentence-transformers",
        seeds=(0,),
        encoder=EncoderSettings(name="minilm-l6"),
        datasets=tuple(DatasetSettings(name=name) for name in sets),
        objective=OBJECTIVE,
        training=training,
        variants={"cosent": {"sts_objective": "cosent"}},
    )


class Ours:
    """Training with this library: what `training.train` does between two checkpoints."""

    def __init__(self, sets: dict[str, list[Record]], name: str):
        named = [
            dataclasses.replace(r, dataset=name) for name, records in sets.items() for r in records
        ]
        encoder = Encoder.load(EncoderSettings(name=name, max_length=MAX_LENGTH))
        sparse_embedding_gradients(accelerator(), encoder)
        optimizer = torch.optim.AdamW(
            (p for p in encoder.parameters() if p.requires_grad), lr=2e-5, fused=True
        )
        self.model, self.optimizer = accelerator().prepare(encoder.train(), optimizer)
        self.steps = OptimizerSteps(
            named,
            SingleTaskPlan(named, batch_sizes={"ir": BATCH, "sts": BATCH}),
            encoder,
            preset(sets),
            seed=0,
        )
        self.tokens = 0

    def train(self) -> float:
        """Seconds of an epoch."""
        state = accelerator()  # their trainer resets what all accelerators share
        ahead = DataLoader(self.steps, batch_size=None, collate_fn=list, num_workers=WORKERS)
        began, self.tokens = 0.0, 0
        for shares in ahead:
            began = began or time.perf_counter()
            for share in shares:
                backward(
                    state,
                    self.model,
                    share,
                    lambda *a: batch_loss(*a, settings=OBJECTIVE, sts_objective="cosent"),
                )
                self.tokens += share.tokens
            state.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
        synchronise()
        return time.perf_counter() - began


class Theirs:
    """Training with sentence-transformers' own trainer."""

    def __init__(self, sets: dict[str, list[Record]], name: str, folder: str):
        encoder = Encoder.load(EncoderSettings(name=name, max_length=MAX_LENGTH))
        encoder.save(folder)
        self.model = SentenceTransformer(folder, device="cuda" if GPU else "cpu")
        self.sets = {name: columns(records) for name, records in sets.items()}
        ir = MultipleNegativesRankingLoss(self.model, scale=1 / OBJECTIVE.temperature)
        sts = CoSENTLoss(self.model, scale=1 / OBJECTIVE.rank_temperature)
        self.losses = {name: ir if r[0].task == "ir" else sts for name, r in sets.items()}
        self.arguments = Arguments(
            output_dir=f"{folder}/out",
            per_device_train_batch_size=BATCH,
            num_train_epochs=1,
            learning_rate=2e-5,
            max_grad_norm=1.0,
            optim="adamw_torch_fused",
            dataloader_num_workers=WORKERS,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
            use_cpu=not GPU,
            bf16=GPU,
        )

    def train(self) -> float:
        """Seconds of an epoch."""
        clock = _Clock()
        with contextlib.redirect_stdout(io.StringIO()):
            SentenceTransformerTrainer(
                model=self.model,
                args=self.arguments,
                train_dataset=self.sets,
                loss=self.losses,
                callbacks=[clock],
            ).train()
        return clock.ended - clock.began


class _Clock(TrainerCallback):
    def on_step_begin(self, args, state, control, **_):
        if state.global_step == 0:
            self.began = time.perf_counter()

    def on_step_end(self, args, state, control, **_):
        synchronise()
        self.ended = time.perf_counter()


def columns(records: Sequence[Record]) -> Dataset:
    """The columns that their losses want."""
    if records[0].task == "sts":
        rows = [{"a": r.query, "b": r.positives[0], "score": r.score} for r in records]
    else:
        rows = [{"a": r.query, "b": r.positives[0], "c": r.negatives[0]} for r in records]
    return Dataset.from_list(rows)


def accelerator() -> Accelerator:
    """One process, on the GPU in bf16 if there is one."""
    return Accelerator(cpu=not GPU, mixed_precision="bf16" if GPU else "no")


def synchronise() -> None:
    """Wait for the GPU, if there is one."""
    if GPU:
        torch.cuda.synchronize()


def peak_flops() -> float:
    """Multiply-adds of a large matrix product, times two, per second: the best of ten."""
    kind = {"device": "cuda", "dtype": torch.bfloat16} if GPU else {"device": "cpu"}
    size = 8192 if GPU else 2048
    a, b = torch.randn(size, size, **kind), torch.randn(size, size, **kind)
    best = float("inf")
    for _ in range(10):
        synchronise()
        began = time.perf_counter()
        a @ b
        synchronise()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def useful_flops(encoder: Encoder, tokens: int) -> float:
    """6 for each weight of the layers' matrices and each token: forward 2, backward 4 (Kaplan et
    al., 2020). Attention's own products, padding and embeddings are left out."""
    layers = encoder.backbone.encoder.layer.parameters()
    return 6 * sum(p.numel() for p in layers if p.dim() == 2) * tokens


def measure(
    name: str, sets: dict[str, list[Record]], encoder: str, rounds: int, threads: int
) -> list[dict[str, Any]]:
    """Rows of alternating rounds on one mix of sets."""
    torch.set_num_threads(threads)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Ours(sets, encoder), Theirs(sets, encoder, folder)
        for number in range(-1, rounds):
            peak = peak_flops()
            seconds = {"ours": ours.train(), "sentence-transformers": theirs.train()}
            useful = useful_flops(ours.model, ours.tokens) / seconds["ours"]
            if number >= 0:
                rows += [
                    {
                        "encoder": Path(encoder).name,
                        "threads": threads,
                        "data": name,
                        "round": number,
                        "library": library,
                        "records_per_second": BATCH * len(ours.steps) / took,
                        "of_peak": useful / peak if library == "ours" else float("nan"),
                    }
                    for library, took in seconds.items()
                ]
    return rows


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Median ratio of each mix, with the lowest and the highest round."""
    out = []
    keys = ["encoder", "threads", "data"]
    for found, part in rows.groupby(keys, sort=False):
        speeds = part.pivot(index="round", columns="library", values="records_per_second")
        ratios = speeds["ours"] / speeds["sentence-transformers"]
        out.append(
            dict(zip(keys, found, strict=True))
            | {
                "ours, records/s": round(statistics.median(speeds["ours"]), 1),
                "ratio": round(statistics.median(ratios), 2),
                "lowest": round(min(ratios), 2),
                "highest": round(max(ratios), 2),
                "of peak": round(part["of_peak"].median(), 2),
                "rounds": len(ratios),
            }
        )
    return pd.DataFrame(out)


def main() -> None:
    """Measure each set alone and their mix, print the ratios, keep the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=os.environ.get("CODIEMB_DATA", ""))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", help="one set, or `mix`")
    parser.add_argument("--encoder", nargs="+", default=["minilm-l6"], help="names or folders")
    parser.add_argument("--threads", type=int, nargs="+", default=[torch.get_num_threads()])
    given = parser.parse_args()
    transformers_logging.set_verbosity_error()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the workers are forks
    count = BATCH * BATCHES["alone"]
    sets = local_sets(Path(given.data), count) if given.data else packaged_sets(count)
    mixes = {name: {name: records} for name, records in sets.items()}
    mixes["mix"] = {name: r[: BATCH * BATCHES["mixed"]] for name, r in sets.items()}
    labels = {
        "hardware": hardware(),
        "torch": versions()["torch"],
        "sentence_transformers": metadata.version("sentence-transformers"),
    }
    file = Path(__file__).parent / "results" / f"training_speed{'-gpu' if GPU else ''}.csv"
    rows: list[dict[str, Any]] = []
    names = [given.only] if given.only else list(mixes)
    for encoder, threads, name in itertools.product(given.encoder, given.threads, names):
        rows += measure(name, mixes[name], encoder, given.rounds, threads)
        table = pd.DataFrame(rows)
        print(summary(table).to_string(index=False), flush=True)
        write_rows(file, table.assign(**labels))


if __name__ == "__main__":
    main()
