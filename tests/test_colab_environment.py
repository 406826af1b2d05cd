"""`make test-colab`: which versions its environment gets, resolved for real from a folder of tiny wheels, and how it hangs together."""

import re
import subprocess
import sys

import pytest

from tests.tiny_wheels import write_wheel
from tools import colab_environment
from tools.colab_environment import FREEZE, GPU_ONLY, LEFT_OUT, LOOKED_FOR, compile_list, pinned, report, resolve
from tools.registry import ROOT

FREEZE_OF_TEST = {"course-a": "1.0", "course-b": "1.0", "torch": "1.0", "torchao": "1.0", "unrelated": "1.0", "nvidia-x": "1.0"}


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """A folder that uv takes for the only source of packages; both versions of everything, and torch asks for a CUDA package."""
    for name in ("course-a", "course-b", "course-lacks", "torchao", "nvidia-x"):
        for version in ("1.0", "2.0"):
            write_wheel(tmp_path / "wheels", name, version)
    for version in ("1.0", "2.0"):
        write_wheel(tmp_path / "wheels", "torch", version, needs=("nvidia-x",))
    monkeypatch.setenv("UV_FIND_LINKS", str(tmp_path / "wheels"))
    (tmp_path / "index").mkdir()
    monkeypatch.setenv("UV_DEFAULT_INDEX", (tmp_path / "index").as_uri())
    monkeypatch.setenv("UV_NO_CACHE", "1")
    return tmp_path / "wheels"


def wanted(wheels, *lines: str) -> list[str]:
    (wheels / "wanted.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [str(wheels / "wanted.txt")]


def test_frozen_versions_stay_the_newest_fill_the_gaps_and_torch_is_as_locked(wheels):
    found, lost = resolve(wanted(wheels, "course-a>=1", "course-b>=1", "course-lacks", "torch==2.0"), FREEZE_OF_TEST)
    assert found == {"course-a": "1.0", "course-b": "1.0", "course-lacks": "2.0", "torch": "2.0", "torchao": "1.0"} and lost == {}


def test_frozen_version_without_a_wheel_for_this_python_is_left_out_and_named(wheels):
    (wheels / "course_b-1.0-py3-none-any.whl").unlink()
    write_wheel(wheels, "course-b", "1.0", tag="cp27-cp27m-win32")
    found, lost = resolve(wanted(wheels, "course-a>=1", "course-b>=1"), FREEZE_OF_TEST)
    assert (found["course-a"], found["course-b"], lost) == ("1.0", "2.0", {"course-b": "1.0"})
    assert "left out: course-b 1.0 (no wheel for Python" in report(found, lost, FREEZE_OF_TEST)


def test_range_above_what_colab_ships_is_an_error_that_says_so(wheels):
    with pytest.raises(ValueError, match="lower a bound.*\n(.|\n)*course-a"):
        resolve(wanted(wheels, "course-a>=2"), FREEZE_OF_TEST)


def test_need_that_nothing_meets_is_not_blamed_on_colab(wheels):
    with pytest.raises(ValueError, match="own ranges cannot be met"):
        resolve(wanted(wheels, "course-lacks>=3"), FREEZE_OF_TEST)


def test_silent_index_is_not_taken_for_a_missing_wheel(wheels, monkeypatch):
    stderr = "error: Request failed\n  Caused by: dns error"
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 2, "", stderr))
    with pytest.raises(ConnectionError, match="Check the connection"):
        compile_list([], {})


def test_report_gives_every_reason():
    text = report({"course-a": "1.0", "torch": "2.0"}, {}, FREEZE_OF_TEST)
    assert text.startswith("1 of 2 packages") and "left out: torch 1.0 (Colab's is a CUDA build" in text


def test_what_is_left_out_and_looked_for_is_in_colab():
    freeze = pinned(FREEZE)
    assert {*LEFT_OUT, *LOOKED_FOR} <= set(freeze) and not [name for name in LOOKED_FOR if GPU_ONLY.search(name)]


def test_makefile_and_weekly_run_use_the_list():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"COLAB_LIST := {colab_environment.LIST.relative_to(ROOT).as_posix()}\n" in makefile
    assert re.search(r"run: make test-colab\n", (ROOT / ".github" / "workflows" / "weekly.yml").read_text(encoding="utf-8"))
    assert ".venv-colab/" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()


def test_this_environment_is_the_one_its_stamp_promises():
    """In `.venv-colab` every listed package is really there at the listed version."""
    if "-colab" not in sys.prefix:
        pytest.skip("runs in .venv-colab, under `make test-colab`")
    from tools.colab_setup import installed

    have = installed()
    assert {name: (version, have.get(name)) for name, version in pinned(colab_environment.LIST).items() if name not in LEFT_OUT
            and have.get(name) != version} == {}  # fmt: skip
