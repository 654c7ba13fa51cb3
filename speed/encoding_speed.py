"""Encoding: texts of mixed length per second against sentence-transformers' `encode`.

    python speed/encoding_speed.py [--data FOLDER] [--texts 600] [--rounds 5]
                                        [--encoder minilm-l6]

The same encoder (all-MiniLM-L6-v2, texts cut at 256 tokens; fp32, on a GPU bf16), the same texts in
the same random order, equal results asserted. They take turns after a round that does not count;
theirs at its default batch of 32 and at another, whichever is faster in the median, is the peer.
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
import torch
from sentence_transformers import SentenceTransformer

from codiemb_lib.core import EncoderSettings, hardware, versions, write_rows
from codiemb_lib.data import load_dataset, read_beir, read_file
from codiemb_lib.model import Encoder

GPU = torch.cuda.is_available()
TOKENS = 32_768 if GPU else 2048  # of a forward pass
THEIR_BATCHES = (32, 256) if GPU else (32, 8)
KIND = {"device": "cuda", "dtype": torch.bfloat16} if GPU else {"device": "cpu"}
TOLERANCE = 0.01 if GPU else 1e-5


def mixed_texts(data: str, count: int) -> list[str]:
    """As many texts of each kind, shuffled by a fixed seed."""
    if data:
        medquad = Path(data) / "medquad" / "medquad_qa.jsonl.gz"
        sets = [
            read_file(medquad, columns=("question", "answer")),
            read_beir(Path(data) / "scifact")["train"],
            read_file(Path(data) / "stsb-en" / "stsb-en-train.csv", scale=(0, 5)),
        ]
    else:
        sets = [load_dataset("api-docs").split("train"), load_dataset("simlex-999").split("train")]
    generator = np.random.default_rng(0)
    kinds = [
        list(dict.fromkeys(texts))
        for records in sets
        for texts in ([r.query for r in records], [p for r in records for p in r.positives])
    ]
    each = count // len(kinds)
    texts = [str(t) for kind in kinds for t in generator.choice(kind, min(each, len(kind)), False)]
    return [texts[i] for i in generator.permutation(len(texts))]


def measure(encoder: str, texts: list[str], rounds: int) -> pd.DataFrame:
    """Rows of alternating rounds with one encoder."""
    ours = Encoder.load(EncoderSettings(name=encoder, max_length=256)).eval()
    with tempfile.TemporaryDirectory() as folder:
        theirs = SentenceTransformer(str(ours.save(Path(folder) / "model")), device="cpu")
    for model in (ours, theirs):
        model.to(**KIND)
    ways = {"ours": lambda: ours.encode(texts, tokens_per_forward=TOKENS)} | {
        f"sentence-transformers, batch {size}": lambda size=size: theirs.encode(
            texts, batch_size=size, normalize_embeddings=True
        )
        for size in THEIR_BATCHES
    }
    rows, results = [], {}
    for number in range(-1, rounds):
        for way, encode in ways.items():
            began = time.perf_counter()
            results[way] = encode()
            seconds = time.perf_counter() - began
            if number >= 0:
                speed = {"texts_per_second": len(texts) / seconds}
                rows.append({"encoder": Path(encoder).name, "way": way, "round": number} | speed)
    for vectors in results.values():
        np.testing.assert_allclose(vectors, results["ours"], atol=TOLERANCE)
    return pd.DataFrame(rows)


def summary(rows: pd.DataFrame) -> str:
    """The median ratio to the faster way of theirs, with the lowest and the highest round."""
    lines = []
    for encoder, part in rows.groupby("encoder", sort=False):
        speeds = part.pivot(index="round", columns="way", values="texts_per_second")
        peer = speeds.drop(columns="ours").median().idxmax()
        ratios = speeds["ours"] / speeds[peer]
        lines.append(
            f"{encoder}: ours {speeds['ours'].median():.0f} texts/s, {peer} "
            f"{speeds[peer].median():.0f}; ratio {statistics.median(ratios):.2f} "
            f"({ratios.min():.2f} to {ratios.max():.2f}, {len(ratios)} rounds)"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print the ratio, keep the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=os.environ.get("CODIEMB_DATA", ""))
    parser.add_argument("--texts", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--encoder", nargs="+", default=["minilm-l6"], help="names or folders")
    given = parser.parse_args()
    texts = mixed_texts(given.data, given.texts)
    labels = {"texts": len(texts), "hardware": hardware(), "torch": versions()["torch"]}
    file = Path(__file__).parent / "results" / f"encoding_speed{'-gpu' if GPU else ''}.csv"
    rows = pd.DataFrame()
    for encoder in given.encoder:
        rows = pd.concat([rows, measure(encoder, texts, given.rounds)])
        print(summary(rows), flush=True)
        write_rows(file, rows.assign(**labels))


if __name__ == "__main__":
    main()
