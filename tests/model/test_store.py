"""Embeddings in chunks and from the store against those of the encoder itself."""

from __future__ import annotations

import numpy as np
import pytest

from codiemb_lib.core.preset import EncoderSettings
from codiemb_lib.model import store as embeddings
from codiemb_lib.model.encoder import Encoder
from codiemb_lib.model.saved import EncoderError
from codiemb_lib.model.store import Embedder

TEXTS = ["a cat", "the dog", "a cat", "red bus", "old car", "the dog", "new car is fast"]


@pytest.fixture
def settings(make_encoder, tmp_path):
    return EncoderSettings(name=str(make_encoder().save(tmp_path / "model")))


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(embeddings, "CHUNK", 2)


def not_called(*_, **__):
    raise AssertionError("something was loaded or encoded")


def test_chunks_give_what_the_encoder_gives(settings, small_chunks, monkeypatch):
    expected = Encoder.load(settings).encode(TEXTS, prompt="query: ")
    sizes = []
    encode = Encoder.encode
    monkeypatch.setattr(
        Encoder,
        "encode",
        lambda self, texts, **o: sizes.append(len(texts)) or encode(self, texts, **o),
    )
    found = Embedder(settings).embed(TEXTS, prompt="query: ")
    assert sizes == [2, 2, 1]  # each distinct text once
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_what_is_kept_comes_back_to_the_bit_without_the_encoder(
    settings, small_chunks, monkeypatch, tmp_path
):
    first = Embedder(settings, tmp_path / "store").embed(TEXTS)
    monkeypatch.setattr(Encoder, "load", not_called)
    again = Embedder(settings, tmp_path / "store")
    np.testing.assert_array_equal(again.embed(TEXTS), first)
    np.testing.assert_array_equal(again.embed(TEXTS[:2]), first[:2])  # a chunk of the same texts
    for other in ({"prompt": "find "}, {"texts": TEXTS[1:]}):
        with pytest.raises(AssertionError, match="loaded"):
            again.embed(**{"texts": TEXTS, **other})


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-8],
        lambda data: data[:40],
        lambda data: data.replace(b"False", b"(((((", 1),
        lambda data: data.replace(b"(2, 16)", b"(1, 16)"),
        lambda data: data.replace(b"(2, 16), ", b"(32,),   "),
    ],
)
def test_a_damaged_file_of_the_store_is_named_and_may_be_deleted(
    settings, small_chunks, tmp_path, damage
):
    embedder = Embedder(settings, tmp_path / "store")
    first = embedder.embed(TEXTS[:2])
    [file] = embedder.store.iterdir()
    damaged = damage(file.read_bytes())
    assert damaged != file.read_bytes()
    file.write_bytes(damaged)
    with pytest.raises(EncoderError, match=r"\.npy: .* Delete it: it is made anew"):
        embedder.embed(TEXTS[:2])
    file.unlink()
    np.testing.assert_array_equal(embedder.embed(TEXTS[:2]), first)


def test_going_on_after_a_kill_encodes_what_is_missing(
    settings, small_chunks, monkeypatch, tmp_path
):
    encode, left = Encoder.encode, iter([True, True, False])

    def killed(self, texts, **options):
        if not next(left):
            raise KeyboardInterrupt
        return encode(self, texts, **options)

    monkeypatch.setattr(Encoder, "encode", killed)
    with pytest.raises(KeyboardInterrupt):
        Embedder(settings, tmp_path / "store").embed(TEXTS)
    seen = []
    monkeypatch.setattr(
        Encoder, "encode", lambda self, texts, **o: seen.extend(texts) or encode(self, texts, **o)
    )
    Embedder(settings, tmp_path / "store").embed(TEXTS)
    assert seen == [TEXTS[-1]]


def test_the_key_is_that_of_the_content(make_encoder, settings, tmp_path):
    key = Embedder(settings).key
    moved = make_encoder().save(tmp_path / "moved")
    other = make_encoder(seed=1).save(tmp_path / "other")
    assert Embedder(EncoderSettings(name=str(moved))).key == key
    assert Embedder(EncoderSettings(name=str(other))).key != key
    assert Embedder(settings.model_copy(update={"max_length": 8})).key != key
    assert Embedder(settings.model_copy(update={"pooling": "cls"})).key != key


def test_prompts_are_read_without_the_weights(make_encoder, settings, monkeypatch, tmp_path):
    prompts = {"prompts": {"query": "q: "}, "default_prompt_name": "query"}
    named = make_encoder(**prompts).save(tmp_path / "named")
    monkeypatch.setattr(Encoder, "load", not_called)
    assert Embedder(EncoderSettings(name=str(named))).prompts == {"query": "q: "}
    assert Embedder(EncoderSettings(name=str(named))).default_prompt == "q: "
    assert Embedder(settings).prompts == {}
    assert Embedder(settings).default_prompt == ""


def test_a_text_without_prompt_gets_the_models_default(make_encoder, tmp_path):
    prompts = {"prompts": {"find": "find : "}, "default_prompt_name": "find"}
    encoder = make_encoder(**prompts)
    settings = EncoderSettings(name=str(encoder.save(tmp_path / "model")))
    embedder = Embedder(settings, tmp_path / "store")
    for prompt in (None, "", "find : "):
        expected = encoder.encode(["a cat"], prompt=prompt)
        np.testing.assert_allclose(embedder.embed(["a cat"], prompt=prompt), expected, atol=1e-6)
    assert not np.allclose(embedder.embed(["a cat"]), embedder.embed(["a cat"], prompt=""))
