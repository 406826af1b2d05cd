"""Faster decoding on a CPU: matrices that keep an int8 copy of their weights and read it when few rows pass through.

Why: a decoding step multiplies one row, or a few, by every matrix of the model, so it takes about as long as reading the weights from
memory. Int8 halves the bytes of bf16. A prompt is many rows; there bf16 is faster, and the weights themselves are used. Knows torch's
int8 kernel; knows nothing of models' kinds. torchao's int8 weights use the same kernel, but for prompts as well: ten times slower there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

# Measured with SmolLM2's matrices on two cores. With AVX-512 alone, int8 takes 0.4 of bf16's time at 1 to 4 rows, 0.75 at 8, 0.85 at 11.
# With AMX it is faster at 4 rows, and bf16 three times as fast at 16; 8 was not measured there.
MOST_ROWS = 8
BLOCK = 65_536  # weights that are rounded at a time: what fits into a core's cache takes a third of the time


class FewRowsInt8(nn.Linear):
    """A linear layer with an int8 copy of its weights, one scale per output, for at most `MOST_ROWS` rows and where nothing is trained.

    The copy is made once: whoever changes the weights afterwards, say by merging an adapter, has to call `keep_int8_copies` again.
    """

    def make_copy(self) -> None:
        """Rounds the weights, shape (out_features, in_features), to int8: the largest of a row becomes 127."""
        weight = self.weight.detach()
        self.int8, self.scale = torch.empty_like(weight, dtype=torch.int8), torch.empty_like(weight[:, 0])
        rows = max(1, BLOCK // self.in_features)
        for part, int8, scale in zip(weight.split(rows), self.int8.split(rows), self.scale.split(rows), strict=True):
            values = part.float()
            steps = values.abs().amax(dim=1).clamp(min=1e-12) / 127
            int8.copy_((values / steps[:, None]).round_())
            scale.copy_(steps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in_features) to (..., out_features)."""
        rows = x.numel() // self.in_features
        if rows > MOST_ROWS or torch.is_grad_enabled():
            return super().forward(x)
        y = torch._weight_int8pack_mm(x.reshape(rows, self.in_features), self.int8, self.scale)
        return (y if self.bias is None else y + self.bias).view(*x.shape[:-1], self.out_features)


def keep_int8_copies(model: nn.Module) -> int:
    """Lets every plain linear layer of `model` keep an int8 copy; returns the copies' bytes. Quantized layers stay as they are."""
    layers: list[Any] = [layer for layer in model.modules() if type(layer) in (nn.Linear, FewRowsInt8)]
    for layer in layers:
        layer.__class__ = FewRowsInt8
        layer.make_copy()
    return sum(layer.weight.numel() for layer in layers)
