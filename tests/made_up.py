"""What several tests are about: the models of a preset, and made-up records to train on."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from codiemb_lib.core.preset import DatasetSettings
from codiemb_lib.data.records import Record

WORDS = ["cat", "dog", "car", "bus", "old", "new", "fast", "slow", "red", "blue"]
# The models of `mini`, in the order of figures.
MODELS = [
    "base",
    "ir_only",
    "sts_only",
    "mixed",
    "cosent",
    "codiemb",
    "codiemb_ir25",
    "codiemb_ir75",
    "soup",
    "delta",
]
PROMPTS = {
    "ir": DatasetSettings(name="ir", query_prompt="query: "),
    "sts": DatasetSettings(name="sts", query_prompt="find "),
}


def ir_records(count: int, offset: int = 0, dataset: str = "") -> list[Record]:
    """Queries with two positives and a hard negative."""
    generator = np.random.default_rng(offset)
    out = []
    for i in range(count):
        a, b, c = generator.choice(WORDS, 3, replace=False)
        name = "".join(generator.choice(list("abcdefghij"), 4))
        positives = (f"the {a} {b} {name}", f"a {b} is {a} {name}")
        record = Record("ir", f"find {a} {name}", positives, (f"the {c} {name} {i}",), id=str(i))
        out.append(replace(record, dataset=dataset))
    return out


def sts_records(count: int, offset: int = 0, dataset: str = "") -> list[Record]:
    """Pairs of one thing, with the highest score, and of two, with a lower one; texts recur."""
    generator = np.random.default_rng(100 + offset)
    out = []
    for i in range(count):
        a, b = generator.choice(WORDS, 2, replace=False)
        same = i % 4 == 0
        b, score = (a, 1.0) if same else (b, round(float(generator.uniform(0, 0.7)), 2))
        pair = Record("sts", f"a {a} {i // 2}", (f"the {b} {i}",), positive_scores=(score,))
        out.append(replace(pair, dataset=dataset))
    return out


def shown(value: object) -> str:
    """The name of a parameter in a test's name: without addresses, which differ by process."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))
