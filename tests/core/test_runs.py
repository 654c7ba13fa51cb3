"""Run folders, manifests, and tables put together."""

import pandas as pd
import pytest

from codiemb_lib.core import runs
from codiemb_lib.core.preset import load_preset
from codiemb_lib.core.words import CodiembError


@pytest.fixture
def preset(tmp_path, monkeypatch):
    loaded = load_preset("smoke")
    monkeypatch.setenv("CODIEMB_ROOT", str(tmp_path))
    return loaded


def finish(preset, model, seed=0, fingerprint="f"):
    folder = runs.run_folder(preset.name, model, seed)
    (folder / "model").mkdir(parents=True, exist_ok=True)
    (folder / "model" / "model.safetensors").write_text("weights")
    runs.write_manifest(
        folder,
        preset=preset,
        model=model,
        seed=seed,
        settings={"a": 1},
        fingerprint=fingerprint,
        data={"d": "hash"},
        seconds=1.23,
    )
    return folder


def test_a_manifest_says_what_made_the_run(preset):
    manifest = runs.read_json(finish(preset, "codiemb") / "manifest.json")
    assert {"preset", "variant", "seed", "fingerprint", "settings", "data"} <= manifest.keys()
    assert manifest["versions"].keys() >= {"python", "torch", "transformers"}
    assert manifest["peak_memory_mib"] > 10
    assert "cores" in manifest["hardware"]


def test_complete_means_finished_with_the_same_fingerprint(preset):
    folder = finish(preset, "codiemb", fingerprint="a")
    assert runs.is_complete(folder, "a")
    assert not runs.is_complete(folder, "b")
    assert not runs.is_complete(folder.parent / "seed-7", "a")
    (folder / "scores.csv").write_text("measured later")
    assert runs.is_complete(folder, "a")


@pytest.mark.parametrize("name", ["model/model.safetensors", "manifest.json"])
@pytest.mark.parametrize("content", [None, "", "weighty", "{}"])
def test_a_damaged_run_is_not_finished(preset, caplog, name, content):
    folder = finish(preset, "codiemb", fingerprint="a")
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    assert not runs.is_complete(folder, "a")
    assert content is None or name in caplog.text
    with pytest.raises(CodiembError, match="expected a finished run"):
        runs.model_folder(preset, "codiemb", 0)


def test_a_model_is_found_where_its_run_is_finished(preset):
    assert runs.model_folder(preset, "base", 0) == "minilm-l6"
    with pytest.raises(CodiembError, match="expected a finished run of 'codiemb'"):
        runs.model_folder(preset, "codiemb", 0)
    folder = finish(preset, "codiemb")
    assert runs.model_folder(preset, "codiemb", 0) == str(folder / "model")


def test_tables_of_runs_are_put_together_with_their_labels(preset):
    for value, model in enumerate(["codiemb", "ir_only"]):
        folder = runs.run_folder(preset.name, model, 0)
        runs.write_rows(folder / "dev.csv", pd.DataFrame({"step": [0, 1], "value": value / 3}))
    rows = runs.collect(preset, "dev", ["codiemb", "ir_only"])
    assert list(rows.columns) == ["preset", "variant", "seed", "step", "value"]
    assert list(rows["variant"]) == ["codiemb"] * 2 + ["ir_only"] * 2
    with pytest.raises(CodiembError, match=r"sts_only.*expected the rows of a finished run"):
        runs.collect(preset, "dev", ["sts_only"])


def test_the_table_of_a_run_that_failed_at_once_is_named(preset):
    folder = runs.run_folder(preset.name, "codiemb", 0)
    runs.write_rows(folder / "log.csv", pd.DataFrame([]))  # as training writes it before step 1
    with pytest.raises(CodiembError, match=r"log\.csv: expected the rows"):
        runs.collect(preset, "log", ["codiemb"])


def test_costs_come_from_logs_and_manifests(preset):
    for model in preset.variants:
        folder = finish(preset, model)
        runs.write_rows(folder / "log.csv", pd.DataFrame({"step": [0, 1], "tokens": [10, 20]}))
    costs = runs.collect_costs(preset)
    assert list(costs["variant"]) == list(preset.variants)
    assert set(costs["tokens"]) == {30}
    assert set(costs["steps"]) == {2}
    assert set(costs["seconds"]) == {1.2}
