"""Which texts a step draws, how they are dealt to ranks, and in which forward passes they go."""

from collections import Counter

import numpy as np
import pytest

from codiemb_lib.core import DatasetSettings, ObjectiveSettings, Preset
from codiemb_lib.data import Record, answers_of
from codiemb_lib.model import Packing
from codiemb_lib.train import batches
from codiemb_lib.train.batches import OptimizerSteps, make_batch, make_share
from codiemb_lib.train.sampling import MixedTaskPlan, PlannedBatch, SingleTaskPlan
from tests.made_up import PROMPTS, ir_records, sts_records

RECORDS = ir_records(30, dataset="ir") + sts_records(30, dataset="sts")
SETTINGS = ObjectiveSettings(positives=2, negatives=3)
PACKING = Packing(joined=True, cost=8)
PRESET = {
    "name": "made-up",
    "description": "",
    "seeds": [0],
    "encoder": {"name": "tiny"},
    "datasets": [{"name": "ir", "query_prompt": "query: "}, {"name": "sts"}],
    "objective": {"positives": 2, "negatives": 3},
    "variants": {"codiemb": {}},
}


def optimizer_steps(plan, encoder, *, rank=0, world_size=1, **training):
    """All of a run's on the records above."""
    sizes = {"batch_sizes": {"ir": 3, "sts": 4, "mixed": 4}}
    preset = Preset(**PRESET, training=sizes | training)
    return OptimizerSteps(RECORDS, plan, encoder, preset, seed=5, rank=rank, world_size=world_size)


def drawn(records, task, settings=SETTINGS, seed=0):
    planned = PlannedBatch(task, "", (tuple(range(len(records))),))
    how = {"sts_objective": "info_nce" if task == "mixed" else "codiemb"}
    return make_batch(planned, records, PROMPTS, settings, np.random.default_rng(seed), **how)


def texts(batch, rows):
    return [batch.texts[i][1] for i in np.ravel(rows)]


def test_a_retrieval_batch_draws_positives_and_hard_negatives_of_each_record():
    records = ir_records(4, dataset="ir")
    batch = drawn(records, "ir")
    assert texts(batch, batch.queries) == [r.query for r in records]
    for record, row in zip(records, batch.positives, strict=True):
        assert sorted(texts(batch, row)) == sorted(record.positives)
    # One hard negative where three are asked for: it is drawn again.
    assert Counter(texts(batch, batch.negatives)) == {r.negatives[0]: 3 for r in records}
    assert batch.scores.size == 0


def test_queries_carry_the_prompt_and_passages_their_own():
    prompts = {"ir": DatasetSettings(name="ir", query_prompt="q ", passage_prompt="p ")}
    planned = PlannedBatch("ir", "ir", ((0, 1),))
    records = ir_records(2, dataset="ir")
    batch = make_batch(planned, records, prompts, SETTINGS, np.random.default_rng(0))
    assert {batch.texts[i][0] for i in batch.queries} == {"q "}
    assert {batch.texts[i][0] for i in (*batch.positives.flat, *batch.negatives)} == {"p "}


def test_both_sides_of_a_pair_carry_the_query_prompt():
    batch = drawn(sts_records(6, dataset="sts"), "sts")
    assert {prompt for prompt, _ in batch.texts} == {"find "}
    assert batch.positives.shape == (6, 1)
    np.testing.assert_allclose(batch.scores, [r.score for r in sts_records(6)])


def test_texts_are_distinct_and_the_longest_come_first():
    batch = drawn(RECORDS, "mixed")
    assert len(set(batch.texts)) == len(batch.texts)
    lengths = [len(prompt) + len(text) for prompt, text in batch.texts]
    assert lengths == sorted(lengths, reverse=True)


def test_no_negative_is_a_positive_of_the_batch():
    records = [
        Record("ir", "find cat", ("a cat",), ("a dog",), dataset="ir"),
        Record("ir", "find dog", ("a dog",), ("a bus",), dataset="ir"),
    ]
    batch = drawn(records, "ir")
    assert set(texts(batch, batch.negatives)) == {"a bus"}


def test_no_negative_reads_like_what_is_known_to_answer_a_query_of_the_batch(make_encoder, caplog):
    records = [
        Record("ir", "Capital?", ("Paris",), ("paris ", "Rome", "Nice"), dataset="ir"),
        Record("ir", "capital", ("ROME",), dataset="ir"),
        Record("ir", "Where was he?", ("In Paris", "paris!"), ("Oslo",), dataset="ir"),
        Record("ir", "Who?", ("I",), dataset="ir"),
    ]
    planned = PlannedBatch("ir", "ir", ((0, 2, 3),))
    known = answers_of(records)
    batch = make_batch(planned, records, PROMPTS, SETTINGS, np.random.default_rng(0), known)
    assert {*texts(batch, batch.negatives)} == {"Nice", "Oslo"}
    # The third record's answers have the first's among them, and that one is no negative of it.
    both, none = [True, True], [False, False]
    paris = [text.startswith("paris") for text in texts(batch, batch.positives[1])]
    assert sorted(paris) == [False, True]
    np.testing.assert_array_equal(
        batch.answers, [[both, paris, none], [both, both, none], [none, none, both]]
    )
    plan = MixedTaskPlan(records, batch_size=4)
    sizes = {"batch_sizes": {"ir": 3, "sts": 4, "mixed": 4}}
    preset, how = Preset(**PRESET, training=sizes), {"seed": 0, "sts_objective": "info_nce"}
    steps = OptimizerSteps(records, plan, make_encoder(), preset, **how)
    assert {*texts(steps[0][0].batch, steps[0][0].batch.negatives)} == {"Nice", "Oslo"}
    assert "training: 4 hard negatives, 2 left out" in caplog.text


def test_records_without_negatives_and_batches_without_any_are_fine():
    records = [Record("ir", r.query, r.positives, dataset="ir") for r in ir_records(4)]
    assert drawn(records, "ir").negatives.shape == (0,)
    none = ObjectiveSettings(negatives=0)
    assert drawn(ir_records(4, dataset="ir"), "ir", none).negatives.shape == (0,)


def test_mixed_batches_take_high_pairs_as_positives_and_low_ones_as_negatives():
    sts = [
        Record("sts", "cat", ("dog",), positive_scores=(0.9,), dataset="sts"),
        Record("sts", "cat", ("bus",), positive_scores=(0.1,), dataset="sts"),
    ]
    one = ObjectiveSettings(positives=1, negatives=1)
    batch = drawn(ir_records(3, dataset="ir") + sts, "mixed", one)
    assert batch.positives.shape == (4, 1)
    assert texts(batch, batch.positives)[-1] == "dog"
    assert texts(batch, batch.negatives)[-1] == "bus"
    assert len(batch.negatives) == 4  # three hard ones and the low pair


def test_each_text_is_drawn_once_before_any_is_drawn_again():
    for count in range(1, 9):
        chosen = batches._draw(["a", "b", "c"], count, np.random.default_rng(count))
        copies = [chosen.count(t) for t in "abc"]
        assert len(chosen) == count
        assert max(copies) - min(copies) <= 1


@pytest.mark.parametrize("world_size", [1, 3, 100])
def test_ranks_share_the_texts_and_each_has_at_least_one(make_encoder, world_size):
    batch = drawn(RECORDS, "mixed")
    tokenizer = make_encoder().tokenizer
    shares = [
        make_share(
            batch,
            tokenizer,
            tokens_per_forward=64,
            packing=PACKING,
            seed=[0],
            rank=rank,
            world_size=world_size,
        )
        for rank in range(world_size)
    ]
    assert min(len(share.order) for share in shares) >= 1
    if world_size < len(batch.texts):
        assert sum(len(share.order) for share in shares) == len(batch.texts)
        prompts, plain = zip(*batch.texts, strict=True)
        tokens = sum(len(text.ids) for text in tokenizer(plain, prompts))
        assert sum(share.tokens for share in shares) == tokens


@pytest.mark.parametrize("joined", [True, False])
def test_forward_passes_keep_to_their_budget_and_order_puts_texts_back(make_encoder, joined):
    batch = drawn(RECORDS, "mixed")
    tokenizer = make_encoder().tokenizer
    share = make_share(
        batch, tokenizer, tokens_per_forward=50, packing=Packing(joined, 8), seed=[0]
    )
    assert all(sum(block.ids.size for block in blocks) <= 50 for blocks in share.forwards)
    rows = [
        row[:n].tolist()
        for blocks in share.forwards
        for block in blocks
        for row, n in zip(block.ids, block.lengths, strict=True)
    ]
    prompts, plain = zip(*batch.texts, strict=True)
    assert [rows[i] for i in share.order] == [t.ids for t in tokenizer(plain, prompts)]
    assert share.tokens == sum(map(len, rows))
    assert len(set(share.seeds)) == len(share.forwards)


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("mixed", [False, True])
def test_every_record_once_an_epoch_at_any_accumulation(
    make_encoder, accumulation, world_size, mixed
):
    if mixed:
        plan = MixedTaskPlan(RECORDS, batch_size=4)
        expected = 60 // (4 * world_size) * (4 * world_size)
    else:
        plan = SingleTaskPlan(RECORDS, batch_sizes={"ir": 3, "sts": 4})
        expected = sum(30 // (n * world_size) * (n * world_size) for n in (3, 4))
    encoder = make_encoder()
    by_rank = [
        optimizer_steps(
            plan, encoder, epochs=2, accumulation=accumulation, rank=rank, world_size=world_size
        )
        for rank in range(world_size)
    ]
    ranks = []
    for rank, steps in enumerate(by_rank):
        assert len(steps) == 2 * steps.per_epoch
        second = [n for n in range(len(steps)) if steps.epoch(n) == 1]
        ranks.append([i for n in second for s in steps.planned(n) for i in s.shards[rank]])
    assert len({len(seen) for seen in ranks}) == 1
    together = [i for seen in ranks for i in seen]
    assert len(together) == len(set(together)) == expected


def test_any_step_can_be_asked_for_at_once_and_the_number_is_bounded(make_encoder):
    plan, encoder = SingleTaskPlan(RECORDS, batch_sizes={"ir": 3, "sts": 4}), make_encoder()

    def fresh(max_steps=0):
        return optimizer_steps(plan, encoder, epochs=3, accumulation=2, max_steps=max_steps)

    in_order = [*fresh()]
    late = fresh()[len(in_order) - 1]
    assert [s.batch.texts for s in late] == [s.batch.texts for s in in_order[-1]]
    assert len(fresh(max_steps=4)) == len([*fresh(max_steps=4)]) == 4
