"""Exercises: hints for the reader, and checks of the reader's answers.

`hint("01-easy")` prints a hint, `check("01-easy", answer)` a verdict with its reason. The exercises of chapter 01 live in
`utils/exercises/chapter01.py` as a list `EXERCISES`. Knows nothing of what they are about: a checker does.
"""

import functools
import importlib.util
import itertools
import re
import traceback
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Any

LEVELS = ("easy", "medium", "hard")
MOST = 100_000  # values in what a reader's function returns; right answers have a few hundred
LONGEST = 2_000  # characters of an explanation

Checker = Callable[[Any], tuple[bool, str]]
"""Takes the reader's answer, a value or a function, and returns (right or not, why)."""


@dataclass(frozen=True)
class Exercise:
    """One exercise: its id ("01-easy"), level, hints from slight to plain, and the checker of answers."""

    id: str
    level: str
    hints: Sequence[str]
    checker: Checker

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\d\d-[a-z0-9-]+", self.id) or self.level not in LEVELS or not self.hints:
            raise ValueError(f"Exercise {self.id!r}: needs an id such as '01-easy', a level of {LEVELS} and at least one hint.")


def hint(exercise_id: str, number: int = 1) -> None:
    """Print hint `number` of an exercise, and how to get the next."""
    hints = find(exercise_id).hints
    if not 1 <= number <= len(hints):
        raise ValueError(f"Exercise {exercise_id} has hints 1 to {len(hints)}, not {number}.")
    more = f"\nThe next one: hint({exercise_id!r}, {number + 1})" if number < len(hints) else ""
    print(f"Hint {number} of {len(hints)}: {hints[number - 1]}{more}")


def check(exercise_id: str, answer: Any) -> None:
    """Print whether the answer is right, and why."""
    right, why = verdict(exercise_id, answer)
    print(f"{'✓' if right else '✗'} {exercise_id}: {why}")


def verdict(exercise_id: str, answer: Any) -> tuple[bool, str]:
    """Return (right or not, why). An answer that raises is wrong, and the error becomes the explanation.

    Of a function that returns a generator, a checker sees a list; one that never ends, or holds more than MOST values, is wrong.
    """
    exercise = find(exercise_id)
    if answer is None or answer is ...:
        return False, f"no answer yet. Stuck? hint({exercise_id!r})"
    try:
        right, why = exercise.checker(_bounded(answer) if callable(answer) else answer)
    except (Exception, SystemExit) as error:  # whatever the reader's code raises
        line = traceback.extract_tb(error.__traceback__)[-1].line
        return False, _readable(f"your answer stopped with {type(error).__name__}: {_words(error)}" + (f" (at: {line})" if line else ""))
    return bool(right), _readable(why)


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the reader's function; what it returns is held to MOST values, and a generator comes as a list."""

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        found = function(*arguments, **options)
        if isinstance(found, Iterator):
            found = list(itertools.islice(found, MOST + 1))
        if (count := _count(found)) > MOST:
            raise ValueError(f"it returns {count:,} values or more, and no answer here has over {MOST:,}. Does a loop ever end?")
        return found

    return call


def _count(found: Any) -> int:
    """Return how many values a result holds: of arrays and tensors all, of a tuple or list those of its first hundred parts."""
    if isinstance(found, tuple | list) and len(found) <= MOST:
        return len(found) + sum(_count(part) for part in found[:100] if not isinstance(part, tuple | list))
    size = found.numel if hasattr(found, "numel") else getattr(found, "size", None)
    size = size() if callable(size) else size
    return size if isinstance(size, int) else len(found) if isinstance(found, Sized) else 1


def _words(error: BaseException) -> str:
    """Return an error's text, also where its own __str__ fails."""
    try:
        return str(error)
    except Exception:
        return "(an error without words)"


def _readable(why: str) -> str:
    """Return an explanation that every screen can show: at most LONGEST characters, no half characters."""
    shown = why if len(why) <= LONGEST else f"{why[:LONGEST]} … ({len(why):,} characters in all)"
    return shown.encode("utf-8", "backslashreplace").decode("utf-8")


def exercises(chapter: str) -> dict[str, Exercise]:
    """Return the exercises of a chapter ("01") by id; empty if it has none yet."""
    name = f"{__name__}.chapter{chapter}"
    if not re.fullmatch(r"\d\d", chapter) or importlib.util.find_spec(name) is None:
        return {}
    return {exercise.id: exercise for exercise in importlib.import_module(name).EXERCISES}


def find(exercise_id: str) -> Exercise:
    """Return the exercise. Raises ValueError that lists the chapter's ids if there is none of this name."""
    exercise_id = str(exercise_id)
    of_chapter = exercises(exercise_id[:2])
    if exercise_id not in of_chapter:
        known = ", ".join(of_chapter) or "none; an id starts with the chapter's number, as in '01-easy'"
        raise ValueError(f"No exercise {exercise_id!r}. This chapter has: {known}.")
    return of_chapter[exercise_id]
