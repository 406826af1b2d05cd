"""One QLoRA run: the adapter on top, TRL's trainer below, and what can go wrong on the way handled in the open.

A run that was killed goes on from its last whole checkpoint. A batch that does not fit is split, with the same number of rows per
update. Knows the recipe and the trainer; knows nothing about where rows come from or what the adapter is for.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from utils.finetuning import state
from utils.finetuning.guards import forwards_kept, free_memory, is_out_of_memory, layout_with_gradients, quiet
from utils.finetuning.identity import base_identity
from utils.finetuning.recipe import QLoraConfig, qlora_config
from utils.finetuning.report import TrainingReport, losses, make_report, memory_now
from utils.memory import NotEnoughMemoryError
from utils.runtime import seed_everything

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Trained(NamedTuple):
    """The model with its adapter, in eval mode, and the report."""

    model: PeftModel
    report: TrainingReport


@dataclass
class _Run:
    """One run's settings, and what they became."""

    tokenizer: Any
    train: Any
    valid: Any
    output: Path
    settings: dict[str, Any]
    batch_size: int
    accumulation: int
    mark: dict[str, Any]
    step_downs: list[str] = field(default_factory=list)


def train_qlora(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: Dataset,
    valid: Dataset | None = None,
    *,
    output_dir: str | Path,
    config: QLoraConfig | None = None,
    epochs: float = 1.0,
    max_steps: int = -1,
    batch_size: int = 8,
    accumulation: int = 1,
    learning_rate: float = 2e-4,
    seed: int = 0,
    resume: bool = True,
    callbacks: Sequence[Any] = (),
    **options: Any,
) -> Trained:
    """`model` with a trained adapter, and the report; on an unquantized model this is plain LoRA.

    train, valid: from `prepare_chat_dataset`. output_dir: checkpoints, a folder per run; an unfinished run there is continued when
    `resume`. config: None means `qlora_config()`. max_steps > 0 overrides epochs. An update sees batch_size * accumulation rows; when
    memory runs out the first shrinks and the second grows. options go to trl.SFTConfig (save_steps, eval_steps, optim, packing, …).
    `model` is changed in place; when the run fails the adapter is taken off again, and the last checkpoint stays.

    Raises:
        NonFiniteLossError: when the loss stops being a number. NotEnoughMemoryError: when not even one row fits.
        ValueError: when `model` carries an adapter that cannot be trained, or output_dir holds another run.
    """
    seed_everything(seed)
    config = config or qlora_config(device=model.device.type)
    peft_model = _with_adapter(model, config)
    settings = {
        "learning_rate": learning_rate,
        "seed": seed,
        "num_train_epochs": epochs,
        "max_steps": max_steps,
        **_defaults(model, config),
        **options,
    }
    mark = _mark(peft_model, train, settings, batch_size * accumulation)
    run = _Run(tokenizer, train, valid, Path(output_dir), settings, batch_size, accumulation, mark)
    if not resume:
        for folder in state.checkpoint_folders(run.output):
            shutil.rmtree(folder)
    before = memory_now(peft_model)
    try:
        with layout_with_gradients(peft_model):
            trainer, progress, resumed_from = _until_it_fits(peft_model, run, list(callbacks))
    except BaseException:
        if peft_model is not model:
            peft_model.unload()
        raise
    report = make_report(trainer, progress, run, config, resumed_from, before)
    del trainer, progress
    free_memory()
    return Trained(peft_model.eval(), report)


def _with_adapter(model: Any, config: QLoraConfig) -> Any:
    """`model` with fresh adapters; or as it is, when it carries adapters that can be trained."""
    from peft import PeftModel, get_peft_model

    adapters = [weight for name, weight in model.named_parameters() if "lora_" in name]
    if isinstance(model, PeftModel):
        if not any(weight.requires_grad for weight in adapters):
            raise ValueError("The adapter of this model is frozen. Load it with load_adapter(model, folder, trainable=True).")
        return model
    if adapters:
        raise ValueError("An earlier run left its adapter in this model. Load the base model anew, or train the model that run returned.")
    with quiet():
        return get_peft_model(model, config.lora)


def _defaults(model: Any, config: QLoraConfig) -> dict[str, Any]:
    """SFTConfig's values that depend on the machine, and those TRL would choose otherwise."""
    on_gpu = model.device.type == "cuda"
    return {
        "bf16": config.mixed_precision == "bf16",
        "fp16": config.mixed_precision == "fp16",
        "use_cpu": not on_gpu,
        "gradient_checkpointing": on_gpu,
        "optim": "paged_adamw_8bit" if on_gpu and getattr(model, "is_quantized", False) else "adamw_torch",
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


def _mark(model: Any, train: Any, settings: dict[str, Any], effective_batch: int) -> dict[str, Any]:
    """What makes a run this run: base, adapter shape, rows and the settings that steer the loss."""
    rows = hashlib.sha256()
    for row in train:
        rows.update(json.dumps([row["input_ids"], row.get("completion_mask") or row.get("labels")]).encode())
    lora = model.peft_config[model.active_adapter]
    steering = ("learning_rate", "seed", "num_train_epochs", "max_steps", "lr_scheduler_type", "optim")
    identity = base_identity(model)
    return {
        "base": identity.revision or identity.digest,
        "adapter": {"rank": lora.r, "alpha": lora.lora_alpha, "dropout": lora.lora_dropout},
        "rows": rows.hexdigest(),
        "rows per update": effective_batch,
        **{name: settings[name] for name in steering},
    }


def _until_it_fits(model: Any, run: _Run, callbacks: list[Any]) -> tuple[Any, Any, int]:
    """(trainer, progress, step resumed from) of the run that went through; each time memory runs out the batch is split."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    start = {name: weight.detach().clone() for name, weight in get_peft_model_state_dict(model, save_embedding_layers=False).items()}
    while True:
        checkpoint = state.last_whole(run.output, run.mark)
        try:
            trainer, progress = _train_once(model, run, checkpoint, callbacks)
            return trainer, progress, int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            message = str(error).splitlines()[0] if str(error) else type(error).__name__
        _split_batch(run, message)  # outside the except block, whose traceback would keep the tensors alive
        set_peft_model_state_dict(model, start)
        free_memory()


def _train_once(model: Any, run: _Run, checkpoint: Path | None, callbacks: list[Any]) -> tuple[Any, Any]:
    from peft.helpers import disable_input_dtype_casting
    from transformers import PrinterCallback, ProgressCallback
    from trl import SFTConfig

    from utils.finetuning.trainer import Progress, QLoraTrainer

    seed_everything(run.settings["seed"])
    progress = Progress(run.mark)
    mixed = run.settings["bf16"] or run.settings["fp16"]  # then autocast casts; PEFT's own cast to fp32 and back takes 9 % of a step
    with quiet(), forwards_kept(model), disable_input_dtype_casting(model, active=mixed):
        options = _schedule(run) | run.settings | {"eval_on_start": run.valid is not None and checkpoint is None}
        arguments = SFTConfig(
            output_dir=str(run.output),
            per_device_train_batch_size=run.batch_size,
            per_device_eval_batch_size=run.batch_size,
            gradient_accumulation_steps=run.accumulation,
            **options,
        )
        trainer = QLoraTrainer(
            model,
            args=arguments,
            train_dataset=run.train,
            eval_dataset=run.valid,
            processing_class=run.tokenizer,
            callbacks=[progress, *callbacks],
        )
        for noisy in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(noisy)
        try:
            trainer.train_from(checkpoint)
            if run.valid is not None and trainer.state.global_step not in dict(losses(trainer, "eval_loss")):
                trainer.evaluate()
        finally:
            progress.close()
            if arguments.gradient_checkpointing:
                model.gradient_checkpointing_disable()
    return trainer, progress


def _schedule(run: _Run) -> dict[str, Any]:
    """About fifty points on the loss curve, five validations and four checkpoints."""
    rows_per_update = run.batch_size * run.accumulation
    total = run.settings["max_steps"]
    if total < 1:
        total = math.ceil(math.ceil(len(run.train) / rows_per_update) * run.settings["num_train_epochs"])
    return {
        "logging_steps": max(1, total // 50),
        "save_strategy": "steps",
        "save_steps": max(1, math.ceil(total / 4)),
        "eval_strategy": "no" if run.valid is None else "steps",
        "eval_steps": max(1, math.ceil(total / 5)),
    }


def _split_batch(run: _Run, message: str) -> None:
    """Halves the batch (or takes its largest divisor) and lets more batches share an update, so that updates see as many rows as before."""
    old = run.batch_size
    if old == 1:
        raise NotEnoughMemoryError(
            f"Memory ran out with a single row per batch ({message}). Use shorter rows (max_length of prepare_chat_dataset), "
            "gradient_checkpointing=True, a smaller rank, or a smaller model."
        )
    run.batch_size = max(size for size in range(1, old) if old % size == 0)
    run.accumulation *= old // run.batch_size
    note = (
        f"memory ran out with {old} rows per batch; from here on {run.batch_size} rows × {run.accumulation} batches per update, "
        f"the same {run.batch_size * run.accumulation} rows"
    )
    run.step_downs.append(note)
    warnings.warn(note, stacklevel=2)
