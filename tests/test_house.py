"""The rules that keep the house as it is: its size, its rooms and their faces."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "codiemb_lib"
ROOMS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
LIBRARY = ("core", "data", "model", "evaluate", "train", "fuse")
OUTSIDE = ["notebooks/**/*.py", "notebooks/**/*.ipynb", "speed/*.py", "data/build/*.py"]
FILES = [*PACKAGE.rglob("*.py"), *(file for kind in OUTSIDE for file in ROOT.glob(kind))]


def lines(*folders: Path) -> int:
    files = [file for folder in folders for file in folder.rglob("*.py")]
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


def test_the_package_stays_small():
    assert lines(PACKAGE) <= 12_420  # 11,000 until the levers of the study came
    assert lines(*(PACKAGE / room for room in LIBRARY)) <= 9_220  # 8,000
    sizes = {str(file): len(file.read_text().splitlines()) for file in PACKAGE.rglob("*.py")}
    assert not {file: size for file, size in sizes.items() if size > 500}


def test_readme_can_be_read_at_once():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 110
    assert len(text.encode()) <= 7_000


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_what_it_is_for_and_has_what_its_face_names(room):
    face = importlib.import_module(f"codiemb_lib.{room}")
    assert len(face.__doc__) > 40
    assert face.__all__
    for name in face.__all__:
        getattr(face, name)


def test_nothing_is_pickled():
    unsafe = re.compile(r"torch\.(load|save)\(|\bimport (pickle|joblib)|allow_pickle=True")
    assert not [file for file in PACKAGE.rglob("*.py") if unsafe.search(file.read_text("utf-8"))]


def source(path: Path) -> str:
    """The code of a module, or of a notebook's cells."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
        return "\n".join(re.sub(r"(?m)^\s*[%!]", "#", "".join(cell["source"])) for cell in cells)
    return text


def imported(code: str) -> set[str]:
    """What a piece of code imports, with full names."""
    nodes = [*ast.walk(ast.parse(code))]
    names = {a.name for node in nodes if isinstance(node, ast.Import) for a in node.names}
    froms = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    return names | {f"{node.module}.{a.name}" for node in froms for a in node.names}


def past_the_face(code: str, inside: str = "") -> list[str]:
    """What a piece of code imports from rooms, other than the one it lies in, past their faces."""
    found = []
    for name in sorted(imported(code)):
        package, room, inner = [*name.split(".", 2), "", ""][:3]
        if package == "codiemb_lib" and room in ROOMS and room != inside and inner:
            face = importlib.import_module(f"codiemb_lib.{room}")
            found += [name] if inner not in (*face.__all__, "NUMERICS") else []
    return found


def test_rooms_are_entered_by_their_faces_alone():
    found = {}
    for file in FILES:
        inside = file.relative_to(PACKAGE).parts[0] if file.is_relative_to(PACKAGE) else ""
        found[str(file.relative_to(ROOT))] = past_the_face(source(file), inside)
    rules = (ROOT / "Snakefile").read_text(encoding="utf-8")
    found["Snakefile"] = past_the_face("\n".join(re.findall(r"(?m)^(?:from|import) .*$", rules)))
    assert not {file: names for file, names in found.items() if names}


@pytest.mark.parametrize("room", ["core", "data", "draw"])
def test_what_reads_names_and_draws_loads_no_torch(room):
    code = (
        f"import sys, codiemb_lib.{room} as room; [getattr(room, name) for name in room.__all__]; "
        "print({'torch', 'transformers'} & {*sys.modules})"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"
