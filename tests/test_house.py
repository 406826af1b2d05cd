"""The house stays small: no function of more than 30 lines of code, no module of more than 200; docstrings and comments do not count."""

import ast
from pathlib import Path

import pytest

from tools.registry import ROOT

MODULES = sorted(path for folder in ("utils", "tools") for path in (ROOT / folder).rglob("*.py"))
FUNCTION_LINES, MODULE_LINES = 30, 200


def docstring_lines(tree: ast.AST) -> set[int]:
    """The numbers of all lines that belong to a docstring."""
    owners = [node for node in ast.walk(tree) if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))]
    firsts = [node.body[0] for node in owners if ast.get_docstring(node, clean=False) is not None]
    return {number for first in firsts for number in range(first.lineno, (first.end_lineno or first.lineno) + 1)}


def code_lines(text: str) -> set[int]:
    """The numbers of the lines that hold code."""
    skipped = docstring_lines(ast.parse(text))
    lines = enumerate(text.splitlines(), start=1)
    return {number for number, line in lines if number not in skipped and line.strip() and not line.strip().startswith("#")}


def long_functions(text: str) -> list[str]:
    """Each function that is too long, with its lines of code, its head included."""
    code, functions = code_lines(text), (ast.FunctionDef, ast.AsyncFunctionDef)
    sizes = {
        f"{node.name} in line {node.lineno}": len(code & set(range(node.lineno, (node.end_lineno or node.lineno) + 1)))
        for node in ast.walk(ast.parse(text))
        if isinstance(node, functions)
    }
    return [f"{name}: {size} lines" for name, size in sizes.items() if size > FUNCTION_LINES]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_functions_and_modules_are_short(path: Path):
    text = path.read_text(encoding="utf-8")
    assert long_functions(text) == []
    assert len(code_lines(text)) <= MODULE_LINES


def test_long_function_is_found_and_its_docstring_is_not_counted():
    body = "".join(f"    x{n} = {n}\n" for n in range(29))
    assert long_functions(f'def one():\n    """One.\n\n    Two.\n    """\n    # three\n\n{body}') == []
    assert long_functions(f"def one():\n{body}    y = 1\n") == ["one in line 1: 31 lines"]
