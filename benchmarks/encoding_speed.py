"""Encoding: texts of mixed length per second against sentence-transformers' `encode`.

    python benchmarks/encoding_speed.py [--data FOLDER] [--texts 600] [--rounds 5]

The same encoder (all-MiniLM-L6-v2 in fp32, texts cut at 256 tokens), the same texts in the same
random order, equal results asserted. They take turns after a round that does not count; theirs at
its default batch of 32 and at the budget of ours, whichever is faster in the median, is the peer.
The texts are questions, answers and sentences from MedQuAD, SciFact and STS-B in `--data` or
CODIEMB_DATA, else the passages and queries of api-docs and the word pairs of simlex-999.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from sentence_transformers import SentenceTransformer

from codiemb_lib.config import EncoderSettings
from codiemb_lib.encoder import Encoder
from codiemb_lib.readers import read_beir, read_pairs, read_sts_table
from codiemb_lib.runs import hardware, versions, write_rows
from codiemb_lib.sources import load_split

TOKENS = 2048  # of a forward pass
THEIR_BATCHES = (32, 8)


def mixed_texts(data: str, count: int) -> list[str]:
    """As many texts of each kind, shuffled by a fixed seed."""
    if data:
        medquad = Path(data) / "medquad" / "medquad_qa.jsonl.gz"
        sets = [
            read_pairs(medquad, columns=("question", "answer")),
            read_beir(Path(data) / "scifact")["train"],
            read_sts_table(Path(data) / "stsb-en" / "stsb-en-train.csv", scale=(0, 5)),
        ]
    else:
        sets = [load_split("api-docs", "train"), load_split("simlex-999", "train")]
    generator = np.random.default_rng(0)
    kinds = [
        list(dict.fromkeys(texts))
        for records in sets
        for texts in ([r.query for r in records], [p for r in records for p in r.positives])
    ]
    each = count // len(kinds)
    texts = [str(t) for kind in kinds for t in generator.choice(kind, min(each, len(kind)), False)]
    return [texts[i] for i in generator.permutation(len(texts))]


def main() -> None:
    """Measure, print the ratio, keep the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=os.environ.get("CODIEMB_DATA", ""))
    parser.add_argument("--texts", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    texts = mixed_texts(given.data, given.texts)
    ours = Encoder.load(EncoderSettings(name="minilm-l6", max_length=256))
    with tempfile.TemporaryDirectory() as folder:
        theirs = SentenceTransformer(str(ours.save(Path(folder) / "model")), device="cpu")
    ways = {"ours": lambda: ours.encode(texts, tokens_per_forward=TOKENS)} | {
        f"sentence-transformers, batch {size}": lambda size=size: theirs.encode(
            texts, batch_size=size, normalize_embeddings=True
        )
        for size in THEIR_BATCHES
    }
    rows, results = [], {}
    for number in range(-1, given.rounds):
        for name, encode in ways.items():
            began = time.perf_counter()
            results[name] = encode()
            seconds = time.perf_counter() - began
            if number >= 0:
                row = {"way": name, "round": number, "texts_per_second": len(texts) / seconds}
                rows.append(row)
    for vectors in results.values():
        np.testing.assert_allclose(vectors, results["ours"], atol=1e-5)
    table = pd.DataFrame(rows)
    speeds = table.pivot(index="round", columns="way", values="texts_per_second")
    peer = speeds.drop(columns="ours").median().idxmax()
    ratios = speeds["ours"] / speeds[peer]
    print(
        f"{len(texts)} texts: ours {speeds['ours'].median():.0f} texts/s, {peer} "
        f"{speeds[peer].median():.0f}; ratio {statistics.median(ratios):.2f} "
        f"({ratios.min():.2f} to {ratios.max():.2f}, {len(ratios)} rounds)"
    )
    table = table.assign(texts=len(texts), hardware=hardware(), torch=versions()["torch"])
    write_rows(Path(__file__).parent / "results" / "encoding_speed.csv", table)


if __name__ == "__main__":
    main()
