"""The encoder against sentence-transformers and against one text at a time."""

import copy
import itertools
import json
import re
import shutil

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)

from codiemb_lib.core.files import project_root
from codiemb_lib.core.preset import EncoderSettings, LoraSettings
from codiemb_lib.model import encoder as encoder_module
from codiemb_lib.model.encoder import (
    PACKAGED,
    Encoder,
    EncoderError,
    Packaged,
    Packing,
    Tokens,
    _cut,
    forward_passes,
    model_hash,
)

TEXTS = ["the cat", "a", "the old dog is slow and the bus is fast", "the cat", "x " * 60]


@pytest.fixture
def saved(make_encoder, tmp_path):
    return make_encoder(prompts={"query": "query: "}).save(tmp_path / "model")


def test_a_model_saved_by_sentence_transformers_comes_back(saved, tmp_path):
    SentenceTransformer(str(saved), device="cpu").save(str(tmp_path / "again"))
    settings = {"max_length": 32}
    first = Encoder.load(EncoderSettings(name=str(saved), **settings)).eval()
    again = Encoder.load(EncoderSettings(name=str(tmp_path / "again"), **settings)).eval()
    assert again.pooling == "mean"
    assert again.prompts["query"] == "query: "
    np.testing.assert_array_equal(first.encode(TEXTS), again.encode(TEXTS))


def test_forward_equals_one_text_at_a_time(make_encoder):
    encoder = make_encoder()
    prompts = ["", "query: ", "", "query: ", ""]
    tokens = encoder.tokenizer(TEXTS, prompts)
    together = encoder([encoder.tokenizer.pad(tokens)], middle=True)
    for i, text in enumerate(tokens):
        alone = encoder([encoder.tokenizer.pad([text])], middle=True)
        for states, state in zip(together, alone, strict=True):
            torch.testing.assert_close(states[i], state[0], atol=1e-6, rtol=0)


def test_middle_is_the_layer_at_half_depth(make_encoder):
    encoder = make_encoder(layers=4)
    batch = encoder.tokenizer.pad(encoder.tokenizer(["the old cat"], [""]))
    _, middle = encoder([batch], middle=True)
    shallow = make_encoder(layers=4)
    shallow.backbone.encoder.layer = shallow.backbone.encoder.layer[:2]
    torch.testing.assert_close(middle, shallow([batch])[0])


def test_tokens_know_their_prompt_and_keep_to_the_length(make_encoder):
    encoder = make_encoder(max_length=8)
    plain, prompted, long = encoder.tokenizer(["the cat", "the cat", "a " * 9], ["", "query: ", ""])
    assert (plain.prompt, prompted.prompt, long.prompt) == (0, 3, 0)  # with the token in front
    assert prompted.ids[3:] == plain.ids[1:]
    assert len(long.ids) == 8


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


def test_packaged_encoder_has_its_first_layers_only_where_asked():
    with pytest.raises(EncoderError, match="expected layers up to 6, found 9"):
        Encoder.load(EncoderSettings(name="minilm-l6", layers=9))
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


def test_a_model_need_not_name_the_unit_length(saved):
    expected = Encoder.load(EncoderSettings(name=str(saved))).eval().encode(TEXTS)
    modules = json.loads((saved / "modules.json").read_text())
    (saved / "modules.json").write_text(json.dumps(modules[:2]))
    encoder = Encoder.load(EncoderSettings(name=str(saved))).eval()
    np.testing.assert_array_equal(encoder.encode(TEXTS), expected)
    modules = json.loads((encoder.save(saved) / "modules.json").read_text())
    assert modules[-1]["type"].endswith("Normalize")


def test_a_pooling_that_joins_several_is_refused(saved):
    file = saved / "1_Pooling" / "config.json"
    modes = {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}
    file.write_text(json.dumps(modes))
    with pytest.raises(EncoderError, match="pooling"):
        Encoder.load(EncoderSettings(name=str(saved)))
    file.write_text(json.dumps(modes | {"pooling_mode_max_tokens": False}))
    assert Encoder.load(EncoderSettings(name=str(saved))).pooling == "mean"


@pytest.mark.parametrize(
    "modes",
    [
        {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
        {"pooling_mode": ["mean", "cls"]},
    ],
    ids=["old", "new"],
)
def test_of_several_poolings_all_are_named(saved, modes):
    (saved / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    with pytest.raises(EncoderError, match="files name mean and cls, which would be joined"):
        Encoder.load(EncoderSettings(name=str(saved)))


def edit_json(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


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
    again = Encoder.load(EncoderSettings(name=str(ours.save(tmp_path / "again")))).eval()
    expected = theirs.encode(TEXTS)
    for encoder in (ours, again):
        np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-6)
        bare = encoder.encode(TEXTS, prompt="")
        np.testing.assert_allclose(bare, theirs.encode(TEXTS, prompt=""), atol=1e-6)
        assert np.allclose(bare, expected, atol=1e-4) == (default != "STS")


def test_a_default_prompt_that_nobody_states_is_refused(saved):
    file = saved / "config_sentence_transformers.json"
    edit_json(file, default_prompt_name="qeury")
    with pytest.raises(EncoderError, match=r"unknown default_prompt_name 'qeury'.*'query'"):
        Encoder.load(EncoderSettings(name=str(saved)))


def test_embeddings_that_would_be_cut_are_refused(saved):
    file = saved / "config_sentence_transformers.json"
    edit_json(file, truncate_dim=8)
    with pytest.raises(EncoderError, match="all 16 dimensions, found `truncate_dim: 8`"):
        Encoder.load(EncoderSettings(name=str(saved)))
    edit_json(file, truncate_dim=16)  # all of them
    theirs = SentenceTransformer(str(saved), device="cpu").encode(TEXTS)
    ours = Encoder.load(EncoderSettings(name=str(saved))).eval().encode(TEXTS)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_saving_replaces_a_model_and_nothing_else(make_encoder, saved, tmp_path):
    encoder = make_encoder(seed=1)
    (saved / "stale.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    for folder in (saved, tmp_path / "empty"):
        encoder.save(folder)
        assert not (folder / "stale.json").exists()
        again = Encoder.load(EncoderSettings(name=str(folder)))
        np.testing.assert_allclose(again.eval().encode(TEXTS), encoder.encode(TEXTS), atol=1e-6)
    notes = tmp_path / "mine" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("of years")
    for place, found in ((notes.parent, r"found \['notes\.txt'\]"), (notes, "found a file")):
        with pytest.raises(EncoderError, match=f"expected a new or an empty folder.*{found}"):
            encoder.save(place)
    assert notes.read_text() == "of years"


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


@pytest.mark.parametrize("content", ['{"version": "1.0", ', '{"version": "1.0", "model": 3}'])
def test_a_damaged_tokenizer_names_its_folder(saved, content):
    (saved / "tokenizer.json").write_text(content)
    with pytest.raises(EncoderError, match=r"model: expected the files of a tokenizer, found that"):
        Encoder.load(EncoderSettings(name=str(saved)))


def test_lower_casing_that_the_tokenizer_does_not_do_is_refused(saved):
    file = saved / "sentence_bert_config.json"
    stated = json.loads(file.read_text()) | {"do_lower_case": True}
    file.write_text(json.dumps(stated))
    Encoder.load(EncoderSettings(name=str(saved)))  # its tokenizer minds no capitals
    tokenizer = json.loads((saved / "tokenizer.json").read_text())
    (saved / "tokenizer.json").write_text(json.dumps(tokenizer | {"normalizer": None}))
    with pytest.raises(EncoderError, match="expected a tokenizer that minds no capitals"):
        Encoder.load(EncoderSettings(name=str(saved)))


@pytest.mark.parametrize(
    ("stated", "asked", "expected"),
    [
        (None, None, True),
        (False, None, False),
        (True, None, True),
        (True, False, False),
        (False, True, True),
    ],
)
def test_prompts_count_as_asked_or_else_as_the_files_say(saved, stated, asked, expected):
    file = saved / "1_Pooling" / "config.json"
    pooling = json.loads(file.read_text())
    del pooling["include_prompt"]
    file.write_text(json.dumps(pooling if stated is None else pooling | {"include_prompt": stated}))
    settings = EncoderSettings(name=str(saved), include_prompt=asked)
    assert Encoder.load(settings).include_prompt is expected


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


def test_pickled_weights_of_the_hub_are_refused(hub, saved):
    hub.append(saved)
    shutil.move(saved / "model.safetensors", saved / "pytorch_model.bin")
    with pytest.raises(EncoderError, match="pickle form"):
        Encoder.load(EncoderSettings(name="organisation/model"))


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
    with pytest.raises(
        EncoderError, match=r"found.*modeling_tiny\.TinyModel.*trust_remote_code: true"
    ):
        Encoder.load(EncoderSettings(name=str(with_code)))
    trusting = {"trust_remote_code": True, "revision": "local"}
    with pytest.raises(RuntimeError, match="it ran"):
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
    with pytest.raises(EncoderError, match=r"for transformers 5.*cannot import.*no_such_name"):
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


def with_adapters(folder, *, seed=0, **options) -> Encoder:
    torch.manual_seed(seed)
    return Encoder.load(EncoderSettings(name=str(folder), lora=LoraSettings(rank=2, **options)))


def train(encoder, optimizer, seeds):
    batch = encoder.tokenizer.pad(encoder.tokenizer(TEXTS, [""] * len(TEXTS)))
    target = torch.randn(16, generator=torch.Generator().manual_seed(0))
    encoder.train()
    for seed in seeds:
        torch.manual_seed(seed)
        optimizer.zero_grad()
        (encoder([batch])[0] @ target).sum().backward()
        optimizer.step()


def adapter_optimizer(encoder):
    trained = [p for p in encoder.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, lr=0.01)


def test_adapters_alone_train_and_are_merged_in_what_is_saved(saved, tmp_path):
    pytest.importorskip("peft", reason="the extra `lora` is not installed")
    base = Encoder.load(EncoderSettings(name=str(saved))).eval()
    encoder = with_adapters(saved, dropout=0.1)
    np.testing.assert_array_equal(encoder.eval().encode(TEXTS), base.encode(TEXTS))
    trained = {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 2 * 6  # two matrices, two layers, six linear ones
    assert all("lora_" in name and "pooler" not in name for name in trained)
    train(encoder, adapter_optimizer(encoder), range(3))
    live = {name: weight.clone() for name, weight in encoder.backbone.state_dict().items()}
    vectors = encoder.eval().encode(TEXTS)
    assert np.abs(vectors - base.encode(TEXTS)).max() > 0.01

    folder = encoder.save(tmp_path / "merged")
    assert all(torch.equal(live[n], w) for n, w in encoder.backbone.state_dict().items())
    files = [load_file(place / "model.safetensors") for place in (saved, folder)]
    assert files[0].keys() == files[1].keys()
    again = Encoder.load(EncoderSettings(name=str(folder))).eval()
    theirs = SentenceTransformer(str(folder), device="cpu")
    for merged in (again.encode(TEXTS), theirs.encode(TEXTS)):
        np.testing.assert_allclose(merged, vectors, atol=1e-5)

    with torch.no_grad():  # what is given counts, not what is there
        for parameter in encoder.parameters():
            parameter.zero_()
    given = load_file(encoder.save(tmp_path / "given", live) / "model.safetensors")
    assert all(torch.equal(given[name], weight) for name, weight in files[1].items())


def test_merged_weights_are_those_of_peft(saved, tmp_path):
    layer = pytest.importorskip(
        "peft", reason="the extra `lora` is not installed"
    ).tuners.lora.Linear
    encoder = with_adapters(saved, alpha=7, targets=["query", "dense"])
    train(encoder, adapter_optimizer(encoder), range(2))
    weights = load_file(encoder.save(tmp_path / "merged") / "model.safetensors")
    adapted = {n: m for n, m in encoder.backbone.named_modules() if isinstance(m, layer)}
    assert {name.rpartition(".")[2] for name in adapted} == {"query", "dense"}
    for name, module in adapted.items():
        module.merge()
        merged = module.base_layer.weight
        torch.testing.assert_close(weights[f"{name}.weight"], merged, atol=1e-7, rtol=0)


def test_training_adapters_goes_on_to_the_same_bits(saved):
    pytest.importorskip("peft", reason="the extra `lora` is not installed")
    encoder = with_adapters(saved, dropout=0.1)
    optimizer = adapter_optimizer(encoder)
    train(encoder, optimizer, range(2))
    kept = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    # On a CPU what is kept are the live tensors, until they are written to a file.
    weights, state = copy.deepcopy(get_state_dict(encoder, optimizer, options=kept))
    assert all("lora_" in name for name in weights)
    train(encoder, optimizer, range(2, 4))

    resumed = with_adapters(saved, seed=1, dropout=0.1)
    fresh = adapter_optimizer(resumed)
    given = StateDictOptions(full_state_dict=True, ignore_frozen_params=True, strict=False)
    set_state_dict(resumed, fresh, model_state_dict=weights, optim_state_dict=state, options=given)
    train(resumed, fresh, range(2, 4))
    expected = encoder.state_dict()
    assert all(torch.equal(expected[name], w) for name, w in resumed.state_dict().items())


def test_adapters_without_their_package_name_the_remedy(saved, monkeypatch):
    monkeypatch.setattr(encoder_module.util, "find_spec", lambda name: None)
    with pytest.raises(EncoderError, match="pip install peft"):
        with_adapters(saved)


def test_adapters_of_unknown_layers_are_refused(saved):
    pytest.importorskip("peft", reason="the extra `lora` is not installed")
    with pytest.raises(
        EncoderError, match=r"unknown target of lora 'querry'.*Did you mean 'query'"
    ):
        with_adapters(saved, targets=["querry"])


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
    monkeypatch.setattr(encoder_module, "_CUT_AT_ONCE", 7)
    tokens = [Tokens([0] * (1 + i % 50), 0) for i in range(100)]
    blocks = _cut(tokens, 120, 8)
    assert sorted(i for block in blocks for i in block) == list(range(100))
    assert all(len(tokens[b[0]].ids) * len(b) <= 120 for b in blocks)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("one text", r"expected a list of texts, found one text; write \['one text'\]"),
        (["a", None], "found None at place 1"),
        ([b"a"], "found b'a' at place 0"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(texts, message):
    encoder = Encoder.load(EncoderSettings(name="minilm-l6", layers=1))
    with pytest.raises(EncoderError, match=message):
        encoder.encode(texts)


def test_a_folder_without_tokenizer_or_with_half_its_weights_is_refused(tmp_path):
    folder = Encoder.load(EncoderSettings(name="minilm-l6", layers=1)).save(tmp_path / "model")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(EncoderError, match="expected whole weights"):
        Encoder.load(EncoderSettings(name=str(folder)))
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(EncoderError, match="expected the files of a tokenizer"):
        Encoder.load(EncoderSettings(name=str(folder)))
