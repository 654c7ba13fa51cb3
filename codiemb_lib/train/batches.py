"""What a step encodes: the texts drawn from its records, each distinct one once, in forward passes.

The loss of a step is a function of the embeddings of its global batch, and every rank knows that
whole batch: which texts it has and how they meet. So the distinct texts are dealt to the ranks by
length, whatever record they come from; no text is encoded twice in a step, and no rank waits for
another that drew the longer records. All of this is a pure function of seed, epoch and place, and
needs neither the encoder nor its device: it runs ahead of training, in worker processes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from torch.utils.data import Dataset

from codiemb_lib.core import DatasetSettings, ObjectiveSettings, Preset, normalise, say_once
from codiemb_lib.data import Record, answers_of
from codiemb_lib.model import Encoder, Packing, Padded, TextTokenizer, forward_passes
from codiemb_lib.train.sampling import (
    MixedTaskPlan,
    PairedTaskPlan,
    PlannedBatch,
    SingleTaskPlan,
)


@dataclass(frozen=True)
class Batch:
    """The distinct texts of a global batch, and how they meet in its loss.

    B queries with P positives each, and a pool of K negatives for all of them. A similarity pair is
    a query with one positive and a score.

    Attributes:
        texts: Distinct (prompt, text), the longest first; what follows are rows of it.
        queries: (B,)
        positives: (B, P)
        negatives: (K,)
        answers: (B, B, P) bool, true where query i is answered by positive p of row j, too.
        scores: (B,) float32, gold, of similarity pairs; else (0,).
        parts: The retrieval and the similarity records of a mixed batch with an objective for each,
            as batches with the same texts; else none.
    """

    planned: PlannedBatch
    texts: list[tuple[str, str]]
    queries: np.ndarray
    positives: np.ndarray
    negatives: np.ndarray
    answers: np.ndarray
    scores: np.ndarray
    parts: tuple["Batch", ...] = ()


def make_batch(
    planned: PlannedBatch,
    records: Sequence[Record],
    prompts: Mapping[str, DatasetSettings],
    settings: ObjectiveSettings,
    generator: np.random.Generator,
    known: Mapping[str, set[str]] | None = None,
    *,
    sts_objective: str = "codiemb",
) -> Batch:
    """Draw the texts of a planned batch.

    A retrieval record gives `settings.positives` positives and, where it has any,
    `settings.negatives` hard negatives; where it has too few, they are drawn again. The pool is
    everybody's, so it has nothing that is known to answer a query of the batch: `answers_of`, by
    default of its records.

    With `sts_objective` "info_nce", a similarity pair counts as query and positive from
    `settings.mixed_anchor_score` on; of a pair below it, the second text joins the pool, by our
    choice. With any other, the two tasks of a mixed batch are `parts` of it. Both sides of a
    similarity pair carry the query's prompt (METHOD, "Unified record").
    """
    if planned.task == "mixed" and sts_objective != "info_nce":
        parts = []
        for task in ("ir", "sts"):
            of = [tuple(i for i in s if records[i].task == task) for s in planned.shards]
            own = replace(planned, task=task, shards=tuple(of))
            if own.indices:
                parts.append(make_batch(own, records, prompts, settings, generator, known))
        return _joined(planned, parts)
    members = [records[i] for i in planned.indices]
    pool: list[tuple[str, str]] = []
    answers: list[list[bool]] = []
    by_score = planned.task == "sts" and sts_objective != "info_nce"
    if by_score:
        anchors, per_query = members, 1
        positives = [record.positives for record in members]
    else:
        anchors = [r for r in members if r.task == "ir" or r.score >= settings.mixed_anchor_score]
        per_query = settings.positives
        positives = [_draw(r.positives, per_query, generator) for r in anchors]
        known = known or answers_of(anchors)
        relevant = [known[normalise(record.query)] for record in anchors]
        taken = set().union(*relevant)
        for record in anchors:
            if hard := [text for text in record.negatives if normalise(text) not in taken]:
                prompt = _passage_prompt(prompts, record)
                pool += [(prompt, text) for text in _draw(hard, settings.negatives, generator)]
        for record in members:
            low = record.task == "sts" and record.score < settings.mixed_anchor_score
            if low and normalise(record.positives[0]) not in taken:
                pool.append((_passage_prompt(prompts, record), record.positives[0]))
        drawn = [[*map(normalise, texts)] for texts in positives]
        answers = [[[text in of for text in texts] for texts in drawn] for of in relevant]
    keys = [(prompts[record.dataset].query_prompt, record.query) for record in anchors]
    for record, texts in zip(anchors, positives, strict=True):
        keys += [(_passage_prompt(prompts, record), text) for text in texts]
    keys += pool
    texts = _ordered({*keys})
    row = {key: i for i, key in enumerate(texts)}
    rows = np.array([row[key] for key in keys])
    queries, others = np.split(rows, [len(anchors)])
    positives, negatives = np.split(others, [len(anchors) * per_query])
    positives = positives.reshape(len(anchors), per_query)
    scores = [record.score for record in members] if by_score else []
    others = negatives, np.array(answers, bool), np.array(scores, np.float32)
    return Batch(planned, texts, queries, positives, *others)


def _joined(planned: PlannedBatch, parts: Sequence[Batch]) -> Batch:
    """Batches as parts of one, whose texts are those of all."""
    texts = _ordered({text for part in parts for text in part.texts})
    row = {text: i for i, text in enumerate(texts)}
    moved = []
    for part in parts:
        rows = np.array([row[text] for text in part.texts])
        places = {name: rows[getattr(part, name)] for name in ("queries", "positives", "negatives")}
        moved.append(replace(part, texts=texts, **places))
    none = np.empty(0, int)
    empty = none, none, none, none.astype(bool), none.astype(np.float32)
    return Batch(planned, texts, *empty, parts=tuple(moved))


def _ordered(texts: set[tuple[str, str]]) -> list[tuple[str, str]]:
    return sorted(texts, key=lambda key: (-len(key[0]) - len(key[1]), key))


def _passage_prompt(prompts: Mapping[str, DatasetSettings], record: Record) -> str:
    carried = prompts[record.dataset]
    return carried.passage_prompt if record.task == "ir" else carried.query_prompt


def _draw(texts: Sequence[str], count: int, generator: np.random.Generator) -> list[str]:
    """`count` texts at random; all of them once before any is drawn again."""
    drawn: list[int] = []
    while len(drawn) < count:
        drawn += generator.permutation(len(texts))[: count - len(drawn)].tolist()
    return [texts[i] for i in drawn]


@dataclass(frozen=True)
class Share:
    """What one rank encodes of a global batch: texts `rank::world_size`, at least one.

    Attributes:
        forwards: The blocks of padded texts of each forward pass, the longest texts first.
        order: (m,) for each text of the share its row in the joined output of the passes.
        seeds: One for each forward pass: its dropout is the same whenever it is repeated.
        tokens: Of the texts of this share, padding left out.
    """

    batch: Batch
    forwards: list[list[Padded]]
    order: np.ndarray
    seeds: list[int]
    tokens: int


def make_share(
    batch: Batch,
    tokenizer: TextTokenizer,
    *,
    tokens_per_forward: int,
    packing: Packing,
    seed: Sequence[int],
    rank: int = 0,
    world_size: int = 1,
) -> Share:
    """Tokenise a rank's texts and cut them into forward passes of a token budget."""
    own = batch.texts[rank::world_size] or batch.texts[:1]
    tokens = tokenizer([text for _, text in own], [prompt for prompt, _ in own])
    passes = forward_passes(tokens, tokens_per_forward, packing)
    return Share(
        batch,
        [[tokenizer.pad([tokens[i] for i in block]) for block in blocks] for blocks in passes],
        np.argsort([i for blocks in passes for block in blocks for i in block]),
        np.random.SeedSequence([*seed, rank]).generate_state(len(passes)).tolist(),
        sum(len(text.ids) for text in tokens),
    )


class OptimizerSteps(Dataset):
    """All optimiser steps of a run, as one rank needs them: item i is the list of its shares.

    An epoch's batches, or pairs of them, are grouped by the preset's `accumulation`; the last group
    may be smaller. Any item can be asked for at any time. The preset is one as it is trained
    (`Preset.as_trained`); `seed` is that of plan, draws and dropout.
    """

    def __init__(
        self,
        records: Sequence[Record],
        plan: SingleTaskPlan | MixedTaskPlan,
        encoder: Encoder,
        preset: Preset,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        sts_objective: str = "codiemb",
    ):
        self.sts_objective = sts_objective
        self.records, self.plan, self.seed, self.world_size = records, plan, seed, world_size
        self.prompts = {dataset.name: dataset for dataset in preset.datasets}
        self.objective, self.settings = preset.objective, preset.training
        least, most = preset.objective.mixed_anchor_score, preset.objective.negatives
        self.known = answers_of(r for r in records if r.task == "ir" or r.score >= least)
        given = [(normalise(r.query), normalise(text)) for r in records for text in r.negatives]
        if given:
            out = sum(text in self.known[query] for query, text in given)
            says = f"{out} left out, for they read like a positive of the same query"
            say_once(f"training: {len(given)} hard negatives, {says}; {most} a record in a step")
        self._share_of = partial(
            make_share,
            tokenizer=encoder.tokenizer,
            tokens_per_forward=self.settings.tokens_per_forward,
            packing=encoder.packing,
            rank=rank,
            world_size=world_size,
        )
        pairs = 2 if isinstance(plan, PairedTaskPlan) else 1
        self.per_step = pairs * self.settings.accumulation
        self.per_epoch = -(-plan.length(world_size) // self.per_step)
        self._planned: dict[int, list[PlannedBatch]] = {}

    def __len__(self) -> int:
        whole = self.settings.epochs * self.per_epoch
        return min(whole, self.settings.max_steps or whole)

    def epoch(self, number: int) -> int:
        """The epoch of an optimiser step."""
        return number // self.per_epoch

    def planned(self, number: int) -> list[PlannedBatch]:
        """The batches that make up an optimiser step."""
        epoch = self.epoch(number)
        if epoch not in self._planned:
            steps = self.plan.steps(epoch, seed=self.seed, world_size=self.world_size)
            self._planned = {epoch: steps}  # till the next one's
        first = (number % self.per_epoch) * self.per_step
        return self._planned[epoch][first : first + self.per_step]

    def __getitem__(self, number: int) -> list[Share]:
        if not 0 <= number < len(self):
            raise IndexError(number)  # by which a loop over all steps ends
        shares = []
        for place, planned in enumerate(self.planned(number)):
            seed = [self.seed, number, place]
            generator = np.random.default_rng(seed)
            how = self.prompts, self.objective, generator, self.known
            batch = make_batch(planned, self.records, *how, sts_objective=self.sts_objective)
            shares.append(self._share_of(batch, seed=seed))
        return shares
