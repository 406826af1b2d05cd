"""What makes up one training run: its rows, its settings and the defaults behind them, and what tells it from another run.

Knows TRL's settings by name and this machine's kind of device. Trains nothing: `training` does.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.finetuning import state
from utils.finetuning.identity import base_identity
from utils.finetuning.recipe import QLoraConfig
from utils.memory import NotEnoughMemoryError


@dataclass
class Run:
    """One run's settings, and what they became."""

    tokenizer: Any
    train: Any
    valid: Any
    output: Path
    settings: dict[str, Any]
    batch_size: int
    accumulation: int
    mark: dict[str, Any] = field(default_factory=dict)
    step_downs: list[str] = field(default_factory=list)

    def begin(self, model: Any, resume: bool) -> None:
        """Marks the run as this one; without `resume`, checkpoints of an earlier one are deleted."""
        self.mark = mark(model, self)
        for folder in [] if resume else state.checkpoint_folders(self.output):
            shutil.rmtree(folder)

    def schedule(self) -> dict[str, Any]:
        """About fifty points on the loss curve, five validations and four checkpoints."""
        rows_per_update = self.batch_size * self.accumulation
        total = self.settings["max_steps"]
        if total < 1:
            total = math.ceil(math.ceil(len(self.train) / rows_per_update) * self.settings["num_train_epochs"])
        return {
            "logging_steps": max(1, total // 50),
            "save_strategy": "steps",
            "save_steps": max(1, math.ceil(total / 4)),
            "eval_strategy": "no" if self.valid is None else "steps",
            "eval_steps": max(1, math.ceil(total / 5)),
        }

    def split_batch(self, message: str) -> None:
        """Halves the batch (or takes its largest divisor); more batches then share an update, so that it sees as many rows as before."""
        old = self.batch_size
        if old == 1:
            raise NotEnoughMemoryError(
                f"Memory ran out with a single row per batch ({message}). Use shorter rows (max_length of prepare_chat_dataset), "
                "gradient_checkpointing=True, a smaller rank, or a smaller model."
            )
        self.batch_size = max(size for size in range(1, old) if old % size == 0)
        self.accumulation *= old // self.batch_size
        note = (
            f"memory ran out with {old} rows per batch; from here on {self.batch_size} rows × {self.accumulation} batches per update, "
            f"the same {self.batch_size * self.accumulation} rows"
        )
        self.step_downs.append(note)
        warnings.warn(note, stacklevel=2)


def defaults(model: Any, config: QLoraConfig) -> dict[str, Any]:
    """SFTConfig's values that depend on the machine, and those TRL would choose otherwise."""
    on_gpu = model.device.type == "cuda"
    return {
        "bf16": config.mixed_precision == "bf16",
        "fp16": config.mixed_precision == "fp16",
        "use_cpu": not on_gpu,
        "gradient_checkpointing": on_gpu,
        "optim": "paged_adamw_8bit" if on_gpu and getattr(model, "is_quantized", False) else "adamw_torch_fused",
        "dataloader_pin_memory": on_gpu,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0.03,  # below 1: a share of all steps
        "max_length": None,  # rows were measured by prepare_chat_dataset; nothing is cut here
        "completion_only_loss": True,
        "prediction_loss_only": True,
        "logging_nan_inf_filter": False,
        "save_total_limit": 2,  # the older one stays until the newer one is whole
        "disable_tqdm": True,
        "report_to": [],
    }


def mark(model: Any, run: Run) -> dict[str, Any]:
    """What makes a run this run: base, adapter shape, rows and the settings that steer the loss."""
    rows = hashlib.sha256()
    for row in run.train:
        rows.update(json.dumps([row["input_ids"], row.get("completion_mask") or row.get("labels")]).encode())
    lora = model.peft_config[model.active_adapter]
    steering = ("learning_rate", "seed", "num_train_epochs", "max_steps", "lr_scheduler_type", "optim")
    identity = base_identity(model)
    return {
        "base": identity.revision or identity.digest,
        "adapter": {"rank": lora.r, "alpha": lora.lora_alpha, "dropout": lora.lora_dropout},
        "rows": rows.hexdigest(),
        "rows per update": run.batch_size * run.accumulation,
        **{name: run.settings[name] for name in steering},
    }
