"""SQuAD's questions and the sentences with their answers: line i of one file asks for line i of
another."""

import re
from collections.abc import Iterable
from pathlib import Path

from codiemb_lib.data import Record, cut_dev

# The tokens of the Penn Treebank for brackets and double quotation marks.
_TREEBANK = {"-lrb-": "(", "-rrb-": ")", "-lsb-": "[", "-rsb-": "]", "-lcb-": "{", "-rcb-": "}"}
_TREEBANK |= {"``": '"', "''": '"'}
_TOKEN = re.compile("|".join(_TREEBANK))


def build(sources: dict[str, Path], *, dev: float) -> tuple[dict[str, list[Record]], Iterable[str]]:
    """The records of `train_queries`, `train_passages`, `test_queries` and `test_passages`.

    `dev` is the share of train that becomes dev. The corpus is the sentences of all splits.
    """
    splits = {}
    for split in ("train", "test"):
        queries, passages = (_lines(sources[f"{split}_{side}"]) for side in ("queries", "passages"))
        pairs = enumerate(zip(queries, passages, strict=True), start=1)
        splits[split] = [Record("ir", query, (text,), id=str(i)) for i, (query, text) in pairs]
    corpus = [record.positives[0] for records in splits.values() for record in records]
    return cut_dev(splits, dev), corpus


def _lines(file: Path) -> list[str]:
    lines = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    # A token may stick to others, where a tokeniser took a mark for a part of them.
    return [" ".join(_TOKEN.sub(lambda m: _TREEBANK[m[0]], line).split()) for line in lines]
