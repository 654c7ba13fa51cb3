"""On a GPU the numbers are those of the processor; skipped where there is none."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from codiemb_lib.model.tokens import forward_passes
from tests.train.test_step import assert_close, gradient, make

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU at hand")

TEXTS = ["the cat", "a", "the old dog is slow and the bus is fast", "is it a car", "x " * 9] * 7


@pytest.mark.parametrize("architecture", ["bert", "xlm-roberta", "minicpm", "qwen"])
@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_texts_are_encoded_as_on_the_processor(make_architecture, architecture, pooling):
    encoder = make_architecture(architecture, pooling=pooling)
    expected = encoder.encode(TEXTS, prompt="query: ")
    for budget in (40, 4096):  # one text or two a pass, and all
        found = encoder.cuda().encode(TEXTS, prompt="query: ", tokens_per_forward=budget)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_texts_of_unlike_lengths_share_a_pass_where_padding_costs_more(make_encoder):
    encoder = make_encoder(max_length=64).cuda()
    tokens = encoder.tokenizer(["a " * 60] * 128 + ["a"] * 128, [""] * 256)
    (blocks,) = forward_passes(tokens, 16384, encoder.packing)
    assert [len(block) for block in blocks] == [128, 128]
    assert forward_passes(tokens[124:132], 16384, encoder.packing) == [[[*range(8)]]]


@pytest.mark.parametrize("task", ["ir", "sts", "mixed"])
@pytest.mark.parametrize("cached", [False, True])
def test_the_gradient_is_that_of_the_processor(make_encoder, task, cached):
    encoder, batches = make_encoder(), [make(task), make(task, start=12)]
    losses, expected = gradient(encoder, batches, gradient_cache=cached)
    found_losses, found = gradient(copy.deepcopy(encoder).cuda(), batches, gradient_cache=cached)
    torch.testing.assert_close(found_losses.cpu(), losses)
    assert_close(found.cpu(), expected, 1e-5)


@pytest.mark.parametrize("task", ["ir", "sts", "mixed"])
def test_in_bf16_it_is_that_gradient_rounded(make_encoder, task):
    encoder, batches = make_encoder(), [make(task)]
    _, expected = gradient(encoder, batches)
    with torch.autocast("cuda", torch.bfloat16):
        _, found = gradient(encoder.cuda(), batches)
    assert torch.cosine_similarity(found.cpu(), expected, dim=0) > 0.999


def test_cached_gradients_repeat_the_dropout_of_the_first_pass(make_encoder):
    encoder = make_encoder().cuda().train()
    plain, again = (gradient(encoder, [make("ir")])[1] for _ in range(2))
    assert_close(again, plain)
    _, cached = gradient(encoder, [make("ir")], gradient_cache=True)
    assert_close(cached, plain)
    _, without = gradient(encoder.eval(), [make("ir")])
    assert (without - plain).norm() > 0.01 * plain.norm()
