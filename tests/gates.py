"""The gates: what every notebook must be, checked without running it. Each gate returns problems in words; none means it passes.

Knows the registry, the notebook format and the rules of the house. tests/test_gates.py applies the gates to every notebook and shows
each one failing on a notebook made bad on purpose.
"""

import ast
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import nbformat
from IPython.core.inputtransformer2 import TransformerManager
from signatures import Reader

from tools.headers import setup_cell, table_cell, title_cell
from tools.registry import ROOT, Chapter, Repository, number_problems
from utils.results import read_results

SUNSET = ("langchain_community", "langchain_classic", "langchain_experimental", "langchain_faiss")
REMOVED = tuple(
    f"langchain.{part}" for part in ("chains", "vectorstores", "llms", "embeddings", "retrievers", "document_loaders", "memory")
)
NETWORK = re.compile(
    r"^(requests|httpx|urllib\.request|aiohttp|wget)\.|(^|\.)(urlopen|urlretrieve|hf_hub_download|snapshot_download|notebook_login|login|"
    r"getpass|push_to_hub|userdata\.get)$"
)
MACHINE_PATH = re.compile(r"(/home/|/root/|/Users/|[A-Z]:\\Users\\|/tmp/|site-packages)[^\s\"']*|" + re.escape(str(ROOT)))


@dataclass
class Subject:
    """A notebook under the gates."""

    path: Path
    chapter: Chapter
    repository: Repository
    solution: Path
    known_files: frozenset[str]

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def notebook(self) -> nbformat.NotebookNode:
        return nbformat.reads(self.text, as_version=4)

    @cached_property
    def code(self) -> list[tuple[int, nbformat.NotebookNode]]:
        """Code cells with something in them, numbered from 1 over all cells."""
        return [(n, c) for n, c in enumerate(self.notebook.cells, 1) if c.cell_type == "code" and c.source.strip()]

    @cached_property
    def default_path(self) -> list[tuple[int, ast.Module]]:
        """The syntax trees of what runs without being asked for; cells that do not parse are left to `parses`."""
        trees = [(n, tree) for n, cell in self.code if (tree := tree_of(cell.source)) is not None]
        return [(n, SwitchedOn(self.switched_off).visit(tree)) for n, tree in trees]

    @cached_property
    def switched_off(self) -> set[str]:
        """The names that the parameters cell sets to None or False: what they guard needs a key, a GPU, a server or the Hub."""
        sources = [cell.source for _, cell in self.code if "parameters" in tags(cell)]
        lines = [line for source in sources if (tree := tree_of(source)) is not None for line in tree.body if isinstance(line, ast.Assign)]
        return {ast.unparse(line.targets[0]) for line in lines if isinstance(line.value, ast.Constant) and not line.value.value}


class SwitchedOn(ast.NodeTransformer):
    """Leaves out what stands under `if NAME:` where the parameters leave NAME off; an `else` stays."""

    def __init__(self, off: set[str]) -> None:
        self.off = off

    def visit_If(self, node: ast.If) -> Any:
        self.generic_visit(node)
        return (node.orelse or ast.Pass()) if isinstance(node.test, ast.Name) and node.test.id in self.off else node


def tags(cell: nbformat.NotebookNode) -> list[str]:
    return list(cell.metadata.get("tags", []))


def tree_of(source: str) -> ast.Module | None:
    """Returns the syntax tree of a cell, its `!` and `%` lines translated as IPython does; None when it does not parse."""
    try:
        return ast.parse(TransformerManager().transform_cell(source))
    except SyntaxError:
        return None


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Yields every call with its dotted name."""
    yield from ((ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call))


def literal(node: ast.Call, keyword: str | None = None) -> str:
    """Returns a call's first argument, or the keyword's, when it is a string written out; else ""."""
    values = [k.value for k in node.keywords if k.arg == keyword] if keyword else node.args[:1]
    return values[0].value if values and isinstance(values[0], ast.Constant) and isinstance(values[0].value, str) else ""


def parses(s: Subject) -> list[str]:
    try:
        nbformat.validate(nbformat.from_dict(json.loads(s.text)))
    except (json.JSONDecodeError, nbformat.ValidationError) as error:
        return [f"not a valid notebook file: {str(error).splitlines()[0]}"]
    return [f"cell {n} is not valid Python" for n, cell in s.code if tree_of(cell.source) is None]


def badge(s: Subject) -> list[str]:
    found = re.findall(r"colab\.research\.google\.com/github/([^)\s]+?)/blob/([^)\s]+?)/notebooks/([^)\s]+)", s.text)
    if not found:
        return ["has no Colab badge"]
    wrong = [f for f in found if (f[0], f[1]) != (s.repository.slug, s.repository.branch) or f[2] not in s.known_files]
    return [f"badge points at {'/'.join(f)}, which the registry does not have" for f in wrong]


def header(s: Subject) -> list[str]:
    expected = [title_cell(s.chapter, s.repository), table_cell(s.chapter)]
    found = [cell.source for cell in s.notebook.cells[:2]]
    return [] if found == expected else ["title or header table differs from the registry: run `make badges`"]


def parameters(s: Subject) -> list[str]:
    count = sum("parameters" in tags(cell) for _, cell in s.code)
    return [] if count == 1 else [f"{count} code cells are tagged `parameters`, expected one"]


def run_in_order(s: Subject) -> list[str]:
    counts = [cell.execution_count for _, cell in s.code]
    return [] if counts == list(range(1, len(counts) + 1)) else ["not saved as executed top to bottom: run `make save`"]


def no_errors(s: Subject) -> list[str]:
    bad = [n for n, c in s.code if "raises-exception" not in tags(c) and any(o.output_type == "error" for o in c.outputs)]
    return [f"cell {n} is saved with an error" for n in bad]


def no_widgets(s: Subject) -> list[str]:
    state = s.notebook.metadata.get("widgets")
    views = [n for n, c in s.code if any("application/vnd.jupyter.widget-view+json" in o.get("data", {}) for o in c.outputs)]
    return (["metadata.widgets makes GitHub refuse the notebook"] if state is not None else []) + [
        f"cell {n} shows a widget that readers on GitHub cannot see" for n in views
    ]


def small(s: Subject) -> list[str]:
    size = len(s.text.encode())
    long = [f"cell {n} has {len(c.source.splitlines())} lines, at most 25" for n, c in s.code if len(c.source.splitlines()) > 25]
    return ([f"{size / 1e6:.2f} MB, at most 1 MB"] if size > 1_000_000 else []) + long


def setup_first(s: Subject) -> list[str]:
    if not s.code or s.code[0][1].source != setup_cell(s.repository) or "setup" not in tags(s.code[0][1]):
        return ["the first code cell is not the set-up cell: run `make badges`"]
    return []


def installed_api(s: Subject) -> list[str]:
    reader, problems = Reader(), []
    for n, tree in s.default_path:
        already = len(reader.problems)
        reader.visit(tree)
        problems += [f"cell {n}, line {line}: {problem}" for line, problem in reader.problems[already:]]
    return problems


def no_sunset(s: Subject) -> list[str]:
    trees = [(n, tree) for n, cell in s.code if (tree := tree_of(cell.source)) is not None]
    imports = [(n, name) for n, tree in trees for node in ast.walk(tree) for name in imported(node)]
    return [f"cell {n} imports {name}, which is gone or on its way out" for n, name in imports if is_under(name, SUNSET + REMOVED)]


def imported(node: ast.AST) -> list[str]:
    """Returns the modules that an import statement may bind."""
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []


def is_under(name: str, modules: tuple[str, ...]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def exercise_ids(notebook: nbformat.NotebookNode) -> dict[str, nbformat.NotebookNode]:
    """Returns the cell of each `check("05-easy", …)`, by exercise."""
    cells = [(cell, tree_of(cell.source)) for cell in notebook.cells if cell.cell_type == "code"]
    found = [(literal(call), cell) for cell, tree in cells if tree for name, call in calls(tree) if name.rpartition(".")[2] == "check"]
    return {exercise: cell for exercise, cell in found if exercise}


def exercises(s: Subject) -> list[str]:
    asked = exercise_ids(s.notebook)
    missing = [f"{s.chapter.id}-{grade}" for grade in ("easy", "medium", "hard") if f"{s.chapter.id}-{grade}" not in asked]
    if not s.solution.is_file():
        return [f"{name} is not asked" for name in missing] + [f"no solutions at notebooks/solutions/{s.solution.name}"]
    solved = exercise_ids(nbformat.read(s.solution, as_version=4))
    open_ = [name for name in asked if name not in solved or not right(name, solved[name])]
    return [f"exercise {name} is not asked" for name in missing] + [f"exercise {name} has no executed, right solution" for name in open_]


def right(exercise: str, cell: nbformat.NotebookNode) -> bool:
    """Returns whether the saved output of a solution's check says that the answer is right."""
    return any(f"✓ {exercise}:" in o.get("text", "") for o in cell.outputs)


def stays_home(s: Subject) -> list[str]:
    """No network, token, gated model or paid key where nobody asked for it."""
    found = [(n, reason) for n, tree in s.default_path if not is_setup(s, n) for reason in outward(tree)]
    return [f"cell {n} {reason}" for n, reason in found]


def is_setup(s: Subject, number: int) -> bool:
    return "setup" in tags(s.notebook.cells[number - 1])


def outward(tree: ast.AST) -> Iterator[str]:
    """Yields why code would need more than this machine and this repository."""
    for name, call in calls(tree):
        last = name.rpartition(".")[2]
        if name.startswith("get_ipython().") and last in {"system", "getoutput", "run_line_magic", "run_cell_magic"}:
            if last in {"system", "getoutput"} or literal(call) in {"pip", "conda", "bash", "sh", "script"}:
                yield "runs a shell command or installs something"
        elif NETWORK.search(name):
            yield f"calls {name}"
        elif last == "from_pretrained" and re.fullmatch(r"[\w.-]+/[\w.-]+", literal(call)):
            yield f"loads {literal(call)} from the Hub"
        elif last in {"load_llm", "load_chat_model", "load_embedder", "load_reranker"}:
            yield from unembedded(literal(call) or literal(call, "key"), literal(call, "base_url"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and re.search(r"environ\[.*(TOKEN|API_KEY|SECRET)", ast.unparse(node)):
            yield f"needs {ast.unparse(node)}"


def unembedded(key: str, base_url: str) -> Iterator[str]:
    """Yields why a model of the catalog, or a server, is not at hand everywhere."""
    from utils import catalog

    if key and (catalog.get(key).gated or catalog.get(key).path is None):
        yield f"loads {key}, which is not in the repository"
    if base_url and not re.match(r"https?://(localhost|127\.0\.0\.1|\[::1\])", base_url):
        yield f"asks {base_url}"


def pictures(s: Subject) -> list[str]:
    count = sum("image/png" in o.get("data", {}) or "image/svg+xml" in o.get("data", {}) for _, c in s.code for o in c.outputs)
    return [] if count >= 2 else [f"{count} pictures, at least 2"]


def no_machine_paths(s: Subject) -> list[str]:
    texts = [(n, re.sub(r'"image/\w+": "[^"]*"', "", json.dumps(c.outputs))) for n, c in s.code]  # base64 may spell anything
    shown = texts + [(n, c.source) for n, c in enumerate(s.notebook.cells, 1)]
    return [f"cell {n} names a path of one machine: {found.group()}" for n, text in shown if (found := MACHINE_PATH.search(text))]


def published(s: Subject) -> list[str]:
    return number_problems(s.chapter, read_results(s.path))


GATES: dict[str, Callable[[Subject], list[str]]] = {
    gate.__name__: gate
    for gate in (
        parses, badge, header, parameters, run_in_order, no_errors, no_widgets, small, setup_first,
        installed_api, no_sunset, exercises, stays_home, pictures, no_machine_paths, published,
    )
}  # fmt: skip
