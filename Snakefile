# The order of the notebooks. `make reproduce` runs what is missing or out of date, and no more.
#
# A rule executes one notebook; its output is the executed copy, written once every cell has passed.
# Its inputs are the notebook, the preset, the registry of data sets, the runs before it, and the
# files of the rooms of the library that this notebook imports, directly or not. How it draws counts
# only where pictures are what it is for: a colour trains, merges and measures nothing anew. What
# these files hold decides, by a hash that each rule has as a parameter; time stamps may lie. What the
# notebook computes lies beside the copy. Trained and fused models are not declared as outputs, since
# Snakemake removes those before it runs a rule again: a killed training would lose the checkpoint
# that it goes on from, and a notebook whose text alone has changed would train anew instead of
# finding its finished run.

import functools
import glob
import os
import re
import shlex
import sys
from pathlib import Path

from codiemb_lib.app import notebook_files
from codiemb_lib.core import data_root, load_preset, sha256_file, sha256_text
from codiemb_lib.data import list_datasets, public_files

PRESET = load_preset(config.get("preset", "mini"))
# Seeds of which rows are made and kept, and no more; none named: all, and what is made of them.
SEEDS = [int(seed) for seed in str(config.get("seeds", "")).split()]
# Whether the rows that are kept are taken as they are, and no run is asked for.
FROM_ROWS = bool(config.get("rows"))
RUNS = f"data/runs/{PRESET.name}"
FIGURES = f"figures/{PRESET.name}"
STUDY = ["study"] if PRESET.fusion else []  # tables of notebook 04
STUDY += ["path", "path_geometry"] if PRESET.fusion_study and PRESET.fusion_study.path else []
# The tables of notebook 06_comparison.
COMPARED = ["comparisons", "claims"] + (["study_comparisons"] if STUDY else [])
# What is kept of every seed.
ROWS = [f"{FIGURES}/rows/seed-{seed}/texts.npz" for seed in PRESET.seeds]
# What notebook 05 compares a model with.
BASE = f"{RUNS}/base/seed-{PRESET.seeds[0]}/embeddings.safetensors"
# The kernel is the Python that runs Snakemake. One thread a run (Snakemake sets
# OMP_NUM_THREADS), so that the number of cores changes no bit.
PYTHON = shlex.quote(sys.executable)
EXECUTE = f"{PYTHON} -m codiemb_lib execute --no-progress"


def local_files():
    """The files of data sets and of an encoder that the preset names by a path."""
    paths = [Path(PRESET.encoder.name).expanduser(), *(Path(d.name) for d in PRESET.datasets)]
    suffixes = {".jsonl", ".json", ".csv", ".tsv", ".txt", ".gz", ".safetensors", ".model", ".py"}
    found = [file for path in paths if path.exists() for file in (path, *path.rglob("*"))]
    return sorted(str(file) for file in found if file.is_file() and file.suffix in suffixes)


def root_files():
    """The files of the data root that the preset's data sets read.

    Files that are fetched are none: they lie in data/cache, pinned by the registry, and before the
    first run they are not there. The paths do not hang on where the project lies.
    """
    names, root = {d.name for d in PRESET.datasets}, data_root(PRESET.data_root)
    files = public_files(entry for entry in list_datasets() if entry.name in names)
    paths = [root / file.path for file in files] if root else []
    return sorted(os.path.relpath(path) for path in paths if path.is_file())


@functools.cache
def files_of(notebook, draws):
    """What every rule of a notebook depends on, by kind."""
    path = f"notebooks/{notebook}.ipynb"
    library = notebook_files(path, root="codiemb_lib", without=() if draws else ("draw",))
    said = [f"instructions/{PRESET.instructions.file}"] if PRESET.instructions else []
    said += [PRESET.extends] if PRESET.extends else []
    return {
        "notebook": [path],
        "preset": [f"notebooks/presets/{name}.yaml" for name in (PRESET.name, *said)],
        "registry": ["data/registry.yaml", *sorted(glob.glob("data/build/*.py"))],
        "library": [str(file) for file in library],
        "local": local_files() + root_files(),
    }


def needs(notebook, *, draws=False):
    """These files as inputs; in a path a brace would begin a wildcard."""
    kinds = files_of(notebook, draws).items()
    return {kind: [re.sub(r"([{}])", r"\1\1", file) for file in of] for kind, of in kinds}


def content(notebook, *, draws=False):
    """A hash of what they hold; as a plain value, or Snakemake would not compare it."""
    files = [file for of in files_of(notebook, draws).values() for file in of]
    return sha256_text(*(f"{file} {sha256_file(file)}" for file in files))


def run(model, seed):
    """The executed copy that says that a model is there; the untrained one always is."""
    if model in PRESET.fusion:
        return f"{RUNS}/fusion/seed-{seed}/04_checkpoint_fusion.ipynb"
    return [] if model == "base" else f"{RUNS}/{model}/seed-{seed}/03_joint_training.ipynb"


def every(file, seed):
    """A file of every model's run at a seed."""
    models = [model for model in PRESET.models if int(seed) in PRESET.model_seeds(model)]
    return [f"{RUNS}/{model}/seed-{seed}/{file}" for model in models]


def studied(seed):
    """What notebook 04 leaves of a seed."""
    return [f"{RUNS}/fusion/seed-{seed}/{table}.csv" for table in STUDY]


def names(models):
    return "|".join(map(re.escape, models)) or "none"


wildcard_constraints:
    seed=r"\d+",
    model=names(PRESET.models),
    variant=names(PRESET.variants),


localrules:
    all,


INTRODUCTIONS = ["00_start_here", "01_data_and_batches", "02_losses_by_hand"]
ASKED = [ROWS[PRESET.seeds.index(seed)] for seed in SEEDS]
if not ASKED:
    ASKED = [f"{RUNS}/09_paper_figures.ipynb", f"{FIGURES}/results.csv"]
    ASKED += [] if FROM_ROWS else [f"{RUNS}/{name}.ipynb" for name in INTRODUCTIONS]


rule all:
    input:
        ASKED,


rule start:
    input:
        **needs("00_start_here", draws=True),
    output:
        f"{RUNS}/00_start_here.ipynb",
    params:
        content=content("00_start_here", draws=True),
    message:
        "00 start here"
    shell:
        "{EXECUTE} {input.notebook} {output} -p preset {PRESET.name}"


rule data:
    input:
        **needs("01_data_and_batches", draws=True),
    output:
        f"{RUNS}/01_data_and_batches.ipynb",
    params:
        content=content("01_data_and_batches", draws=True),
    message:
        "01 data and batches"
    shell:
        "{EXECUTE} {input.notebook} {output} -p preset {PRESET.name}"


rule losses:
    input:
        **needs("02_losses_by_hand", draws=True),
    output:
        f"{RUNS}/02_losses_by_hand.ipynb",
    params:
        content=content("02_losses_by_hand", draws=True),
    message:
        "02 losses by hand"
    shell:
        "{EXECUTE} {input.notebook} {output} -p preset {PRESET.name}"


rule train:
    input:
        **needs("03_joint_training"),
        # Which also mines the hard negatives that the preset asks for.
        mined=f"{RUNS}/01_data_and_batches.ipynb" if any(d.mine for d in PRESET.datasets) else [],
        teachers=lambda w: [run(v, w.seed) for v in PRESET.variants[w.variant].teachers.values()],
    output:
        f"{RUNS}/{{variant}}/seed-{{seed}}/03_joint_training.ipynb",
    params:
        content=content("03_joint_training"),
    message:
        "03 train {wildcards.variant}, seed {wildcards.seed}"
    shell:
        "{EXECUTE} {input.notebook} {output} -p preset {PRESET.name}"
        " -p variant {wildcards.variant} -p seed {wildcards.seed}"


rule fuse:
    input:
        **needs("04_checkpoint_fusion"),
        ingredients=lambda w: [run(v, w.seed) for v in PRESET.variants],
    output:
        executed=f"{RUNS}/fusion/seed-{{seed}}/04_checkpoint_fusion.ipynb",
        rows=[f"{RUNS}/fusion/seed-{{seed}}/{table}.csv" for table in STUDY],
    priority: 1  # the longest of all: begun last, it would leave the other cores idle
    params:
        content=content("04_checkpoint_fusion"),
    message:
        "04 fuse, seed {wildcards.seed}"
    shell:
        "{EXECUTE} {input.notebook} {output.executed} -p preset {PRESET.name} -p seed {wildcards.seed}"


rule benchmark:
    input:
        **needs("05_benchmark"),
        model=lambda w: run(w.model, w.seed),
        reference=lambda w: [] if w.model == "base" else BASE,
    output:
        executed=f"{RUNS}/{{model}}/seed-{{seed}}/05_benchmark.ipynb",
        scores=f"{RUNS}/{{model}}/seed-{{seed}}/scores.csv",
        texts=f"{RUNS}/{{model}}/seed-{{seed}}/texts.npz",
        embeddings=f"{RUNS}/{{model}}/seed-{{seed}}/embeddings.safetensors",
    params:
        content=content("05_benchmark"),
    message:
        "05 benchmark {wildcards.model}, seed {wildcards.seed}"
    shell:
        "{EXECUTE} {input.notebook} {output.executed} -p preset {PRESET.name}"
        " -p variant {wildcards.model} -p seed {wildcards.seed}"


rule comparison:
    input:
        **needs("06_comparison"),
        kept=ROWS,
    output:
        executed=f"{RUNS}/06_comparison.ipynb",
        rows=[f"{RUNS}/{table}.csv" for table in COMPARED],
    params:
        content=content("06_comparison"),
    message:
        "06 comparison"
    shell:
        "{EXECUTE} {input.notebook} {output.executed} -p preset {PRESET.name}"


rule geometry:
    input:
        **needs("07_embedding_geometry"),
        embeddings=lambda w: every("embeddings.safetensors", w.seed),
        reference=BASE,
        merges=lambda w: studied(w.seed),
    output:
        executed=f"{RUNS}/geometry/seed-{{seed}}/07_embedding_geometry.ipynb",
    params:
        content=content("07_embedding_geometry"),
    message:
        "07 embedding geometry, seed {wildcards.seed}"
    shell:
        "{EXECUTE} {input.notebook} {output.executed} -p preset {PRESET.name} -p seed {wildcards.seed}"


if not FROM_ROWS:

    rule rows:
        input:
            texts=lambda w: every("texts.npz", w.seed),
            merges=lambda w: studied(w.seed),
            geometry=f"{RUNS}/geometry/seed-{{seed}}/07_embedding_geometry.ipynb",
        output:
            update(f"{FIGURES}/rows/seed-{{seed}}/texts.npz"),  # committed: not removed
        message:
            "rows of seed {wildcards.seed}"
        shell:
            "{PYTHON} -m codiemb_lib publish --preset {PRESET.name} --seed {wildcards.seed}"


rule figures:
    input:
        **needs("09_paper_figures", draws=True),
        kept=ROWS,
        comparison=rules.comparison.output.rows,
    output:
        executed=f"{RUNS}/09_paper_figures.ipynb",
        table=update(f"{FIGURES}/results.csv"),  # committed: not removed if the notebook fails
    params:
        content=content("09_paper_figures", draws=True),
    message:
        "09 paper figures"
    shell:
        "{EXECUTE} {input.notebook} {output.executed} -p preset {PRESET.name}"
