"""The exercises of chapter 02 accept every right answer and explain the wrong ones."""

import numpy as np
import pytest
import torch

from utils.exercises import exercises, verdict


def test_chapter_has_one_exercise_of_each_level():
    assert [exercise.level for exercise in exercises("02").values()] == ["easy", "medium", "hard"]


def bits(block, double):
    return 4 + (8 / block + 32 / (256 * block) if double else 32 / block)


@pytest.mark.parametrize("answer", [bits, lambda b, d: np.float64(bits(b, d)), lambda b, d: torch.tensor(bits(b, d), dtype=torch.float64)])
def test_every_form_of_the_right_bits_is_accepted(answer):
    assert verdict("02-easy", answer)[0]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda b, d: bits(b, d) - 4, "4 bits of the weight itself"),
        (lambda b, d: bits(b, d) / 8, "bytes"),
        (lambda b, d: bits(b, False), "ignored"),
        (lambda b, d: 4 + 8 / b if d else bits(b, d), "second scale is missing"),
        (lambda b, d: 4 + 8 / b + 32 / 256 if d else bits(b, d), "serves 256 blocks"),
        (lambda b, d: 36, "scale is shared"),
        (lambda b, d: 17, "expected 4.5"),
        (lambda b, d: None, "returned None"),
        (lambda b, d: 1 / 0, "ZeroDivisionError"),
        (4.5, "function itself"),
        (None, "no answer yet"),
    ],
)
def test_wrong_bits_are_explained(answer, reason):
    right, why = verdict("02-easy", answer)
    assert not right and reason in why


def zero_point(values):
    scale = (values.max() - values.min()) / 255
    zero = (-values.min() / scale).round()
    return ((values / scale).round() + zero).clamp(0, 255), scale, zero


def in_numpy(values):
    array = values.numpy()
    scale = float(array.max() - array.min()) / 255
    zero = round(-float(array.min()) / scale)
    return np.clip(np.round(array / scale) + zero, 0, 255).astype(np.uint8), scale, zero


def rounded_once(values):
    scale = (values.max() - values.min()) / 255
    zero = (-values.min() / scale).round()
    return (values / scale + zero).round().clamp(0, 255).to(torch.uint8), scale.item(), int(zero)


@pytest.mark.parametrize("answer", [zero_point, in_numpy, rounded_once, lambda v: list(zero_point(v))])
def test_every_form_of_the_right_zero_point_is_accepted(answer):
    assert verdict("02-medium", answer)[0]


def symmetric(values):
    scale = values.abs().max() / 127
    return (values / scale).round(), scale, torch.tensor(0)


def without_zero(values):
    integers, scale, zero = zero_point(values)
    return integers, scale, 0 * zero


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (symmetric, "the range divided by 255"),
        (without_zero, "off by up to"),
        (lambda v: (zero_point(v)[0] - 128, *zero_point(v)[1:]), "0 to 255"),
        (lambda v: (zero_point(v)[0] + 0.4, *zero_point(v)[1:]), "whole numbers"),
        (lambda v: (zero_point(v)[0].flatten()[:5], *zero_point(v)[1:]), "shape"),
        (lambda v: zero_point(v)[0], "three things"),
        (lambda v: None, "three things"),
        (7, "function itself"),
    ],
)
def test_a_wrong_zero_point_is_explained(answer, reason):
    right, why = verdict("02-medium", answer)
    assert not right and reason in why


def int8_product(x, W, threshold):
    outlier = (x.abs() >= threshold).any(dim=0)
    small, weights = x[:, ~outlier], W[:, ~outlier]
    x_scale = small.abs().amax(dim=1, keepdim=True) / 127
    w_scale = weights.abs().amax(dim=1, keepdim=True) / 127
    return (small / x_scale).round() @ (weights / w_scale).round().T * x_scale * w_scale.T + x[:, outlier] @ W[:, outlier].T


def in_place(x, W, threshold):
    """The same with zeros in place of the features taken out, and real 8-bit integers."""
    outlier = (x.abs() >= threshold).any(dim=0)
    small, weights = x.masked_fill(outlier, 0), W.masked_fill(outlier, 0)
    x_scale, w_scale = small.abs().amax(dim=1) / 127, weights.abs().amax(dim=1) / 127
    left, right = (small / x_scale[:, None]).round().to(torch.int8), (weights / w_scale[:, None]).round().to(torch.int8)
    return (left.int() @ right.int().T) * torch.outer(x_scale, w_scale) + x[:, outlier] @ W.T[outlier]


@pytest.mark.parametrize("answer", [int8_product, in_place, lambda x, W, t: int8_product(x, W, t).double()])
def test_every_form_of_the_right_product_is_accepted(answer):
    assert verdict("02-hard", answer)[0]


def drops_outliers(x, W, threshold):
    outlier = (x.abs() >= threshold).any(dim=0)
    return int8_product(x[:, ~outlier], W[:, ~outlier], float("inf"))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda x, W, t: x @ W.T, "exact product"),
        (lambda x, W, t: int8_product(x, W, float("inf")), "outliers went through integers"),
        (drops_outliers, "missing from the result"),
        (lambda x, W, t: int8_product(x, W, t + 1e-3), ">=, not >"),
        (lambda x, W, t: int8_product(x, W, t) * 2, "both scales"),
        (lambda x, W, t: int8_product(x, W, t).T, "(24, 40)"),
        (lambda x, W, t: None, "returned None"),
        (0.5, "function itself"),
    ],
)
def test_a_wrong_product_is_explained(answer, reason):
    right, why = verdict("02-hard", answer)
    assert not right and reason in why
