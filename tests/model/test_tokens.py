"""Token ids against the whole tokenizer, and blocks and passes against all other cuts."""

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codiemb_lib.model import tokens as tokens_module
from codiemb_lib.model.tokens import Packing, Tokens, _cut, forward_passes

WORDS = st.text(st.sampled_from("ab,.-é  \u3000\n\u0301猫"), max_size=40)


@pytest.mark.parametrize("architecture", ["bert", "xlm-roberta", "minicpm", "qwen"])
@given(texts=st.lists(st.lists(WORDS, max_size=40).map(" ".join), min_size=1, max_size=3))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_of_a_long_text_what_is_cut_away_is_not_looked_at(make_architecture, architecture, texts):
    tokenizer = make_architecture(architecture, max_length=8).tokenizer
    texts = [*texts, "ab " * 200, "a" * 300 + " b"]
    found = tokenizer(texts, [""] * len(texts))
    whole = tokenizer.base(texts, truncation=True, max_length=8)["input_ids"]
    assert [text.ids for text in found] == whole


def test_tokens_know_their_prompt_and_keep_to_the_length(make_encoder):
    encoder = make_encoder(max_length=8)
    plain, prompted, long = encoder.tokenizer(["the cat", "the cat", "a " * 9], ["", "query: ", ""])
    assert (plain.prompt, prompted.prompt, long.prompt) == (0, 3, 0)  # with the token in front
    assert prompted.ids[3:] == plain.ids[1:]
    assert len(long.ids) == 8


def test_padding_is_on_the_right(make_encoder):
    tokenizer = make_encoder().tokenizer
    batch = tokenizer.pad([Tokens([2, 7, 3], 1), Tokens([2, 3], 0)])
    np.testing.assert_array_equal(batch.ids, [[2, 7, 3], [2, 3, 0]])
    np.testing.assert_array_equal(batch.lengths, [3, 2])
    np.testing.assert_array_equal(batch.prompts, [1, 0])


@pytest.mark.parametrize("joined", [True, False])
def test_forward_passes_hold_all_texts_and_keep_the_budget(joined):
    packing = Packing(joined, 8)
    lengths = np.random.default_rng(0).integers(1, 50, 200)
    tokens = [Tokens([0] * length, 0) for length in lengths]
    passes = forward_passes(tokens, 100, packing)
    order = [i for blocks in passes for block in blocks for i in block]
    assert sorted(order) == list(range(200))
    assert [lengths[i] for i in order] == sorted(lengths, reverse=True)
    sizes = [sum(len(block) * lengths[block].max() for block in blocks) for blocks in passes]
    assert max(sizes) <= 100
    assert (max(map(len, passes)) > 1) == joined
    # never nothing
    assert forward_passes(tokens[:2], 1, packing) in ([[[0]], [[1]]], [[[1]], [[0]]])


def test_joined_passes_are_filled_up():
    tokens = [Tokens([0] * length, 0) for length in (40, 20, 20, 5)]
    assert forward_passes(tokens, 85, Packing(True, 8)) == [[[0], [1, 2], [3]]]
    assert forward_passes(tokens, 84, Packing(True, 8)) == [[[0], [1, 2]], [[3]]]


@pytest.mark.parametrize("price", [8, 32])
@given(lengths=st.lists(st.integers(1, 70), min_size=1, max_size=9))
def test_blocks_are_the_cheapest_cut_of_the_sorted_texts(price, lengths):
    def cost(blocks):
        return sum(max(lengths[i] for i in block) * len(block) + price for block in blocks)

    blocks = _cut([Tokens([0] * n, 0) for n in lengths], 100, price)
    order = [i for block in blocks for i in block]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[i] for i in order] == sorted(lengths, reverse=True)
    cheapest = np.inf
    for cuts in itertools.product([False, True], repeat=len(lengths) - 1):
        cut = [[order[0]]]
        for i, new in zip(order[1:], cuts, strict=True):
            cut = [*cut, [i]] if new else [*cut[:-1], [*cut[-1], i]]
        if all(len(b) == 1 or lengths[b[0]] * len(b) <= 100 for b in cut):
            cheapest = min(cheapest, cost(cut))
    assert cost(blocks) == cheapest


def test_many_texts_are_cut_piece_by_piece(monkeypatch):
    monkeypatch.setattr(tokens_module, "_CUT_AT_ONCE", 7)
    tokens = [Tokens([0] * (1 + i % 50), 0) for i in range(100)]
    blocks = _cut(tokens, 120, 8)
    assert sorted(i for block in blocks for i in block) == list(range(100))
    assert all(len(tokens[b[0]].ids) * len(b) <= 120 for b in blocks)
