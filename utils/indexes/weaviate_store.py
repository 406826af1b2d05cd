"""`WeaviateStore`: the same passages and folder, searched by a Weaviate server (optional: `pip install "weaviate-client>=4.16"`).

Weaviate takes schema and health over REST and everything else over gRPC, on a port of its own; a server that asks for a key gets the
one in WEAVIATE_API_KEY. `store.index` is the client's collection. Source: Weaviate documentation, Python client v4.
"""

from __future__ import annotations

import json
import os
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from langchain_core.embeddings import Embeddings

from utils.indexes.passages import Passage
from utils.indexes.server import ServerStore

PAGE = 1000  # ids listed by one request


class WeaviateStore(ServerStore):
    """Passages searched by a Weaviate collection (HNSW, cosine). The client itself tries again for up to a minute; few tries are added."""

    store = "weaviate"
    engine = "Weaviate"
    key_variable = "WEAVIATE_API_KEY"
    remedy = "Start it, for example with: docker run -p 8080:8080 -p 50051:50051 semitechnologies/weaviate."

    def __init__(
        self,
        embedder: Embeddings,
        url: str = "http://127.0.0.1:8080",
        grpc_port: int = 50051,
        collection: str | None = None,
        mark: str | None = None,
        batch_size: int = 200,
        attempts: int = 2,
        first_wait: float = 0.5,
    ) -> None:
        super().__init__(
            embedder,
            url=url,
            collection=collection,
            mark=mark,
            batch_size=batch_size,
            attempts=attempts,
            first_wait=first_wait,
            settings={"grpc_port": grpc_port},
        )

    @property
    def collection(self) -> str:
        """The name of the copy, with the capital that Weaviate gives it."""
        name = self.given_name or f"Passages_{self.mark}"
        return name[:1].upper() + name[1:]

    def _make_client(self) -> Any:
        """Return a client that has seen the server; raises an error naming the fix when the package is missing."""
        try:
            import weaviate
        except ImportError as error:
            raise ImportError('store="weaviate" needs its client: pip install "weaviate-client>=4.16"') from error
        parts, key = urlsplit(self.url or ""), os.environ.get(self.key_variable)
        host, secure = parts.hostname or "", parts.scheme == "https"
        if host.endswith((".weaviate.cloud", ".weaviate.network")):
            if not key:
                raise ValueError("Weaviate Cloud needs WEAVIATE_API_KEY in the environment (a key from console.weaviate.cloud)")
            return weaviate.connect_to_weaviate_cloud(host, auth_credentials=key, skip_init_checks=True)
        return weaviate.connect_to_custom(
            http_host=host,
            http_port=parts.port or (443 if secure else 80),
            http_secure=secure,
            grpc_host=host,
            grpc_port=self.settings["grpc_port"],
            grpc_secure=secure,
            auth_credentials=weaviate.auth.AuthApiKey(key) if key else None,
            skip_init_checks=True,  # they would ask PyPI for a newer client
        )

    def _connect(self, dimension: int) -> Any:
        """Return the collection, made if missing. Weaviate fixes the dimension at the first vector."""
        from weaviate.classes.config import Configure, DataType, Property, VectorDistances

        collections = self.client.collections
        if not collections.exists(self.collection):
            space = Configure.VectorIndex.hnsw(distance_metric=VectorDistances.COSINE)
            fields = [Property(name=name, data_type=DataType.TEXT) for name in ("passage_id", "text", "metadata")]
            collections.create(self.collection, properties=fields, vector_config=Configure.Vectors.self_provided(vector_index_config=space))
        collection = collections.use(self.collection)
        settings = collection.config.get().vector_config or {}
        space_there = getattr(settings.get("default"), "vector_index_config", None)
        metric = getattr(space_there, "distance_metric", None)
        self._check_shape(dimension, None, getattr(metric, "value", metric))
        return collection

    def _list_keys(self, handle: Any) -> set[str]:
        """Return the ids in the collection."""
        return {str(entry.uuid) for entry in handle.iterator(return_properties=False, cache_size=PAGE)}

    def _upsert(self, handle: Any, keys: list[str], passages: list[Passage], vectors: np.ndarray) -> None:
        """Store one batch; raises RuntimeError with the server's words when it took only a part."""
        from weaviate.classes.data import DataObject

        entries = [
            DataObject(uuid=key, vector=vector.tolist(), properties=_properties(passage))
            for key, passage, vector in zip(keys, passages, vectors, strict=True)
        ]
        errors = handle.data.insert_many(entries).errors
        if errors:
            raise RuntimeError(f"Weaviate refused {len(errors)} of {len(keys)} passages: {next(iter(errors.values())).message}")

    def _remove(self, handle: Any, keys: list[str]) -> None:
        """Delete one batch."""
        from weaviate.classes.query import Filter

        handle.data.delete_many(where=Filter.by_id().contains_any(keys))

    def _nearest(self, handle: Any, queries: np.ndarray, top_k: int) -> list[list[tuple[str, float]]]:
        """Return keys and cosine scores (one minus Weaviate's cosine distance)."""
        from weaviate.classes.query import MetadataQuery

        wanted = MetadataQuery(distance=True)
        answers = [
            handle.query.near_vector(query.tolist(), limit=top_k, return_metadata=wanted, return_properties=False) for query in queries
        ]
        return [[(str(entry.uuid), 1 - entry.metadata.distance) for entry in answer.objects] for answer in answers]


def _properties(passage: Passage) -> dict[str, str]:
    """Return the passage as three text fields; metadata is JSON, because Weaviate would make a field of each of its keys."""
    return {"passage_id": passage.id, "text": passage.text, "metadata": json.dumps(passage.metadata, sort_keys=True)}
