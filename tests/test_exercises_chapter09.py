"""The exercises of chapter 09 accept every right answer and explain the wrong ones."""

import numpy as np
import pytest

from utils.exercises import exercises, verdict


def test_chapter_has_one_exercise_of_each_level():
    assert [exercise.level for exercise in exercises("09").values()] == ["easy", "medium", "hard"]


def labels_of(ids, mask):
    return [i if m else -100 for i, m in zip(ids, mask)]


@pytest.mark.parametrize("answer", [labels_of, lambda ids, mask: np.where(np.array(mask) == 1, ids, -100)])
def test_every_form_of_the_right_labels_is_accepted(answer):
    assert verdict("09-easy", answer)[0]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda ids, mask: [-100 if m else i for i, m in zip(ids, mask)], "wrong way round"),
        (lambda ids, mask: [i * m for i, m in zip(ids, mask)], "0 is a token"),
        (lambda ids, mask: [i for i, m in zip(ids, mask) if m], "4 tokens need 4 labels"),
        (lambda ids, mask: ids, "expected [-100, -100, 9, 2]"),
        (lambda ids, mask: None, "returned None"),
        ([1, 2], "function itself"),
        (None, "no answer yet"),
    ],
)
def test_wrong_labels_are_explained(answer, reason):
    right, why = verdict("09-easy", answer)
    assert not right and reason in why


def pack(lengths, size):
    sequences, free = [], []
    for row in sorted(range(len(lengths)), key=lambda r: -lengths[r]):
        at = next((i for i, room in enumerate(free) if room >= lengths[row]), None)
        if at is None:
            sequences.append([])
            free.append(size)
            at = len(free) - 1
        sequences[at].append(row)
        free[at] -= lengths[row]
    return sequences


def best_fit(lengths, size):
    sequences = []
    for row in sorted(range(len(lengths)), key=lambda r: -lengths[r]):
        room = {i: size - sum(lengths[r] for r in s) for i, s in enumerate(sequences)}
        fitting = [i for i in room if room[i] >= lengths[row]]
        if fitting:
            sequences[min(fitting, key=room.get)].append(row)
        else:
            sequences.append([row])
    return sequences


@pytest.mark.parametrize("answer", [pack, best_fit])
def test_every_good_packing_is_accepted(answer):
    assert verdict("09-medium", answer)[0]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda lengths, size: [[row] for row in range(len(lengths))], "the longest rows first"),
        (lambda lengths, size: [list(range(len(lengths)))], "holds 12 tokens"),
        (lambda lengths, size: [[length] for length in lengths], "row numbers"),
        (lambda lengths, size: [[0]], "exactly one sequence"),
        (lambda lengths, size: None, "returned None"),
        ([[0]], "function itself"),
    ],
)
def test_a_wrong_packing_is_explained(answer, reason):
    right, why = verdict("09-medium", answer)
    assert not right and reason in why


def answer_mask(ids, opening, end):
    mask, inside = [], False
    for i, token in enumerate(ids):
        inside = inside or (ids[max(0, i - len(opening)) : i] == opening)
        mask.append(int(inside))
        inside = inside and token != end
    return mask


def by_search(ids, opening, end):
    mask = [0] * len(ids)
    for start in range(len(opening), len(ids)):
        if ids[start - len(opening) : start] == opening:
            stop = ids.index(end, start) + 1 if end in ids[start:] else len(ids)
            mask[start:stop] = [1] * (stop - start)
    return mask


@pytest.mark.parametrize("answer", [answer_mask, by_search, lambda *given: np.array(by_search(*given))])
def test_every_form_of_the_right_mask_is_accepted(answer):
    assert verdict("09-hard", answer)[0]


def without_end(ids, opening, end):
    return [m and int(i != end) for i, m in zip(ids, answer_mask(ids, opening, end))]


def last_turn_only(ids, opening, end):
    starts = [i for i in range(len(opening), len(ids)) if ids[i - len(opening) : i] == opening]
    return [int(bool(starts) and i >= starts[-1]) for i in range(len(ids))]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (without_end, "never learns to stop"),
        (last_turn_only, "look for every opening"),
        (lambda ids, opening, end: [1] * len(ids), "your mask"),
        (lambda ids, opening, end: [0], "11 entries"),
        (lambda ids, opening, end: None, "returned None"),
        (3, "function itself"),
    ],
)
def test_a_wrong_mask_is_explained(answer, reason):
    right, why = verdict("09-hard", answer)
    assert not right and reason in why
