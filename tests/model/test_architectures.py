"""Each architecture that a preset names, against sentence-transformers and against itself."""

import json

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import MambaConfig, MambaModel

from codiemb_lib.core.preset import EncoderSettings
from codiemb_lib.model.encoder import Encoder
from codiemb_lib.model.saved import EncoderError

ARCHITECTURES = ["bert", "xlm-roberta", "minicpm", "qwen"]
TEXTS = ["the cat", "a", "the old dog is slow and the bus is fast", "is it a car", "x " * 60]
PROMPTS = ["", "query: ", "find the old cat\nquery: "]

every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


def load(folder, **options) -> Encoder:
    return Encoder.load(EncoderSettings(name=str(folder), **options)).eval()


def forward(encoder, texts, prompt="", **options):
    return encoder(
        [encoder.tokenizer.pad(encoder.tokenizer(texts, [prompt] * len(texts)))], **options
    )


@every_architecture
@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
@pytest.mark.parametrize("include_prompt", [True, False])
def test_sentence_transformers_encodes_the_same(
    make_architecture, tmp_path, architecture, pooling, include_prompt
):
    ours = make_architecture(architecture, pooling=pooling, include_prompt=include_prompt)
    theirs = SentenceTransformer(str(ours.save(tmp_path / "model")), device="cpu")
    for prompt in PROMPTS:
        expected = theirs.encode(TEXTS, prompt=prompt, batch_size=2)
        np.testing.assert_allclose(ours.encode(TEXTS, prompt=prompt), expected, atol=1e-5)


@every_architecture
def test_a_saved_model_comes_back_from_both_libraries(make_architecture, tmp_path, architecture):
    ours = make_architecture(architecture, pooling="mean", include_prompt=True)
    ours.save(tmp_path / "ours")
    SentenceTransformer(str(tmp_path / "ours"), device="cpu").save(str(tmp_path / "theirs"))
    for name in ("ours", "theirs"):
        again = load(tmp_path / name)
        settings = again.pooling, again.include_prompt, again.tokenizer.max_length
        assert settings == ("mean", True, 32), name
        for prompt in PROMPTS:
            np.testing.assert_array_equal(
                again.encode(TEXTS, prompt=prompt), ours.encode(TEXTS, prompt=prompt)
            )


@every_architecture
def test_something_of_every_text_counts(make_architecture, architecture):
    encoder = make_architecture(architecture, pooling="mean", include_prompt=False)
    for text in ("a", "yes", "", "!"):  # a byte-level tokenizer may join all of it to the prompt
        vector = encoder.encode([text], prompt="Query: ")
        assert np.linalg.norm(vector) == pytest.approx(1)


@every_architecture
def test_the_gradient_reaches_every_layer(make_architecture, architecture):
    encoder = make_architecture(architecture).train()
    target = torch.randn(16, generator=torch.Generator().manual_seed(0))
    (forward(encoder, TEXTS)[0] @ target).sum().backward()
    idle = [
        name
        for name, parameter in encoder.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.any())
    ]
    # A key's bias moves all scores of a query alike, so softmax takes no notice of it.
    assert [name for name in idle if "key.bias" not in name and "k_proj.bias" not in name] == []


@every_architecture
def test_gradient_checkpointing_changes_no_gradient(make_architecture, architecture):
    gradients = []
    for checkpointing in (False, True):
        encoder = make_architecture(architecture).train()
        if checkpointing:
            encoder.backbone.activation_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(0)  # of dropout
        final, middle = forward(encoder, TEXTS, middle=True)
        (final[:, 0].sum() + middle[:, 1].sum()).backward()
        gradients.append({n: p.grad for n, p in encoder.named_parameters() if p.grad is not None})
    without, with_checkpointing = gradients
    assert without.keys() == with_checkpointing.keys()
    for name, gradient in without.items():
        torch.testing.assert_close(with_checkpointing[name], gradient, msg=name)


@every_architecture
@pytest.mark.parametrize(("layers", "middle"), [(2, 1), (3, 2)])
def test_middle_is_at_half_depth(make_architecture, tmp_path, architecture, layers, middle):
    folder = make_architecture(architecture).save(tmp_path / "model")
    encoder = load(folder, layers=layers)
    tokens = encoder.tokenizer.pad(encoder.tokenizer(TEXTS[:1], [""]))
    states = encoder.backbone(torch.from_numpy(tokens.ids), output_hidden_states=True).hidden_states
    assert len(states) == layers + 1
    expected = torch.nn.functional.normalize(states[middle].mean(1), dim=-1)
    torch.testing.assert_close(encoder([tokens], middle=True)[1], expected)


def first_states(library, folder, texts):
    """State of the first token of each text, by the named library; (n, D)."""
    if library == "ours":
        return load(folder, pooling="cls", max_length=32).encode(texts)
    model = SentenceTransformer(str(folder), device="cpu")
    model[1].pooling_mode = "cls"
    return model.encode(texts)


@pytest.mark.parametrize("library", ["ours", "theirs"])
def test_a_decoder_looks_ahead_where_the_preset_says_so(make_architecture, tmp_path, library):
    causal = make_architecture("qwen").save(tmp_path / "causal")
    opened = load(causal, attention="bidirectional").save(tmp_path / "opened")
    assert not json.loads((opened / "config.json").read_text())["is_causal"]
    for others in ([], ["the old dog is slow and the bus"]):
        for folder, sees in ((causal, False), (opened, True)):
            cat, dog = (first_states(library, folder, [t, *others]) for t in ("a cat", "a dog"))
            moved = np.abs(cat - dog)[0].max()
            assert moved > 1e-3 if sees else moved < 1e-6


def test_attention_that_stays_causal_is_refused(make_architecture, tmp_path):
    tokenizer = make_architecture("qwen").tokenizer.base
    recurrent = MambaModel(
        MambaConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, state_size=4)
    )
    folder = Encoder(recurrent, tokenizer, max_length=32).save(tmp_path / "model")
    with pytest.raises(EncoderError, match=r"expected an architecture that.*found MambaModel"):
        load(folder, attention="bidirectional")


@every_architecture
def test_length_is_what_the_files_say(make_architecture, tmp_path, architecture):
    folder = make_architecture(architecture).save(tmp_path / "model")
    assert load(folder).tokenizer.max_length == 32
    (folder / "sentence_bert_config.json").unlink()
    assert load(folder).tokenizer.max_length == 64
    assert load(folder, max_length=16).tokenizer.max_length == 16
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"model_max_length": 10**30}))
    encoder = load(folder)
    assert encoder.tokenizer.max_length == 64
    assert np.isfinite(encoder.encode(["x " * 100])).all()
    with pytest.raises(EncoderError, match="up to the model's 64 positions, found 65"):
        load(folder, max_length=65)


def test_no_decoder_keeps_its_keys_and_values(make_architecture):
    encoder = make_architecture("qwen")
    tokens = torch.ones(1, 3, dtype=torch.long)
    assert encoder.backbone(tokens).past_key_values is None


def test_a_tokenizer_without_padding_gets_one(make_architecture, tmp_path):
    ours = make_architecture("minicpm")
    ours.tokenizer.base.pad_token = None
    folder = ours.save(tmp_path / "model")
    encoder = load(folder)
    theirs = SentenceTransformer(str(encoder.save(tmp_path / "again")), device="cpu")
    np.testing.assert_allclose(encoder.encode(TEXTS), theirs.encode(TEXTS), atol=1e-5)
