"""Every notebook passes every gate, and every gate fails on a notebook made bad on purpose."""

import json
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from gates import GATES, Subject
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tools.headers import setup_cell, table_cell, title_cell
from tools.registry import NOTEBOOKS, SOLUTIONS, Bounds, Chapter, load_registry, load_repository
from utils.results import MIME_TYPE

REGISTRY = load_registry()
REPOSITORY = load_repository()
FILES = frozenset(chapter.file for chapter in REGISTRY)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("chapter", REGISTRY, ids=lambda chapter: chapter.id)
def test_notebook_passes(chapter, gate):
    assert chapter.path.is_file(), f"the registry names {chapter.file}, which is not there"
    problems = GATES[gate](Subject(chapter.path, chapter, REPOSITORY, chapter.solution, FILES))
    assert not problems, "\n".join(problems)


def test_registry_and_folders_name_the_same_notebooks():
    assert len(REGISTRY) >= 3, "the gates found fewer notebooks than the course began with"
    assert {path.name for path in NOTEBOOKS.glob("*.ipynb")} == FILES
    assert {path.name for path in SOLUTIONS.glob("*.ipynb")} == FILES


def executed(source: str, number: int, outputs: list | None = None, tags: list[str] | None = None) -> nbformat.NotebookNode:
    cell = new_code_cell(source, execution_count=number, outputs=outputs or [])
    if tags:
        cell.metadata["tags"] = tags
    return cell


CHAPTER = Chapter(
    "99", "99_gates.ipynb", "Gates", "One line.", "Know gates", "beginner", 1, 1, "nothing", published={"speed": Bounds(min=1)}
)


def good_cells() -> list[nbformat.NotebookNode]:
    """The smallest notebook that every gate lets through."""
    picture = [new_output("display_data", data={"image/png": "aGVsbG8=", "text/plain": "<Figure>"})]
    number = [new_output("display_data", data={MIME_TYPE: {"name": "speed", "value": 2.0, "unit": "x"}, "text/plain": "speed 2 x"})]
    asked = "".join(f'check("99-{grade}", None)\n' for grade in ("easy", "medium", "hard"))
    return [
        new_markdown_cell(title_cell(CHAPTER, REPOSITORY)),
        new_markdown_cell(table_cell(CHAPTER)),
        executed(setup_cell(REPOSITORY), 1, tags=["setup"]),
        executed("top_k = 3", 2, tags=["parameters"]),
        executed("import json\njson.dumps({}, indent=2)", 3, picture),
        executed("print(top_k)", 4, picture),
        executed("speed = 2.0", 5, number),
        executed(asked.strip(), 6),
    ]


def verdict(text: str) -> nbformat.NotebookNode:
    return new_output("stream", name="stdout", text=f"{text}\n")


def write_solution(path: Path) -> None:
    cells = [
        executed(f'check("99-{grade}", 1)', n, [verdict(f"✓ 99-{grade}: so it is.")])
        for n, grade in enumerate(("easy", "medium", "hard"), 1)
    ]
    nbformat.write(new_notebook(cells=cells), path)


def subject(folder: Path, spoil: Callable[[nbformat.NotebookNode], None] = lambda notebook: None) -> Subject:
    notebook = new_notebook(cells=good_cells())
    spoil(notebook)
    path, solution = folder / CHAPTER.file, folder / "solutions" / CHAPTER.file
    solution.parent.mkdir(exist_ok=True)
    nbformat.write(notebook, path)
    write_solution(solution)
    return Subject(path, CHAPTER, REPOSITORY, solution, FILES | {CHAPTER.file})


@pytest.mark.parametrize("gate", GATES)
def test_gate_lets_a_good_notebook_through(gate, tmp_path):
    assert GATES[gate](subject(tmp_path)) == []


def source_at(position: int, source: str) -> Callable[[nbformat.NotebookNode], None]:
    return lambda notebook: notebook.cells[position].update(source=source)


def code(source: str) -> Callable[[nbformat.NotebookNode], None]:
    return source_at(4, source)


def output(**data: str) -> Callable[[nbformat.NotebookNode], None]:
    shown = {name.replace("__", "/"): value for name, value in data.items()}
    return lambda notebook: notebook.cells[5].outputs.append(new_output("display_data", data=shown))


def error(notebook: nbformat.NotebookNode) -> None:
    notebook.cells[4].outputs.append(new_output("error", ename="KeyError", evalue="'x'", traceback=[]))


def widget_state(notebook: nbformat.NotebookNode) -> None:
    notebook.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {}}


def widget_view(notebook: nbformat.NotebookNode) -> None:
    notebook.cells[4].outputs.append(new_output("display_data", data={"application/vnd.jupyter.widget-view+json": {"model_id": "1"}}))


OTHER_BADGE = title_cell(CHAPTER, REPOSITORY).replace(CHAPTER.file, "98_absent.ipynb")
FORK_BADGE = title_cell(CHAPTER, REPOSITORY).replace(REPOSITORY.slug, "somebody/else")
BAD: dict[str, list[Callable[[nbformat.NotebookNode], None]]] = {
    "parses": [code("def broken(:")],
    "badge": [source_at(0, "# no badge"), source_at(0, OTHER_BADGE), source_at(0, FORK_BADGE)],
    "header": [source_at(0, "# Another title"), source_at(1, "| | |\n|---|---|\n| Level | expert |")],
    "parameters": [lambda n: n.cells[3].metadata.pop("tags"), lambda n: n.cells[4].metadata.update(tags=["parameters"])],
    "run_in_order": [lambda n: n.cells[4].update(execution_count=None), lambda n: n.cells[4].update(execution_count=9)],
    "no_errors": [error],
    "no_widgets": [widget_state, widget_view],
    "small": [output(text__plain="x" * 1_000_001), code("x = 1\n" * 26)],
    "setup_first": [lambda n: n.cells.insert(2, executed("import numpy", 1)), source_at(2, "%pip install -q faiss-cpu")],
    "installed_api": [
        code("import statistics\nstatistics.mean([1.0], axis=0)"),
        code("from transformers import TextDataset"),
        code("import a_package_nobody_has"),
        code("from json import *"),
        code("from transformers import AutoModel\nAutoModel.from_pretrained('folder', torch_dtype='auto')"),
        code("from langchain_core.documents import Document\nDocument(page_content='a').model_copy(depe=True)"),
        code("from pathlib import Path\nfolder = Path('a')\nfolder.mkdir(parent=True)"),
    ],
    "no_sunset": [
        code("from langchain.chains import RetrievalQA"),
        code("import langchain_community.vectorstores"),
        code("from langchain_classic import hub"),
        code("from langchain import vectorstores"),
    ],
    "exercises": [source_at(7, 'check("99-easy", None)'), source_at(7, good_cells()[7].source + '\ncheck("99-bonus", None)')],
    "stays_home": [
        code("import requests\nrequests.get('https://example.org')"),
        code("!wget -q https://example.org/data.zip"),
        code("%pip install -q faiss-cpu"),
        code("from huggingface_hub import login\nlogin()"),
        code("from transformers import AutoModel\nAutoModel.from_pretrained('gpt2-org/gpt2')"),
        code("load_llm('llama-2-7b-chat')"),
        code("load_chat_model(base_url='https://api.example.org/v1')"),
        code("import os\nkey = os.environ['OPENAI_API_KEY']"),
    ],
    "pictures": [lambda n: n.cells[4].update(outputs=[])],
    "no_machine_paths": [output(text__plain="/home/reader/course/x.py:3: UserWarning"), code(f"folder = '{NOTEBOOKS}'")],
    "published": [lambda n: n.cells[6].update(outputs=[]), lambda n: n.cells[6].outputs[0].data[MIME_TYPE].update(value=0.5)],
}  # fmt: skip


def test_every_gate_has_a_bad_notebook():
    assert set(BAD) == set(GATES)


@pytest.mark.parametrize(("gate", "number"), [(gate, number) for gate, spoils in BAD.items() for number in range(len(spoils))])
def test_gate_stops_a_bad_notebook(gate, number, tmp_path):
    assert GATES[gate](subject(tmp_path, BAD[gate][number]))


def test_file_that_is_not_json_is_stopped(tmp_path):
    bad = subject(tmp_path)
    bad.path.write_text(bad.text[:-20], encoding="utf-8")
    with pytest.raises((json.JSONDecodeError, nbformat.reader.NotJSONError)):
        json.loads(bad.path.read_text(encoding="utf-8"))
    assert GATES["parses"](Subject(bad.path, CHAPTER, REPOSITORY, bad.solution, FILES))


@pytest.mark.parametrize("said", ["✗ 99-medium: no answer yet.", ""])
def test_solution_that_is_not_right_is_no_solution(said, tmp_path):
    good = subject(tmp_path)
    solution = nbformat.read(good.solution, as_version=4)
    solution.cells[1].outputs = [verdict(said)]
    nbformat.write(solution, good.solution)
    assert GATES["exercises"](good) == ["exercise 99-medium has no executed, right solution"]


@pytest.mark.parametrize(("setting", "problems"), [("None", 0), ("False", 0), ("True", 1), ("'a server'", 1)])
def test_code_under_a_switch_that_is_off_may_need_a_key(setting, problems, tmp_path):
    def optional(notebook: nbformat.NotebookNode) -> None:
        notebook.cells[3].update(source=f"top_k = 3\nSERVER = {setting}")
        notebook.cells[4].update(source="import os\nif SERVER:\n    key = os.environ['OPENAI_API_KEY']\nelse:\n    print('off')")

    assert len(GATES["stays_home"](subject(tmp_path, optional))) == problems
