"""What every notebook of ours keeps to, read from its cells without running them."""

from __future__ import annotations

import ast
import json
import re
import warnings
from pathlib import Path

import pytest

from codiemb_lib.app.notebooks import read_parameters

FOLDER = Path(__file__).parents[2] / "notebooks"
ALL = sorted(FOLDER.rglob("*.ipynb"))
ALL = [path for path in ALL if ".ipynb_checkpoints" not in path.parts]
LONG = 20  # lines of a cell
NETWORK = {"urllib", "requests", "httpx", "aiohttp", "socket", "huggingface_hub", "pooch", "ftplib"}
SHELL = re.compile(r"^\s*([!]|%(pip|cd|conda|env)\b|%%(bash|sh)\b)", re.MULTILINE)
ABSOLUTE = re.compile(r"[\"'(\s](/(home|root|Users|tmp|work|mnt|data|usr|opt)/|[A-Z]:\\\\)")

each = pytest.mark.parametrize(
    "path", ALL, ids=lambda p: str(p.relative_to(FOLDER).with_suffix(""))
)


def cells(path: Path, kind: str = "") -> list[dict]:
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [
        cell | {"source": "".join(cell["source"])}
        for cell in found
        if kind in ("", cell["cell_type"])
    ]


def python(source: str) -> ast.Module:
    return ast.parse(re.sub(r"(?m)^\s*%", "#", source))


@each
def test_it_opens_with_question_gain_runtime_and_what_goes_in_and_out(path):
    first = cells(path)[0]
    assert first["cell_type"] == "markdown"
    assert first["source"].startswith("# ")
    assert "?" in first["source"].partition("**The question.**")[2].partition("\n\n")[0]
    for said in ("**The question.**", "**You will learn**", "**Runtime**", "**In:**", "**Out:**"):
        assert said in first["source"], said


@each
def test_it_closes_with_what_was_found_and_what_to_try(path):
    prose = "\n".join(cell["source"] for cell in cells(path, "markdown"))
    headings = re.findall(r"(?m)^## (.*)$", prose)
    assert headings[-2:] == ["What we found", "Try this"]
    assert cells(path)[-1]["cell_type"] == "markdown"


@each
def test_parameters_come_first_and_imports_stand_in_one_cell_behind_them(path):
    assert read_parameters(path)  # exactly one such cell, of typed literals
    parameters, imports, *rest = cells(path, "code")
    assert parameters["metadata"]["tags"] == ["parameters"]
    for line in parameters["source"].splitlines():
        assert "=" not in line.partition("#")[2], line
    assert "import" in imports["source"]
    late = [
        ast.unparse(node)
        for cell in rest
        for node in ast.walk(python(cell["source"]))
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert not late


@each
def test_every_section_is_told_in_words_before_its_code(path):
    kinds = "".join(cell["cell_type"][0] for cell in cells(path))
    assert kinds.startswith("mc")
    assert "ccccc" not in kinds, "five code cells in a row: say what they do"


@each
def test_no_network_no_shell_no_absolute_path_no_blanket_filter(path):
    for cell in cells(path, "code"):
        source = cell["source"]
        assert not SHELL.search(source), source
        assert not ABSOLUTE.search(source), source
        assert "filterwarnings" not in source
        assert "sys.path" not in source
        for node in ast.walk(python(source)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [getattr(node, "module", None) or "", *(a.name for a in node.names)]
                assert not NETWORK & {name.partition(".")[0] for name in names}, source


@each
def test_outputs_and_widget_states_are_stripped(path):
    content = json.loads(path.read_text(encoding="utf-8"))
    assert {*content["metadata"]} == {"kernelspec", "language_info"}
    for cell in content["cells"]:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)


@each
def test_links_to_other_files_lead_somewhere(path):
    for cell in cells(path, "markdown"):
        for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", cell["source"]):
            linked = path.parent / target
            assert linked.exists() or linked.with_suffix(".md").exists(), target


def test_long_cells_are_listed():
    """Advice rather than a rule: pytest shows the list among its warnings."""
    found = [
        f"{path.stem}, cell {number}: {lines} lines"
        for path in ALL
        for number, cell in enumerate(cells(path), start=1)
        if cell["cell_type"] == "code" and (lines := len(cell["source"].splitlines())) > LONG
    ]
    if found:
        warnings.warn(f"cells longer than {LONG} lines: " + "; ".join(found), stacklevel=1)


@pytest.mark.parametrize(
    ("rule", "source"),
    [
        (SHELL, "x = 1\n!pip install x"),
        (SHELL, "%cd .."),
        (ABSOLUTE, 'open("/home/me/data.csv")'),
        (ABSOLUTE, "Path('C:\\\\\\\\data')"),
    ],
)
def test_the_patterns_of_these_rules_match_what_they_are_for(rule, source):
    assert rule.search(source)
    assert not rule.search("draw(rows['a'] / 2)  # not! %5 http://x/home/y")
