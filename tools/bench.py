"""Speed of the course's code beside the plain path, in one run on this machine: ratios, because seconds differ from machine to machine.

`python -m tools.bench` takes about ten minutes, prints the table and writes it to build/bench with a picture and a JSON file that
describes the machine; `--keep` puts the JSON into data/logs/bench, too. Each benchmark does the same work both ways, on the handbook and
with the embedded models; the plain path is what the libraries do by themselves with default settings. Generating is in
`bench_generation`, searching and reranking in `bench_search`; memory, training and cold starts in `bench_models`.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from utils.runtime import BUILD, DATA, report

PASSAGES = 384  # enough for steady figures; the plain path takes about 14 s for it on two cores
QUESTION = "How does a key-value cache make generation faster?"


@dataclass(frozen=True)
class Comparison:
    """The same work done both ways, in `unit`; `aim` is the ratio the course wants, None where the figure only informs.

    `plain`: None where there is nothing to compare with. `most`: what the course's way may take. `lost`: points of nDCG@10 (of 100) by
    which its result is worse, at most 0.5.
    """

    what: str
    plain: float | None
    ours: float
    aim: float | None = None
    most: float | None = None
    lost: float | None = None
    unit: str = "s"

    @property
    def ratio(self) -> float | None:
        """Returns how many times less the course's way takes."""
        return None if self.plain is None else self.plain / self.ours

    @property
    def missed(self) -> list[str]:
        """Returns the aims that the course's way misses, in words."""
        slow = [f"below the aim of {self.aim:.3g}×"] if self.aim is not None and self.ratio is not None and self.ratio < self.aim else []
        late = [f"over {self.most:g} {self.unit}"] if self.most is not None and self.ours > self.most else []
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
        Comparison(f"index of {len(passages)} passages, first time", plain_seconds, build_seconds, aim=4),
        Comparison("index again: reopened instead of built", plain_seconds, open_seconds),
        Comparison("index again: built with nothing new", plain_seconds, again_seconds),
    ]


def table(rows: list[Comparison]) -> str:
    """Returns the comparisons as text."""
    lines = [f"{'what':<48}{'plain':>10}{'ours':>10}{'':<4}{'ratio':>9}{'aim':>8}"]
    for row in rows:
        plain, ratio = ("", "") if row.plain is None else (f"{row.plain:.3f}", f"{row.ratio:.1f}×")
        aim = f"≥ {row.aim:.3g}" if row.aim is not None else f"≤ {row.most:g}" if row.most is not None else ""
        lost = [] if row.lost is None else [f"nDCG@10 {-row.lost:+.2f} points"]
        notes = "; ".join([*lost, *row.missed])
        lines.append(f"{row.what:<48}{plain:>10}{row.ours:>10.3f} {row.unit:<3}{ratio:>9}{aim:>8}  {notes}".rstrip())
    return "\n".join(lines)


def picture(rows: list[Comparison], path: Path) -> None:
    """Draws the ratios as bars beside their aims, on a logarithmic axis, and writes them as PNG."""
    import matplotlib.pyplot as plt

    from utils.plots import COLORS, use_course_style

    use_course_style()
    compared = [row for row in rows if row.ratio is not None][::-1]
    ax = plt.subplots(figsize=(9, 0.4 * len(compared) + 1.2))[1]
    bars = ax.barh([row.what for row in compared], [row.ratio or 0 for row in compared], color=COLORS[0])
    ax.bar_label(bars, labels=[f" {row.ratio:.1f}×" for row in compared])
    for place, row in enumerate(compared):
        if row.aim is not None:
            ax.plot([row.aim, row.aim], [place - 0.4, place + 0.4], color="black", linewidth=2, label=None if place else "aim")
    ax.axvline(1, color="black", linestyle="--", linewidth=1, label="the plain path")
    ax.set(xscale="log", xlabel="times less time or memory than the plain path")
    ax.legend(loc="lower right")
    ax.figure.savefig(path, bbox_inches="tight")  # type: ignore[union-attr]


def write(rows: list[Comparison], keep: bool) -> None:
    """Writes table, picture and figures to build/bench; with `keep` the figures to data/logs/bench, too."""
    folder = BUILD / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.txt").write_text(f"{table(rows)}\n\n{report()}\n", encoding="utf-8")
    picture(rows, folder / "bench.png")
    figures = [{**asdict(row), "ratio": row.ratio, "missed": row.missed} for row in rows]
    text = json.dumps({"date": str(date.today()), "machine": report().splitlines(), "rows": figures}, indent=1, ensure_ascii=False)
    for place in [folder, DATA / "logs" / "bench"] if keep else [folder]:
        place.mkdir(parents=True, exist_ok=True)
        name = "bench.json" if place == folder else f"{date.today()}.json"
        (place / name).write_text(text + "\n", encoding="utf-8")


def main() -> int:
    """Returns the exit code: 1 when an aim is missed."""
    from tools.bench_generation import generation_comparisons
    from tools.bench_models import cold_starts, nf4_comparison, qlora_comparisons
    from tools.bench_search import reopening_comparison, reranking_comparison, search_comparisons

    parser = argparse.ArgumentParser(prog="python -m tools.bench", description="Speed beside the plain path, in one run.")
    parser.add_argument("--keep", action="store_true", help="keep the figures under data/logs/bench")
    keep = parser.parse_args().keep
    rows = [*index_comparisons(), reopening_comparison(), *generation_comparisons(), reranking_comparison(), *search_comparisons()]
    rows += [*qlora_comparisons(), nf4_comparison(), *cold_starts()]
    print(table(rows))
    write(rows, keep)
    return int(any(row.missed for row in rows))


if __name__ == "__main__":
    sys.exit(main())
