"""MedQuAD: questions and answers, in groups about one matter each, which no split divides."""

import gzip
import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from codiemb_lib.core import normalise, sha256_text
from codiemb_lib.data import Record, read_file, split_of


def build(
    sources: dict[str, Path], *, negatives: int, fractions: dict[str, float]
) -> tuple[dict[str, list[Record]], Iterable[str]]:
    """The records of `questions`; all of one focus fall in one split, by the hash of its name.

    Hard negatives, at most so many, are first answers to other questions of the focus, in the order
    of hashes. A question without a focus is a group of its own. The corpus is all answers.
    """
    with gzip.open(sources["questions"], "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    focus = {row["question"].strip(): normalise(row["focus"]) for row in rows}
    members: dict[str, list[Record]] = defaultdict(list)
    for record in read_file(sources["questions"], columns=("question", "answer")):
        members[focus[record.query] or normalise(record.query)].append(record)
    splits: dict[str, list[Record]] = {split: [] for split in fractions}
    for group, records in members.items():
        splits[split_of(group, fractions)] += [
            _with_siblings(r, records, negatives) for r in records
        ]
    return splits, (text for of_split in splits.values() for r in of_split for text in r.positives)


def _with_siblings(record: Record, members: list[Record], most: int) -> Record:
    own = set(map(normalise, record.positives))
    others = sorted(members, key=lambda member: sha256_text(record.query, member.query))
    answers = dict.fromkeys(m.positives[0] for m in others if m is not record)
    negatives = [text for text in answers if normalise(text) not in own]
    return replace(record, negatives=tuple(negatives[:most]))
