"""Rated pairs of the 50 short news documents of Lee, Pincombe and Welsh, as gensim has them."""

from pathlib import Path

from codiemb_lib.core import normalise, sha256_text
from codiemb_lib.data import Record, split_at


def build(
    sources: dict[str, Path], *, fractions: dict[str, float]
) -> tuple[dict[str, list[Record]], tuple]:
    """The pairs of the lines of `documents`; both documents of a pair lie in the same split.

    The matrix `similarities` holds its upper triangle and a diagonal of ones: row i, column j > i
    is a pair.
    """
    lines = sources["documents"].read_text(encoding="latin-1").strip("\n").split("\n")
    documents = [" ".join(line.split()) for line in lines]
    # Fifty are too few to leave the sizes to chance: in the order of their hashes, cut by share.
    order = sorted(range(len(documents)), key=lambda i: sha256_text(normalise(documents[i])))
    where = {i: split_at((n + 0.5) / len(order), fractions) for n, i in enumerate(order)}
    splits: dict[str, list[Record]] = {split: [] for split in fractions}
    for i, line in enumerate(sources["similarities"].read_text(encoding="ascii").splitlines()):
        scores = [float(score) for score in line.split("\t")]
        for j in range(i + 1, len(documents)):
            if where[i] == where[j]:
                pair = documents[i], (documents[j],)
                record = Record("sts", *pair, positive_scores=(scores[j],), id=f"{i}-{j}")
                splits[where[i]].append(record)
    return splits, ()
