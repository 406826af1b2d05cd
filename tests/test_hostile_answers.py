"""Whatever a reader hands to an exercise's check: a verdict in words, short enough for a screen; never an error, never for ever."""

import itertools
import math
import sys

import numpy as np
import pytest
import torch

import utils.exercises as ex
from tests.hostile import ends


class Spiteful:
    """Raises whatever is done with it."""

    def refuse(self, *arguments: object) -> None:
        raise RuntimeError("\ud800")

    __repr__ = __str__ = __eq__ = __len__ = __iter__ = __bool__ = __float__ = __int__ = __array__ = __getattr__ = refuse  # type: ignore
    __hash__ = None  # type: ignore


class Wordless(Exception):
    def __str__(self) -> str:
        raise RuntimeError


def raising(error: BaseException) -> object:
    def answer(*arguments: object) -> None:
        raise error

    return answer


def returning(value: object) -> object:
    return lambda *arguments: value


def calling_itself(*arguments: object) -> object:
    return calling_itself(*arguments)


def nested(depth: int) -> list:
    return [nested(depth - 1)] if depth else []


VALUES = {
    "NaN": math.nan, "infinity": -math.inf, "a long number": 10**400, "complex": 1j, "true": True, "type": int, "function": len,
    "text": "\ud800", "long text": "x" * 10**7, "bytes": b"\xff", "error": ValueError("x"), "spiteful": Spiteful(),
    "empty": [], "ragged": [[1, 2], [3]], "nested": nested(500), "list of spite": [Spiteful()] * 3, "many": [0] * 10**6,
    "dictionary": {1: Spiteful()}, "set": {1, "a"}, "range": range(10**12), "NaNs": np.full(3, np.nan),
    "objects": np.array([object(), None], dtype=object), "huge array": np.broadcast_to(np.float32(0), (2**20, 2**20)),
    "huge tensor": torch.zeros(1).expand(2**20, 2**20), "huge parts": [np.broadcast_to(np.int8(0), (2**40,))] * 3,
    "empty tensor": torch.zeros(2, 0),
}  # fmt: skip
FUNCTIONS = {
    "endless": lambda *arguments: itertools.count(), "endless text": lambda *arguments: itertools.repeat("a"),
    "none": lambda *arguments: None, "no arguments": lambda: 1, "exits": raising(SystemExit(3)), "calls itself": calling_itself,
    "wordless": raising(Wordless()), "no memory": raising(MemoryError()), "no import": raising(ImportError("\ud800")),
}  # fmt: skip
ANSWERS = VALUES | FUNCTIONS | {f"returns {name}": returning(value) for name, value in VALUES.items()}
EXERCISES = [name for chapter in range(1, 13) for name in ex.exercises(f"{chapter:02d}")]


@pytest.mark.parametrize("exercise", EXERCISES)
def test_any_answer_gets_a_short_verdict_that_can_be_shown(exercise, capsys):
    answers = VALUES | FUNCTIONS if exercise == "01-hard" else ANSWERS  # its check makes a model for each function: 0.2 s
    for name, answer in answers.items():
        with ends():
            ex.check(exercise, answer)
        shown = capsys.readouterr().out
        assert shown.startswith(("✗ ", "✓ ")) and 10 < len(shown) <= ex.LONGEST + 80 and shown.encode(), name
        assert "Traceback" not in shown


@pytest.mark.parametrize("name", [None, 5, [], "..-easy", "1.", "\x00\x00", "99-easy"])
def test_exercise_of_any_other_name_is_refused_in_words(name):
    with pytest.raises(ValueError, match="No exercise"):
        ex.check(name, 1)
    assert not [module for module in sys.modules if module.startswith("utils.exercises.chapter.")]
