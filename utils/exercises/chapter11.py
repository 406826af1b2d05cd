"""The exercises of chapter 11: servers for so many readers, the steps of continuous batching, and shards that may grow."""

from __future__ import annotations

import builtins
import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from utils.exercises import Exercise

NOT_A_FUNCTION = "pass the function itself: check({!r}, {})."


def check_servers_needed(answer: Any) -> tuple[bool, str]:
    """A function (readers, pause, seconds, rate) that returns how many servers stay at or below 70 % load."""
    if not callable(answer):
        return False, NOT_A_FUNCTION.format("11-easy", "servers_needed")
    for readers, pause, seconds, rate in (
        (100, 30.0, 2.0, 1.5),
        (16, 0.0, 4.0, 2.0),
        (1, 60.0, 1.0, 1.0),
        (500, 20.0, 5.0, 4.0),
        (7, 6.0, 4.0, 1.0),
    ):
        found, expected = answer(readers, pause, seconds, rate), _servers(readers, pause, seconds, rate)
        if found is None:
            return False, "the function returned None; it has to return a number of servers."
        if not abs(float(found) - expected) <= 1e-9:
            return False, _explain_servers(readers, pause, seconds, rate, float(found), expected)
    return True, "Little's law gives the requests per second, the rest is a division; the 30 % of air keeps the queue short."


def _servers(readers: int, pause: float, seconds: float, rate: float, load: float = 0.7) -> int:
    """The smallest whole number of servers whose load is at most `load`."""
    return max(1, math.ceil(readers / (pause + seconds) / (load * rate) - 1e-9))


def _explain_servers(readers: int, pause: float, seconds: float, rate: float, found: float, expected: int) -> str:
    case = f"{readers} readers, {pause:g} s of reading, {seconds:g} s of waiting and {rate:g} requests/s"
    got = f"for {case} you return {found:g}, expected {expected}."
    exact = readers / (pause + seconds) / (0.7 * rate)
    if found == max(1, math.ceil(readers / (pause + seconds) / rate)):
        return f"{got} A server may be busy at most 70 % of the time."
    if abs(found - exact) < 1e-6 or found == math.floor(exact):
        return f"{got} Servers come whole: round up."
    if pause and found == max(1, math.ceil(readers / pause / (0.7 * rate))):
        return f"{got} A reader's round is waiting plus reading."
    if seconds and found == max(1, math.ceil(readers / seconds / (0.7 * rate))):
        return f"{got} Nobody asks again at once: a reader's round is waiting plus reading."
    return f"{got} Requests per second are readers / (pause + seconds)."


def check_continuous_steps(answer: Any) -> tuple[bool, str]:
    """A function (lengths, slots) that returns how many steps continuous batching needs for all answers."""
    if not callable(answer):
        return False, NOT_A_FUNCTION.format("11-medium", "continuous_steps")
    cases = [([3, 9, 2, 4], 2), ([5], 4), ([7, 7, 7, 7], 1), ([32, 6, 6, 6, 6, 6], 3), ([4, 8, 4, 8, 4, 8], 2), ([1, 1, 1, 10], 2), ([], 3)]
    for lengths, slots in cases:
        found, expected = answer(list(lengths), slots), _continuous(lengths, slots)
        if found is None:
            return False, "the function returned None; it has to return a number of steps."
        if not abs(float(found) - expected) <= 1e-9:
            return False, _explain_steps(lengths, slots, float(found), expected)
    return True, f"right on {len(cases)} queues; compare with batches that wait for their longest answer."


def _continuous(lengths: list[int], slots: int) -> int:
    """The step at which the last answer ends, when each waiting answer takes the first slot that becomes free."""
    ends = [0] * slots
    for length in lengths:
        heapq.heapreplace(ends, ends[0] + length)
    return max(ends)


def _explain_steps(lengths: list[int], slots: int, found: float, expected: int) -> str:
    got = f"for answers of {lengths} tokens and {slots} slots you return {found:g} steps, expected {expected}."
    static = sum(max(lengths[at : at + slots]) for at in range(0, len(lengths), slots))
    if found == static:
        return f"{got} That is batch after batch, each waiting for its longest answer; here a free slot is filled at once."
    if found in (sum(lengths) / slots, math.ceil(sum(lengths) / slots)):
        return f"{got} That would split an answer among slots; its tokens come one after the other, in one slot."
    if found == sum(lengths):
        return f"{got} That is one answer after the other; {slots} slots work in each step."
    if found == _continuous(sorted(lengths, reverse=True), slots):
        return f"{got} Answers are taken in the order in which they came; nobody knows their lengths in advance."
    if found == expected - 1:
        return f"{got} Count the last step as well."
    return f"{got} Keep the slots' remaining tokens, and fill a free slot from the queue before each step."


def check_shard_of(answer: Any) -> tuple[bool, str]:
    """A function (passage_id, shards) that returns the shard of a passage; adding a shard moves few passages."""
    if not callable(answer):
        return False, NOT_A_FUNCTION.format("11-hard", "shard_of")
    ids = [f"passage-{number:05d}" for number in range(3000)]
    five = [f"shard-{name}" for name in "abcde"]
    before = [answer(one, list(five)) for one in ids]
    steps: tuple[Callable[[], str | None], ...] = (
        lambda: _not_a_shard(before, five),
        lambda: _not_stable(answer, ids, five, before),
        lambda: _not_balanced(before, five),
        lambda: _moves_too_many(answer, ids, five, before),
    )
    for step in steps:
        if problem := step():
            return False, problem
    return True, "even, the same in every process, and a new shard takes its share from all others while nothing else moves."


def _not_a_shard(found: list[Any], shards: list[str]) -> str | None:
    wrong = next((one for one in found if not isinstance(one, str) or one not in shards), None)
    if wrong is None and None not in found:
        return None
    return f"you return {wrong!r}; return one of the names in `shards`."


def _not_stable(answer: Any, ids: list[str], shards: list[str], before: list[str]) -> str | None:
    if [answer(one, list(shards)) for one in ids[:200]] != before[:200]:
        return "the same passage goes to another shard the second time: nothing may depend on chance or on earlier calls."
    with _another_process():
        if [answer(one, list(shards)) for one in ids[:200]] != before[:200]:
            return "the result would differ in another process: hash() of text is salted per process. hashlib.sha256 is not."
    return None


@contextmanager
def _another_process() -> Iterator[None]:
    """The built-in hash with another salt, as another process would have it."""
    own = builtins.hash
    builtins.hash = lambda value: own(("another process", value))  # type: ignore[assignment]
    try:
        yield
    finally:
        builtins.hash = own


def _not_balanced(before: list[str], shards: list[str]) -> str | None:
    counts, fair = Counter(before), len(before) / len(shards)
    name, count = max(((shard, counts[shard]) for shard in shards), key=lambda one: abs(one[1] - fair))
    if abs(count - fair) <= 0.25 * fair:
        return None
    return f"{name} gets {count} of {len(before)} passages, an even share is {fair:.0f}: hash the id and the shard's name together."


def _moves_too_many(answer: Any, ids: list[str], shards: list[str], before: list[str]) -> str | None:
    grown = [*shards, "shard-f"]
    after = [answer(one, list(grown)) for one in ids]
    moved = [(old, new) for old, new in zip(before, after) if old != new]
    elsewhere = sum(new != "shard-f" for _, new in moved)
    if elsewhere:
        return (
            f"with a sixth shard {len(moved) / len(ids):.0%} of the passages move, {elsewhere} of them between the old five; only the new "
            "shard's own sixth has to. Give every shard a score for the id, and take the highest."
        )
    if abs(after.count("shard-f") - len(ids) / len(grown)) > 0.25 * len(ids) / len(grown):
        return f"the new shard gets {after.count('shard-f')} of {len(ids)} passages, an even share is {len(ids) / len(grown):.0f}."
    return None


EXERCISES = [
    Exercise(
        "11-easy",
        "easy",
        (
            "A reader's round takes pause + seconds, and holds one request.",
            "So `readers` of them send readers / (pause + seconds) requests per second; a server takes 0.7 * rate of them.",
            "return max(1, math.ceil(readers / (pause + seconds) / (0.7 * rate)))",
        ),
        check_servers_needed,
    ),
    Exercise(
        "11-medium",
        "medium",
        (
            "Remember for each slot at which step it becomes free; in the beginning that is 0.",
            "Each answer, in order, takes the slot that is free first, and frees it `length` steps later.",
            "ends = [0] * slots; for each length: heapq.heapreplace(ends, min(ends) + length); return max(ends)",
        ),
        check_continuous_steps,
    ),
    Exercise(
        "11-hard",
        "hard",
        (
            "A number modulo len(shards) moves nearly everything when a shard comes. What if every shard had its own opinion of a passage?",
            "Rendezvous hashing (Thaler and Ravishankar, 1998): a score for each pair of id and shard; the highest wins.",
            "return max(shards, key=lambda shard: hashlib.sha256(f'{shard}/{passage_id}'.encode()).digest())",
        ),
        check_shard_of,
    ),
]
