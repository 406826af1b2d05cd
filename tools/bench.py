"""Speed of the course's code beside the plain path, in one run on this machine: ratios, because seconds differ from machine to machine.

`python -m tools.bench` prints the table and writes build/bench.json. Each benchmark does the same work both ways, on the handbook
and with the embedded models; the plain path is what the libraries do by themselves with default settings. Searching and reranking
are in `bench_search`.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from utils.runtime import BUILD, DATA

PASSAGES = 384  # enough for steady figures; the plain path takes about 14 s for it on two cores
QUESTION = "How does a key-value cache make generation faster?"


@dataclass(frozen=True)
class Comparison:
    """The same work done both ways, in seconds; `aim` is the ratio the course wants, None where the figure only informs.

    `most`: seconds that the course's way may take. `lost`: points of nDCG@10 (of 100) by which its result is worse, at most 0.5.
    """

    what: str
    plain: float
    ours: float
    aim: float | None = None
    most: float | None = None
    lost: float | None = None

    @property
    def ratio(self) -> float:
        """Returns how many times faster the course's way is."""
        return self.plain / self.ours

    @property
    def missed(self) -> list[str]:
        """Returns the aims that the course's way misses, in words."""
        slow = [f"below the aim of {self.aim:g}×"] if self.aim is not None and self.ratio < self.aim else []
        late = [f"over {self.most:g} s"] if self.most is not None and self.ours > self.most else []
        worse = [f"{self.lost:.2f} points of nDCG lost"] if self.lost is not None and self.lost > 0.5 else []
        return slow + late + worse


def timed(work: Callable[[], Any], repeats: int = 1) -> tuple[float, Any]:
    """Returns the median seconds of `repeats` runs and the last result."""
    seconds, result = [], None
    for _ in range(repeats):
        start = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[len(seconds) // 2], result


def handbook_passages() -> list[Any]:
    """Returns the first passages of the handbook."""
    from utils.corpus import load_documents, split_documents

    return split_documents(load_documents(DATA / "handbook").documents)[:PASSAGES]


def index_comparisons() -> list[Comparison]:
    """Returns building an index and coming back to it, against HuggingFaceEmbeddings in fp32 and an index made from texts."""
    from langchain_core.vectorstores import InMemoryVectorStore
    from langchain_huggingface import HuggingFaceEmbeddings

    from utils import catalog
    from utils.indexes import build_index, open_index
    from utils.models import load_embedder

    passages, ours = handbook_passages(), load_embedder()
    plain = HuggingFaceEmbeddings(model_name=str(catalog.get("minilm").path), model_kwargs={"device": "cpu"})
    for embedder in (plain, ours):
        embedder.embed_query(QUESTION)  # the first call of each pays for warming up
    plain_seconds, _ = timed(lambda: InMemoryVectorStore.from_documents(passages, plain))
    with tempfile.TemporaryDirectory() as folder:
        build_seconds, _ = timed(lambda: build_index(passages, ours, Path(folder) / "index"))
        open_seconds, _ = timed(lambda: open_index(Path(folder) / "index", ours), repeats=3)
        again_seconds, _ = timed(lambda: build_index(passages, ours, Path(folder) / "index"), repeats=3)
    return [
        Comparison(f"index of {len(passages)} passages, first time", plain_seconds, build_seconds, aim=3),
        Comparison("index again: reopened instead of built", plain_seconds, open_seconds, aim=200),
        Comparison("index again: built with nothing new", plain_seconds, again_seconds),
    ]


def generation_comparisons() -> list[Comparison]:
    """Returns the key-value cache and batching, against generating without them, with the embedded LLM."""
    import torch

    from utils.models import load_llm

    loaded = load_llm()
    model: Any = loaded.model
    tokenizer: Any = loaded.tokenizer
    tokenizer.padding_side = "left"
    prompts = [f"{QUESTION} ({number})" for number in range(8)]

    def generate(texts: list[str], **options: Any) -> Any:
        inputs = tokenizer(texts, return_tensors="pt", padding=True).to(model.device)
        with torch.inference_mode():
            return model.generate(**inputs, min_new_tokens=64, max_new_tokens=64, do_sample=False, **options)

    generate(prompts[:1])
    without, _ = timed(lambda: generate(prompts[:1], use_cache=False))
    cached, _ = timed(lambda: generate(prompts[:1]))
    one_by_one, _ = timed(lambda: [generate([prompt]) for prompt in prompts])
    batched, _ = timed(lambda: generate(prompts))
    return [
        Comparison("64 tokens with the KV cache", without, cached, aim=1),
        Comparison("8 answers as one batch", one_by_one, batched, aim=1),
    ]


def table(rows: list[Comparison]) -> str:
    """Returns the comparisons as text."""
    lines = [f"{'what':<48}{'plain s':>10}{'ours s':>10}{'ratio':>9}{'aim':>8}"]
    for row in rows:
        aim = f"≥ {row.aim:g}" if row.aim is not None else ""
        lost = [] if row.lost is None else [f"nDCG@10 {-row.lost:+.2f} points"]
        notes = "; ".join([*lost, *row.missed])
        lines.append(f"{row.what:<48}{row.plain:>10.3f}{row.ours:>10.3f}{row.ratio:>8.1f}×{aim:>8}  {notes}".rstrip())
    return "\n".join(lines)


def main() -> int:
    """Returns the exit code: 1 when an aim is missed."""
    from tools.bench_search import hybrid_comparison, reranking_comparison

    rows = [*index_comparisons(), *generation_comparisons(), reranking_comparison(), hybrid_comparison()]
    print(table(rows))
    BUILD.mkdir(exist_ok=True)
    report = [{**asdict(row), "ratio": row.ratio} for row in rows]
    (BUILD / "bench.json").write_text(json.dumps(report, indent=1, ensure_ascii=False), encoding="utf-8")
    return int(any(row.missed for row in rows))


if __name__ == "__main__":
    sys.exit(main())
