"""Uniformity beside `torch.pdist`, and memory for 100,000 embeddings.

    python speed/geometry.py

Random unit vectors of float32. The plain way is one line, `torch.pdist(x).square_().mul_(-2).exp_()
.mean().log()`, in place, so that it holds the distances of all pairs once. Ways take turns, each
turn in a process of its own; memory is the most that it held, less what it held with the vectors
loaded. On one thread, because two that share a busy machine wait for each other for longer than
they compute. Equal values are asserted. Writes speed/results/geometry.csv.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import torch

from codiemb_lib.core import hardware, peak_memory_mib, write_rows
from codiemb_lib.space import anisotropy, uniformity

RESULTS = Path(__file__).parent / "results" / "geometry.csv"


def pdist(units: np.ndarray) -> float:
    """Uniformity from the distances of all pairs."""
    squares = torch.pdist(torch.from_numpy(units)).square_()
    return squares.mul_(-2).exp_().mean().log().item()


WAYS = {"pdist": pdist, "uniformity": uniformity, "anisotropy": anisotropy}


def unit_vectors(n: int, dimension: int) -> np.ndarray:
    """Random vectors of length one, (n, dimension) float32."""
    rows = np.random.default_rng(0).standard_normal((n, dimension), dtype=np.float32)
    rows /= np.sqrt(np.einsum("nd,nd->n", rows, rows))[:, None]
    return rows


def one(way: str, n: int, dimension: int) -> None:
    """Print seconds, MiB beyond the vectors, and the value."""
    WAYS[way](unit_vectors(8, dimension))  # what the first call of anything loads
    units = unit_vectors(n, dimension)
    before = psutil.Process().memory_info().rss // 2**20
    started = time.perf_counter()
    value = WAYS[way](units)
    print(time.perf_counter() - started, peak_memory_mib() - before, value)


def run(way: str, n: int, options: argparse.Namespace, turn: int) -> dict[str, object]:
    """`one` in a fresh process, as a row of the table."""
    command = [sys.executable, __file__, "--one", way, str(n), str(options.dimension)]
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    threads = dict.fromkeys(names, str(options.threads))
    done = subprocess.run(command, env=os.environ | threads, check=True, stdout=subprocess.PIPE)
    seconds, extra_mib, value = map(float, done.stdout.split())
    row = {
        "n": n,
        "dimension": options.dimension,
        "way": way,
        "round": turn,
        "seconds": round(seconds, 3),
        "extra_mib": int(extra_mib),
        "value": value,
    }
    print(row, flush=True)
    return row


def main() -> None:
    """Measure, check, print the ratios and keep the rows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--n", type=int, default=20_000, help="embeddings beside pdist")
    parser.add_argument("--large", type=int, default=100_000, help="embeddings without it")
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        way, n, dimension = options.one
        return one(way, int(n), int(dimension))
    torch.set_num_threads(options.threads)  # so says the column hardware
    rows = []
    for turn in range(options.rounds):
        rows += [run(way, options.n, options, turn) for way in ("uniformity", "pdist")]
    rounds = pd.DataFrame(rows).pivot(index="round", columns="way")
    np.testing.assert_allclose(rounds["value", "uniformity"], rounds["value", "pdist"], rtol=1e-6)
    rows += [run(way, options.large, options, 0) for way in ("uniformity", "anisotropy")]
    for quantity in ("seconds", "extra_mib"):
        ratios = rounds[quantity, "pdist"] / rounds[quantity, "uniformity"]
        print(f"{quantity}, pdist / uniformity:", ratios.describe().round(2).to_dict())
    write_rows(RESULTS, pd.DataFrame(rows).assign(hardware=hardware()))


if __name__ == "__main__":
    main()
