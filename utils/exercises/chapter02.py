"""Exercises of chapter 02, quantization: the bits of a 4-bit weight, a zero point, the matrix product of LLM.int8().

Each checker takes the reader's function and returns (right or not, why). Needs PyTorch; makes all tensors itself, loads no model.
"""

from __future__ import annotations

from typing import Any

from utils.exercises import Exercise

GROUP = 256  # blocks that share a second scale


def check_bits(answer: Any) -> tuple[bool, str]:
    """A function (block, double) that returns the bits one 4-bit weight takes, its share of the scales included."""
    if not callable(answer):
        return False, "pass the function itself: check('02-easy', bits_per_weight)."
    for block, double in ((64, False), (32, False), (64, True), (128, True), (16, True)):
        found = answer(block, double)
        if found is None:
            return False, "the function returned None; it has to return one number."
        if not abs(float(found) - _bits(block, double)) <= 1e-6:
            return False, _explain_bits(block, double, float(found))
    return True, f"a block of 64 takes {_bits(64, False):.3f} bits per weight, with double quantization {_bits(64, True):.3f}."


def _bits(block: int, double: bool) -> float:
    return 4 + (8 / block + 32 / (GROUP * block) if double else 32 / block)


def _explain_bits(block: int, double: bool, found: float) -> str:
    expected = _bits(block, double)
    got = f"for block={block} and double={double} you return {found:.4g}, expected {expected:.4g}."
    reasons = {
        "The 4 bits of the weight itself are missing.": expected - 4,
        "The scale is shared: divide its 32 bits by the block's size.": 36,
        "With double quantization the scale has 8 bits, not 32.": 4 + 32 / block + 32 / (GROUP * block),
        "The second scale is missing: 32 bits for 256 blocks.": 4 + 8 / block,
        "The second scale serves 256 blocks, that is 256 · block weights.": 4 + 8 / block + 32 / GROUP,
        "`double` seems to be ignored.": _bits(block, not double),
        "These look like bytes; the answer is in bits.": expected / 8,
    }
    hit = next((reason for reason, value in reasons.items() if abs(found - value) < 1e-6), "")
    return f"{got} {hit}".strip()


def check_zero_point(answer: Any) -> tuple[bool, str]:
    """A function values -> (integers 0 to 255, scale, zero point) with scale * (integers - zero) close to the values."""
    import torch

    if not callable(answer):
        return False, "pass the function itself: check('02-medium', zero_point)."
    generator = torch.Generator().manual_seed(0)
    cases = {
        "values from 0 up (after a ReLU)": torch.randn(500, generator=generator).relu(),
        "values from −1 to 3": torch.linspace(-1, 3, 401),
        "values from −2 to 0": -2 * torch.rand(300, generator=generator).sort().values.sub(0.001).clamp_min(0),
        "a matrix": torch.randn(20, 30, generator=generator),
    }
    for name, values in cases.items():
        problem = _zero_point_problem(answer(values.clone()), values)
        if problem:
            return False, f"{name}: {problem}"
    return True, f"right on {len(cases)} tensors: integers from 0 to 255, zero restored exactly, no error above one step."


def _zero_point_problem(returned: Any, values: Any) -> str | None:
    """Why what the reader returned is wrong for `values`; None when it is right."""
    import torch

    if not isinstance(returned, tuple | list) or len(returned) != 3:
        return f"return three things, integers, scale and zero point, not {type(returned).__name__}."
    integers, scale, zero = (torch.as_tensor(part).double() for part in returned)
    values, step = values.double(), float(values.max() - values.min()) / 255
    if integers.shape != values.shape:
        return f"the integers have the shape {tuple(integers.shape)}, the values {tuple(values.shape)}."
    if not torch.equal(integers, integers.round()) or not torch.equal(zero, zero.round()):
        return "integers and zero point must be whole numbers: round them."
    if integers.min() < 0 or integers.max() > 255:
        return f"integers run from {integers.min():.0f} to {integers.max():.0f}; they must lie in 0 to 255. Add the zero point, then clamp."
    if scale.numel() != 1 or not 0.98 * step <= float(scale) <= 1.02 * step:
        return f"the scale is {float(scale.flatten()[0]):.5g}; the range divided by 255 is {step:.5g}."
    restored = scale * (integers - zero)
    if (restored[values == 0] != 0).any():
        return "a value of exactly 0 is not restored as 0; its integer has to be the zero point."
    worst = float((restored - values).abs().max())
    if worst > 1.01 * step:
        return f"scale * (integers - zero) is off by up to {worst:.4g}, a step is {step:.4g}. Is the zero point round(-min / scale)?"
    return None


def check_int8_product(answer: Any) -> tuple[bool, str]:
    """A function (x, W, threshold) that returns x @ W.T with integers for ordinary features, exactly for outlier features."""
    import torch

    if not callable(answer):
        return False, "pass the function itself: check('02-hard', int8_product)."
    generator = torch.Generator().manual_seed(0)
    x, W = torch.randn(24, 64, generator=generator), torch.randn(40, 64, generator=generator)
    x[3, 5], x[7, 40] = 80.0, -120.0
    W *= torch.linspace(0.1, 3, 40)[:, None]  # rows of very different size: one scale for all of them shows
    for threshold in (6.0, 80.0):  # 80 is reached exactly
        found = answer(x.clone(), W.clone(), threshold)
        if found is None:
            return False, "the function returned None; it has to return the product."
        found = torch.as_tensor(found)
        if tuple(found.shape) != (24, 40):
            return False, f"for x {tuple(x.shape)} and W {tuple(W.shape)} the product is (24, 40), yours {tuple(found.shape)}."
        problem = _product_problem(found.double(), x.double(), W.double(), threshold)
        if problem:
            return False, f"threshold {threshold:g}: {problem}"
    error = _relative(_int8_product(x, W, 6.0).double(), x.double() @ W.double().T)
    plain = _relative(_int8_product(x, W, float("inf")).double(), x.double() @ W.double().T)
    return True, f"relative error {error:.4f} with the outliers in full precision, {plain:.4f} without: {plain / error:.0f} times as much."


def _product_problem(found: Any, x: Any, W: Any, threshold: float) -> str | None:
    """Why `found` is not the product of LLM.int8(); None when it is."""
    expected = _int8_product(x, W, threshold)
    if _relative(found, expected) < 2e-3:
        return None
    exact = x @ W.T
    error = _relative(found, exact)
    if error < 1e-5:
        return "that is the exact product: the ordinary features have to go through integers, rounded and scaled back."
    for reason, wrong in _usual_mistakes(x, W, threshold).items():
        if _relative(found, wrong) < 2e-3:
            return reason
    return f"relative error {error:.4f}, expected {_relative(expected, exact):.4f}. Scale back with both scales, then add the outliers."


def _usual_mistakes(x: Any, W: Any, threshold: float) -> dict[str, Any]:
    """What common slips would return, by the sentence that explains them."""
    outlier = (x.abs() >= threshold).any(dim=0)
    ordinary = _int8_product(x[:, ~outlier], W[:, ~outlier], float("inf"))
    strict = (x.abs() > threshold).any(dim=0)
    return {
        "the outlier features are missing from the result: multiply them as they are, and add.": ordinary,
        "the outliers went through integers, too. Take them out of x and W before you scale.": _int8_product(x, W, float("inf")),
        "a feature counts as outlier when an input reaches the threshold: >=, not >.": _split_product(x, W, strict),
    }


def _int8_product(x: Any, W: Any, threshold: float) -> Any:
    return _split_product(x, W, (x.abs() >= threshold).any(dim=0))


def _split_product(x: Any, W: Any, outlier: Any) -> Any:
    """x @ W.T, integers for all features but `outlier`; one scale per row of x and of W."""
    scaled = []
    for part in (x[:, ~outlier], W[:, ~outlier]):
        scale = part.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / 127
        scaled.append(((part / scale).round(), scale))
    (left, left_scale), (right, right_scale) = scaled
    return (left @ right.T) * left_scale * right_scale.T + x[:, outlier] @ W[:, outlier].T


def _relative(found: Any, expected: Any) -> float:
    return float((found - expected).norm() / expected.norm())


EXERCISES = [
    Exercise(
        "02-easy",
        "easy",
        (
            "A scale of 32 bits is shared by `block` weights, so each of them carries 32 / block bits of it.",
            "With double quantization the scale has 8 bits, and a second scale of 32 bits serves 256 · block weights.",
            "return 4 + (8 / block + 32 / (256 * block) if double else 32 / block)",
        ),
        check_bits,
    ),
    Exercise(
        "02-medium",
        "medium",
        (
            "255 steps have to span the whole range, from values.min() to values.max().",
            "scale = (max - min) / 255, and the zero point is round(-min / scale): the integer that the real 0 gets.",
            "integers = ((values / scale).round() + zero).clamp(0, 255): rounding first keeps 0 exact.",
        ),
        check_zero_point,
    ),
    Exercise(
        "02-hard",
        "hard",
        (
            "outlier = (x.abs() >= threshold).any(dim=0) says which features to keep out; use it on x and on W.",
            "Divide each row by its absolute maximum over the remaining features / 127 and round, in x and in W.",
            "The integers' product times x_scale times w_scale.T, plus x[:, outlier] @ W[:, outlier].T.",
        ),
        check_int8_product,
    ),
]
