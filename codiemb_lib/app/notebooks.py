"""The strict front door to papermill: what is wrong is said before a kernel starts.

papermill only warns of a parameter that a notebook does not know, and then runs for hours with the
default. Here that is an error, and so is a value of the wrong type.
"""

from __future__ import annotations

import ast
import logging
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import nbformat
import papermill
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError
from papermill.translators import PythonTranslator
from pydantic import TypeAdapter, ValidationError
from traitlets.config import Config

from codiemb_lib.core import CodiembError, alone, atomic_path, check_writable, unknown

logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what it reports, we say ourselves

Literal = int | float | bool | str
TYPES = {kind.__name__: TypeAdapter(kind) for kind in (int, float, bool, str)}
KERNEL_SECONDS = 3600  # for a kernel to answer: many may start at once on a busy machine


class NotebookError(CodiembError, ValueError):
    """A notebook, or a parameter of it, that cannot be run as it stands."""


class CellError(CodiembError, RuntimeError):
    """A cell of a notebook failed while it ran."""

    status = 1


def execute(
    notebook: str | Path,
    output: str | Path,
    parameters: Mapping[str, Literal] | None = None,
    *,
    progress: bool = False,
) -> Path:
    """Run a notebook in its own folder with some parameters changed, and keep the executed copy.

    The kernel is the Python that runs this function, and talks over files of its own (IPC) instead
    of TCP ports, which parallel runs could snatch from each other. Another process that executes
    to the same output is waited for.

    Args:
        notebook: The notebook; it stays as it is.
        output: Where the executed copy goes, once every cell has passed. If one fails, the partly
            executed copy lies beside it as `<stem>.failed.ipynb`.
        parameters: Values by name; strings are read as the notebook's annotation says.
        progress: Whether to draw a progress bar of the cells.

    Returns:
        The path of the executed copy.

    Raises:
        NotebookError: No notebook, no proper `parameters` cell, or a parameter that it has not.
        UnwritableError: The output's folder cannot be written.
        CellError: A cell failed, or the kernel died in it.
    """
    notebook, output = Path(notebook), Path(output)
    defaults = read_parameters(notebook)
    values = {n: _value(notebook, n, v, defaults) for n, v in (parameters or {}).items()}
    if output.suffix != ".ipynb" or output.resolve() == notebook.resolve():
        raise NotebookError(
            f"{output}: expected another path than the notebook's, ending in .ipynb, for the "
            "executed copy. Name one, for example under data/runs/."
        )
    check_writable(output.parent)
    kept = failed = output.with_name(f"{output.stem}.failed.ipynb")
    # A socket's path must be shorter than about 100 characters, which some TMPDIR alone exceed.
    short = None if len(tempfile.gettempdir()) < 60 else "/tmp"
    with alone(output) as lock, tempfile.TemporaryDirectory(prefix="codiemb-", dir=short) as folder:
        source, executed = Path(folder, "source.ipynb"), Path(folder, "executed.ipynb")
        shutil.copy(notebook, source)  # papermill would fill in what stands in braces in a path
        try:
            papermill.execute_notebook(
                source,
                executed,
                values,
                kernel_name="python3",
                language="python",
                progress_bar=progress,
                start_timeout=KERNEL_SECONDS,
                kernel_manager_class=type("_Kernel", (_Kernel,), {"keep_open": lock}),
                config=Config(
                    KernelManager={"transport": "ipc", "connection_file": f"{folder}/kernel.json"}
                ),
                resources={"metadata": {"path": str(notebook.resolve().parent)}},
            )
            _check_whole(notebook, executed)
            kept = output
        except (PapermillExecutionError, DeadKernelError) as error:
            reason = _reason(error, executed)
            raise CellError(f"{notebook}: {reason} The partly executed copy: {failed}") from error
        finally:
            if executed.is_file():
                _keep(executed, kept, notebook)
    failed.unlink(missing_ok=True)
    return output


def _keep(executed: Path, output: Path, notebook: Path) -> None:
    """Write the copy where it belongs, and into it what it is a copy of, without our own paths."""
    copy = _read(executed)
    copy.metadata.papermill.update(input_path=notebook.name, output_path=output.name)
    with atomic_path(output) as temporary:
        nbformat.write(copy, temporary)


def read_parameters(notebook: str | Path) -> dict[str, Literal]:
    """The parameters of a notebook and their defaults, whose types are the parameters' types.

    They stand in the one code cell tagged `parameters`, a line each: `steps: int = 200  # why`.
    """
    cells = [c for c in _read(notebook).cells if "parameters" in c.metadata.get("tags", [])]
    if len(cells) != 1:
        raise NotebookError(
            f"{notebook}: expected one code cell tagged `parameters`, found {len(cells)}. "
            "Tag the cell of the defaults (in JupyterLab: property inspector, cell tags)."
        )
    defaults = {}
    for name, kind, default, _ in PythonTranslator.inspect(cells[0]):
        try:
            value = ast.literal_eval(default)
            defaults[name] = TYPES[kind].validate_python(value, strict=True)
        except (KeyError, SyntaxError, ValueError) as error:
            raise NotebookError(
                f"{notebook}: expected `{name}: type = literal` in one line, with a type out of "
                f"{', '.join(TYPES)}, found the type {kind} and the value `{default}`."
            ) from error
    return defaults


def _value(notebook: Path, name: str, given: Literal, defaults: Mapping[str, Literal]) -> Literal:
    """What is given for a parameter, in the parameter's type."""
    if name not in defaults:
        raise NotebookError(f"{notebook}: {unknown('parameter', name, defaults)}")
    try:
        kind = type(defaults[name]).__name__
        return TYPES[kind].validate_python(given, strict=not isinstance(given, str))
    except ValidationError as error:
        raise NotebookError(
            f"{notebook}: parameter {name!r}: expected {kind}, found {given!r}."
        ) from error


def _read(notebook: str | Path) -> NotebookNode:
    try:
        return nbformat.read(notebook, as_version=4)
    except (
        OSError,
        nbformat.reader.NotJSONError,
        nbformat.ValidationError,
        AttributeError,
    ) as error:
        found = getattr(error, "strerror", None) or "another format"
        raise NotebookError(
            f"{notebook}: expected a notebook, found: {found}. Correct the path, or save it again "
            "in JupyterLab."
        ) from error


class _Kernel(AsyncKernelManager):
    """A kernel of the Python that runs us, whatever kernels the user has installed."""

    keep_open: int

    @property
    def kernel_spec(self) -> KernelSpec:
        """How the kernel is started: without the user's own start-up files."""
        folder = str(Path(self.connection_file).parent)
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        command += [f"--ipython-dir={folder}", "--log-level=50"]  # quiet about its own shutdown
        return KernelSpec(argv=command, display_name="Python 3", language="python")

    async def start_kernel(self, **options) -> None:
        """Start it with our lock open: should we be killed, it holds until the kernel is gone."""
        await super().start_kernel(pass_fds=(self.keep_open,), **options)


def _check_whole(notebook: Path, executed: Path) -> None:
    """Refuse a copy whose last cells did not run: `sys.exit(0)` ends a kernel in peace."""
    for number, cell in enumerate(_read(executed).cells, start=1):
        if cell.cell_type == "code" and cell.source.strip() and cell.execution_count is None:
            raise CellError(
                f"{notebook}: expected all cells to run, found that cell {number} did not."
            )


def _reason(error: PapermillExecutionError | DeadKernelError, executed: Path) -> str:
    """Which cell failed and why, in one line."""
    if isinstance(error, PapermillExecutionError):
        why = " ".join(f"{error.ename}: {error.evalue}".split())
        return f"cell In [{error.exec_count}], `{_first_line(error.source)}`, failed: {why}."
    cells = [c for c in _read(executed).cells if c.metadata.get("papermill", {}).get("start_time")]
    last = _first_line(cells[-1].source)
    return f"the kernel died in cell `{last}`, often for want of memory."


def _first_line(source: str) -> str:
    lines = [line for line in source.splitlines() if line.strip() and not line.startswith("#")]
    return lines[0] if lines else ""
