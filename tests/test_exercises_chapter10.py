"""The exercises of chapter 10 accept every right answer and explain the wrong ones."""

import math
import random

import numpy as np
import pytest

from utils.exercises import exercises, verdict


def test_chapter_has_one_exercise_of_each_level():
    assert [exercise.level for exercise in exercises("10").values()] == ["easy", "medium", "hard"]


def break_even(training, tuned, untuned):
    return math.ceil(training / (untuned - tuned)) if tuned < untuned else None


def counted(training, tuned, untuned):
    if tuned >= untuned:
        return None
    n = 0
    while training + n * tuned > n * untuned + 1e-9:
        n += 1
    return n


@pytest.mark.parametrize("answer", [break_even, counted, lambda *s: None if s[1] >= s[2] else np.ceil(s[0] / (s[2] - s[1]))])
def test_every_form_of_the_right_number_of_answers_is_accepted(answer):
    assert verdict("10-easy", answer)[0]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda t, a, b: t / (b - a) if a < b else None, "round up"),
        (lambda t, a, b: int(t / (b - a)) if a < b else None, "round up"),
        (lambda t, a, b: math.ceil(t / b) if a < b else None, "divide by the difference"),
        (lambda t, a, b: math.ceil(t / abs(b - a or 1)), "return None"),
        (lambda t, a, b: math.ceil(t / (b - a)) if a < b and t else None, "pays the training back"),
        (lambda t, a, b: 1, "Solve"),
        (lambda t, a, b: 1 / 0, "ZeroDivisionError"),
        (12, "function itself"),
        (None, "no answer yet"),
    ],
)
def test_a_wrong_number_of_answers_is_explained(answer, reason):
    right, why = verdict("10-easy", answer)
    assert not right and reason in why


def newest_only(passages):
    newest = {}
    for passage in passages:
        newest[passage["story"]] = max(passage["date"], newest.get(passage["story"], ""))
    return [passage for passage in passages if passage["date"] == newest[passage["story"]]]


def quadratic(passages):
    return [p for p in passages if not any(q["story"] == p["story"] and q["date"] > p["date"] for q in passages)]


@pytest.mark.parametrize("answer", [newest_only, quadratic])
def test_every_form_of_newest_only_is_accepted(answer):
    assert verdict("10-medium", answer)[0]


def one_per_story(passages):
    return list({p["story"]: p for p in reversed(newest_only(passages))}.values())[::-1]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda ps: [p for p in ps if p["date"] == max(q["date"] for q in ps)], "each story has its own"),
        (lambda ps: sorted(newest_only(ps), key=lambda p: p["date"]), "another order"),
        (one_per_story, "a passage is missing"),
        (lambda ps: ps, "expected ['passage 2']"),
        (lambda ps: None, "returned None"),
        (lambda ps: ps[0]["when"], "KeyError"),
        ([], "function itself"),
    ],
)
def test_a_wrong_choice_of_passages_is_explained(answer, reason):
    right, why = verdict("10-medium", answer)
    assert not right and reason in why


def grouped_split(groups, test_share, seed):
    names = sorted(set(groups))
    random.Random(seed).shuffle(names)
    chosen, size = set(), 0
    for name in names:
        if size < test_share * len(groups):
            chosen.add(name)
            size += groups.count(name)
    return [group in chosen for group in groups]


def with_numpy(groups, test_share, seed):
    names, counts = np.unique(groups, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(names))
    taken = order[np.cumsum(counts[order]) <= test_share * len(groups)]
    return np.isin(groups, names[taken])


@pytest.mark.parametrize("answer", [grouped_split, with_numpy])
def test_every_form_of_a_grouped_split_is_accepted(answer):
    assert verdict("10-hard", answer)[0]


def row_split(groups, test_share, seed):
    order = list(range(len(groups)))
    random.Random(seed).shuffle(order)
    chosen = set(order[: round(test_share * len(groups))])
    return [row in chosen for row in range(len(groups))]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (row_split, "choose groups, not rows"),
        (lambda g, share, seed: [False] * len(g), "0 of 120 rows"),
        (lambda g, share, seed: grouped_split(g, 1 - share, seed), "20% were asked"),
        (lambda g, share, seed: grouped_split(g, share, 0), "five seeds give the same split"),
        (lambda g, share, seed: grouped_split(g, share, random.random()), "the same seed gives another split"),
        (lambda g, share, seed: grouped_split(g, share, seed)[1:], "one for each row"),
        (lambda g, share, seed: None, "returned None"),
        ("split", "function itself"),
    ],
)
def test_a_wrong_split_is_explained(answer, reason):
    right, why = verdict("10-hard", answer)
    assert not right and reason in why
