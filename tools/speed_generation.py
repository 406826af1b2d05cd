"""Speed of generation, way by way: `python -m tools.speed_generation` writes data/logs/serving/generation.csv, which notebook 11 replots.

The loop of `generate` is written out (`decode`), so that a step can be the model as it is or compiled; batches go through `generate`.
Prompts are the RAG prompts of chapter 05. Compiling needs a C++ compiler on a CPU; without one those rows are left out, with a notice.

    way               plain (a growing cache), static (a cache of fixed size), compiled (with the static cache), batch
    batch, run        prompts at once, and a row's number; run 0 is the first, cold one and holds the compile time
    first_s, total_s  seconds until the first token, and until the last
    tokens, threads   written, of all prompts together; threads that computed
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tools.load_server import rag_prompts
from tools.logs import write_csv
from utils.runtime import DATA

LOG = DATA / "logs" / "serving" / "generation.csv"
BATCHES = (1, 2, 4, 8, 16)
TOKENS, CACHE = 32, 640  # written per prompt; room in the cache of fixed size
Step = Callable[..., Any]


def compiled(model: Any) -> Step:
    """Returns the model's forward pass, to be compiled at its first call for one shape: one token, and a cache of fixed size."""
    import torch

    torch._dynamo.reset()
    return torch.compile(model.forward, fullgraph=True, dynamic=False)


def can_compile(device: str) -> bool:
    """Returns whether torch.compile has what it needs: on a CPU, a C++ compiler."""
    return device != "cpu" or any(shutil.which(name) for name in ("g++", "clang++", "c++"))


def decode(model: Any, ids: Any, step: Step, cache: Any, tokens: int = TOKENS) -> tuple[list[int], float, float]:
    """Returns greedy tokens, and seconds until the first and the last; the prompt `ids` has one row, `step` does the rest."""
    import torch

    with torch.inference_mode():
        start = time.perf_counter()
        written = [model(input_ids=ids, past_key_values=cache, logits_to_keep=1).logits[:, -1:].argmax(-1)]
        first = time.perf_counter() - start
        for _ in range(tokens - 1):
            written.append(step(input_ids=written[-1], past_key_values=cache).logits[:, -1:].argmax(-1))
        return torch.cat(written, dim=1)[0].tolist(), first, time.perf_counter() - start


def row(way: str, batch: int, run: int, first: float, total: float, tokens: int) -> dict[str, Any]:
    """Returns one row of the log."""
    import torch

    numbers = {"batch": batch, "run": run, "first_s": f"{first:.4f}", "total_s": f"{total:.4f}", "tokens": tokens}
    return {"way": way} | numbers | {"threads": torch.get_num_threads()}


def ways(model: Any, prompts: list[Any]) -> list[dict[str, Any]]:
    """Returns the rows of all ways for single prompts."""
    from transformers import DynamicCache, StaticCache

    steps: dict[str, Callable[[], Step]] = {"plain": lambda: model.forward, "static": lambda: model.forward}
    if can_compile(model.device.type):
        steps["compiled"] = lambda: compiled(model)
    else:
        print("No C++ compiler was found, so nothing is compiled: install g++ to measure it.", file=sys.stderr)
    rows = []
    for way, make in steps.items():
        step = make()
        for run, ids in enumerate([prompts[0], *prompts]):
            cache = DynamicCache(config=model.config) if way == "plain" else StaticCache(config=model.config, max_cache_len=CACHE)
            written, first, total = decode(model, ids, step, cache)
            rows.append(row(way, 1, run, first, total, len(written)))
        print(f"{way:9} first call {float(rows[-1 - len(prompts)]['total_s']):.1f} s, last {float(rows[-1]['total_s']):.2f} s", flush=True)
    return rows


def batches(model: Any, tokenizer: Any, chats: list[Any]) -> list[dict[str, Any]]:
    """Returns the rows of batches of growing size, each with `TOKENS` tokens per answer; two runs, the first to warm up."""
    import torch

    rows = []
    for size in BATCHES:
        encoded: Any = tokenizer.apply_chat_template(
            chats[:size], add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
        )
        prompt = encoded.to(model.device)
        for run in range(2):
            marks: list[float] = []

            def clock(input_ids: Any, scores: Any, marks: list[float] = marks, **_: Any) -> Any:
                marks.append(time.perf_counter())
                return input_ids.new_zeros(len(input_ids), dtype=torch.bool)

            start = time.perf_counter()
            options = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False, "stopping_criteria": [clock]}
            with torch.inference_mode():
                model.generate(**prompt, **options)
            rows.append(row("batch", size, run, marks[0] - start, time.perf_counter() - start, TOKENS * size))
        print(f"batch of {size}: {TOKENS * size / float(rows[-1]['total_s']):.1f} tokens/s", flush=True)
    return rows


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.speed_generation", description="Measure plain, compiled and batched generation.")
    parser.add_argument("--model", help="catalog key or folder; the profile's default when left out")
    parser.add_argument("--log", type=Path, default=LOG)
    chosen = parser.parse_args()
    from utils.models import load_llm

    model, tokenizer, _ = load_llm(chosen.model)
    chats = rag_prompts(max(BATCHES))
    prompts = []
    for chat in chats[:4]:
        encoded: Any = tokenizer.apply_chat_template([chat], add_generation_prompt=True, return_dict=True, return_tensors="pt")
        prompts.append(encoded["input_ids"].to(model.device))
    with tempfile.TemporaryDirectory(prefix="inductor-") as fresh:  # no code of earlier runs, so that the first call is a cold one
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = fresh
        write_csv(chosen.log, [*batches(model, tokenizer, chats), *ways(model, prompts)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
