"""requirements.txt moves no package that Colab ships, names every package the course imports, and requirements.lock keeps to it."""

import ast
import os
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from tools.colab_environment import FREEZE, GPU_ONLY, NO_INDEX, pinned, requirement_lines
from tools.registry import ROOT

OPTIONAL = {"pinecone", "weaviate-client"}  # vector databases for those who run one
COMPANIONS = {"cycler", "tokenizers"}  # come with matplotlib and transformers, which decide their versions

COLAB = pinned(FREEZE)
REQUIREMENTS = requirement_lines(ROOT / "requirements.txt")
LOCK = pinned(ROOT / "requirements.lock")


def test_freeze_is_the_whole_runtime():
    assert len(COLAB) > 500 and {"torch", "transformers", "langchain-core", "numpy"} <= set(COLAB)


@pytest.mark.parametrize("requirement", [r for r, _ in REQUIREMENTS], ids=str)
def test_range_accepts_what_colab_ships_and_what_is_locked(requirement):
    name = canonicalize_name(requirement.name)
    assert name in LOCK and requirement.specifier.contains(LOCK[name])
    if name in COLAB:
        assert requirement.specifier.contains(COLAB[name]), f"Colab ships {name} {COLAB[name]}: lower the bound"


def test_every_requirement_gives_its_reason():
    assert [str(requirement) for requirement, reason in REQUIREMENTS if len(reason) < 10] == []


def test_lock_has_no_cuda_packages():
    assert [name for name in LOCK if GPU_ONLY.search(name)] == []
    assert LOCK["torch"] == "2.13.0"


def imported_packages(folder: Path) -> set[str]:
    """Returns the top-level modules that the folder's Python files import."""
    nodes = [node for path in folder.rglob("*.py") for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    return {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - {"utils", "google"}


def test_every_package_that_utils_imports_is_required():
    required = {canonicalize_name(requirement.name) for requirement, _ in REQUIREMENTS} | OPTIONAL | COMPANIONS
    distributions = packages_distributions()
    found = {
        module: {canonicalize_name(name) for name in distributions.get(module, [module])} for module in imported_packages(ROOT / "utils")
    }
    assert {module: sorted(names) for module, names in found.items() if not names & required} == {}


def resolve(folder: Path) -> subprocess.CompletedProcess[str]:
    """Returns uv's answer to: may requirements.txt be installed on Colab with every preinstalled package where it is?

    torch and the CUDA packages count as given: an override that never applies takes them out of the question.
    """
    constraints, given = folder / "constraints.txt", folder / "given.txt"
    lines = [line for line in FREEZE.read_text(encoding="utf-8").splitlines() if not GPU_ONLY.search(line.partition("==")[0])]
    constraints.write_text("\n".join(lines), encoding="utf-8")
    given.write_text("torch; python_version < '3'\n", encoding="utf-8")
    command = [sys.executable, "-m", "uv", "pip", "compile", "--python-version", "3.13", "--python-platform", "linux", "--no-header",
               "--no-annotate", "-q", "-c", str(constraints), "--override", str(given), str(ROOT / "requirements.txt")]  # fmt: skip
    environment = {**os.environ, "UV_HTTP_TIMEOUT": "20", "UV_NO_PROGRESS": "1"}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240, env=environment)


def test_installing_on_colab_moves_no_preinstalled_package(tmp_path):
    try:
        result = resolve(tmp_path)
    except subprocess.TimeoutExpired:
        pytest.skip("no index reachable")
    if result.returncode and NO_INDEX.search(result.stderr):
        pytest.skip("no index reachable")
    assert result.returncode == 0, f"no set of packages fits beside Colab's:\n{result.stderr}"
    (tmp_path / "resolved.txt").write_text(result.stdout, encoding="utf-8")
    resolved = pinned(tmp_path / "resolved.txt")
    assert {"trl", "faiss-cpu", "chromadb"} <= set(resolved)
    assert {name: (COLAB[name], version) for name, version in resolved.items() if name in COLAB and COLAB[name] != version} == {}
