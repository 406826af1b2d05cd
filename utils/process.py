"""How this Python process behaves: what it does with freed memory and with garbage, and which notice it leaves out.

Knows glibc, Python's collector and logging. Importing it is cheap.
"""

from __future__ import annotations

import ctypes
import gc
import logging
from contextlib import suppress

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # their numbers in glibc's malloc.h


def keep_freed_memory() -> None:
    """Makes glibc keep up to half a GB of freed memory for the next tensors, instead of returning it to the system each time.

    Why: the system clears every page it hands out. With activations of a few MB per layer that took a tenth of a training step and up to
    a quarter of an embedder's pass on two cores. Does nothing with another C library.
    """
    with suppress(AttributeError, OSError, TypeError):
        c_library = ctypes.CDLL(None)
        c_library.mallopt(M_MMAP_THRESHOLD, 128 << 20)
        c_library.mallopt(M_TRIM_THRESHOLD, 512 << 20)


def look_for_garbage_less_often() -> None:
    """Lets Python wait for 5,000 new objects, not 700, before it looks for unreachable ones, and rarely look through all that there are.

    Why: importing the course's libraries makes a million objects that stay. Looking through them took a fifth of that time, a second.
    Most objects are freed at once anyway, when the last name for them goes.
    """
    gc.set_threshold(5000, 10, 50)


def hide_notices() -> None:
    """Hides bitsandbytes' advice to install `kernels`, which it gives on CPUs with bf16 arithmetic: that would fetch code from the Hub."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
