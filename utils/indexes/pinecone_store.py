"""`PineconeStore`: the same passages and folder, searched by a Pinecone index (optional: `pip install "pinecone>=10"` and a key).

The local folder keeps passages, vectors and manifest, so nothing is embedded twice; Pinecone gets a copy as documents of a
document index (API 2026-07): the index is created if missing, documents are upserted into a namespace in batches that keep its limits,
and searches ask it for the top k. Pinecone shows a write after some seconds only. The key comes from PINECONE_API_KEY alone.
Source: Pinecone documentation, Documents API and Operation limits.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from langchain_core.embeddings import Embeddings

from utils.indexes.passages import Passage, plain_metadata
from utils.indexes.server import ServerStore

FIELD = "embedding"
PAGE = 100  # ids listed by one request


class PineconeStore(ServerStore):
    """Passages searched by a managed Pinecone index (cosine). `store.index` is the SDK's index.

    `url` is the control plane's address, for a stand-in or a gateway. The SDK itself tries each request up to four times, so few
    attempts are added. `client` replaces the one made from PINECONE_API_KEY.
    """

    store = "pinecone"
    engine = "Pinecone"
    key_variable = "PINECONE_API_KEY"
    named, shaped = "namespace", "index_name"
    remedy = "See whether status.pinecone.io reports a fault."
    most_bytes = 1_900_000  # Pinecone takes 2 MB and 1,000 documents a request

    def __init__(
        self,
        embedder: Embeddings,
        index_name: str = "grounded-llms",
        namespace: str | None = None,
        cloud: str = "aws",
        region: str = "us-east-1",
        url: str | None = None,
        mark: str | None = None,
        batch_size: int = 100,
        attempts: int = 2,
        first_wait: float = 0.5,
        client: Any = None,
    ) -> None:
        super().__init__(
            embedder,
            url=url,
            collection=namespace,
            mark=mark,
            batch_size=batch_size,
            attempts=attempts,
            first_wait=first_wait,
            settings={"index_name": index_name, "cloud": cloud, "region": region},
        )
        self.index_name = index_name
        self._client = client

    @property
    def remote(self) -> bool:
        """Pinecone is always a server."""
        return True

    @property
    def place(self) -> str:
        """The index, in words."""
        return f"Pinecone index {self.index_name!r}" + (f" at {self.url}" if self.url else "")

    def _make_client(self) -> Any:
        """Return the SDK's client; raises an error naming the fix when the package or the key is missing."""
        try:
            from pinecone import Pinecone
        except ImportError as error:
            raise ImportError('store="pinecone" needs the Pinecone SDK: pip install "pinecone>=10"') from error
        if not os.environ.get(self.key_variable):
            raise ValueError('store="pinecone" needs PINECONE_API_KEY in the environment (a key from app.pinecone.io)')
        return Pinecone(host=self.url)

    def _connect(self, dimension: int) -> Any:
        """Return the SDK's index, created if missing."""
        if not self.client.indexes.exists(self.index_name):
            field = {"type": "dense_vector", "dimension": dimension, "metric": "cosine"}
            place = {"deployment_type": "managed", "cloud": self.settings["cloud"], "region": self.settings["region"]}
            self.client.indexes.create(name=self.index_name, schema={"fields": {FIELD: field}}, deployment=place)
        found = self.client.indexes.describe(self.index_name)
        field_there = found.schema.fields.get(FIELD)
        self._check_shape(dimension, getattr(field_there, "dimension", "none"), getattr(field_there, "metric", "none"))
        return self.client.index(self.index_name)

    def _list_keys(self, handle: Any) -> set[str]:
        """Return the ids in the namespace; one that does not exist yet is empty."""
        from pinecone import NotFoundError

        try:
            return {entry.id for entry in handle.documents.list(namespace=self.collection, limit=PAGE)}
        except NotFoundError:
            return set()

    def _upsert(self, handle: Any, keys: list[str], passages: list[Passage], vectors: np.ndarray) -> None:
        """Store one batch."""
        documents = [_document(*entry) for entry in zip(keys, passages, vectors, strict=True)]
        handle.documents.upsert(namespace=self.collection, documents=documents)

    def _remove(self, handle: Any, keys: list[str]) -> None:
        """Delete one batch."""
        handle.documents.delete(namespace=self.collection, ids=keys)

    def _nearest(self, handle: Any, queries: np.ndarray, top_k: int) -> list[list[tuple[str, float]]]:
        """Return keys and cosine scores."""
        answers = [
            handle.documents.search(
                namespace=self.collection,
                top_k=top_k,
                score_by=[{"type": "dense_vector", "field": FIELD, "values": query.tolist()}],
            )
            for query in queries
        ]
        return [[(match.id, match.score) for match in answer.matches] for answer in answers]


def _document(key: str, passage: Passage, vector: np.ndarray) -> dict[str, Any]:
    """Return one Pinecone document; metadata whose name Pinecone reserves (a leading _ or $) stays in the folder only."""
    metadata = {name: value for name, value in plain_metadata(passage).items() if name[:1] not in ("_", "$")}
    return {**metadata, "_id": key, "text": passage.text, FIELD: vector.tolist()}
