"""The Snakefile: what a change reruns, and what a failure or a kill leaves behind."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest
import yaml

from codiemb_lib.core.preset import load_preset
from tests.made_up import python_path

ROOT = Path(__file__).parents[2]
PRESET = load_preset("smoke")
PATIENCE = 240  # seconds, on a busy machine
TABLE = "root/sick/SICK_train.txt"
TRAINED, FUSED, MODELS = len(PRESET.variants), len(PRESET.fusion), len(PRESET.models)


def copy_project(folder: Path) -> Path:
    """The project without its runs, in a folder with a space."""
    project = folder / "a project"
    ignore = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for name in ("codiemb_lib", "notebooks", "data/build"):
        shutil.copytree(ROOT / name, project / name, ignore=ignore)
    for name in ("Snakefile", "data/registry.yaml"):
        (project / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, project / name)
    return project


def start(project: Path, log: str, *options: str, preset: str = "smoke") -> subprocess.Popen:
    """Call `codiemb reproduce` in the background; what it prints goes to a file of the project."""
    command = [sys.executable, "-m", "codiemb_lib", "reproduce", "--preset", preset]
    with (project / log).open("w") as stream:
        return subprocess.Popen(
            [*command, "--cores", "2", "--", *options],
            cwd=project,
            env={
                **os.environ,
                "PYTHONPATH": python_path(project),
                "CODIEMB_ROOT": "",
                "CODIEMB_DATA": "",
            },
            stdout=stream,
            stderr=stream,
        )


def reproduce(project: Path, *options: str, preset: str = "smoke") -> str:
    status = start(project, "log", *options, preset=preset).wait(PATIENCE)
    text = (project / "log").read_text()
    assert status == 0, text
    return text


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def jobs(project: Path) -> dict[str, int]:
    """How often each rule would run, from the table of a dry run."""
    text = reproduce(project, "--dry-run")
    if "Nothing to be done" in text:
        return {}
    table = text.partition("Job stats:")[2].partition("total")[0]
    counts = {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", table, re.M)}
    del counts["all"]
    return counts


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
    summary = reproduce(project, "--summary")
    for path in re.findall(r"^(?:data|figures)/\S+", summary, re.M):
        (project / path).parent.mkdir(parents=True, exist_ok=True)
        (project / path).touch()
    for model in (*PRESET.variants, *PRESET.fusion):
        for name in ("manifest.json", "model/model.safetensors"):
            path = project / "data" / "runs" / "smoke" / model / "seed-0" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    reproduce(project, "--touch", "--forceall")
    return project


@contextmanager
def changed(path: Path, addition: str = "\n# changed\n"):
    """Add a line to a file, and afterwards put the file back as it was."""
    before = path.read_text()
    path.write_text(before + addition)
    try:
        yield
    finally:
        path.write_text(before)


def test_everything_runs_in_a_fresh_clone(tmp_path):
    assert jobs(copy_project(tmp_path)) == {
        "start": 1,
        "data": 1,
        "losses": 1,
        "train": TRAINED,
        "fuse": len(PRESET.seeds),
        "benchmark": MODELS,
        "comparison": 1,
        "geometry": 1,
        "figures": 1,
    }


def test_nothing_runs_twice_and_a_new_time_stamp_alone_changes_nothing(finished):
    assert jobs(finished) == {}
    for path in [*finished.rglob("*.py"), *finished.rglob("*.ipynb"), *finished.rglob("*.yaml")]:
        if "runs" not in path.parts:
            path.touch()
    assert jobs(finished) == {}


@contextmanager
def removed(path: Path):
    """Take a file away, and afterwards put it back."""
    path.rename(path.with_suffix(".away"))
    try:
        yield
    finally:
        path.with_suffix(".away").rename(path)


def test_a_model_or_figure_that_was_removed_is_made_again(finished):
    runs, figures = finished / "data" / "runs" / "smoke", finished / "figures" / "smoke"
    with removed(runs / "codiemb" / "seed-0" / "model" / "model.safetensors"):
        assert jobs(finished)["train"] == 1
    with removed(runs / "soup" / "seed-0" / "manifest.json"):
        counts = jobs(finished)
        assert (counts.get("train"), counts["fuse"]) == (None, 1)
    for end in ("csv", "md", "pdf", "png"):
        (figures / f"trade_off.{end}").touch()
    with removed(figures / "trade_off.png"):
        assert jobs(finished) == {"figures": 1}
    assert jobs(finished) == {}


@pytest.mark.parametrize("name", ["scores.py", "style.py", "paper.mplstyle"])
def test_touched_figure_retrains_nothing(finished, name):
    with changed(finished / "codiemb_lib" / "draw" / name):
        counts = jobs(finished)
    assert counts["figures"] == 1
    assert not counts.keys() & {"train", "fuse", "benchmark"}


def test_touched_objective_retrains(finished):
    with changed(finished / "codiemb_lib" / "train" / "objectives.py"):
        counts = jobs(finished)
    assert (counts["train"], counts["fuse"]) == (TRAINED, len(PRESET.seeds))
    assert counts["benchmark"] == MODELS - 1  # the untrained encoder's scores stand
    assert (counts["comparison"], counts["geometry"], counts["figures"]) == (1, 1, 1)
    assert "start" not in counts


def test_touched_measure_of_geometry_retrains_nothing(finished):
    with changed(finished / "codiemb_lib" / "space" / "geometry.py"):
        counts = jobs(finished)
    assert (counts["geometry"], counts["figures"]) == (1, 1)
    assert "train" not in counts  # notebook 04 runs: it measures the space along its path


def test_touched_comparison_measures_no_model_anew(finished):
    with changed(finished / "codiemb_lib" / "draw" / "tables.py"):
        assert not jobs(finished).keys() & {"train", "fuse", "benchmark", "comparison"}
    with changed(finished / "notebooks" / "06_comparison.ipynb", "\n"):
        assert jobs(finished) == {"comparison": 1, "figures": 1}


def test_changed_notebook_and_what_follows_from_it_run(finished):
    with changed(finished / "notebooks" / "04_checkpoint_fusion.ipynb", "\n"):
        counts = jobs(finished)
    after = {"comparison": 1, "geometry": 1, "figures": 1}
    assert counts == {"fuse": len(PRESET.seeds), "benchmark": FUSED, **after}


def test_changed_preset_concerns_its_own_runs_only(finished):
    presets = finished / "notebooks" / "presets"
    with changed(presets / "mini.yaml"):
        assert jobs(finished) == {}
    with changed(presets / "smoke.yaml"):
        assert jobs(finished)["train"] == TRAINED


def test_changed_file_of_the_data_root_concerns_all_that_read_data(finished):
    with changed(finished / TABLE):
        counts = jobs(finished)
    assert (counts["data"], counts["train"], counts["benchmark"]) == (1, TRAINED, MODELS)


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
import time
from pathlib import Path
runs = Path('../data/runs/tiny')
def note(line):
    with open('../journal', 'a') as journal:
        print(line, file=journal)
def write(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('')
def finish(model):
    for name in ('manifest.json', 'model/model.safetensors'):
        write(runs / model / f'seed-{seed}' / name)
"""
STUBS = {
    "00_start_here": "note('start')",
    "01_data_and_batches": "note('data')",
    "02_losses_by_hand": "note('losses')",
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
write(runs / 'fusion' / f'seed-{seed}' / 'study.csv')
""",
    "05_benchmark": """
note(f'benchmark {variant}')
for name in ('scores.csv', 'embeddings.safetensors'):
    write(runs / variant / f'seed-{seed}' / name)
""",
    "06_comparison": """
note('comparison')
for name in ('comparisons.csv', 'claims.csv', 'study_comparisons.csv'):
    write(runs / name)
""",
    "07_embedding_geometry": """
note('geometry')
tables = "geometry spectrum cosines rated_pairs trajectory layers associations umap"
for name in [f"{table}.csv" for table in tables.split()]:
    write(runs / name)
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
    assert start(tiny, "log", preset="tiny").wait(PATIENCE) == 1
    text = (tiny / "log").read_text()
    failed = "data/runs/tiny/codiemb/seed-0/03_joint_training.failed.ipynb"
    assert re.search(
        rf"codiemb: .*In \[\d\].* failed: AssertionError: told to fail.*{failed}", text
    )
    assert (tiny / failed).is_file()

    (tiny / "fail").unlink()
    reproduce(tiny, preset="tiny")
    done = journal(tiny)
    assert done.count("from scratch") == done.count("from checkpoint") == 1
    assert sorted(line for line in done if line.startswith("benchmark")) == [
        "benchmark base",
        "benchmark codiemb",
        "benchmark soup",
    ]
    assert sorted(done[-3:-1]) == ["comparison", "geometry"]
    assert done[-1] == "figures"
    assert not (tiny / failed).exists()

    assert "Nothing to be done" in reproduce(tiny, preset="tiny")
    (tiny / "figures" / "tiny" / "results.csv").unlink()
    reproduce(tiny, preset="tiny")
    assert journal(tiny) == [*done, "figures"]


def test_run_after_a_kill_waits_for_what_lives_on_and_needs_no_unlocking(tiny):
    """Snakemake alone is killed: its notebook lives on and must not run twice at once."""
    (tiny / "wait").touch()
    first = start(tiny, "first", "--until", "train", preset="tiny")
    wait_until(lambda: "from scratch" in journal(tiny))
    first.kill()
    first.wait(PATIENCE)

    second = start(tiny, "second", "--until", "train", preset="tiny")
    wait_until(lambda: "waiting for its end" in (tiny / "second").read_text())
    assert journal(tiny).count("train begins") == 1
    (tiny / "wait").unlink()
    assert second.wait(PATIENCE) == 0, (tiny / "second").read_text()
    runs = [line for line in journal(tiny) if line.startswith("train")]
    assert runs == ["train begins", "train ends"] * 2
    assert "from checkpoint" in journal(tiny)


def test_second_call_waits_for_the_first(tiny):
    (tiny / "wait").touch()
    first = start(tiny, "first", "--until", "train", preset="tiny")
    wait_until(lambda: "train begins" in journal(tiny))
    second = start(tiny, "second", "--until", "train", preset="tiny")
    wait_until(lambda: "waiting for its end" in (tiny / "second").read_text())
    (tiny / "wait").unlink()
    assert first.wait(PATIENCE) == 0, (tiny / "first").read_text()
    assert second.wait(PATIENCE) == 0, (tiny / "second").read_text()
    assert journal(tiny).count("train begins") == 1
