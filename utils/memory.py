"""How much memory a model needs, whether it is free, and what would fit instead.

Knows the catalog and the machine. Loads nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from utils import catalog
from utils.architecture import ParameterGroups, weight_bytes
from utils.runtime import free_memory_gb

if TYPE_CHECKING:
    import torch

HEADROOM = 1.2  # activations, a short KV cache and buffers on top of the weights
SHORT_NAMES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


class NotEnoughMemoryError(MemoryError):
    """The model needs more memory than is free; the message says what would fit."""


def check_memory(
    name: str, groups: ParameterGroups, quantization: str | None, dtype: torch.dtype, device: str, hidden_size: int = 1024
) -> None:
    """Raises NotEnoughMemoryError when the weights and some headroom exceed what is free on `device`."""
    precision, free = quantization or precision_name(dtype), free_memory_gb(device)

    def need(parts: ParameterGroups, at: str) -> float:
        return HEADROOM * weight_bytes(parts, at, hidden_size, dtype.itemsize) / 1e9

    if need(groups, precision) <= free:
        return
    ideas = [
        f"the same model with quantization={at!r} ({need(groups, at):.1f} GB)"
        for at in ("int8", "nf4")
        if at != precision and need(groups, at) <= free
    ]
    fitting = [card for card in _open_llms() if need(card.parameter_groups, precision) <= free]
    if fitting:
        best = max(fitting, key=lambda card: card.parameters)
        ideas.append(f"{best.key!r} ({need(best.parameter_groups, precision):.1f} GB)")
    raise NotEnoughMemoryError(
        f"{name} in {precision} needs about {need(groups, precision):.1f} GB, but {free:.1f} GB are free on {device}. "
        f"What would fit: {'; or '.join(ideas) or 'nothing in the catalog: free some memory'}."
    )


def _open_llms() -> list[catalog.ModelCard]:
    cards = [card for card in catalog.MODELS.values() if card.kind == "llm" and card.parameters]
    return [card for card in cards if not (card.gated or card.own_code or card.replaced_by)]


def memory_bytes(model: torch.nn.Module) -> int:
    """Bytes of all weights and buffers, the scales of int8 and NF4 included."""
    total = sum(tensor.nbytes for tensor in model.buffers())
    for weight in model.parameters():
        state = getattr(weight, "quant_state", None)  # NF4: scales, and the scales of the scales
        scales = [getattr(weight, "SCB", None), getattr(state, "absmax", None), getattr(getattr(state, "state2", None), "absmax", None)]
        total += weight.nbytes + sum(scale.nbytes for scale in scales if scale is not None)
    return total


def precision_name(dtype: torch.dtype) -> str:
    """The short name of a dtype: fp32, bf16, fp16."""
    name = str(dtype).removeprefix("torch.")
    return SHORT_NAMES.get(name, name)
