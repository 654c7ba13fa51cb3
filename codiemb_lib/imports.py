"""Which files of this library a module or a notebook needs, read from their import statements.

Nothing is imported to find out: the statements are read from the syntax tree, so also those inside
functions count, and a notebook that needs hours to run is looked at in milliseconds.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable
from pathlib import Path

from codiemb_lib.files import sha256_text

PACKAGE = "codiemb_lib"
ROOT = Path(__file__).resolve().parent


def module_files(names: Iterable[str], *, root: str | Path = ROOT) -> list[Path]:
    """The files of modules of this library and of all others that they import, at any depth.

    A style sheet that a module names as matplotlib does ("codiemb_lib.paper") counts. `__init__.py`
    does not: it holds the version, and a new version alone changes no result.

    Args:
        names: Such as "codiemb_lib.training".
        root: The package's folder; the paths returned start with it.

    Raises:
        ModuleNotFoundError: A name that is imported is no module of the library.
    """
    root = Path(root)
    found: set[Path] = set()
    waiting = [*names]
    while waiting:
        name = waiting.pop()
        path = root / f"{_stem(name)}.py"
        if path in found:
            continue
        if not path.is_file():
            raise ModuleNotFoundError(
                f"{name}: expected a module of {PACKAGE}, found no {path}. "
                "Check the spelling in the import statement.",
                name=name,
            )
        found.add(path)
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        waiting += _imported(tree)
        found.update(_style_sheets(tree, root))
    return sorted(found)


def notebook_modules(notebook: str | Path) -> list[str]:
    """The modules of this library that a notebook's code cells import themselves.

    Raises:
        ValueError: The file is no notebook, or a code cell is no Python.
    """
    names: set[str] = set()
    try:
        cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{notebook}: expected a notebook (JSON with `cells`).") from error
    for number, cell in enumerate(cells, start=1):
        if cell["cell_type"] != "code":
            continue
        source = re.sub(r"(?m)^\s*[%!]", "#", "".join(cell["source"]))  # IPython's magic lines
        try:
            names.update(_imported(ast.parse(source)))
        except SyntaxError as error:
            raise ValueError(
                f"{notebook}: cell {number}, line {error.lineno}: expected Python, "
                f"found: {error.msg}."
            ) from error
    return sorted(names)


def notebook_files(notebook: str | Path, *, root: str | Path = ROOT) -> list[Path]:
    """The files of this library that a notebook needs, directly or not.

    Raises:
        ValueError: As `notebook_modules`.
        ModuleNotFoundError: As `module_files`.
    """
    return module_files(notebook_modules(notebook), root=root)


def source_hash(*names: str, root: str | Path = ROOT) -> str:
    """SHA-256 of the code of modules and of all that they import from this library.

    The syntax trees are hashed: a comment or a line break moves nothing.
    """
    parts = []
    for path in module_files(names, root=root):
        text = path.read_text(encoding="utf-8")
        parts += [path.name, ast.dump(ast.parse(text)) if path.suffix == ".py" else text]
    return sha256_text(*parts)


def _stem(name: str) -> str:
    return name.removeprefix(f"{PACKAGE}.").partition(".")[0]


def _imported(tree: ast.AST) -> set[str]:
    """The modules of this library that a syntax tree imports, with full names."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(a.name for a in node.names if a.name.startswith(f"{PACKAGE}."))
        elif isinstance(node, ast.ImportFrom):
            source = f"{PACKAGE}.{node.module or ''}".rstrip(".") if node.level else node.module
            if source == PACKAGE:  # all but `__version__` are modules
                modules = (alias.name for alias in node.names)
                names.update(f"{PACKAGE}.{name}" for name in modules if not name.startswith("_"))
            elif source.startswith(f"{PACKAGE}."):
                names.add(source)
    return names


def _style_sheets(tree: ast.AST, root: Path) -> set[Path]:
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    sheets = root.glob("*.mplstyle")
    return {sheet for sheet in sheets if f"{PACKAGE}.{sheet.stem}" in texts}
