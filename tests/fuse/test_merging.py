"""Recipes: what they refuse before any work, and the complete model that comes out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from codiemb_lib.app.cli import main
from codiemb_lib.core.files import read_json, sha256_file, write_json
from codiemb_lib.core.preset import EncoderSettings, load_preset, preset_path
from codiemb_lib.fuse import merging
from codiemb_lib.fuse.merging import fuse_recipe, merge
from codiemb_lib.fuse.tensors import FusionError
from codiemb_lib.model import Encoder, model_hash
from codiemb_lib.train import training_gradient

TEXTS = ["find the old red car", "a new blue bus"]
RUNS = ("balanced", "retrieval")


@pytest.fixture
def make_kitchen(tmp_path, make_architecture):
    """A function that makes a base and two runs of it in `models`; returns that folder."""

    def make(architecture: str = "bert", **options):
        encoder = make_architecture(architecture, **options)
        encoder.save(tmp_path / "models" / "base")
        for seed, run in enumerate(RUNS):
            generator = torch.Generator().manual_seed(seed)
            for parameter in encoder.backbone.parameters():
                parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
            encoder.save(tmp_path / "models" / run / "model")
        return tmp_path / "models"

    return make


def write_recipe(kitchen, **changes):
    recipe = {
        "base": "base",
        "ingredients": {"balanced": "balanced/model", "retrieval": "retrieval/model"},
    }
    path = kitchen / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe | changes))
    return path


@pytest.mark.parametrize(
    ("architecture", "pooling"),
    [("bert", "mean"), ("xlm-roberta", "cls"), ("qwen", "last"), ("minicpm", "mean")],
)
def test_a_recipe_gives_a_complete_model(make_kitchen, tmp_path, capsys, architecture, pooling):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    kitchen = make_kitchen(architecture, pooling=pooling, prompts={"query": "find : "})
    keep = {"*embed*": "base", "*orm*": "retrieval"}
    recipe = write_recipe(kitchen, granularity="layer", power=2, scale=0.9, keep=keep)
    output = tmp_path / "fused"
    assert main(["fuse", str(recipe), str(output)]) == 0

    fused = load_file(output / "model.safetensors")
    assert capsys.readouterr().out == f"{output}: merged from balanced, retrieval\n"
    changed = (output / "model.safetensors").stat().st_mtime_ns
    assert main(["fuse", str(recipe), str(output)]) == 0  # what the same call made is kept
    assert (output / "model.safetensors").stat().st_mtime_ns == changed
    other = write_recipe(kitchen, granularity="layer", power=3)
    assert main(["fuse", str(other), str(output)]) == 2
    assert "expected a new or an empty folder" in capsys.readouterr().err
    base, *runs = (
        load_file(kitchen / folder / "model.safetensors")
        for folder in ("base", "balanced/model", "retrieval/model")
    )
    keep = {"*embed*": "base", "*orm*": 1}
    expected = merge(base, runs, granularity="layer", power=2, scale=0.9, keep=keep)
    torch.testing.assert_close(dict(sorted(fused.items())), dict(sorted(expected.items())))

    encoder = Encoder.load(EncoderSettings(name=str(output)))
    assert encoder.pooling == pooling
    assert encoder.prompts["query"] == "find : "
    theirs = sentence_transformers.SentenceTransformer(str(output), device="cpu")
    np.testing.assert_allclose(theirs.encode(TEXTS), encoder.encode(TEXTS), atol=1e-5)


@pytest.mark.parametrize("library", ["sentence-transformers", "transformers"])
def test_the_card_says_how_the_model_was_made(make_kitchen, tmp_path, library):
    kitchen = make_kitchen()
    for file in kitchen.rglob("modules.json") if library == "transformers" else ():
        file.unlink()  # as transformers saves a model
    files = ["model.safetensors"]
    if library == "sentence-transformers":
        files.append("3_Dense/model.safetensors")
        for number, folder in enumerate(("base", "balanced/model", "retrieval/model")):
            modules = read_json(kitchen / folder / "modules.json")
            dense = {"type": "sentence_transformers.models.Dense", "path": "3_Dense"}
            write_json(kitchen / folder / "modules.json", [*modules, dense])
            (kitchen / folder / "3_Dense").mkdir()
            dense = {"linear.weight": torch.full((2, 2), float(number))}
            save_file(dense, kitchen / folder / "3_Dense" / "model.safetensors")
    recipe = write_recipe(kitchen, method="ties", density=0.5)
    fuse_recipe(recipe, tmp_path / "fused")
    card = (tmp_path / "fused" / "README.md").read_text()
    _, head, body = card.split("---\n", 2)
    head = yaml.safe_load(head)
    assert head["library_name"] == library
    assert head["base_model"] == "base"
    assert yaml.safe_load(body.split("```yaml\n")[1].split("```")[0]) == yaml.safe_load(
        recipe.read_text()
    )
    for run in ("balanced", "retrieval"):
        for file in files:
            digest = sha256_file(kitchen / run / "model" / file)
            assert f"| {run} | yes | {file} | {digest} |" in body
    assert "arXiv 2306.01708" in body
    assert "$$" in body
    assert ":math:" not in body
    assert "torch 2" in body


def test_greedy_soup_is_scored_on_dev(make_kitchen, tmp_path, monkeypatch, capsys):
    kitchen = make_kitchen()
    looked_at, read = [], []

    def spread(encoder, preset, split, *, data):  # stands for the scores: the mean of a weight
        assert (preset.name, split, data) == ("smoke", "dev", dict.fromkeys(read))
        looked_at.append(encoder.backbone.embeddings.LayerNorm.bias.mean().item())
        return looked_at[-1]

    monkeypatch.setattr("codiemb_lib.data.load_dataset", lambda name, root: read.append(name))
    monkeypatch.setattr("codiemb_lib.evaluate.encode_split", spread)
    monkeypatch.setattr("codiemb_lib.evaluate.score", lambda found: found)
    monkeypatch.setattr(merging, "mean_of_tasks", lambda found: found)
    recipe = write_recipe(kitchen, method="greedy", dev="smoke")
    assert main(["fuse", str(recipe), str(tmp_path / "fused")]) == 0
    assert read == [d.name for d in load_preset("smoke").datasets if d.dev != 0]
    name = "embeddings.LayerNorm.bias"
    means = {
        run: load_file(kitchen / run / "model" / "model.safetensors")[name].mean().item()
        for run in ("balanced", "retrieval")
    }
    assert looked_at == pytest.approx([*means.values(), sum(means.values()) / 2])
    best = max(means, key=means.get)
    assert capsys.readouterr().out.endswith(f"fused: merged from {best}\n")
    assert {path.name for path in tmp_path.iterdir()} == {"models", "fused"}
    card = (tmp_path / "fused" / "README.md").read_text()
    assert f"| {best} | yes |" in card
    assert card.count("| no |") == 1


def test_a_greedy_soup_of_real_scores(make_kitchen, tmp_path):
    preset = yaml.safe_load(preset_path("smoke").read_text())
    preset["name"], preset["encoder"] = "tiny", {"name": "unused", "max_length": 16}
    preset["datasets"][-1] |= {"train": 0, "dev": 0}  # for its test records alone
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(preset))
    recipe = write_recipe(make_kitchen(), method="greedy", dev=str(tmp_path / "tiny.yaml"))
    kept = fuse_recipe(recipe, tmp_path / "fused")
    assert kept in (["balanced"], ["retrieval"], ["balanced", "retrieval"])


def test_learned_coefficients_follow_training_batches_of_the_recipes_preset(
    make_kitchen, tmp_path, capsys
):
    content = yaml.safe_load(preset_path("smoke").read_text())
    content["name"], content["encoder"] = "tiny", {"name": "unused", "max_length": 16}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content))
    kitchen, preset = make_kitchen(), str(tmp_path / "tiny.yaml")
    recipe = write_recipe(kitchen, method="learned", train=preset, steps=3, rate=0.1)
    assert main(["fuse", str(recipe), str(tmp_path / "fused")]) == 0
    settings = load_preset(preset)
    named = settings.encoder.model_copy(update={"name": str(kitchen / "base")})
    encoder = Encoder.load(named)
    gradient = training_gradient(settings, encoder, 0)
    base = {n: t.clone() for n, t in encoder.backbone.state_dict().items()}
    runs = [load_file(kitchen / run / "model" / "model.safetensors") for run in RUNS]
    options = {"method": "learned", "steps": 3, "rate": 0.1}
    expected = merge(base, [{n: r[n] for n in base} for r in runs], gradient=gradient, **options)
    fused = load_file(tmp_path / "fused" / "model.safetensors")
    torch.testing.assert_close({n: fused[n] for n in base}, expected)
    soup = merge(base, [{n: r[n] for n in base} for r in runs], method="uniform")
    assert any(not torch.equal(soup[n], expected[n]) for n in base)


def test_ingredients_may_be_a_list_and_settings_come_from_whom_one_names(make_kitchen, tmp_path):
    kitchen = make_kitchen()
    file = kitchen / "retrieval" / "model" / "sentence_bert_config.json"
    write_json(file, read_json(file) | {"max_seq_length": 9})
    paths = ["balanced/model", "retrieval/model"]
    with pytest.raises(FusionError, match="name the one whose settings the result takes"):
        fuse_recipe(write_recipe(kitchen, ingredients=paths), tmp_path / "fused")
    recipe = write_recipe(kitchen, ingredients=paths, settings_from=paths[1])
    assert fuse_recipe(recipe, tmp_path / "fused") == paths
    fused = Encoder.load(EncoderSettings(name=str(tmp_path / "fused")))
    assert fused.tokenizer.max_length == 9


def test_runs_that_started_elsewhere_are_refused(make_kitchen, tmp_path):
    kitchen = make_kitchen()
    recipe = write_recipe(kitchen)
    base = model_hash(EncoderSettings(name=str(kitchen / "base")))
    weights = sha256_file(kitchen / "base" / "model.safetensors")
    for number, known in enumerate((base, weights)):
        write_json(kitchen / "balanced" / "manifest.json", {"settings": {"model_hash": known}})
        assert fuse_recipe(recipe, tmp_path / f"fused-{number}")
    write_json(kitchen / "retrieval" / "manifest.json", {"settings": {"model_hash": "0" * 64}})
    with pytest.raises(FusionError, match=r"retrieval/manifest\.json: .*another model .*0{12}\)"):
        fuse_recipe(recipe, tmp_path / "fused")
    with pytest.raises(FusionError, match=r"retrieval/manifest\.json"):
        merge(kitchen / "base", [kitchen / "retrieval" / "model"], output=tmp_path / "fused")


def test_runs_of_the_first_layers_of_a_packaged_encoder_are_fused(tmp_path):
    settings = load_preset("smoke").encoder
    encoder = Encoder.load(settings)
    hash_of_all = model_hash(settings)
    for number in range(2):
        encoder.save(tmp_path / f"run-{number}" / "model")
        write_json(
            tmp_path / f"run-{number}" / "manifest.json", {"settings": {"model_hash": hash_of_all}}
        )
    recipe = write_recipe(
        tmp_path, base=settings.name, ingredients=["run-0/model", "run-1/model"], method="uniform"
    )
    fuse_recipe(recipe, tmp_path / "fused")
    again = Encoder.load(EncoderSettings(name=str(tmp_path / "fused")))
    assert len(again.backbone.encoder.layer) == settings.layers < 6
    np.testing.assert_allclose(again.eval().encode(TEXTS), encoder.eval().encode(TEXTS), atol=1e-6)


def test_a_killed_search_for_a_greedy_soup_leaves_nothing_for_long(
    make_kitchen, tmp_path, monkeypatch
):
    kitchen = make_kitchen()
    left = []

    def killed(*_, **__):
        left.extend(tmp_path.glob(".fused.*.partial"))
        raise KeyboardInterrupt

    monkeypatch.setattr("codiemb_lib.evaluate.encode_split", killed)
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)  # a kill clears up nothing
    with pytest.raises(KeyboardInterrupt):
        fuse_recipe(write_recipe(kitchen, method="greedy", dev="smoke"), tmp_path / "fused")
    monkeypatch.undo()
    assert left
    assert left[0].exists()
    fuse_recipe(write_recipe(kitchen), tmp_path / "fused")
    assert {path.name for path in tmp_path.iterdir()} == {"models", "fused"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bsae": "x"}, "unknown key 'bsae': .* Did you mean 'base'"),
        ({"method": "slerp", "ingredients": ["x", "y", "z"]}, "exactly 2 models, found 3"),
        ({"ingredients": {}}, "ingredients: .*at least 1 item"),
        ({"ingredients": ["x", "x"]}, "ingredients: .*each ingredient once"),
        ({"ingredients": ["x", "./x/"]}, "ingredients: .*each ingredient once"),
        ({"ingredients": 3}, "ingredients: .*valid dictionary"),
        ({"ingredients": {"base": "x"}}, "ingredients: .*other names than `base`"),
        ({"keep": {"*": "retreival"}}, "unknown ingredient 'retreival'.*mean 'retrieval'"),
        ({"settings_from": "bass"}, "unknown ingredient 'bass'.*mean 'base'"),
        ({"method": "greedy"}, "expected `dev`.*found dev: ''"),
        ({"method": "learned"}, "expected `train`.*with `method: learned`.*found train: ''"),
        ({"dev": "smoke"}, "with `method: greedy` and no other, found dev: 'smoke' with delta"),
    ],
)
def test_recipes_that_cannot_be_made_are_refused_before_any_work(tmp_path, changes, message):
    with pytest.raises(FusionError, match=message):
        fuse_recipe(write_recipe(tmp_path, **changes), tmp_path / "fused")


def test_what_is_missing_takes_one_line(make_kitchen, tmp_path, capsys):
    kitchen = make_kitchen()

    def error_of(recipe, output="fused"):
        assert main(["fuse", str(recipe), str(tmp_path / output)]) == 2
        [line] = capsys.readouterr().err.splitlines()
        return line

    assert "expected a file that can be read" in error_of(tmp_path / "none.yaml")
    (tmp_path / "on.yaml").write_text("base: b\ningredients: [x, y]\non: 3")  # not true
    assert "unknown key 'on'" in error_of(tmp_path / "on.yaml")
    assert "nowhere: expected a model folder" in error_of(
        write_recipe(kitchen, ingredients=["nowhere"])
    )
    assert "unknown encoder 'bass'" in error_of(write_recipe(kitchen, base="bass"))
    assert "found content" in error_of(write_recipe(kitchen), output="models")
    assert not (tmp_path / "fused").exists()
