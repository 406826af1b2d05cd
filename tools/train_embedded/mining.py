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
from utils.reranking import TokenEmbedder, max_sim
from utils.retrieval import tokenize

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
        fused = _fused(means @ _mean(tokens), lexical)
        fused[list(query.also - {query.gold})] = 0
        found = [int(place) for place in np.argsort(-fused, kind="stable")[:depth] if fused[place] > 0]
        if query.gold not in found or len(found) < 2:
            continue
        teacher = standardized(max_sim(tokens, [vectors[place] for place in found])) + FUSION_WEIGHT * standardized(fused[found])
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


def _fused(dense: np.ndarray, lexical: np.ndarray, depth: int = 50, rank_constant: int = 60) -> np.ndarray:
    """Reciprocal rank fusion of two arrays of scores, (passages,); 0 for what neither ranks within `depth`."""
    fused = np.zeros(len(dense))
    for scores in (dense, np.where(lexical > 0, lexical, -np.inf)):
        best = np.argsort(-scores, kind="stable")[:depth]
        best = best[np.isfinite(scores[best])]
        fused[best] += 1 / (rank_constant + 1 + np.arange(len(best)))
    return fused


def standardized(values: np.ndarray) -> np.ndarray:
    """`values` minus their mean, over their standard deviation."""
    return (values - values.mean()) / max(float(values.std()), 1e-9)


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
