"""What `import utils` changes in a process: memory is kept, garbage looked for less often, one notice left out."""

import gc
import platform
import subprocess
import sys

import pytest

from utils import process, runtime


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_kept_for_the_next_tensor():
    code = """
{first}
import numpy as np, psutil
resident = lambda: psutil.Process().memory_info().rss / 1e6
before = resident()
tensor = np.ones(100_000_000, dtype=np.int8)
del tensor
print(resident() - before)
"""
    run = {"cwd": runtime.ROOT, "capture_output": True, "text": True, "check": True}
    sizes = [subprocess.run([sys.executable, "-c", code.format(first=first)], **run).stdout for first in ("import utils", "")]
    kept, returned = map(float, sizes)
    assert kept > 90 and returned < 50


def test_keeping_memory_does_nothing_with_another_c_library(monkeypatch):
    monkeypatch.setattr(process.ctypes, "CDLL", lambda name: object())
    process.keep_freed_memory()


def test_garbage_is_looked_for_less_often():
    assert gc.get_threshold()[0] == 5000


def test_bitsandbytes_does_not_advise_to_fetch_code_from_the_hub():
    run = {"cwd": runtime.ROOT, "capture_output": True, "text": True, "check": True}
    assert "kernels" not in subprocess.run([sys.executable, "-c", "import utils, bitsandbytes"], **run).stderr
