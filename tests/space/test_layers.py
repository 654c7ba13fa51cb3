"""Layers of a tiny encoder against its own hidden states, text by text."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from codiemb_lib.space import tables
from codiemb_lib.space.measures import anisotropy, spectrum

TEXTS = ["find the old cat", "a red bus is fast", "the dog", "blue car in the new bus", "slow cat"]


def states_alone(encoder, text):
    ids = torch.tensor(encoder.tokenizer([text], [""])[0].ids)[None]
    with torch.no_grad():
        found = encoder.backbone(input_ids=ids, output_hidden_states=True).hidden_states
    return [states[0].numpy() for states in found]


def test_measures_are_those_of_each_text_alone(make_encoder, monkeypatch):
    monkeypatch.setattr(tables, "_BATCH", 2)
    encoder = make_encoder()
    rows = tables.measures_by_layer(encoder, TEXTS).set_index(["level", "measure", "layer"])
    assert set(rows["n"]) == {5}
    assert sorted({layer for *_, layer in rows.index}) == [0, 1, 2]
    alone = [states_alone(encoder, text) for text in TEXTS]
    for layer in range(3):
        tokens = [states[layer] for states in alone]
        value = rows["value"].xs(layer, level="layer")
        cosines = [anisotropy(t) for t in tokens]
        assert value["token", "cosine"] == pytest.approx(np.mean(cosines), abs=1e-5)
        spectra = [spectrum(t) for t in tokens]
        expected = np.median([s.condition_number for s in spectra])
        assert value["token", "condition_number"] == pytest.approx(expected, rel=1e-3)
        expected = np.mean([s.svd_entropy for s in spectra])
        assert value["token", "svd_entropy"] == pytest.approx(expected, rel=1e-4)
        pooled = np.stack([t.mean(axis=0) for t in tokens])
        assert value["sentence", "cosine"] == pytest.approx(anisotropy(pooled), abs=1e-5)
        expected = spectrum(pooled).effective_rank
        assert value["sentence", "effective_rank"] == pytest.approx(expected, rel=1e-4)
    bounded = rows.dropna(subset=["low", "high"])
    assert {(level, measure) for level, measure, _ in bounded.index} == {
        ("token", "cosine"),
        ("token", "effective_rank"),
        ("token", "svd_entropy"),
        ("sentence", "cosine"),
    }


def test_the_last_layer_is_what_the_encoder_returns(make_encoder):
    encoder = make_encoder()
    prompts = ["query: "] * len(TEXTS)
    rows = tables.measures_by_layer(encoder, TEXTS, prompts)
    last = rows[(rows["level"] == "sentence") & (rows["layer"] == 2)].set_index("measure")
    embeddings = encoder.encode(TEXTS, prompt="query: ")
    assert last.loc["cosine", "value"] == pytest.approx(anisotropy(embeddings), abs=1e-5)
