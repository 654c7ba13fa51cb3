"""Hard negatives for IR records: passages that an encoder places near a query, but not too near."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain, islice

from codiemb_lib import model
from codiemb_lib.core import normalise
from codiemb_lib.data import Record, answers_of
from codiemb_lib.evaluate.search import EvaluationError, top_k


def mine(
    encoder: model.Embedder,
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
    texts of `corpus`. Of the `depth` passages of largest cosine with the query, in falling order, a
    record gets the first `negatives` that read neither like the query itself nor like a positive of
    any record of it (`answers_of`), are not the document of its id, and whose cosine satisfies

    .. math:: \cos(q, d^-) \le \min_{d^+} \cos(q, d^+) - \mathrm{margin}.

    The ceiling guards against false negatives: it is TopK-MarginPos of NV-Retriever (Moreira et
    al., 2024, arXiv 2407.15831). Of several positives the least similar one counts, as the
    objective sets each positive of a record against each of its negatives.

    Former negatives and their scores are replaced. A record with too few candidates gets fewer.
    Passages of equal cosine come in the order of the records, then of `corpus`.

    Raises:
        EvaluationError: A record that is not of IR, or a setting out of range.
    """
    for place, record in enumerate(records):
        if record.task != "ir":
            raise EvaluationError(
                f"expected IR records alone, found task {record.task!r} in record {place}: an STS "
                "pair has no negatives."
            )
    if negatives < 1 or depth < negatives or not 0 <= margin <= 2:
        raise EvaluationError(
            "expected negatives of at least 1, depth no less, and a margin from 0 to 2 in units of "
            f"the cosine, found {negatives}, {depth} and {margin}."
        )
    own = (text for record in records for text in (*record.positives, *record.negatives))
    row_of = {text: row for row, text in enumerate(dict.fromkeys(chain(own, corpus)))}
    passages = list(row_of)
    plain, known = [*map(normalise, passages)], answers_of(records)
    texts = dict.fromkeys(record.query for record in records)
    queries = {query: row for row, query in enumerate(texts)}
    q = encoder.embed(list(queries), prompt=query_prompt, progress=progress)
    p = encoder.embed(passages, prompt=passage_prompt, progress=progress)
    cosines, rows = top_k(q, p, min(depth, len(passages)), progress=progress)

    mined = []
    for record in records:
        i = queries[record.query]
        ceiling = (p[[row_of[text] for text in record.positives]] @ q[i]).min() - margin
        own = normalise(record.query)
        out = known[own] | {own, normalise(record.same_id)}
        near = (row for row in rows[i, cosines[i] <= ceiling] if plain[row] not in out)
        chosen = tuple(passages[row] for row in islice(near, negatives))
        mined.append(replace(record, negatives=chosen, negative_scores=()))
    return mined
