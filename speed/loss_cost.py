"""What the CoDiEmb losses cost over InfoNCE + CoSENT, as a share of a training step.

    python speed/loss_cost.py [--pairs 64] [--rounds 15]

all-MiniLM-L6-v2 in fp32, dropout on, batches of similarity pairs from the embedded sets. Steps with
each objective take turns on the same batches; CoDiEmb's includes pooling the middle layer.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
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
    needs_middle,
    sparse_embedding_gradients,
)

SETTINGS = ObjectiveSettings()


def main() -> None:
    """Measure, print the median cost, keep the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    names = ("simlex-999", "wordsim-353", "lee-similarity")
    records = [
        replace(r, dataset=name) for name in names for r in load_dataset(name).split("train")
    ]
    prompts = {name: DatasetSettings(name=name) for name in names}
    encoder = Encoder.load(EncoderSettings(name="minilm-l6", max_length=64)).train()
    accelerator = Accelerator(cpu=True)
    sparse_embedding_gradients(accelerator, encoder)
    optimizer = torch.optim.AdamW([p for p in encoder.parameters() if p.requires_grad], fused=True)
    rows = []
    for number in range(-2, given.rounds):
        generator = np.random.default_rng(number + 2)
        drawn = tuple(generator.permutation(len(records))[: given.pairs])
        planned = PlannedBatch("sts", "all", (drawn,))
        batch = make_batch(planned, records, prompts, SETTINGS, generator)
        share = make_share(
            batch, encoder.tokenizer, tokens_per_forward=2048, packing=encoder.packing, seed=[0]
        )
        seconds = {}
        for objective in ("cosent", "codiemb") if number % 2 else ("codiemb", "cosent"):
            loss_seconds = 0.0

            def loss_of(*arguments, objective=objective):
                nonlocal loss_seconds
                began = time.perf_counter()
                loss = batch_loss(*arguments, settings=SETTINGS, sts_objective=objective)
                loss_seconds += time.perf_counter() - began
                return loss

            began = time.perf_counter()
            middle = needs_middle(batch, SETTINGS, objective)
            backward(accelerator, encoder, share, loss_of, middle=middle)
            optimizer.step()
            optimizer.zero_grad()
            seconds[objective] = time.perf_counter() - began
            if number >= 0:
                rows.append(
                    {
                        "round": number,
                        "objective": objective,
                        "step_seconds": seconds[objective],
                        "loss_forward_seconds": loss_seconds,
                    }
                )
    table = pd.DataFrame(rows)
    steps = table.pivot(index="round", columns="objective", values="step_seconds")
    ratios = steps["codiemb"] / steps["cosent"]
    low, high = np.quantile(ratios, [0.25, 0.75])
    print(
        f"{given.pairs} pairs: a step takes {steps['cosent'].median():.2f} s with CoSENT, "
        f"{steps['codiemb'].median():.2f} s with CoDiEmb; ratio {statistics.median(ratios):.3f} "
        f"(quartiles {low:.3f} to {high:.3f}, {len(ratios)} rounds)"
    )
    table = table.assign(pairs=given.pairs, hardware=hardware())
    write_rows(Path(__file__).parent / "results" / "loss_cost.csv", table)


if __name__ == "__main__":
    main()
