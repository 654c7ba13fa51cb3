"""The loss of a batch by hand, and its gradient: whole, cached, and on two processes."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch.nn.functional import normalize
from transformers import BertConfig, BertModel

from codiemb_lib.core.preset import ObjectiveSettings, VariantSettings
from codiemb_lib.data.records import Record
from codiemb_lib.model.encoder import Encoder
from codiemb_lib.train import objectives
from codiemb_lib.train.batches import make_batch, make_share
from codiemb_lib.train.devices import sparse_embedding_gradients
from codiemb_lib.train.sampling import PlannedBatch
from codiemb_lib.train.step import backward, batch_loss, needs_middle
from tests.conftest import tiny_tokenizer
from tests.made_up import PROMPTS, ir_records, sts_records

RECORDS = ir_records(24, dataset="ir") + sts_records(24, dataset="sts")
SETTINGS = ObjectiveSettings(positives=2, negatives=1)
OBJECTIVES = get_args(VariantSettings.model_fields["sts_objective"].annotation)
RANGES = {"ir": range(24), "sts": range(24, 48), "mixed": range(12, 36)}


def make(task, *, shards=1, settings=SETTINGS, size=12, start=0, sts_objective=""):
    places = np.array(RANGES[task])[start : start + size]
    step = PlannedBatch(task, task, tuple(map(tuple, places.reshape(shards, -1).tolist())))
    how = {"sts_objective": sts_objective or ("info_nce" if task == "mixed" else "codiemb")}
    return make_batch(step, RECORDS, PROMPTS, settings, np.random.default_rng(start), **how)


def gradient(encoder, batches, *, sts_objective="codiemb", settings=SETTINGS, budget=64, **options):
    """Losses and the flat gradient of an optimiser step over batches, on one process."""
    encoder.zero_grad()
    losses = [
        backward(
            Accelerator(cpu=True),
            encoder,
            make_share(
                batch,
                encoder.tokenizer,
                tokens_per_forward=budget,
                seed=[7],
                packing=encoder.packing,
            ),
            lambda *a: batch_loss(*a, settings=settings, sts_objective=sts_objective),
            middle=needs_middle(batch, settings, sts_objective),
            scale=1 / len(batches),
            **options,
        )
        for batch in batches
    ]
    grads = [p.grad.flatten() for p in encoder.parameters() if p.grad is not None]
    return torch.stack([loss.total for loss in losses]), torch.cat(grads)


def assert_close(found, expected, tolerance=1e-6):
    assert ((found - expected).abs().max() / expected.norm()).item() < tolerance
    assert expected.norm() > 0


def embeddings(batch, seed=0, D=8):
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(len(batch.texts), D, generator=generator), dim=1)


def test_the_retrieval_loss_is_the_objective_on_the_drawn_texts():
    batch = make("ir")
    final = embeddings(batch)
    loss = batch_loss(batch, final, settings=SETTINGS)
    expected = objectives.multi_positive_info_nce(
        final[batch.queries], final[batch.positives], final[batch.negatives][:, None]
    )
    torch.testing.assert_close(loss.total, expected)
    assert loss.components.keys() == {"info_nce"}


def test_records_of_one_query_do_not_push_each_others_positives_away():
    records = [
        Record("ir", "q", (passage,), dataset="ir") for passage in ("near", "far", "near")
    ] + [Record("ir", "another", ("third",), dataset="ir")]
    step = PlannedBatch("ir", "ir", ((0, 1, 2, 3),))
    settings = ObjectiveSettings(positives=1, negatives=1, temperature=0.5)
    batch = make_batch(step, records, PROMPTS, settings, np.random.default_rng(0))
    final = embeddings(batch).requires_grad_()
    loss = batch_loss(batch, final, settings=settings).total
    q, near, far, third, another = (
        final[[text for _, text in batch.texts].index(t)]
        for t in ("q", "near", "far", "third", "another")
    )

    def term(own, query, rest):
        logits = torch.stack([query @ own, *(query @ x for x in rest)]) / 0.5
        return logits.logsumexp(0) - logits[0]

    expected = [term(near, q, [third])] * 2 + [term(far, q, [third])]
    expected += [term(third, another, [near, far, near])]
    torch.testing.assert_close(loss, torch.stack(expected).mean())


def test_the_similarity_loss_is_the_weighted_sum_of_its_parts_over_the_shards():
    batch = make("sts", shards=2)
    final, middle = embeddings(batch), embeddings(batch, 1)
    settings = ObjectiveSettings(info_nce_mid=0.3, pearson=0.7, rank_kl=1.1, pro=1.3)
    loss = batch_loss(batch, final, middle, settings=settings)
    totals = []
    for half in (slice(0, 6), slice(6, 12)):
        q, p = batch.queries[half], batch.positives[half, 0]
        y, s = torch.from_numpy(batch.scores[half]), (final[q] * final[p]).sum(1)
        totals.append(
            0.3 * objectives.anchored_info_nce(middle[q], middle[p], y)
            + 0.7 * objectives.pearson_loss(s, y)
            + 1.1 * objectives.rank_kl_loss(s, y)
            + 1.3 * objectives.pro_loss(s, y)
        )
    torch.testing.assert_close(loss.total, sum(totals) / 2)
    assert loss.components.keys() == {"info_nce_mid", "pearson", "rank_kl", "pro"}


def test_matryoshka_is_the_mean_over_leading_dimensions_of_any_objective():
    settings = ObjectiveSettings(matryoshka=(2, 4))
    for task, objective in (("ir", "codiemb"), ("sts", "cosent"), ("sts", "codiemb")):
        batch = make(task)
        states = [embeddings(batch)]
        if needs_middle(batch, settings, objective):
            states.append(embeddings(batch, 1))
        whole = batch_loss(batch, *states, settings=settings, sts_objective=objective)
        parts = [
            batch_loss(
                batch,
                *(normalize(s[:, :d], dim=1) for s in states),
                settings=SETTINGS,
                sts_objective=objective,
            )
            for d in (8, 2, 4)
        ]
        torch.testing.assert_close(whole.total, sum(p.total for p in parts) / 3)
        torch.testing.assert_close(whole.components, parts[0].components)


def test_a_mixed_batch_without_any_anchor_is_a_zero_loss(make_encoder):
    settings = ObjectiveSettings(mixed_anchor_score=1.0)
    low = [i for i in RANGES["sts"] if RECORDS[i].score < 1]
    step = PlannedBatch("mixed", "", (tuple(low),))
    how = {"sts_objective": "info_nce"}
    batch = make_batch(step, RECORDS, PROMPTS, settings, np.random.default_rng(0), **how)
    losses, found = gradient(make_encoder(), [batch], settings=settings)
    assert losses.item() == 0
    assert not found.any()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_single_pair_has_finite_gradients(make_encoder, objective):
    batch = make("sts", size=1, sts_objective=objective)
    _, found = gradient(make_encoder(), [batch], sts_objective=objective)
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("task", ["ir", "sts", "mixed"])
@pytest.mark.parametrize("cached", [False, True])
def test_the_gradient_is_that_of_each_text_encoded_alone_at_each_of_its_places(
    make_encoder, task, cached
):
    encoder = make_encoder()
    batch = make(task, size=4)
    _, found = gradient(encoder, [batch], gradient_cache=cached)
    encoder.zero_grad()
    middle = needs_middle(batch, SETTINGS, "codiemb")

    def alone(row):
        prompt, text = batch.texts[row]
        return encoder([encoder.tokenizer.pad(encoder.tokenizer([text], [prompt]))], middle=middle)

    # Every place has an embedding of its own, even where two places have one text.
    places = [*batch.queries, *batch.positives.flat, *batch.negatives]
    states = [torch.cat(parts) for parts in zip(*map(alone, places), strict=True)]
    B, P = batch.positives.shape
    rows = np.arange(len(places))
    spread = type(batch)(
        batch.planned,
        [batch.texts[i] for i in places],
        rows[:B],
        rows[B : B + B * P].reshape(B, P),
        rows[B + B * P :],
        batch.answers,
        batch.scores,
    )
    batch_loss(spread, *states, settings=SETTINGS).total.backward()
    expected = [p.grad.flatten() for p in encoder.parameters() if p.grad is not None]
    assert_close(found, torch.cat(expected))
    if task == "sts":
        assert len(batch.texts) < len(places)  # some text does stand in two places


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("task", ["ir", "sts", "mixed"])
def test_cached_gradients_equal_those_of_the_whole_batch(make_encoder, task, train):
    """With dropout too: a replay repeats its representations."""
    encoder = make_encoder().train(train)
    batches = [make(task, size=12), make(task, size=12, start=12)]
    losses, expected = gradient(encoder, batches)
    cached_losses, cached = gradient(encoder, batches, gradient_cache=True)
    torch.testing.assert_close(cached_losses, losses, rtol=0, atol=0)
    assert_close(cached, expected)
    if train:
        _, other = gradient(encoder.eval(), batches)
        assert (other - expected).norm() / expected.norm() > 0.01


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("cached", [False, True])
def test_sparse_gradients_of_the_vocabulary_are_the_dense_ones(make_encoder, accumulation, cached):
    encoder = make_encoder()
    batches = [make("mixed", size=12, start=12 * i) for i in range(accumulation)]
    _, expected = gradient(encoder, batches, gradient_cache=cached)
    sparse_embedding_gradients(Accelerator(cpu=True), encoder)
    words = encoder.backbone.get_input_embeddings()
    assert words.sparse
    passes = []
    handle = words.register_forward_hook(lambda *_: passes.append(1))
    _, found = gradient(encoder, batches, gradient_cache=cached)
    handle.remove()
    assert len(passes) > 2 * accumulation
    assert words.weight.grad.layout == torch.strided
    assert words.weight.grad.norm() > 0
    assert_close(found, expected)


def test_the_cache_holds_the_graph_of_one_forward_pass_at_a_time(make_encoder):
    """What makes memory flat: no two forward passes with a graph are alive together."""
    encoder = make_encoder()
    alive, most = 0, 0

    def leave(_):
        nonlocal alive
        alive -= 1

    def enter(module, arguments, output):
        nonlocal alive, most
        if output[0].requires_grad:
            alive, most = alive + 1, max(most, alive + 1)
            output[0].register_hook(leave)

    handle = encoder.register_forward_hook(enter)
    gradient(encoder, [make("ir")], gradient_cache=True)
    assert (alive, most) == (0, 1)
    gradient(encoder, [make("ir")])
    assert most > 3
    handle.remove()


WORKER = """
import sys, torch
sys.path.insert(0, {root!r})
from tests.train import test_step
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from safetensors.torch import save_file
from torch.distributed.fsdp import fully_shard
from codiemb_lib.train.batches import make_share
from codiemb_lib.model.encoder import Encoder
from codiemb_lib.core.preset import EncoderSettings
from codiemb_lib.train.step import backward, batch_loss, needs_middle

accelerator = Accelerator(
    cpu=True, kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)]
)
assert accelerator.num_processes == 2
for number, (task, accumulation, cached, sharded) in enumerate({cases!r}):
    encoder = Encoder.load(EncoderSettings(name={model!r}, max_length=32)).eval()
    if sharded:
        for layer in encoder.backbone.encoder.layer:
            fully_shard(layer, reshard_after_forward=False)
        model = fully_shard(encoder, reshard_after_forward=False)
        encoder.encode(["a cat"])  # as a run does: the first forward pass is that of dev
    else:
        model = accelerator.prepare(encoder)
    batches = test_step.halves(task, accumulation)
    losses = [
        backward(
            accelerator,
            model,
            make_share(
                batch,
                encoder.tokenizer,
                tokens_per_forward=48 if accelerator.process_index else 96,  # uneven on purpose
                packing=encoder.packing,
                seed=[7],
                rank=accelerator.process_index,
                world_size=2,
            ),
            lambda *a: batch_loss(*a, settings=test_step.SETTINGS),
            middle=needs_middle(batch, test_step.SETTINGS, "codiemb"),
            scale=1 / accumulation,
            gradient_cache=cached,
            synchronise=batch is batches[-1],
        ).total
        for batch in batches
    ]
    grads = [p.grad for p in encoder.parameters() if p.grad is not None]
    grads = [(g.full_tensor() if sharded else g).flatten() for g in grads]
    name = f"{{number}}-{{accelerator.process_index}}.safetensors"
    save_file({{"loss": torch.stack(losses), "gradient": torch.cat(grads)}}, {out!r} + "/" + name)
"""

CASES = [  # task, batches of an optimiser step, cached gradients, sharded weights (FSDP2)
    (task, accumulation, cached, sharded)
    for task in ("ir", "sts", "mixed")
    for accumulation in (1, 2)
    for cached in (False, True)
    for sharded in (False, True)
]


def halves(task, accumulation):
    """Global batches of two shards each."""
    return [make(task, shards=2, size=12, start=12 * i) for i in range(accumulation)]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What two gloo processes computed, and the encoder they had."""
    folder = tmp_path_factory.mktemp("two")
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    shape = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    backbone = BertModel(BertConfig(vocab_size=len(tokenizer), num_hidden_layers=2, **shape))
    encoder = Encoder(backbone, tokenizer, max_length=32).eval()
    encoder.save(folder / "model")
    root = str(Path(__file__).parents[2])
    code = WORKER.format(root=root, cases=CASES, model=str(folder / "model"), out=str(folder))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    shared |= {"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=3600)
        assert process.returncode == 0, errors.decode()[-3000:]
    return folder, encoder


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda i: str(CASES[i]))
def test_two_processes_with_half_a_batch_each_equal_one_with_the_whole(two_processes, number):
    folder, encoder = two_processes
    task, accumulation, cached, _ = CASES[number]
    losses, expected = gradient(encoder, halves(task, accumulation), gradient_cache=cached)
    for rank in range(2):
        found = load_file(folder / f"{number}-{rank}.safetensors")
        torch.testing.assert_close(found["loss"], losses, rtol=1e-6, atol=0)
        assert_close(found["gradient"], expected)
