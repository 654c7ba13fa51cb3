"""Vectors to scores: retrieval and similarity, benchmarks, paired comparisons, hard negatives."""

import lazy_loader

# Raised when numbers of this room are meant to change: what was computed under another one is
# stale. A line for each rise: its number, date and reason.
# 1: the numbers that the first golden values pin.
NUMERICS = 1

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "benchmark": ["BenchmarkError", "Store", "local_task", "run_tasks", "score_records"],
        "claims": [
            "AGAINST_BASE",
            "ALPHA",
            "CLAIMS",
            "decidable",
            "lacking",
            "outcome",
            "verdicts",
        ],
        "compare": ["Comparison", "ISOTROPY", "compare", "directions", "resample", "text_scores"],
        "mining": ["mine"],
        "mteb": ["mteb_task", "mteb_tasks"],
        "scores": [
            "EncodedDataset",
            "EvaluationError",
            "encode_dataset",
            "evaluate",
            "load_encoded",
            "save_encoded",
            "score_dataset",
            "sts_metrics",
            "texts_of",
        ],
        "search": ["top_k"],
    },
)
