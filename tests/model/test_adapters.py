"""LoRA's adapters: what trains, and what is saved against peft's own merging."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from codiemb_lib.core import EncoderSettings, LoraSettings
from codiemb_lib.model import Encoder
from codiemb_lib.model.saved import EncoderError

lora = pytest.importorskip("peft", reason="the extra `lora` is not installed").tuners.lora

TEXTS = ["the cat", "a", "the old dog is slow and the bus is fast", "the cat", "x " * 60]


def with_adapters(folder, **options) -> Encoder:
    torch.manual_seed(0)
    return Encoder.load(EncoderSettings(name=str(folder), lora=LoraSettings(rank=2, **options)))


def train(encoder, steps):
    batch = encoder.tokenizer.pad(encoder.tokenizer(TEXTS, [""] * len(TEXTS)))
    target = torch.randn(16, generator=torch.Generator().manual_seed(0))
    trained = [p for p in encoder.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.01)
    encoder.train()
    for _ in range(steps):
        optimizer.zero_grad()
        (encoder([batch])[0] @ target).sum().backward()
        optimizer.step()


def test_adapters_alone_train_and_are_merged_in_what_is_saved(saved, tmp_path):
    base = Encoder.load(saved).eval()
    encoder = with_adapters(saved, dropout=0.1)
    np.testing.assert_array_equal(encoder.eval().encode(TEXTS), base.encode(TEXTS))
    trained = {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 2 * 6  # two matrices, two layers, six linear ones
    assert all("lora_" in name and "pooler" not in name for name in trained)
    train(encoder, 3)
    live = {name: weight.clone() for name, weight in encoder.backbone.state_dict().items()}
    vectors = encoder.eval().encode(TEXTS)
    assert np.abs(vectors - base.encode(TEXTS)).max() > 0.01

    folder = encoder.save(tmp_path / "merged")
    assert all(torch.equal(live[n], w) for n, w in encoder.backbone.state_dict().items())
    files = [load_file(place / "model.safetensors") for place in (saved, folder)]
    assert files[0].keys() == files[1].keys()
    again = Encoder.load(folder).eval()
    theirs = SentenceTransformer(str(folder), device="cpu")
    for merged in (again.encode(TEXTS), theirs.encode(TEXTS)):
        np.testing.assert_allclose(merged, vectors, atol=1e-5)

    with torch.no_grad():  # what is given counts, not what is there
        for parameter in encoder.parameters():
            parameter.zero_()
    given = load_file(encoder.save(tmp_path / "given", live) / "model.safetensors")
    assert all(torch.equal(given[name], weight) for name, weight in files[1].items())


def test_merged_weights_are_those_of_peft(saved, tmp_path):
    encoder = with_adapters(saved, alpha=7, targets=["query", "dense"])
    train(encoder, 2)
    weights = load_file(encoder.save(tmp_path / "merged") / "model.safetensors")
    adapted = {n: m for n, m in encoder.backbone.named_modules() if isinstance(m, lora.Linear)}
    assert {name.rpartition(".")[2] for name in adapted} == {"query", "dense"}
    for name, module in adapted.items():
        module.merge()
        merged = module.base_layer.weight
        torch.testing.assert_close(weights[f"{name}.weight"], merged, atol=1e-7, rtol=0)


def test_adapters_that_cannot_be_added_are_refused(saved, monkeypatch):
    with pytest.raises(EncoderError, match=r"unknown target of lora 'querry'.*mean 'query'"):
        with_adapters(saved, targets=["querry"])
    monkeypatch.setattr("codiemb_lib.model.loading.util.find_spec", lambda name: None)
    with pytest.raises(EncoderError, match="pip install peft"):
        with_adapters(saved)
