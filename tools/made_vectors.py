"""Many vectors that behave like embeddings of text, made from few real ones, to see how indexes grow.

Each made vector is a real embedding of the handbook, perturbed by Gaussian noise of the covariance that the real ones have, and
normalised. The cosine to the real one is about COSINE: low enough that the nearest neighbours of a vector come from several real
passages (about four among its ten nearest, of 10,000), high enough that these are mostly passages near to its own in reality, too
(83 % of a perturbed question's ten nearest descend from the real question's ten nearest). Knows the handbook and MiniLM.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from utils.runtime import BUILD, DATA

WORK = BUILD / "scale"
COSINE = 0.8  # between a made vector and the real one it descends from
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


def noise_shape(real: np.ndarray) -> np.ndarray:
    """Returns the matrix (dimension, dimension) that gives white noise the covariance of `real`, and a mean squared length of 1."""
    values, directions = np.linalg.eigh(np.cov(real.T))
    values = np.clip(values, 0, None)
    return ((directions * np.sqrt(values / values.sum())) @ directions.T).astype(np.float32)


def perturb(origins: np.ndarray, shape: np.ndarray, count: int, seed: int, cosine: float = COSINE) -> np.ndarray:
    """Returns `count` float32 unit vectors; row i descends from origin i modulo their number and has about this cosine to it.

    White noise would fill all 384 dimensions, which text does not; noise with the covariance of real embeddings (`noise_shape`)
    moves a vector in directions in which texts differ, so neighbours of other origins stay possible neighbours.
    """
    vectors, length = np.empty((count, origins.shape[1]), dtype=np.float32), np.float32(np.sqrt(1 / cosine**2 - 1))
    for start in range(0, count, BLOCK):
        rows = np.arange(start, min(start + BLOCK, count))
        noise = np.random.default_rng([seed, start]).standard_normal((len(rows), len(shape)), dtype=np.float32) @ shape
        block = origins[rows % len(origins)] + length * noise
        vectors[rows] = block / np.linalg.norm(block, axis=1, keepdims=True)
    return vectors


def made_vectors(count: int, folder: Path = WORK) -> tuple[np.ndarray, np.ndarray]:
    """Returns `count` passage vectors and QUERIES query vectors."""
    passages, questions = real_embeddings(folder)
    shape = noise_shape(passages)
    return perturb(passages, shape, count, seed=1), perturb(questions, shape, QUERIES, seed=2)


def save(file: Path, array: np.ndarray) -> None:
    """Writes a .npy file whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_suffix(f".{os.getpid()}.new.npy")
    np.save(fresh, array)
    os.replace(fresh, file)
