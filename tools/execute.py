"""Executes notebooks, each in a kernel of its own, and measures them: seconds, peak memory, the cell that failed.

Knows Jupyter's client and the process tree. Does not know the registry, what the numbers mean, or where results are shown.
"""

import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import nbformat
import psutil
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal, CellExecutionError, CellTimeoutError, DeadKernelError

WIDGET = "application/vnd.jupyter.widget-view+json"
LIBRARIES = ("utils", "matplotlib.pyplot", "pandas", "torch", "transformers.modeling_utils")  # nearly every notebook's, in its order


@dataclass(frozen=True)
class CellFailure:
    """The cell that ended a notebook: `cell` counts all cells from 1, as a reader scrolling down would."""

    cell: int
    source: str
    error: str


@dataclass(frozen=True)
class Execution:
    """What one execution gave: the notebook with its outputs, wall-clock seconds, and the kernel tree's peak memory in GB."""

    notebook: nbformat.NotebookNode
    seconds: float
    peak_memory_gb: float
    failure: CellFailure | None


class MemorySampler(threading.Thread):
    """Samples the resident memory of a process and all its children, every 0.1 s, until `stop`; `peak` is in bytes."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.process = psutil.Process(pid)
        self.peak = 0
        self.stopped = threading.Event()

    def run(self) -> None:
        """Samples; ends by itself when the process has gone."""
        while not self.stopped.is_set():
            try:
                family = [self.process, *self.process.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            self.peak = max(self.peak, sum(map(resident_bytes, family)))
            self.stopped.wait(0.1)

    def stop(self) -> int:
        """Returns the peak in bytes."""
        self.stopped.set()
        self.join()
        return self.peak


def resident_bytes(process: psutil.Process) -> int:
    """Returns a process's resident memory, 0 when it ended meanwhile."""
    try:
        return int(process.memory_info().rss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0


def plain(text: str) -> str:
    """Returns `text` without terminal colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def ignore(index: int) -> None:
    """Does nothing about a cell that is about to run."""


def failure_of(error: Exception, cells: list[nbformat.NotebookNode], index: int) -> CellFailure:
    """Returns the failed cell with its source and the last lines of what it raised."""
    if isinstance(error, CellExecutionError):
        raised = [output for output in cells[index].outputs if output.output_type == "error"]
        traceback = plain("\n".join(raised[-1].traceback)).strip().splitlines() if raised else []
        text = "\n".join(traceback[-12:]) or f"{error.ename}: {error.evalue}"
    elif isinstance(error, CellTimeoutError):
        text = "The cell took longer than its time limit."
    else:
        text = f"The kernel died, most often because memory ran out ({plain(str(error))})."
    return CellFailure(index + 1, cells[index].source, text)


class Watched(NotebookClient):
    """A client that knows which cell runs and samples its kernel's memory; a kernel whose last cell has succeeded is killed.

    To take down all that a notebook has imported takes two seconds, and nothing is lost: `execute` removes its temporary files.
    """

    def __init__(self, notebook: nbformat.NotebookNode, **options: Any) -> None:
        super().__init__(notebook, on_cell_start=self.started, on_cell_executed=self.ended, on_notebook_start=self.sample, **options)
        self.current = 0
        self.on_cell: Callable[[int], Any] = ignore
        self.last = max((index for index, cell in enumerate(notebook.cells) if cell.cell_type == "code"), default=-1)
        self.sampler: MemorySampler | None = None

    def started(self, cell: nbformat.NotebookNode, cell_index: int) -> None:
        """Notes the cell, and tells of it if it is code."""
        self.current = cell_index
        if cell.cell_type == "code":
            self.on_cell(cell_index)

    def ended(self, cell: nbformat.NotebookNode, cell_index: int, execute_reply: dict[str, Any]) -> None:
        """After the last cell, lets the kernel be killed."""
        if cell_index == self.last and execute_reply["content"]["status"] == "ok":
            self.shutdown_kernel = "immediate"

    def cpu_seconds(self) -> float:
        """Returns the processor time that the kernel has taken so far."""
        times = psutil.Process(self.pid).cpu_times()
        return times.user + times.system

    def is_running(self) -> bool:
        """Returns whether the kernel is still there."""
        try:
            return psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def end(self) -> None:
        """Ends a kernel that has run nothing."""
        self.shutdown_kernel = "immediate"
        self._cleanup_kernel()

    def sample(self, notebook: nbformat.NotebookNode) -> None:
        """Starts to sample the kernel's memory."""
        self.sampler = MemorySampler(self.pid)
        self.sampler.start()

    @property
    def pid(self) -> int:
        """The kernel's process id."""
        kernel_manager: Any = self.km  # its provisioner is a LocalProvisioner, which knows it
        return int(kernel_manager.provisioner.pid)


class Waiting:
    """A notebook whose kernel starts at once, in the notebook's own folder, and waits for `run`; one that never runs is to be closed.

    A kernel takes most of a second to start, and seconds to import `libraries`, in which its maker can do something else. The notebook
    still finds no names in it but its own. Should its maker die, it ends by itself.
    """

    def __init__(self, path: Path, environment: dict[str, str], cell_timeout: int = 180, libraries: tuple[str, ...] = ()) -> None:
        self.scratch = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.client = Watched(
            nbformat.read(path, as_version=4), timeout=cell_timeout, startup_timeout=120, kernel_name="python3",
            store_widget_state=False, record_timing=False, coalesce_streams=True,
            extra_arguments=["--log-level=ERROR", f"--IPKernelApp.exec_lines=list(map(__import__, {libraries}));"],
            resources={"metadata": {"path": str(path.parent)}},
        )  # fmt: skip
        self.client.create_kernel_manager()
        self.client.start_new_kernel(env={**os.environ, **environment, "TMPDIR": self.scratch.name})

    def run(self, on_cell: Callable[[int], Any] = ignore) -> Execution:
        """Returns the execution; a failing cell ends it and is reported, not raised. Its seconds count what the kernel did ahead, too.

        `on_cell` is called with the index of every code cell that is about to run.
        """
        client, failure = self.client, None
        client.on_cell = on_cell
        start = time.perf_counter() - client.cpu_seconds()
        with self.scratch:
            try:
                client.execute()
            except (CellControlSignal, DeadKernelError) as error:
                failure = failure_of(error, client.nb.cells, client.current)
        seconds, peak = time.perf_counter() - start, client.sampler.stop() if client.sampler else 0
        return Execution(client.nb, seconds, peak / 1e9, failure)

    def close(self) -> None:
        """Ends the kernel and removes its temporary files."""
        with self.scratch:
            self.client.end()


def execute(path: Path, environment: dict[str, str], cell_timeout: int = 180) -> Execution:
    """Returns the execution of the notebook at `path`: see `Waiting.run`."""
    return Waiting(path, environment, cell_timeout).run()


def execute_all(paths: Sequence[Path], environment: dict[str, str], on_cell: Callable[[int], Any] = ignore) -> Generator[Execution]:
    """Yields the execution of every notebook, one after another; while one runs, the kernel of the next starts and imports libraries.

    That keeps one core busy for some seconds, in which the running notebook reads its data and loads its models, mostly on the other core.
    """
    waiting = None
    try:
        for path, following in zip_longest(paths, paths[1:]):
            if waiting and not waiting.client.is_running():  # for want of memory, say
                waiting.close()
                waiting = None
            current = waiting or Waiting(path, environment)
            waiting = Waiting(following, environment, libraries=LIBRARIES) if following else None
            yield current.run(on_cell)
    finally:
        if waiting:
            waiting.close()


def cleaned(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Returns the notebook as it is saved: no widget state, no run times, no editor's metadata, only the last state of progress bars."""
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}, "language_info": {"name": "python"}}
    )
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({"tags": cell.metadata.tags} if cell.metadata.get("tags") else {})
        if cell.cell_type == "code":
            cell.outputs = [last_state(output) for output in cell.outputs if not of_the_machine(output)]
    return notebook


def of_the_machine(output: nbformat.NotebookNode) -> bool:
    """Returns whether an output tells of this machine's Jupyter only: widgets, and tqdm's notice that ipywidgets is missing."""
    return WIDGET in output.get("data", {}) or "IProgress not found" in output.get("text", "")


def last_state(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Returns a stream output with what carriage returns overwrote removed; other outputs unchanged."""
    if output.output_type == "stream":
        output.text = re.sub(r"[^\n]*\r(?=[^\n])", "", output.text)
    return output
