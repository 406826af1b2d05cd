"""`PineconeStore`: the same passages and folder, searched by a Pinecone index (an optional extra: `pip install pinecone` and a key).

The local folder keeps passages, vectors and manifest, so nothing is embedded twice; Pinecone gets a copy: the index is created if
missing, vectors are upserted in batches, and searches ask it for the top k. Pinecone shows a write after some seconds only.
Needs PINECONE_API_KEY in the environment, or a client of your own.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from langchain_core.embeddings import Embeddings

from utils.indexes.passages import Contents, Passage, plain_metadata
from utils.indexes.search import State
from utils.indexes.store import PassageStore

BATCH = 100  # vectors per request; 100 of 384 dimensions with their text stay well under Pinecone's 2 MB


class PineconeStore(PassageStore):
    """Passages searched by a serverless Pinecone index (cosine). `client` replaces the one made from PINECONE_API_KEY."""

    store = "pinecone"

    def __init__(
        self,
        embedder: Embeddings,
        index_name: str = "grounded-llms",
        namespace: str = "passages",
        cloud: str = "aws",
        region: str = "us-east-1",
        client: Any = None,
    ) -> None:
        super().__init__(embedder, index_name=index_name, namespace=namespace, cloud=cloud, region=region)
        self.index_name, self.namespace = index_name, namespace
        self._client = client

    @property
    def client(self) -> Any:
        """The Pinecone client; raises an error naming the fix when the package or the key is missing."""
        if self._client is None:
            try:
                from pinecone import Pinecone
            except ImportError as error:
                raise ImportError("store='pinecone' needs the pinecone package: pip install pinecone") from error
            key = os.environ.get("PINECONE_API_KEY")
            if not key:
                raise ValueError("store='pinecone' needs PINECONE_API_KEY in the environment (a key from app.pinecone.io)")
            self._client = Pinecone(api_key=key)
        return self._client

    def _read_index(self, contents: Contents, directory: Any) -> Any:
        """Return the remote index; when it was deleted, it is created and filled from the saved vectors."""
        if self.client.has_index(self.index_name):
            return self._connect(contents.vectors.shape[1])
        return super()._read_index(contents, directory)

    def _connect(self, dimension: int) -> Any:
        """Return the remote index, created if missing; raises ValueError when it has another dimension."""
        if not self.client.has_index(self.index_name):
            place = {"serverless": {"cloud": self.settings["cloud"], "region": self.settings["region"]}}
            self.client.create_index(name=self.index_name, dimension=dimension, metric="cosine", spec=place)
        found = self.client.describe_index(self.index_name).dimension
        if found != dimension:
            raise ValueError(f"Pinecone index {self.index_name!r} has dimension {found}, the embedder {dimension}; give another index_name")
        return self.client.Index(self.index_name)

    def _change_index(self, old: State, new: Contents) -> Any:
        """Return the remote index with changed passages upserted in batches and missing ones deleted."""
        index = old.index if old.index is not None else self._connect(new.vectors.shape[1])
        changed, gone = new.changes_from(old.contents if old.index is not None else None)
        for first in range(0, len(gone), BATCH):
            index.delete(ids=gone[first : first + BATCH], namespace=self.namespace)
        for first in range(0, len(changed), BATCH):
            batch = [_record(new.passages[row], new.vectors[row]) for row in changed[first : first + BATCH]]
            index.upsert(vectors=batch, namespace=self.namespace)
        return index

    def _search_index(self, state: State, queries: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return cosine scores and rows; padded with -1 where a query found fewer."""
        scores = np.full((len(queries), top_k), -1, np.float32)
        rows = np.full((len(queries), top_k), -1, np.int64)
        for number, query in enumerate(queries):
            found = state.index.query(vector=query.tolist(), top_k=top_k, namespace=self.namespace).matches
            scores[number, : len(found)] = [match.score for match in found]
            rows[number, : len(found)] = [state.contents.row_of.get(match.id, -1) for match in found]
        return scores, rows


def _record(passage: Passage, vector: np.ndarray) -> dict[str, Any]:
    """Return one Pinecone record; the text stands under LangChain's key, so `langchain-pinecone` reads it too."""
    return {"id": passage.id, "values": vector.tolist(), "metadata": {**plain_metadata(passage), "text": passage.text}}
