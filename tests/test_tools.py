"""The registry, what is rendered from it, and the course runner with its scoreboard."""

import sys
from pathlib import Path

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tools import execute as execute_module
from tools import run_course
from tools.execute import cleaned, execute, execute_all
from tools.headers import badge, setup_cell
from tools.registry import Bounds, Chapter, Repository, chapter_from, load_registry, load_repository, number_problems, select
from tools.render_badges import END, START, between_markers, outdated, readme_table, render, with_header
from tools.scoreboard import Row, as_html, as_text

REPOSITORY = Repository("somebody/fork", "main")
CHAPTER = Chapter("07", "07_x.ipynb", "Seven", "Promise.", "Goal", "beginner", 1, 1, "nothing", published={"f1": Bounds(0.5, 1.0)})


def test_rendered_files_are_current():
    assert [path.name for path in outdated(render())] == [], "run `make badges`"


def test_fork_changes_every_address():
    chapters = load_registry()
    assert "somebody/fork" in readme_table(chapters, REPOSITORY)
    assert load_repository().slug not in readme_table(chapters, REPOSITORY) + setup_cell(REPOSITORY)
    assert badge(CHAPTER, REPOSITORY).endswith("https://colab.research.google.com/github/somebody/fork/blob/main/notebooks/07_x.ipynb)")


def test_text_around_the_markers_stays():
    text = between_markers(f"before\n{START}\nold\n{END}\nafter\n", "new")
    assert text == f"before\n{START}\nnew\n{END}\nafter\n"
    with pytest.raises(ValueError, match="markers"):
        between_markers("no table here", "new")


def test_header_is_put_into_a_bare_notebook_and_rendered_once():
    bare = new_notebook(cells=[new_markdown_cell("Some story."), new_code_cell("1 + 1")])
    once = nbformat.writes(with_header(bare, CHAPTER, REPOSITORY))
    notebook = nbformat.reads(once, as_version=4)
    assert [cell.cell_type for cell in notebook.cells] == ["markdown", "markdown", "code", "markdown", "code"]
    assert nbformat.writes(with_header(notebook, CHAPTER, REPOSITORY)) == once


def test_setup_cell_is_silent_and_finds_the_root_from_solutions():
    from IPython.core.inputtransformer2 import TransformerManager

    code = TransformerManager().transform_cell(setup_cell(REPOSITORY))
    before = list(sys.path)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("COLAB_RELEASE_TAG", raising=False)
            patch.chdir(Path(__file__).resolve().parent / "data")
            names: dict[str, object] = {}
            exec(compile(code, "setup", "exec"), names)
        assert names["root"] == Path(__file__).resolve().parent.parent and sys.path[0] == str(names["root"])
    finally:
        sys.path[:] = before


def test_registry_refuses_an_unknown_field_by_name():
    with pytest.raises(ValueError, match="unknown field minuts"):
        chapter_from({"id": "01", "minuts": 3})


@pytest.mark.parametrize(
    ("wanted", "ids"), [([], "all"), (["5"], ["05"]), (["05", "01"], ["01", "05"]), (["03_embeddings_and_indexes"], ["03"])]
)
def test_notebooks_are_chosen_by_number_or_name(wanted, ids):
    chapters = load_registry()
    assert [c.id for c in select(chapters, wanted)] == ([c.id for c in chapters] if ids == "all" else ids)


def test_unknown_notebook_lists_the_known_ones():
    with pytest.raises(ValueError, match="no notebook 99; there are 01"):
        select(load_registry(), ["99"])


@pytest.mark.parametrize("value", [0.4, 1.2, float("nan")])
def test_number_out_of_bounds_is_a_problem(value):
    assert len(number_problems(CHAPTER, {"f1": {"value": value}})) == 1
    assert number_problems(CHAPTER, {"f1": {"value": 0.7}}) == []
    assert number_problems(CHAPTER, {}) == ["f1 was not recorded"]


def notebook_at(path: Path, *sources: str) -> Path:
    nbformat.write(new_notebook(cells=[new_markdown_cell("# T"), *map(new_code_cell, sources)]), path)
    return path


def test_memory_of_a_notebook_and_its_children_is_measured(tmp_path):
    source = "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'import time; x = bytearray(300_000_000); time.sleep(1)'])"
    execution = execute(notebook_at(tmp_path / "n.ipynb", source), {})
    assert 0.3 < execution.peak_memory_gb < 1.0 and execution.failure is None


def test_failing_notebook_is_reported_and_the_next_one_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(run_course, "ROOT", tmp_path)
    bad = notebook_at(tmp_path / "01_bad.ipynb", "x = 1", "1 / 0  # here", "y = 2")
    good = notebook_at(tmp_path / "02_good.ipynb", "import os; print('compiler off:', os.environ['TORCHDYNAMO_DISABLE'])")
    other = Chapter("02", "02_good.ipynb", "Two", "P.", "G", "beginner", 1, 1, "nothing")
    rows = run_course.run([(CHAPTER, bad), (other, good)], tmp_path / "out", save=True)
    assert rows[0].failure is not None and rows[0].failure.cell == 3 and rows[0].verdict == "failed" and rows[1].verdict == "ok"
    assert "1 / 0  # here" in as_text(rows, 2.0) and "ZeroDivisionError" in as_text(rows, 2.0) and "ZeroDivisionError" in as_html(rows, "t")
    saved = nbformat.read(good, as_version=4).cells[1]
    assert saved.execution_count == 1 and saved.outputs[0].text == "compiler off: 1\n"
    assert nbformat.read(bad, as_version=4).cells[1].execution_count is None
    assert (tmp_path / "out" / "02_good.html").is_file()


def test_a_page_that_cannot_be_written_is_not_passed_over(tmp_path):
    good = notebook_at(tmp_path / "01_good.ipynb", "print('fine')")
    (tmp_path / "out" / "01_good.html").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        run_course.run([(CHAPTER, good)], tmp_path / "out", save=False)


SLOW_END = """
import atexit, pathlib, tempfile
atexit.register(lambda: pathlib.Path('ended').touch())
pathlib.Path('scratch').write_text(tempfile.mkdtemp())
"""


def test_a_kernel_is_killed_after_the_last_cell_and_leaves_no_temporary_files(tmp_path):
    assert execute(notebook_at(tmp_path / "n.ipynb", SLOW_END, "print('last')"), {}).failure is None
    scratch = Path((tmp_path / "scratch").read_text())
    assert not scratch.exists() and not scratch.parent.exists() and not (tmp_path / "ended").exists()


def test_after_a_failure_what_a_cell_started_is_ended_with_the_kernel(tmp_path):
    assert execute(notebook_at(tmp_path / "n.ipynb", SLOW_END, "1 / 0"), {}).failure is not None
    assert (tmp_path / "ended").exists() and not Path((tmp_path / "scratch").read_text()).exists()


def test_the_next_kernel_starts_while_a_notebook_runs_and_ends_with_the_run(tmp_path):
    source = "import os, pathlib; pathlib.Path('scratch').write_text(os.environ['TMPDIR'])"
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    paths = [notebook_at(folder / "n.ipynb", source) for folder in folders]
    others, kernels = set(psutil.Process().children()), []
    executions = execute_all(paths, {}, on_cell=lambda index: kernels.append(set(psutil.Process().children()) - others))
    assert next(executions).failure is None and len(kernels[0]) == 2
    assert next(executions).failure is None and len(kernels[1]) == 2 and len(kernels[0] | kernels[1]) == 3
    assert (tmp_path / "a" / "scratch").read_text() != (tmp_path / "b" / "scratch").read_text()
    executions.close()  # what an interrupted run does
    assert set(psutil.Process().children()) <= others and not (tmp_path / "c" / "scratch").exists()
    assert not Path((tmp_path / "b" / "scratch").read_text()).exists()


def test_a_waiting_kernel_imports_ahead_which_counts_and_leaves_no_names(tmp_path, monkeypatch):
    slow = "import sys, time\nstart = time.process_time()\nwhile time.process_time() < start + 1: pass"
    (tmp_path / "slow_library.py").write_text(slow)
    monkeypatch.setattr(execute_module, "LIBRARIES", ("slow_library",))
    source = "import sys, time; time.sleep(1.5); print('slow_library' in sys.modules, 'slow_library' in globals())"
    paths = [notebook_at(tmp_path / f"{name}.ipynb", source) for name in "abc"]
    executions = list(execute_all(paths, {}))
    assert [one.notebook.cells[1].outputs[0].text.split() for one in executions] == [["False"] * 2, ["True", "False"], ["True", "False"]]
    assert [one.notebook.cells[1].execution_count for one in executions] == [1, 1, 1]
    assert min(executions[1].seconds, executions[2].seconds) > 2.5  # the cell's time and the library's


def test_a_kernel_that_died_while_it_waited_is_replaced(tmp_path):
    paths = [notebook_at(tmp_path / f"{name}.ipynb", "print('ran')") for name in "ab"]
    before = set(psutil.Process().children())

    def kill_the_waiting(index):
        if len(kernels := set(psutil.Process().children()) - before) == 2:
            max(kernels, key=lambda one: (one.create_time(), one.pid)).kill()

    executions = list(execute_all(paths, {}, on_cell=kill_the_waiting))
    assert [one.failure for one in executions] == [None, None] and executions[1].notebook.cells[1].outputs[0].text == "ran\n"


def test_hung_cell_is_reported_as_too_slow(tmp_path):
    execution = execute(notebook_at(tmp_path / "slow.ipynb", "import time; time.sleep(60)"), {}, cell_timeout=2)
    assert execution.failure is not None and "time limit" in execution.failure.error


def test_scoreboard_shows_numbers_beside_baseline_and_bounds_and_says_over_budget():
    row = Row(CHAPTER, 90.0, 1.0, {"f1": {"value": 0.75, "unit": "", "baseline": 0.25}}, link="07_x.html")
    text = as_text([row], 91.5)
    assert "over budget: 90 s, budget 60 s" in text and "all, by the clock" + " " * 16 + "91.5" in text
    assert all(part in text for part in ("f1", "0.75", "baseline 0.25", "expected 0.5 … 1"))
    assert 'href="07_x.html"' in as_html([row], "Course")


def test_saved_notebook_keeps_tags_and_loses_widgets_and_overwritten_progress():
    widget = new_output("display_data", data={"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "0%"})
    bar = new_output("stream", name="stderr", text=" 10%\r 50%\r100%\ndone\n")
    cell = new_code_cell(
        "1", outputs=[widget, bar], metadata={"tags": ["parameters"], "execution": {"iopub.status.busy": "2026"}, "collapsed": True}
    )
    notebook = cleaned(new_notebook(cells=[cell], metadata={"widgets": {}, "vscode": {}}))
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.cells[0].metadata == {"tags": ["parameters"]}
    assert [o.text for o in notebook.cells[0].outputs] == ["100%\ndone\n"]
