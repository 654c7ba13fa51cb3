"""How fast `pro_loss` is, forward and backward, and in how much memory.

    python speed/objectives.py

Against a plain loop over rows and against one n x n block under autograd, in turns, so that a
disturbance meets all of them; on one thread, because two that share a busy machine wait for each
other for far longer than they compute. Writes speed/results/objectives.csv.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from codiemb_lib.core import hardware, peak_memory_mib, write_rows
from codiemb_lib.train import pro_loss

RESULTS = Path(__file__).parent / "results" / "objectives.csv"
LONGEST_LOOP = 1024  # pairs


def looped(similarities: Tensor, scores: Tensor, *, temperature: float = 0.05) -> Tensor:
    """The formula of `pro_loss`, a row at a time."""
    scores, order = scores.sort(descending=True)
    similarities = similarities[order] / temperature
    losses = []
    for k in range(int((scores > scores[-1]).sum())):
        gaps = scores[k] - scores
        own = similarities[k] * gaps[-1]
        others = (similarities * gaps).masked_fill(gaps <= 0, -torch.inf)
        losses.append(-torch.cat((own[None], others)).log_softmax(0)[0])
    return torch.stack(losses).mean()


def one_block(similarities: Tensor, scores: Tensor, *, temperature: float = 0.05) -> Tensor:
    """The formula of `pro_loss`, all rows at once."""
    scores, order = scores.sort(descending=True)
    similarities = similarities[order] / temperature
    gaps = scores[:, None] - scores  # (n, n)
    own = similarities * gaps[:, -1]
    others = (similarities * gaps).masked_fill(gaps <= 0, -torch.inf)
    losses = torch.cat((own[:, None], others), dim=1).logsumexp(1) - own
    return losses.sum() / (scores > scores[-1]).sum()


METHODS = {"loop": looped, "one block": one_block, "pro_loss": pro_loss}


def methods_for(pairs: int) -> list[str]:
    """The methods that end soon at this size."""
    return [m for m in METHODS if m != "loop" or pairs <= LONGEST_LOOP]


def batch(pairs: int) -> tuple[Tensor, Tensor]:
    """Random similarities in [-1, 1), to be differentiated, and scores in [0, 1), both (n,)."""
    similarities, scores = torch.rand(2, pairs, generator=torch.Generator().manual_seed(0))
    return (2 * similarities - 1).requires_grad_(), scores


def step(method: str, similarities: Tensor, scores: Tensor) -> tuple[float, Tensor, Tensor]:
    """Seconds of one forward and backward pass, the loss and its gradient."""
    started = time.perf_counter()
    loss = METHODS[method](similarities, scores)
    (gradient,) = torch.autograd.grad(loss, similarities)
    return time.perf_counter() - started, loss, gradient


def extra_mib(method: str, pairs: int) -> int:
    """By how much one step raises the peak memory of this process, which must be a fresh one.

    A process starts with the peak of the one that made it, so this goes before all other work.
    """
    step(method, *batch(8))  # what the first call of anything loads
    before = peak_memory_mib()
    step(method, *batch(pairs))
    return peak_memory_mib() - before


def measure(pairs: int, repeats: int) -> pd.DataFrame:
    """One row a method: quartiles of its time, and of the ratio to `pro_loss` turn by turn."""
    inputs = batch(pairs)
    methods = methods_for(pairs)
    _, *expected = step("pro_loss", *inputs)
    for method in methods:
        _, *found = step(method, *inputs)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    turns = []
    for _ in range(repeats):
        # an untimed call before each timed one, or each would pay for what the last one evicted
        turns.append({m: [step(m, *inputs)[0] for _ in range(2)][1] for m in methods})
    seconds = pd.DataFrame(turns)
    times = np.percentile(1e3 * seconds, [50, 25, 75], axis=0)
    ratios = np.percentile(seconds.div(seconds["pro_loss"], axis=0), [50, 25, 75], axis=0)
    columns = ["ms", "ms_q1", "ms_q3", "times_pro_loss", "times_q1", "times_q3"]
    rows = pd.DataFrame(np.vstack((times, ratios)).T.round(3), columns=columns)
    rows.insert(0, "method", methods)
    rows.insert(0, "pairs", pairs)
    return rows


def main() -> None:
    """Measure memory, then time; write and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, nargs="+", default=[64, 256, 1024, 4096])
    parser.add_argument("--repeats", type=int, default=25, help="turns at each size")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cases = [(m, n) for n in arguments.pairs for m in methods_for(n)]
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh, max_tasks_per_child=1) as pool:
        memory = list(pool.map(extra_mib, *zip(*cases, strict=True)))
    rows = pd.concat([measure(n, arguments.repeats) for n in arguments.pairs])
    rows = rows.assign(extra_mib=memory, repeats=arguments.repeats, hardware=hardware())
    write_rows(RESULTS, rows)
    print(rows.drop(columns="hardware").to_string(index=False), hardware(), sep="\n")


if __name__ == "__main__":
    main()
