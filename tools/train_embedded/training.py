"""What every trainer here does: learn for some minutes or steps, log, save every ten minutes, go on after a kill.

Knows a model, batches and a loss; knows nothing of what is learnt. Only trainable weights are saved, so a LoRA checkpoint stays small.
"""

import argparse
import csv
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

Batch = dict[str, torch.Tensor]
Losses = Callable[[Any, Batch], dict[str, torch.Tensor]]
"""What a step measures, by name; the first is minimised."""


@dataclass
class Plan:
    work: Path  # checkpoint, log
    learning_rate: float
    minutes: float
    steps: int | None = None  # in place of minutes
    warmup: int = 20
    log: Path | None = None
    save_seconds: float = 600
    progress: float = 0.0  # share of the run that is done, kept by `train`; batches may follow it


def arguments(description: str, work: str, minutes: float, learning_rate: float) -> argparse.ArgumentParser:
    """A command line with what every trainer can be told."""
    parser = argparse.ArgumentParser(description=description)
    add = parser.add_argument
    add("--data", type=Path, default=Path("../shared/data"), help="folder of JSON Lines, laid out as README.md tells")
    add("--work", type=Path, default=Path(work), help="checkpoint, log and prepared files")
    add("--out", type=Path, default=None, help="folder of the result; default in WORK")
    add("--minutes", type=float, default=minutes, help="length of the whole run; the learning rate falls to zero over it")
    add("--steps", type=int, default=None, help="length of the run in steps, in place of minutes")
    add("--learning-rate", type=float, default=learning_rate)
    add("--log", type=Path, default=None, help="CSV log; default WORK/log.csv")
    add("--workers", type=int, default=0, help="processes that draw examples: some eight for a GPU")
    add("--seed", type=int, default=0)
    return parser


def of_like_length(items: list[Any], length: Callable[[Any], int], tokens: int) -> list[list[Any]]:
    """`items` sorted by `length` and cut into groups of at most `tokens` padded tokens, or of one item that is longer."""
    items, groups, start = sorted(items, key=length), [], 0
    for end in range(1, len(items) + 1):
        if end == len(items) or (end + 1 - start) * length(items[end]) > tokens:
            groups.append(items[start:end])
            start = end
    return groups


class _Drawn(IterableDataset):
    """What `make(seed)` draws, with another seed in each worker."""

    def __init__(self, make: Callable[[int], Iterator[Batch]], seed: int):
        self.make, self.seed = make, seed

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        return self.make(self.seed + 1000 * worker.id if worker else self.seed)


def drawn(make: Callable[[int], Iterator[Batch]], seed: int, workers: int = 0) -> Iterator[Batch]:
    """Batches of `make(seed)`, drawn by this process or, where a GPU is faster than it draws, by `workers` others in turn."""
    return iter(DataLoader(_Drawn(make, seed), batch_size=None, num_workers=workers, pin_memory=torch.cuda.is_available()))


def save_adapter(model: Any, base: str, out: Path) -> None:
    """The trained weights in fp16, as a PEFT adapter of `base`, its Hub id or folder. The tokenizer is the base's."""
    model.peft_config["default"].base_model_name_or_path = base
    for weight in trainable(model).values():
        weight.data = weight.data.half()
    model.save_pretrained(out)
    (out / "README.md").unlink(missing_ok=True)  # PEFT's empty form; the model card is written by hand
    print("written:", out)


def autocast(device: str) -> torch.autocast:
    """bf16 where the processor multiplies it fast; on a CPU without AVX-512 bf16 or AMX it is far slower than fp32."""
    fast = device == "cuda" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.autocast(device, dtype=torch.bfloat16, enabled=fast)


def trainable(model: Any) -> dict[str, torch.Tensor]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def save_checkpoint(folder: Path, model: Any, optimizer: torch.optim.Optimizer, done: dict) -> None:
    """Weights, optimizer moments and progress; the old checkpoint goes only when the new one is complete."""
    fresh, old = folder.with_suffix(".new"), folder.with_suffix(".old")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    save_file({name: weight.detach().contiguous() for name, weight in trainable(model).items()}, fresh / "weights.safetensors")
    moments = {f"{i}.{k}": v for i, s in optimizer.state_dict()["state"].items() for k, v in s.items()}
    save_file(moments, fresh / "optimizer.safetensors")
    (fresh / "state.json").write_text(json.dumps(done))
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def resume(folder: Path, model: Any, optimizer: torch.optim.Optimizer) -> dict:
    """Progress of the checkpoint in `folder`, its weights loaded into `model` and its moments into `optimizer`; zeros without one."""
    if not folder.is_dir():
        return {"step": 0, "seconds": 0.0, "tokens": 0, "examples": 0}
    missing = model.load_state_dict(load_file(folder / "weights.safetensors"), strict=False).unexpected_keys
    if missing:
        raise SystemExit(f"{folder} belongs to another model ({missing[0]}, …): move it away, or give another --work.")
    state: dict[int, dict] = {}
    for name, value in load_file(folder / "optimizer.safetensors").items():
        index, key = name.split(".")
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return json.loads((folder / "state.json").read_text())


def steps_done(work: Path) -> int:
    """Steps of the checkpoint in `work`, 0 without one."""
    state = work / "checkpoint" / "state.json"
    return json.loads(state.read_text())["step"] if state.is_file() else 0


class Log:
    """CSV rows and lines on the screen: means over the last ten steps. Only then are losses read, so that a GPU need not wait for it."""

    def __init__(self, path: Path):
        self.path = path
        self.recent: list[torch.Tensor] = []

    def add(self, done: dict, measured: dict[str, torch.Tensor], rate: float, last: bool) -> bool:
        """Notes a step; at every tenth writes a row and returns True. Raises SystemExit when a loss is not finite."""
        self.recent = [*self.recent[-9:], torch.stack([value.detach().float() for value in measured.values()])]
        if done["step"] % 10 and not last:
            return False
        means = self.means()
        row = {"step": done["step"], "minutes": round(done["seconds"] / 60, 2), "tokens": done["tokens"], "examples": done["examples"]}
        row |= dict(zip(measured, np.round(means, 4).tolist())) | {"learning_rate": f"{rate:.2e}"}
        fresh = not self.path.exists() or done["step"] <= 10
        with open(self.path, "w" if fresh else "a", newline="") as handle:
            writer = csv.DictWriter(handle, row)
            if fresh:
                writer.writeheader()
            writer.writerow(row)
        print("  ".join(f"{name} {value}" for name, value in row.items()), f" {done['tokens'] / done['seconds']:.0f} tokens/s", flush=True)
        return True

    def means(self) -> list[float]:
        """Of the last ten steps. Raises SystemExit when a loss is not finite."""
        means = torch.stack(self.recent).mean(0).tolist()
        if not np.isfinite(means[0]):
            raise SystemExit(f"The loss is {means[0]}: lower --learning-rate and run again; it goes on from the last checkpoint.")
        return means


def train(model: Any, losses: Losses, batches: Iterable[Batch], plan: Plan, seed: int = 0) -> dict:
    """Learns until the minutes or steps are over; the rate warms up, then falls linearly. Returns the progress.

    `batches` hold "tokens" and "examples" (a count) beside what `losses` needs. Raises SystemExit when the loss is not finite.
    """
    device = next(model.parameters()).device
    weights = list(trainable(model).values())
    optimizer = torch.optim.AdamW(weights, lr=plan.learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=device.type == "cuda")
    checkpoint, log = plan.work / "checkpoint", Log(plan.log or plan.work / "log.csv")
    done = resume(checkpoint, model, optimizer)
    started, saved = time.time() - done["seconds"], time.time()
    upcoming = iter(batches)
    while (progress := _progress(done, plan)) < 1:
        batch = next(upcoming)
        rate = plan.learning_rate * min(1.0, (done["step"] + 1) / plan.warmup) * max(0.03, 1 - progress)
        for group in optimizer.param_groups:
            group["lr"] = rate
        measured = _step(model, losses, {k: v.to(device, non_blocking=True) for k, v in batch.items()}, optimizer, weights)
        done["step"] += 1
        done["seconds"] = time.time() - started
        done["tokens"] += batch["tokens"].numel()
        done["examples"] += int(batch["examples"])
        written = log.add(done, measured, rate, last=done["step"] == plan.steps)
        if written and time.time() - saved > plan.save_seconds:
            save_checkpoint(checkpoint, model, optimizer, done)
            saved = time.time()
    if log.recent:
        log.means()  # the last steps were not looked at yet: no broken weights are saved
    save_checkpoint(checkpoint, model, optimizer, done)
    return done


def _progress(done: dict, plan: Plan) -> float:
    """The share of the run that is done, noted in `plan` too."""
    plan.progress = done["step"] / plan.steps if plan.steps else done["seconds"] / 60 / plan.minutes
    return plan.progress


def _step(
    model: Any, losses: Losses, batch: Batch, optimizer: torch.optim.Optimizer, weights: list[torch.Tensor]
) -> dict[str, torch.Tensor]:
    with autocast(batch["tokens"].device.type):
        measured = losses(model, batch)
    optimizer.zero_grad(set_to_none=True)
    next(iter(measured.values())).backward()
    torch.nn.utils.clip_grad_norm_(weights, 1.0)
    optimizer.step()
    return measured
