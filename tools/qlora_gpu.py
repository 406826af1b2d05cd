"""QLoRA at 7B size, measured: `python -m tools.qlora_gpu` on one GPU with 24 GB or more writes CSV logs that notebook 09 replots.

A Llama-shaped model with random weights costs memory and time like a trained one; only its losses mean nothing. Four rounds on the
same rows: the course's recipe (NF4, packing, gradient checkpointing, paged 8-bit AdamW), TRL's plain recipe on the same NF4 base, LoRA
on the base in bf16, and generation in both precisions. `--shape tiny` runs everything on a CPU in seconds, as the tests do.

    <out>/qlora_<shape>_train.csv     variant, step, loss, seconds of the step
    <out>/qlora_<shape>_summary.csv   one row per variant: tokens/s, memory in MB, settings, device, versions
    <out>/qlora_<shape>_generate.csv  one row per precision and batch: tokens/s, memory in MB
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, TrainerCallback

from tools.logs import write_csv
from utils import checkpoints
from utils.clinic import load_triage
from utils.corpus import load_documents
from utils.finetuning import prepare_chat_dataset, qlora_config, train_qlora
from utils.finetuning.guards import free_memory
from utils.memory import memory_bytes
from utils.models import load_llm
from utils.runtime import DATA, seed_everything, versions

SHAPES = {  # layers, hidden size, heads, key-value heads, MLP size; the vocabulary is the tokenizer's
    "7b": (32, 4096, 32, 32, 11008),  # Llama 2 7B
    "tiny": (2, 64, 4, 4, 128),
}
PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes")


class Stopwatch(TrainerCallback):
    """Seconds of every step, with the device's work finished before the clock is read."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.started = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started = now()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds.append(now() - self.started)


def now() -> float:
    """The clock, after the GPU has done what it was asked."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_mb() -> float:
    """MB that tensors held at the highest point since `reset`; 0 without a GPU."""
    return torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else 0.0


def reset() -> None:
    """Starts a round with memory given back and the peak at zero."""
    free_memory()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def make_base(shape: str, folder: Path) -> Path:
    """`folder`, holding a Llama of this shape with random weights in bf16 and SmolLM2's tokenizer."""
    from transformers import AutoTokenizer

    layers, hidden, heads, kv_heads, mlp = SHAPES[shape]
    tokenizer = AutoTokenizer.from_pretrained(checkpoints.fetch(checkpoints.find("smollm2-135m-instruct", "llm")))
    tokenizer.chat_template = (DATA / "models" / "course-lm" / "chat_template.jinja").read_text(encoding="utf-8")
    sizes = {"hidden_size": hidden, "intermediate_size": mlp, "num_hidden_layers": layers, "max_position_embeddings": 4096}
    sizes |= {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": len(tokenizer)}
    special = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    seed_everything(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **sizes, **special), dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="2GB")
    tokenizer.save_pretrained(folder)
    del model
    reset()
    return folder


def course_recipe(base: Path, args: argparse.Namespace, steps: int, quantization: str | None = "nf4") -> dict[str, Any]:
    """What `train_qlora` took, rows packed into full sequences; with `quantization` None it is LoRA on the base in 16 bits."""
    loaded, watch = load_llm(base, quantization), Stopwatch()
    data, weights = fitting_rows(loaded.tokenizer, args.length), memory_bytes(loaded.model) / 1e6
    options: dict[str, Any] = {"packing": True, "max_length": args.length, "gradient_checkpointing": True}
    options |= {"save_strategy": "no", "logging_steps": 1, "max_steps": steps, "batch_size": args.batch, "callbacks": [watch]}
    with tempfile.TemporaryDirectory() as folder:
        _, report = train_qlora(loaded.model, loaded.tokenizer, data, output_dir=folder, config=qlora_config(args.rank), **options)
    tokens, peak = report.tokens_per_second * report.seconds, report.memory["peak"].get("gpu", 0.0)
    optimizer = "paged_adamw_8bit" if loaded.model.device.type == "cuda" and quantization else "adamw_torch_fused"
    settings = {"rows_per_step": report.batch_size, "packing": True, "optimizer": optimizer, "trainable": report.trainable_parameters}
    return {"losses": report.losses, "seconds": watch.seconds, "tokens": tokens, "weights": weights, "peak": peak, "settings": settings}


def plain_recipe(base: Path, args: argparse.Namespace, steps: int) -> dict[str, Any]:
    """What TRL's own recipe took on the same base: rows padded to the longest of their batch, as many as make a packed step's tokens."""
    from trl import SFTConfig, SFTTrainer

    loaded, watch, config = load_llm(base, "nf4"), Stopwatch(), qlora_config(args.rank)
    loaded.model.set_attn_implementation("sdpa")  # what transformers would have chosen
    data, weights = fitting_rows(loaded.tokenizer, args.length), memory_bytes(loaded.model) / 1e6
    on_gpu, mean_length = loaded.model.device.type == "cuda", sum(map(len, data["input_ids"])) / len(data)
    rows, optimizer = max(1, round(args.batch * args.length / mean_length)), "paged_adamw_8bit" if on_gpu else "adamw_torch_fused"
    options: dict[str, Any] = {"bf16": config.mixed_precision == "bf16", "fp16": config.mixed_precision == "fp16", "use_cpu": not on_gpu}
    options |= {"gradient_checkpointing": True, "optim": optimizer, "max_length": args.length, "max_steps": steps, "seed": 0}
    options |= {"save_strategy": "no", "logging_steps": 1, "report_to": [], "disable_tqdm": True, "per_device_train_batch_size": rows}
    with tempfile.TemporaryDirectory() as folder:
        model, tokenizer, arguments = loaded.model, loaded.tokenizer, SFTConfig(folder, **options)
        trainer = SFTTrainer(
            model, arguments, train_dataset=data, processing_class=tokenizer, peft_config=config.lora, callbacks=[watch]
        )  # fmt: skip
        reset()
        trainer.train()
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    losses, tokens = [(int(entry["step"]), float(entry["loss"])) for entry in history], float(history[-1]["num_tokens"])
    trained: Any = trainer.model
    trainable = sum(weight.numel() for weight in trained.parameters() if weight.requires_grad)
    settings = {"rows_per_step": rows, "packing": False, "optimizer": optimizer, "trainable": trainable}
    return {"losses": losses, "seconds": watch.seconds, "tokens": tokens, "weights": weights, "peak": peak_mb(), "settings": settings}


def fitting_rows(tokenizer: Any, length: int) -> Any:
    """Short and long rows mixed, as instruction data are: triage answers, and the handbook's articles by title where they fit."""
    rows = [{"prompt": row["patient"], "completion": row["answer"]} for row in load_triage("train")]
    articles = load_documents(DATA / "handbook").documents
    rows += [{"prompt": f"Write about: {one.metadata['title']}", "completion": one.page_content} for one in articles]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # names the articles that are too long
        return prepare_chat_dataset(rows, tokenizer, length).dataset.shuffle(seed=0)


def generation(base: Path, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Tokens per second of `generate`, greedy, after a short warm-up, per precision and batch."""
    for precision in ("bf16", "nf4"):
        reset()
        model: Any = load_llm(base, "nf4" if precision == "nf4" else None).model
        for batch in (1, 8):
            prompt = torch.randint(5, 1000, (batch, 64), device=model.device)
            given = {"attention_mask": torch.ones_like(prompt), "do_sample": False}
            model.generate(prompt, max_new_tokens=4, min_new_tokens=4, **given)
            start = now()
            model.generate(prompt, max_new_tokens=args.new_tokens, min_new_tokens=args.new_tokens, **given)
            speed = batch * args.new_tokens / (now() - start)
            yield {"precision": precision, "batch": batch, "tokens_per_second": round(speed, 1), "peak_gpu_mb": round(peak_mb())}
        del model


def tokens_per_second(made: dict[str, Any]) -> float:
    """Speed of the run that went through, without its first step, in which kernels are compiled."""
    steps = len(made["losses"])
    return made["tokens"] * (steps - 1) / steps / sum(made["seconds"][-steps:][1:])


def summary(variant: str, made: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """One row of the summary file."""
    steps = len(made["losses"])
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"
    speed: dict[str, Any] = {"tokens_per_second": round(tokens_per_second(made), 1)}
    speed |= {"seconds": round(sum(made["seconds"]), 2), "tokens": round(made["tokens"])}
    memory = {"weights_mb": round(made["weights"], 1), "peak_gpu_mb": round(made["peak"])}
    settings = {"rank": args.rank, "length": args.length, "steps": steps, **made["settings"]}
    return {"variant": variant, **speed, **memory, **settings, "device": device, **{name: versions()[name] for name in PACKAGES}}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.qlora_gpu", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--shape", choices=list(SHAPES), default="7b")
    add("--steps", type=int, default=50, help="of the course's recipe")
    add("--steps-beside", type=int, default=15, help="of the two that it is compared with: enough for speed and memory")
    add("--length", type=int, default=2048, help="tokens in a packed sequence, and the most in a row")
    add("--batch", type=int, default=2, help="packed sequences in a step")
    add("--rank", type=int, default=16)
    add("--new-tokens", type=int, default=128, help="tokens generated in each speed measurement")
    add("--out", type=Path, default=DATA / "logs")
    args = parser.parse_args(arguments)
    if min(args.steps, args.steps_beside) < 2:
        parser.error("--steps and --steps-beside: at least 2, because the first step is left out of the speed")
    return args


def main(arguments: list[str] | None = None) -> None:
    """Measures all rounds and writes the three files, each as soon as it is whole."""
    args = parse(arguments)
    variants: dict[str, Callable[[Path], dict[str, Any]]] = {
        "course, NF4": lambda base: course_recipe(base, args, args.steps),
        "plain TRL, NF4": lambda base: plain_recipe(base, args, args.steps_beside),
        "LoRA, bf16": lambda base: course_recipe(base, args, args.steps_beside, None),
    }
    steps: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        base = make_base(args.shape, Path(folder))
        for variant, recipe in variants.items():
            reset()
            made = recipe(base)
            rows.append(summary(variant, made, args))
            timed = zip(made["losses"], made["seconds"][-len(made["losses"]) :], strict=True)
            steps += [{"variant": variant, "step": n, "loss": round(loss, 4), "seconds": round(s, 4)} for (n, loss), s in timed]
            print(rows[-1], flush=True)
            write_csv(args.out / f"qlora_{args.shape}_train.csv", steps)
            write_csv(args.out / f"qlora_{args.shape}_summary.csv", rows)
        write_csv(args.out / f"qlora_{args.shape}_generate.csv", list(generation(base, args)))


if __name__ == "__main__":
    main()
