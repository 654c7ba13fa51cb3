"""Vectors to scores: one scorer for all, benchmarks, paired comparisons, claims, hard negatives.

`encode_split` turns the records of a preset's split to vectors (`EncodedDataset`), `score` these to
rows. `run_tasks` does it for any encoder and any data set, and keeps what is finished. Of several
models `text_scores` and `compare` say which is better, and `verdicts` what that means
for the claims. Nothing here loads torch; the encoders that are passed in have.
"""

import lazy_loader

# Raised when numbers are meant to change (CONTRIBUTING.md). 1: those of the first golden values.
# 2: 2026-11-30: grades of relevant passages count in every nDCG, no longer in benchmarks alone.
# 3: 2026-12-01: p of a comparison is of texts and seeds together (`crossed`), not of texts alone.
# 4: 2026-12-01: standard errors over texts by the jackknife, no bootstrap; a claim is one test.
NUMERICS = 4

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "benchmark": ["BenchmarkError", "Store", "local_task", "run_tasks"],
        "claims": [
            *["AGAINST_BASE", "ALPHA", "CLAIMS"],
            *["against", "families", "lacking", "outcome", "verdicts"],
        ],
        "compare": [
            *["Comparison", "Crossed", "ISOTROPY", "Spread", "compare", "crossed"],
            *["collect_text_scores", "contributions", "isotropies", "load_text_scores", "pooled"],
            *["save_text_scores", "text_scores"],
        ],
        "mining": ["mine", "with_mined"],
        "mteb": ["mteb_task", "mteb_tasks"],
        "scores": [
            *["EncodedDataset", "encode_dataset", "encode_split", "load_encoded", "save_encoded"],
            *["is_constant", "score", "score_dataset", "sts_metrics", "texts_of"],
        ],
        "search": ["EvaluationError", "top_k"],
    },
)
