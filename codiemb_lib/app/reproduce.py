"""The commands `reproduce`, `publish`, `verify` and `draw`, and what the Snakefile asks of us."""

import ast
import os
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import click

from codiemb_lib import DOORS, core, data, draw
from codiemb_lib.app.options import Command, examples, preset_option


@click.command(
    cls=Command,
    epilog=examples(
        "reproduce --preset smoke --cores 2",
        "reproduce --preset study --seeds 3",
        "reproduce --preset study --from-rows",
        "reproduce -- --dry-run",
    ),
)
@preset_option()
@click.option("--cores", default="all", help="How many runs at once, a core each.")
@click.option("--seeds", multiple=True, type=int, metavar="SEED...", help="Rows of these alone.")
@click.option("--from-rows", is_flag=True, help="Compare and draw the rows that are kept; no run.")
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[-- OPTION...]")
def reproduce(
    preset: str, cores: str, seeds: Sequence[int], from_rows: bool, options: Sequence[str]
) -> None:
    """Run what is missing or out of date. Each OPTION is one of Snakemake.

    With --seeds, these are trained, merged, scored and measured, and their rows are kept in
    figures/NAME/rows. With --from-rows nothing is: seeds without runs here have their rows there.
    """
    if options and core.preset_path(options[0]).is_file():
        raise click.UsageError(f"expected --preset before the name {options[0]!r}.")
    if cores != "all" and not cores.strip("0").isdecimal():
        raise click.UsageError(f"--cores: expected a number from 1, or all, found {cores!r}.")
    settings = core.load_preset(preset)
    if strangers := {*seeds} - {*settings.seeds}:
        raise click.UsageError(f"--seeds: expected some of {settings.seeds}, found {strangers}.")
    kept = {seed for seed in settings.seeds if core.rows_file(preset, seed, "").is_dir()}
    if from_rows and (lacking := {*settings.seeds} - kept):
        raise core.PresetError(
            f"--from-rows: expected rows of every seed in {core.rows_file(preset, 0, '').parent}, "
            f"found none of {lacking}. Make them: codiemb reproduce --preset {preset} --seeds ..."
        )
    # Public sets are known by the registry: the notebooks may have to fetch their files.
    tasks = {entry.name: entry.task for entry in data.list_datasets()}
    for own in (d for d in settings.datasets if d.name not in tasks):
        dataset = data.load_dataset(own.name)
        tasks[own.name] = dataset.task
        dataset.split("dev", limit=own.dev), dataset.split("test", limit=own.test)  # are there
    data.check_tasks(settings, tasks)
    core.preset_folder(preset)  # no path: rules pass the name on to notebooks
    root = core.check_writable(core.project_root())
    os.chdir(root)
    command = [sys.executable, "-m", "snakemake", "--nolock", "--rerun-incomplete"]
    command += ["--quiet", "host", "reason", "--config", f'preset="{preset}"']
    command += [f'seeds="{" ".join(map(str, seeds))}"'] * bool(seeds) + ["rows=1"] * from_rows
    if copies := [os.path.relpath(copy) for copy in _outlived_copies(settings) if copy.is_file()]:
        command += ["--forcerun", *copies]  # by these alone Snakemake knows what is there
    command += ["--cores", cores]
    # Snakemake's own lock would outlive a kill. Ours is open in the process that we become.
    with core.alone(root / "data" / "runs") as lock:
        os.set_inheritable(lock, True)
        os.execv(sys.executable, [*command, *options])


@click.command(hidden=True)
@preset_option()
@click.option("--seed", type=int, required=True)
def publish(preset: str, seed: int) -> None:
    """Keep the rows of a seed's runs in figures/NAME/rows, as `reproduce` does at its end."""
    click.echo(core.publish(core.load_preset(preset), seed))


@click.command(epilog=examples("verify --preset english"))
@preset_option()
def verify(preset: str) -> None:
    """Check the files of finished runs against the hashes in their manifests.

    The status is 1 where one is damaged; `reproduce` makes such a run again.
    """
    settings, damaged = core.load_preset(preset), 0
    for model in settings.models[1:]:
        for seed in settings.model_seeds(model):
            folder = core.run_folder(settings.name, model, seed)
            there = (folder / "manifest.json").is_file()
            state = "whole" if core.manifest_of(folder) else "damaged" if there else "not there"
            damaged += state == "damaged"
            click.echo(f"{model:20} seed {seed}  {state}")
    click.get_current_context().exit(int(damaged > 0))


@click.command("draw", epilog=examples("draw trade_off", "draw comparisons --preset english"))
@click.argument("figure")
@preset_option()
def redraw(figure: str, preset: str) -> None:
    """Draw FIGURE anew, from the rows beside it."""
    import pandas as pd

    if figure not in draw.FIGURES:
        raise core.PresetError(core.unknown("figure", figure, draw.FIGURES))
    rows = core.figures_folder(preset) / f"{figure}.csv"
    if not rows.is_file():
        raise core.PresetError(
            f"{rows}: expected the rows of the figure, found none. Run `make reproduce "
            f"PRESET={preset}`."
        )
    draw.write(figure, pd.read_csv(rows), rows.parent)
    click.echo(rows.with_suffix(".png"))


def _outlived_copies(preset: "core.Preset") -> Iterator[Path]:
    """Executed notebooks of a preset whose model, or one of whose figures, has been removed."""
    for seed in preset.seeds:
        folders = {m: core.run_folder(preset.name, m, seed) for m in [*preset.models, "fusion"]}
        for variant in preset.variants:
            if not core.manifest_of(folders[variant]):
                yield folders[variant] / "03_joint_training.ipynb"
        if not all(core.manifest_of(folders[model]) for model in preset.fusion):
            yield folders["fusion"] / "04_checkpoint_fusion.ipynb"
    figures = core.figures_folder(preset.name)
    for stem in draw.FIGURES:
        there = {(figures / f"{stem}.{end}").is_file() for end in ("csv", "md", "pdf", "png")}
        if len(there) > 1:
            yield core.preset_folder(preset.name) / "09_paper_figures.ipynb"


def imported_rooms(code: str) -> set[str]:
    """The rooms that a piece of Python imports, also by the names that the package itself has."""
    nodes = [*ast.walk(ast.parse(code))]
    names = [alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names]
    froms = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    names += [f"{node.module}.{alias.name}" for node in froms for alias in node.names]
    found = [name.split(".")[1] for name in names if name.startswith("codiemb_lib.")]
    room_of = {name: room for room, names in DOORS.items() for name in names}
    return {room_of.get(name, name) for name in found}


def notebook_files(
    notebook: str | Path, *, root: str | Path, without: Collection[str] = ()
) -> list[Path]:
    """The files of the rooms that a notebook imports, directly or not, read from their source.

    `root` is the package's folder, with which the paths returned start. Rooms of `without` do not
    count where the notebook itself imports them.
    """
    cells = core.read_json(notebook)["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    waiting = imported_rooms(re.sub(r"(?m)^\s*[%!]", "#", code)) - {*without}
    files: dict[str, list[Path]] = {}
    while waiting:
        room = waiting.pop()
        here = Path(root, room).rglob("*.*")
        files[room] = [file for file in here if file.suffix != ".pyc"]
        source = [file.read_text(encoding="utf-8") for file in files[room] if file.suffix == ".py"]
        waiting |= set().union(*map(imported_rooms, source)) - files.keys()
    return sorted(file for found in files.values() for file in found)
