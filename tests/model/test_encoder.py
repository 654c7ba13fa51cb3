"""The encoder against sentence-transformers and against one text at a time."""

import json

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from codiemb_lib.core import EncoderSettings
from codiemb_lib.model import Embedder, Encoder
from codiemb_lib.model.saved import EncoderError
from tests.model.conftest import edit_json

TEXTS = ["the cat", "a", "the old dog is slow and the bus is fast", "the cat", "x " * 60]


def test_encode_puts_texts_in_order_whatever_the_budget(make_encoder):
    encoder = make_encoder()
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    for budget in (1, 40, 4000):
        found = encoder.encode(TEXTS, tokens_per_forward=budget)
        np.testing.assert_allclose(found, alone, atol=1e-6)


def test_output_has_unit_length_and_leaves_the_mode_alone(make_encoder):
    encoder = make_encoder().train()
    first, second = encoder.encode(TEXTS), encoder.encode(TEXTS)
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(first, second)  # no dropout
    assert encoder.training


def test_a_model_need_not_name_the_unit_length(saved):
    expected = Encoder.load(saved).encode(TEXTS)
    modules = json.loads((saved / "modules.json").read_text())
    (saved / "modules.json").write_text(json.dumps(modules[:2]))
    encoder = Encoder.load(saved)
    np.testing.assert_array_equal(encoder.encode(TEXTS), expected)
    modules = json.loads((encoder.save(saved) / "modules.json").read_text())
    assert modules[-1]["type"].endswith("Normalize")


@pytest.mark.parametrize(
    ("prompts", "default"),
    [({"STS": "find : ", "query": "query: "}, "STS"), ({"STS": "find : "}, None), ({}, "query")],
)
def test_texts_without_prompt_get_the_default_as_in_sentence_transformers(
    saved, tmp_path, prompts, default
):
    file = saved / "config_sentence_transformers.json"
    edit_json(file, prompts=prompts, default_prompt_name=default, truncate_dim=None)
    edit_json(saved / "1_Pooling" / "config.json", include_prompt=True)
    ours = Encoder.load(EncoderSettings(name=str(saved), include_prompt=True)).eval()
    theirs = SentenceTransformer(str(saved), device="cpu")
    again = Encoder.load(ours.save(tmp_path / "again"))
    expected = theirs.encode(TEXTS)
    for encoder in (ours, again):
        np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-6)
        bare = encoder.encode(TEXTS, prompt="")
        np.testing.assert_allclose(bare, theirs.encode(TEXTS, prompt=""), atol=1e-6)
        assert np.allclose(bare, expected, atol=1e-4) == (default != "STS")


def test_saving_replaces_a_model_and_nothing_else(make_encoder, saved, tmp_path):
    encoder = make_encoder(seed=1)
    (saved / "stale.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    for folder in (saved, tmp_path / "empty"):
        encoder.save(folder)
        assert not (folder / "stale.json").exists()
        again = Encoder.load(folder).encode(TEXTS)
        np.testing.assert_allclose(again, encoder.encode(TEXTS), atol=1e-6)
    notes = tmp_path / "mine" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("of years")
    for place, found in ((notes.parent, r"found \['notes\.txt'\]"), (notes, r"found \['a file'\]")):
        with pytest.raises(EncoderError, match=f"expected a new or an empty folder.*{found}"):
            encoder.save(place)
    assert notes.read_text() == "of years"


@pytest.mark.parametrize("stated", [None, False, True])
@pytest.mark.parametrize("asked", [None, False, True])
def test_prompts_count_as_asked_or_else_as_the_files_say(saved, stated, asked):
    file = saved / "1_Pooling" / "config.json"
    edit_json(file, include_prompt=stated)
    if stated is None:
        file.write_text(file.read_text().replace('"include_prompt"', '"else"'))
    expected = next(said for said in (asked, stated, True) if said is not None)
    settings = EncoderSettings(name=str(saved), include_prompt=asked)
    assert Encoder.load(settings).include_prompt is expected


@pytest.mark.parametrize(
    ("texts", "prompt", "message"),
    [
        ("one text", "", "expected a list of texts, found one text"),
        (["a", None], "", "found None at place 1"),
        ([b"a"], "", "found b'a' at place 0"),
        ([], "", "at least one text"),
        (["a cat"], "the " * 40, "expected room for a text"),
    ],
)
def test_what_cannot_be_encoded_is_refused(make_encoder, texts, prompt, message):
    with pytest.raises(EncoderError, match=message):
        make_encoder().encode(texts, prompt=prompt)


def test_any_iterable_of_texts_is_encoded(make_encoder, tmp_path):
    encoder, texts = make_encoder(), ["a cat", "a dog"]
    embedder = Embedder(encoder.save(tmp_path / "model"))
    for vectors in (encoder.encode(iter(texts)), embedder.embed(text for text in texts)):
        np.testing.assert_array_equal(vectors, encoder.encode(texts))


def test_token_states_pooled_are_what_forward_gives(make_architecture):
    for architecture in ("bert", "xlm-roberta", "qwen"):
        encoder = make_architecture(architecture)
        block = encoder.tokenizer.pad(encoder.tokenizer(TEXTS, ["query: "] * len(TEXTS)))
        layers, mask = encoder.token_states(block)
        assert len(layers) == 4
        vectors = encoder([block], middle=True)
        for states, expected in zip((layers[-1], layers[2]), vectors, strict=True):
            found = torch.nn.functional.normalize(encoder.pool(states, mask), dim=-1)
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
