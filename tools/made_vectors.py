"""Many vectors that behave like embeddings of text, grown from few real ones, to see how indexes grow.

A corpus grows by texts that vary others: so each new vector is a vector that is already there, moved in the direction in which two
others differ, and normalised. Because every vector may be varied in turn, the crowd looks alike at every size. (Noise around the few
real vectors alone does not: a thousand near copies of each crowd together, graphs thin out, and recall falls for no other reason.)
COSINE was chosen so that HNSW graphs make as many comparisons at 100,000 as over MiniLM's embeddings of real sentences
(`data/logs/scale/real_graphs.csv`).
Knows the handbook and MiniLM.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from utils.runtime import BUILD, DATA

WORK = BUILD / "scale"
COSINE = 0.87  # between a made vector and the one it varies, in the median
QUERIES = 400
BLOCK = 8192  # vectors made from one seed, so that a smaller set is the beginning of a larger one


def real_embeddings(folder: Path = WORK) -> tuple[np.ndarray, np.ndarray]:
    """Returns MiniLM's unit vectors of the handbook's passages and of its answerable questions, from `folder` once they are there."""
    files = [folder / "passages.npy", folder / "questions.npy"]
    if not all(file.is_file() for file in files):
        from utils.corpus import load_documents, split_documents
        from utils.models import load_embedder
        from utils.questions import load_questions

        passages = [one.page_content for one in split_documents(load_documents(DATA / "handbook").documents)]
        questions = [row["question"] for row in load_questions("handbook") if row["support"]]
        for file, texts in zip(files, (passages, questions)):
            save(file, load_embedder().encode(texts))
    return np.load(files[0]), np.load(files[1])


def grow(real: np.ndarray, count: int, seed: int = 1, cosine: float = COSINE) -> tuple[np.ndarray, np.ndarray]:
    """Returns `count` float32 unit vectors, shape (count, dimension), and for each the row of `real` it descends from, shape (count,).

    The first are the real ones. Each later one is `varied`: an earlier vector, moved as far as makes its cosine to that one `cosine`.
    """
    vectors, roots = np.empty((count, real.shape[1]), dtype=np.float32), np.empty(count, dtype=np.int64)
    known = min(len(real), count)
    vectors[:known], roots[:known] = real[:known], np.arange(known)
    while known < count:
        draw, block = np.random.default_rng([seed, known]), min(BLOCK, known)
        parents = draw.integers(0, known, block)
        fresh = varied(vectors[parents], vectors[:known], draw, cosine)
        end = min(known + block, count)
        vectors[known:end], roots[known:end] = fresh[: end - known], roots[parents[: end - known]]
        known = end
    return vectors, roots


def varied(vectors: np.ndarray, others: np.ndarray, draw: np.random.Generator, cosine: float) -> np.ndarray:
    """Returns each of `vectors`, moved in the direction in which two of `others` differ, at unit length."""
    one = draw.integers(0, len(others), len(vectors))
    another = (one + draw.integers(1, len(others), len(vectors))) % len(others)  # never the same
    moved = others[one] - others[another]
    moved *= np.float32(np.sqrt(1 / cosine**2 - 1)) / np.linalg.norm(moved, axis=1, keepdims=True)
    moved += vectors
    return moved / np.linalg.norm(moved, axis=1, keepdims=True)


def made_vectors(count: int, folder: Path = WORK) -> tuple[np.ndarray, np.ndarray]:
    """Returns `count` passage vectors, grown from the handbook's, and the vectors of QUERIES of its questions, as they are."""
    passages, questions = real_embeddings(folder)
    return grow(passages, count)[0], questions[:QUERIES]


def save(file: Path, array: np.ndarray) -> None:
    """Writes a .npy file whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_suffix(f".{os.getpid()}.new.npy")
    np.save(fresh, array)
    os.replace(fresh, file)
