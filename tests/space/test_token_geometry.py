"""Tokens of padded texts against loops over each text."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from codiemb_lib.space.token_geometry import OverSmoothing, over_smoothing, over_smoothing_by_layer


def padded(lengths, D=6, seed=0, padding=np.nan):
    states = np.random.default_rng(seed).normal(size=(len(lengths), max(lengths), D))
    for row, length in zip(states, lengths, strict=True):
        row[length:] = padding
    return states


def by_loop(tokens):
    units = [token / math.hypot(*token) for token in tokens]
    sigma = np.linalg.svd(tokens, compute_uv=False)
    p, q = sigma / sigma.sum(), sigma**2 / (sigma**2).sum()
    return (
        np.mean([u @ v for u, v in itertools.combinations(units, 2)]),
        np.linalg.matrix_rank(tokens),
        math.exp(-sum(v * math.log(v) for v in p)),
        -sum(v * math.log(v) for v in q) / math.log(len(sigma)),
        np.linalg.cond(tokens),
    )


@pytest.mark.parametrize("padding", [np.nan, 0, 1e9])
def test_each_text_is_measured_alone_without_its_padding(padding):
    lengths = [2, 5, 9]
    states = padded(lengths, padding=padding)
    measured = over_smoothing(states, lengths)
    assert all(values.shape == (3,) for values in measured)
    for i, length in enumerate(lengths):
        actual = [values[i] for values in measured]
        assert actual == pytest.approx(by_loop(states[i, :length]), rel=1e-9)


def test_tokens_that_are_all_alike():
    token = np.random.default_rng(0).normal(size=4)
    smooth = over_smoothing(np.tile(token, (1, 5, 1)), [5])
    assert [values[0] for values in smooth] == pytest.approx([1, 1, 1, 0, math.inf], abs=1e-9)
    axes = over_smoothing(np.eye(4)[None], [4])
    assert [values[0] for values in axes] == pytest.approx([0, 4, 4, 1, 1])


def test_layers_are_stacked():
    lengths = [3, 7]
    layers = [padded(lengths, seed=s) for s in range(3)]
    measured = over_smoothing_by_layer(iter(layers), lengths)
    assert all(values.shape == (3, 2) for values in measured)
    for layer, states in enumerate(layers):
        for curve, values in zip(measured, over_smoothing(states, lengths), strict=True):
            np.testing.assert_array_equal(curve[layer], values)


def test_mixing_tokens_smooths_them():
    lengths = [8, 6]
    states = padded(lengths, padding=0)
    layers = [states]
    for _ in range(4):  # each token moves towards the mean of its text
        means = layers[-1].sum(axis=1, keepdims=True) / np.array(lengths)[:, None, None]
        layers.append(np.where(states != 0, 0.5 * layers[-1] + 0.5 * means, 0))
    curves = OverSmoothing(*(v.mean(axis=1) for v in over_smoothing_by_layer(layers, lengths)))
    assert (np.diff(curves.cosine) > 0).all()
    assert (np.diff(curves.effective_rank) < 0).all()
    assert (np.diff(curves.svd_entropy) < 0).all()
    assert (np.diff(curves.condition_number) > 0).all()


def test_tensors_of_a_model_are_taken(make_encoder):
    encoder = make_encoder()
    batch = encoder.tokenizer(["old cat", "the red bus is fast"], ["", ""])
    padded_batch = encoder.tokenizer.pad(batch)
    mask = torch.arange(padded_batch.ids.shape[1]) < torch.from_numpy(padded_batch.lengths)[:, None]
    with torch.no_grad():
        hidden = encoder.backbone(
            input_ids=torch.from_numpy(padded_batch.ids),
            attention_mask=mask.long(),
            output_hidden_states=True,
        ).hidden_states
    measured = over_smoothing_by_layer(hidden, padded_batch.lengths)
    assert measured.cosine.shape == (3, 2)
    assert (measured.rank == padded_batch.lengths).all()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    lengths=st.lists(st.integers(2, 9), min_size=1, max_size=4),
    D=st.integers(2, 8),
)
def test_rotation_scale_and_order_do_not_matter(seed, lengths, D):
    generator = np.random.default_rng(seed)
    states = padded(lengths, D, seed, padding=0)
    rotation = np.linalg.qr(generator.normal(size=(D, D)))[0]
    moved = 7 * states @ rotation
    for row, length in zip(moved, lengths, strict=True):
        row[:length] = generator.permutation(row[:length])
    texts = generator.permutation(len(lengths))
    before, after = (
        over_smoothing(states, lengths),
        over_smoothing(moved[texts], np.take(lengths, texts)),
    )
    for name, old, new in zip(OverSmoothing._fields, before, after, strict=True):
        np.testing.assert_allclose(new, old[texts], rtol=1e-6, atol=1e-9, err_msg=name)
    limits = np.minimum(lengths, D)
    assert (before.rank == limits).all()
    assert (before.effective_rank <= limits + 1e-9).all()
    assert (np.abs(before.cosine) <= 1 + 1e-9).all()
    assert (before.svd_entropy <= 1 + 1e-9).all()


def test_bad_states_are_refused():
    states = padded([3, 3], padding=0)
    for bad, lengths in ((states[0], [3]), (states, [3]), (states[:0], [])):
        with pytest.raises(ValueError, match=r"\(B, T, D\) and lengths of shape \(B,\), found"):
            over_smoothing(bad, lengths)
    for length in (0, 1, 4):
        with pytest.raises(ValueError, match=f"from 2 to 3, found {length} of text 1"):
            over_smoothing(states, [3, length])
    states[1, 2] = 0
    with pytest.raises(ValueError, match=r"tokens of text 1: .*row of zeros: row 2"):
        over_smoothing(states, [3, 3])
    states[0, 1] = np.nan
    with pytest.raises(ValueError, match=r"tokens of text 0: .*finite.* row 1"):
        over_smoothing(states, [3, 3])
    with pytest.raises(ValueError, match="a layer or more, found none"):
        over_smoothing_by_layer([], [3])
