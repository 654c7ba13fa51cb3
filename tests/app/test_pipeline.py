"""The Snakefile: what a change reruns, and what a failure or a kill leaves behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest
import yaml

from codiemb_lib.app.cli import main
from codiemb_lib.core import load_preset, sha256_files, write_json, write_text
from tests.app.projects import HOUR, ROOT, copy_project, run, start

PRESET = load_preset("smoke")
TABLE = "root/sick/SICK_train.txt"
TRAINED, FUSED, MODELS = len(PRESET.variants), len(PRESET.fusion), len(PRESET.models)
AFTER = {"geometry": 1, "rows": 1, "comparison": 1, "figures": 1}


def start_tiny(project: Path, log: str, *options: str) -> subprocess.Popen:
    command = ["codiemb_lib", "reproduce", "--preset", "tiny", "--cores", "2", "--", *options]
    return start(project, log, *command)


def snakemake(project: Path, *options: str) -> str:
    """What Snakemake prints; `codiemb reproduce` becomes it."""
    command = ["snakemake", "--nolock", "--cores", "2", "--config", "preset=smoke", *options]
    return run(project, *command)


def wait_until(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    while not condition():
        assert process.poll() is None
        time.sleep(0.05)


def jobs(project: Path) -> dict[str, int]:
    """How often each rule would run, from the table of a dry run."""
    text = snakemake(project, "--dry-run", "--quiet", "host", "reason")
    if "Nothing to be done" in text:
        return {}
    table = text.partition("Job stats:")[2].partition("total")[0]
    counts = {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", table, re.M)}
    del counts["all"]
    return counts


def finish(project: Path) -> None:
    """Empty weights in place of models, and manifests that vouch for them."""
    for model in (*PRESET.variants, *PRESET.fusion):
        folder = project / "data" / "runs" / "smoke" / model / "seed-0"
        weights = folder / "model" / "model.safetensors"
        write_text(weights, "")
        write_json(folder / "manifest.json", {"files": sha256_files(folder, [weights])})


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A copy of the project in which everything seems to have run: its outputs are empty files.

    Its preset reads a set of the data root too, of which one file is there.
    """
    project = copy_project(tmp_path_factory.mktemp("finished"))
    path = project / "notebooks" / "presets" / "smoke.yaml"
    preset = yaml.safe_load(path.read_text())
    preset |= {"datasets": [*preset["datasets"], {"name": "sick"}], "data_root": "root"}
    path.write_text(yaml.safe_dump(preset))
    (project / TABLE).parent.mkdir(parents=True)
    (project / TABLE).touch()
    summary = snakemake(project, "--summary")
    for path in re.findall(r"^(?:data|figures)/\S+", summary, re.M):
        (project / path).parent.mkdir(parents=True, exist_ok=True)
        (project / path).touch()
    finish(project)
    snakemake(project, "--touch", "--forceall")
    return project


@contextmanager
def changed(*paths: Path):
    """Add an empty line to files, and afterwards put them back as they were."""
    before = {path: path.read_text() for path in paths}
    for path, text in before.items():
        path.write_text(text + "\n")
    try:
        yield
    finally:
        for path, text in before.items():
            path.write_text(text)


def test_everything_runs_in_a_fresh_clone(tmp_path):
    assert jobs(copy_project(tmp_path)) == {
        "start": 1,
        "data": 1,
        "losses": 1,
        "train": TRAINED,
        "fuse": len(PRESET.seeds),
        "benchmark": MODELS,
        **AFTER,
    }


def test_nothing_runs_twice_and_a_new_time_stamp_alone_changes_nothing(finished):
    for path in [*finished.rglob("*.py"), *finished.rglob("*.ipynb"), *finished.rglob("*.yaml")]:
        if "runs" not in path.parts:
            path.touch()
    with changed(finished / "notebooks" / "presets" / "mini.yaml"):  # nor does another preset
        assert jobs(finished) == {}


def test_what_draws_and_what_teaches_computes_nothing_anew(finished):
    room, classroom = finished / "codiemb_lib" / "draw", finished / "notebooks" / "classroom"
    with changed(*room.glob("*.py"), *room.glob("*.mplstyle"), *classroom.glob("*.py")):
        counts = jobs(finished)
    assert counts["figures"] == 1
    assert counts.keys() <= {"start", "data", "losses", "figures"}


def test_touched_objective_retrains(finished):
    with changed(finished / "codiemb_lib" / "train" / "objectives.py"):
        counts = jobs(finished)
    assert (counts["train"], counts["fuse"]) == (TRAINED, len(PRESET.seeds))
    assert counts["benchmark"] == MODELS - 1  # the untrained encoder's scores stand
    assert counts.items() >= AFTER.items()
    assert "start" not in counts


def test_touched_measure_of_geometry_retrains_nothing(finished):
    with changed(finished / "codiemb_lib" / "space" / "__init__.py"):
        counts = jobs(finished)
    assert (counts["geometry"], counts["figures"]) == (1, 1)
    assert "train" not in counts  # notebook 04 runs: it measures the space along its path


def test_changed_notebook_and_what_follows_from_it_run(finished):
    with changed(finished / "notebooks" / "06_comparison.ipynb"):
        assert jobs(finished) == {"comparison": 1, "figures": 1}
    with changed(finished / "notebooks" / "04_checkpoint_fusion.ipynb"):
        counts = jobs(finished)
    assert counts == {"fuse": len(PRESET.seeds), "benchmark": FUSED, **AFTER}


def test_changed_data_or_preset_concern_all_that_read_them(finished):
    for path in (TABLE, "notebooks/presets/smoke.yaml"):
        with changed(finished / path):
            counts = jobs(finished)
        assert (counts["data"], counts["train"], counts["benchmark"]) == (1, TRAINED, MODELS)


def test_a_model_or_figure_that_was_removed_is_made_again(tmp_path, monkeypatch):
    """Snakemake knows of them by executed copies alone, so these are forced to run."""
    presets = tmp_path / "notebooks" / "presets"
    shutil.copytree(ROOT / "notebooks" / "presets", presets)
    shutil.copytree(
        ROOT / "data", tmp_path / "data", ignore=shutil.ignore_patterns("cache", "runs")
    )
    monkeypatch.setenv("CODIEMB_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    started = []
    monkeypatch.setattr("os.execv", lambda python, command: started.append(command))
    runs, figures = Path("data/runs/smoke"), Path("figures/smoke")
    copies = [
        runs / "codiemb" / "seed-0" / "03_joint_training.ipynb",
        runs / "ir_only" / "seed-0" / "03_joint_training.ipynb",
        runs / "fusion" / "seed-0" / "04_checkpoint_fusion.ipynb",
        runs / "09_paper_figures.ipynb",
    ]
    finish(tmp_path)
    figures.mkdir(parents=True)
    for file in (*copies, *(figures / f"trade_off.{end}" for end in ("csv", "md", "pdf", "png"))):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()

    def forced() -> list[str]:
        assert main(["reproduce", "--preset", "smoke", "--cores", "1"]) == 0
        _, _, after = " ".join(started[-1]).partition("--forcerun ")
        return after.partition(" --cores")[0].split()

    assert forced() == []
    (runs / "codiemb" / "seed-0" / "model" / "model.safetensors").unlink()
    assert forced() == [str(copies[0])]
    (runs / "soup" / "seed-0" / "manifest.json").unlink()
    (figures / "trade_off.png").unlink()
    assert forced() == [str(copies[0]), *map(str, copies[2:])]


TINY = """
name: tiny
description: one run and one fusion
seeds: [0]
encoder: {name: minilm-l6}
datasets: [{name: simlex-999}, {name: api-docs}]
training: {batch_sizes: {ir: 2, sts: 2, mixed: 2}}
variants: {codiemb: {}}
fusion: {soup: {method: uniform, ingredients: [codiemb]}}
"""

# Stand-ins for the notebooks: they write the files of the real ones, and a line each in a journal.
LOG = """
import json
import time
from pathlib import Path
import numpy as np
runs = Path('../data/runs/tiny')
made = {"files": {}, "seconds": 1, "peak_memory_mib": 1, "hardware": "", "git_commit": ""}
def note(line):
    with open('../journal', 'a') as journal:
        print(line, file=journal)
def write(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == '.npz':
        np.savez(path, value=1)
    else:
        path.write_text('value,tokens\\n1,1\\n' if path.suffix == '.csv' else '')
def finish(model):
    folder = runs / model / f'seed-{seed}'
    write(folder / 'model' / 'model.safetensors')
    for table in ('log', 'dev', 'fusion'):
        write(folder / f'{table}.csv')
    (folder / 'manifest.json').write_text(json.dumps(made))
"""
STUBS = {
    "03_joint_training": """
note('train begins')
checkpoint = runs / variant / f'seed-{seed}' / 'checkpoint'
note('from checkpoint' if checkpoint.exists() else 'from scratch')
write(checkpoint)
assert not Path('../fail').exists(), 'told to fail'
while Path('../wait').exists():
    time.sleep(0.05)
finish(variant)
note('train ends')
""",
    "04_checkpoint_fusion": """
note('fuse')
finish('soup')
for name in ('study.csv', 'texts.npz'):
    write(runs / 'fusion' / f'seed-{seed}' / name)
""",
    "05_benchmark": """
note(f'benchmark {variant}')
for name in ('scores.csv', 'texts.npz', 'embeddings.safetensors'):
    write(runs / variant / f'seed-{seed}' / name)
""",
    "06_comparison": """
note('comparison')
for name in ('comparisons.csv', 'claims.csv', 'study_comparisons.csv'):
    write(runs / name)
""",
    "07_embedding_geometry": """
note('geometry')
tables = "geometry spectrum cosines rated_pairs trajectory layers umap"
for name in [f"{table}.csv" for table in tables.split()]:
    write(runs / 'geometry' / f'seed-{seed}' / name)
""",
    "09_paper_figures": "note('figures')\nwrite(Path('../figures/tiny/results.csv'))",
}


@pytest.fixture
def tiny(tmp_path) -> Path:
    """The project with notebooks that take no time, and a preset of one run."""
    project = copy_project(tmp_path)
    (project / "notebooks" / "presets" / "tiny.yaml").write_text(TINY)
    for name, source in STUBS.items():
        path = project / "notebooks" / f"{name}.ipynb"
        cells = nbformat.read(path, as_version=4).cells
        [parameters] = [c for c in cells if "parameters" in c.metadata.get("tags", [])]
        code = [nbformat.v4.new_code_cell(text) for text in (LOG, source)]
        nbformat.write(nbformat.v4.new_notebook(cells=[parameters, *code]), path)
    return project


def journal(project: Path) -> list[str]:
    path = project / "journal"
    return path.read_text().splitlines() if path.is_file() else []


def test_failed_notebook_is_named_then_the_run_goes_on(tiny):
    (tiny / "fail").touch()
    assert start_tiny(tiny, "log", "--until", "figures").wait(HOUR) == 1
    text = (tiny / "log").read_text()
    failed = "data/runs/tiny/codiemb/seed-0/03_joint_training.failed.ipynb"
    assert re.search(
        rf"codiemb: .*In \[\d\].* failed: AssertionError: told to fail.*{failed}", text
    )
    assert (tiny / failed).is_file()

    (tiny / "fail").unlink()
    assert start_tiny(tiny, "log", "--until", "figures").wait(HOUR) == 0, (tiny / "log").read_text()
    done = journal(tiny)
    assert done.count("from scratch") == done.count("from checkpoint") == 1
    assert sorted(line for line in done if line.startswith("benchmark")) == [
        "benchmark base",
        "benchmark codiemb",
        "benchmark soup",
    ]
    assert done[-3:] == ["geometry", "comparison", "figures"]
    kept = {file.name for file in (tiny / "figures" / "tiny" / "rows" / "seed-0").iterdir()}
    assert {"texts.npz", "merges.npz", "umap.csv"} < kept
    assert not (tiny / failed).exists()

    (tiny / "figures" / "tiny" / "results.csv").unlink()
    assert start_tiny(tiny, "log", "--until", "figures").wait(HOUR) == 0
    assert journal(tiny) == [*done, "figures"]

    preset = tiny / "notebooks" / "presets" / "tiny.yaml"
    for content, found in ((TINY, "total +0\n"), (TINY + "\n", "^train +1\n")):
        preset.write_text(content)
        os.utime(preset, (0, 0))  # what it holds decides, whatever its time stamp says
        assert start_tiny(tiny, "log", "--dry-run", "--until", "figures").wait(HOUR) == 0
        assert re.search(found, (tiny / "log").read_text(), re.M)


def test_seeds_come_one_by_one_and_their_rows_are_enough_to_compare_and_draw(tiny):
    preset = tiny / "notebooks" / "presets" / "tiny.yaml"
    preset.write_text(TINY.replace("seeds: [0]", "seeds: [0, 1]"))
    call = ["codiemb_lib", "reproduce", "--preset", "tiny", "--cores", "2"]

    def reproduce(*options: str) -> list[str]:
        before = journal(tiny)
        status = start(tiny, "log", *call, *options).wait(HOUR)
        assert status == 0, (tiny / "log").read_text()
        return journal(tiny)[len(before) :]

    for seed in "01":
        done = reproduce("--seeds", seed)
        assert done.count("train begins") == 1
        assert {"comparison", "figures"}.isdisjoint(done)
        shutil.rmtree(tiny / "data" / "runs")
        kept = {folder.name for folder in (tiny / "figures" / "tiny" / "rows").iterdir()}
        assert kept == {f"seed-{n}" for n in range(int(seed) + 1)}
        if seed == "0":
            assert start(tiny, "log", *call, "--from-rows").wait(HOUR) == 2
            assert "found none of {1}" in (tiny / "log").read_text()
    assert reproduce("--from-rows") == ["comparison", "figures"]


@pytest.mark.parametrize("killed", [False, True])
def test_second_call_waits_for_the_first_also_for_what_outlives_it(tiny, killed):
    """Where Snakemake alone is killed, its notebook lives on and must not run twice at once."""
    (tiny / "wait").touch()
    first = start_tiny(tiny, "first", "--until", "train")
    wait_until(lambda: "from scratch" in journal(tiny), first)
    if killed:
        first.kill()
        first.wait(HOUR)
    second = start_tiny(tiny, "second", "--until", "train")
    wait_until(lambda: "waiting for its end" in (tiny / "second").read_text(), second)
    assert journal(tiny).count("train begins") == 1
    (tiny / "wait").unlink()
    assert first.wait(HOUR) == (-signal.SIGKILL if killed else 0), (tiny / "first").read_text()
    assert second.wait(HOUR) == 0, (tiny / "second").read_text()
    runs = [line for line in journal(tiny) if line.startswith("train")]
    assert runs == ["train begins", "train ends"] * (2 if killed else 1)
    assert ("from checkpoint" in journal(tiny)) == killed
