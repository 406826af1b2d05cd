"""The exercises of chapter 12 accept every right answer and explain the wrong ones."""

from collections import Counter

import numpy as np
import pytest

from utils.citations import ABSTENTION
from utils.evaluation import normalize_answer
from utils.exercises import exercises, verdict


def test_chapter_has_one_exercise_of_each_level():
    assert [exercise.level for exercise in exercises("12").values()] == ["easy", "medium", "hard"]


def page_accuracy(cited, gold):
    hits = [bool(set(c) & set(g)) for c, g in zip(cited, gold) if c]
    return sum(hits) / len(hits) if hits else float("nan")


def with_numpy(cited, gold):
    hits = [any(one in g for one in c) for c, g in zip(cited, gold) if len(c)]
    return np.mean(hits) if hits else np.nan


@pytest.mark.parametrize("answer", [page_accuracy, with_numpy])
def test_every_form_of_page_accuracy_is_accepted(answer):
    assert verdict("12-easy", answer)[0]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda c, g: sum(bool(set(a) & set(b)) for a, b in zip(c, g)) / len(c), "leave it out"),
        (lambda c, g: float(np.mean([bool({p for _, p in a} & {p for _, p in b}) for a, b in zip(c, g) if a])), "another document"),
        (lambda c, g: np.mean([a == b for a, b in zip(c, g) if a]), "one right one is enough"),
        (lambda c, g: page_accuracy(c, g) if any(c) else 0.0, "float('nan')"),
        (lambda c, g: None, "returned None"),
        (lambda c, g: 1 / 0, "ZeroDivisionError"),
        (0.5, "function itself"),
        (None, "no answer yet"),
    ],
)
def test_a_wrong_page_accuracy_is_explained(answer, reason):
    right, why = verdict("12-easy", answer)
    assert not right and reason in why


def fit_memory(turns, budget, count):
    kept = []
    for turn in reversed(turns):
        budget -= count(turn)
        if budget < 0:
            break
        kept.append(turn)
    return kept[::-1]


def longest_end(turns, budget, count):
    ends = [turns[start:] for start in range(len(turns) + 1)]
    return next(end for end in ends if sum(map(count, end)) <= budget)


@pytest.mark.parametrize("answer", [fit_memory, longest_end])
def test_every_form_of_fit_memory_is_accepted(answer):
    assert verdict("12-medium", answer)[0]


def skipping(turns, budget, count):
    kept = []
    for turn in reversed(turns):
        if count(turn) <= budget:
            budget -= count(turn)
            kept.insert(0, turn)
    return kept


def from_the_front(turns, budget, count):
    kept = []
    for turn in turns:
        if sum(map(count, kept)) + count(turn) > budget:
            break
        kept.append(turn)
    return kept


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (skipping, "a hole misleads"),
        (from_the_front, "oldest turn"),
        (lambda t, b, c: fit_memory(t, b, c)[::-1], "in reverse"),
        (lambda t, b, c: t, "your turns have"),
        (lambda t, b, c: fit_memory(t, b, c)[1:], "expected"),
        (lambda t, b, c: None, "returned None"),
        ([], "function itself"),
    ],
)
def test_a_wrong_memory_is_explained(answer, reason):
    right, why = verdict("12-medium", answer)
    assert not right and reason in why


def vote(answers, least):
    given = [one for one in answers if one != ABSTENTION]
    ranked = Counter(map(normalize_answer, given)).most_common(2)
    if not ranked or ranked[0][1] < least or (len(ranked) > 1 and ranked[1][1] == ranked[0][1]):
        return ABSTENTION
    return next(one for one in given if normalize_answer(one) == ranked[0][0])


def by_sorting(answers, least):
    plain = [normalize_answer(one) for one in answers if one != ABSTENTION]
    counts = sorted(((plain.count(one), one) for one in set(plain)), reverse=True)
    alone = counts and (len(counts) == 1 or counts[0][0] > counts[1][0])
    return counts[0][1] if alone and counts[0][0] >= least else ABSTENTION


@pytest.mark.parametrize("answer", [vote, by_sorting])
def test_every_form_of_the_vote_is_accepted(answer):
    assert verdict("12-hard", answer)[0]


def literal(answers, least):
    given = [one for one in answers if one != ABSTENTION]
    best = Counter(given).most_common(1)
    return best[0][0] if best and best[0][1] >= least else ABSTENTION


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (literal, "count them normalised"),
        (lambda a, n: by_sorting(a, 1), "votes asked for"),
        (lambda a, n: vote([x for x in a], n) if len(a) != 2 else a[0], "Another answer has as many votes"),
        (lambda a, n: Counter(a).most_common(1)[0][0] if len(a) == 5 and a[0] == ABSTENTION else vote(a, n), "leave its refusal out"),
        (lambda a, n: a[1] if len(a) == 3 else vote(a, n), "not the first"),
        (lambda a, n: None, "has to return a text"),
        (lambda a, n: a[5], "IndexError"),
        ("408", "function itself"),
    ],
)
def test_a_wrong_vote_is_explained(answer, reason):
    right, why = verdict("12-hard", answer)
    assert not right and reason in why
