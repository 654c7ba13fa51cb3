"""Exact search and hard negatives: time and memory, beside plain ways to search.

    python speed/mining.py

Random unit vectors of float32. The plain ways multiply blocks of queries with all passages and then
sort each row whole (`argsort`) or select in it (`torch.topk`). Each way runs once per size, in a
process of its own, and memory is what that process took at most beyond the vectors. All must find
the same. Ratios are to `top_k`; rows go to results/mining.csv.

Before that `mine`, from texts to negatives, once, over made-up passages of 60 words: the most
memory that its process held, less what it held with the encoder loaded. The encoder is
all-MiniLM-L6-v2 with one of its six layers, to take minutes only.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from codiemb_lib.core import EncoderSettings, hardware, peak_memory_mib, write_rows
from codiemb_lib.data import Record
from codiemb_lib.evaluate import mine, top_k
from codiemb_lib.model import Embedder

RESULTS = Path(__file__).parent / "results" / "mining.csv"
PAIRS = 2**25  # similarities that a plain way holds at once: 128 MB


def by_argsort(queries, passages, k):
    """Sort every row of similarities."""
    found = []
    for block in _blocks(queries, passages):
        similarities = block @ passages.T
        indices = np.argsort(-similarities, axis=1)[:, :k].copy()  # frees the rest
        found.append((np.take_along_axis(similarities, indices, axis=1), indices))
    return tuple(map(np.concatenate, zip(*found, strict=True)))


def by_torch_topk(queries, passages, k):
    """Select in every row of similarities."""
    passages = torch.from_numpy(passages)
    found = [(torch.from_numpy(block) @ passages.T).topk(k) for block in _blocks(queries, passages)]
    return tuple(torch.cat(part).numpy() for part in zip(*found, strict=True))


def _blocks(queries, passages):
    height = max(1, PAIRS // len(passages))
    return [queries[top : top + height] for top in range(0, len(queries), height)]


def units(n: int, dimension: int, seed: int) -> np.ndarray:
    """Random vectors of length one, (n, dimension) float32."""
    rows = np.random.default_rng(seed).standard_normal((n, dimension), dtype=np.float32)
    rows /= np.sqrt(np.einsum("nd,nd->n", rows, rows))[:, None]
    return rows


def measure(way, *arguments):
    """What `way` finds, its seconds, and the MB by which it raised the peak of this process."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    found = way(*arguments)
    seconds = time.perf_counter() - start
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return found, seconds, memory


def in_a_process(way):
    """`measure` in a child, which shares the vectors and inherits no peak."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        return pool.submit(_measure_shared, way).result()


def _measure_shared(way):
    return measure(way, *_shared)


_shared: tuple = ()


def check_equal(found, expected):
    """Assert equal results but for passages that only rounding parts."""
    queries, passages, _ = _shared
    np.testing.assert_allclose(found[0], expected[0], atol=1e-6)
    row, rank = np.nonzero(found[1] != expected[1])
    ours, theirs = (passages[indices[row, rank]] for _, indices in (found, expected))
    difference = np.einsum("nd,nd->n", queries[row], ours - theirs)
    np.testing.assert_allclose(difference, 0, atol=1e-6)


def mine_passages(count: int) -> dict[str, float]:
    """Seconds and memory of mining a tenth as many records among `count` passages."""
    generator = np.random.default_rng(0)
    embedder = Embedder(EncoderSettings(name="minilm-l6", layers=1, max_length=128))
    words = [word for word in embedder.encoder.tokenizer.base.get_vocab() if word.isalpha()]
    passages = [" ".join(row) for row in generator.choice(sorted(words), (count, 60))]
    records = [Record("ir", text[:60], (text,)) for text in passages[: count // 10]]
    embedder.embed(passages[:64])
    before, began = peak_memory_mib(), time.perf_counter()
    mine(embedder, records, corpus=passages)
    return {
        "queries": len(records),
        "passages": count,
        "dimension": embedder.encoder.dimension,
        "k": 100,
        "way": "mine",
        "seconds": round(time.perf_counter() - began, 2),
        "memory_mb": round((peak_memory_mib() - before) * 2**20 / 1e6),
    }


def main():
    """Measure, check, print and write the rows."""
    global _shared
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--sizes",
        nargs="+",
        default=["10000x100000", "100x1000000"],
        metavar="QUERIESxPASSAGES",
    )
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--mine", type=int, default=100_000, help="passages; 0: none")
    options = parser.parse_args()
    rows = []
    if options.mine:  # first, while this process is small: a child's peak begins with ours
        _shared = (options.mine,)
        rows.append(in_a_process(mine_passages)[0])
        print(rows[-1], flush=True)
    for size in options.sizes:
        Q, C = map(int, size.split("x"))
        _shared = (units(Q, options.dimension, 0), units(C, options.dimension, 1), options.k)
        ours = None
        for way in (top_k, by_torch_topk, by_argsort):
            found, seconds, memory = in_a_process(way)
            ours = ours or (found, seconds)
            check_equal(ours[0], found)
            rows.append(
                {
                    "queries": Q,
                    "passages": C,
                    "dimension": options.dimension,
                    "k": options.k,
                    "way": way.__name__.removeprefix("by_"),
                    "seconds": round(seconds, 2),
                    "ratio": round(seconds / ours[1], 2),
                    "memory_mb": round(memory),
                }
            )
            print(rows[-1], flush=True)
    write_rows(RESULTS, pd.DataFrame(rows).assign(hardware=hardware()))


if __name__ == "__main__":
    main()
