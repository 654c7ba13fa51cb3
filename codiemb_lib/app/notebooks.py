"""The strict front door to papermill: what is wrong is said before a kernel starts.

papermill only warns of a parameter that a notebook does not know, and then runs for hours with the
default. Here that is an error, and so is a value of the wrong type.
"""

import ast
import logging
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import nbformat
import papermill
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError
from pydantic import TypeAdapter, ValidationError
from traitlets.config import Config

from codiemb_lib import core

logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what it reports, we say ourselves

Literal = int | float | bool | str


class NotebookError(core.CodiembError, ValueError):
    """A notebook, or a parameter of it, that cannot be run as it stands."""


class CellError(core.CodiembError, RuntimeError):
    """A cell of a notebook failed while it ran."""

    status = 1


def execute(
    notebook: str | Path,
    output: str | Path,
    parameters: Mapping[str, str] | None = None,
    *,
    progress: bool = False,
) -> Path:
    """Run a notebook in its own folder with some parameters changed; returns `output`.

    The executed copy goes there once every cell has passed; if one fails, the partly executed copy
    lies beside it as `<stem>.failed.ipynb`. Another process that executes to the same output is
    waited for. The kernel is the Python that runs this function, and talks over files of its own
    (IPC) instead of TCP ports, which parallel runs could snatch from each other. Parameters are
    read as the notebook's annotations say.

    Raises:
        NotebookError: No notebook, no proper `parameters` cell, or a parameter that it has not.
        UnwritableError: The output's folder cannot be written.
        CellError: A cell failed, or the kernel died in it.
    """
    notebook, output = Path(notebook), Path(output)
    values = _parse(notebook, parameters or {})
    if output.suffix != ".ipynb" or output.resolve() == notebook.resolve():
        raise NotebookError(f"{output}: expected another path than the notebook's, in .ipynb.")
    core.check_writable(output.parent)
    kept = failed = output.with_name(f"{output.stem}.failed.ipynb")
    # A socket's path must be shorter than about 100 characters, which some TMPDIR alone exceed.
    short = tempfile.gettempdir() if len(tempfile.gettempdir()) < 60 else "/tmp"
    with core.alone(output) as lock, core.scratch_beside(Path(short, "codiemb")) as folder:
        source, executed = folder / "source.ipynb", folder / "executed.ipynb"
        # papermill reads no byte-order mark, and would fill in what stands in braces in a path.
        core.write_text(source, core.read_text(notebook))
        ipc = {"transport": "ipc", "connection_file": f"{folder}/kernel.json"}
        ipc["shutdown_wait_time"] = 20.0  # seconds, to save what it trains
        try:
            papermill.execute_notebook(
                source,
                executed,
                values,
                kernel_name="python3",
                language="python",
                progress_bar=progress,
                start_timeout=3600,  # seconds: many may start at once on a busy machine
                kernel_manager_class=type("_Kernel", (_Kernel,), {"keep_open": lock}),
                config=Config(KernelManager=ipc),
                resources={"metadata": {"path": str(notebook.resolve().parent)}},
            )
            for number, cell in enumerate(_code_cells(executed), start=1):
                if cell.execution_count is None:  # `sys.exit(0)` ends a kernel in peace
                    raise CellError(f"{notebook}: code cell {number} and those below did not run.")
            kept = output
        except (PapermillExecutionError, DeadKernelError) as error:
            reason = _reason(error, executed)
            raise CellError(f"{notebook}: {reason} The partly executed copy: {failed}") from error
        finally:
            if executed.is_file():
                copy = _read(executed)
                # In place of the scratch folder's paths.
                copy.metadata.papermill.update(input_path=notebook.name, output_path=output.name)
                with core.atomic_path(kept) as temporary:
                    nbformat.write(copy, temporary)
    failed.unlink(missing_ok=True)
    return output


def read_parameters(notebook: str | Path) -> dict[str, Literal]:
    """The parameters of a notebook and their defaults, whose types are the parameters' types.

    They stand in the one code cell tagged `parameters`, a line each: `steps: int = 200  # why`.
    """
    cells = [c for c in _code_cells(notebook) if "parameters" in c.metadata.get("tags", [])]
    if (n := len(cells)) != 1:
        raise NotebookError(f"{notebook}: expected one code cell tagged `parameters`, found {n}.")
    defaults = {}
    try:
        for line in ast.parse(cells[0].source).body:
            value = defaults[line.target.id] = ast.literal_eval(line.value)
            if not isinstance(value, Literal) or type(value).__name__ != line.annotation.id:
                raise ValueError(value)
    except (AttributeError, RecursionError, SyntaxError, TypeError, ValueError) as error:
        raise NotebookError(
            f"{notebook}: expected `name: type = literal` in one line, with a type out of int, "
            f"float, bool, str, found {cells[0].source!r:.200}."
        ) from error
    return defaults


def _parse(notebook: Path, given: Mapping[str, str]) -> dict[str, Literal]:
    """Values of parameters, in the parameters' types."""
    defaults, values = read_parameters(notebook), {}
    for name, value in given.items():
        if name not in defaults:
            raise NotebookError(f"{notebook}: {core.unknown('parameter', name, defaults)}")
        try:  # a notebook is JSON, which has no NaN
            adapter = TypeAdapter(type(defaults[name]), config={"allow_inf_nan": False})
            values[name] = adapter.validate_python(value)
        except ValidationError as error:
            where = f"{notebook}: parameter {name!r}"
            raise NotebookError(f"{where}: {core.explain(error)}.") from error
    return values


def _read(notebook: str | Path) -> NotebookNode:
    text = core.read_text(notebook, NotebookError)
    try:
        nbformat.validate(read := nbformat.reads(text, as_version=4))
        return read
    except Exception as error:  # of the library, and of what it stumbles over
        raise NotebookError(f"{notebook}: expected a notebook, found another format.") from error


def _code_cells(notebook: Path) -> list[NotebookNode]:
    cells = _read(notebook).cells
    return [cell for cell in cells if cell.cell_type == "code" and cell.source.strip()]


class _Kernel(AsyncKernelManager):
    """A kernel of the Python that runs us, whatever kernels the user has installed."""

    keep_open: int

    @property
    def kernel_spec(self) -> KernelSpec:
        """How the kernel is started: without the user's own start-up files."""
        folder = str(Path(self.connection_file).parent)
        launch = "import codiemb_lib.app, ipykernel.kernelapp as k; k.launch_new_instance()"
        command = [sys.executable, "-c", launch, "-f", "{connection_file}"]
        command += [f"--ipython-dir={folder}", "--log-level=50"]  # quiet about its own shutdown
        return KernelSpec(argv=command, display_name="Python 3", language="python")

    async def start_kernel(self, **options) -> None:
        """Start it with our lock open: should we be killed, it holds until the kernel is gone."""
        await super().start_kernel(pass_fds=(self.keep_open,), **options)
        _running.append(self)


_running: list[_Kernel] = []


def terminate(*_) -> NoReturn:
    """End as SIGTERM asks for, and let kernels end by it, too: a training saves its state."""
    for kernel in _running:
        kernel.provisioner.process.terminate()
    sys.exit(128 + signal.SIGTERM)


def _reason(error: PapermillExecutionError | DeadKernelError, executed: Path) -> str:
    """Which cell failed and why, in one line."""
    if isinstance(error, PapermillExecutionError):
        why = " ".join(f"{error.ename}: {error.evalue}".split())
        return f"cell In [{error.exec_count}], `{_first_line(error.source)}`, failed: {why}."
    begun = [c for c in _code_cells(executed) if c.metadata.papermill.start_time]
    return f"the kernel died in cell `{_first_line(begun[-1].source)}`, often for want of memory."


def _first_line(source: str) -> str:
    return next((line for line in source.splitlines() if line.strip() and line[0] != "#"), "")
