"""The exercises of chapter 09, QLoRA: labels from a mask, packing rows, and the answers of a conversation in several turns.

The checks run on made-up token ids; they know no model.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from utils.exercises import Exercise

Verdict = tuple[bool, str]
IGNORE = -100


def check_labels(answer: Callable[[list[int], list[int]], Any]) -> Verdict:
    """A function (input_ids, completion_mask) that returns the labels: the id where the mask is 1, else -100."""
    if not callable(answer):
        return False, "pass the function itself: check('09-easy', labels_of)."
    for ids, mask in (([5, 8, 9, 2], [0, 0, 1, 1]), ([7, 7, 0, 2, 3], [0, 1, 1, 1, 0]), ([4, 6], [0, 0])):
        given = list(ids)
        found = answer(given, list(mask))
        if found is None:
            return False, "the function returned None; it has to return a list."
        found, expected = [int(one) for one in found], [i if m else IGNORE for i, m in zip(ids, mask)]
        if found == expected:
            continue
        if found == [IGNORE if m else i for i, m in zip(ids, mask)]:
            return False, "the wrong way round: the mask is 1 where the loss counts."
        if found == [i * m for i, m in zip(ids, mask)]:
            return False, "0 is a token of the vocabulary like any other; what is not to count has the label -100."
        if len(found) != len(ids):
            return False, f"{len(ids)} tokens need {len(ids)} labels, yours are {len(found)}: a label stands at the place of its token."
        return False, f"for ids {ids} and mask {mask} you return {found}, expected {expected}."
    return True, "prompt tokens get -100, and the loss passes them over."


def check_packing(answer: Callable[[list[int], int], Any]) -> Verdict:
    """A function (lengths, size) that returns sequences as lists of row numbers; at most as many as first-fit decreasing needs."""
    if not callable(answer):
        return False, "pass the function itself: check('09-medium', pack)."
    chance = random.Random(9)
    cases = [([4, 3, 3, 2], 6), ([5, 5, 5], 5), ([], 8)]
    cases += [([chance.randint(1, 60) for _ in range(40)], 64) for _ in range(3)]
    for lengths, size in cases:
        found = answer(list(lengths), size)
        if found is None:
            return False, "the function returned None; it has to return a list of lists of row numbers."
        sequences = [[int(row) for row in sequence] for sequence in found if len(sequence)]
        if problem := packing_problem(sequences, lengths, size):
            return False, problem
    return True, f"every row once, nothing too long, and no more sequences than first-fit decreasing needs, in {len(cases)} cases."


def packing_problem(sequences: Sequence[Sequence[int]], lengths: Sequence[int], size: int) -> str:
    """Return what is wrong with a packing, or ""."""
    shown = f"lengths {list(lengths)[:6]}{' …' if len(lengths) > 6 else ''}, size {size}"
    rows = [row for sequence in sequences for row in sequence]
    if sorted(rows) != list(range(len(lengths))):
        if sorted(rows) == sorted(lengths):
            return "the sequences hold lengths; they have to hold row numbers, starting at 0."
        return f"{shown}: every row has to stand in exactly one sequence; yours hold {sorted(rows)[:8]}."
    for sequence in sequences:
        if (total := sum(lengths[row] for row in sequence)) > size:
            return f"{shown}: the sequence {list(sequence)[:6]} holds {total} tokens."
    if len(sequences) > (needed := first_fit_decreasing(lengths, size)):
        return f"{shown}: you need {len(sequences)} sequences; the longest rows first, each where it fits, make do with {needed}."
    return ""


def first_fit_decreasing(lengths: Sequence[int], size: int) -> int:
    """Return how many sequences first-fit decreasing needs."""
    free: list[int] = []
    for length in sorted(lengths, reverse=True):
        at = next((i for i, room in enumerate(free) if room >= length), None)
        if at is None:
            free.append(size - length)
        else:
            free[at] -= length
    return len(free)


def check_answer_mask(answer: Callable[[list[int], list[int], int], Any]) -> Verdict:
    """A function (ids, opening, end) that returns 1 for the tokens of every assistant turn, its end token included, else 0."""
    if not callable(answer):
        return False, "pass the function itself: check('09-hard', answer_mask)."
    opening, end = [1, 40, 3], 2
    cases = [
        ("one turn", [1, 50, 3, 9, 2, 1, 40, 3, 7, 8, 2], [0] * 8 + [1] * 3),
        ("two turns", [1, 50, 3, 9, 2, 1, 40, 3, 7, 2, 1, 50, 3, 9, 2, 1, 40, 3, 8, 2], [0] * 8 + [1] * 2 + [0] * 8 + [1] * 2),
        ("an answer that was cut off", [1, 50, 3, 9, 2, 1, 40, 3, 7, 8], [0] * 8 + [1] * 2),
        ("no answer", [1, 50, 3, 9, 2], [0] * 5),
        ("a user who says 40", [1, 50, 3, 40, 3, 9, 2, 1, 40, 3, 7, 2], [0] * 10 + [1] * 2),
        ("an empty answer", [1, 40, 3, 2, 1, 50, 3, 9, 2], [0, 0, 0, 1] + [0] * 5),
    ]
    for what, ids, expected in cases:
        found = answer(list(ids), list(opening), end)
        if found is None:
            return False, "the function returned None; it has to return a list of 0 and 1."
        if [int(one) for one in found] != expected:
            return False, explain_mask(what, ids, [int(one) for one in found], expected, end)
    return True, "every answer counts with the token that ends it, and nothing else does."


def explain_mask(what: str, ids: list[int], found: list[int], expected: list[int], end: int) -> str:
    """Return what is wrong with a mask, the most telling fault first."""
    if len(found) != len(ids):
        return f"{what}: {len(ids)} tokens need {len(ids)} entries, yours are {len(found)}."
    extra = [i for i, (a, b) in enumerate(zip(found, expected)) if a and not b]
    missing = [i for i, (a, b) in enumerate(zip(found, expected)) if b and not a]
    if missing and all(ids[i] == end for i in missing) and not extra:
        return f"{what}: the token that ends an answer counts too, or the model never learns to stop."
    if missing and not extra:
        return f"{what}: positions {missing} belong to an answer and are not marked; look for every opening, not only one."
    return f"{what}: ids {ids}\nyour mask {found}\nexpected  {expected}"


EXERCISES = [
    Exercise(
        "09-easy",
        "easy",
        (
            "Go through ids and mask side by side: zip(input_ids, completion_mask).",
            "Keep the id where the mask is 1, put -100 where it is 0.",
            "return [i if m else -100 for i, m in zip(input_ids, completion_mask)]",
        ),
        check_labels,
    ),
    Exercise(
        "09-medium",
        "medium",
        (
            "Sort the row numbers by length, the longest first: large rows are hard to place, small ones fill gaps.",
            "Put each row into the first sequence that has room for it; if none has, open a new one.",
            "Keep a list `free` beside the sequences; after placing a row, subtract its length from its sequence's entry.",
        ),
        check_packing,
    ),
    Exercise(
        "09-hard",
        "hard",
        (
            "Walk along the ids and ask at each place whether the opening starts here: ids[i:i + len(opening)] == opening.",
            "After an opening, mark tokens until you have marked an `end`, or the ids are over; then look for the next opening.",
            "A variable `inside` does it: set by an opening that has just ended, cleared after an end token was marked.",
        ),
        check_answer_mask,
    ),
]
