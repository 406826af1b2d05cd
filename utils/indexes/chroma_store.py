"""`ChromaStore`: the same passages and folder, searched by Chroma running inside this process.

Chroma's own persistent client writes an `index_metadata.pickle` once a collection passes 1,000 rows (seen in 1.5.9), so here Chroma
lives in memory and is filled from the saved vectors when the store is opened; nothing is embedded for that. `store.index` is the
Chroma collection, with the passages' text and plain metadata in it, for native `query(where=…)`.
"""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np

from utils.indexes.passages import Contents, plain_metadata
from utils.indexes.search import State
from utils.indexes.store import PassageStore

BATCH = 1000


class ChromaStore(PassageStore):
    """Passages searched by a Chroma collection (HNSW, cosine space)."""

    store = "chroma"

    def _change_index(self, old: State, new: Contents) -> Any:
        """Return the collection, made if missing, with changed passages upserted and missing ones deleted."""
        collection = old.index if old.index is not None else self._new_collection()
        changed, gone = new.changes_from(old.contents if old.index is not None else None)
        for first in range(0, len(gone), BATCH):
            collection.delete(ids=gone[first : first + BATCH])
        for first in range(0, len(changed), BATCH):
            rows = changed[first : first + BATCH]
            passages = [new.passages[row] for row in rows]
            collection.upsert(
                ids=[passage.id for passage in passages],
                embeddings=new.vectors[rows],
                documents=[passage.text for passage in passages],
                metadatas=[plain_metadata(passage) for passage in passages],
            )
        return collection

    def _new_collection(self) -> Any:
        """Return an empty in-memory collection under a name of its own, without Chroma's default embedding model.

        Settings are Chroma's own (`import utils` turns its telemetry off): one process cannot have in-memory clients of two settings.
        """
        import chromadb

        client = chromadb.EphemeralClient()
        space: Any = {"hnsw": {"space": "cosine"}}
        return client.create_collection(f"passages-{uuid.uuid4().hex}", configuration=space, embedding_function=None)

    def _search_index(self, state: State, queries: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return cosine scores (one minus Chroma's cosine distance) and rows."""
        found = state.index.query(query_embeddings=queries, n_results=top_k, include=["distances"])
        rows = [[state.contents.row_of.get(key, -1) for key in ids] for ids in found["ids"]]
        return 1 - np.array(found["distances"], dtype=np.float32), np.array(rows, dtype=np.int64)
