"""Golden values of data: content hashes, sizes, subsamples, leaks. One of the sets is what our
reader makes of other packages' docstrings."""

from __future__ import annotations

import os
from functools import partial
from tempfile import TemporaryDirectory
from unittest import mock

import pytest

from codiemb_lib.core.files import data_root
from codiemb_lib.data.datasets import Dataset, hold_out, load_dataset
from codiemb_lib.data.leaks import find_leaks, leak_counts, remove_leaks
from codiemb_lib.data.records import Record, to_json
from tests.golden import check, digest
from tests.made_up import ir_records, sts_records

EMBEDDED = ("api-docs", "lee-news", "simlex-999", "wordsim-353", "lee-similarity")
SMALL = EMBEDDED[1:]
PUBLIC = {  # and its folder
    "stsb": "stsb-en",
    "sick": "sick",
    "squad-sentences": "squad-nqg",
    "scifact": "scifact",
    "medquad": "medquad",
}
ROOT = data_root("../shared/data")


def load(name: str) -> Dataset:
    with TemporaryDirectory() as cache, mock.patch.dict(os.environ, CODIEMB_DATA=str(ROOT)):
        return load_dataset(name, cache=cache)


def hashed(records: list[Record]) -> str:
    return digest([to_json(record) for record in records])


def dataset(name: str) -> dict | None:
    if name in PUBLIC and not (ROOT / PUBLIC[name]).is_dir():
        return None
    found = load(name)
    return {
        "task": found.task,
        "hash": found.content_hash,
        "sizes": {split: len(records) for split, records in found.splits.items()},
        "corpus": len(found.corpus),
        "first of test": to_json(found.splits["test"][0])[:120],
        "samples": {
            f"{split}, seed {seed}": hashed(found.split(split, limit=20, seed=seed))
            for split in ("train", "test")
            for seed in (0, 1)
        },
        "sample of the corpus": digest(found.sample_corpus(20)),
        "without three": found.without("train", {0, 3, 7}).content_hash,
    }


def leaks() -> dict:
    datasets = {name: load(name) for name in SMALL}
    found = find_leaks(datasets)
    left = remove_leaks(datasets, found)
    return {
        "counts": leak_counts(found),
        "looser": leak_counts(find_leaks(datasets, near=0.8)),
        "left": {name: [len(d.splits["train"]), d.content_hash] for name, d in left.items()},
    }


def held_out() -> dict:
    records = {"ir": ir_records(40), "sts": sts_records(40), "lee": load("lee-news").split("train")}
    return {
        f"{name}, seed {seed}": {
            split: [len(part), hashed(part)]
            for split, part in hold_out(members, {"dev": 6, "test": 9}, seed).items()
        }
        for name, members in records.items()
        for seed in (0, 1)
    }


CASES = {name: partial(dataset, name) for name in (*EMBEDDED, *PUBLIC)} | {
    "leaks": leaks,
    "hold out": held_out,
}


@pytest.mark.parametrize("case", CASES)
def test_golden(case):
    if (found := CASES[case]()) is None:
        pytest.skip(f"no public sets in {ROOT}: set CODIEMB_DATA")
    check("data", {case: found})
