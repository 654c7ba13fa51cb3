"""Presets: those that we ship load; those that cannot be run are refused with the remedy."""

import json
from typing import Any

import numpy as np
import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig
from pydantic import RootModel, ValidationError

from codiemb_lib.core.files import data_root, project_root
from codiemb_lib.core.merge import FusionStudy, Merge, soup_of
from codiemb_lib.core.preset import ObjectiveSettings, PresetError, load_preset, preset_path
from codiemb_lib.core.settings import read_settings

SHIPPED = sorted(path.stem for path in preset_path("x").parent.glob("*.yaml"))
ACCELERATE = preset_path("x").parent / "accelerate"


def variation(tmp_path, change) -> str:
    content = yaml.safe_load(preset_path("smoke").read_text())
    change(content)
    path = tmp_path / "smoke.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_presets_load(name):
    preset = load_preset(name)
    assert preset.name == name
    assert preset.models[0] == "base"


def test_drawn_models_are_those_named_or_else_the_base_and_three_variants(tmp_path):
    def named(content):
        content["geometry"]["umap_variants"] = ["codiemb", "base"]

    assert load_preset(variation(tmp_path, named)).drawn_models == ["codiemb", "base"]

    def unnamed(content):
        del content["geometry"]
        content["variants"] |= {name: {} for name in ("b", "a", "d", "c")}

    preset = load_preset(variation(tmp_path, unnamed))
    assert preset.drawn_models == preset.models[:4]
    one = preset.model_copy(update={"variants": {"b": preset.variants["b"]}})
    assert one.drawn_models == ["base", "b"]


PAPER = {
    "bge": ("cls", "no", 5e-5, 5, 64, 32, 512),
    "e5": ("mean", "no", 5e-5, 5, 64, 32, 512),
    "minicpm": ("mean", "bf16", 4e-5, 4, 28, 32, 1024),
}


@pytest.mark.parametrize("encoder", PAPER)
def test_presets_of_the_paper_have_its_settings(encoder):
    preset = load_preset(f"cmteb-{encoder}")
    training, sizes = preset.training, preset.training.batch_sizes
    accelerate = yaml.safe_load((ACCELERATE / f"{training.accelerate}.yaml").read_text())
    assert PAPER[encoder] == (
        preset.encoder.pooling,
        accelerate["mixed_precision"],
        training.learning_rate,
        training.epochs,
        sizes.ir,
        sizes.sts,
        preset.encoder.max_length,
    )
    assert (training.warmup, training.weight_decay, preset.seeds) == (0.03, 0, (49,))
    assert training.gradient_checkpointing
    assert training.clip_norm is None
    assert (preset.objective.positives, preset.objective.negatives) == (2, 4)
    assert preset.encoder.trust_remote_code == (encoder == "minicpm")


RETRIEVAL = "T2 MMarco Du Covid Cmedqa Ecom Medical Video"
SIMILARITY = "AFQMC ATEC BQ LCQMC PAWSX STSB QBQTC"


@pytest.mark.parametrize("encoder", PAPER)
def test_presets_of_the_paper_prompt_its_fifteen_tasks(encoder):
    preset = load_preset(f"cmteb-{encoder}")
    retrieval = [f"{name}Retrieval" for name in RETRIEVAL.split()]
    assert list(preset.benchmark) == retrieval + SIMILARITY.split()
    said = yaml.safe_load((preset_path("x").parent / "instructions" / "cmteb.yaml").read_text())
    passage = {"bge": "Passage: "}.get(encoder, "")
    for task, prompts in preset.benchmark.items():
        assert prompts.query_prompt == f"Instruction: {said['chinese'][task]} Query: "
        assert prompts.passage_prompt == passage
    trained = {dataset.name: dataset.query_prompt for dataset in preset.datasets}
    for name in ("afqmc", "bq", "lcqmc", "pawsx", "stsb"):
        assert trained[f"cmteb-{name}"] == preset.benchmark[name.upper()].query_prompt
    assert trained["cmteb-t2-reranking"] == preset.benchmark["T2Retrieval"].query_prompt


def test_instructions_are_those_of_the_authors_in_both_languages(tmp_path):
    path = project_root().parent / "shared" / "cmteb-instructions.json"
    if not path.is_file():
        pytest.skip("the authors' list of instructions is not at hand")
    theirs, ours = json.loads(path.read_text()), preset_path("x").parent / "instructions/cmteb.yaml"
    both = {lang: theirs[lang]["IR"] | theirs[lang]["STS"] for lang in ("chinese", "english")}
    assert yaml.safe_load(ours.read_text()) == both


def test_instructions_fill_in_what_has_no_prompt_of_its_own(tmp_path):
    def change(content):
        content["instructions"] = own = {"file": "cmteb", "language": "english", "form": "Do {}: "}
        content["benchmark"] = {"BQ": {"query_prompt": "own: "}, "ATEC": {}}
        content["datasets"][0]["instruction"] = "T2Retrieval"
        own["passage_prompt"] = "P: "

    preset = load_preset(variation(tmp_path, change))
    first, second, *_ = preset.datasets
    assert first.query_prompt.startswith("Do Given a Chinese search query, retrieve web passages")
    assert (first.query_prompt[-2:], first.passage_prompt) == (": ", "P: ")
    assert (second.query_prompt, second.passage_prompt) == ("", "")
    assert preset.benchmark["BQ"].query_prompt == "own: "
    assert preset.benchmark["ATEC"].query_prompt.startswith("Do Represent the text")


@pytest.mark.parametrize(
    ("section", "found"),
    [
        ({"instructions": {"file": "cmteb", "language": "klingon"}}, "language 'klingon'"),
        ({"instructions": {"file": "cmteb", "language": "english"}}, "task 'Chess'"),
        ({}, "instruction 'Chess'"),
    ],
)
def test_instructions_that_nobody_wrote_are_refused(tmp_path, section, found):
    def change(content):
        content |= section
        content["datasets"][0]["instruction"] = "Chess"

    with pytest.raises(PresetError, match=found):
        load_preset(variation(tmp_path, change))


@pytest.mark.parametrize("file", sorted(ACCELERATE.glob("*.yaml")), ids=lambda file: file.stem)
def test_accelerate_reads_its_configurations(file):
    config = ClusterConfig.from_yaml_file(file)
    assert (config.num_processes > 1) == (file.stem != "gpu-bf16")
    assert config.use_cpu == file.stem.startswith("cpu")
    assert (config.mixed_precision == "bf16") == file.stem.endswith("bf16")


def test_configurations_of_accelerate_are_no_presets():
    with pytest.raises(PresetError) as refused:
        load_preset("gpu-ddp")
    assert "'smoke'" in str(refused.value)
    assert "cpu-2" not in str(refused.value)


def test_a_preset_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        load_preset("smoke").seeds = (1,)


def test_unknown_preset_names_the_nearest():
    with pytest.raises(PresetError, match="Did you mean 'mini'"):
        load_preset("minni")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["training"].update(learning_rat=1), "Did you mean 'learning_rate'"),
        (lambda c: c.update(seed=[0]), "Did you mean 'seeds'"),
        (lambda c: c["training"].update(learning_rate=-1), "learning_rate.*found -1"),
        (lambda c: c["training"].update(learning_rate=float("nan")), "learning_rate"),
        (lambda c: c["variants"]["codiemb"].update(ir_share=0.5), "need each other"),
        (lambda c: c["variants"]["codiemb"].update(tasks=["irr"]), "tasks.*found 'irr'"),
        (lambda c: c["fusion"]["soup"].update(ingredients=["codiem"]), "found .'codiem'"),
        (lambda c: c["fusion"]["soup"].update(keep={"*": "codiem"}), "keep: .*'codiem'"),
        (lambda c: c["fusion"]["soup"].update(method="tie"), "Did you mean 'ties'"),
        (lambda c: c["fusion"]["soup"].update(power=2), "unknown option of uniform 'power'"),
        (lambda c: c["fusion"]["soup"].update(method="greedy"), "expected a method without scores"),
        (lambda c: c["fusion_study"]["candidates"].update(dare=[]), "one candidate or more"),
        (
            lambda c: c["fusion_study"]["candidates"].update(dare=[{"density": 2}]),
            r"fusion_study\.candidates\.dare\.0\.density: .*less than or equal to 1, found 2",
        ),
        (lambda c: c["variants"].update(base={}), "expected each of .* once, found .'base'. again"),
        (lambda c: c["variants"].update(soup={}), "found .'soup'. again"),
        (lambda c: c["datasets"].append(c["datasets"][0]), "expected each of .* once"),
        (lambda c: c["encoder"].update(trust_remote_code=True), "pinned"),
        (lambda c: c["encoder"].update(lora={"rnk": 4}), "Did you mean 'rank'"),
        (lambda c: c["encoder"].update(lora={"targets": []}), "targets.*at least 1 item"),
        (lambda c: c["encoder"].update(attention="causal"), "attention.*found 'causal'"),
        (lambda c: c["encoder"].update(max_length=3), "max_length.*found 3"),
        (lambda c: c.update(benchmark={"STSB": {"prompt": "x"}}), "Did you mean 'query_prompt'"),
        (lambda c: c["geometry"].update(umap_variants=["other"]), "umap_variants"),
        (lambda c: c.update(name="other"), "expected `name: smoke`"),
        (lambda c: c.pop("seeds"), "seeds: Field required"),
        (lambda c: c.update(seeds=[0, 1, 0]), r"seeds: .*expected each of \[0, 1, 0\] once"),
        (lambda c: c.update(seeds=[2**64]), r"seeds\.0: .*less than 9223372036854775808"),
        (lambda c: c["training"].update(max_steps=True), "max_steps: expected no switch, found tr"),
        (lambda c: c["variants"].update({"x" * 101: {}}), "at most 100 characters"),
        (lambda c: c.update(seeds=[-1]), r"seeds\.0: .*greater than or equal to 0, found -1"),
        (lambda c: c["variants"].update({"ir and sts": {}}), "should match.*found 'ir and sts'"),
        (lambda c: c["fusion"].update({"../x": c["fusion"]["soup"]}), "match.*found '../x'"),
        (
            lambda c: c["variants"]["codiemb"].update(objective={"temprature": 1}),
            r"variant 'codiemb': objective: .*Did you mean 'temperature'\?$",
        ),
        (
            lambda c: c["variants"]["codiemb"].update(
                sts_objective="angle", objective={"matryoshka": [63]}
            ),
            r"variant 'codiemb': objective\.matryoshka: expected even dimensions.* found \[63\]",
        ),
    ],
)
def test_what_cannot_be_run_is_refused(tmp_path, change, message):
    with pytest.raises(PresetError, match=message):
        load_preset(variation(tmp_path, change))


def test_a_file_that_is_no_yaml_or_no_mapping_is_refused(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("a: [1")
    with pytest.raises(PresetError, match="expected YAML"):
        load_preset(str(path))
    path.write_text("name: broken\nvariants:\n  a: {}\n  b: &b {}\n  a: {<<: *b}")
    with pytest.raises(PresetError, match="the key 'a' a second time"):
        load_preset(str(path))
    path.write_text("- 1")
    with pytest.raises(PresetError, match="should be a valid dictionary"):
        load_preset(str(path))
    path.write_bytes(b"name: broken\n\xe9: 1")
    with pytest.raises(PresetError, match=r"broken\.yaml:2: expected UTF-8, found byte 0xe9"):
        load_preset(str(path))
    path.write_text("[" * 10_000)
    with pytest.raises(PresetError, match="expected YAML, found: maximum recursion depth"):
        load_preset(str(path))


def test_aliases_that_stand_for_billions_are_refused_at_once(tmp_path):
    path = tmp_path / "bomb.yaml"
    levels = (f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12))
    path.write_text("\n".join(["name: bomb", "a0: &a0 [x]", *levels, "seeds: *a11"]))
    with pytest.raises(PresetError, match=r"bomb\.yaml: .*unknown key 'a0'"):
        load_preset(str(path))
    path.write_text(path.read_text().replace("a0: &a0 [x]", "description: &a0 [x]"))
    with pytest.raises(PresetError, match=r"bomb\.yaml") as error:
        load_preset(str(path))
    assert len(str(error.value)) < 5000


def test_numbers_of_numpy_pass_where_plain_ones_do():
    given = {"matryoshka": np.array([32, 64]), "negatives": np.int64(3)}
    found = ObjectiveSettings(temperature=np.float32(0.5), **given)
    assert found == ObjectiveSettings(temperature=0.5, matryoshka=(32, 64), negatives=3)


def test_numbers_are_those_of_yaml_1_2(tmp_path):
    path = tmp_path / "merge.yaml"
    numbers = "density: 1e-1\nseed: 010\nscale: -1E+3\nweights: [+.5, 1., 2.5e1]"
    path.write_text(f"ingredients: [1:30, 2026-12-01, yes]\n{numbers}")
    found = read_settings(path, RootModel[dict[str, Any]], PresetError).root
    assert found == {
        **{"ingredients": ["1:30", "2026-12-01", "yes"], "density": 0.1, "seed": 10},
        **{"scale": -1000, "weights": [0.5, 1, 25]},
    }
    path.write_text("\ufeffingredients: [a]\nmethod: ties\ndensity: 1e-1\n", encoding="utf-8")
    assert read_settings(path, Merge, PresetError).density == 0.1


def test_a_preset_extends_another_by_whole_keys_and_single_settings_of_sections(tmp_path):
    base = load_preset(variation(tmp_path, lambda content: None))
    path = tmp_path / "more.yaml"
    own = {"name": "more", "extends": "smoke", "seeds": [7], "training": {"max_steps": 3}}
    own |= {"variants": {"sts_only": {"tasks": ["sts"]}}, "fusion": {}, "fusion_study": None}
    own |= {"geometry": {"umap_variants": []}}
    path.write_text(yaml.safe_dump(own))
    preset = load_preset(str(path))
    assert preset.training == base.training.model_copy(update={"max_steps": 3})
    assert preset.geometry == base.geometry.model_copy(update={"umap_variants": ()})
    assert [*preset.variants] == ["sts_only"]  # not beside those of the other
    assert (preset.seeds, preset.datasets, preset.encoder) == ((7,), base.datasets, base.encoder)
    path.write_text(yaml.safe_dump(own | {"training": 3}))
    with pytest.raises(PresetError, match=r"more\.yaml: training: Input should be"):
        load_preset(str(path))
    path.write_text(yaml.safe_dump(own | {"extends": "smokes"}))
    with pytest.raises(PresetError, match=r"smokes\.yaml: expected a file that can be read"):
        load_preset(str(path))
    (tmp_path / "third.yaml").write_text(yaml.safe_dump(own | {"name": "third", "extends": "more"}))
    with pytest.raises(
        PresetError, match=r"third\.yaml: extends: 'more': expected a preset that st"
    ):
        load_preset(str(tmp_path / "third.yaml"))


def test_the_variable_goes_before_the_data_root_of_a_preset(monkeypatch):
    monkeypatch.delenv("CODIEMB_DATA", raising=False)
    assert data_root() is None
    assert data_root("../sets") == project_root() / "../sets"
    monkeypatch.setenv("CODIEMB_DATA", "/elsewhere")
    assert str(data_root("../sets")) == "/elsewhere"


def test_the_english_presets_differ_in_size_alone():
    small, full = load_preset("english"), load_preset("english-full")
    assert [d.name for d in small.datasets] == [d.name for d in full.datasets]
    assert small.variants == full.variants
    assert small.fusion == full.fusion
    assert (len(small.seeds), len(full.seeds)) == (3, 5)
    assert small.remove_leaks
    assert full.remove_leaks
    for dataset in full.datasets:  # all there is
        assert (dataset.train, dataset.dev, dataset.test, dataset.corpus) == (None,) * 4


def test_models_of_a_preset_and_their_seeds():
    preset = load_preset("mini")
    assert preset.models == ["base", *preset.variants, *preset.fusion]
    assert preset.model_seeds("base") == [preset.seeds[0]]
    assert preset.model_seeds("delta") == list(preset.seeds)


def test_candidates_have_the_ingredients_and_the_label_of_their_study():
    candidates = {"ties": [{"density": 0.5}], "wide": [{"method": "dare", "ingredients": ["a"]}]}
    study = FusionStudy(ingredients=("a", "b"), candidates=candidates, path=("b", "c"))
    assert study.candidates["ties"] == (Merge(ingredients=("a", "b"), method="ties", density=0.5),)
    assert study.candidates["wide"] == (Merge(ingredients=("a",), method="dare"),)
    assert {*study.runs} == {"a", "b", "c"}
    assert study.candidates["ties"][0].options() == {"density": 0.5}


def test_the_candidates_of_a_study_are_tried_on_each_of_its_sets_against_their_soup():
    candidates = {
        "uniform": [{}],
        "ties": [{"density": 0.5}],
        "own": [{"ingredients": ["a"], "method": "dare"}],
    }
    sets = {"more": ["a", "b", "c"]}
    study = FusionStudy(ingredients=("a", "b"), sets=sets, candidates=candidates)
    assert [*study.tried] == [*candidates, "more.uniform", "more.ties"]  # `own` names its own
    three = {"ingredients": ("a", "b", "c")}
    assert study.tried["more.ties"] == [Merge(**three, method="ties", density=0.5)]
    assert {*study.runs} == {"a", "b", "c"}
    soups = {label: soup_of(label) for label in study.tried}
    assert soups["ties"] == soups["uniform"] == "uniform"
    assert soups["more.ties"] == soups["more.uniform"] == "more.uniform"
    for wrong, says in (
        ({"linear": [{"weights": [1, 2]}], "uniform": [{}]}, "weights"),  # of three
        ({"ties": [{}]}, "expected a candidate `uniform`"),
        ({"uniform": [{}], "v1.5": [{"method": "ties"}]}, "without a point, found 'v1.5'"),
    ):
        with pytest.raises(ValidationError, match=says):
            FusionStudy(ingredients=("a", "b"), sets=sets, candidates=wrong)


def test_an_unknown_variant_names_the_nearest():
    with pytest.raises(PresetError, match="Did you mean 'codiemb'"):
        load_preset("mini").variant("codiembb")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda c: c.update(seeds=[True]), "seeds: expected no switch, found true"),
        (lambda c: c["fusion"]["soup"].update(ingredients=["codiemb"] * 2), "expected each once"),
        (lambda c: c["fusion"]["soup"].update(method="linear", weights=[1, True]), "no switch"),
        (
            lambda c: c["datasets"][0].update(mine={"margin": 0.9, "absolute_margin": 0.1}),
            "expected `margin` or `absolute_margin`, found both",
        ),
    ],
)
def test_what_would_count_twice_or_as_a_number_is_refused(tmp_path, change, found):
    with pytest.raises(PresetError, match=found):
        load_preset(variation(tmp_path, change))


def test_a_number_beyond_all_limits_is_refused_with_its_place(tmp_path):
    path = tmp_path / "smoke.yaml"
    path.write_text(preset_path("smoke").read_text().replace("5.0e-5", "1e999"))
    with pytest.raises(PresetError, match=r"smoke.yaml.*beyond all limits, 1e999.*line"):
        load_preset(str(path))
