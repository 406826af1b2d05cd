"""The environment of `make test-colab`: Colab's frozen versions of what the course and its tests need, on this Python.

Knows Colab's freeze, what is left out of it and why. uv resolves, which needs a package index; the list goes to LIST, and pip installs
from it. The freeze is the lower end of the ranges in requirements.txt, requirements.lock the upper one. Installs nothing itself.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.registry import ROOT

FREEZE = ROOT / "tests" / "data" / "colab-freeze.txt"  # the GPU runtime of 2026-08-19, Python 3.13
LIST = ROOT / "build" / "colab" / "requirements.txt"
GPU_ONLY = re.compile(r"nvidia|cuda|rapids|cu1[23]|cudf|cuml|cupy|^triton", re.IGNORECASE)
LEFT_OUT = {
    "torch": "Colab's is a CUDA build; tests run on the locked version",
    "torchvision": "has to fit torch",
    "torchaudio": "has to fit torch",
    "torchcodec": "has to fit torch",
    "setuptools": "torch decides its version",
}
# The course does not import these, but transformers, peft and trl look for them, and go another way where Colab has them.
LOOKED_FOR = ("sentencepiece", "tensorboard", "torchao", "wandb")
SOURCE_ONLY = ("rouge-score",)  # pure Python, published without a wheel; everything else must come as one
NO_INDEX = re.compile(
    r"dns error|could not connect|error sending request|timed out|network.*(disabled|unreachable)|connection refused", re.IGNORECASE
)


def requirement_lines(path: Path) -> list[tuple[Requirement, str]]:
    """Returns (requirement, comment) per line that is not a comment itself."""
    lines = [line.partition("#") for line in path.read_text(encoding="utf-8").splitlines()]
    return [(Requirement(text.strip()), comment.strip()) for text, _, comment in lines if text.strip()]


def pinned(path: Path) -> dict[str, str]:
    """Returns version by canonical package name."""
    return {canonicalize_name(r.name): next(iter(r.specifier)).version for r, _ in requirement_lines(path)}


def as_lines(pins: dict[str, str]) -> str:
    """Returns the pins as pip and uv read them, sorted."""
    return "".join(f"{name}=={version}\n" for name, version in sorted(pins.items()))


def compile_list(arguments: list[str], constraints: dict[str, str], wanted: str = "") -> tuple[dict[str, str], str]:
    """Returns (version by name, "") as uv resolves `arguments` and the lines of `wanted`, or ({}, what is in the way).

    Raises ConnectionError when no package index answers.
    """
    with tempfile.TemporaryDirectory(prefix="resolve-") as folder:
        held, lines, out = (Path(folder) / name for name in ("constraints.txt", "wanted.in", "resolved.txt"))
        held.write_text(as_lines(constraints), encoding="utf-8")
        lines.write_text(wanted, encoding="utf-8")
        command = [sys.executable, "-m", "uv", "pip", "compile", *arguments, str(lines), "--python", sys.executable, "-c", str(held),
                   "--only-binary", ":all:", *(part for name in SOURCE_ONLY for part in ("--no-binary", name)),
                   "--no-header", "--no-annotate", "-q", "-o", str(out)]  # fmt: skip
        environment = {**os.environ, "UV_HTTP_TIMEOUT": "60", "UV_NO_PROGRESS": "1"}
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, env=environment)
        if result.returncode and NO_INDEX.search(result.stderr):
            raise ConnectionError(f"No package index answers. Check the connection and try again.\n{result.stderr.strip()}")
        return ({}, result.stderr.strip()) if result.returncode else (pinned(out), "")


def without_wheel(arguments: list[str], frozen: dict[str, str]) -> dict[str, str]:
    """Returns by name those frozen versions among what `arguments` need that have no wheel for this Python."""
    needed, problem = compile_list(arguments, {})
    if problem:
        raise ValueError(f"The course's own ranges cannot be met on this Python:\n{problem}")
    pins = {name: frozen[name] for name in {*needed, *LOOKED_FOR} & set(frozen)}
    return {name: version for name, version in pins.items() if compile_list(["--no-deps"], {}, f"{name}=={version}\n")[1]}


def resolve(arguments: list[str], freeze: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Returns the versions to install, and the frozen versions that this Python has no wheel for.

    `arguments` name what is wanted, as `uv pip compile` takes it. Raises ValueError when it does not fit beside the rest of the freeze.
    """
    held = {name: version for name, version in freeze.items() if name not in LEFT_OUT and not GPU_ONLY.search(name)}
    lost: dict[str, str] = {}
    found, problem = compile_list(arguments, held, looked_for(held))
    if problem:
        lost = without_wheel(arguments, held)
        held = {name: version for name, version in held.items() if name not in lost}
        found, problem = compile_list(arguments, held, looked_for(held))
    if problem:
        raise ValueError(f"Colab's versions do not fit requirements.txt and the tests: lower a bound.\n{problem}")
    return {name: version for name, version in found.items() if not GPU_ONLY.search(name)}, lost


def looked_for(held: dict[str, str]) -> str:
    """Returns what Colab ships of LOOKED_FOR, a line each."""
    return as_lines({name: held[name] for name in LOOKED_FOR if name in held})


def report(found: dict[str, str], lost: dict[str, str], freeze: dict[str, str]) -> str:
    """Returns in words what is at Colab's version, what is not, and why."""
    same = sum(freeze.get(name) == version for name, version in found.items())
    lines = [f"{same} of {len(found)} packages are at Colab's version; those that Colab lacks are the newest that fit beside them."]
    lines += [f"  left out: {name} {freeze[name]} ({LEFT_OUT[name]})" for name in LEFT_OUT if name in freeze and name in found]
    lines += [f"  left out: {name} {version} (no wheel for Python {sys.version.split()[0]})" for name, version in sorted(lost.items())]
    return "\n".join(lines)


def main() -> int:
    """Writes LIST, whole or not at all, prints the report, and returns the exit code."""
    freeze = pinned(FREEZE)
    try:
        found, lost = resolve(["requirements.txt", "--group", "dev"], freeze)
    except (ConnectionError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    LIST.parent.mkdir(parents=True, exist_ok=True)
    fresh = LIST.with_suffix(".new")
    fresh.write_text(as_lines(found), encoding="utf-8")
    os.replace(fresh, LIST)
    print(report(found, lost, freeze))
    return 0


if __name__ == "__main__":
    sys.exit(main())
