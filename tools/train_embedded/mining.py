"""Hard negatives and a teacher: for each query the passages that hybrid search finds, scored by late interaction.

The lists are what a reranker is given at inference: the 20 best of reciprocal rank fusion over MiniLM's vectors and BM25. The teacher's
score is the standardised MaxSim plus half the standardised fusion score, which orders such lists well without any training
(`utils.reranking.LateInteractionReranker`). Vectors live only while their pool is mined.
"""

import gzip
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
from tqdm import tqdm

from tools.train_embedded.ranking import Pool
from utils.reranking import TokenEmbedder, max_sim, standardized
from utils.retrieval import reciprocal_rank_fusion, tokenize

DEPTH = 20
FUSION_WEIGHT = 0.5


def mined(pool: Pool, embedder: TokenEmbedder, depth: int = DEPTH) -> Iterator[dict[str, Any]]:
    """One row per query whose gold passage is among the `depth` found: query, passages (the gold one first), teacher's scores."""
    vectors = [one.astype(np.float16) for one in embedder.token_embeddings(pool.passages)]
    means = np.stack([_mean(one) for one in vectors])
    words = bm25s.BM25()
    words.index([tokenize(text) or ["-"] for text in pool.passages], show_progress=False)
    asked = embedder.token_embeddings([query.text for query in pool.queries])
    for query, tokens in zip(pool.queries, asked):
        terms = tokenize(query.text)
        lexical = words.get_scores(terms) if terms else np.zeros(len(means), dtype=np.float32)
        fused = reciprocal_rank_fusion([_best(means @ _mean(tokens)), _best(np.where(lexical > 0, lexical, -np.inf))])
        found = [place for place in fused if place == query.gold or place not in query.also][:depth]
        if query.gold not in found or len(found) < 2:
            continue
        late = max_sim(tokens, [vectors[place] for place in found])
        teacher = standardized(late) + FUSION_WEIGHT * standardized([fused[place] for place in found])
        first = found.index(query.gold)
        order = [first, *(place for place in range(len(found)) if place != first)]
        yield {
            "pool": pool.name,
            "share": pool.share,
            "query": query.text,
            "passages": [found[place] for place in order],
            "teacher": [round(float(teacher[place]), 3) for place in order],
        }


def _mean(vectors: np.ndarray) -> np.ndarray:
    """The direction of the mean token, which ranks like the sentence's own vector; zeros for an empty text."""
    mean = vectors.astype(np.float32).mean(axis=0) if len(vectors) else np.zeros(vectors.shape[1], dtype=np.float32)
    return mean / max(float(np.linalg.norm(mean)), 1e-6)


def _best(scores: np.ndarray, depth: int = 50) -> list[int]:
    """The places of the `depth` largest finite scores, (passages,), best first."""
    return [int(place) for place in np.argsort(-scores, kind="stable")[:depth] if np.isfinite(scores[place])]


def write(pools: Iterable[Pool], embedder: TokenEmbedder, folder: Path) -> None:
    """Writes the lists and the passages they point to, so that a run that resumes need not mine again."""
    passages: list[str] = []
    with gzip.open(folder / "lists.new", "wt", encoding="utf-8") as handle:
        for pool in tqdm(list(pools), desc="mining"):
            rows = list(mined(pool, embedder))
            for row in rows:
                row["passages"] = [place + len(passages) for place in row["passages"]]
                handle.write(json.dumps(row) + "\n")
            passages += pool.passages
            print(
                f"{pool.name}: {len(pool.passages)} passages, {len(rows)} of {len(pool.queries)} queries with their passage found",
                flush=True,
            )
    with gzip.open(folder / "passages.jsonl.gz", "wt", encoding="utf-8") as handle:
        handle.writelines(json.dumps(text) + "\n" for text in passages)
    (folder / "lists.new").rename(folder / "lists.jsonl.gz")


def read(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The lists and the passages that `write` wrote."""
    lists, passages = (
        [json.loads(line) for line in gzip.open(folder / name, "rt", encoding="utf-8")] for name in ("lists.jsonl.gz", "passages.jsonl.gz")
    )
    return lists, passages
