"""What surrounds a run: quiet libraries, a model whose `forward` comes back, and how running out of memory is recognised."""

from __future__ import annotations

import ctypes
import gc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


@contextmanager
def quiet() -> Iterator[None]:
    """Without bars for steps that take no time, and without notices about renames between libraries that a reader cannot act on."""
    import datasets
    from transformers.utils import logging as transformers_logging

    bars = not datasets.are_progress_bars_disabled(), transformers_logging.is_progress_bar_enabled()
    verbosity = transformers_logging.get_verbosity()
    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", message="The PEFT config's `base_model_name_or_path` was renamed")
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")  # GPT-2; PEFT corrects it
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars[0]:
            datasets.enable_progress_bars()
        if bars[1]:
            transformers_logging.enable_progress_bar()


@contextmanager
def forwards_kept(model: Any) -> Iterator[None]:
    """TRL and accelerate put their own `forward` on a PEFT model and its base; afterwards both are as they were."""
    modules = [model, model.get_base_model()]
    before = [module.__dict__.get("forward") for module in modules]
    try:
        yield
    finally:
        for module, forward in zip(modules, before):
            module.__dict__.pop("forward", None)
            if forward is not None:
                module.forward = forward


def use_layout_with_gradients(model: Any) -> None:
    """Puts 4-bit weights into the layout that passes gradients on, and lets them stay there.

    On a CPU with AVX-512 bf16, bitsandbytes (0.50) packs a layer's weights anew when it first runs in eval mode. That layout has no
    backward pass, and training after an evaluation would learn wrongly without a word where layers have no bias. It also rounds once more,
    so a trained model that went over to it would no longer be the one that was measured, saved and reloaded.
    """
    for layer in [module for module in model.modules() if hasattr(module, "support_avx512bf16_for_cpu")]:
        unpack(layer)
        layer.support_avx512bf16_for_cpu = False


def unpack(layer: Any) -> None:
    """Puts the weights of a bitsandbytes Linear4bit back into the layout they were loaded in, if they are packed."""
    packed: Any = getattr(layer.weight, "quant_state", None)
    if getattr(packed, "packing_format_for_cpu", False):
        from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse

        layer.weight.data, layer.weight.quant_state = _convert_weight_packed_for_cpu_inverse(layer.weight.data, packed)
        layer.quant_state = layer.weight.quant_state


def is_out_of_memory(error: Exception) -> bool:
    """True for CUDA's, the CPU allocator's and Python's ways of saying that memory ran out."""
    import torch

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return any(sign in str(error).lower() for sign in ("out of memory", "can't allocate memory", "cublas_status_alloc_failed"))


def free_memory() -> None:
    """Gives back what a run left behind: to the GPU's driver, and with glibc to the system, whose heap would stay as large as it got."""
    import torch

    gc.collect()
    with suppress(AttributeError, OSError, TypeError):  # another C library, or Windows
        ctypes.CDLL(None).malloc_trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
