"""Finding an encoder's files, what they state, and what is refused with a remedy."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from codiemb_lib.core import EncoderSettings, project_root
from codiemb_lib.model import PACKAGED, Embedder, Encoder, model_hash
from codiemb_lib.model.saved import EncoderError
from tests.model.conftest import edit_json

TEXTS = ["the cat", "a", "the old dog is slow and the bus is fast", "the cat", "x " * 60]


def test_a_name_or_a_folder_alone_will_do(saved, monkeypatch):
    expected = Encoder.load(EncoderSettings(name=str(saved))).encode(TEXTS)
    monkeypatch.setenv("CODIEMB_ROOT", str(saved.parent))
    for source in (str(saved), saved, Path("model"), "model"):
        np.testing.assert_array_equal(Encoder.load(source).encode(TEXTS), expected)
    assert Encoder.load("minilm-l6").dimension == 384
    with pytest.raises(EncoderError, match=f"there is no {saved.parent}/org/model"):
        Encoder.load(Path("org/model"))  # which is no name on the Hub


def edit_weights(folder, edit):
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def halve(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def make_up_tokenizer(folder):
    (folder / "tokenizer.json").unlink()
    edit_json(folder / "tokenizer_config.json", tokenizer_class="BertTokenizer")


def mind_capitals(folder):
    edit_json(folder / "sentence_bert_config.json", do_lower_case=True)
    edit_json(folder / "tokenizer.json", normalizer=None)


def without_normalize(folder, similarity="dot"):
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps(modules[:2]))
    edit_json(folder / PROMPTS, similarity_fn_name=similarity)


NAME = "encoder.layer.1.output.dense.weight"
WEIGHTS, POOLING = "model.safetensors", "1_Pooling/config.json"
PROMPTS = "config_sentence_transformers.json"
DENSE = '[{"type": "some.module.Dense", "path": ""}]'
BROKEN = '{"version": "1.0", "model": 3}'
DAMAGE = [
    (lambda f: edit_weights(f, lambda w: w[NAME].fill_(torch.nan)), f"NaN or Inf.*{NAME}"),
    (lambda f: edit_weights(f, lambda w: w.pop(NAME)), "expected a weight for every parameter"),
    (lambda f: halve(f / WEIGHTS), "SafetensorError.*download its files again"),
    (lambda f: (f / WEIGHTS).rename(f / "pytorch_model.bin"), "pickle form"),
    (lambda f: (f / "config.json").unlink(), r"expected a model folder.*modules\.json"),
    (lambda f: (f / "modules.json").write_text(DENSE), r"found \['Dense'\]"),
    (lambda f: shutil.rmtree(f / "1_Pooling"), "`pooling`.*files name none"),
    (lambda f: edit_json(f / POOLING, pooling_mode_cls_token=True), "files name cls and mean"),
    (lambda f: edit_json(f / POOLING, pooling_mode=["mean", "max"]), "files name mean and max"),
    (lambda f: edit_json(f / POOLING, pooling_mode="max"), "unknown pooling 'max'"),
    (lambda f: edit_json(f / PROMPTS, default_prompt_name="qeury"), "name 'qeury'.*'query'"),
    (lambda f: edit_json(f / PROMPTS, truncate_dim=8), "all 16 dimensions, found .*dim: 8"),
    (lambda f: edit_json(f / PROMPTS, similarity_fn_name="euclidean"), "_name: euclidean`.*cosine"),
    (without_normalize, "_fn_name: dot`, whose scores are others"),
    (lambda f: halve(f / "tokenizer.json"), "download its files again"),
    (lambda f: (f / "tokenizer.json").write_text(BROKEN), "download its files again"),
    (make_up_tokenizer, "expected the files of a tokenizer, such as"),
    (mind_capitals, "expected a tokenizer that minds no capitals"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_a_folder_that_would_give_wrong_embeddings_is_refused(saved, damage, message):
    damage(saved)
    with pytest.raises(EncoderError, match=message):
        Encoder.load(saved)


def test_what_the_files_leave_open_the_settings_say(saved):
    edit_json(saved / PROMPTS, truncate_dim=16)  # all of them
    edit_json(saved / "sentence_bert_config.json", do_lower_case=True)  # as its tokenizer does
    theirs = SentenceTransformer(str(saved), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(Encoder.load(saved).encode(TEXTS), theirs, atol=1e-6)
    shutil.rmtree(saved / "1_Pooling")
    assert Encoder.load(EncoderSettings(name=str(saved), pooling="cls")).pooling == "cls"


@pytest.mark.parametrize(
    ("similarity", "normalized"),
    [("cosine", True), ("dot", True), (None, True), ("cosine", False), (None, False)],
)
def test_similarities_are_those_of_the_model(saved, similarity, normalized):
    edit_json(saved / PROMPTS, similarity_fn_name=similarity)
    if not normalized:
        without_normalize(saved, similarity)
    theirs = SentenceTransformer(str(saved), device="cpu")
    vectors = theirs.encode(TEXTS)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1) == normalized
    ours = Encoder.load(saved).encode(TEXTS)
    np.testing.assert_allclose(ours @ ours.T, theirs.similarity(vectors, vectors), atol=1e-6)


def test_no_score_of_a_model_of_other_similarity_is_taken_from_the_store(saved):
    without_normalize(saved)
    with pytest.raises(EncoderError, match="compares texts by the cosine"):
        Embedder(saved)


@pytest.mark.parametrize("settings", ["sentence_bert_config", "sentence_xlm-roberta_config"])
def test_the_oldest_layout_is_read(saved, settings):
    expected = Encoder.load(saved).encode(TEXTS)
    (saved / "0_Transformer").mkdir()
    for file in saved.iterdir():
        if file.is_file() and file.name not in ("modules.json", PROMPTS):
            file.rename(saved / "0_Transformer" / file.name)
    moved = saved / "0_Transformer" / "sentence_bert_config.json"
    moved.rename(moved.with_name(f"{settings}.json"))
    modules = json.loads((saved / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (saved / "1_Pooling").rename(saved / "1_Mean")
    modules[1]["path"] = "1_Mean"
    (saved / "modules.json").write_text(json.dumps(modules))
    theirs = SentenceTransformer(str(saved), device="cpu").encode(TEXTS)
    found = Encoder.load(saved)
    assert found.tokenizer.max_length == 32
    np.testing.assert_array_equal(found.encode(TEXTS), expected)
    np.testing.assert_allclose(theirs, expected, atol=1e-6)


def test_packaged_encoder_has_its_first_layers_only_where_asked():
    with pytest.raises(EncoderError, match=r"found none for .*layer\.6.*`layers` of the preset"):
        Encoder.load(EncoderSettings(name="minilm-l6", layers=9))
    encoder = Encoder.load(EncoderSettings(name="minilm-l6", layers=2))
    assert (encoder.pooling, len(encoder.backbone.encoder.layer)) == ("mean", 2)
    assert encoder.dimension == 384


def test_what_the_hub_does_not_give_takes_one_message(monkeypatch):
    def unreachable(name, **options):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    for name in ("runs/none", "organisation/model"):
        with pytest.raises(EncoderError) as caught:
            Encoder.load(name)
        message = str(caught.value)
        assert message.startswith(f"{name}: expected a folder in {project_root()}, or a model of")
        assert "of the Hub: ConnectionError: no route to host. Correct the path" in message
    with pytest.raises(EncoderError, match=f"no {re.escape(str(project_root()))}/data/runs/none"):
        Encoder.load("data/runs/none")


def test_the_hub_out_of_reach_is_no_traceback_of_its_client(no_network):
    with pytest.raises(EncoderError, match=r"^no-such/model: .* of the Hub: \w+: "):
        Encoder.load("no-such/model")


@pytest.fixture
def hub(monkeypatch):
    """The calls of the Hub's client, which answers with the folder that is appended to it."""
    calls = []

    def download(name, **options):
        calls.append((name, options))
        return calls[0]

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return calls


def test_the_hub_is_asked_for_the_revision_and_for_code_only_if_trusted(hub, saved):
    hub.append(saved)
    settings = EncoderSettings(name="organisation/model", revision="abc")
    Encoder.load(settings)
    moving = settings.model_copy(update={"trust_remote_code": True})
    with pytest.raises(EncoderError, match=r"expected the commit .* found the revision 'abc'"):
        Encoder.load(moving)
    pinned = moving.model_copy(update={"revision": "ab" * 20})
    assert model_hash(pinned) == model_hash(EncoderSettings(name=str(saved)))
    (name, options), (_, trusted) = hub[1:]
    assert (name, options["revision"]) == ("organisation/model", "abc")
    assert ["*.py" in o["allow_patterns"] for o in (options, trusted)] == [False, True]


CODE = """
import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

class TinyConfig(PretrainedConfig):
    model_type = "tiny-of-the-tests"
    hidden_size = 16
    vocab_size = 100

class TinyModel(PreTrainedModel):
    config_class = TinyConfig

    def __init__(self, config):
        super().__init__(config)
        self.table = torch.nn.Embedding(config.vocab_size, config.hidden_size)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, output_hidden_states=False, **options):
        return BaseModelOutput(last_hidden_state=self.table(input_ids))
"""


@pytest.fixture
def with_code(saved, tmp_path, monkeypatch):
    """A folder whose architecture only its own code knows."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "hf"))
    (saved / "modeling_tiny.py").write_text(CODE)
    config = {
        "model_type": "tiny-of-the-tests",
        "auto_map": {
            "AutoConfig": "modeling_tiny.TinyConfig",
            "AutoModel": "modeling_tiny.TinyModel",
        },
    }
    (saved / "config.json").write_text(json.dumps(config))
    table = torch.randn(100, 16, generator=torch.Generator().manual_seed(0))
    save_file({"table.weight": table}, saved / "model.safetensors", metadata={"format": "pt"})
    return saved


def test_code_of_a_model_runs_only_where_it_is_trusted(with_code, tmp_path):
    trusting = {"trust_remote_code": True, "revision": "local"}
    settings = EncoderSettings(name=str(with_code), **trusting)
    (with_code / "modeling_tiny.py").write_text("raise RuntimeError('it ran')\n" + CODE)
    with pytest.raises(EncoderError, match=r"contains custom code.*trust_remote_code: true"):
        Encoder.load(with_code)
    with pytest.raises(EncoderError, match="RuntimeError: it ran"):
        Encoder.load(settings)
    (with_code / "modeling_tiny.py").write_text(CODE)
    encoder = Encoder.load(settings)
    folder = encoder.save(tmp_path / "again")
    assert (folder / "modeling_tiny.py").read_text() == CODE
    again = Encoder.load(settings.model_copy(update={"name": str(folder)}))
    np.testing.assert_array_equal(again.encode(TEXTS), encoder.encode(TEXTS))
    theirs = SentenceTransformer(str(folder), device="cpu", trust_remote_code=True)
    np.testing.assert_allclose(theirs.encode(TEXTS), encoder.encode(TEXTS), atol=1e-6)


def test_code_for_other_packages_or_of_another_repository_is_refused(with_code):
    settings = EncoderSettings(name=str(with_code), trust_remote_code=True, revision="local")
    (with_code / "modeling_tiny.py").write_text("from torch import no_such_name\n" + CODE)
    with pytest.raises(EncoderError, match=r"that transformers 5.*cannot import.*no_such_name"):
        Encoder.load(settings)
    other = {"AutoModel": "organisation/other--modeling_tiny.TinyModel"}
    edit_json(with_code / "config.json", auto_map=other)
    with pytest.raises(EncoderError, match=r"organisation/other--modeling_tiny.*no revision"):
        Encoder.load(settings)


def test_a_wrong_checksum_and_a_wrong_name_are_refused(monkeypatch):
    with pytest.raises(EncoderError, match="Did you mean 'minilm-l6'"):
        Encoder.load("minilm-16")
    monkeypatch.setitem(PACKAGED, "minilm-l6", (PACKAGED["minilm-l6"][0], "0" * 64))
    with pytest.raises(
        EncoderError, match=r"expected files of sha256 0{64}, found 3da1.*Reinstall"
    ):
        Encoder.load("minilm-l6")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("sentence_bert_config.json", {"max_seq_length": [["x"]]}),
        ("sentence_bert_config.json", {"max_seq_length": "x"}),
        ("sentence_bert_config.json", []),
        (PROMPTS, {"prompts": ["query: "]}),
        (PROMPTS, {"prompts": {"query": 3}}),
        (PROMPTS, {"prompts": {}, "default_prompt_name": 3}),
        (PROMPTS, []),
        (POOLING, {"pooling_mode": 3}),
        (POOLING, {"pooling_mode": [["mean"]]}),
        (POOLING, {"pooling_mode": "meal"}),
        (POOLING, "mean"),
        ("modules.json", {"type": "x"}),
        ("tokenizer_config.json", []),
    ],
)
def test_what_files_state_in_other_types_is_refused_by_name(saved, file, content):
    (saved / file).write_text(json.dumps(content))
    with pytest.raises(EncoderError, match=re.escape(str(saved))):
        Encoder.load(saved)


def test_a_tokenizer_without_a_token_for_padding_is_refused(saved):
    settings = json.loads((saved / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (saved / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(EncoderError, match="expected a token for padding, found none"):
        Encoder.load(saved)
