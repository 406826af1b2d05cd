"""What a training run reports: losses, speed, memory before, at its peak and after, and how its batch was split.

Knows a trainer that has run. Trains nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from utils.finetuning.recipe import QLoraConfig
from utils.memory import memory_bytes


class NonFiniteLossError(ArithmeticError):
    """The loss became NaN or infinite; the weights are those of the last good step."""


@dataclass(frozen=True)
class TrainingReport:
    """What a run did. Losses are (step, mean loss per completion token); memory is in MB (10^6 bytes), before and after."""

    steps: int
    losses: list[tuple[int, float]]
    valid_losses: list[tuple[int, float]]
    batch_size: int
    accumulation: int
    step_downs: list[str]
    resumed_from: int
    trainable_parameters: int
    seconds: float
    steps_per_second: float
    tokens_per_second: float
    loss_from: str
    dtype: str
    memory: dict[str, dict[str, float]] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [
            f"steps        {self.steps:,} of {self.batch_size} × {self.accumulation} rows"
            + (f", resumed from {self.resumed_from:,}" if self.resumed_from else ""),
            f"speed        {self.steps_per_second:.2f} steps/s, {self.tokens_per_second:,.0f} tokens/s, {self.seconds:,.1f} s in steps",
            f"trained      {self.trainable_parameters:,} adapter weights in fp32; {self.dtype}",
            f"loss         by {self.loss_from}",
        ]
        if self.valid_losses:
            ends = (f"{loss:.3f} at step {step}" for step, loss in (self.valid_losses[0], self.valid_losses[-1]))
            lines.append(f"validation   {', '.join(ends)}")
        lines += [
            f"memory, MB   {when}: " + ", ".join(f"{what} {mb:,.0f}" for what, mb in sizes.items()) for when, sizes in self.memory.items()
        ]
        return "\n".join(lines + [f"note         {one}" for one in self.step_downs])


def memory_now(model: Any) -> dict[str, float]:
    """MB of weights, of this process, and on a GPU of all its tensors."""
    import psutil
    import torch

    sizes = {"weights": memory_bytes(model) / 1e6, "process": psutil.Process().memory_info().rss / 1e6}
    if model.device.type == "cuda":
        sizes["gpu"] = torch.cuda.memory_allocated() / 1e6
        torch.cuda.reset_peak_memory_stats()
    return sizes


def losses(trainer: Any, name: str) -> list[tuple[int, float]]:
    return [(int(entry["step"]), float(entry[name])) for entry in trainer.state.log_history if name in entry]


def make_report(trainer: Any, progress: Any, run: Any, config: QLoraConfig, resumed_from: int, before: dict[str, float]) -> TrainingReport:
    """The report of a run that went through; `run` holds its batch sizes, `before` what `memory_now` said at its start."""
    import torch

    model, seconds = trainer.model, max(progress.seconds, 1e-9)
    peak = {"process": trainer.peak_process_bytes / 1e6}
    if model.device.type == "cuda":
        peak["gpu"] = torch.cuda.max_memory_allocated() / 1e6
    return TrainingReport(
        steps=trainer.state.global_step,
        losses=losses(trainer, "loss"),
        valid_losses=losses(trainer, "eval_loss"),
        batch_size=run.batch_size,
        accumulation=run.accumulation,
        step_downs=run.step_downs,
        resumed_from=resumed_from,
        trainable_parameters=sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
        seconds=progress.seconds,
        steps_per_second=progress.steps / seconds,
        tokens_per_second=trainer.tokens_seen / seconds,
        loss_from="TRL's fused output head" if trainer.uses_trl_loss else "the model's own output head, at the completion's positions",
        dtype=f"computed in {str(config.compute_dtype).removeprefix('torch.')}: {config.dtype_reason}",
        memory={"before": before, "peak": peak, "after": memory_now(model)},
    )
