"""The encoder against sentence-transformers and against one text at a time."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from codiemb_lib import encoder as encoder_module
from codiemb_lib.config import EncoderSettings
from codiemb_lib.encoder import PACKAGED, Encoder, EncoderError, Packaged

TEXTS = ["the cat", "a", "the old dog is slow and the bus is fast", "the cat", "x " * 60]


@pytest.fixture
def saved(make_encoder, tmp_path):
    return make_encoder(prompts={"query": "query: "}).save(tmp_path / "model")


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
@pytest.mark.parametrize("prompt", ["", "query: "])
@pytest.mark.parametrize("include_prompt", [True, False])
def test_saved_model_encodes_the_same_in_sentence_transformers(
    make_encoder, tmp_path, pooling, prompt, include_prompt
):
    ours = make_encoder(pooling=pooling, include_prompt=include_prompt)
    theirs = SentenceTransformer(str(ours.save(tmp_path / "model")), device="cpu")
    expected = theirs.encode(TEXTS, prompt=prompt)
    np.testing.assert_allclose(ours.encode(TEXTS, prompt=prompt), expected, atol=1e-6)


def test_a_model_saved_by_sentence_transformers_comes_back(saved, tmp_path):
    SentenceTransformer(str(saved), device="cpu").save(str(tmp_path / "again"))
    settings = {"max_length": 32}
    first = Encoder.load(EncoderSettings(name=str(saved), **settings)).eval()
    again = Encoder.load(EncoderSettings(name=str(tmp_path / "again"), **settings)).eval()
    assert again.pooling == "mean"
    assert again.prompts["query"] == "query: "
    np.testing.assert_array_equal(first.encode(TEXTS), again.encode(TEXTS))


def test_embed_equals_one_text_at_a_time(make_encoder):
    encoder = make_encoder()
    prompts = ["", "query: ", "", "query: ", ""]
    embedded = encoder.embed(TEXTS, prompts=prompts, middle=True, tokens_per_forward=20)
    for i, (text, prompt) in enumerate(zip(TEXTS, prompts, strict=True)):
        alone = encoder.embed([text], prompts=prompt, middle=True)
        torch.testing.assert_close(embedded.final[i], alone.final[0], atol=1e-6, rtol=0)
        torch.testing.assert_close(embedded.middle[i], alone.middle[0], atol=1e-6, rtol=0)
    assert embedded.texts == 5  # "the cat" with and without its prompt are two texts


def test_a_repeated_text_is_encoded_once_and_collects_all_its_gradients(make_encoder):
    encoder = make_encoder()
    weight = encoder.backbone.encoder.layer[0].attention.self.query.weight
    targets = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    repeated = encoder.embed(["the cat", "a dog", "the cat"])
    assert repeated.texts == 2
    (got,) = torch.autograd.grad((repeated.final * targets).sum(), weight)
    one_by_one = [encoder.embed([t]).final[0] for t in ["the cat", "a dog", "the cat"]]
    expected_loss = sum((e * t).sum() for e, t in zip(one_by_one, targets, strict=True))
    (expected,) = torch.autograd.grad(expected_loss, weight)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-4)


def test_middle_is_the_layer_at_half_depth(make_encoder):
    encoder = make_encoder(layers=4)
    embedded = encoder.embed(["the old cat"], middle=True)
    shallow = make_encoder(layers=4)
    shallow.backbone.encoder.layer = shallow.backbone.encoder.layer[:2]
    torch.testing.assert_close(embedded.middle, shallow.embed(["the old cat"]).final)


def test_output_has_unit_length_and_leaves_the_mode_alone(make_encoder):
    encoder = make_encoder().train()
    first, second = encoder.encode(TEXTS), encoder.encode(TEXTS)
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(first, second)  # no dropout
    assert encoder.training


def test_packaged_encoder_has_its_first_layers_only_where_asked():
    encoder = Encoder.load(EncoderSettings(name="minilm-l6", layers=2))
    assert (encoder.pooling, len(encoder.backbone.encoder.layer)) == ("mean", 2)
    assert encoder.dimension == 384


def test_a_wrong_checksum_is_refused(monkeypatch):
    real = PACKAGED["minilm-l6"]
    fake = Packaged(real.module, real.folder, real.package, sha256="0" * 64)
    monkeypatch.setitem(encoder_module.PACKAGED, "minilm-l6", fake)
    with pytest.raises(EncoderError, match=r"expected sha256 0{64}, found 53aa.*Reinstall"):
        Encoder.load(EncoderSettings(name="minilm-l6"))


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(EncoderError, match="Did you mean 'minilm-l6'"):
        Encoder.load(EncoderSettings(name="minilm-16"))


def test_nan_in_weights_is_refused(saved):
    file = saved / "model.safetensors"
    weights = load_file(file)
    name = "encoder.layer.1.output.dense.weight"
    weights[name][0, 0] = torch.nan
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(EncoderError, match=f"NaN or Inf in '{name}'"):
        Encoder.load(EncoderSettings(name=str(saved)))


def test_a_missing_weight_is_refused(saved):
    file = saved / "model.safetensors"
    weights = load_file(file)
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(EncoderError, match="found none for"):
        Encoder.load(EncoderSettings(name=str(saved)))


def test_pickled_weights_are_refused(saved):
    shutil.move(saved / "model.safetensors", saved / "pytorch_model.bin")
    with pytest.raises(EncoderError, match="pickle form"):
        Encoder.load(EncoderSettings(name=str(saved)))


def test_pooling_must_be_named_somewhere(saved):
    shutil.rmtree(saved / "1_Pooling")
    with pytest.raises(EncoderError, match="expected `pooling`"):
        Encoder.load(EncoderSettings(name=str(saved)))
    assert Encoder.load(EncoderSettings(name=str(saved), pooling="cls")).pooling == "cls"


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no model")
    with pytest.raises(EncoderError, match=r"expected a model folder.*notes\.txt"):
        Encoder.load(EncoderSettings(name=str(tmp_path)))


def test_nothing_to_encode_is_refused(make_encoder):
    with pytest.raises(EncoderError, match="at least one text"):
        make_encoder().encode([])


def test_modules_that_are_none_of_ours_are_refused(saved):
    modules = json.loads((saved / "modules.json").read_text())
    modules.append({"idx": 3, "name": "3", "path": "3_Dense", "type": "some.module.Dense"})
    (saved / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(EncoderError, match=r"found \['Dense'\]"):
        Encoder.load(EncoderSettings(name=str(saved)))


def test_a_prompt_that_leaves_no_room_is_refused(make_encoder):
    with pytest.raises(EncoderError, match="expected room for a text"):
        make_encoder().encode(["a cat"], prompt="the " * 40)


def test_modules_file_names_the_three_modules(saved):
    modules = json.loads((saved / "modules.json").read_text())
    assert [m["type"].rsplit(".", 1)[1] for m in modules] == ["Transformer", "Pooling", "Normalize"]
