"""Presets: those that we ship load; those that cannot be run are refused with the remedy."""

import pytest
import yaml

from codiemb_lib.config import PresetError, load_preset, preset_path

SHIPPED = sorted(path.stem for path in preset_path("x").parent.glob("*.yaml"))


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
        (lambda c: c["variants"].update(base={}), "'base' is taken"),
        (lambda c: c["datasets"].append(c["datasets"][0]), "every data set once"),
        (lambda c: c["encoder"].update(trust_remote_code=True), "pinned"),
        (lambda c: c["geometry"].update(umap_variants=["other"]), "umap_variants"),
        (lambda c: c.update(name="other"), "expected `name: smoke`"),
        (lambda c: c.pop("seeds"), "seeds: Field required"),
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
    path.write_text("- 1")
    with pytest.raises(PresetError, match="expected a mapping"):
        load_preset(str(path))


def test_models_of_a_preset_and_their_seeds():
    preset = load_preset("mini")
    assert preset.models == ["base", *preset.variants, *preset.fusion]
    assert preset.model_seeds("base") == [preset.seeds[0]]
    assert preset.model_seeds("delta") == list(preset.seeds)


def test_unknown_variant_and_fusion_name_the_nearest():
    with pytest.raises(PresetError, match="Did you mean 'codiemb'"):
        load_preset("mini").variant("codiembb")
    with pytest.raises(PresetError, match="Did you mean 'soup'"):
        load_preset("mini").fused("soap")
