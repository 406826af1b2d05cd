"""Hints and checks, on a chapter made here; and every real chapter keeps the rules."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest

import utils.exercises as ex


def checks_doubling(answer):
    return answer(3) == 6, "doubling 3 gives 6"


@pytest.fixture(autouse=True)
def chapter_99(monkeypatch):
    module = ModuleType("utils.exercises.chapter99")
    module.__spec__ = ModuleSpec(module.__name__, None)
    module.EXERCISES = [ex.Exercise("99-easy", "easy", ["Think of 2 * x.", "lambda x: 2 * x"], checks_doubling)]
    monkeypatch.setitem(sys.modules, module.__name__, module)


def test_right_and_wrong_answers_are_told_with_the_reason(capsys):
    ex.check("99-easy", lambda x: 2 * x)
    ex.check("99-easy", lambda x: x)
    assert capsys.readouterr().out == "✓ 99-easy: doubling 3 gives 6\n✗ 99-easy: doubling 3 gives 6\n"


def test_answer_that_raises_is_explained_without_a_traceback(capsys):
    def broken(x):
        return x / 0

    ex.check("99-easy", broken)
    out = capsys.readouterr().out
    assert "✗" in out and "ZeroDivisionError" in out and "return x / 0" in out and "Traceback" not in out


def test_answer_of_the_wrong_kind_is_explained():
    right, why = ex.verdict("99-easy", 6)
    assert not right and "'int' object is not callable" in why


@pytest.mark.parametrize("placeholder", [None, ...])
def test_placeholder_points_at_the_hint(placeholder):
    assert ex.verdict("99-easy", placeholder) == (False, "no answer yet. Stuck? hint('99-easy')")


def test_hints_come_one_at_a_time(capsys):
    ex.hint("99-easy")
    ex.hint("99-easy", 2)
    first, second = capsys.readouterr().out.split("Hint ")[1:]
    assert first == "1 of 2: Think of 2 * x.\nThe next one: hint('99-easy', 2)\n"
    assert second == "2 of 2: lambda x: 2 * x\n"


def test_hint_beyond_the_last_is_refused():
    with pytest.raises(ValueError, match="hints 1 to 2, not 3"):
        ex.hint("99-easy", 3)


@pytest.mark.parametrize(("name", "message"), [("99-hard", "99-easy"), ("98-easy", "none"), ("nonsense", "as in '01-easy'")])
def test_unknown_exercise_lists_what_there_is(name, message):
    with pytest.raises(ValueError, match=message):
        ex.find(name)


@pytest.mark.parametrize("wrong", [{"id": "easy"}, {"level": "trivial"}, {"hints": []}])
def test_malformed_exercise_is_refused(wrong):
    fields = {"id": "99-easy", "level": "easy", "hints": ["h"], "checker": checks_doubling} | wrong
    with pytest.raises(ValueError, match="needs an id"):
        ex.Exercise(**fields)


def test_every_written_chapter_has_all_levels_and_own_ids():
    for chapter in [f"{number:02d}" for number in range(1, 13)]:
        written = ex.exercises(chapter)
        assert {exercise.level for exercise in written.values()} == (set(ex.LEVELS) if written else set())
        for name in written:
            assert name.startswith(chapter)
            assert ex.verdict(name, object())[0] is False
