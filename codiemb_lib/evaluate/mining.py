"""Hard negatives for IR records: passages that an encoder places near a query, but not too near."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path

from codiemb_lib import core, model
from codiemb_lib.core import normalise
from codiemb_lib.data import Dataset, Record, answers_of, origin_of, read_file, write_splits
from codiemb_lib.evaluate import NUMERICS
from codiemb_lib.evaluate.search import EvaluationError, top_k

_PLAIN = core.DatasetSettings(name="")
_DECIDES = {"mine", "query_prompt", "passage_prompt", "ignore_identical_ids"}


def mine(
    encoder: model.Embedder,
    records: Sequence[Record],
    *,
    corpus: Iterable[str] = (),
    settings: core.DatasetSettings = _PLAIN,
    negatives: int = 4,
    absolute_margin: float = 0.0,
    relative_margin: float = 0.0,
    depth: int = 100,
    progress: bool = False,
) -> list[Record]:
    r"""The IR records with new hard negatives: the passages most similar to each record's query.

    Candidates are the distinct passages of all records, positives and negatives alike, and the
    texts of `corpus`. Of the `depth` passages of largest cosine with the query, in falling order, a
    record gets the first `negatives` that read neither like the query itself nor like a positive of
    any record of it (`answers_of`) and whose cosine satisfies

    .. math:: \cos(q, d^-) \le (1 - \mathrm{relative}) \min_{d^+} \cos(q, d^+)
              - \mathrm{absolute}.

    The ceiling guards against false negatives: it is TopK-PercPos (relative) and TopK-MarginPos
    (absolute) of NV-Retriever (Moreira et al., 2024, arXiv 2407.15831), named as
    sentence-transformers names them. Of several positives the least similar one counts, as the
    objective sets each positive of a record against each of its negatives.

    `settings` give the prompts, and by `ignore_identical_ids` say whether the document of a query's
    id is left out, as in scoring. Former negatives and their scores are replaced. A record with too
    few candidates gets fewer. Passages of equal cosine come in the order of the records, then of
    `corpus`.

    Raises:
        EvaluationError: A record that is not of IR, or a setting out of range.
    """
    for place, record in enumerate(records):
        if record.task != "ir":
            raise EvaluationError(
                f"expected IR records alone, found task {record.task!r} in record {place}: an STS "
                "pair has no negatives."
            )
    margins = 0 <= absolute_margin <= 2 and 0 <= relative_margin < 1
    if negatives < 1 or depth < negatives or not margins:
        raise EvaluationError(
            "expected negatives of at least 1, depth no less, an absolute margin from 0 to 2 in "
            "units of the cosine and a relative one from 0 to below 1, found "
            f"{negatives}, {depth}, {absolute_margin} and {relative_margin}."
        )
    own = (text for record in records for text in (*record.positives, *record.negatives))
    row_of = {text: row for row, text in enumerate(dict.fromkeys(chain(own, corpus)))}
    passages = list(row_of)
    plain, known = [*map(normalise, passages)], answers_of(records)
    texts = dict.fromkeys(record.query for record in records)
    queries = {query: row for row, query in enumerate(texts)}
    q = encoder.embed(list(queries), prompt=settings.query_prompt, progress=progress)
    p = encoder.embed(passages, prompt=settings.passage_prompt, progress=progress)
    cosines, rows = top_k(q, p, min(depth, len(passages)), progress=progress)

    mined = []
    for record in records:
        i = queries[record.query]
        least = (p[[row_of[text] for text in record.positives]] @ q[i]).min()
        ceiling = (1 - relative_margin) * least - absolute_margin
        own = normalise(record.query)
        out = known[own] | {own}
        out |= {normalise(record.same_id)} if settings.ignore_identical_ids else set()
        near = (row for row in rows[i, cosines[i] <= ceiling] if plain[row] not in out)
        chosen = tuple(passages[row] for row in islice(near, negatives))
        mined.append(replace(record, negatives=chosen, negative_scores=()))
    return mined


def with_mined(preset: core.Preset, datasets: Mapping[str, Dataset]) -> dict[str, Dataset]:
    """The data sets of a preset, with the hard negatives that it asks for by `mine`.

    They are mined once, among the passages of the training records, for those without negatives,
    and lie in `data/cache/mined` by the hash of all that decides them. How many were found is said.
    """
    found = {**datasets}
    for settings in preset.datasets:
        if (asked := settings.mine) and settings.train != 0:
            dataset = datasets[settings.name]
            source = core.EncoderSettings(name=asked.encoder)
            source = preset.encoder if asked.encoder == "start" else source
            embedder = model.Embedder(source.model_copy(update={"lora": None}))
            said = settings.model_dump_json(include=_DECIDES)
            key = core.sha256_text(dataset.content_hash, embedder.key, said, str(NUMERICS))
            folder = core.project_root() / "data" / "cache" / "mined"
            folder /= f"{Path(settings.name).name}-{key[:16]}"
            with core.alone(folder):
                if origin_of(folder) != key:
                    train = _mined(embedder, dataset.split("train"), settings, asked)
                    write_splits(folder, {"train": train}, origin=key)
            read = read_file(folder / "train.jsonl", task="ir")
            train = tuple(replace(record, dataset=settings.name) for record in read)
            splits, content = {**dataset.splits, "train": train}, core.sha256_text(key)
            found[settings.name] = replace(dataset, splits=splits, content_hash=content)
            counts = [len(record.negatives) for record in train]
            says = f"{sum(counts):,} hard negatives for {len(counts):,} training records"
            core.say_once(f"{settings.name}: {says}, {counts.count(0):,} of them without any")
    return found


def _mined(
    embedder: model.Embedder,
    records: Sequence[Record],
    settings: core.DatasetSettings,
    asked: core.MineSettings,
) -> list[Record]:
    relative = {"relative_margin": 1 - asked.margin}
    absolute = {"absolute_margin": asked.absolute_margin}
    margin = relative if asked.absolute_margin is None else absolute
    mined = mine(embedder, records, settings=settings, negatives=asked.negatives, **margin)
    return [own if own.negatives else new for own, new in zip(records, mined, strict=True)]
