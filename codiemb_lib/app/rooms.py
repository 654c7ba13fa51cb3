"""Which files of this library a notebook hangs on: those of the rooms that it imports, and below.

Nothing is imported to find out: the names of rooms are read from the text of the code cells.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

# What each room may import; import-linter holds the code to it (pyproject.toml).
BELOW = {
    "core": (),
    "data": ("core",),
    "model": ("core",),
    "evaluate": ("data", "model"),
    "train": ("evaluate",),
    "fuse": ("evaluate",),
    "space": ("evaluate",),
    "draw": ("evaluate", "fuse", "space"),
    "app": ("train", "draw"),
}
_IMPORT = re.compile(r"^\s*(?:from|import) codiemb_lib\.(\w+)", re.MULTILINE)


def notebook_files(notebook: str | Path, *, root: str | Path) -> list[Path]:
    """The files of the rooms that a notebook imports, directly or not.

    Args:
        notebook: Its path.
        root: The package's folder; the paths returned start with it.
    """
    cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    rooms: set[str] = set()
    waiting = _IMPORT.findall(code)
    while waiting:
        if (room := waiting.pop()) not in rooms:
            rooms.add(room)
            waiting += BELOW[room]
    files = (file for room in rooms for file in Path(root, room).rglob("*"))
    return sorted(file for file in files if file.suffix in {".py", ".mplstyle"})
