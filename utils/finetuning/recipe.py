"""The QLoRA recipe: how the base model is quantized, where adapters sit, and in which dtype the machine computes.

Knows this machine (through `runtime`), PEFT's LoraConfig and transformers' BitsAndBytesConfig. Loads nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from utils.memory import precision_name
from utils.runtime import choose_dtype, detect

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig


@dataclass(frozen=True)
class QLoraConfig:
    """The recipe: `lora` for PEFT, `quantization` for `from_pretrained`, and the compute dtype with its reason."""

    lora: LoraConfig
    quantization: BitsAndBytesConfig
    compute_dtype: torch.dtype
    dtype_reason: str

    @property
    def mixed_precision(self) -> str:
        """What the trainer computes in: "fp16", "bf16" or "no". The adapter's own weights stay in fp32."""
        name = precision_name(self.compute_dtype)
        return name if name in ("fp16", "bf16") else "no"

    def __str__(self) -> str:
        lora = self.lora
        targets = lora.target_modules if isinstance(lora.target_modules, str) else ", ".join(sorted(lora.target_modules or []))
        return "\n".join(
            [
                f"adapter        LoRA of rank {lora.r}, alpha / rank = {lora.lora_alpha / lora.r:g}, dropout {lora.lora_dropout:g}",
                f"targets        {targets}",
                "base weights   NF4 with double quantization",
                f"compute dtype  {precision_name(self.compute_dtype)}: {self.dtype_reason}",
            ]
        )


def qlora_config(
    rank: int = 16,
    alpha: int | None = None,
    dropout: float = 0.0,
    targets: str | list[str] = "all-linear",
    device: str | None = None,
) -> QLoraConfig:
    """The recipe for this machine: NF4 with double quantization below, LoRA on every linear layer above.

    rank: columns of each adapter matrix. alpha: the update is scaled by alpha / rank; None means 2 * rank. dropout: share of an
    adapter's inputs dropped in training. targets: layer names, or "all-linear" for all but the output head, in every family.
    device: "cuda", "cpu"; None means this machine's. The compute dtype is bf16 from compute capability 8.0, fp16 on a T4 (7.5),
    and fp32 on a CPU without bf16 arithmetic.

    Raises:
        ValueError: for a rank below 1 or a dropout outside [0, 1).
    """
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig

    if rank < 1 or not 0 <= dropout < 1:
        raise ValueError(f"rank={rank} and dropout={dropout}: give a rank of at least 1 and a dropout from 0 to below 1.")
    dtype, reason = choose_dtype(device or detect().device)
    return QLoraConfig(
        lora=LoraConfig(
            r=rank, lora_alpha=alpha or 2 * rank, lora_dropout=dropout, target_modules=targets, bias="none", task_type="CAUSAL_LM"
        ),
        quantization=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        ),
        compute_dtype=dtype,
        dtype_reason=reason,
    )  # fmt: skip
