"""`QdrantStore`: the same passages and folder, searched by Qdrant running inside this process.

qdrant-client's local files hold pickled points (seen in 1.20), so here Qdrant lives in memory and is filled from the saved vectors
when the store is opened; nothing is embedded for that. `store.index` is the `QdrantClient`; its collection is called "passages".
"""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np

from utils.indexes.passages import Contents, Passage
from utils.indexes.search import State
from utils.indexes.store import PassageStore

COLLECTION = "passages"
BATCH = 1000


class QdrantStore(PassageStore):
    """Passages searched by an in-process Qdrant collection (cosine distance; exact, because local mode has no graph)."""

    store = "qdrant"

    def _change_index(self, old: State, new: Contents) -> Any:
        """Return the client, made if missing, with changed passages upserted and missing ones deleted."""
        from qdrant_client import models

        client = old.index if old.index is not None else self._new_client(new.vectors.shape[1])
        changed, gone = new.changes_from(old.contents if old.index is not None else None)
        if gone:
            client.delete(COLLECTION, models.PointIdsList(points=[_point_id(key) for key in gone]))
        for first in range(0, len(changed), BATCH):
            rows = changed[first : first + BATCH]
            points = [_point(new.passages[row], new.vectors[row]) for row in rows]
            client.upsert(COLLECTION, points)
        return client

    def _new_client(self, dimension: int) -> Any:
        """Return a client with an empty collection in memory."""
        from qdrant_client import QdrantClient, models

        client = QdrantClient(":memory:")
        client.create_collection(COLLECTION, models.VectorParams(size=dimension, distance=models.Distance.COSINE))
        return client

    def _search_index(self, state: State, queries: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return cosine scores and rows; padded with -1 where a query found fewer."""
        scores = np.full((len(queries), top_k), -1, np.float32)
        rows = np.full((len(queries), top_k), -1, np.int64)
        for number, query in enumerate(queries):
            points = state.index.query_points(COLLECTION, query.tolist(), limit=top_k, with_payload=["id"]).points
            scores[number, : len(points)] = [point.score for point in points]
            rows[number, : len(points)] = [state.contents.row_of.get(point.payload["id"], -1) for point in points]
        return scores, rows


def _point_id(key: str) -> str:
    """Return the UUID of a passage id; Qdrant takes nothing else but numbers."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, key))


def _point(passage: Passage, vector: np.ndarray) -> Any:
    """Return a Qdrant point whose payload has LangChain's keys, so that `langchain-qdrant` reads it too."""
    from qdrant_client import models

    payload = {"id": passage.id, "page_content": passage.text, "metadata": passage.metadata}
    return models.PointStruct(id=_point_id(passage.id), vector=vector.tolist(), payload=payload)
