"""Which files of this library a notebook hangs on: those of the rooms that it imports, and below.

Nothing is imported to find out: which room imports which is read from the source.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Collection
from pathlib import Path

from codiemb_lib import DOORS

_ROOM_OF = {name: room for room, names in DOORS.items() for name in names}


def imported_rooms(code: str) -> set[str]:
    """The rooms that a piece of Python imports, also by the names that the package itself has."""
    names = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    found = [name.split(".")[1] for name in names if name.startswith("codiemb_lib.")]
    return {_ROOM_OF.get(name, name) for name in found}


def notebook_files(
    notebook: str | Path, *, root: str | Path, without: Collection[str] = ()
) -> list[Path]:
    """The files of the rooms that a notebook imports, directly or not.

    `root` is the package's folder, with which the paths returned start. Rooms of `without` do not
    count where the notebook itself imports them.
    """
    cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    waiting = imported_rooms(re.sub(r"(?m)^\s*[%!]", "#", code)) - {*without}
    files: dict[str, list[Path]] = {}
    while waiting:
        room = waiting.pop()
        files[room] = [f for f in Path(root, room).rglob("*") if f.suffix in {".py", ".mplstyle"}]
        source = [file.read_text(encoding="utf-8") for file in files[room] if file.suffix == ".py"]
        waiting |= set().union(*map(imported_rooms, source)) - files.keys()
    return sorted(file for found in files.values() for file in found)
