"""The exercises of chapter 08 accept every right answer and explain the wrong ones."""

import numpy as np
import pytest
from torch.nn import functional

from utils.exercises import exercises, verdict


def test_chapter_has_one_exercise_of_each_level():
    assert [exercise.level for exercise in exercises("08").values()] == ["easy", "medium", "hard"]


def lora_parameters(rank, shapes):
    return rank * sum(rows + columns for rows, columns in shapes)


@pytest.mark.parametrize("answer", [lora_parameters, lambda r, s: np.int64(sum(r * a + b * r for a, b in s))])
def test_every_form_of_the_right_count_is_accepted(answer):
    assert verdict("08-easy", answer)[0]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda r, s: sum(a * b for a, b in s), "full matrices"),
        (lambda r, s: r * sum(b for _, b in s), "A only"),
        (lambda r, s: 2 * lora_parameters(r, s), "expected 160"),
        (lambda r, s: None, "returned None"),
        (160, "function itself"),
        (None, "no answer yet"),
    ],
)
def test_a_wrong_count_is_explained(answer, reason):
    right, why = verdict("08-easy", answer)
    assert not right and reason in why


def kept_evaluation(losses, patience):
    best = 0
    for i, loss in enumerate(losses):
        if loss < losses[best]:
            best = i
        elif i - best >= patience:
            break
    return best


def counting(losses, patience):
    best, waited = 0, 0
    for i in range(1, len(losses)):
        best, waited = (i, 0) if losses[i] < losses[best] else (best, waited + 1)
        if waited == patience:
            return best
    return best


@pytest.mark.parametrize("answer", [kept_evaluation, counting])
def test_every_form_of_early_stopping_is_accepted(answer):
    assert verdict("08-medium", answer)[0]


def generous(losses, patience):
    """Takes an equal loss for an improvement."""
    best = 0
    for i, loss in enumerate(losses):
        if loss <= losses[best]:
            best = i
        elif i - best >= patience:
            break
    return best


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda losses, p: int(np.argmin(losses)), "stopped before"),
        (lambda losses, p: len(losses) - 1, "in a row"),
        (generous, "you keep evaluation"),
        (lambda losses, p: None, "returned None"),
        (3, "function itself"),
    ],
)
def test_wrong_stopping_is_explained(answer, reason):
    right, why = verdict("08-medium", answer)
    assert not right and reason in why


def causal_loss(logits, labels):
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def by_hand(logits, labels):
    logs, targets = logits[:, :-1].log_softmax(-1), labels[:, 1:]
    picked = logs.gather(-1, targets.clamp_min(0)[..., None])[..., 0]
    return -picked[targets != -100].mean().item()


@pytest.mark.parametrize("answer", [causal_loss, by_hand])
def test_every_form_of_the_right_loss_is_accepted(answer):
    assert verdict("08-hard", answer)[0]


def with_padding(logits, labels):
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum") / labels[:, 1:].numel()


def mean_of_rows(logits, labels):
    return sum(causal_loss(logits[i : i + 1], labels[i : i + 1]) for i in range(len(logits))) / len(logits)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda x, y: functional.cross_entropy(x.flatten(0, 1), y.flatten()), "nothing is shifted"),
        (lambda x, y: functional.cross_entropy(x[:, 1:].flatten(0, 1), y[:, :-1].flatten()), "wrong way"),
        (with_padding, "counted in the mean"),
        (mean_of_rows, "rows' means"),
        (lambda x, y: functional.cross_entropy(x[:, :-1].flatten(0, 1), y[:, 1:].flatten(), reduction="sum"), "the sum"),
        (lambda x, y: 1.0, "expected"),
        (lambda x, y: None, "returned None"),
        (0.5, "function itself"),
    ],
)
def test_a_wrong_loss_is_explained(answer, reason):
    right, why = verdict("08-hard", answer)
    assert not right and reason in why
