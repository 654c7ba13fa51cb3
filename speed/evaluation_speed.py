"""Evaluation: a benchmark over one encoder against the evaluators of sentence-transformers.

    python speed/evaluation_speed.py [--data FOLDER] [--rounds 5] [--limit N]

The same encoder (all-MiniLM-L6-v2 in fp32), records, passages and measures, from the texts to the
scores, nothing kept between rounds; equal scores asserted. They take turns after a round that does
not count. Theirs (InformationRetrievalEvaluator, EmbeddingSimilarityEvaluator) run at their default
batches (32, 16) and at one of 8, which suits two cores better. The sets are STS-B and parts of
SQuAD sentences and SciFact in `--data` or CODIEMB_DATA, else embedded ones. `--limit` takes fewer
records, to try it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import (
    EmbeddingSimilarityEvaluator,
    InformationRetrievalEvaluator,
)

from codiemb_lib.core import (
    DatasetSettings,
    EncoderSettings,
    hardware,
    task_means,
    versions,
    write_rows,
)
from codiemb_lib.data import Record, load_dataset
from codiemb_lib.evaluate import encode_dataset, score_dataset
from codiemb_lib.model import Encoder

PUBLIC = {"stsb": (None, 0), "squad-sentences": (500, 500), "scifact": (60, 150)}
EMBEDDED = {"simlex-999": (None, 0), "lee-news": (None, 0), "api-docs": (100, 0)}
BATCHES = {"default": {}, "8": {"batch_size": 8}}
SAME = 5e-5  # rounding swaps neighbours among thousands of rankings


def theirs(
    model: SentenceTransformer, records: Sequence[Record], corpus: Sequence[str], batch: dict
) -> Callable[[], float]:
    """A call of their evaluator that gives its main score."""
    if records[0].task == "sts":
        evaluator = EmbeddingSimilarityEvaluator(
            [r.query for r in records],
            [r.positives[0] for r in records],
            [r.score for r in records],
            **batch,
        )
        return lambda: evaluator(model)["spearman_cosine"]
    own = (text for r in records for text in (*r.positives, *r.negatives))
    names = {text: f"d{i:06d}" for i, text in enumerate(dict.fromkeys([*own, *corpus]))}
    evaluator = InformationRetrievalEvaluator(
        {str(i): r.query for i, r in enumerate(records)},
        {name: text for text, name in names.items()},
        {str(i): {names[text] for text in r.positives} for i, r in enumerate(records)},
        ndcg_at_k=[10],
        mrr_at_k=[10],
        precision_recall_at_k=[100],
        accuracy_at_k=[10],  # theirs cannot be left out
        map_at_k=[10],
        **batch,
    )
    return lambda: evaluator(model)["cosine_ndcg@10"]


def _print_ratios(table: pd.DataFrame, peer: str) -> None:
    print(f"\nratio to {peer}: median, lowest and highest of {table['round'].nunique()} rounds")
    for name, part in [*table.groupby("set", sort=False), ("all", table)]:
        seconds = part.groupby(["round", "way"])["seconds"].sum().unstack()
        ratios = seconds[peer] / seconds["ours"]
        print(
            f"{name:16} ours {seconds['ours'].median():7.2f} s, theirs "
            f"{seconds[peer].median():7.2f} s; {statistics.median(ratios):.2f} "
            f"({ratios.min():.2f} to {ratios.max():.2f})"
        )


def main() -> None:
    """Measure, print the ratios, keep the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=os.environ.get("CODIEMB_DATA", ""))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=int)
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        Encoder.load(EncoderSettings(name="minilm-l6")).save(Path(folder) / "model")
        model = SentenceTransformer(f"{folder}/model", device="cpu")
        encoder = Encoder.load(EncoderSettings(name=f"{folder}/model")).eval()
        ways: dict[str, dict[str, Callable[[], float]]] = {}
        for name, (limit, passages) in (PUBLIC if given.data else EMBEDDED).items():
            dataset = load_dataset(name, root=given.data)
            records = dataset.split("test", limit=given.limit or limit)
            corpus = dataset.sample_corpus(passages)

            def ours(records=records, corpus=corpus) -> float:
                encoded = encode_dataset(encoder, DatasetSettings(name="d"), records, corpus)
                return task_means(score_dataset(encoded))[encoded.task]

            ways[name] = {"ours": ours} | {
                f"sentence-transformers, batch {size}": theirs(model, records, corpus, batch)
                for size, batch in BATCHES.items()
            }
        for number in range(-1, given.rounds):
            for name, calls in ways.items():
                scores = {}
                for way, call in calls.items():
                    began = time.perf_counter()
                    scores[way] = call()
                    row = {"set": name, "way": way, "round": number}
                    row |= {"seconds": time.perf_counter() - began, "score": scores[way]}
                    rows += [row] if number >= 0 else []
                for way, score in scores.items():
                    if not abs(score - scores["ours"]) < SAME:
                        raise AssertionError(f"{name}: {way} scores {score}, not {scores['ours']}")
    table = pd.DataFrame(rows)
    for peer in dict.fromkeys(table["way"]):
        if peer != "ours":
            _print_ratios(table, peer)
    table = table.assign(hardware=hardware(), torch=versions()["torch"])
    write_rows(Path(__file__).parent / "results" / "evaluation_speed.csv", table)


if __name__ == "__main__":
    main()
