"""What the tests of hostile input share: a limit for what might never end, damaged copies of real bytes, and a look at a folder."""

import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from hypothesis import HealthCheck, settings

# The same examples on every machine and at every run; time is bounded by `ends`, not by Hypothesis.
REPEATABLE = settings(
    derandomize=True, database=None, deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class Endless(BaseException):
    """Not an Exception, so that no loader takes it for the fault of a file."""


@contextmanager
def ends(seconds: int = 20) -> Iterator[None]:
    """Breaks off what is still running after `seconds`, which is a hundred times what it needs; where there is no SIGALRM, waits."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Endless(f"still running after {seconds} s")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def damaged(original: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """Yields `count` copies with bytes changed, cut off, put in, taken out or repeated."""
    dice = random.Random(seed)
    for _ in range(count):
        copy = bytearray(original)
        for _ in range(dice.choice([1, 1, 2, 8])):
            place, length = dice.randrange(len(copy) + 1), dice.randrange(1, 12)
            what = dice.choice(["change", "cut", "insert", "remove", "repeat"])
            if what == "change" and place < len(copy):
                copy[place] ^= 1 << dice.randrange(8)
            elif what == "cut":
                del copy[place:]
            elif what == "insert":
                copy[place:place] = dice.randbytes(length)
            elif what == "remove":
                del copy[place : place + length]
            else:
                copy[place:place] = copy[place : place + length] * 3
        yield bytes(copy)


def contents(folder: Path) -> dict[str, bytes | None]:
    """Returns what a folder holds, by path below it; None for what is no regular file."""
    plain = {path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()}
    return {str(path.relative_to(folder)): path.read_bytes() if path in plain else None for path in folder.rglob("*")}
