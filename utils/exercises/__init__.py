"""Exercises: hints for the reader, and checks of the reader's answers.

`hint("01-easy")` prints a hint, `check("01-easy", answer)` a verdict with its reason. The exercises of chapter 01 live in
`utils/exercises/chapter01.py` as a list `EXERCISES`. Knows nothing of what they are about: a checker does.
"""

import importlib.util
import re
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

LEVELS = ("easy", "medium", "hard")

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
    """Return (right or not, why). An answer that raises is wrong, and the error becomes the explanation."""
    exercise = find(exercise_id)
    if answer is None or answer is ...:
        return False, f"no answer yet. Stuck? hint({exercise_id!r})"
    try:
        right, why = exercise.checker(answer)
    except Exception as error:  # whatever the reader's code raises
        line = traceback.extract_tb(error.__traceback__)[-1].line
        return False, f"your answer stopped with {type(error).__name__}: {error}" + (f" (at: {line})" if line else "")
    return bool(right), why


def exercises(chapter: str) -> dict[str, Exercise]:
    """Return the exercises of a chapter ("01") by id; empty if it has none yet."""
    name = f"{__name__}.chapter{chapter}"
    if importlib.util.find_spec(name) is None:
        return {}
    return {exercise.id: exercise for exercise in importlib.import_module(name).EXERCISES}


def find(exercise_id: str) -> Exercise:
    """Return the exercise. Raises ValueError that lists the chapter's ids if there is none of this name."""
    of_chapter = exercises(str(exercise_id)[:2])
    if exercise_id not in of_chapter:
        known = ", ".join(of_chapter) or "none; an id starts with the chapter's number, as in '01-easy'"
        raise ValueError(f"No exercise {exercise_id!r}. This chapter has: {known}.")
    return of_chapter[exercise_id]
