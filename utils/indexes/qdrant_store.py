"""`QdrantStore`: the same passages and folder, searched by Qdrant: inside this process, or by a server when given a `url`.

qdrant-client's local files hold pickled points (seen in 1.20), so inside this process Qdrant lives in memory and is filled from the
saved vectors when the store is opened; nothing is embedded for that. `store.index` is the `QdrantClient`. A server that asks for a
key gets the one in QDRANT_API_KEY.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from utils.indexes.passages import Passage
from utils.indexes.server import ServerStore

PAGE = 1000  # keys listed by one request
TIMEOUT = 30  # seconds a request may take


class QdrantStore(ServerStore):
    """Passages searched by a Qdrant collection (cosine distance; exact in this process, a graph on a server)."""

    store = "qdrant"
    engine = "Qdrant"
    key_variable = "QDRANT_API_KEY"
    remedy = "Start it, for example with: docker run -p 6333:6333 qdrant/qdrant."

    def _make_client(self) -> Any:
        """Return a client that has seen the server, or one in memory."""
        from qdrant_client import QdrantClient

        if self.url is None:
            return QdrantClient(":memory:")
        key = os.environ.get(self.key_variable)
        client = QdrantClient(url=self.url, api_key=key, timeout=TIMEOUT, check_compatibility=False)
        client.get_collections()  # in place of the check of versions, which warns where the server is away
        return client

    def _connect(self, dimension: int) -> Any:
        """Return the client; the collection is made if missing."""
        from qdrant_client import models

        if not self.client.collection_exists(self.collection):
            self.client.create_collection(self.collection, models.VectorParams(size=dimension, distance=models.Distance.COSINE))
        params = self.client.get_collection(self.collection).config.params.vectors
        self._check_shape(dimension, getattr(params, "size", "several"), getattr(getattr(params, "distance", None), "value", "several"))
        return self.client

    def _list_keys(self, handle: Any) -> set[str]:
        """Return the ids of the points."""
        keys: set[str] = set()
        following: Any = None
        while True:
            points, following = handle.scroll(self.collection, limit=PAGE, offset=following, with_payload=False, with_vectors=False)
            keys.update(str(point.id) for point in points)
            if following is None:
                return keys

    def _upsert(self, handle: Any, keys: list[str], passages: list[Passage], vectors: np.ndarray) -> None:
        """Store one batch; the payload has LangChain's keys, so that `langchain-qdrant` reads it too."""
        from qdrant_client import models

        payloads = [{"id": passage.id, "page_content": passage.text, "metadata": passage.metadata} for passage in passages]
        points = [
            models.PointStruct(id=key, vector=vector.tolist(), payload=payload)
            for key, vector, payload in zip(keys, vectors, payloads, strict=True)
        ]
        handle.upsert(self.collection, points, wait=True)

    def _remove(self, handle: Any, keys: list[str]) -> None:
        """Delete one batch."""
        from qdrant_client import models

        handle.delete(self.collection, models.PointIdsList(points=list(keys)), wait=True)

    def _nearest(self, handle: Any, queries: np.ndarray, top_k: int) -> list[list[tuple[str, float]]]:
        """Return keys and cosine scores."""
        answers = [handle.query_points(self.collection, query.tolist(), limit=top_k, with_payload=False) for query in queries]
        return [[(str(point.id), point.score) for point in answer.points] for answer in answers]
