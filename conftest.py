"""What every test runs under: the embedded profile, no network, and the registry's bounds for numbers that notebooks record.

It stands at the root, not in tests/, because it also watches the notebooks that nbval runs. An attempt to leave loopback fails the
test that made it, in this process or in one it started, even if a library swallowed the refusal.
"""

import importlib
import os
import shutil
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent
OFFLINE = ROOT / "tests" / "offline"
LOG = Path(os.environ.get("COURSE_OFFLINE_LOG") or Path(tempfile.mkdtemp(prefix="offline-")) / "attempts.log")
LOG.touch()

os.environ["COURSE_OFFLINE_LOG"] = str(LOG)
os.environ["COURSE_PROFILE"] = "embedded"
os.environ["PYTHONPATH"] = os.pathsep.join([str(OFFLINE), *filter(None, [os.environ.get("PYTHONPATH")])])
sys.path.insert(0, str(OFFLINE))
sys.modules.pop("sitecustomize", None)  # Python may have loaded another one at its start
guard = importlib.import_module("sitecustomize")

import utils  # noqa: E402, F401  sets the offline switches before any test imports a heavy library


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what this machine cannot run, with the reason."""
    for item in items:
        if item.get_closest_marker("hub") and os.environ.get("COURSE_HUB_TESTS") != "1":
            item.add_marker(pytest.mark.skip(reason="needs the Hub; COURSE_HUB_TESTS=1 runs it"))
        if item.get_closest_marker("gpu") and not has_gpu():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


def pytest_unconfigure() -> None:
    """Leaves nothing behind in the folder for temporary files."""
    if LOG.parent.name.startswith("offline-"):
        shutil.rmtree(LOG.parent, ignore_errors=True)


@pytest.fixture(autouse=True, scope="session")
def in_fp32() -> Generator[None, None, None]:
    """Unit tests compare numbers, so they compute in fp32 on every machine; notebooks run in the number format of theirs."""
    from utils import runtime

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "cpu_flags", set)
        yield


def has_gpu() -> bool:
    """Returns whether torch sees a CUDA GPU."""
    import torch

    return bool(torch.cuda.is_available())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    """Watches fixtures."""
    yield from stay_home(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Watches the test itself; a notebook's cell is also held to its time limit and to the registry's bounds."""
    yield from stay_home(item)
    if hasattr(item, "test_outputs"):
        check_cell(item)


def stay_home(item: pytest.Item) -> Generator[None, None, None]:
    """Fails the item when something tried to leave loopback while it ran; `hub` allows it, `reaches_out` tries on purpose."""
    seen = LOG.stat().st_size
    guard.allowed = item.get_closest_marker("hub") is not None
    try:
        yield
    finally:
        guard.allowed = False
    attempts = LOG.read_text(encoding="utf-8")[seen:]
    if attempts and not item.get_closest_marker("reaches_out"):
        pytest.fail(f"tried to leave this machine:\n{attempts}", pytrace=False)


def check_cell(item: pytest.Item) -> None:
    """Fails a notebook's cell that ran past its limit (nbval lets a hung `!` command pass) or recorded a number out of bounds."""
    from tools.registry import load_registry, number_problems
    from utils.results import MIME_TYPE

    if getattr(item.parent, "timed_out", False):
        pytest.fail("the cell ran past --nbval-cell-timeout", pytrace=False)
    outputs = [output.get("data", {}).get(MIME_TYPE) for output in getattr(item, "test_outputs", None) or []]
    numbers = {number["name"]: number for number in outputs if number}
    chapters = [chapter for chapter in load_registry() if chapter.path == item.path]
    problems = [problem for chapter in chapters for problem in number_problems(chapter, numbers, complete=False)]
    if problems:
        pytest.fail("; ".join(problems), pytrace=False)
