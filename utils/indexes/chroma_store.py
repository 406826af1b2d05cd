"""`ChromaStore`: the same passages and folder, searched by Chroma: inside this process, or by its server when given a `url`.

Chroma's own persistent client writes an `index_metadata.pickle` once a collection passes 1,000 rows (seen in 1.5.9), so inside this
process Chroma lives in memory and is filled from the saved vectors when the store is opened; nothing is embedded for that. A server
(`chroma run --path FOLDER`) keeps its files, that one among them, to itself: the course never reads them. `store.index` is the Chroma
collection, with the passages' text and plain metadata in it, for native `query(where=…)`.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import numpy as np

from utils.indexes.passages import Passage, plain_metadata
from utils.indexes.server import ServerStore

PAGE = 10_000  # keys listed by one request


class ChromaStore(ServerStore):
    """Passages searched by a Chroma collection (HNSW, cosine space)."""

    store = "chroma"
    engine = "Chroma"
    remedy = "Start it with: chroma run --path FOLDER --host 127.0.0.1 --port PORT."

    def _make_client(self) -> Any:
        """Return the client, with Chroma's own settings, because in-memory clients of two settings cannot live in one process.

        `import utils` turns Chroma's telemetry off.
        """
        import chromadb

        if self.url is None:
            return chromadb.EphemeralClient()
        parts = urlsplit(self.url)
        secure = parts.scheme == "https"
        return chromadb.HttpClient(parts.hostname or "", parts.port or (443 if secure else 80), ssl=secure)

    def _connect(self, dimension: int) -> Any:
        """Return the collection, made if missing, without Chroma's default embedding model."""
        space: Any = {"hnsw": {"space": "cosine"}}
        collection = self.client.get_or_create_collection(self.collection, configuration=space, embedding_function=None)
        self._check_shape(dimension, None, collection.configuration_json["hnsw"]["space"])
        return collection

    def _list_keys(self, handle: Any) -> set[str]:
        """Return the ids in the collection."""
        keys: set[str] = set()
        for first in range(0, handle.count(), PAGE):
            keys.update(handle.get(include=[], limit=PAGE, offset=first)["ids"])
        return keys

    def _upsert(self, handle: Any, keys: list[str], passages: list[Passage], vectors: np.ndarray) -> None:
        """Store one batch."""
        texts, metadata = [passage.text for passage in passages], [plain_metadata(passage) for passage in passages]
        handle.upsert(ids=keys, embeddings=vectors, documents=texts, metadatas=metadata)

    def _remove(self, handle: Any, keys: list[str]) -> None:
        """Delete one batch."""
        handle.delete(ids=keys)

    def _nearest(self, handle: Any, queries: np.ndarray, top_k: int) -> list[list[tuple[str, float]]]:
        """Return keys and cosine scores (one minus Chroma's cosine distance)."""
        found = handle.query(query_embeddings=queries, n_results=top_k, include=["distances"])
        return [
            [(key, 1 - distance) for key, distance in zip(*hits, strict=True)]
            for hits in zip(found["ids"], found["distances"], strict=True)
        ]
