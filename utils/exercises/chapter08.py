"""The exercises of chapter 08: counting what LoRA trains, stopping early, and the next-token loss by hand."""

from __future__ import annotations

from typing import Any

from utils.exercises import Exercise


def check_lora_parameters(answer: Any) -> tuple[bool, str]:
    """A function (rank, shapes) that returns the number of weights LoRA trains on matrices of these (out, in) shapes."""
    if not callable(answer):
        return False, "pass the function itself: check('08-easy', lora_parameters)."
    for rank, shapes in ((4, [(10, 30)]), (8, [(384, 384), (1536, 384)]), (16, [])):
        found = answer(rank, list(shapes))
        expected = rank * sum(rows + columns for rows, columns in shapes)
        full = sum(rows * columns for rows, columns in shapes)
        if found is None:
            return False, "the function returned None; it has to return a number."
        if found == expected:
            continue
        if found == full:
            return False, "that is the number of weights in the full matrices; LoRA trains two thin ones beside each."
        if shapes and found == rank * sum(columns for _, columns in shapes):
            return False, "that counts A only; B has (out × rank) weights, too."
        return False, f"for rank {rank} and shapes {shapes} you return {found}, expected {expected}."
    return True, "a matrix (out, in) gets A with rank × in weights and B with out × rank."


def check_kept_evaluation(answer: Any) -> tuple[bool, str]:
    """A function (losses, patience) that returns the index of the evaluation that early stopping keeps."""
    if not callable(answer):
        return False, "pass the function itself: check('08-medium', kept_evaluation)."
    cases = [
        ([3.0, 2.0, 1.5], 2, 2),
        ([3.0, 2.0, 2.4, 2.1, 2.3], 2, 1),
        ([3.0, 2.0, 2.4, 2.5, 1.0], 2, 1),  # the 1.0 is never reached
        ([3.0, 2.0, 2.4, 2.5, 1.0], 3, 4),
        ([2.0, 3.0, 1.0, 1.2, 0.9], 1, 0),
        ([2.0, 2.0, 2.0, 1.0], 2, 0),  # an equal loss is no improvement
    ]
    for losses, patience, expected in cases:
        found = answer(list(losses), patience)
        if found is None:
            return False, "the function returned None; it has to return an index."
        if found == expected:
            continue
        at = f"losses {losses}, patience {patience}: you keep evaluation {found}, expected {expected}."
        if found == losses.index(min(losses)):
            return False, f"{at} Training has stopped before the lowest loss of the list was measured."
        return False, f"{at} Stop after `patience` evaluations in a row without a new lowest loss, and keep the lowest."
    return True, f"right on {len(cases)} curves, also where a lower loss would have come after the stop."


def check_causal_loss(answer: Any) -> tuple[bool, str]:
    """A function (logits, labels) that returns the mean next-token loss; labels of -100 do not count."""
    import torch
    from torch.nn import functional

    if not callable(answer):
        return False, "pass the function itself: check('08-hard', causal_loss)."
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(3, 7, 11, generator=generator)
    plain = torch.randint(0, 11, (3, 7), generator=generator)
    padded = plain.clone()
    padded[0, 4:] = padded[2, 2:] = -100
    for labels in (plain, padded):
        found = answer(logits.clone(), labels.clone())
        if found is None:
            return False, "the function returned None; it has to return one number."
        value = float(found)
        each = functional.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], ignore_index=-100, reduction="none")
        counted = (labels[:, 1:] != -100).float()
        expected = float(each.sum() / counted.sum())
        if abs(value - expected) < 1e-4:
            continue
        for reason, wrong in _usual_losses(logits, labels, each, counted).items():
            if abs(value - float(wrong)) < 1e-4:
                return False, reason
        return False, f"your loss is {value:.4f}, expected {expected:.4f}."
    return True, "equal to the loss that transformers computes, with and without padding."


def _usual_losses(logits: Any, labels: Any, each: Any, counted: Any) -> dict[str, Any]:
    """What common slips would return, by the sentence that explains them."""
    from torch.nn import functional

    return {
        "nothing is shifted: the logits at position t predict the token at t + 1.": functional.cross_entropy(
            logits.transpose(1, 2), labels, ignore_index=-100
        ),
        "the shift goes the wrong way: drop the last logits and the first labels.": functional.cross_entropy(
            logits[:, 1:].transpose(1, 2), labels[:, :-1], ignore_index=-100
        ),
        "positions with the label -100 are counted in the mean.": each.sum() / counted.numel(),
        "that is the mean of the rows' means; every counted token has the same weight.": (each.sum(1) / counted.sum(1)).mean(),
        "that is the sum; divide by the number of counted tokens.": each.sum(),
    }


EXERCISES = [
    Exercise(
        "08-easy",
        "easy",
        (
            "Beside a matrix of shape (out, in) stand A of shape (rank, in) and B of shape (out, rank).",
            "Together they hold rank * in + out * rank weights.",
            "return rank * sum(rows + columns for rows, columns in shapes)",
        ),
        check_lora_parameters,
    ),
    Exercise(
        "08-medium",
        "medium",
        (
            "Walk through the losses and remember the index of the lowest so far.",
            "When the current index is `patience` larger than the best one, training stops: return the best.",
            "for i, loss in enumerate(losses): if loss < losses[best]: best = i; elif i - best >= patience: break",
        ),
        check_kept_evaluation,
    ),
    Exercise(
        "08-hard",
        "hard",
        (
            "The logits at position t are the prediction for the token at t + 1: logits[:, :-1] belongs to labels[:, 1:].",
            "Take log_softmax over the last dimension, gather the entry of each label, change the sign.",
            "Average over the positions whose label is not -100; clamp_min(0) makes -100 a harmless index for gather.",
        ),
        check_causal_loss,
    ),
]
