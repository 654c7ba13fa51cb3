"""Rated word pairs, a line each: SimLex-999 and WordSim-353, as gensim has them."""

from collections import defaultdict
from pathlib import Path

from codiemb_lib.core import normalise
from codiemb_lib.data import Record, split_of


def build(
    sources: dict[str, Path], *, scale: float, fractions: dict[str, float]
) -> tuple[dict[str, list[Record]], tuple]:
    """The pairs of the file `pairs`; one that stands twice, in either order, gets the mean rating.

    The split hangs on the unordered pair alone, so two word sets never disagree about a pair.
    """
    ratings: dict[tuple[str, ...], list[float]] = defaultdict(list)
    pairs: dict[tuple[str, ...], tuple[str, str]] = {}
    for line in sources["pairs"].read_text(encoding="ascii").splitlines():
        if line.startswith("#"):
            continue
        left, right, rating = line.split("\t")
        key = tuple(sorted((normalise(left), normalise(right))))
        pairs.setdefault(key, (left, right))
        ratings[key].append(float(rating) / scale)
    splits: dict[str, list[Record]] = {split: [] for split in fractions}
    for key, (left, right) in pairs.items():
        name, score = " ".join(key), round(sum(ratings[key]) / len(ratings[key]), 6)
        record = Record("sts", left, (right,), positive_scores=(score,), id=name)
        splits[split_of(name, fractions)].append(record)
    return splits, ()
