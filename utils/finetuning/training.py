"""One QLoRA run: the adapter on top, TRL's trainer below, and what can go wrong on the way handled in the open.

A run that was killed goes on from its last whole checkpoint. A batch that does not fit is split, with the same number of rows per
update. Knows the recipe and the trainer; knows nothing about where rows come from or what the adapter is for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from utils.finetuning import state
from utils.finetuning.guards import forwards_kept, free_memory, is_out_of_memory, quiet, use_layout_with_gradients
from utils.finetuning.lean import lean_adapters
from utils.finetuning.recipe import QLoraConfig, qlora_config
from utils.finetuning.report import TrainingReport, losses, make_report, memory_now
from utils.finetuning.run import Run, defaults
from utils.runtime import seed_everything

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Trained(NamedTuple):
    """The model with its adapter, in eval mode, and the report."""

    model: PeftModel
    report: TrainingReport


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
    asked = {"learning_rate": learning_rate, "seed": seed, "num_train_epochs": epochs, "max_steps": max_steps, **options}
    run = Run(tokenizer, train, valid, Path(output_dir), defaults(peft_model, config) | asked, batch_size, accumulation)
    run.begin(peft_model, resume)
    with _taken_off_on_failure(peft_model, model):
        report = _reported(peft_model, run, config, list(callbacks))
    return Trained(peft_model.eval(), report)


@contextmanager
def _taken_off_on_failure(peft_model: Any, model: Any) -> Iterator[None]:
    """When the block raises, the adapter that this run put on `model` is taken off again."""
    try:
        yield
    except BaseException:
        if peft_model is not model:
            peft_model.unload()
        raise


def _reported(model: Any, run: Run, config: QLoraConfig, callbacks: list[Any]) -> TrainingReport:
    """The report of the run, gone through to its end; the trainer's memory is free again."""
    before = memory_now(model)
    use_layout_with_gradients(model)
    trainer, progress, resumed_from = _until_it_fits(model, run, callbacks)
    report = make_report(trainer, progress, run, config, resumed_from, before)
    del trainer, progress
    free_memory()
    return report


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


def _until_it_fits(model: Any, run: Run, callbacks: list[Any]) -> tuple[Any, Any, int]:
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
        run.split_batch(message)  # outside the except block, whose traceback would keep the tensors alive
        set_peft_model_state_dict(model, start)
        free_memory()


def _train_once(model: Any, run: Run, checkpoint: Path | None, callbacks: list[Any]) -> tuple[Any, Any]:
    from peft.helpers import disable_input_dtype_casting

    from utils.finetuning.trainer import Progress

    seed_everything(run.settings["seed"])
    progress = Progress(run.mark)
    mixed = run.settings["bf16"] or run.settings["fp16"]  # then autocast casts; PEFT's own cast to fp32 and back takes 9 % of a step
    with quiet(), forwards_kept(model), disable_input_dtype_casting(model, active=mixed), lean_adapters(model, active=mixed):
        trainer = _trainer(model, run, checkpoint, [progress, *callbacks])
        try:
            trainer.train_from(checkpoint)
            if run.valid is not None and trainer.state.global_step not in dict(losses(trainer, "eval_loss")):
                trainer.evaluate()
        finally:
            progress.close()
            if trainer.args.gradient_checkpointing:
                model.gradient_checkpointing_disable()
    return trainer, progress


def _trainer(model: Any, run: Run, checkpoint: Path | None, callbacks: list[Any]) -> Any:
    """The trainer, with TRL's own printing off."""
    from transformers import PrinterCallback, ProgressCallback
    from trl import SFTConfig

    from utils.finetuning.trainer import QLoraTrainer

    options = run.schedule() | run.settings | {"eval_on_start": run.valid is not None and checkpoint is None}
    sizes: dict[str, Any] = {"per_device_train_batch_size": run.batch_size, "per_device_eval_batch_size": run.batch_size}
    arguments = SFTConfig(output_dir=str(run.output), gradient_accumulation_steps=run.accumulation, **sizes, **options)
    data: dict[str, Any] = {"train_dataset": run.train, "eval_dataset": run.valid, "processing_class": run.tokenizer}
    trainer = QLoraTrainer(model, args=arguments, callbacks=callbacks, **data)
    for noisy in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(noisy)
    return trainer
