from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from codiemb_lib.imports import (
    ROOT,
    module_files,
    notebook_files,
    notebook_modules,
    source_hash,
)


@pytest.fixture
def package(tmp_path):
    """A package: a -> b, c; b -> c, d inside a function; d -> a style sheet; e stands alone."""
    root = tmp_path / "a folder" / "codiemb_lib"
    root.mkdir(parents=True)
    for name, text in {
        "__init__": "__version__ = '1'",
        "a": "import codiemb_lib.b\nfrom codiemb_lib import __version__, c\nimport os",
        "b": "from codiemb_lib.c import x\ndef f():\n    from codiemb_lib.d import y",
        "c": "from . import a\nx = 1",
        "d": "SHEET = 'codiemb_lib.paper'\ny = 2",
        "e": "import codiemb_library",
    }.items():
        (root / f"{name}.py").write_text(text)
    (root / "paper.mplstyle").write_text("font.size: 8")
    return root


def write_notebook(path: Path, *sources: str) -> Path:
    cells = [{"cell_type": "code", "source": source.splitlines(True)} for source in sources]
    prose = {"cell_type": "markdown", "source": ["from codiemb_lib import e"]}
    path.write_text(json.dumps({"cells": [prose, *cells]}))
    return path


def names(files):
    return [file.name for file in files]


def test_imports_are_followed_at_any_depth_and_in_circles(package):
    assert names(module_files(["codiemb_lib.a"], root=package)) == [
        "a.py",
        "b.py",
        "c.py",
        "d.py",
        "paper.mplstyle",
    ]
    assert names(module_files(["codiemb_lib.d"], root=package)) == ["d.py", "paper.mplstyle"]
    assert names(module_files(["codiemb_lib.e"], root=package)) == ["e.py"]
    assert module_files([], root=package) == []


def test_paths_start_with_the_given_root(package, monkeypatch):
    monkeypatch.chdir(package.parent)
    assert module_files(["codiemb_lib.e"], root="codiemb_lib") == [Path("codiemb_lib/e.py")]


def test_misspelt_module_is_named(package):
    (package / "e.py").write_text("from codiemb_lib import objectivs")
    with pytest.raises(ModuleNotFoundError, match=r"codiemb_lib\.objectivs: expected a module"):
        module_files(["codiemb_lib.e"], root=package)


def test_notebook_modules_come_from_its_code_cells(tmp_path, package):
    notebook = write_notebook(
        tmp_path / "n.ipynb",
        "%matplotlib inline\nimport codiemb_lib.d as d",
        "if True:\n    from codiemb_lib import c",
        "import numpy",
    )
    assert notebook_modules(notebook) == ["codiemb_lib.c", "codiemb_lib.d"]
    assert "e.py" not in names(notebook_files(notebook, root=package))


@pytest.mark.parametrize(
    ("source", "message"),
    [("x = (", "cell 2, line 1: expected Python"), (None, "expected a notebook")],
)
def test_notebook_that_cannot_be_read_is_refused(tmp_path, source, message):
    notebook = tmp_path / "n.ipynb"
    notebook.write_text("{}") if source is None else write_notebook(notebook, source)
    with pytest.raises(ValueError, match=message):
        notebook_modules(notebook)


def test_source_hash_follows_code_of_all_dependencies_but_no_comment(package):
    before = source_hash("codiemb_lib.a", root=package)
    (package / "e.py").write_text("other = 1")
    (package / "__init__.py").write_text("__version__ = '2'")
    (package / "c.py").write_text("from . import a  # a comment\n\nx = 1")
    assert source_hash("codiemb_lib.a", root=package) == before
    (package / "d.py").write_text("SHEET = 'codiemb_lib.paper'\ny = 3")
    after = source_hash("codiemb_lib.a", root=package)
    assert after != before
    (package / "paper.mplstyle").write_text("font.size: 9")
    assert source_hash("codiemb_lib.a", root=package) != after


def test_training_depends_on_objectives_and_on_no_figure():
    training = names(module_files(["codiemb_lib.training"]))
    assert {"training.py", "objectives.py", "sampling.py", "files.py"} <= {*training}
    assert not {"figures.py", "style.py", "paper.mplstyle", "cli.py"} & {*training}


@pytest.mark.parametrize("name", ["03_joint_training", "08_paper_figures"])
def test_what_is_found_agrees_with_what_python_loads(name):
    """The oracle: a fresh interpreter that imports what the notebook imports."""
    notebook = ROOT.parent / "notebooks" / f"{name}.ipynb"
    code = f"import sys, {', '.join(notebook_modules(notebook))}\nprint(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True, check=True
    ).stdout.split()
    found = {f"codiemb_lib.{f.stem}" for f in notebook_files(notebook) if f.suffix == ".py"}
    assert {name for name in loaded if name.startswith("codiemb_lib.")} <= found
