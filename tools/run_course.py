"""Runs the course: every notebook in registry order, one kernel process each, then the scoreboard.

`python -m tools.run_course [05 …]` writes executed notebooks, their HTML and index.html to build/course/. `--save` also writes the
executed notebooks back to where they came from, `--solutions` runs notebooks/solutions/ instead. Exit code 1 when a cell failed or a
published number is missing or out of bounds; `--strict` makes an exceeded budget count as well. A failing notebook stops no other.
"""

import argparse
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import nbformat
from tqdm import tqdm

import utils  # noqa: F401  sets the offline environment that kernels inherit
from tools.execute import Execution, cleaned, execute_all
from tools.registry import ROOT, Chapter, load_registry, number_problems, select
from tools.scoreboard import Row, as_html, as_text
from utils.results import read_results

BUILD = ROOT / "build" / "course"
# No notebook compiles with PyTorch, but bitsandbytes prepares for it, which imports the compiler: a second in most notebooks.
NO_COMPILER = {"TORCHDYNAMO_DISABLE": "1"}


def code_cells(path: Path) -> int:
    """Returns how many cells of the notebook will run."""
    cells = nbformat.read(path, as_version=4).cells
    return sum(cell.cell_type == "code" for cell in cells)


def write_html(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Writes the notebook as one HTML page."""
    from nbconvert import HTMLExporter

    page, _ = HTMLExporter(template_name="lab").from_notebook_node(notebook, resources={"metadata": {"name": path.stem}})
    path.write_text(page, encoding="utf-8")


def result_row(chapter: Chapter, source: Path, execution: Execution, folder: Path) -> Row:
    """Returns the scoreboard row of an execution, after writing its notebook into `folder`."""
    target = folder / source.name
    nbformat.write(cleaned(execution.notebook), target)
    numbers = read_results(target)
    is_chapter = source == chapter.path
    problems = number_problems(chapter, numbers) if is_chapter and not execution.failure else []
    return Row(chapter, execution.seconds, execution.peak_memory_gb, numbers, execution.failure, problems, target.with_suffix(".html").name)


def run(sources: list[tuple[Chapter, Path]], folder: Path, save: bool) -> list[Row]:
    """Returns one row per notebook, run one after another; with `save`, those that ran through replace their source.

    A notebook's page takes most of a second, in which the next one imports its libraries on the other core.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows, written = [], []
    total = sum(code_cells(path) for _, path in sources)
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))  # kernels import `utils` before their first cell
    environment = {"COURSE_PROFILE": os.environ.get("COURSE_PROFILE", "embedded"), "PYTHONPATH": paths, **NO_COMPILER}
    with (
        ThreadPoolExecutor(1) as pages,
        tqdm(total=total, unit="cell", disable=None) as bar,
        closing(execute_all([path for _, path in sources], environment, on_cell=lambda index: bar.update())) as executions,
    ):
        for chapter, source in sources:
            bar.set_description(source.stem)
            execution = next(executions)
            rows.append(result_row(chapter, source, execution, folder))
            written.append(pages.submit(write_html, execution.notebook, folder / rows[-1].link))
            if save and not execution.failure:
                source.write_text((folder / source.name).read_text(encoding="utf-8"), encoding="utf-8")
    for page in written:
        page.result()  # raises what went wrong in writing it
    return rows


def missing(sources: list[tuple[Chapter, Path]]) -> list[str]:
    """Returns the notebooks of the registry that are not on disk."""
    return [str(path.relative_to(ROOT)) for _, path in sources if not path.is_file()]


def arguments() -> argparse.Namespace:
    """Returns the command line's choices."""
    parser = argparse.ArgumentParser(prog="python -m tools.run_course", description="Run the course's notebooks and show the scoreboard.")
    parser.add_argument("notebooks", nargs="*", help='ids such as "05"; all when none is given')
    parser.add_argument("--save", action="store_true", help="write executed notebooks back in place")
    parser.add_argument("--solutions", action="store_true", help="run notebooks/solutions instead")
    parser.add_argument("--strict", action="store_true", help="an exceeded budget is a failure too")
    return parser.parse_args()


def main() -> int:
    """Returns the exit code."""
    chosen = arguments()
    try:
        chapters = select(load_registry(), chosen.notebooks)
    except ValueError as error:
        print(f"{error}.", file=sys.stderr)
        return 2
    sources = [(chapter, chapter.solution if chosen.solutions else chapter.path) for chapter in chapters]
    if absent := missing(sources):
        print(f"The registry names notebooks that are not there: {', '.join(absent)}.", file=sys.stderr)
        return 2
    folder = BUILD / "solutions" if chosen.solutions else BUILD
    start = time.perf_counter()
    rows = run(sources, folder, chosen.save)
    seconds = time.perf_counter() - start
    index = folder / "index.html"
    index.write_text(as_html(rows, "Grounded LLMs: the solutions" if chosen.solutions else "Grounded LLMs: the course"), encoding="utf-8")
    print(as_text(rows, seconds))
    print(f"\nRead them: {index.relative_to(ROOT)}")
    return int(any(row.failure or row.problems or (chosen.strict and row.over_budget) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
