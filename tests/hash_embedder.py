"""A real, tiny embedder for tests: each word is hashed to a fixed vector and a text is the sum. Counts what it embeds."""

import hashlib
import time

import numpy as np
from langchain_core.embeddings import Embeddings


class HashEmbedder(Embeddings):
    """Deterministic on every machine; `delay` seconds per text make a build slow enough to be killed or waited for."""

    def __init__(self, dimension: int = 32, id: str = "hash-words", digest: str = "v1", delay: float = 0.0) -> None:
        self.id, self.digest, self.dimension, self.delay = id, digest, dimension, delay
        self.embedded: list[str] = []

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.embedded += texts
        time.sleep(self.delay * len(texts))
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        vectors = [self._word(word) for word in text.lower().split()]
        return np.sum(vectors, axis=0).tolist() if vectors else [0.0] * self.dimension

    def _word(self, word: str) -> np.ndarray:
        digest = hashlib.shake_256(word.encode()).digest(self.dimension)
        return np.frombuffer(digest, dtype=np.uint8).astype(np.float32) - 127.5
