"""Hard negatives for IR records: passages that an encoder places near a query, but not too near."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice

from codiemb_lib.core import CodiembError
from codiemb_lib.data import Record
from codiemb_lib.evaluate.search import top_k
from codiemb_lib.model import Embedder


class MiningError(CodiembError, ValueError):
    """Records from which, or settings with which, no negatives can be mined."""


def mine(
    encoder: Embedder,
    records: Sequence[Record],
    *,
    corpus: Iterable[str] = (),
    query_prompt: str = "",
    passage_prompt: str = "",
    negatives: int = 4,
    margin: float = 0.05,
    depth: int = 100,
    progress: bool = False,
) -> list[Record]:
    r"""The IR records with new hard negatives: the passages most similar to each record's query.

    Candidates are the distinct passages of all records, positives and negatives alike, and the
    texts of `corpus`. The `depth` passages of largest cosine with the query are found by exact
    search; of these, in falling order, a record gets the first `negatives` that are neither the
    query itself nor a positive of any record with the same query, and whose cosine satisfies

    .. math:: \cos(q, d^-) \le \min_{d^+} \cos(q, d^+) - \mathrm{margin}.

    The ceiling guards against false negatives: it is TopK-MarginPos of NV-Retriever (Moreira et
    al., 2024, arXiv 2407.15831). Of several positives the least similar one counts, as the
    objective sets each positive of a record against each of its negatives. A positive which the
    encoder misses thus leaves a record few negatives or none, unless `depth` reaches further.

    A record's former negatives and their scores are replaced; they remain candidates. What is left
    of a record with too few candidates is what it gets. The same input gives the same output:
    passages of equal cosine come in the order of the records, then of `corpus`.

    Args:
        encoder: What encodes; only its method `embed` is used.
        records: IR records.
        corpus: Further passages.
        query_prompt: Set before each query.
        passage_prompt: Set before each passage.
        negatives: How many a record gets at most.
        margin: In units of the cosine, from 0 to 2.
        depth: How many passages are looked at for a query, its positives among them.
        progress: Show bars of the encoding and the search.

    Raises:
        MiningError: No record, an STS record, a blank text in `corpus`, or a setting out of range.
        SearchError: The encoder gave vectors that are not finite.
    """
    passages = _passages(records, corpus)
    if negatives < 1 or depth < negatives:
        raise MiningError(
            f"expected negatives of at least 1 and depth no less, found {negatives} and {depth}."
        )
    if not 0 <= margin <= 2:
        raise MiningError(f"expected a margin from 0 to 2, in units of the cosine, found {margin}.")
    positives = defaultdict(set)  # by query, over all of its records
    for record in records:
        positives[record.query].update(record.positives)
    queries = {query: row for row, query in enumerate(positives)}
    row_of = {passage: row for row, passage in enumerate(passages)}
    q = encoder.embed(list(queries), prompt=query_prompt, progress=progress)
    p = encoder.embed(passages, prompt=passage_prompt, progress=progress)
    cosines, rows = top_k(q, p, min(depth, len(passages)), progress=progress)

    mined = []
    for record in records:
        i = queries[record.query]
        ceiling = (p[[row_of[text] for text in record.positives]] @ q[i]).min() - margin
        near = (passages[row] for row in rows[i, cosines[i] <= ceiling])
        out = positives[record.query] | {record.query}
        chosen = tuple(islice((text for text in near if text not in out), negatives))
        mined.append(replace(record, negatives=chosen, negative_scores=()))
    return mined


def _passages(records: Sequence[Record], corpus: Iterable[str]) -> list[str]:
    """The distinct passages of records and corpus, in order."""
    if not records:
        raise MiningError("expected at least one record, found none.")
    passages = {}
    for place, record in enumerate(records):
        if record.task != "ir":
            raise MiningError(
                f"expected IR records alone, found task {record.task!r} in record {place}. An STS "
                "pair has no negatives: mine IR data sets only."
            )
        passages.update(dict.fromkeys((*record.positives, *record.negatives)))
    for place, text in enumerate(corpus):
        if not text.strip():
            raise MiningError(f"expected passages, found a blank text at place {place} of corpus.")
        passages[text] = None
    return list(passages)
