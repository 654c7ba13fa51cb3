from __future__ import annotations

import json
import sys
import tempfile
import threading
from pathlib import Path

import nbformat
import numpy as np
import pytest

from codiemb_lib.app.notebooks import (
    CellError,
    NotebookError,
    execute,
    read_parameters,
)
from codiemb_lib.core.files import UnwritableError, alone

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PARAMETERS = """\
steps: int = 200  # optimiser steps
rate: float = 1e-3  # of learning
quick: bool = False
name: str = ""
"""


@pytest.fixture
def make_notebook(tmp_path):
    def make(*sources: str, parameters: str | None = PARAMETERS) -> Path:
        cells = [nbformat.v4.new_code_cell(source) for source in sources]
        if parameters is not None:
            tagged = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
            cells.insert(0, tagged)
        path = tmp_path / "a folder" / "notebook.ipynb"
        path.parent.mkdir(exist_ok=True)
        nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
        return path

    return make


@pytest.fixture
def no_kernel(monkeypatch):
    """Fail the test where a kernel would start."""

    def start(*_, **__):
        pytest.fail("a kernel was started")

    monkeypatch.setattr("papermill.execute_notebook", start)


def outputs(path: Path) -> list[str]:
    cells = nbformat.read(path, as_version=4).cells
    return [output["text"] for cell in cells for output in cell.get("outputs", [])]


def test_parameters_reach_a_kernel_of_this_python_over_ipc(make_notebook, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("long " * 40)))
    Path(tempfile.tempdir).mkdir()
    notebook = make_notebook(
        "import json, os, sys\n"
        "from ipykernel.connect import get_connection_file\n"
        "connection = json.load(open(get_connection_file()))\n"
        "here = [os.getcwd(), sys.executable, connection['transport'], connection['ip']]\n"
        "print(json.dumps([steps, rate, quick, name, *here]))"
    )
    notebook.write_bytes(b"\xef\xbb\xbf" + notebook.read_bytes())  # some editors set a mark
    given = {"steps": np.int64(3), "rate": "-2e-3", "quick": "True", "name": "it's {x}"}
    out = tmp_path / "with space {x}" / "copy.ipynb"
    assert execute(notebook, out, given) == out

    [text] = outputs(out)
    *values, folder, python, transport, socket = json.loads(text)
    assert values == [3, -0.002, True, "it's {x}"]
    assert Path(folder) == notebook.parent
    assert python == sys.executable
    assert transport == "ipc"
    assert not list(Path(socket).parent.parent.glob(f"{Path(socket).parent.name}*"))  # cleaned up
    assert str(tmp_path) not in json.dumps(nbformat.read(out, as_version=4).metadata)
    assert [file.name for file in out.parent.iterdir()] == ["copy.ipynb"]


def test_failing_cell_is_named_and_the_partial_copy_kept(make_notebook, tmp_path):
    notebook = make_notebook(
        "print(1)", "# why\nprint(2)\nraise ValueError('too\\nbad')", "print(3)"
    )
    out = tmp_path / "copy.ipynb"
    message = (
        r"notebook\.ipynb: cell In \[3\], `print\(2\)`, failed: ValueError: too bad\. "
        r"The partly executed copy: .*copy\.failed\.ipynb$"
    )
    with pytest.raises(CellError, match=message) as caught:
        execute(notebook, out)
    assert "\n" not in str(caught.value)
    assert not out.exists()
    failed = nbformat.read(tmp_path / "copy.failed.ipynb", as_version=4)
    assert any(o.get("text") == "1\n" for c in failed.cells for o in c.get("outputs", []))
    assert failed.cells[-1].execution_count is None

    make_notebook("print(1)")
    execute(notebook, out)
    assert not (tmp_path / "copy.failed.ipynb").exists()


def test_death_of_the_kernel_names_the_cell(make_notebook, tmp_path):
    notebook = make_notebook("print(1)", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(CellError, match="kernel died in cell `import os, signal`"):
        execute(notebook, tmp_path / "copy.ipynb")
    assert (tmp_path / "copy.failed.ipynb").exists()


def test_a_kernel_that_ends_in_peace_before_its_last_cell_has_failed(make_notebook, tmp_path):
    notebook = make_notebook("print(1)", "import sys; sys.exit(0)", "print('never')")
    out = tmp_path / "out.ipynb"
    with pytest.raises(CellError, match="code cell 4 and those below did not run"):
        execute(notebook, out)
    assert not out.exists()


@pytest.mark.usefixtures("no_kernel")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"stepz": 1}, r"unknown parameter 'stepz'.*'quick', 'rate', 'steps'.*mean 'steps'\?"),
        ({"steps": "many"}, "parameter 'steps': Input should be a valid integer.*, found 'many'"),
        ({"steps": "1.5"}, "parameter 'steps': Input should be a valid integer.*, found '1.5'"),
        ({"rate": "fast"}, "parameter 'rate': Input should be a valid number.*, found 'fast'"),
        ({"rate": "nan"}, "parameter 'rate': Input should be a finite number, found 'nan'"),
        (
            {"rate": np.float32("inf")},
            "parameter 'rate': Input should be a finite number, found .*inf",
        ),
        ({"quick": "maybe"}, "parameter 'quick': Input should be a valid boolean.*, found 'maybe'"),
    ],
)
def test_wrong_parameter_stops_before_a_kernel(make_notebook, tmp_path, given, message):
    with pytest.raises(NotebookError, match=message):
        execute(make_notebook(), tmp_path / "copy.ipynb", given)
    assert not (tmp_path / "copy.ipynb").exists()


@pytest.mark.usefixtures("no_kernel")
@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (None, "expected one code cell tagged `parameters`, found 0"),
        ("steps = 200", "found 'steps = 200'"),
        ("a: int = 1\nsteps: int = 2 * 3", "found .*steps: int = 2 \\* 3"),
        ("steps: int = '3'", "expected `name: type = literal`"),
        ("steps: int = True", "found 'steps: int = True'"),
        ("steps: int = 3)", "found 'steps: int = 3\\)'"),
        ("steps: list = []", "a type out of int, float, bool, str"),
    ],
)
def test_wrong_parameters_cell_stops_before_a_kernel(make_notebook, tmp_path, parameters, message):
    with pytest.raises(NotebookError, match=message):
        execute(make_notebook(parameters=parameters), tmp_path / "copy.ipynb")


@pytest.mark.usefixtures("no_kernel")
def test_two_parameters_cells_are_refused(make_notebook, tmp_path):
    notebook = make_notebook("second: int = 2")
    content = nbformat.read(notebook, as_version=4)
    content.cells[1].metadata = content.cells[0].metadata
    nbformat.write(content, notebook)
    with pytest.raises(NotebookError, match="found 2"):
        execute(notebook, tmp_path / "copy.ipynb")


@pytest.mark.usefixtures("no_kernel")
def test_wrong_paths_stop_before_a_kernel(make_notebook, tmp_path):
    notebook = make_notebook()
    with pytest.raises(NotebookError, match=r"none\.ipynb: expected a file that can be"):
        execute(tmp_path / "none.ipynb", tmp_path / "copy.ipynb")
    for content, message in [
        (b"text", ": expected a notebook"),
        (b"[" * 100_000, ": expected a notebook"),
        (b'{\n"\xe9": 1}', ":2: expected UTF-8"),
    ]:
        (tmp_path / "text.ipynb").write_bytes(content)
        with pytest.raises(NotebookError, match=rf"text\.ipynb{message}"):
            execute(tmp_path / "text.ipynb", tmp_path / "copy.ipynb")
    for out in (notebook, tmp_path / "copy.html"):
        with pytest.raises(NotebookError, match="expected another path"):
            execute(notebook, out)
    with pytest.raises(UnwritableError):
        execute(notebook, tmp_path / "text.ipynb" / "copy.ipynb")


def test_a_second_process_waits_for_the_first(tmp_path, caplog):
    entered = threading.Event()

    def second():
        with alone(tmp_path / "out"):
            entered.set()

    with alone(tmp_path / "out"), alone(tmp_path / "another"):
        thread = threading.Thread(target=second)
        thread.start()
        assert not entered.wait(0.3)
    assert entered.wait(3600)
    thread.join()
    assert "waiting for its end" in caplog.text


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_our_notebooks_have_proper_parameters(notebook):
    small = {"mini", "smoke", "trade-offs"}
    assert read_parameters(notebook)["preset"] in small
