"""TRL's SFTTrainer with four changes; `training` imports this module only when a run starts, because it loads TRL.

1. The loss is right for every output head. From version 1, TRL multiplies the last hidden state by the output matrix itself, which skips
   what BERT-shaped models compute in between: on small-lm it reports 9.0 where the model's own loss is 6.0, and trains on that.
2. Only positions that count are projected onto the vocabulary.
3. A loss that is not a number stops the run before it reaches the weights.
4. Checkpoints hold no pickle (see `state`). Adapter weights stay in fp32, where TRL rounds them to bf16.
"""

from __future__ import annotations

import inspect
import math
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from tqdm import tqdm
from transformers import TrainerCallback, TrainerState
from trl import SFTTrainer

from utils.finetuning import state as states
from utils.finetuning.report import NonFiniteLossError


class QLoraTrainer(SFTTrainer):
    """SFTTrainer as described above; `tokens_seen` and `peak_process_bytes` are counted while it trains."""

    model: Any
    optimizer: Any
    lr_scheduler: Any

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        for weight in self.model.parameters():
            if weight.requires_grad:  # fp16's loss scaler and slow-bf16 CPUs both need it; the adapter is small
                weight.data = weight.data.float()
        self.model_accepts_loss_kwargs = True  # compute_loss divides by the tokens of the whole accumulated batch
        base = self.model.get_base_model()
        self.head = base.get_output_embeddings()
        self.uses_trl_loss = self.args.device.type == "cuda" and has_plain_head(base) and "fused_lm_head" in _trl_loss_source()
        self.tokens_seen = self.peak_process_bytes = 0
        self.last_loss = math.nan

    def train_from(self, checkpoint: Path | None) -> None:
        """Trains from `checkpoint` or from the start; a checkpoint of the last step is only loaded (Trainer would add a step)."""
        if checkpoint:
            found = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
            if found.global_step >= found.max_steps:
                self._load_from_checkpoint(str(checkpoint))
                self.state = found
                return
        self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

    def compute_loss(self, model: Any, inputs: dict, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """The mean loss over the completion's tokens (of the accumulated batch while training)."""
        if self.uses_trl_loss:
            result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        else:
            result = self.own_loss(model, inputs, num_items_in_batch)
            result = result if return_outputs else result[0]
        if model.training:
            self.watch((result[0] if return_outputs else result).item(), inputs)
        return result

    def own_loss(self, model: Any, inputs: dict, num_items_in_batch: Any = None) -> tuple[torch.Tensor, Any]:
        """(loss, outputs) from the model's own forward pass, whose head projects only the positions that have a label."""
        labels = torch.nn.functional.pad(inputs["labels"], (0, 1), value=-100)[:, 1:]  # each position predicts the next token
        counted = labels != -100
        features = {name: value for name, value in inputs.items() if name not in ("labels", "use_cache")}
        picked = self.head.register_forward_pre_hook(lambda _, hidden: (hidden[0][counted], *hidden[1:]))
        try:
            outputs = model(**features, use_cache=False)
        finally:
            picked.remove()
        total = torch.nn.functional.cross_entropy(outputs.logits.float(), labels[counted], reduction="sum")
        count = counted.sum() if num_items_in_batch is None else num_items_in_batch
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            total = total * self.accelerator.num_processes  # tokens were counted over all processes, gradients are averaged over them
        return total / torch.as_tensor(count, device=total.device).clamp(min=1), outputs

    def watch(self, loss: float, inputs: dict) -> None:
        """Counts tokens and memory. Raises NonFiniteLossError before a broken loss reaches the weights."""
        if not math.isfinite(loss):
            raise NonFiniteLossError(
                f"The loss became {loss} at step {self.state.global_step + 1}; the last good one was {self.last_loss:.4g}. The weights are "
                f"those of step {self.state.global_step}. Usual causes: a learning rate that is too high ({self.args.learning_rate:g}; "
                "a tenth may do), fp16 overflow (use a GPU with bf16), or broken rows (look at the longest and shortest ones)."
            )
        self.last_loss = loss
        self.tokens_seen += int(inputs["attention_mask"].sum()) if "attention_mask" in inputs else inputs["input_ids"].numel()
        self.peak_process_bytes = max(self.peak_process_bytes, psutil.Process().memory_info().rss)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(folder, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        scaler = getattr(self.accelerator, "scaler", None)
        everything = {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": {name: value for name, value in self.lr_scheduler.state_dict().items() if name != "lr_lambdas"},
            "scaler": scaler.state_dict() if scaler else None,
            "random": states.random_state(),
        }
        states.save_state(Path(output_dir), everything)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        saved = states.load_state(Path(checkpoint))
        self.optimizer.load_state_dict(saved["optimizer"])
        self.lr_scheduler.load_state_dict(saved["scheduler"] | {"lr_lambdas": [None] * len(self.optimizer.param_groups)})
        if saved["scaler"] and getattr(self.accelerator, "scaler", None):
            self.accelerator.scaler.load_state_dict(saved["scaler"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            states.set_random_state(states.load_state(Path(checkpoint))["random"])

    def _save_scaler(self, output_dir: str) -> None: ...

    def _load_scaler(self, checkpoint: str | None) -> None: ...

    def _save_rng_state(self, output_dir: str) -> None: ...

    def create_model_card(self, *arguments: Any, **options: Any) -> None:
        """Nothing: the course's adapters say what they are in base.json."""


def has_plain_head(model: Any) -> bool:
    """True when the output matrix is all that follows the last hidden state, as in GPT-2, Llama or Qwen; BERT has a layer between."""
    head = model.get_output_embeddings()
    return any(child is head for child in model.children())


def _trl_loss_source() -> str:
    return inspect.getsource(SFTTrainer.compute_loss)


class Progress(TrainerCallback):
    """One bar for the run, the seconds spent in steps, and the marker that makes a checkpoint count."""

    def __init__(self, run: dict[str, Any]) -> None:
        self.run, self.seconds, self.steps, self.started = run, 0.0, 0, 0.0
        self.bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="training", unit="step", delay=2, leave=False)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds += time.perf_counter() - self.started
        self.steps += 1
        self.bar.update(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **kwargs: Any) -> None:
        if self.bar is not None and logs and "loss" in logs:
            self.bar.set_postfix(loss=f"{float(logs['loss']):.3f}")

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        states.mark_whole(Path(args.output_dir) / f"checkpoint-{state.global_step}", self.run)

    def close(self) -> None:
        """Takes the bar away."""
        if self.bar is not None:
            self.bar.close()
