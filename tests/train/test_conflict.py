"""Gradients of the tasks, against autograd on each text alone and against finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from codiemb_lib.core import ObjectiveSettings
from codiemb_lib.train import objectives
from codiemb_lib.train.batches import make_batch, make_share
from codiemb_lib.train.conflict import conflict, cosine_by_layer, loss_gradient
from codiemb_lib.train.sampling import PlannedBatch
from tests.made_up import PROMPTS, ir_records, sts_records

SETTINGS = ObjectiveSettings(positives=1, negatives=1, info_nce_mid=0)
RECORDS = ir_records(8, dataset="ir") + sts_records(12, dataset="sts")
PLACES = {  # two batches of each kind
    "ir": [range(4), range(4, 8)],
    "sts": [range(8, 14), range(14, 20)],
    "mixed": [range(4, 12), range(0, 20, 3)],
}


@pytest.fixture
def encoder(make_encoder):
    return make_encoder()


@pytest.fixture
def batches(encoder):
    generator = np.random.default_rng(0)
    return {
        kind: [
            make_share(
                make_batch(
                    PlannedBatch(kind, "", (tuple(own),)),
                    RECORDS,
                    PROMPTS,
                    SETTINGS,
                    generator,
                    sts_objective="info_nce" if kind == "mixed" else "codiemb",
                ),
                encoder.tokenizer,
                tokens_per_forward=64,
                packing=encoder.packing,
                seed=[0],
            )
            for own in places
        ]
        for kind, places in PLACES.items()
    }


def embed(encoder, key):
    """(1, D): one text in a forward pass of its own, without any of the library's batching."""
    prompt, text = key
    [tokens] = encoder.tokenizer([text], [prompt])
    (final,) = encoder([encoder.tokenizer.pad([tokens])])
    return final


def slow_loss(encoder, batch):
    """The loss of an IR or an STS batch, from the objectives and texts one by one."""
    texts = [embed(encoder, key) for key in batch.texts]
    left = torch.cat([texts[i] for i in batch.queries])
    right = torch.cat([texts[i] for i in batch.positives[:, 0]])
    if batch.planned.task != "sts":
        pool = torch.cat([texts[i] for i in batch.negatives])
        return objectives.multi_positive_info_nce(left, right[:, None], pool[:, None])
    cosines, scores = (left * right).sum(1), torch.from_numpy(batch.scores)
    return (
        2 * objectives.pearson_loss(cosines, scores)
        + 5 * objectives.rank_kl_loss(cosines, scores)
        + 0.5 * objectives.pro_loss(cosines, scores)
    )


def slow_cosine(encoder, first, second, prefix):
    """Of the concatenated gradients of all parameters whose name has this prefix."""
    vectors = []
    for batch in (first, second):
        encoder.zero_grad()
        slow_loss(encoder, batch).backward()
        parts = [
            p.grad.flatten() for n, p in encoder.backbone.named_parameters() if n.startswith(prefix)
        ]
        vectors.append(torch.cat(parts).double().numpy())
    a, b = vectors
    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


@pytest.mark.parametrize(
    ("layer", "prefix"), [(-1, "embeddings."), (0, "encoder.layer.0."), (1, "encoder.layer.1.")]
)
@pytest.mark.parametrize(
    ("first", "second"), [("ir", "sts"), ("ir", "mixed"), ("sts", "mixed"), ("ir", "ir")]
)
def test_cosines_are_those_of_each_text_encoded_alone(
    encoder, batches, first, second, layer, prefix
):
    rows = conflict(encoder, batches, SETTINGS)
    [found] = rows.loc[
        (rows[["first", "second", "layer", "batch"]] == [first, second, layer, 0]).all(axis=1),
        "cosine",
    ]
    other = 1 if first == second else 0
    expected = slow_cosine(encoder, batches[first][0].batch, batches[second][other].batch, prefix)
    assert found == pytest.approx(expected, abs=1e-4)


def test_the_slope_of_one_loss_along_the_other_gradient_is_their_inner_product(encoder, batches):
    """What a cosine means, by finite differences of a short step."""
    first, second = (loss_gradient(encoder, batches[k][0], SETTINGS) for k in ("ir", "sts"))
    length = torch.stack([g.norm() for g in second.values()]).norm()
    slope = (sum((first[n] * second[n]).sum() for n in second if n in first) / length).item()
    start = {n: p.clone() for n, p in encoder.backbone.named_parameters()}
    losses = []
    for step in (-2e-3, 2e-3):
        with torch.no_grad():
            for name, direction in second.items():
                moved = start[name] + step * direction / length
                encoder.backbone.get_parameter(name).copy_(moved)
            losses.append(slow_loss(encoder, batches["ir"][0].batch).item())
    assert (losses[1] - losses[0]) / 4e-3 == pytest.approx(slope, rel=0.05)


def test_every_pair_of_kinds_is_compared_in_every_layer_and_the_encoder_stays(encoder, batches):
    before = {n: p.clone() for n, p in encoder.backbone.named_parameters()}
    encoder.train()
    rows = conflict(encoder, batches, SETTINGS)
    assert encoder.training
    assert all(torch.equal(p, before[n]) for n, p in encoder.backbone.named_parameters())
    assert all(p.grad is None for p in encoder.backbone.parameters())
    counts = rows.groupby(["first", "second"]).size().to_dict()
    two, one = 2 * 3, 1 * 3  # batches times layers
    assert counts == {
        ("ir", "sts"): two,
        ("ir", "mixed"): two,
        ("sts", "mixed"): two,
        ("ir", "ir"): one,
        ("sts", "sts"): one,
        ("mixed", "mixed"): one,
    }
    assert rows["cosine"].between(-1, 1).all()


def test_parallel_opposite_zero_and_partly_shared_gradients():
    a = {"layer.0.w": torch.tensor([3.0, 4.0]), "layer.1.w": torch.zeros(2)}
    a |= {"pooler.w": torch.ones(1)}
    b = {name: -2 * tensor for name, tensor in a.items()} | {"layer.0.v": torch.tensor([10.0])}
    assert cosine_by_layer(a, a)[0] == pytest.approx(1)
    found = cosine_by_layer(a, b)
    assert found[0] == pytest.approx(-10 / np.hypot(10, 10))  # v counts in the length of b
    assert np.isnan(found[1])
    assert {*found} == {0, 1}
