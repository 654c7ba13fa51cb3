"""The news articles of Lee, Pincombe and Welsh, as gensim has them: retrieval without queries."""

import re
from pathlib import Path

from codiemb_lib.core import normalise
from codiemb_lib.data import NearDuplicates, Record, split_of


def build(
    sources: dict[str, Path], *, fractions: dict[str, float]
) -> tuple[dict[str, list[Record]], tuple]:
    """The articles, a line each of `background`: the first sentence asks for the rest.

    Left out are articles that stand in `documents`, or that repeat an earlier one.
    """
    seen = NearDuplicates()
    for document in _lines(sources["documents"]):
        seen.add(document)
    splits: dict[str, list[Record]] = {split: [] for split in fractions}
    for number, line in enumerate(_lines(sources["background"]), start=1):
        article = " ".join(line.split())
        headline, *rest = _sentences(article)
        body = " ".join(rest)
        if len(headline.split()) < 5 or len(body.split()) < 20 or headline in body:
            continue
        if seen.add(article):
            record = Record("ir", headline, (body,), id=f"lee-{number}")
            splits[split_of(normalise(article), fractions)].append(record)
    return splits, ()


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="latin-1").strip("\n").split("\n")


def _sentences(text: str) -> list[str]:
    """Split where a sentence ends, not after initials and titles: "U.S. troops", "Mr. Smith"."""
    return re.split(
        r"(?<!\b[A-Z]\.)(?<!\b(?:Mr|Ms|Dr|St|Lt)\.)(?:(?<=[.!?])|(?<=[.!?][\"')]))\s+"
        r"(?=[\"'(]?[A-Z0-9])",
        text,
    )
