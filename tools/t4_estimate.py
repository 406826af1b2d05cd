"""What each notebook takes on a T4, computed: `python -m tools.t4_estimate` writes it into notebooks/index.toml. Nobody has measured it.

Memory: the weights of what a notebook loads in profile colab-gpu, by the catalog's calculator, times the loader's own headroom; a CUDA
context per process; the KV cache; the largest batch of the embedder; what training keeps. Rounded up to half a gigabyte.
Minutes: the notebook's minutes on two cores, times two, because Colab's two virtual cores are the two threads of one; and, where the
profile puts a 4 B model in the embedded one's place, the passes counted in data/logs/model_passes.csv at the speeds below. Rounded up.
The log was made without prompt lookup, which needs fewer passes. Downloads are given in GB, as nobody knows a reader's line. Loads nothing.
"""

import math
import re
from dataclasses import dataclass
from typing import Any

from tools.model_passes import logged
from tools.registry import NOTEBOOKS, Chapter, load_registry
from utils import catalog
from utils.embedder import TOKENS_PER_BATCH
from utils.memory import HEADROOM

# NVIDIA's data sheet of the T4, and the share of it that we count on.
BYTES_PER_SECOND, OPERATIONS_PER_SECOND = 0.6 * 320e9, 0.2 * 65e12
SECONDS_PER_LAYER = 1e-3  # Python and kernel launches: 0.3 to 0.5 ms measured here with layers too small to compute, and slower cores there
BYTES_LOADED_PER_SECOND = 0.1e9  # of the 16-bit files, from disk, quantized on the way
BATCHED_NF4_BYTES = 0.5 + 2 + 2  # per weight: beyond one row, bitsandbytes writes the weights out in 16 bits and reads them again
LONGER_ANSWERS = 2  # the 4 B model writes longer answers than the embedded one, whose passes were counted
COLAB_CORES = 2  # how much slower
CONTEXT_GB, CHAT_TOKENS = 0.5, 8 * 1024  # a CUDA context; tokens in the KV cache: a batch of eight prompts with answers
LLM, EMBEDDER, RERANKER = (catalog.default_key(kind, "colab-gpu") for kind in ("llm", "embedder", "reranker"))


@dataclass(frozen=True)
class Load:
    """What a notebook holds on the GPU at once."""

    models: tuple[tuple[str, str], ...]  # key and precision of each
    chats: bool = False  # with the profile's LLM, which is one of `models`
    trains: tuple[str, int, int] | None = None  # key, copies whose weights are all trained, tokens of a batch
    contexts: int = 1  # processes with the GPU open

    @property
    def embeds(self) -> bool:
        """Returns whether the embedder works on the GPU."""
        return (EMBEDDER, "fp16") in self.models


SMOL, COURSE, SMALL, MINILM = ("smollm2-135m-instruct", "fp16"), ("course-lm", "fp16"), ("small-lm", "fp32"), (EMBEDDER, "fp16")
CHAT = ((LLM, "nf4"), MINILM)
LOADS = {
    "01": Load((SMOL, SMOL)),  # by hand and by load_llm
    "02": Load((SMALL, SMALL, SMALL)),
    "03": Load((MINILM, *[(EMBEDDER, "fp32")] * 3)),  # with sentence-transformers, and as DPR's two encoders
    "04": Load((MINILM,)),  # the RAG model stays on the CPU
    "05": Load(CHAT, chats=True),
    "06": Load((*CHAT, (RERANKER, "fp16")), chats=True),
    "07": Load((*CHAT, SMOL), chats=True),  # the second one is the judge
    "08": Load((SMALL, (EMBEDDER, "fp32")), trains=("small-lm", 4, 512)),
    "09": Load((SMOL, SMOL, SMOL), trains=("smollm2-135m-instruct", 0, 4 * 180)),
    "10": Load((COURSE, COURSE, COURSE), trains=("course-lm", 0, 8 * 140)),
    "11": Load((COURSE, COURSE, COURSE, MINILM), contexts=2),  # the server has a copy, and a context of its own
    "12": Load(CHAT, chats=True),
}


def embedding_gb() -> float:
    """Returns the GB that one batch of the embedder keeps: hidden vectors, both halves of the MLP in 16 bits, the result in 32."""
    shape: Any = catalog.get(EMBEDDER).architecture
    return TOKENS_PER_BATCH["cuda"] * (2 * (6 * shape.hidden_size + 2 * shape.intermediate_size) + 4 * shape.hidden_size) / 1e9


def training_gb(key: str, copies: int, tokens: int) -> float:
    """Returns the GB of activations and scores for a batch of `tokens`, and of `copies` sets of gradients and AdamW averages in fp32.

    13.4 bytes per token, layer and unit of width: measured in notebook 09. Scores: 16 bits, 32 bits and their gradient.
    """
    card = catalog.get(key)
    shape: Any = card.architecture
    activations = 13.4 * tokens * shape.layers * (shape.hidden_size + shape.intermediate_size)
    return (activations + 10 * tokens * shape.vocab_size + 16 * copies * card.parameters) / 1e9


def memory_gb(load: Load) -> float:
    """Returns the GB of the GPU that a notebook takes at most."""
    weights = sum(catalog.get(key).memory_gb(precision) for key, precision in load.models)
    cache = catalog.get(LLM).kv_cache_gb(CHAT_TOKENS) if load.chats else 0.0
    training = training_gb(*load.trains) if load.trains else 0.0
    total = HEADROOM * weights + cache + training + load.contexts * CONTEXT_GB + (embedding_gb() if load.embeds else 0.0)
    return math.ceil(2 * total) / 2


def pass_seconds(batched: bool) -> float:
    """Returns the seconds of one decoding pass of the profile's LLM in NF4: launches, and reading the weights."""
    card = catalog.get(LLM)
    size = BATCHED_NF4_BYTES * card.parameter_groups.linear if batched else 1e9 * card.memory_gb("nf4")
    return SECONDS_PER_LAYER * card.layers + size / BYTES_PER_SECOND


def llm_seconds(rows: list[dict[str, Any]]) -> float:
    """Returns the seconds of loading the profile's LLM and of the passes in `rows`, a notebook's rows of the log."""
    card = catalog.get(LLM)
    counted = [row for row in rows if int(row["parameters"]) == catalog.get("course-lm").parameters]
    read, decode = ([row for row in counted if row["kind"] == kind] for kind in ("read", "decode"))
    reads = sum(2 * card.parameters * int(row["tokens"]) / OPERATIONS_PER_SECOND for row in read)
    reads += sum(int(row["passes"]) * pass_seconds(batched=True) for row in read)  # a guess of prompt lookup, checked, is such a pass
    writes = sum(LONGER_ANSWERS * int(row["passes"]) * pass_seconds(int(row["rows"]) > int(row["passes"])) for row in decode)
    return 2 * card.parameters / BYTES_LOADED_PER_SECOND + reads + writes


def minutes(chapter: Chapter, load: Load) -> int:
    """Returns the notebook's minutes, downloads and installing not counted. Raises ValueError when its passes were not counted."""
    seconds = COLAB_CORES * 60 * chapter.minutes_cpu
    if load.chats:
        rows = [row for row in logged() if row["notebook"] == chapter.id]
        if not rows:
            raise ValueError(f"Notebook {chapter.id} is not in the log: run `python -m tools.model_passes {chapter.id}` first.")
        seconds += llm_seconds(rows)
    return math.ceil(seconds / 60)


def download_gb(load: Load) -> float:
    """Returns the GB that a fresh machine takes from the Hub; models in the repository and in packages are not counted."""
    cards = [catalog.get(key) for key in dict(load.models)]
    return round(sum(2 * card.parameters for card in cards if card.path is None) / 1e9, 1)


def estimate(chapter: Chapter) -> dict[str, float]:
    """Returns the fields of the registry that this tool computes."""
    load = LOADS[chapter.id]
    return {"minutes_t4": minutes(chapter, load), "memory_t4_gb": memory_gb(load), "download_t4_gb": download_gb(load)}


def written(text: str) -> str:
    """Returns the registry's text with the computed fields behind each notebook's memory_gb."""
    for chapter in load_registry():
        lines = "".join(f"{name} = {value:g}\n" for name, value in estimate(chapter).items())
        pattern = rf'(id = "{chapter.id}"\n(?:(?!\[\[)[^\n]*\n)*?memory_gb = [^\n]*\n)(?:\w+_t4\w* = [^\n]*\n)*'
        text = re.sub(pattern, lambda match, lines=lines: match[1] + lines, text)  # type: ignore[misc]
    return text


def main() -> None:
    """Writes the registry and shows what it says."""
    registry = NOTEBOOKS / "index.toml"
    registry.write_text(written(registry.read_text(encoding="utf-8")), encoding="utf-8")
    for chapter in load_registry():
        print(chapter.id, estimate(chapter))


if __name__ == "__main__":
    main()
