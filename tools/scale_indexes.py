"""How indexes grow, measured: `python -m tools.scale_indexes` writes data/logs/scale/indexes.csv, which notebook 11 replots.

Nobody has a million handbook passages, so the vectors are made from real ones (see `made_vectors`). The kinds and their settings are
those of `utils.indexes`. Every kind and size is measured in a process of its own, so that its peak memory is its own, on one thread
pinned to one core; CPU seconds do not count what other processes take of that core. At the end all sizes of a kind are searched in turn,
so that a slow spell of the machine meets all of them. Rows are written as soon as they are measured; a run that was stopped goes on.
Reads /proc, so it runs on Linux. Knows nothing of planning: the notebook does that with the rows.

    kind, passages             flat, hnsw or ivf-pq; vectors in the index
    setting, candidates        efSearch or nprobe (0: nothing to set); how many IVF-PQ rescores by exact vectors, as FaissStore does with 40
    build_seconds, index_mb    CPU seconds of training and adding on one thread; bytes of the saved index / 10^6
    before_mb, peak_mb         memory of the process with only the vectors in it, and its highest point while building
    p50_ms, p95_ms             one query alone, rescoring included
    recall_at_10               share of the true ten nearest that were found
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tools.logs import write_csv
from tools.made_vectors import WORK, made_vectors, real_embeddings, save
from utils.indexes.faiss_kinds import make
from utils.runtime import DATA

LOG = DATA / "logs" / "scale" / "indexes.csv"
SIZES, KINDS = [1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000], ["flat", "ivf-pq", "hnsw"]
SETTINGS = {"flat": [0], "hnsw": [32, 64, 128, 256], "ivf-pq": [8, 16, 32, 64, 128]}  # efSearch, nprobe
CANDIDATES = {"flat": [10], "hnsw": [10], "ivf-pq": [10, 40, 160]}  # 10: the order of the codes stays
TOP_K, TIMED, ROUNDS, TURNS = 10, 100, 3, 40


def measure(
    kind: str, vectors: np.ndarray, queries: np.ndarray, nearest: np.ndarray, memory: bool = False, keep_in: Path | None = None
) -> list[dict[str, Any]]:
    """Returns the rows of one kind over these vectors, one per search setting; `nearest` is what `truth` returns.

    memory: also before_mb and peak_mb, which mean something in a fresh process on Linux. keep_in: a folder for the index.
    """
    import faiss

    faiss.omp_set_num_threads(1)
    before = memory_from_here() if memory else 0.0
    start = time.process_time()
    index = make(vectors, kind, {})
    built = {"build_seconds": round(time.process_time() - start, 3), "index_mb": round(saved_bytes(index) / 1e6, 4)}
    peak = {"before_mb": round(before, 1), "peak_mb": round(memory_mb("VmHWM"), 1)} if memory else {}
    if keep_in:
        faiss.write_index(index, str(index_file(keep_in, kind, len(vectors))))
    rows: list[dict[str, Any]] = []
    for setting, candidates in ways(index, kind):
        searched = _searched(index, vectors, queries, nearest, candidates)
        rows.append({"kind": kind, "passages": len(vectors), "setting": setting, "candidates": candidates} | built | peak | searched)
    return rows


def index_file(folder: Path, kind: str, count: int) -> Path:
    """Returns where the index of `count` vectors is kept until all sizes are searched in turn."""
    return folder / f"{kind}_{count}.faiss"


def ways(index: Any, kind: str) -> Iterator[tuple[int, int]]:
    """Yields the settings and numbers of candidates to search `index` with, set before each."""
    for setting in SETTINGS[kind]:
        if kind != "ivf-pq" or setting <= index.nlist:
            turn(index, kind, setting)
            yield from ((setting, candidates) for candidates in CANDIDATES[kind])


def turn(index: Any, kind: str, setting: int) -> None:
    """Sets the knob between speed and recall."""
    if kind == "hnsw":
        index.hnsw.efSearch = setting
    elif kind == "ivf-pq":
        index.nprobe = setting


def search(index: Any, vectors: np.ndarray, queries: np.ndarray, candidates: int) -> np.ndarray:
    """Returns the rows of the best TOP_K, shape (queries, TOP_K); more candidates than that are ranked by their exact vectors."""
    rows = index.search(queries, min(candidates, len(vectors)))[1]
    if candidates == TOP_K:
        return rows
    exact = np.einsum("qkd,qd->qk", vectors[rows], queries)
    exact[rows < 0] = -np.inf
    return np.take_along_axis(rows, np.argsort(-exact, axis=1)[:, :TOP_K], axis=1)


def _searched(index: Any, vectors: np.ndarray, queries: np.ndarray, nearest: np.ndarray, candidates: int) -> dict[str, float]:
    """Returns p50_ms and p95_ms in the quietest of ROUNDS rounds of single queries, and recall_at_10 of all queries at once."""
    found = search(index, vectors, queries, candidates)  # warms up, too
    rounds = np.array_split(queries[: ROUNDS * TIMED], ROUNDS)
    quietest = min((milliseconds(index, vectors, one, candidates) for one in rounds), key=np.median)
    recall = np.mean([len(set(a) & set(b)) / TOP_K for a, b in zip(found, nearest)])
    return percentiles(quietest) | {"recall_at_10": round(float(recall), 4)}


def milliseconds(index: Any, vectors: np.ndarray, queries: np.ndarray, candidates: int) -> list[float]:
    """Returns how long each query takes alone."""
    taken = []
    for query in queries:
        start = time.perf_counter()
        search(index, vectors, query[None], candidates)
        taken.append(1000 * (time.perf_counter() - start))
    return taken


def percentiles(taken: list[float]) -> dict[str, float]:
    """Returns p50_ms and p95_ms of these milliseconds."""
    return {name: round(float(np.percentile(taken, share)), 4) for name, share in (("p50_ms", 50), ("p95_ms", 95))}


def search_in_turn(kind: str, sizes: list[int], folder: Path) -> list[dict[str, Any]]:
    """Returns p50_ms and p95_ms of the kept indexes of one kind: a few queries go through all sizes before the next few."""
    import faiss

    faiss.omp_set_num_threads(1)
    vectors, queries = made_vectors(max(sizes), folder)  # a smaller set is the beginning of a larger one
    indexes = {count: faiss.read_index(str(index_file(folder, kind, count))) for count in sizes}
    taken = defaultdict[tuple[int, int, int], list[float]](list)
    for few in np.array_split(queries, TURNS):
        for count, index in indexes.items():
            for way in ways(index, kind):
                taken[count, *way] += milliseconds(index, vectors[:count], few, way[1])
    names = ("passages", "setting", "candidates")
    return [{"kind": kind} | dict(zip(names, key)) | percentiles(found) for key, found in taken.items()]


def truth(vectors: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Returns the rows of the TOP_K vectors that are truly nearest to each query, shape (queries, TOP_K)."""
    return make(vectors, "flat", {}).search(queries, TOP_K)[1]


def known_truth(vectors: np.ndarray, queries: np.ndarray, folder: Path) -> np.ndarray:
    """Returns `truth`, from `folder` once it has been found for this number of vectors."""
    file = folder / f"nearest_{len(vectors)}.npy"
    if not file.is_file():
        save(file, truth(vectors, queries))
    return np.load(file)


def saved_bytes(index: Any) -> int:
    """Returns how many bytes `faiss.write_index` writes, without a file or a copy."""
    import faiss

    sizes: list[int] = []
    writer = faiss.PyCallbackIOWriter(lambda piece: sizes.append(len(piece)))  # type: ignore[attr-defined]
    faiss.write_index(index, writer)
    del writer  # hands over what it has buffered
    return sum(sizes)


def memory_from_here() -> float:
    """Returns the MB in use, and makes them the highest point so far."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return memory_mb("VmRSS")


def memory_mb(field: str) -> float:
    """Returns VmRSS (now) or VmHWM (highest so far) of this process in MB of 10^6 bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(field + ":"))


def read_rows(log: Path) -> list[dict[str, str]]:
    """Returns the rows measured so far."""
    if not log.is_file():
        return []
    with log.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def in_own_process(job: str, kind: str, sizes: list[int], folder: Path) -> list[dict[str, Any]]:
    """Returns the rows of a job from a fresh process; raises CalledProcessError, with its message shown, when that fails."""
    counts = [str(count) for count in sizes]
    command = [sys.executable, "-m", "tools.scale_indexes", "--job", job, "--kinds", kind, "--folder", str(folder), "--sizes", *counts]
    environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def run_job(job: str, kind: str, sizes: list[int], folder: Path) -> list[dict[str, Any]]:
    """Returns the rows of one kind: built and searched at the first size, or searched in turn at all of them."""
    if job == "search":
        return search_in_turn(kind, sizes, folder)
    vectors, queries = made_vectors(sizes[0], folder)
    return measure(kind, vectors, queries, known_truth(vectors, queries, folder), memory=True, keep_in=folder)


def with_times(rows: list[Any], times: list[dict[str, Any]]) -> list[Any]:
    """Returns the rows with the milliseconds of `times` where these have them."""
    key = ("kind", "passages", "setting", "candidates")
    known = {tuple(str(row[name]) for name in key): row for row in times}
    return [row | known.get(tuple(str(row[name]) for name in key), {}) for row in rows]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Returns the options."""
    parser = argparse.ArgumentParser(prog="python -m tools.scale_indexes", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--job", choices=["build", "search"], help="do only this, in this process, and print the rows as JSON")
    parser.add_argument("--log", type=Path, default=LOG)
    parser.add_argument("--folder", type=Path, default=WORK, help="keeps embeddings, true neighbours and indexes")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measures what the log or the kept indexes lack, then searches all sizes of a kind in turn."""
    args = parse(arguments)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    if args.job:
        print(json.dumps(run_job(args.job, args.kinds[0], args.sizes, args.folder)))
        return
    real_embeddings(args.folder)
    for kind in args.kinds:
        for count in args.sizes:
            rows: list[Any] = list(read_rows(args.log))
            measured = any((row["kind"], int(row["passages"])) == (kind, count) for row in rows)
            if not measured or not index_file(args.folder, kind, count).is_file():
                others = [row for row in rows if (row["kind"], int(row["passages"])) != (kind, count)]
                write_csv(args.log, others + (new := in_own_process("build", kind, [count], args.folder)))
                print(json.dumps(new[0]), flush=True)
        write_csv(args.log, with_times(list(read_rows(args.log)), in_own_process("search", kind, args.sizes, args.folder)))


if __name__ == "__main__":
    main()
