"""The exercises of chapter 10: when training pays, the newest article of each story, and a split that leaks no group."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from utils.exercises import Exercise


def check_break_even(answer: Any) -> tuple[bool, str]:
    """A function (training, tuned, untuned) in seconds that returns after how many answers training has paid for itself."""
    if not callable(answer):
        return False, "pass the function itself: check('10-easy', break_even)."
    for training, tuned, untuned in (
        (30.0, 0.5, 0.8),
        (30.0, 0.5, 2.0),
        (7.0, 1.0, 3.0),
        (0.0, 1.0, 2.0),
        (30.0, 0.8, 0.5),
        (30.0, 0.5, 0.5),
    ):
        found, expected = answer(training, tuned, untuned), _break_even(training, tuned, untuned)
        if expected is None and found is None:
            continue
        if expected is None or found is None or not abs(float(found) - expected) <= 1e-9:
            return False, _explain_break_even(training, tuned, untuned, found, expected)
    return True, "training is a price paid once, the saving comes with every answer; where nothing is saved, it never pays."


def _break_even(training: float, tuned: float, untuned: float) -> int | None:
    """The smallest whole n with training + n * tuned <= n * untuned; None where there is none."""
    if tuned >= untuned:
        return None
    return math.ceil(training / (untuned - tuned) - 1e-9)


def _explain_break_even(training: float, tuned: float, untuned: float, found: Any, expected: int | None) -> str:
    got = f"for {training:g} s of training, {tuned:g} s tuned and {untuned:g} s untuned you return {found}, expected {expected}."
    if expected is None:
        return f"{got} An answer saves nothing there, so training never pays: return None."
    if found is None:
        return f"{got} Every answer saves {untuned - tuned:g} s, so some number of them pays the training back."
    if abs(float(found) - training / (untuned - tuned)) < 1e-9 or float(found) == expected - 1:
        return f"{got} Answers come whole: round up."
    if abs(float(found) - math.ceil(training / untuned)) < 1e-9:
        return f"{got} A tuned answer has a price, too: divide by the difference."
    return f"{got} Solve training + n · tuned ≤ n · untuned for n."


def check_newest_only(answer: Any) -> tuple[bool, str]:
    """A function (passages) that keeps, in their order, the passages of each story's newest date."""
    if not callable(answer):
        return False, "pass the function itself: check('10-medium', newest_only)."
    cases = [
        [("bridge", "2026-03-05"), ("bridge", "2026-08-24"), ("bridge", "2026-05-18")],
        [("storm", "2026-04-01"), ("bridge", "2026-03-05"), ("storm", "2026-03-13"), ("bridge", "2026-08-24"), ("storm", "2026-04-01")],
        [("tour", "2026-06-15"), ("whale", "2026-04-14")],
        [],
    ]
    for case in cases:
        passages = [{"story": story, "date": date, "text": f"passage {n}"} for n, (story, date) in enumerate(case, 1)]
        found = answer([dict(one) for one in passages])
        if found is None:
            return False, "the function returned None; it has to return a list of passages."
        problem = _newest_problem(list(found), passages)
        if problem:
            return False, f"for {case or 'no passages'}: {problem}"
    return True, f"right on {len(cases)} rankings: several stories, two passages of one article, and none at all."


def _newest_problem(found: list[Any], passages: list[dict[str, str]]) -> str | None:
    """Why `found` is wrong; None when it is right."""
    newest = {one["story"]: max(p["date"] for p in passages if p["story"] == one["story"]) for one in passages}
    expected = [one for one in passages if one["date"] == newest[one["story"]]]
    if found == expected:
        return None
    last = max((one["date"] for one in passages), default="")
    if passages and found == [one for one in passages if one["date"] == last]:
        return "you keep the newest date of all; each story has its own."
    if sorted(p["text"] for p in found) == sorted(p["text"] for p in expected):
        return "the right passages, but in another order; keep the ranking."
    if {p["text"] for p in found} < {p["text"] for p in expected}:
        return "a passage is missing: an article may have several, and all of the newest one stay."
    return f"you keep {[p['text'] for p in found]}, expected {[p['text'] for p in expected]}."


def check_grouped_split(answer: Any) -> tuple[bool, str]:
    """A function (groups, test_share, seed) that returns True for each test row; no group stands on both sides."""
    if not callable(answer):
        return False, "pass the function itself: check('10-hard', grouped_split)."
    even = [f"scenario {n // 6}" for n in range(120)]
    uneven = [f"story {n}" for n in range(30) for _ in range(1 + n % 7)]
    mixed = [uneven[(7 * n) % len(uneven)] for n in range(len(uneven))]
    for groups, share in ((even, 0.2), (uneven, 0.3), (mixed, 0.1), (mixed, 0.5)):
        problem = _split_problem(answer, groups, share)
        if problem:
            return False, problem
    different = {tuple(bool(one) for one in answer(list(even), 0.2, seed)) for seed in range(5)}
    if len(different) == 1:
        return False, "five seeds give the same split: shuffle the groups with random.Random(seed)."
    return True, "no group on both sides, sizes as asked, the same split for the same seed and another one for another."


def _split_problem(answer: Any, groups: list[str], share: float) -> str | None:
    """Why the split of these groups is wrong; None when it is right."""
    found = answer(list(groups), share, 0)
    if found is None:
        return "the function returned None; it has to return True or False for each row."
    test = [bool(one) for one in found]
    if len(test) != len(groups):
        return f"{len(groups)} rows went in, {len(test)} values came back; give one for each row."
    both = {g for g, t in zip(groups, test) if t} & {g for g, t in zip(groups, test) if not t}
    if both:
        return f"{len(both)} groups stand on both sides, {sorted(both)[0]!r} among them: choose groups, not rows."
    size, largest = sum(test), max(Counter(groups).values())
    if abs(size - share * len(groups)) > largest:
        return f"{size} of {len(groups)} rows are test rows; {share:.0%} were asked, and one group has at most {largest} rows."
    if [bool(one) for one in answer(list(groups), share, 0)] != test:
        return "the same seed gives another split the second time: use random.Random(seed), and no order of a set."
    return None


EXERCISES = [
    Exercise(
        "10-easy",
        "easy",
        (
            "After n answers one way has cost training + n · tuned, the other n · untuned.",
            "Each answer saves untuned − tuned seconds. If that is not above zero, there is nothing to pay with.",
            "return math.ceil(training / (untuned - tuned)) if tuned < untuned else None",
        ),
        check_break_even,
    ),
    Exercise(
        "10-medium",
        "medium",
        (
            "Two passes: first the newest date of each story, then the passages that carry it.",
            "Dates written as 2026-08-24 compare as text in the right order: max works on them.",
            "newest = {}; for p in passages: newest[p['story']] = max(p['date'], newest.get(p['story'], ''))",
        ),
        check_newest_only,
    ),
    Exercise(
        "10-hard",
        "hard",
        (
            "Shuffle the groups, not the rows; then take whole groups until the test side is large enough.",
            "sorted(set(groups)) has the same order in every process; a set alone has not. Then random.Random(seed).shuffle.",
            "Walk through the shuffled groups and add a group's rows while fewer than test_share * len(groups) rows are chosen.",
        ),
        check_grouped_split,
    ),
]
