"""The strict front door to papermill: what is wrong is said before a kernel starts.

papermill only warns of a parameter that a notebook does not know, and then runs for hours with the
default. Here that is an error, and so is a value of the wrong type.
"""

from __future__ import annotations

import ast
import logging
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
from traitlets.config import Config

from codiemb_lib.core import CodiembError, alone, atomic_path, check_writable, unknown

logger = logging.getLogger(__name__)

Literal = int | float | bool | str
TYPES: dict[str, type] = {"int": int, "float": float, "bool": bool, "str": str}
BOOLEANS = {"true": True, "false": False}
KERNEL_SECONDS = 300  # for a kernel to answer: many may start at once on a busy machine


class NotebookError(CodiembError, ValueError):
    """A notebook cannot be run as it stands."""


class ParameterError(NotebookError):
    """A parameter that a notebook does not have, or a value of another type."""


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
        NotebookError: No notebook, or no proper `parameters` cell.
        ParameterError: An unknown name or a value of the wrong type.
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
    failed = output.with_name(f"{output.stem}.failed.ipynb")
    with alone(output) as lock, atomic_path(output) as temporary:
        try:
            _run(notebook, temporary, values, progress=progress, keep_open=lock)
            _check_whole(notebook, temporary)
        except BaseException as error:
            kept = _keep_failed(temporary, failed, notebook)
            if isinstance(error, PapermillExecutionError | DeadKernelError):
                raise CellError(f"{notebook}: {_reason(error, failed)} {kept}") from error
            raise
        _name_paths(temporary, temporary, notebook, output)
    failed.unlink(missing_ok=True)
    return output


def _check_whole(notebook: Path, executed: Path) -> None:
    """Refuse a copy whose last cells did not run: `sys.exit(0)` ends a kernel in peace."""
    for number, cell in enumerate(_read(executed).cells, start=1):
        if cell.cell_type == "code" and cell.source.strip() and cell.execution_count is None:
            raise CellError(
                f"{notebook}: expected all cells to run, found that cell {number} did not."
            )


def read_parameters(notebook: str | Path) -> dict[str, Literal]:
    """The parameters of a notebook and their defaults, whose types are the parameters' types.

    They stand in the one code cell tagged `parameters`, a line each: `steps: int = 200  # why`.

    Raises:
        NotebookError: No such notebook, no such cell or several, or a line of another form.
    """
    cells = [
        (number, cell)
        for number, cell in enumerate(_read(Path(notebook)).cells, start=1)
        if cell.cell_type == "code" and "parameters" in cell.metadata.get("tags", [])
    ]
    if len(cells) != 1:
        raise NotebookError(
            f"{notebook}: expected one code cell tagged `parameters`, found {len(cells)}. "
            "Tag the cell of the defaults (in JupyterLab: property inspector, cell tags)."
        )
    number, cell = cells[0]
    try:
        body = ast.parse(cell.source).body
    except SyntaxError as error:
        line = f"cell {number}, line {error.lineno}"
        raise NotebookError(f"{notebook}: {line}: expected Python, found: {error.msg}.") from error
    return dict(_default(f"{notebook}: cell {number}", cell.source, node) for node in body)


def _read(notebook: Path) -> NotebookNode:
    try:
        return nbformat.read(notebook, as_version=4)
    except OSError as error:
        raise NotebookError(
            f"{notebook}: expected a notebook, found: {error.strerror}. Check the path."
        ) from error
    except (nbformat.reader.NotJSONError, nbformat.ValidationError, AttributeError) as error:
        raise NotebookError(
            f"{notebook}: expected a notebook, found another format. Save it again in JupyterLab."
        ) from error


def _default(where: str, source: str, node: ast.stmt) -> tuple[str, Literal]:
    """Name and default of one line `name: type = literal`."""
    match node:
        case ast.AnnAssign(target=ast.Name(name), annotation=ast.Name(kind), value=ast.expr()):
            try:
                value = ast.literal_eval(node.value)
            except ValueError:
                value = None
            if kind in TYPES and _is(value, TYPES[kind]) and node.lineno == node.end_lineno:
                return name, TYPES[kind](value)
    found = (ast.get_source_segment(source, node) or "").splitlines()[0]
    raise NotebookError(
        f"{where}, line {node.lineno}: expected `name: type = literal` in one line, with a type "
        f"out of {', '.join(TYPES)}, found `{found}`."
    )


def _is(value: object, kind: type) -> bool:
    """Whether a value may stand for a type: an int for a float, but no bool for an int."""
    return type(value) is kind or (kind is float and type(value) is int)


def _value(notebook: Path, name: str, given: Literal, defaults: Mapping[str, Literal]) -> Literal:
    """What is given for a parameter, in the parameter's type."""
    if name not in defaults:
        raise ParameterError(f"{notebook}: {unknown('parameter', name, defaults)}")
    kind = type(defaults[name])
    expected = "true or false" if kind is bool else kind.__name__
    refused = ParameterError(
        f"{notebook}: parameter {name!r}: expected {expected}, found {given!r}."
    )
    if isinstance(given, str) and kind is not str:
        try:
            return BOOLEANS[given.lower()] if kind is bool else kind(given)
        except (ValueError, KeyError) as error:
            raise refused from error
    if not _is(given, kind):
        raise refused
    return kind(given)


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


def _run(
    notebook: Path,
    output: Path,
    values: Mapping[str, Literal],
    *,
    progress: bool,
    keep_open: int,
) -> None:
    # A socket's path must be shorter than about 100 characters, which some TMPDIR alone exceed.
    short = None if len(tempfile.gettempdir()) < 60 else "/tmp"
    with tempfile.TemporaryDirectory(prefix="codiemb-", dir=short) as sockets:
        connection = {"transport": "ipc", "connection_file": f"{sockets}/kernel.json"}
        papermill.execute_notebook(
            _literally(notebook),
            _literally(output),
            parameters=dict(values),
            kernel_name="python3",
            language="python",
            progress_bar=progress,
            start_timeout=KERNEL_SECONDS,
            kernel_manager_class=type("_Kernel", (_Kernel,), {"keep_open": keep_open}),
            config=Config(KernelManager=connection),
            resources={"metadata": {"path": str(notebook.resolve().parent)}},
        )


def _literally(path: Path) -> str:
    """A path for papermill, which fills in what stands in braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _name_paths(source: Path, target: Path, notebook: Path, output: Path) -> None:
    """Say in a copy's metadata what it is a copy of, instead of temporary and absolute paths."""
    copy = nbformat.read(source, as_version=4)
    copy.metadata.papermill.update(input_path=notebook.name, output_path=output.name)
    nbformat.write(copy, target)


def _keep_failed(temporary: Path, failed: Path, notebook: Path) -> str:
    if not temporary.is_file():  # the kernel never came up
        return "No cell was executed."
    with atomic_path(failed) as target:
        _name_paths(temporary, target, notebook, failed)
    return f"The partly executed copy: {failed}"


def _reason(error: PapermillExecutionError | DeadKernelError, failed: Path) -> str:
    """Which cell failed and why, in one line."""
    if isinstance(error, PapermillExecutionError):
        why = " ".join(f"{error.ename}: {error.evalue}".split())
        return f"cell In [{error.exec_count}], `{_first_line(error.source)}`, failed: {why}."
    started = [
        cell.source
        for cell in nbformat.read(failed, as_version=4).cells
        if cell.metadata.get("papermill", {}).get("start_time")
    ]
    return f"the kernel died in cell `{_first_line(started[-1])}`, often for want of memory."


def _first_line(source: str) -> str:
    lines = [line for line in source.splitlines() if line.strip() and not line.startswith("#")]
    return lines[0] if lines else ""
