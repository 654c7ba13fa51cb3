"""Memory and time of a training step as the batch grows, with and without gradient caching.

    python speed/gradient_cache.py [--queries 64 256 1024] [--rounds 3]

all-MiniLM-L6-v2, one positive and one hard negative a query, texts cut at 64 tokens, one step, on
api-docs. Each step is in a process of its own, so that the peak is its own: the most memory held,
less what was held before the step. Medians over rounds; rows go to results/gradient_cache.csv.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator

from codiemb_lib.core import (
    DatasetSettings,
    EncoderSettings,
    ObjectiveSettings,
    hardware,
    peak_memory_mib,
    write_rows,
)
from codiemb_lib.data import load_dataset
from codiemb_lib.model import Encoder
from codiemb_lib.train import (
    PlannedBatch,
    backward,
    batch_loss,
    make_batch,
    make_share,
    sparse_embedding_gradients,
)

SETTINGS = ObjectiveSettings(positives=1, negatives=1)


def one(queries: int, cached: bool) -> None:
    """Train one step, and print seconds, texts, peak MiB and the loss."""
    records = [r for r in load_dataset("api-docs").split("train") if r.negatives]
    encoder = Encoder.load(EncoderSettings(name="minilm-l6", max_length=64)).train()
    accelerator = Accelerator(cpu=True)
    sparse_embedding_gradients(accelerator, encoder)
    optimizer = torch.optim.AdamW([p for p in encoder.parameters() if p.requires_grad], fused=True)
    before = peak_memory_mib()
    generator = np.random.default_rng(0)
    drawn = tuple(generator.permutation(len(records))[:queries])
    planned = PlannedBatch("ir", "api-docs", (drawn,))
    prompts = {"api-docs": DatasetSettings(name="api-docs")}
    batch = make_batch(planned, records, prompts, SETTINGS, generator)
    share = make_share(
        batch, encoder.tokenizer, tokens_per_forward=2048, packing=encoder.packing, seed=[0]
    )
    began = time.perf_counter()
    loss = backward(
        accelerator,
        encoder,
        share,
        lambda *a: batch_loss(*a, settings=SETTINGS),
        gradient_cache=cached,
    )
    optimizer.step()
    optimizer.zero_grad()
    seconds = time.perf_counter() - began
    print(seconds, len(batch.texts), peak_memory_mib() - before, loss.total.item())


def main() -> None:
    """Measure each size both ways, print the medians, keep the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--whole", type=int, default=256, help="largest batch without the cache")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=2, type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        return one(given.one[0], bool(given.one[1]))
    both = [(queries, True) for queries in given.queries]
    both += [(queries, False) for queries in given.queries if queries <= given.whole]
    rows = []
    for number in range(given.rounds):
        for queries, cached in both:
            command = [sys.executable, __file__, "--one", str(queries), str(int(cached))]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            seconds, texts, peak, loss = map(float, out.split())
            rows.append(
                {
                    "queries": queries,
                    "texts": int(texts),
                    "gradient_cache": cached,
                    "round": number,
                    "seconds_per_step": round(seconds, 2),
                    "peak_mib": int(peak),
                    "loss": loss,
                }
            )
    table = pd.DataFrame(rows)
    write_rows(
        Path(__file__).parent / "results" / "gradient_cache.csv", table.assign(hardware=hardware())
    )
    keys = ["queries", "texts", "gradient_cache"]
    shown = table.groupby(keys)[["seconds_per_step", "peak_mib"]].agg(["min", "median", "max"])
    print(shown.to_string())
    at = table.set_index(["queries", "round", "gradient_cache"])[["seconds_per_step", "peak_mib"]]
    ratios = (at.xs(True, level=2) / at.xs(False, level=2)).dropna()
    spread = ratios.groupby("queries").agg(["min", "median", "max"])
    print("with the cache / without:", spread.to_string(), sep="\n")


if __name__ == "__main__":
    main()
