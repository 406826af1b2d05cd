"""Embeds many passages with several workers: `python -m tools.embed_many data/handbook build/vectors --workers 2`.

The passages are cut into blocks. Each block becomes one file of vectors, written whole or not at all, so a run that was killed goes on
where it stopped. Ray Data hands the blocks to actors, which load the embedder once; where Ray is not installed, one process does the
same work and a warning says so. Ray stays on this machine: loopback only, no dashboard, no usage statistics.
Knows texts and an embedder's name; the files are the business of `vector_parts`, and nothing here knows of indexes.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tools.local_ray import local_ray
from tools.vector_parts import check_manifest, manifest, part, read_vectors, write_whole

__all__ = ["BlockEmbedder", "Report", "embed_many", "read_vectors"]

BLOCK = 64  # passages per file: a few seconds of work on one core, which is what a killed run loses
WITHOUT_RAY = "Ray is not installed, so one process embeds all blocks. `pip install 'ray[data]'` lets several workers do it."


@dataclass(frozen=True)
class Report:
    """What a run did. Seconds: from the call to its end, and of these from the first block's start to the last block's end."""

    passages: int
    blocks: int
    done_before: int
    workers: int
    seconds: float
    embedding_seconds: float
    embedded: int

    @property
    def start_seconds(self) -> float:
        """Returns the seconds that passed outside the blocks: starting Ray and the workers, and loading the embedder in each."""
        return self.seconds - self.embedding_seconds

    def __str__(self) -> str:
        speed = f", {self.embedded / self.embedding_seconds:.1f} passages/s" if self.embedded else ""
        return (
            f"{self.embedded} of {self.passages} passages embedded by {self.workers} worker(s); {self.done_before} of {self.blocks} blocks "
            f"were there before; {self.embedding_seconds:.1f} s of embedding{speed}, {self.start_seconds:.1f} s of starting"
        )


class BlockEmbedder:
    """The actor: loads the embedder once, then turns blocks of texts into files of vectors."""

    def __init__(self, folder: str, key: str | None, threads: int | None, home: str | None = None) -> None:
        if home:
            os.environ["HOME"] = home
        import torch

        from utils.models import load_embedder

        if threads:
            torch.set_num_threads(threads)
        self.folder, self.embedder = Path(folder), load_embedder(Path(key) if key and os.path.isdir(key) else key)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Returns block number, start and end in seconds since 1970, one of each; `batch` holds one block's number and texts."""
        block, start = int(batch["block"][0]), time.time()
        vectors = np.asarray(self.embedder.embed_documents(json.loads(str(batch["texts"][0]))), dtype=np.float32)
        write_whole(part(self.folder, block), lambda file: np.save(file, vectors))
        return {"block": np.array([block]), "start": np.array([start]), "end": np.array([time.time()])}


def embed_many(
    texts: Sequence[str],
    folder: str | Path,
    workers: int = 1,
    key: str | Path | None = None,
    block: int = BLOCK,
    with_ray: bool = True,
    threads: int | None = 1,
) -> Report:
    """Returns a report once `folder` holds the vectors of all `texts`; blocks that are there already are not embedded again.

    key: as for `load_embedder`. with_ray: False, or a missing Ray, means one process. threads: per worker; None leaves it to torch.
    Raises ValueError when there is nothing to embed, or `folder` holds the vectors of other texts, another embedder or block size.
    """
    if not texts or workers < 1 or block < 1:
        raise ValueError(f"{len(texts)} texts, {workers} workers, blocks of {block}: give at least one of each.")
    folder, key, began = Path(folder), str(key) if key else None, time.time()
    check_manifest(folder, manifest(texts, key, block))
    blocks = range(0, len(texts), block)
    missing = [number for number in range(len(blocks)) if not part(folder, number).is_file()]
    jobs = [{"block": n, "texts": json.dumps(list(texts[n * block : (n + 1) * block]))} for n in missing]
    if with_ray and importlib.util.find_spec("ray") is None:
        warnings.warn(WITHOUT_RAY, stacklevel=2)
        with_ray = False
    workers = min(workers, max(1, len(jobs))) if with_ray else 1
    run = _with_ray if with_ray else _alone
    times = list(run(jobs, (str(folder.resolve()), key, threads), workers)) if jobs else []
    spent = max(end for _, end in times) - min(start for start, _ in times) if times else 0.0
    embedded = sum(len(texts[n * block : (n + 1) * block]) for n in missing)
    return Report(len(texts), len(blocks), len(blocks) - len(missing), workers, time.time() - began, spent, embedded)


def _alone(jobs: list[dict[str, Any]], arguments: tuple, workers: int) -> Iterator[tuple[float, float]]:
    """Yields start and end of each block, embedded in this process."""
    worker = BlockEmbedder(*arguments)
    for job in jobs:
        done = worker({"block": [job["block"]], "texts": [job["texts"]]})
        yield float(done["start"][0]), float(done["end"][0])


def _with_ray(jobs: list[dict[str, Any]], arguments: tuple, workers: int) -> Iterator[tuple[float, float]]:
    """Yields start and end of each block, embedded by actors; a worker that dies is replaced and its block done again."""
    with local_ray(workers):
        import ray

        dataset = ray.data.from_items(jobs, override_num_blocks=len(jobs))
        actors = ray.data.ActorPoolStrategy(size=workers)
        given = (*arguments, os.environ.get("HOME"))
        done = dataset.map_batches(BlockEmbedder, fn_constructor_args=given, batch_size=1, compute=actors, num_cpus=1)
        for row in done.iter_rows():
            yield float(row["start"]), float(row["end"])


def add_row(log: Path, report: Report, engine: str, threads: int) -> None:
    """Adds what was measured to a CSV file."""
    measured = {"embedding_seconds": round(report.embedding_seconds, 2), "start_seconds": round(report.start_seconds, 2)}
    speed = round(report.embedded / report.embedding_seconds, 1) if report.embedded else 0.0
    row = {"engine": engine, "workers": report.workers, "threads": threads, "passages": report.embedded, **measured}
    log.parent.mkdir(parents=True, exist_ok=True)
    is_new = not log.is_file()
    with log.open("a", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=[*row, "passages_per_second"], lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(row | {"passages_per_second": speed})


def main(arguments: list[str] | None = None) -> None:
    """Embeds the passages of a folder of documents and prints the report."""
    from utils.corpus import load_documents, split_documents

    parser = argparse.ArgumentParser(prog="python -m tools.embed_many", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("documents", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--block", type=int, default=BLOCK)
    parser.add_argument("--max-tokens", type=int, default=160, help="tokens in a passage")
    parser.add_argument("--no-ray", action="store_true", help="one process, as where Ray is not installed")
    parser.add_argument("--threads", type=int, default=1, help="threads per worker")
    parser.add_argument("--log", type=Path, help="add a row on this run to this CSV file")
    args = parser.parse_args(arguments)
    passages = split_documents(load_documents(args.documents).documents, max_tokens=args.max_tokens)
    texts = [passage.page_content for passage in passages]
    report = embed_many(texts, args.folder, args.workers, block=args.block, with_ray=not args.no_ray, threads=args.threads)
    print(report)
    if args.log:
        add_row(args.log, report, "none" if args.no_ray else "ray", args.threads)


if __name__ == "__main__":
    main()
