"""Model folders in and out of a fusion: shards, adapters, settings, memory, kills, refusals."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import BertModel, Qwen2ForCausalLM

from codiemb_lib.core.files import sha256_folder, write_json
from codiemb_lib.core.preset import EncoderSettings
from codiemb_lib.fuse.merging import merge
from codiemb_lib.fuse.tensors import Folder, FusionError, Lazy, write_tensors
from codiemb_lib.model.encoder import Encoder, EncoderError
from tests.made_up import shown
from tests.memory import growth


@pytest.fixture
def folders(tmp_path, make_encoder):
    """A base and two checkpoints in the sentence-transformers layout."""
    encoder = make_encoder()
    paths = [encoder.save(tmp_path / "base")]
    for seed in (1, 2):
        generator = torch.Generator().manual_seed(seed)
        for parameter in encoder.backbone.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data += 0.01 * seed * noise
        paths.append(encoder.save(tmp_path / f"run-{seed}"))
    return paths


def weights_of(folder):
    return load_file(folder / "model.safetensors")


def assert_equal_models(actual, expected, **tolerance):
    assert sorted(actual) == sorted(expected)
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], **tolerance)


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def add_dense(folder):
    modules = json.loads((folder / "modules.json").read_text())
    modules += [{"type": "sentence_transformers.models.Dense", "path": "3_Dense"}]
    write_json(folder / "modules.json", modules)
    write_json(folder / "3_Dense" / "config.json", {"in_features": 2, "out_features": 2})


@pytest.mark.parametrize(
    "options",
    [
        {"method": "uniform"},
        {"granularity": "layer", "power": 2.0},
        {"method": "ties"},
        {"method": "dare", "scale": 0.5, "keep": {"*LayerNorm*": 1, "*": "base"}},
    ],
    ids=shown,
)
def test_folders_merge_like_their_tensors(folders, tmp_path, options):
    base, *runs = folders
    output = merge(base, runs, output=tmp_path / "fused", **options)
    expected = merge(weights_of(base), [weights_of(run) for run in runs], **options)
    actual = weights_of(output)
    assert_equal_models(actual, {name: expected[name] for name in actual}, rtol=0, atol=0)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_stale_weights_and_cards_are_not_copied(folders, tmp_path):
    base, *runs = folders
    for name in ("pytorch_model.bin", "README.md", "optimizer.pt"):
        (runs[0] / name).write_bytes(b"of one checkpoint alone")
    output = merge(base, runs, output=tmp_path / "fused")
    names = {path.name for path in folders[0].iterdir()}
    assert {path.name for path in output.iterdir()} == names | {"README.md"}
    card = (output / "README.md").read_text()
    assert "of one checkpoint alone" not in card
    assert f"'0': {runs[0]}\n" in card
    assert "| 0 | yes |" in card


def test_shards_and_the_weights_of_further_modules_are_merged(folders, tmp_path):
    base, *runs = folders
    for seed, folder in enumerate(folders):
        tensors = weights_of(folder)
        names = sorted(tensors)
        shards = {"model-00001-of-00002": names[::2], "model-00002-of-00002": names[1::2]}
        for file, members in shards.items():
            save_file({n: tensors[n] for n in members}, folder / f"{file}.safetensors")
        (folder / "model.safetensors").unlink()
        index = {n: f"{file}.safetensors" for file, members in shards.items() for n in members}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
        add_dense(folder)
        dense = {"linear.weight": torch.full((2, 2), float(seed))}
        save_file(dense, folder / "3_Dense" / "model.safetensors")
    output = merge(base, runs, method="uniform", output=tmp_path / "fused")
    index = json.loads((output / "model.safetensors.index.json").read_text())["weight_map"]
    for name, file in index.items():
        mean = sum(load_file(run / file)[name] for run in runs) / 2
        torch.testing.assert_close(load_file(output / file)[name], mean)
    dense = load_file(output / "3_Dense" / "model.safetensors")["linear.weight"]
    assert (dense == 1.5).all()


@pytest.mark.parametrize(
    ("file", "changes", "found"),
    [
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": False}, "pooling"),
        ("1_Pooling/config.json", {"include_prompt": True}, "include_prompt"),
        ("config_sentence_transformers.json", {"prompts": {"query": "find : "}}, "prompts"),
        ("config_sentence_transformers.json", {"similarity_fn_name": "dot"}, "similarity"),
        ("sentence_bert_config.json", {"max_seq_length": 7}, "max_length"),
        ("config.json", {"hidden_act": "relu"}, "configuration"),
        ("config.json", {"is_causal": False}, "configuration"),
        ("tokenizer.json", {"normalizer": None}, "tokenizer"),
        ("3_Dense/config.json", {"out_features": 3}, "modules"),
    ],
)
def test_checkpoints_with_other_settings_are_refused(folders, tmp_path, file, changes, found):
    base, *runs = folders
    for run in runs:
        add_dense(run)
    edit_json(runs[1] / file, **changes)
    with pytest.raises(FusionError, match=f"run-2: expected the {found} of .*run-1, found another"):
        merge(base, runs, output=tmp_path / "fused")
    assert not (tmp_path / "fused").exists()


def test_a_tokenizer_that_is_lost_or_needs_code_is_refused(folders, tmp_path):
    base, *runs = folders
    (runs[1] / "tokenizer.json").write_text("{}")
    with pytest.raises(FusionError, match="run-2: expected settings that transformers reads"):
        merge(base, runs, output=tmp_path / "fused")


def as_release_0(folder):
    """As the first releases of sentence-transformers laid folders out, and transformers 2 files."""
    files = [path for path in folder.iterdir() if path.is_file()]
    (folder / "0_Transformer").mkdir()
    for path in files:
        path.rename(folder / "0_Transformer" / path.name)
    (folder / "0_Transformer" / "config_sentence_transformers.json").unlink()
    moved = folder / "0_Transformer" / "modules.json"
    modules = json.loads(moved.read_text())
    modules[0] |= {"path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}
    write_json(folder / "modules.json", modules)
    moved.unlink()
    pooling = {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True}
    write_json(folder / "1_Pooling" / "config.json", pooling | {"pooling_mode_cls_token": False})
    config = json.loads((folder / "0_Transformer" / "config.json").read_text())
    for key in ("tie_word_embeddings", "dtype", "is_decoder", "classifier_dropout"):
        del config[key]
    config |= {"gradient_checkpointing": False, "position_embedding_type": "absolute"}
    write_json(folder / "0_Transformer" / "config.json", config)
    settings = folder / "0_Transformer" / "sentence_bert_config.json"
    settings.rename(settings.with_name("sentence_roberta_config.json"))


def as_release_6(folder):
    SentenceTransformer(str(folder), device="cpu").save(str(folder))
    assert "max_seq_length" not in (folder / "sentence_bert_config.json").read_text()


def with_other_formats(folder):
    """With what a training and an export leave beside the model."""
    shutil.copytree(folder, folder / "checkpoint-500")
    save_file({"x": torch.ones(1)}, folder / "checkpoint-500" / "optimizer.safetensors")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.bin").write_bytes(b"of another library")
    write_json(folder / "onnx" / "config.json", {"hidden_size": 5})


@pytest.mark.parametrize("order", [1, -1], ids=["first", "last"])
@pytest.mark.parametrize("change", [as_release_0, as_release_6, with_other_formats], ids=shown)
def test_folders_that_mean_the_same_merge_whatever_their_layout(
    make_encoder, tmp_path, change, order
):
    paths = [make_encoder(seed=j, include_prompt=True).save(tmp_path / f"{j}") for j in range(3)]
    base, *runs = paths
    expected = merge(weights_of(base), [weights_of(run) for run in runs])
    change(runs[1])
    fused = merge(base, runs[::order], output=tmp_path / "fused")
    assert {path.name for path in fused.iterdir()}.isdisjoint({"checkpoint-500", "onnx"})
    assert_equal_models(Folder(fused), expected)
    theirs = SentenceTransformer(str(fused), device="cpu").encode(["a cat", "the old dog is slow"])
    np.testing.assert_allclose(
        Encoder.load(fused).encode(["a cat", "the old dog is slow"]), theirs, atol=1e-6
    )


def test_weights_lie_where_the_chosen_settings_name_them(folders, tmp_path):
    base, *runs = folders
    as_release_0(runs[1])
    options = {"settings_from": 1, "output": tmp_path / "fused"}
    fused = merge(base, runs, **options)
    assert (fused / "0_Transformer" / "model.safetensors").is_file()
    assert not (fused / "model.safetensors").exists()
    assert Encoder.load(fused).tokenizer.max_length == 32


def rewrite(run, content):
    (run / "model.safetensors").write_bytes(content)


def forge(run, *spans, size=16):
    """Write tensors x of two float32 each, at these places in so many bytes, by hand."""
    entries = [f'"x": {{"dtype": "F32", "shape": [2], "data_offsets": {span}}}' for span in spans]
    header = f"{{{', '.join(entries)}}}".replace('"x"', '"y"', 1).encode()
    rewrite(run, len(header).to_bytes(8, "little") + header + bytes(size))


def pickle_a_module(run):
    add_dense(run)
    (run / "3_Dense" / "pytorch_model.bin").write_bytes(b"pickled")


TWICE = r"old\.safetensors and in model\.safetensors"
WHOLE = r"run-1/model\.safetensors: expected whole weights"
DAMAGES = {
    "missing": (shutil.rmtree, "run-1: expected a model folder"),
    "pickled": (
        lambda run: (run / "model.safetensors").rename(run / "pytorch_model.bin"),
        r"run-1/pytorch_model\.bin, pickled weights",
    ),
    "pickled module": (pickle_a_module, r"3_Dense/pytorch_model\.bin, pickled"),
    "twice": (lambda run: shutil.copy(run / "model.safetensors", run / "old.safetensors"), TWICE),
    "empty": (lambda run: rewrite(run, b""), WHOLE),
    "no header": (lambda run: rewrite(run, b"\xff" * 8), WHOLE),
    "a list": (lambda run: rewrite(run, b"\x02" + bytes(7) + b"[]"), WHOLE),
    "cut": (lambda run: rewrite(run, (run / "model.safetensors").read_bytes()[:-1]), WHOLE),
    "overlapping": (lambda run: forge(run, [0, 8], [4, 12], size=12), WHOLE),
    "one place for two": (lambda run: forge(run, [0, 8], [0, 8], size=8), WHOLE),
    "below zero": (lambda run: forge(run, [0, 8], [-8, 0]), WHOLE),
    "a hole": (lambda run: forge(run, [0, 8], [12, 20], size=20), WHOLE),
    "a key twice": (lambda run: forge(run, [0, 8], [8, 16], [16, 24], size=24), WHOLE),
    "bytes behind the end": (lambda run: forge(run, [0, 8], [8, 16], size=17), WHOLE),
    "float8": (
        lambda run: save_file(
            {"x": torch.zeros(2).to(torch.float8_e5m2)}, run / "model.safetensors"
        ),
        r"of the types F64, .* found 'F8_E5M2'",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=list(DAMAGES))
def test_damaged_models_are_refused(folders, tmp_path, damage, message):
    base, *runs = folders
    damage(runs[0])
    with pytest.raises(FusionError, match=message):
        merge(base, runs, output=tmp_path / "fused")


def test_positions_that_do_not_count_are_not_left_out_unseen(folders, tmp_path):
    for folder, positions in zip(folders, (range(9), range(9), range(8, -1, -1)), strict=True):
        tensors = weights_of(folder) | {"embeddings.position_ids": torch.tensor([[*positions]])}
        save_file(tensors, folder / "model.safetensors")
    base, *runs = folders
    assert "embeddings.position_ids" not in weights_of(merge(base, [base], output=tmp_path / "one"))
    with pytest.raises(FusionError, match=r"run-2.*embeddings\.position_ids"):
        merge(base, runs, output=tmp_path / "two")


def test_an_output_with_content_is_refused(folders, tmp_path):
    base, *runs = folders
    (tmp_path / "empty").mkdir()
    assert merge(base, runs, output=tmp_path / "empty").is_dir()
    with pytest.raises(FusionError, match="a new or an empty folder"):
        merge(base, runs, output=tmp_path / "empty")
    with pytest.raises(ValueError, match="found output=None"):
        merge(base, runs)


def test_a_failure_leaves_nothing_behind(folders, tmp_path):
    base, *runs = folders
    tensors = weights_of(runs[1])
    tensors["embeddings.LayerNorm.bias"][0] = math.nan
    save_file(tensors, runs[1] / "model.safetensors", metadata={"format": "pt"})
    threads = torch.get_num_threads()
    with pytest.raises(ValueError, match=r"checkpoint 1 \(.*run-2\): .* embeddings\.LayerNorm"):
        merge(base, runs, output=tmp_path / "deep" / "fused")
    assert not any((tmp_path / "deep").iterdir())
    assert torch.get_num_threads() == threads


def test_the_packaged_base_fuses_with_what_we_save_of_it(tmp_path):
    encoder = Encoder.load(EncoderSettings(name="minilm-l6"))
    checkpoint = encoder.save(tmp_path / "run")
    fused = merge("minilm-l6", [checkpoint] * 2, method="uniform", output=tmp_path / "fused")
    again = Encoder.load(EncoderSettings(name=str(fused)))
    torch.testing.assert_close(again.backbone.state_dict(), encoder.backbone.state_dict())
    assert 'base_model: "minilm-l6"\n' in (fused / "README.md").read_text()
    with pytest.raises(EncoderError, match="unknown encoder 'minilm-16'"):
        merge("minilm-16", [checkpoint], output=tmp_path / "none")


@pytest.mark.parametrize("prefix", ["", "bert."])  # of a base that was saved with a head
def test_a_base_is_seen_without_the_layers_that_its_checkpoints_lack(
    make_architecture, tmp_path, prefix
):
    base = make_architecture("bert").save(tmp_path / "base")  # of three layers
    tensors = {prefix + name: tensor for name, tensor in weights_of(base).items()}
    head = {"cls.bias": torch.zeros(3)} if prefix else {}
    save_file(tensors | head, base / "model.safetensors", metadata={"format": "pt"})
    write_json(tmp_path / "manifest.json", {"settings": {"model_hash": sha256_folder(base)}})
    cut = make_architecture("bert")
    cut.backbone.encoder.layer = cut.backbone.encoder.layer[:2]
    cut.backbone.config.num_hidden_layers = 2
    for parameter in cut.backbone.parameters():
        parameter.data += 0.5
    run = cut.save(tmp_path / "run")
    fused = merge(base, [run], scale=0.5, output=tmp_path / "fused")
    kept = {name: tensors[prefix + name] + 0.25 for name in weights_of(run)}
    assert_equal_models(weights_of(fused), kept)
    assert len(Encoder.load(EncoderSettings(name=str(fused))).backbone.encoder.layer) == 2
    with pytest.raises(FusionError, match=r"the 2 layers of .*run, found one with 3, .*base"):
        merge(base, [run], output=tmp_path / "none", settings_from="base")
    edit_json(run / "config.json", num_hidden_layers=3)  # then a shard is lost
    with pytest.raises(FusionError, match="that differ"):
        merge(base, [run], output=tmp_path / "none")


def test_halves_stay_halves_on_disk(folders, tmp_path):
    base, *runs = folders
    for folder in runs:
        halved = {name: tensor.bfloat16() for name, tensor in weights_of(folder).items()}
        save_file(halved, folder / "model.safetensors", metadata={"format": "pt"})
    fused = weights_of(merge(base, runs, output=tmp_path / "fused"))
    expected = merge(weights_of(base), [weights_of(run) for run in runs])
    assert {tensor.dtype for tensor in fused.values()} == {torch.bfloat16}
    assert_equal_models(fused, expected, rtol=0, atol=0)


def test_a_base_without_pooling_takes_that_of_its_checkpoints(folders, tmp_path):
    base, *runs = folders
    for name in ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json"):
        (base / name).unlink()
    output = merge(base, runs, output=tmp_path / "fused")
    assert (output / "1_Pooling" / "config.json").is_file()


TABLE, HEAD = "embeddings.word_embeddings.weight", "lm_head.weight"


def store_head(folder, change=0.0):
    tensors = weights_of(folder)
    save_file(tensors | {HEAD: tensors[TABLE] + change}, folder / "model.safetensors")


@pytest.mark.parametrize("stated", [True, False, None])
@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize(
    "options",
    [{"method": "dare"}, {"keep": {"*word_embeddings*": "base"}}, {"granularity": "layer"}],
    ids=shown,
)
def test_a_tied_head_stays_the_table(folders, tmp_path, options, in_memory, stated):
    for folder in folders:
        store_head(folder)
        edit_json(folder / "config.json", tie_word_embeddings=stated)
    base, *runs = map(weights_of, folders) if in_memory else folders
    output = {} if in_memory else {"output": tmp_path / "fused"}
    fused = merge(base, runs, **options, **output)
    fused = fused if in_memory else Folder(fused)
    assert torch.equal(fused[HEAD], fused[TABLE])
    assert torch.equal(fused[TABLE], Folder(folders[0])[TABLE]) == ("keep" in options)


@pytest.mark.parametrize("storing", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
def test_a_tied_head_may_be_stored_by_some(folders, tmp_path, storing):
    base, *runs = folders
    expected = merge(weights_of(base), [weights_of(run) for run in runs])
    for number in storing:
        store_head(folders[number])
    fused = weights_of(merge(base, runs, output=tmp_path / "fused"))
    if 1 in storing:  # whose files the result has
        assert torch.equal(fused.pop(HEAD), fused[TABLE])
    assert_equal_models(fused, expected)


def test_a_head_of_its_own_is_merged_as_itself(folders, tmp_path):
    base, *runs = folders
    for number, folder in enumerate(folders):
        store_head(folder, change=number)
    fused = weights_of(merge(base, runs, method="uniform", output=tmp_path / "fused"))
    torch.testing.assert_close(fused[HEAD], fused[TABLE] + 1.5)
    tensors = weights_of(runs[1])
    del tensors[HEAD]
    save_file(tensors, runs[1] / "model.safetensors")
    message = (
        r"run-2.*1 that differ: lm_head\.weight \(missing beside .* save both with the same head"
    )
    with pytest.raises(FusionError, match=message):
        merge(base, runs, output=tmp_path / "none")


def test_what_equals_the_base_is_named(folders, tmp_path, caplog):
    base, *runs = folders
    merge(base, runs, output=tmp_path / "fused")
    assert not caplog.records
    untrained = BertModel.from_pretrained(base)
    get_peft_model(untrained, LoraConfig(target_modules=["query"])).save_pretrained(
        tmp_path / "lora"
    )
    halved = {name: tensor.bfloat16() for name, tensor in weights_of(base).items()}
    merge(base, [runs[0], tmp_path / "lora"], output=tmp_path / "with-adapter")
    merge(weights_of(base), [halved, weights_of(runs[0])])
    assert [record.getMessage().partition(": expected")[0] for record in caplog.records] == [
        f"checkpoint 1 ({tmp_path / 'lora'})",
        "checkpoint 0",
    ]


@pytest.mark.parametrize("odd", range(1, 8))
def test_tensors_may_begin_anywhere_in_a_file(tmp_path, odd):
    expected = {"x": torch.arange(5.0), "y": torch.arange(3), "z": torch.zeros(0, 2)}
    save_file(expected, tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little") + odd  # as the first writers of the form did
    header, tensors = content[8 : 8 + length - odd] + b" " * odd, content[8 + length - odd :]
    (tmp_path / "model.safetensors").write_bytes(length.to_bytes(8, "little") + header + tensors)
    assert_equal_models(Folder(tmp_path), expected, rtol=0, atol=0)


# Adapters


def adapted(model, folder, *, seed, **options):
    """Write a LoRA adapter that has learnt something; return the weights with it merged in."""
    torch.manual_seed(seed)
    options = {"r": 4, "lora_alpha": 6, "target_modules": ["query", "q_proj", "dense"]} | options
    model = get_peft_model(model, LoraConfig(**options))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape)
    model.save_pretrained(folder)
    return {n: t.clone() for n, t in model.merge_and_unload().state_dict().items()}


@pytest.mark.parametrize("architecture", ["bert", "qwen"])
@pytest.mark.parametrize(
    "options",
    [
        {"use_rslora": True, "rank_pattern": {"query": 2, "q_proj": 3}},
        {"use_dora": True},
        {"modules_to_save": ["v_proj", "value"]},
    ],
    ids=shown,
)
def test_an_adapter_is_what_peft_merges(make_architecture, tmp_path, architecture, options):
    base = make_architecture(architecture).save(tmp_path / "base")
    backbone = make_architecture(architecture).backbone
    expected = adapted(backbone, tmp_path / "lora", seed=1, **options)
    actual = weights_of(merge(base, [tmp_path / "lora"], output=tmp_path / "fused"))
    assert any(not torch.equal(actual[name], tensor) for name, tensor in Folder(base).items())
    assert_equal_models(actual, {name: expected[name] for name in actual}, rtol=0, atol=1e-6)


@pytest.mark.parametrize("whole", [False, True], ids=["without its head", "with its head"])
def test_an_adapter_may_have_been_trained_below_a_head(make_architecture, tmp_path, whole):
    encoder = make_architecture("qwen", pooling="last")
    base = encoder.save(tmp_path / "base")
    headed = Qwen2ForCausalLM(encoder.backbone.config)
    headed.model.load_state_dict(encoder.backbone.state_dict())
    if whole:  # the base was saved with the head
        headed.save_pretrained(base)
    names = [*weights_of(base)]
    expected = adapted(headed, tmp_path / "lora", seed=1)
    actual = weights_of(merge(base, [tmp_path / "lora"], output=tmp_path / "fused"))
    prefix = "" if whole else "model."
    assert_equal_models(actual, {name: expected[prefix + name] for name in names})


def test_adapters_and_whole_models_of_one_base_are_merged(make_architecture, tmp_path):
    base = make_architecture("qwen", pooling="last").save(tmp_path / "base")
    loras = [tmp_path / "lora-1", tmp_path / "lora-2"]
    parts = [
        adapted(make_architecture("qwen").backbone, lora, seed=j) for j, lora in enumerate(loras)
    ]
    output = merge(base, loras, method="uniform", output=tmp_path / "fused")
    mean = {name: (parts[0][name] + parts[1][name]) / 2 for name in parts[0]}
    loaded = Encoder.load(EncoderSettings(name=str(output)))
    assert loaded.pooling == "last"
    assert_equal_models(loaded.backbone.state_dict(), mean)
    again = merge(base, [loras[0], output], method="uniform", output=tmp_path / "again")
    expected = {name: (parts[0][name] + mean[name]) / 2 for name in mean}
    loaded = Encoder.load(EncoderSettings(name=str(again)))
    assert_equal_models(loaded.backbone.state_dict(), expected)
    assert not [*tmp_path.glob(".*")]


def test_adapters_that_fit_no_base_are_refused(make_architecture, tmp_path, monkeypatch):
    base = make_architecture("bert").save(tmp_path / "base")
    lora = tmp_path / "lora"
    adapted(make_architecture("qwen").backbone, lora, seed=1, target_modules=["q_proj"])
    with pytest.raises(
        FusionError, match=r"lora: expected an adapter that .*base, found: .*q_proj"
    ):
        merge(base, [lora], output=tmp_path / "fused")
    with pytest.raises(FusionError, match="expected a whole model as the base"):
        merge(lora, [base], output=tmp_path / "fused")
    adapted(make_architecture("bert").backbone, lora, seed=1)
    weights = load_file(lora / "adapter_model.safetensors")
    half = {name: tensor for name, tensor in weights.items() if ".lora_B." not in name}
    save_file(half, lora / "adapter_model.safetensors")
    with pytest.raises(FusionError, match=r"lora: .* missing adapter keys .*lora_B"):
        merge(base, [lora], output=tmp_path / "fused")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(FusionError, match="Run `pip install peft`"):
        merge(base, [lora], output=tmp_path / "fused")


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"alpha_pattern": {"([a-z.0-9]+)+!": 2}}, r"found '\(\[a-z"),
        ({"rank_pattern": {".*.*.*.*.*x": 2}}, r"found '\.\*"),
        ({"target_modules": "(query"}, r"found '\(query'"),
    ],
)
def test_patterns_of_an_adapter_that_may_never_end_are_refused(
    make_architecture, tmp_path, changes, found
):
    base = make_architecture("bert").save(tmp_path / "base")
    adapted(make_architecture("bert").backbone, tmp_path / "lora", seed=1)
    path = tmp_path / "lora" / "adapter_config.json"
    write_json(path, json.loads(path.read_text()) | changes)
    with pytest.raises(FusionError, match=rf"adapter_config\.json: expected patterns.*{found}"):
        merge(base, [tmp_path / "lora"], output=tmp_path / "fused")


# Links


def test_a_link_that_leads_out_of_a_model_is_not_copied(make_encoder, tmp_path):
    base, run = (make_encoder(seed=j).save(tmp_path / f"{j}") for j in range(2))
    (tmp_path / "key").write_text("private")
    (run / "notes.txt").symlink_to(tmp_path / "key")
    with pytest.raises(
        FusionError, match=r"notes\.txt: expected a file of the model, found a link"
    ):
        merge(base, [run], output=tmp_path / "fused")
    assert not (tmp_path / "fused").exists()


def test_a_snapshot_of_the_hubs_cache_has_links_to_its_blobs(make_encoder, tmp_path):
    base, run = (make_encoder(seed=j).save(tmp_path / f"{j}") for j in range(2))
    expected = weights_of(run)
    snapshot, blobs = tmp_path / "cache" / "snapshots" / "abc", tmp_path / "cache" / "blobs"
    blobs.mkdir(parents=True)
    run.rename(snapshot.parent.parent / "moved")
    shutil.copytree(snapshot.parent.parent / "moved", snapshot)
    for number, path in enumerate(path for path in snapshot.rglob("*") if path.is_file()):
        path.rename(blobs / str(number))
        path.symlink_to(blobs / str(number))
    assert_equal_models(weights_of(merge(base, [snapshot], output=tmp_path / "fused")), expected)


# Threads


@pytest.fixture
def set_threads():
    """Torch's number of threads, for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("options", [{"granularity": "tensor"}, {"method": "ties"}])
def test_the_number_of_threads_changes_no_bit(large, tmp_path, set_threads, options):
    for threads in (1, 3):
        set_threads(threads)
        merge(large[0], large[1:], output=tmp_path / f"{threads}", **options)
        assert torch.get_num_threads() == threads
    one, three = (tmp_path / name / "model.safetensors" for name in ("1", "3"))
    assert one.read_bytes() == three.read_bytes()


def test_several_tensors_are_worked_out_at_a_time(tmp_path, set_threads):
    set_threads(2)
    tensors = {"a": torch.ones(3), "b": torch.zeros(0), "c": torch.arange(4.0), "d": torch.ones(())}
    save_file(tensors, tmp_path / "model.safetensors")
    two = threading.Barrier(2)

    def work_out(name):
        two.wait(timeout=3600)  # for another thread that is at work, in vain if there is none
        assert torch.get_num_threads() == 1
        return tensors[name]

    written = tmp_path / "written.safetensors"
    write_tensors(written, Folder(tmp_path).places, Lazy(tensors, work_out))
    assert_equal_models(load_file(written), tensors)


# Memory and kills


@pytest.fixture
def large(tmp_path):
    """A base and two checkpoints of 48 tensors, 2 MiB each."""
    paths = [tmp_path / name for name in ("base", "run-1", "run-2")]
    for seed, path in enumerate(paths):
        path.mkdir()
        generator = torch.Generator().manual_seed(seed)
        tensors = {f"layer.{i}.w": torch.randn(1 << 19, generator=generator) for i in range(48)}
        save_file(tensors, path / "model.safetensors")
    return paths


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize("method", ["delta", "uniform"])
def test_memory_does_not_grow_with_the_model(large, tmp_path, method):
    base, *runs = map(str, large)
    output = str(tmp_path / "fused")
    kib = growth(
        "from codiemb_lib import merge; merge",
        f"merge({base!r}, {runs!r}, output={output!r}, method={method!r})",
    )
    assert 0 < kib < 80 * 1024  # a single model has 96 MiB


def test_a_kill_leaves_no_half_written_model(large, tmp_path):
    (tmp_path / "out").mkdir()
    code = "import sys; from codiemb_lib import merge; *models, output = sys.argv[1:]; "
    code += "merge(models[0], models[1:], output=output, method='ties')"
    arguments = [*map(str, large), str(tmp_path / "out" / "fused")]
    process = subprocess.Popen([sys.executable, "-c", code, *arguments])
    deadline = time.monotonic() + 3600
    while not list((tmp_path / "out").glob(".*/fused/model.safetensors")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=3600)
    assert not (tmp_path / "out" / "fused").exists()
    merge(large[0], large[1:], output=tmp_path / "out" / "fused")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["fused"]
