"""Our losses and sampler in the trainer of sentence-transformers, against our own step."""

from __future__ import annotations

import re
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset, DatasetDict
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.data_collator import BaseDataCollator

from codiemb_lib.core import DatasetSettings, ObjectiveSettings, PresetError, project_root
from codiemb_lib.train.batches import make_batch, make_share
from codiemb_lib.train.sampling import PlannedBatch
from codiemb_lib.train.sentence_transformers import CoDiEmbLoss, TaskBatchSampler
from codiemb_lib.train.step import backward, batch_loss, needs_middle
from tests.made_up import ir_records, sts_records

PLAIN = {"": DatasetSettings(name="")}  # no prompts


@pytest.fixture
def both(tmp_path, make_encoder):
    """The same encoder, ours and theirs, without dropout."""
    ours = make_encoder().eval()
    ours.save(tmp_path / "encoder")
    return ours, SentenceTransformer(str(tmp_path / "encoder"), device="cpu").eval()


def columns_of(batch) -> dict[str, list]:
    """A batch of ours as the columns of a data set of theirs."""
    text = [text for _, text in batch.texts]
    found = {"query": [text[i] for i in batch.queries]}
    found |= {f"positive{p}": [text[i] for i in of] for p, of in enumerate(batch.positives.T)}
    for n, of in enumerate(batch.negatives.reshape(-1, len(batch.queries))):
        found[f"negative{n}"] = [text[i] for i in of]
    return found | ({"score": batch.scores.tolist()} if len(batch.scores) else {})


@pytest.mark.parametrize("task", ["ir", "sts"])
@pytest.mark.parametrize("objective", ["codiemb", "cosent", "angle"])
def test_loss_and_gradient_are_those_of_our_own_step(both, task, objective):
    ours, theirs = both
    records = {"ir": ir_records, "sts": sts_records}[task](12)
    if task == "ir":  # one answer to two queries, which is no negative of either
        records[1] = records[1].__class__("ir", "find it", records[0].positives, ("the bus",))
    settings = ObjectiveSettings(positives=2, negatives=1, info_nce_final=0.3, anchor_score=0.6)
    planned = PlannedBatch(task, "", (tuple(range(12)),))
    how = {"sts_objective": objective}
    batch = make_batch(planned, records, PLAIN, settings, np.random.default_rng(0), **how)
    assert task == "sts" or batch.answers.sum() > batch.answers.shape[0] * 2
    share = make_share(
        batch, ours.tokenizer, tokens_per_forward=4096, packing=ours.packing, seed=[0]
    )
    middle = needs_middle(batch, settings, objective)
    loss_of = partial(batch_loss, settings=settings, **how)
    expected = backward(Accelerator(cpu=True), ours, share, loss_of, middle=middle)

    rows = Dataset.from_dict(columns_of(batch))
    collated = BaseDataCollator(theirs.preprocess)([*rows])
    names = [name for name in rows.column_names if name != "score"]
    features = [
        {k.removeprefix(f"{n}_"): v for k, v in collated.items() if k.startswith(f"{n}_")}
        for n in names
    ]
    loss = CoDiEmbLoss(theirs, settings, positives=2, sts_objective=objective)
    found = loss(features, collated.get("label"))
    found.backward()
    torch.testing.assert_close(found, expected.total, rtol=1e-5, atol=1e-6)
    gradients = {n: p.grad for n, p in ours.backbone.named_parameters() if p.grad is not None}
    theirs_by_name = dict(theirs[0].auto_model.named_parameters())
    assert len(gradients) > 10
    for name, gradient in gradients.items():
        torch.testing.assert_close(theirs_by_name[name].grad, gradient, rtol=1e-5, atol=1e-5)
    assert not theirs[0].auto_model.config.output_hidden_states  # as it was


def test_too_few_columns_are_refused(both):
    rows = [{"input_ids": torch.ones(2, 3, dtype=int), "attention_mask": torch.ones(2, 3)}] * 2
    with pytest.raises(PresetError, match=r"expected 2 columns of positives .* found 1"):
        CoDiEmbLoss(both[1], positives=2)(rows)


def parts(**sizes) -> DatasetDict:
    ir = {"query": ["find a cat"], "positive": ["the cat"]}
    sts = {"a": ["a cat"], "b": ["a dog"], "score": [0.4]}
    kinds = {"news": ir, "docs": ir, "pairs": sts}
    return DatasetDict(
        {n: Dataset.from_dict({k: v * m for k, v in kinds[n].items()}) for n, m in sizes.items()}
    )


@pytest.mark.parametrize(("share", "steps"), [(None, (5, 2, 3)), (0.25, (0, 0, 21))])
def test_batches_are_of_one_data_set_with_its_own_size_and_share(share, steps):
    rows = parts(news=20, docs=16, pairs=9)
    joined = torch.utils.data.ConcatDataset([*rows.values()])
    inner = [torch.utils.data.BatchSampler(range(9), 4, drop_last=True)] * 3
    sampler = TaskBatchSampler(joined, inner, seed=3, batch_sizes=[4, 8, 3], ir_share=share)
    seen = Counter()
    for batch in sampler:
        [part] = {int(np.searchsorted(joined.cumulative_sizes, i, side="right")) for i in batch}
        assert len(batch) == [4, 8, 3][part]
        seen[part] += 1
    assert len(sampler) == seen.total()
    if share is None:
        assert (seen[0], seen[1], seen[2]) == steps
    else:
        assert (seen[0] + seen[1], seen[2]) == (7, 21)
    first = [*sampler]
    sampler.set_epoch(1)
    assert [*sampler] != first
    with pytest.raises(PresetError, match="a batch size for each of 3 data sets"):
        TaskBatchSampler(joined, inner, batch_sizes=[4])


def test_the_guides_example_trains_with_their_trainer(both, tmp_path, monkeypatch):
    guide = (project_root() / "notebooks" / "GUIDE.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(from datasets import.*?)```", guide, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    rows = parts(news=40, pairs=40)
    before = {n: p.clone() for n, p in both[1].named_parameters()}
    names = {"model": both[1], "news": rows["news"], "pairs": rows["pairs"]}
    exec(code, names)
    trainer = names["trainer"]
    assert isinstance(trainer, SentenceTransformerTrainer)
    assert isinstance(trainer.args, SentenceTransformerTrainingArguments)
    assert trainer.state.global_step > 2
    assert any(not torch.equal(before[n], p.cpu()) for n, p in both[1].named_parameters())
