"""The QLoRA recipe of notebook 09 in one process or several: a small run on the clinic's rows that writes its losses to a CSV file.

    python -m tools.launch_qlora --rows-per-update 8 --log one.csv
    accelerate launch --config_file tools/configs/two_processes.yaml -m tools.launch_qlora --rows-per-update 8 --log two.csv

Every process loads the NF4 base and trains the same adapter. Each update sees the same rows in the same order, shared out among the
processes, and gradients are averaged over them (data parallelism), so the losses have to be those of one process up to rounding.
Without GPUs the processes talk through gloo on loopback. Process 0 writes the log and, if asked, the adapter; no checkpoints are kept,
as the run is short. Knows nothing of sharding a model: tools/configs/fsdp2.yaml and deepspeed_zero3.yaml say what changes then.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from tools.logs import write_csv

LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": "127.0.0.1"}
LEARNING_RATE, RANK = 2e-3, 8


def clinic_rows(tokenizer: Any, count: int, max_length: int) -> Any:
    """Returns the first `count` triage rows as a tokenized dataset; the same rows in the same order in every process."""
    from utils.clinic import load_triage
    from utils.finetuning import prepare_chat_dataset

    rows = [{"prompt": row["patient"], "completion": row["answer"]} for row in load_triage("train")[:count]]
    return prepare_chat_dataset(rows, tokenizer, max_length).dataset


def rows_per_process(rows_per_update: int, processes: int) -> int:
    """Returns how many rows a process gets. Raises ValueError when they cannot be shared out evenly."""
    if rows_per_update % processes:
        raise ValueError(f"{rows_per_update} rows per update do not divide among {processes} processes; choose a multiple of {processes}.")
    return rows_per_update // processes


def train(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns one row per step: processes, threads of each, step, loss and the mean seconds of a step."""
    import torch
    from accelerate import PartialState

    from utils.finetuning import qlora_config, save_adapter, train_qlora
    from utils.models import load_llm

    process = PartialState(cpu=not torch.cuda.is_available())
    model, tokenizer, _ = load_llm(args.base, quantization="nf4", device=str(process.device))
    batch = rows_per_process(args.rows_per_update, process.num_processes)
    rows = clinic_rows(tokenizer, args.rows_per_update * args.steps, args.max_length)
    with tempfile.TemporaryDirectory() as folder:
        trained, report = train_qlora(
            model, tokenizer, rows, output_dir=folder, config=qlora_config(RANK), batch_size=batch, max_steps=args.steps,
            learning_rate=LEARNING_RATE, seed=0, logging_steps=1, save_strategy="no", ddp_find_unused_parameters=False,
        )  # fmt: skip
    if process.is_main_process and args.adapter:
        save_adapter(trained, args.adapter)
    shared = {"processes": process.num_processes, "threads": torch.get_num_threads(), "rows_per_process": batch}
    seconds = round(report.seconds / report.steps, 3)
    return [{**shared, "step": step, "loss": round(loss, 6), "step_seconds": seconds} for step, loss in report.losses]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Returns the options."""
    parser = argparse.ArgumentParser(prog="python -m tools.launch_qlora", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", default="course-lm", help="a key of the catalog, or a folder")
    parser.add_argument("--rows-per-update", type=int, default=8, help="over all processes")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--max-length", type=int, default=256, help="tokens in a row; longer rows are left out")
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--adapter", type=Path, help="save the trained adapter here")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Trains and writes the log."""
    args = parse(arguments)
    for name, value in LOOPBACK.items():
        os.environ.setdefault(name, value)
    import torch.distributed

    start = time.time()
    rows = train(args)
    if int(os.environ.get("RANK", "0")) == 0:
        write_csv(args.log, rows)
        print(f"{rows[0]['processes']} process(es): loss {rows[0]['loss']:.4f} to {rows[-1]['loss']:.4f} in {time.time() - start:.0f} s")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
