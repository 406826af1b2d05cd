"""Memory, training speed and cold starts, for `bench`: each in a process of its own, so that no figure carries another one's memory.

`python -m tools.bench_models qlora-plain` is such a process; it prints its figures as a line of JSON. The base of both QLoRA runs is the
course's default LLM in NF4, their rows and their gradient checkpointing are the same; what differs is the recipe.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tools.bench import QUESTION, Comparison
from utils.runtime import ROOT

BASE = "smollm2-135m-instruct"
QLORA_STEPS, QLORA = 4, Namespace(length=512, batch=2, rank=16)
ONE_BILLION = {  # the shape of Llama 3.2 1B
    "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
    "head_dim": 64, "vocab_size": 128_256, "tie_word_embeddings": True,
}  # fmt: skip


def qlora_comparisons() -> list[Comparison]:
    """Returns the seconds for 1,000 trained tokens and the peak memory of the process, against TRL's recipe from its documentation."""
    plain, ours = apart("qlora-plain"), apart("qlora-ours")
    return [
        Comparison("QLoRA, 1,000 trained tokens", plain["seconds"], ours["seconds"], aim=1.3),
        Comparison("QLoRA, peak memory of the process", plain["peak_gb"], ours["peak_gb"], aim=1.0, unit="GB"),
    ]


def nf4_comparison() -> Comparison:
    """Returns the memory of a model of the shape of Llama 3.2 1B, random weights, in bf16 and in NF4; embeddings stay in bf16."""
    found = apart("one-billion")
    return Comparison("weights of a model of 1.2 billion", found["bf16_gb"], found["nf4_gb"], aim=1 / 0.45, unit="GB")


def cold_starts() -> list[Comparison]:
    """Returns the seconds of `import utils` and of a first answer, each from a cold process; the handbook's index stands already."""
    ask = [sys.executable, "-m", "tools.ask", QUESTION]
    run(ask)  # embeds the handbook if nobody has yet, and brings the files into the page cache
    start = time.perf_counter()
    run([sys.executable, "-c", "import utils"])
    imported = time.perf_counter()
    run(ask)
    answered = time.perf_counter()
    return [
        Comparison("import utils, cold process", None, imported - start, most=0.5),
        Comparison("first answer, cold process", None, answered - imported, most=6),
    ]


def apart(name: str) -> dict[str, float]:
    """Returns the figures that a process of its own measured."""
    return json.loads(run([sys.executable, "-m", "tools.bench_models", name]).splitlines()[-1])


def run(command: list[str]) -> str:
    """Returns what the command printed; raises RuntimeError with the end of its error output when it fails."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def measure_qlora(recipe: str) -> dict[str, float]:
    """Returns seconds for 1,000 tokens, without the first step, which warms up, and the process's peak memory."""
    from tools import qlora_gpu
    from utils import checkpoints

    made = getattr(qlora_gpu, recipe)(Path(checkpoints.fetch(checkpoints.find(BASE, "llm"))), QLORA, QLORA_STEPS)
    return {"seconds": 1000 / qlora_gpu.tokens_per_second(made), "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9}


def measure_one_billion() -> dict[str, float]:
    """Returns the GB of the weights as transformers loads them from one folder, in bf16 and quantized."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from utils.finetuning import qlora_config
    from utils.memory import memory_bytes

    with tempfile.TemporaryDirectory() as folder:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **ONE_BILLION), dtype=torch.bfloat16)
        plain = memory_bytes(model)
        model.save_pretrained(folder, max_shard_size="1GB")
        del model
        options: dict[str, Any] = {"quantization_config": qlora_config().quantization, "dtype": torch.bfloat16, "device_map": {"": "cpu"}}
        quantized = memory_bytes(AutoModelForCausalLM.from_pretrained(folder, **options))
    return {"bf16_gb": plain / 1e9, "nf4_gb": quantized / 1e9}


def main() -> None:
    """Measures what the command line names."""
    measures: dict[str, Callable[[], dict[str, float]]] = {
        "qlora-plain": lambda: measure_qlora("plain_recipe"),
        "qlora-ours": lambda: measure_qlora("course_recipe"),
        "one-billion": measure_one_billion,
    }
    print(json.dumps(measures[sys.argv[1]]()))


if __name__ == "__main__":
    main()
