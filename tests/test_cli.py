from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import nbformat
import psutil
import pytest

from codiemb_lib import __version__
from codiemb_lib.cli import main
from codiemb_lib.notebooks import alone
from codiemb_lib.sources import list_datasets


@pytest.fixture
def notebook(tmp_path):
    """A notebook that writes its kernel's process id, then waits, or fails if told not to wait."""
    sources = [
        "wait: bool = False",
        "import os, pathlib, time\npathlib.Path('pid').write_text(str(os.getpid()))",
        "while wait: time.sleep(0.1)",
        "raise KeyError('no wait')",
    ]
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells[0].metadata["tags"] = ["parameters"]
    path = tmp_path / "a folder" / "n.ipynb"
    path.parent.mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def start(*arguments) -> subprocess.Popen:
    command = [sys.executable, "-m", "codiemb_lib.cli", *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def error_of(capsys, *arguments) -> str:
    """The one line that a refused command prints."""
    assert main([*map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    [line] = captured.err.splitlines()
    return line


def is_alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_failing_cell_takes_one_line_and_status_1(notebook, tmp_path):
    process = start("execute", notebook, tmp_path / "out" / "n.ipynb", "-p", "wait", "false")
    _, error = process.communicate(timeout=240)
    assert process.returncode == 1
    [line] = error.splitlines()
    assert line.startswith(f"codiemb: {notebook}: cell In [5], `raise KeyError('no wait')`, failed")
    assert line.endswith(str(tmp_path / "out" / "n.failed.ipynb"))


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL])
def test_whoever_waits_for_a_killed_run_finds_its_kernel_gone(notebook, tmp_path, by):
    out = tmp_path / "n.ipynb"
    process = start("execute", notebook, out, "-p", "wait", "true")
    written = notebook.with_name("pid")
    deadline = time.monotonic() + 240
    while not (written.is_file() and written.read_text()):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    kernel = int(written.read_text())
    assert is_alive(kernel)
    process.send_signal(by)
    process.communicate(timeout=240)
    with alone(out):
        assert not is_alive(kernel)
    assert not out.exists()


def test_bad_input_takes_one_line_and_status_2(capsys, notebook, tmp_path):
    out = tmp_path / "out.ipynb"
    unknown = error_of(capsys, "execute", notebook, out, "-p", "wiat", "true")
    assert unknown.startswith("codiemb: ")
    assert "Did you mean 'wait'?" in unknown
    twice = error_of(capsys, "execute", notebook, out, "-p", "wait", "true", "-p", "wait", "false")
    assert "each parameter once" in twice
    assert "expected a notebook" in error_of(capsys, "execute", tmp_path / "none.ipynb", out)
    assert "Did you mean 'smoke'?" in error_of(capsys, "reproduce", "--preset", "smoek")


def test_error_that_is_not_ours_keeps_its_traceback(monkeypatch):
    def broken():
        raise ZeroDivisionError

    monkeypatch.setattr("codiemb_lib.sources.list_datasets", broken)
    with pytest.raises(ZeroDivisionError):
        main(["data", "list"])


def test_data_list_has_a_line_for_each_data_set(capsys):
    assert main(["data", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for entry, line in zip(list_datasets(), lines, strict=True):
        assert line.split()[:2] == [entry.name, entry.task]
        assert line.endswith(entry.licence)
        assert "train" in line


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"codiemb {__version__}\n"


def test_help_is_quick():
    code = "import sys, codiemb_lib.cli; print({'papermill', 'torch', 'pandas'} & {*sys.modules})"
    found = subprocess.check_output([sys.executable, "-c", code], text=True, env=os.environ)
    assert found == "set()\n"
