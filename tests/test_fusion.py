"""Fusion: its algebra, its weights against loops, model folders in and out, and its refusals."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from codiemb_lib import encoder as encoder_module
from codiemb_lib.encoder import Encoder, EncoderSettings
from codiemb_lib.fusion import (
    GRANULARITIES,
    METHODS,
    delta_guided_weights,
    delta_norms,
    fuse,
    layer_of,
)

SHAPES = {
    "embeddings.word_embeddings.weight": (5, 3),
    "encoder.layer.0.dense.weight": (3, 3),
    "encoder.layer.0.dense.bias": (3,),
    "encoder.layer.1.dense.weight": (3, 3),
    "pooler.scale": (),
}


def make_model(seed, base=None, size=1.0, dtype=torch.float64):
    """A random model, or a random walk of step `size` away from `base`."""
    generator = torch.Generator().manual_seed(seed)
    model = {
        name: size * torch.randn(shape, generator=generator, dtype=dtype)
        for name, shape in SHAPES.items()
    }
    return model if base is None else {name: base[name] + model[name] for name in SHAPES}


BASE = make_model(0)
CHECKPOINTS = [make_model(j, BASE, size=0.1 * j) for j in (1, 2, 3)]
ALL_OPTIONS = [{"method": "uniform"}] + [
    {"granularity": granularity, "power": power}
    for granularity in GRANULARITIES
    for power in (-1.0, 0.0, 1.0, 2.0)
]


def assert_equal_models(actual, expected, **tolerance):
    assert list(actual) == list(expected)
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], **tolerance)


# Weights


def slow_weights(group_of, power):
    """Weights by group of names, from the formula, in Python floats."""
    weights = {}
    for group in {group_of(name) for name in SHAPES}:
        norms = [
            math.sqrt(
                sum(
                    ((checkpoint[name] - BASE[name]) ** 2).sum().item()
                    for name in SHAPES
                    if group_of(name) == group
                )
            )
            for checkpoint in CHECKPOINTS
        ]
        total = sum(norm**power for norm in norms)
        weights[group] = torch.tensor([norm**power / total for norm in norms], dtype=torch.float64)
    return {name: weights[group_of(name)] for name in SHAPES}


@pytest.mark.parametrize("power", [-1.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize(
    ("granularity", "group_of"),
    [
        ("model", lambda name: "all"),
        ("layer", lambda name: name.split(".dense")[0]),
        ("tensor", lambda name: name),
    ],
)
def test_weights_follow_the_norm_of_their_group(granularity, group_of, power):
    actual = delta_guided_weights(BASE, CHECKPOINTS, granularity=granularity, power=power)
    assert_equal_models(actual, slow_weights(group_of, power))


def test_weights_by_element_follow_each_element():
    name = "embeddings.word_embeddings.weight"
    weights = delta_guided_weights(BASE, CHECKPOINTS, granularity="element", power=2.0)[name]
    assert weights.shape == (3, 5, 3)
    moved = [abs(checkpoint[name][4, 1] - BASE[name][4, 1]).item() for checkpoint in CHECKPOINTS]
    expected = [v**2 / sum(u**2 for u in moved) for v in moved]
    assert weights[:, 4, 1].tolist() == pytest.approx(expected)


@settings(max_examples=60, deadline=None)
@given(
    granularity=st.sampled_from(GRANULARITIES),
    power=st.floats(-30, 30),
    sizes=st.lists(st.sampled_from([0.0, 1e-6, 0.1, 1.0, 1e4]), min_size=1, max_size=4),
)
def test_weights_are_proportions_whatever_the_power(granularity, power, sizes):
    checkpoints = [make_model(j, BASE, size=size) for j, size in enumerate(sizes)]
    for weights in delta_guided_weights(
        BASE, checkpoints, granularity=granularity, power=power
    ).values():
        assert (weights >= 0).all()
        torch.testing.assert_close(weights.sum(dim=0), torch.ones_like(weights[0]))


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("power", [-1.0, 0.0, 1.0])
def test_deltas_of_zero_get_equal_weights(granularity, power):
    for weights in delta_guided_weights(
        BASE, [BASE, BASE], granularity=granularity, power=power
    ).values():
        assert (weights == 0.5).all()


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_who_did_not_move_takes_all_under_a_negative_power_and_nothing_under_a_positive(
    granularity,
):
    ingredients = [CHECKPOINTS[0], BASE, CHECKPOINTS[1], BASE]
    for power, still in ((-1.0, 0.5), (1.0, 0.0)):
        for weights in delta_guided_weights(
            BASE, ingredients, granularity=granularity, power=power
        ).values():
            assert (weights[[1, 3]] == still).all()
            if power < 0:
                assert (weights[[0, 2]] == 0).all()


def test_delta_norms():
    norms = delta_norms(BASE, CHECKPOINTS)
    assert list(norms) == list(SHAPES)
    for name in SHAPES:
        expected = [float((checkpoint[name] - BASE[name]).norm()) for checkpoint in CHECKPOINTS]
        assert norms[name].tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("embeddings.word_embeddings.weight", -1),
        ("model.embed_tokens.weight", -1),
        ("encoder.layer.11.attention.self.query.weight", 11),
        ("layers.3.mlp.down_proj.weight", 3),
        ("h.2.attn.c_proj.weight", 2),
        ("0.auto_model.encoder.layer.4.output.dense.bias", 4),
        ("pooler.dense.weight", None),
        ("norm.weight", None),
    ],
)
def test_layer_of(name, layer):
    assert layer_of(name) == layer


# Algebra of merging


@pytest.mark.parametrize("options", ALL_OPTIONS, ids=str)
def test_order_of_ingredients_does_not_matter(options):
    assert_equal_models(
        fuse(BASE, CHECKPOINTS[::-1], **options), fuse(BASE, CHECKPOINTS, **options)
    )


@pytest.mark.parametrize("options", ALL_OPTIONS, ids=str)
def test_one_ingredient_and_equal_ingredients_are_themselves(options):
    assert_equal_models(fuse(BASE, CHECKPOINTS[:1], **options), CHECKPOINTS[0])
    assert_equal_models(fuse(BASE, CHECKPOINTS[:1] * 3, **options), CHECKPOINTS[0])


@pytest.mark.parametrize("options", ALL_OPTIONS, ids=str)
def test_zero_deltas_and_scale_zero_are_the_base(options):
    assert_equal_models(fuse(BASE, [BASE, BASE], **options), BASE, rtol=0, atol=0)
    assert_equal_models(fuse(BASE, CHECKPOINTS, scale=0.0, **options), BASE, rtol=0, atol=0)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_power_zero_is_the_soup(granularity):
    soup = fuse(BASE, CHECKPOINTS, method="uniform")
    assert_equal_models(soup, {n: sum(c[n] for c in CHECKPOINTS) / 3 for n in SHAPES})
    assert_equal_models(fuse(BASE, CHECKPOINTS, granularity=granularity, power=0.0), soup)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_merge_is_base_plus_scaled_weighted_deltas(granularity):
    weights = delta_guided_weights(BASE, CHECKPOINTS, granularity=granularity, power=2.0)
    expected = {
        name: BASE[name]
        + 0.7
        * sum(w * (c[name] - BASE[name]) for w, c in zip(weights[name], CHECKPOINTS, strict=True))
        for name in SHAPES
    }
    options = {"granularity": granularity, "power": 2.0, "scale": 0.7}
    assert_equal_models(fuse(BASE, CHECKPOINTS, **options), expected)


def test_a_new_method_is_one_function(monkeypatch):
    monkeypatch.setitem(METHODS, "first", lambda base, models: models[0])
    assert_equal_models(fuse(BASE, CHECKPOINTS, method="first"), CHECKPOINTS[0])


# Types


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_accumulates_in_float32(dtype):
    # In half precision the mean of these would lose the small deltas on the way.
    base = {"w": torch.zeros(1, dtype=dtype)}
    values = [1024.0, *[1.0] * 15]
    merged = fuse(base, [{"w": torch.full((1,), v, dtype=dtype)} for v in values], method="uniform")
    assert merged["w"].dtype == dtype
    assert merged["w"] == torch.tensor([sum(values) / 16]).to(dtype)


def test_the_type_is_that_of_the_first_checkpoint():
    base = {"w": torch.zeros(2, dtype=torch.float16)}
    assert fuse(base, [{"w": torch.ones(2)}])["w"].dtype == torch.float32


def test_integer_tensors_are_copied_and_must_be_equal():
    base, one, other = (
        model | {"positions": torch.arange(4)} for model in (BASE, *CHECKPOINTS[:2])
    )
    merged = fuse(base, [one, other])
    assert merged["positions"].tolist() == [0, 1, 2, 3]
    assert "positions" not in delta_guided_weights(base, [one, other])
    other["positions"] = torch.arange(4).flip(0)
    with pytest.raises(ValueError, match=r"checkpoint 1: .* integers .* positions"):
        fuse(base, [one, other])


def test_ingredients_are_left_alone():
    before = [{name: tensor.clone() for name, tensor in model.items()} for model in CHECKPOINTS]
    for tensor in fuse(BASE, CHECKPOINTS).values():
        tensor.zero_()
    for model, copy in zip(CHECKPOINTS, before, strict=True):
        assert_equal_models(model, copy, rtol=0, atol=0)


# Refusals


def test_other_names_and_shapes_are_listed():
    wrong = dict(CHECKPOINTS[0])
    del wrong["pooler.scale"]
    wrong["encoder.layer.0.dense.bias"] = torch.zeros(4)
    with pytest.raises(ValueError, match=r"checkpoint 1: .* 2 that differ") as caught:
        fuse(BASE, [CHECKPOINTS[0], wrong])
    assert "encoder.layer.0.dense.bias (floating [4] beside floating [3])" in str(caught.value)
    assert "pooler.scale (missing beside ())" in str(caught.value)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_values_that_are_not_finite_are_named(value, granularity):
    broken = {name: tensor.clone() for name, tensor in CHECKPOINTS[0].items()}
    broken["encoder.layer.1.dense.weight"][0, 0] = value
    with pytest.raises(ValueError, match=r"checkpoint 1: .* encoder\.layer\.1\.dense\.weight"):
        fuse(BASE, [CHECKPOINTS[0], broken], granularity=granularity)
    with pytest.raises(ValueError, match=r"base: .* encoder\.layer\.1\.dense\.weight"):
        delta_norms(broken, CHECKPOINTS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "unifrom"}, "delta, uniform, .*, found 'unifrom'. Did you mean 'uniform'"),
        ({"method": "???"}, "delta, uniform, .*, found '\\?\\?\\?'.$"),
        ({"granularity": "tensors"}, "model, layer, tensor, element.*mean 'tensor'"),
        ({"power": math.nan}, "power: expected a finite number"),
        ({"scale": math.inf}, "scale: expected a finite number"),
        ({"output": "somewhere"}, "returns a mapping when they are mappings"),
    ],
)
def test_unusable_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        fuse(BASE, CHECKPOINTS, **options)


def test_unusable_lists_are_refused():
    with pytest.raises(ValueError, match="one model or more, found none"):
        fuse(BASE, [])
    with pytest.raises(TypeError, match="found a single one"):
        fuse(BASE, CHECKPOINTS[0])
    with pytest.raises(ValueError, match=r"found 'powr'\. Did you mean 'power'"):
        fuse(BASE, CHECKPOINTS, powr=2.0)


# Folders


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


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("options", [{"method": "uniform"}, {"granularity": "layer", "power": 2.0}])
def test_folders_merge_like_their_tensors(folders, tmp_path, options):
    base, *runs = folders
    output = fuse(base, runs, output=tmp_path / "fused", **options)
    expected = fuse(weights_of(base), [weights_of(run) for run in runs], **options)
    actual = weights_of(output)
    assert_equal_models(actual, {name: expected[name] for name in actual}, rtol=0, atol=0)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_norms_and_weights_are_read_from_folders(folders):
    base, *runs = folders
    tensors = weights_of(base), [weights_of(run) for run in runs]
    for function in (delta_norms, delta_guided_weights):
        actual, expected = function(base, runs), function(*tensors)
        assert_equal_models(dict(sorted(actual.items())), dict(sorted(expected.items())))


def test_a_fused_folder_is_a_complete_model(folders, tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    base, *runs = folders
    texts = ["find the old red car", "a new blue bus"]
    same = fuse(base, runs, output=tmp_path / "same", scale=0.0)
    moved = fuse(base, runs, output=tmp_path / "moved")

    def encode(folder):
        return Encoder.load(EncoderSettings(name=str(folder))).encode(texts)

    np.testing.assert_array_equal(encode(same), encode(base))
    assert not np.allclose(encode(moved), encode(base), atol=1e-4)
    theirs = sentence_transformers.SentenceTransformer(str(moved), device="cpu").encode(texts)
    np.testing.assert_allclose(theirs, encode(moved), atol=1e-5)
    with safe_open(moved / "model.safetensors", framework="pt") as weights:
        assert weights.metadata() == {"format": "pt"}


def test_stale_weights_and_cards_are_not_copied(folders, tmp_path):
    base, *runs = folders
    for name in ("pytorch_model.bin", "README.md", "optimizer.pt"):
        (runs[0] / name).write_bytes(b"of one checkpoint alone")
    output = fuse(base, runs, output=tmp_path / "fused")
    assert {path.name for path in output.iterdir()} == {path.name for path in folders[0].iterdir()}


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
        (folder / "3_Dense").mkdir()
        dense = {"linear.weight": torch.full((2, 2), float(seed))}
        save_file(dense, folder / "3_Dense" / "model.safetensors")
    output = fuse(base, runs, method="uniform", output=tmp_path / "fused")
    index = json.loads((output / "model.safetensors.index.json").read_text())["weight_map"]
    for name, file in index.items():
        mean = sum(load_file(run / file)[name] for run in runs) / 2
        torch.testing.assert_close(load_file(output / file)[name], mean)
    dense = load_file(output / "3_Dense" / "model.safetensors")["linear.weight"]
    assert (dense == 1.5).all()


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": "other"}),
        ("config_sentence_transformers.json", {"prompts": {"query": "find : "}}),
        ("sentence_bert_config.json", {"max_seq_length": 7}),
        ("tokenizer.json", {"normalizer": None}),
    ],
)
def test_checkpoints_with_other_settings_are_refused(folders, tmp_path, file, changes):
    base, *runs = folders
    edit_json(runs[1] / file, **changes)
    with pytest.raises(ValueError, match=f"run-2: expected the {file}"):
        fuse(base, runs, output=tmp_path / "fused")
    (runs[1] / file).unlink()
    with pytest.raises(ValueError, match=f"run-2: expected the {file}"):
        fuse(base, runs, output=tmp_path / "fused")
    assert not (tmp_path / "fused").exists()


def test_other_library_versions_and_tokenizer_states_are_accepted(folders, tmp_path):
    base, *runs = folders
    edit_json(runs[1] / "config_sentence_transformers.json", __version__={"torch": "1"})
    edit_json(runs[1] / "tokenizer.json", truncation=None)
    assert fuse(base, runs, output=tmp_path / "fused").is_dir()


def test_pickled_and_missing_models_are_refused(folders, tmp_path):
    base, *runs = folders
    (runs[0] / "model.safetensors").rename(runs[0] / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"run-1: .* pickled weights \(pytorch_model\.bin\)"):
        fuse(base, runs, output=tmp_path / "fused")
    shutil.rmtree(runs[0])
    with pytest.raises(FileNotFoundError, match="run-1: expected a model folder"):
        fuse(base, runs, output=tmp_path / "fused")


def test_a_tensor_that_stands_twice_is_refused(folders, tmp_path):
    base, *runs = folders
    shutil.copy(runs[0] / "model.safetensors", runs[0] / "old.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors and in old\.safetensors"):
        fuse(base, runs, output=tmp_path / "fused")


def test_an_output_with_content_is_refused(folders, tmp_path):
    base, *runs = folders
    (tmp_path / "empty").mkdir()
    assert fuse(base, runs, output=tmp_path / "empty").is_dir()
    with pytest.raises(FileExistsError, match="a new or an empty folder"):
        fuse(base, runs, output=tmp_path / "empty")
    with pytest.raises(ValueError, match="found output=None with folders"):
        fuse(base, runs)


def test_a_failure_leaves_nothing_behind(folders, tmp_path):
    base, *runs = folders
    tensors = weights_of(runs[1])
    tensors["embeddings.LayerNorm.bias"][0] = math.nan
    save_file(tensors, runs[1] / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"checkpoint 1 \(.*run-2\): .* embeddings\.LayerNorm"):
        fuse(base, runs, output=tmp_path / "deep" / "fused")
    assert not any((tmp_path / "deep").iterdir())


def test_the_packaged_base_fuses_with_what_we_save_of_it(tmp_path):
    encoder = Encoder.load(EncoderSettings(name="minilm-l6"))
    checkpoint = encoder.save(tmp_path / "run")
    base = encoder_module._packaged_folder("minilm-l6")
    fused = fuse(base, [checkpoint, checkpoint], method="uniform", output=tmp_path / "fused")
    again = Encoder.load(EncoderSettings(name=str(fused)))
    torch.testing.assert_close(again.backbone.state_dict(), encoder.backbone.state_dict())
