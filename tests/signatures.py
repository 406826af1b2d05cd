"""Reads a notebook's code without running it and finds what the installed libraries would refuse: imports and keyword arguments.

It follows imports, attribute chains and `name = Class(…)`; what it cannot resolve that way it leaves alone, so that a finding is real.
"""

import ast
import importlib
import inspect
from dataclasses import dataclass
from typing import Any

# Accepted by a **kwargs and then ignored, deprecated or refused at run time; each with what to write today.
RENAMED = {
    "transformers": {
        "torch_dtype": "dtype",
        "use_auth_token": "token",
        "load_in_4bit": "quantization_config=BitsAndBytesConfig(load_in_4bit=True)",
        "load_in_8bit": "quantization_config=BitsAndBytesConfig(load_in_8bit=True)",
        "trust_remote_code": "nothing: no model of the course needs remote code",
    },
    "sentence_transformers": {"use_auth_token": "token"},
}


@dataclass(frozen=True)
class Instance:
    """A value of which only the class is known."""

    of: type


class Missing:
    """What a name resolves to when nothing is known about it."""


def load(module: str, name: str | None = None) -> Any:
    """Returns the module, or what it has under `name`; raises ImportError or AttributeError as an import statement would."""
    found = importlib.import_module(module)
    if name is None or hasattr(found, name):
        return found if name is None else getattr(found, name)
    try:
        return importlib.import_module(f"{module}.{name}")
    except ModuleNotFoundError as error:
        raise AttributeError(f"{module} has no {name}") from error


class Reader(ast.NodeVisitor):
    """Walks cells in order; `problems` lists (line, what is wrong)."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {}
        self.problems: list[tuple[int, str]] = []

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.bind_import(node.lineno, alias.name, None, alias.asname or alias.name.partition(".")[0], whole=alias.asname is not None)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            if alias.name == "*":
                self.problems.append((node.lineno, f"`from {node.module} import *`: import names"))
            else:
                self.bind_import(node.lineno, str(node.module), alias.name, alias.asname or alias.name)

    def bind_import(self, line: int, module: str, name: str | None, bound: str, whole: bool = True) -> None:
        try:
            found = load(module, name)
            self.names[bound] = found if whole else load(module.partition(".")[0])
        except (ImportError, AttributeError) as error:
            self.problems.append((line, f"import of {module}{'.' + name if name else ''} fails with the installed versions: {error}"))

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        value = self.resolve(node.value) if isinstance(node.value, ast.Call) else Missing
        for target in node.targets:
            if isinstance(target, ast.Name):
                self.names[target.id] = value
            else:
                self.forget(target)

    def visit_For(self, node: ast.For) -> None:
        self.forget(node.target)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        self.forget(node.target)
        self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        outer = dict(self.names)
        arguments = node.args
        for argument in [*arguments.args, *arguments.kwonlyargs, *filter(None, [arguments.vararg, arguments.kwarg])]:
            self.names.pop(argument.arg, None)
        self.generic_visit(node)
        self.names = outer
        self.names.pop(node.name, None)

    visit_AsyncFunctionDef = visit_FunctionDef

    def forget(self, target: ast.AST) -> None:
        """Drops names that are bound to something unknown."""
        for node in ast.walk(target):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                self.names.pop(node.id, None)

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        called = self.resolve(node.func)
        keywords = [keyword.arg for keyword in node.keywords if keyword.arg]
        if called is not Missing and keywords:
            self.problems += [(node.lineno, f"{ast.unparse(node.func)}(…): {problem}") for problem in keyword_problems(called, keywords)]

    def resolve(self, node: ast.AST) -> Any:
        """Returns the object that an expression means, an `Instance` of its class, or `Missing`."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id, Missing)
        if isinstance(node, ast.Attribute):
            owner = self.resolve(node.value)
            return Missing if owner is Missing else getattr(owner.of if isinstance(owner, Instance) else owner, node.attr, Missing)
        if isinstance(node, ast.Call):
            called = self.resolve(node.func)
            return Instance(called) if inspect.isclass(called) and called is not Missing else Missing
        return Missing


def keyword_problems(called: Any, keywords: list[str]) -> list[str]:
    """Returns one line per keyword that `called` does not take in the installed version."""
    package = (getattr(called, "__module__", None) or "").partition(".")[0]
    renamed = RENAMED.get(package, {})
    try:
        parameters = dict(inspect.signature(called.of.__call__ if isinstance(called, Instance) else called).parameters)
    except (ValueError, TypeError, AttributeError):
        parameters = {}
    renamed = {old: new for old, new in renamed.items() if old not in parameters}  # BitsAndBytesConfig itself takes load_in_4bit
    problems = [f"{keyword} is gone, write {renamed[keyword]}" for keyword in keywords if keyword in renamed]
    if not parameters:
        return problems
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return problems
    fields = set(getattr(called, "model_fields", {}))  # a pydantic model may take a field by its name beside its alias
    unknown = [keyword for keyword in keywords if keyword not in parameters and keyword not in fields and keyword not in renamed]
    return problems + [f"no keyword {keyword} in the installed version; it takes {', '.join(parameters)}" for keyword in unknown]
