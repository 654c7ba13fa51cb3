"""Plans: complete, disjoint, deterministic, and balanced as they say."""

from __future__ import annotations

import logging
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codiemb_lib.core import PresetError
from codiemb_lib.data import Record
from codiemb_lib.train.sampling import MixedTaskPlan, SingleTaskPlan

SIZES = {"ir": 4, "sts": 3}


def make_records(**datasets):
    """Records by name and number: ir_a=20 makes 20 records of the retrieval set ir_a."""
    records = []
    for name, count in datasets.items():
        task = name.split("_")[0]
        scores = (0.5,) if task == "sts" else ()
        records += [
            Record(task, f"{name} {i}", ("passage",), positive_scores=scores, dataset=name)
            for i in range(count)
        ]
    return records


def seen(steps):
    return [index for step in steps for index in step.indices]


def make_plans(records):
    return [
        SingleTaskPlan(records, batch_sizes=SIZES),
        SingleTaskPlan(records, batch_sizes=SIZES, balance="equal"),
        SingleTaskPlan(records, batch_sizes=SIZES, balance="temperature", temperature=0.5),
        SingleTaskPlan(records, batch_sizes=SIZES, balance="ir_share", ir_share=0.3),
        MixedTaskPlan(records, batch_size=5),
    ]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_every_record_once_but_for_the_last_incomplete_global_batch(world_size):
    records = make_records(ir_a=53, ir_b=17, sts_a=41)
    plan = SingleTaskPlan(records, batch_sizes=SIZES)
    counts = Counter(seen(plan.steps(0, seed=0, world_size=world_size)))
    assert set(counts.values()) == {1}
    by_dataset = Counter(records[index].dataset for index in counts)
    for name, total in Counter(record.dataset for record in records).items():
        size = SIZES[name.split("_")[0]] * world_size
        assert by_dataset[name] == total // size * size

    mixed = MixedTaskPlan(records, batch_size=5)
    counts = Counter(seen(mixed.steps(0, seed=0, world_size=world_size)))
    assert set(counts.values()) == {1}
    assert len(counts) == 111 // (5 * world_size) * (5 * world_size)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_rank_has_a_shard_of_one_size_and_no_record_of_another(world_size):
    records = make_records(ir_a=53, ir_b=17, sts_a=41)
    for plan in make_plans(records):
        for step in plan.steps(0, seed=0, world_size=world_size):
            assert len(step.shards) == world_size
            assert len({len(shard) for shard in step.shards}) == 1
            assert len(set(step.indices)) == len(step.indices)


def test_ranks_share_the_batches_that_one_process_of_their_joint_size_has():
    records = make_records(ir_a=53, sts_a=41)
    double = {task: 2 * size for task, size in SIZES.items()}
    two = SingleTaskPlan(records, batch_sizes=SIZES).steps(3, seed=1, world_size=2)
    one = SingleTaskPlan(records, batch_sizes=double).steps(3, seed=1)
    assert [step.indices for step in two] == [step.indices for step in one]


def test_steps_are_of_one_data_set_and_of_its_batch_size():
    records = make_records(ir_a=53, ir_b=17, sts_a=41)
    for step in SingleTaskPlan(records, batch_sizes=SIZES).steps(0, seed=0, world_size=2):
        assert {len(shard) for shard in step.shards} == {SIZES[step.task]}
        assert {(records[i].task, records[i].dataset) for i in step.indices} == {
            (step.task, step.dataset)
        }
    steps = MixedTaskPlan(records, batch_size=20).steps(0, seed=0)
    assert {(step.task, step.dataset, len(step.indices)) for step in steps} == {("mixed", "", 20)}
    assert any(len({records[i].task for i in step.indices}) == 2 for step in steps)


def test_epoch_and_seed_alone_decide():
    for plan in make_plans(make_records(ir_a=53, sts_a=41)):
        first = plan.steps(1, seed=7)
        assert plan.steps(1, seed=7) == first
        assert plan.steps(2, seed=7) != first
        assert plan.steps(1, seed=8) != first


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_length_reported_is_the_length_delivered(world_size):
    for plan in make_plans(make_records(ir_a=53, ir_b=17, sts_a=41)):
        assert len(plan.steps(0, seed=0, world_size=world_size)) == plan.length(world_size)


def test_equal_draws_the_smaller_task_again_and_says_so(caplog):
    records = make_records(ir_a=40, sts_a=9)
    plan = SingleTaskPlan(records, batch_sizes=SIZES, balance="equal")
    with caplog.at_level(logging.INFO, logger="codiemb_lib.train.sampling"):
        steps = plan.steps(0, seed=0)
    assert Counter(step.task for step in steps) == {"ir": 10, "sts": 10}
    counts = Counter(seen(steps))
    assert {counts[i] for i in range(40)} == {1}
    assert {counts[i] for i in range(40, 49)} == {3, 4}  # three passes, and a batch of a fourth
    batches = [frozenset(step.indices) for step in steps if step.task == "sts"]
    assert len(set(batches)) > 3  # a pass is a fresh permutation, not the same batches again
    assert [record.getMessage() for record in caplog.records] == [
        "epoch 0: sts_a (sts) drawn again: 10 steps from 3 full batches"
    ]


def test_temperature_goes_from_proportional_to_equal_data_sets():
    records = make_records(ir_a=64, ir_b=16, sts_a=12)  # 16, 4 and 4 batches

    def counts(temperature):
        plan = SingleTaskPlan(
            records, batch_sizes=SIZES, balance="temperature", temperature=temperature
        )
        return Counter(step.dataset for step in plan.steps(0, seed=0))

    assert counts(1.0) == {"ir_a": 16, "ir_b": 4, "sts_a": 4}
    assert counts(0.5) == {"ir_a": 16, "ir_b": 8, "sts_a": 8}
    assert counts(0.0) == {"ir_a": 16, "ir_b": 16, "sts_a": 16}


@settings(max_examples=60, deadline=None)
@given(ir=st.integers(4, 200), sts=st.integers(3, 200), share=st.floats(0.05, 0.95))
def test_ir_share_is_reached_and_nobody_is_cut_short(ir, sts, share):
    records = make_records(ir_a=ir, sts_a=sts)
    plan = SingleTaskPlan(records, batch_sizes=SIZES, balance="ir_share", ir_share=share)
    counts = Counter(step.task for step in plan.steps(0, seed=0))
    full = {"ir": ir // 4, "sts": sts // 3}
    assert all(counts[task] >= full[task] for task in full)
    assert any(counts[task] == full[task] for task in full)
    assert abs(counts["ir"] - share * plan.length()) <= 1


# Refusals


@pytest.mark.parametrize(
    "options", [{"balance": "equal"}, {"balance": "ir_share", "ir_share": 0.5}]
)
def test_balance_of_tasks_needs_both(options):
    with pytest.raises(PresetError, match=r"only sts\. Add the other task"):
        SingleTaskPlan(make_records(sts_a=8), batch_sizes=SIZES, **options)


def test_data_sets_without_a_full_global_batch_are_refused():
    plan = SingleTaskPlan(make_records(ir_a=8, sts_one=1), batch_sizes=SIZES)
    for call in (plan.length, lambda: plan.steps(0, seed=0)):
        with pytest.raises(PresetError, match=r"'sts_one'.* 3 records.*found 1\."):
            call()
    plan = SingleTaskPlan(make_records(ir_a=8), batch_sizes=SIZES)
    assert plan.length(2) == 1
    with pytest.raises(PresetError, match=r"12 records \(4 for each of 3 ranks\), found 8"):
        plan.length(3)
    with pytest.raises(PresetError, match="found 4"):
        MixedTaskPlan(make_records(ir_a=4), batch_size=5).length()
