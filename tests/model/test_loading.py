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
from codiemb_lib.model import PACKAGED, Encoder, model_hash
from codiemb_lib.model.errors import EncoderError

TEXTS = ["the cat", "a", "the old dog is slow and the bus is fast", "the cat", "x " * 60]


def edit_json(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


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


NAME = "encoder.layer.1.output.dense.weight"
MODULES = [{"type": "some.module.Dense"}]
TOKENIZER = '{"version": "1.0", "model": 3}'
DAMAGE = {
    "NaN": (lambda f: edit_weights(f, lambda w: w[NAME].fill_(torch.nan)), f"NaN or Inf.*{NAME}"),
    "no weight": (lambda f: edit_weights(f, lambda w: w.pop(NAME)), "expected a weight for every"),
    "half": (lambda f: halve(f / "model.safetensors"), "Safetensor.*download its files again"),
    "pickled": (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "pickle form"),
    "no model": (lambda f: (f / "config.json").unlink(), "expected a model folder with config"),
    "dense": (lambda f: (f / "modules.json").write_text(json.dumps(MODULES)), r"found \['Dense'\]"),
    "no pooling": (lambda f: shutil.rmtree(f / "1_Pooling"), "`pooling`.*files name none"),
    "joined": (
        lambda f: edit_json(f / "1_Pooling" / "config.json", pooling_mode_cls_token=True),
        "files name cls and mean",
    ),
    "joined, newer": (
        lambda f: edit_json(f / "1_Pooling" / "config.json", pooling_mode=["mean", "max"]),
        "files name mean and max",
    ),
    "unknown pooling": (
        lambda f: edit_json(f / "1_Pooling" / "config.json", pooling_mode="max"),
        "unknown pooling 'max'",
    ),
    "default prompt": (
        lambda f: edit_json(f / "config_sentence_transformers.json", default_prompt_name="qeury"),
        "unknown default_prompt_name 'qeury'.*'query'",
    ),
    "cut": (
        lambda f: edit_json(f / "config_sentence_transformers.json", truncate_dim=8),
        "all 16 dimensions, found `truncate_dim: 8`",
    ),
    "tokenizer": (lambda f: halve(f / "tokenizer.json"), "download its files again"),
    "its model": (lambda f: (f / "tokenizer.json").write_text(TOKENIZER), "files again"),
    "no tokenizer": (
        lambda f: (
            (f / "tokenizer.json").unlink(),
            edit_json(f / "tokenizer_config.json", tokenizer_class="BertTokenizer"),
        ),
        "expected the files of a tokenizer, such as",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_folder_that_would_give_wrong_embeddings_is_refused(saved, damage):
    apply, message = DAMAGE[damage]
    apply(saved)
    with pytest.raises(EncoderError, match=message):
        Encoder.load(saved)


def test_what_the_files_leave_open_the_settings_say(saved):
    shutil.rmtree(saved / "1_Pooling")
    assert Encoder.load(EncoderSettings(name=str(saved), pooling="cls")).pooling == "cls"


def test_a_dimension_of_all_is_no_cut(saved):
    edit_json(saved / "config_sentence_transformers.json", truncate_dim=16)
    theirs = SentenceTransformer(str(saved), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(Encoder.load(saved).encode(TEXTS), theirs, atol=1e-6)


def test_packaged_encoder_has_its_first_layers_only_where_asked():
    with pytest.raises(EncoderError, match="expected layers up to 6, found 9"):
        Encoder.load(EncoderSettings(name="minilm-l6", layers=9))
    encoder = Encoder.load(EncoderSettings(name="minilm-l6", layers=2))
    assert (encoder.pooling, len(encoder.backbone.encoder.layer)) == ("mean", 2)
    assert encoder.dimension == 384


def test_lower_casing_that_the_tokenizer_does_not_do_is_refused(saved):
    file = saved / "sentence_bert_config.json"
    stated = json.loads(file.read_text()) | {"do_lower_case": True}
    file.write_text(json.dumps(stated))
    Encoder.load(EncoderSettings(name=str(saved)))  # its tokenizer minds no capitals
    tokenizer = json.loads((saved / "tokenizer.json").read_text())
    (saved / "tokenizer.json").write_text(json.dumps(tokenizer | {"normalizer": None}))
    with pytest.raises(EncoderError, match="expected a tokenizer that minds no capitals"):
        Encoder.load(EncoderSettings(name=str(saved)))


def test_what_the_hub_does_not_give_takes_one_message(monkeypatch):
    def unreachable(name, **options):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    for name in ("runs/none", "organisation/model"):
        with pytest.raises(EncoderError) as caught:
            Encoder.load(EncoderSettings(name=name))
        message = str(caught.value)
        assert message.startswith(f"{name}: expected a folder in {project_root()}, or a model of")
        assert "of the Hub: ConnectionError: no route to host. Correct the path" in message
        assert "connection" in message
    with pytest.raises(EncoderError, match=f"no {re.escape(str(project_root()))}/data/runs/none"):
        Encoder.load(EncoderSettings(name="data/runs/none"))


def test_the_hub_out_of_reach_is_no_traceback_of_its_client(no_network):
    with pytest.raises(EncoderError, match=r"^no-such/model: .* of the Hub: \w+: "):
        Encoder.load(EncoderSettings(name="no-such/model"))


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
    Encoder.load(EncoderSettings(name="organisation/model", revision="abc"))
    trusting = EncoderSettings(
        name="organisation/model", revision="ab" * 20, trust_remote_code=True
    )
    assert model_hash(trusting) == model_hash(EncoderSettings(name=str(saved)))
    (name, options), (_, trusted) = hub[1:]
    assert (name, options["revision"]) == ("organisation/model", "abc")
    assert ["*.py" in o["allow_patterns"] for o in (options, trusted)] == [False, True]


def test_code_of_the_hub_is_trusted_at_a_commit_alone(hub, saved):
    hub.append(saved)
    moving = EncoderSettings(name="organisation/model", revision="main", trust_remote_code=True)
    with pytest.raises(EncoderError, match=r"expected the commit .* found the revision 'main'"):
        Encoder.load(moving)
    assert hub == [saved]  # nothing was asked for


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
    (with_code / "modeling_tiny.py").write_text("raise RuntimeError('it ran')\n" + CODE)
    with pytest.raises(EncoderError, match=r"contains custom code.*trust_remote_code: true"):
        Encoder.load(EncoderSettings(name=str(with_code)))
    trusting = {"trust_remote_code": True, "revision": "local"}
    with pytest.raises(EncoderError, match="RuntimeError: it ran"):
        Encoder.load(EncoderSettings(name=str(with_code), **trusting))
    (with_code / "modeling_tiny.py").write_text(CODE)
    encoder = Encoder.load(EncoderSettings(name=str(with_code), **trusting)).eval()
    folder = encoder.save(tmp_path / "again")
    assert (folder / "modeling_tiny.py").read_text() == CODE
    again = Encoder.load(EncoderSettings(name=str(folder), **trusting)).eval()
    np.testing.assert_array_equal(again.encode(TEXTS), encoder.encode(TEXTS))
    theirs = SentenceTransformer(str(folder), device="cpu", trust_remote_code=True)
    np.testing.assert_allclose(theirs.encode(TEXTS), encoder.encode(TEXTS), atol=1e-6)


def test_code_for_other_packages_is_refused(with_code):
    (with_code / "modeling_tiny.py").write_text("from torch import no_such_name\n" + CODE)
    settings = {"trust_remote_code": True, "revision": "local"}
    with pytest.raises(EncoderError, match=r"that transformers 5.*cannot import.*no_such_name"):
        Encoder.load(EncoderSettings(name=str(with_code), **settings))


def test_code_of_another_repository_is_refused(with_code):
    config = json.loads((with_code / "config.json").read_text())
    config["auto_map"]["AutoModel"] = "organisation/other--modeling_tiny.TinyModel"
    (with_code / "config.json").write_text(json.dumps(config))
    settings = {"trust_remote_code": True, "revision": "local"}
    with pytest.raises(
        EncoderError, match=r"found.*organisation/other--modeling_tiny.*no revision"
    ):
        Encoder.load(EncoderSettings(name=str(with_code), **settings))


def test_a_wrong_checksum_and_a_wrong_name_are_refused(monkeypatch):
    with pytest.raises(EncoderError, match="Did you mean 'minilm-l6'"):
        Encoder.load("minilm-16")
    monkeypatch.setitem(PACKAGED, "minilm-l6", (PACKAGED["minilm-l6"][0], "0" * 64))
    with pytest.raises(EncoderError, match=r"expected sha256 0{64}, found 53aa.*Reinstall"):
        Encoder.load("minilm-l6")
