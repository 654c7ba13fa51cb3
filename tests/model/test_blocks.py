"""Blocks in one pass against texts alone, attention against autograd, and dropout's rate."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertModel

from codiemb_lib.model.blocks import Block, Dropout, _Attention, keep_mask
from codiemb_lib.model.encoder import Encoder

TEXTS = ["the cat", "a", "the old dog is slow and the bus is fast", "is it a car", "x " * 9]


def tokens_of(encoder, texts=TEXTS, prompt=""):
    return encoder.tokenizer(texts, [prompt] * len(texts))


def blocks_of(encoder, groups, prompt=""):
    tokens = tokens_of(encoder, prompt=prompt)
    return [encoder.tokenizer.pad([tokens[i] for i in group]) for group in groups]


@pytest.mark.parametrize("architecture", ["bert", "xlm-roberta"])
@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_blocks_joined_are_texts_alone(make_architecture, architecture, pooling):
    encoder = make_architecture(architecture, pooling=pooling)
    assert encoder.joins_blocks
    joined = encoder(blocks_of(encoder, [[2, 4], [0, 3, 1]], "query: "), middle=True)
    for row, place in enumerate([2, 4, 0, 3, 1]):
        alone = encoder(blocks_of(encoder, [[place]], "query: "), middle=True)
        for found, expected in zip(joined, alone, strict=True):
            torch.testing.assert_close(found[row], expected[0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("architecture", ["minicpm", "qwen"])
def test_other_architectures_take_block_after_block(make_architecture, architecture):
    encoder = make_architecture(architecture)
    assert not encoder.joins_blocks
    (found,) = encoder(blocks_of(encoder, [[2, 4], [0, 3, 1]]))
    (expected,) = encoder(blocks_of(encoder, [[2, 4, 0, 3, 1]]))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


class OwnBert(BertModel):
    """Code that comes with a model, as it may: no blocks, and no positions as an argument."""

    def forward(self, input_ids, attention_mask, output_hidden_states=False):
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            output_hidden_states=output_hidden_states,
        )


def test_a_model_with_its_own_code_takes_block_after_block_whatever_it_is_called(
    make_architecture,
):
    plain = make_architecture("bert")
    own = OwnBert(plain.backbone.config)
    own.load_state_dict(plain.backbone.state_dict())
    encoder = Encoder(own, plain.tokenizer.base, max_length=32).eval()
    assert not encoder.joins_blocks
    blocks = blocks_of(encoder, [[2, 4], [0, 3, 1]])
    torch.testing.assert_close(encoder(blocks), plain(blocks), atol=1e-6, rtol=1e-5)


def test_the_backbone_by_itself_attends_as_before(make_architecture):
    encoder = make_architecture("bert")
    plain = copy.deepcopy(encoder.backbone)
    plain.set_attn_implementation("sdpa")
    ids = torch.tensor([[2, 9, 11, 3], [2, 9, 3, 0]])
    mask = (ids > 0).long()
    found, expected = (
        model(input_ids=ids, attention_mask=mask).last_hidden_state
        for model in (encoder.backbone, plain)
    )
    torch.testing.assert_close(found, expected)


def test_no_trace_of_it_is_saved(make_architecture, tmp_path):
    folder = make_architecture("bert").save(tmp_path / "model")
    assert "codiemb" not in (folder / "config.json").read_text()


def slow_attention(query, key, value, blocks, scale, kept, factor):
    """Each text by itself, with the same entries dropped."""
    out, row = torch.zeros_like(query), 0
    for block, mask in zip(blocks, kept, strict=True):
        for text in range(block.texts):
            rows = slice(row, row + block.length)
            for head in range(query.shape[1]):
                scores = scale * query[rows, head] @ key[rows, head].T
                if block.mask is not None:
                    scores = scores + block.mask[text, 0, 0]
                weights = torch.softmax(scores, dim=1) * mask[text, head] * factor
                out[rows, head] = weights @ value[rows, head]
            row += block.length
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_attention_and_its_gradient_are_those_of_autograd(dtype):
    generator = torch.Generator().manual_seed(0)
    ids = [torch.zeros(3, 5), torch.zeros(2, 3)]
    lengths = [torch.tensor([5, 4, 2]), torch.tensor([3, 3])]
    blocks = [Block.of(*pair, lambda x: x) for pair in zip(ids, lengths, strict=True)]
    assert blocks[0].mask is not None
    assert blocks[1].mask is None
    tensors = [torch.randn(21, 2, 4, generator=generator, dtype=dtype) for _ in range(4)]
    query, key, value = (t.requires_grad_() for t in tensors[:3])
    torch.manual_seed(1)
    found = _Attention.apply(query, key, value, blocks, 0.3, 0.25)
    torch.manual_seed(1)
    drawn = [keep_mask((b.texts * 2, b.length, b.length), 0.25) for b in blocks]
    kept = [mask.unflatten(0, (-1, 2)) for mask, _ in drawn]
    expected = slow_attention(query, key, value, blocks, 0.3, kept, drawn[0][1])
    torch.testing.assert_close(found, expected)
    gradients = (
        torch.autograd.grad(result, (query, key, value), tensors[3]) for result in (found, expected)
    )
    for ours, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, reference)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.01])
def test_dropout_drops_at_its_rate_and_keeps_the_mean(p):
    torch.manual_seed(0)
    x = torch.ones(1000, 1001, requires_grad=True)
    y = Dropout(p)(x)
    dropped = (y == 0).double().mean().item()
    assert dropped == pytest.approx(p, abs=5 * np.sqrt(p * (1 - p) / x.numel()) + 2**-17)
    assert y[y > 0].unique().item() == pytest.approx(1 / (1 - p), rel=1e-4)
    assert y.mean().item() == pytest.approx(1, abs=0.01)
    y.sum().backward()
    torch.testing.assert_close(x.grad, y.detach())


def test_entries_are_dropped_each_on_their_own():
    torch.manual_seed(0)
    kept = keep_mask((400, 401), 0.3)[0].double()
    for shift in (1, 2, 4, 401):  # neighbours, also those of one random word
        flat = kept.flatten()
        correlation = np.corrcoef(flat[:-shift], flat[shift:])[0, 1]
        assert abs(correlation) < 5 / np.sqrt(len(flat))
    assert not torch.equal(kept, keep_mask((400, 401), 0.3)[0].double())


def test_dropout_repeats_with_the_seed_and_rests_in_evaluation():
    dropout, x = Dropout(0.5), torch.ones(64)
    torch.manual_seed(3)
    first = dropout(x)
    torch.manual_seed(3)
    assert torch.equal(dropout(x), first)
    assert dropout.eval()(x) is x
    assert torch.equal(Dropout(1.0)(x), torch.zeros(64))


def test_every_dropout_of_a_backbone_is_ours(make_architecture):
    for architecture in ("bert", "xlm-roberta", "minicpm", "qwen"):
        backbone = make_architecture(architecture).backbone
        drops = [module for module in backbone.modules() if isinstance(module, nn.Dropout)]
        assert all(type(module) is Dropout for module in drops)
