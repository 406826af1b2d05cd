"""Faster attention on a CPU: scores in blocks that stay in a core's cache.

Why: PyTorch's fused kernel is slow with bf16 on CPUs without AMX. Two bf16 products with a softmax between them take 0.4 of its time
for a prompt of 450 tokens, and 0.2 of it forward and backward; for one query over as many keys, the same kernel on fp32 copies takes 0.2
of it (measured on two cores of an EPYC with avx512_bf16). Blocks round as transformers' "eager" attention does. Knows the interface by
which transformers calls attention; knows no model. Where its conditions do not hold, PyTorch's kernel computes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from utils.runtime import cpu_flags

NAME, IN_TRAINING = "blocks", "blocks_in_training"
ROWS = 128  # queries of a causal block: keys after the block's last query are left out
SCORES = 3 << 18  # of a block: 1.5 MB in bf16, what a core's cache holds
FEW = 1024  # batch * queries * keys under a mask: up to here PyTorch's kernel is as fast
LANES = 32  # numbers in bf16 that a core handles at once: a softmax over rows of another length takes up to 2.5 times as long
KEPT = 1 << 24  # scores of a layer that may be kept for its backward pass: 32 MB in bf16


def best_attention(model: Any) -> str:
    """The name to give to `model.set_attn_implementation`: blocks on CPUs with bf16, with AMX in training only; elsewhere "sdpa"."""
    flags = cpu_flags() if model.device.type == "cpu" else set()
    if "amx_bf16" in flags:
        return IN_TRAINING
    return NAME if "avx512_bf16" in flags else "sdpa"


def use_best_attention(model: Any) -> None:
    """Gives `model` its best attention; one with attention of its own, as Falcon's, keeps it."""
    if model.config._attn_implementation == "sdpa" and model._can_set_attn_implementation():
        model.set_attn_implementation(best_attention(model))


def attention_in_blocks(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """softmax(q kᵀ · scaling + mask) v of q (batch, heads, queries, head size), and k and v (batch, key-value heads, keys, head size).

    Returns shape (batch, queries, heads, head size), and None for the weights, which are not kept.
    """
    batch, _, queries, head_size = query.shape
    keys = key.shape[2]
    causal = attention_mask is None and queries > 1 and (getattr(module, "is_causal", True) if is_causal is None else is_causal)
    special = (causal and queries != keys) or any(options.get(name) for name in ("dropout", "softcap"))
    special |= any(options.get(name) is not None for name in ("position_bias", "cache"))
    special |= query.dtype != torch.bfloat16 or query.device.type != "cpu"
    few = attention_mask is not None and batch * queries * keys <= FEW
    many = torch.is_grad_enabled() and query.shape[1] * batch * queries * keys > KEPT
    options |= {"scaling": scaling, "is_causal": is_causal}
    if special or few or many:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    if attention_mask is None and batch == queries == 1:
        in_fp32, _ = sdpa_attention_forward(module, query.float(), key.float(), value.float(), None, **options)
        return in_fp32.to(query.dtype), None
    scaled = query * (head_size**-0.5 if scaling is None else scaling)
    if torch.is_grad_enabled():
        return attend(scaled, key, value, lower_triangle(queries) if causal else attention_mask), None
    return in_blocks(scaled, key, value, attention_mask, causal), None


def attention_in_training(module: torch.nn.Module, *tensors: torch.Tensor | None, **options: Any) -> tuple[torch.Tensor, None]:
    """Blocks where gradients are on; PyTorch's kernel, whose forward pass AMX makes fast, where they are off."""
    compute: Any = attention_in_blocks if torch.is_grad_enabled() else sdpa_attention_forward
    return compute(module, *tensors, **options)


def in_blocks(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None, causal: bool
) -> torch.Tensor:
    """The same for scaled queries, some sequences of the batch and some queries at a time."""
    batch, heads, queries, _ = query.shape
    rows = min(ROWS, queries) if causal else queries
    size = max(1, SCORES // (heads * rows * key.shape[2]))
    out = query.new_empty(batch, queries, heads, value.shape[3])
    for first in range(0, batch, size):
        some = slice(first, first + size)
        for row in range(0, queries, rows):
            seen = min(row + rows, queries) if causal else key.shape[2]
            mask = lower_triangle(seen - row) if causal else attention_mask
            if mask is not None and len(mask) > 1:
                mask = mask[some]
            out[some, row : row + rows] = attend(query[some, :, row : row + rows], key[some, :, :seen], value[some, :, :seen], mask)
    return out


def lower_triangle(rows: int) -> torch.Tensor:
    """Which of its own keys each query of a causal block may see; bool of shape (1, 1, rows, rows)."""
    return torch.ones(1, 1, rows, rows, dtype=torch.bool).tril_()


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """One block, already scaled; query heads that share a key head become rows of one product. A mask may cover the last keys only.

    Returns shape (batch, queries, heads, head size).
    """
    batch, heads, queries, head_size = query.shape
    groups, lowest = heads // key.shape[1], torch.finfo(query.dtype).min
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, lowest)
    if queries >= LANES and (missing := -key.shape[2] % LANES):
        key, value = (pad(one, (0, 0, 0, missing)) for one in (key, value))
        mask = pad(query.new_zeros(1, 1, 1, 0) if mask is None else mask, (0, missing), value=lowest)
    folded = query.reshape(batch, key.shape[1], groups * queries, head_size)
    scores = torch.matmul(folded, key.transpose(2, 3)).view(batch, key.shape[1], groups, queries, -1)
    if mask is not None:
        seen = scores if mask.shape[-1] == scores.shape[-1] else scores[..., -mask.shape[-1] :]  # a slice costs the backward pass a copy
        seen += mask[:, :, None]
    weights = scores.softmax(-1).view(batch, key.shape[1], groups * queries, -1)
    return torch.matmul(weights, value).view(batch, heads, queries, -1).transpose(1, 2)


AttentionInterface.register(NAME, attention_in_blocks)
AttentionInterface.register(IN_TRAINING, attention_in_training)
AttentionMaskInterface.register(NAME, sdpa_mask)
AttentionMaskInterface.register(IN_TRAINING, sdpa_mask)
