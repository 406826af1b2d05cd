"""Adapters beside 4-bit layers, computed with fewer passes over memory while a run trains.

Why: on a CPU a small model's step spends much of its time outside matrix products. PEFT copies a layer's output, scales the adapter's
product and adds the two, each over the full width. Scaling the few inner columns and adding inside the product gives the same sum.
Knows PEFT's layer over bitsandbytes' `Linear4bit`; layers that do more (several adapters, dropout, a variant) stay PEFT's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch


@contextmanager
def lean_adapters(model: Any, active: bool = True) -> Iterator[None]:
    """Plain LoRA layers of `model` compute in the short way; afterwards in PEFT's. For use under autocast, which casts the adapter."""
    layers = [module for module in model.modules() if active and _is_plain(module)]
    for layer in layers:
        layer.forward = partial(_forward, layer)
    try:
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _is_plain(module: Any) -> bool:
    """True for one adapter over a 4-bit layer, without dropout, bias or variant, and not merged."""
    if type(module).__name__ != "Linear4bit" or not hasattr(module, "lora_A") or "forward" in module.__dict__:
        return False
    if module.merged or module.disable_adapters or len(module.active_adapters) != 1 or module.lora_variant:
        return False
    [name] = module.active_adapters
    return isinstance(module.lora_dropout[name], torch.nn.Identity) and module.lora_B[name].bias is None


def _forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """W x + scaling * B A x, shape (..., out_features), for `x` of shape (..., in_features)."""
    [name] = layer.active_adapters
    output = layer.base_layer(x)
    few = layer.lora_A[name](x) * layer.scaling[name]
    return torch.addmm(output.flatten(0, -2), few.flatten(0, -2), layer.lora_B[name].weight.T).view_as(output).to(output.dtype)
