"""A tiny training run in its own process, for tests that kill it: python -m tests.finetuning_run <base> <output> [<step to die at>]."""

import os
import signal
import sys
from typing import Any

import utils  # noqa: F401  sets the offline switches first


def main(base: str, output: str, die_at: int = 0) -> None:
    """Trains eight steps and prints the losses; with `die_at` the process kills itself in the middle of that step."""
    from transformers import TrainerCallback

    from tests.test_finetuning import chat_rows
    from utils.finetuning import prepare_chat_dataset, qlora_config, train_qlora
    from utils.models import load_llm

    class Killer(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if die_at and state.global_step + 1 == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

    loaded = load_llm(base, "nf4")
    rows = prepare_chat_dataset(chat_rows(24), loaded.tokenizer, 200).dataset
    config = qlora_config(rank=4, dropout=0.1)
    options: dict[str, Any] = {"epochs": 3, "batch_size": 4, "accumulation": 2, "learning_rate": 5e-3, "save_steps": 2, "logging_steps": 1}
    _, report = train_qlora(
        loaded.model, loaded.tokenizer, rows, rows, config=config, output_dir=output, callbacks=[Killer()], **options
    )  # fmt: skip
    print("RESULT", report.resumed_from, [loss for _, loss in report.losses], report.valid_losses[-1][1], flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 0)
