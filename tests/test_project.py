"""What the files around the library promise."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
CONDA_NAMES = {"torch": "pytorch"}


def tracked() -> list[Path]:
    """The files under version control or about to be; all but the ignored ones in a plain copy."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others"]
    listed = subprocess.run([*command, "--exclude-standard"], capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git repository")
    return [p for name in listed.stdout.split("\0") if name and (p := ROOT / name).is_file()]


@pytest.fixture(scope="module")
def bounds() -> dict[str, Requirement]:
    """The requirements of pyproject.toml by canonical name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + project["optional-dependencies"]["dev"]
    return {canonicalize_name(r.name): r for r in map(Requirement, lines)}


@pytest.fixture(scope="module")
def locked() -> dict[str, str]:
    """The locks' versions by canonical name."""
    text = "".join((ROOT / f"requirements{name}.lock").read_text() for name in ("", "-torch"))
    pins = re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE)
    return {canonicalize_name(name): version for name, version in pins}


def test_lock_pins_everything_within_the_bounds(bounds, locked):
    for name, requirement in bounds.items():
        assert requirement.specifier.contains(locked[name]), name


def test_lock_has_a_hash_of_every_package_but_torch(locked):
    text = (ROOT / "requirements.lock").read_text()
    hashed = re.findall(r"^([\w.-]+)==\S+ \\\n    --hash=sha256:[0-9a-f]{64}", text, re.MULTILINE)
    assert {*map(canonicalize_name, hashed)} == locked.keys() - {"torch"}


def test_lock_takes_a_torch_that_an_index_of_cpu_builds_has(locked):
    assert locked["torch"] == "2.13.0"
    assert not any("+" in version for version in locked.values())


def test_conda_users_get_the_same_bounds(bounds):
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    [from_pip] = [entry["pip"] for entry in environment if isinstance(entry, dict)]
    conda = [Requirement(line) for line in environment if isinstance(line, str) and line != "pip"]
    found = {r.name: r.specifier for r in conda} | {
        r.name: r.specifier for r in map(Requirement, from_pip)
    }
    python = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert str(found.pop("python")) == str(Requirement(f"python{python}").specifier)
    assert found == {CONDA_NAMES.get(n, n): r.specifier for n, r in bounds.items()}


def test_no_file_is_large():
    assert not [path for path in tracked() if path.stat().st_size > 2 * 2**20]


def test_notebooks_are_stored_without_outputs():
    for path in (path for path in tracked() if path.suffix == ".ipynb"):
        for cell in json.loads(path.read_text())["cells"]:
            if cell["cell_type"] == "code":
                assert (cell["outputs"], cell["execution_count"]) == ([], None), path


def test_files_name_no_package_registry():
    names = re.compile(r"--(extra-)?index-url|--find-links|pythonhosted|pypi\.org/simple")
    files = [
        "Makefile",
        "requirements.lock",
        "requirements-torch.lock",
        "environment.yml",
        "pyproject.toml",
        ".ci/run",
    ]
    assert not [name for name in files if names.search((ROOT / name).read_text())]


def test_ci_runs_the_test_command():
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "make test"


def test_citation_names_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())["preferred-citation"]
    assert citation["title"].startswith("CoDiEmb")
    assert "2508.11442" in citation["url"]
