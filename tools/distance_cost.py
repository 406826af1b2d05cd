"""What comparing two vectors costs while an index grows: `python -m tools.distance_cost` writes data/logs/scale/distances.csv.

The planner of notebook 11 counts comparisons; this tool measures what one takes, without any index, so that the size from which a law
holds is known before the law is checked. Runs on one thread, in CPU seconds. Knows FAISS and the graphs that `scale_indexes` keeps.

    passages                  vectors of DIMENSION floats in memory
    in_order_ns, random_ns    one comparison, where all vectors are read in order (exact search), or single ones anywhere (a graph)
    code_book_ns              one comparison of a part of 8 floats with a centroid, in k-means over min(passages, 65,536) rows
    distances, links          of the HNSW graph, where it was kept: comparisons of a query at efSearch 128; links per vector

`--vectors FILE.npy` counts the graphs over your own unit vectors instead, whose last QUERIES rows ask: comparisons, links, and
recall@10. data/logs/scale/real_graphs.csv holds that for MiniLM's embeddings of 300,000 sentences from open English texts, the
training data of the course's models, which it does not ship. So made vectors stand beside real ones.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tools.logs import write_csv
from tools.made_vectors import QUERIES, WORK, made_vectors
from tools.scale_indexes import SIZES, TOP_K, index_file, truth
from utils.indexes.faiss_kinds import make
from utils.runtime import DATA

LOG = DATA / "logs" / "scale" / "distances.csv"
DIMENSION, PART, CENTROIDS, SAMPLE = 384, 8, 256, 65_536
LOOKS, ROUNDS = 40_000, 20  # comparisons with single vectors in a round; the quietest round counts
EF_SEARCH = 128


def nanoseconds(work: Callable[[], Any], comparisons: int) -> float:
    """Returns the CPU time of one of the comparisons that `work` makes, in the quietest of ROUNDS rounds."""
    taken = []
    for _ in range(ROUNDS):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return round(1e9 * min(taken) / comparisons, 2)


def costs(count: int) -> dict[str, float]:
    """Returns in_order_ns, random_ns and code_book_ns for `count` vectors."""
    import faiss

    vectors, query = np.ones((count, DIMENSION), np.float32), np.ones((1, DIMENSION), np.float32)
    draw = np.random.default_rng(0)
    rows, found = draw.integers(0, count, (1, LOOKS)), np.empty((1, LOOKS), np.float32)
    places = [faiss.swig_ptr(array) for array in (found, query, vectors, rows)]  # type: ignore[attr-defined]
    parts = draw.standard_normal((min(count, SAMPLE), PART), dtype=np.float32)

    def code_book() -> None:
        means = faiss.Clustering(PART, CENTROIDS)
        means.niter, means.min_points_per_centroid = 1, 1
        means.train(parts, faiss.IndexFlatL2(PART))

    looks, metric = max(1, LOOKS // count), faiss.METRIC_INNER_PRODUCT
    return {
        "in_order_ns": nanoseconds(lambda: [faiss.knn(query, vectors, TOP_K, metric) for _ in range(looks)], looks * count),
        "random_ns": nanoseconds(lambda: faiss.fvec_inner_products_by_idx(*places, DIMENSION, 1, LOOKS), LOOKS),  # type: ignore[attr-defined]
        "code_book_ns": nanoseconds(code_book, len(parts) * CENTROIDS),
    }


def graph(count: int, folder: Path) -> dict[str, float]:
    """Returns distances and links of the HNSW graph that `folder` keeps, nothing where there is none."""
    import faiss

    if not index_file(folder, "hnsw", count).is_file():
        return {}
    index: Any = faiss.read_index(str(index_file(folder, "hnsw", count)))
    return graph_work(index, made_vectors(1, folder)[1])


def graph_work(index: Any, queries: np.ndarray) -> dict[str, float]:
    """Returns the comparisons that a query costs an HNSW index at EF_SEARCH, and the links per vector of its graph."""
    import faiss

    counter: Any = faiss.cvar.hnsw_stats  # type: ignore[attr-defined]
    index.hnsw.efSearch = EF_SEARCH
    counter.reset()
    index.search(queries, TOP_K)
    links = np.count_nonzero(faiss.vector_to_array(index.hnsw.neighbors) >= 0)
    return {"distances": round(counter.ndis / len(queries)), "links": round(links / index.ntotal, 1)}


def graph_over(vectors: np.ndarray, queries: np.ndarray) -> dict[str, float]:
    """Returns `graph_work` and recall_at_10 of an HNSW index of these unit vectors."""
    index = make(vectors, "hnsw", {})
    work, found = graph_work(index, queries), index.search(queries, TOP_K)[1]
    recall = np.mean([np.isin(some, true).mean() for some, true in zip(found, truth(vectors, queries))])
    return work | {"recall_at_10": round(float(recall), 4)}


def main(arguments: list[str] | None = None) -> None:
    """Measures every size and writes the log."""
    import faiss

    parser = argparse.ArgumentParser(prog="python -m tools.distance_cost", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--log", type=Path, default=LOG)
    parser.add_argument("--folder", type=Path, default=WORK, help="where scale_indexes keeps its graphs")
    parser.add_argument("--vectors", type=Path, help="a .npy file of your own unit vectors, one per row; needs a --log of its own")
    args = parser.parse_args(arguments)
    faiss.omp_set_num_threads(1)
    if args.vectors:
        if args.log == LOG:
            parser.error("--vectors writes other columns than the log of made vectors holds: give a --log of its own")
        own = np.load(args.vectors).astype(np.float32)
        sizes = [count for count in args.sizes if count <= len(own) - QUERIES]
        write_csv(args.log, [{"passages": count} | graph_over(own[:count], own[-QUERIES:]) for count in sizes])
        return
    empty = {"distances": "", "links": ""}
    write_csv(args.log, [{"passages": count} | costs(count) | empty | graph(count, args.folder) for count in args.sizes])


if __name__ == "__main__":
    main()
