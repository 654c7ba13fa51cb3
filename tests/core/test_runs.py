"""Run folders, manifests, and tables put together."""

import shutil

import numpy as np
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
    for value, model in enumerate([*preset.variants][::-1]):
        folder = runs.run_folder(preset.name, model, 0)
        runs.write_rows(folder / "dev.csv", pd.DataFrame({"step": [0, 1], "value": value / 3}))
    rows = runs.collect(preset, "dev")
    assert list(rows.columns) == ["preset", "variant", "seed", "step", "value"]
    assert list(rows["variant"].unique()) == [*preset.variants]
    (folder / "dev.csv").unlink()
    with pytest.raises(CodiembError, match=r"ir_only.*expected the rows of a finished run"):
        runs.collect(preset, "dev")


def test_the_table_of_a_run_that_failed_at_once_is_named(preset):
    folder = runs.run_folder(preset.name, "ir_only", 0)
    runs.write_rows(folder / "log.csv", pd.DataFrame([]))  # as training writes it before step 1
    with pytest.raises(CodiembError, match=r"log\.csv: expected the rows"):
        runs.collect(preset, "costs")


def measure(preset, seed):
    """Made-up runs of a seed, with every table that notebooks 03, 04, 05 and 07 leave."""
    one = {"value": seed + 1 / 3, "tokens": 10}
    for model in preset.models:
        if seed in preset.model_seeds(model):
            folder = finish(preset, model, seed) if model != "base" else None
            folder = folder or runs.run_folder(preset.name, model, seed)
            for table in ("log", "dev", "scores", "fusion"):
                runs.write_rows(folder / f"{table}.csv", pd.DataFrame([one]))
            runs.write_arrays(folder / "texts.npz", {f"ir/a/{model}/{seed}": np.arange(3)})
    for name, tables in (
        ("fusion", runs.OF_FUSION),
        ("geometry", (*runs.OF_GEOMETRY, *runs.OF_FIRST_SEED)),
    ):
        folder = runs.run_folder(preset.name, name, seed)
        for table in tables:
            runs.write_rows(folder / f"{table}.csv", pd.DataFrame([one | {"variant": "codiemb"}]))
        runs.write_arrays(folder / "texts.npz", {f"ir/a/soup/{seed}": np.arange(3)})


def test_what_is_kept_of_a_seed_is_read_as_its_runs_are(preset):
    preset = preset.model_copy(update={"seeds": (0, 3)})
    for seed in preset.seeds:
        measure(preset, seed)
    tables = ["scores", "dev", "costs", "fusion", *runs.OF_FUSION, *runs.OF_GEOMETRY]
    tables += runs.OF_FIRST_SEED

    def collected(table: str) -> pd.DataFrame:
        return runs.collect(preset, table).drop(columns="commit", errors="ignore")

    before = {table: collected(table) for table in tables}
    for seed in preset.seeds:
        assert runs.publish(preset, seed) == runs.figures_folder("smoke") / "rows" / f"seed-{seed}"
    shutil.rmtree(runs.preset_folder(preset.name))
    for table, rows in before.items():
        pd.testing.assert_frame_equal(collected(table), rows, rtol=1e-5)
        seeds = {0} if table in runs.OF_FIRST_SEED else {0, 3}
        assert set(rows["value" if "value" in rows else "seed"].astype(int)) == seeds
    with np.load(runs.rows_file(preset.name, 3, "texts.npz")) as found:
        assert [*found] == [f"ir/a/{model}/3" for model in preset.models[1:]]
    assert runs.collect(preset, "umap")["value"].item() == pytest.approx(1 / 3, rel=1e-5)


def test_runs_that_are_here_go_before_what_was_kept_of_them(preset):
    measure(preset, 0)
    runs.publish(preset, 0)
    folder = runs.run_folder(preset.name, "codiemb", 0)
    runs.write_rows(folder / "dev.csv", pd.DataFrame({"value": [7.0]}))
    rows = runs.collect(preset, "dev").set_index("variant")["value"]
    assert rows["codiemb"] == 7


def test_of_a_preset_without_merges_there_is_no_table_of_merges(preset):
    plain = preset.model_copy(update={"fusion": {}, "fusion_study": None})
    assert runs.collect(plain, "study").empty


def test_costs_come_from_logs_and_manifests(preset):
    for model in preset.variants:
        folder = finish(preset, model)
        runs.write_rows(folder / "log.csv", pd.DataFrame({"step": [0, 1], "tokens": [10, 20]}))
    costs = runs.collect(preset, "costs")
    assert list(costs["variant"]) == list(preset.variants)
    assert set(costs["tokens"]) == {30}
    assert set(costs["steps"]) == {2}
    assert set(costs["seconds"]) == {1.2}
