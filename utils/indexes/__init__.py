"""Vector indexes of the course: build one from passages, open it again without embedding anything.

    store = build_index(passages, embedder, "build/indexes/handbook")        # FAISS, exact
    store = build_index(passages, embedder, folder, kind="hnsw", m=32)       # a FAISS graph
    store = build_index(passages, embedder, folder, store="chroma")          # the same passages behind Chroma, nothing embedded again
    store = build_index(passages, embedder, folder, store="chroma", url="http://127.0.0.1:8000")   # and behind Chroma's server
    store = open_index("build/indexes/handbook", embedder)

Every store is a LangChain `VectorStore` over the same safe folder (`folder.py`: manifest, digests, atomic swap, no pickle); the
engine that searches it is FAISS, Chroma or Qdrant inside this process, or a server of Chroma, Qdrant, Weaviate or Pinecone that holds
a copy (`server.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings

    from utils.indexes.store import PassageStore

STORES = {
    "faiss": "FaissStore",
    "chroma": "ChromaStore",
    "qdrant": "QdrantStore",
    "weaviate": "WeaviateStore",
    "pinecone": "PineconeStore",
}
__all__ = ["build_index", "open_index", "STORES"]


def build_index(
    passages: Iterable[Document],
    embedder: Embeddings,
    folder: str | Path,
    kind: str = "flat",
    store: str = "faiss",
    **options: Any,
) -> PassageStore:
    """Return the store of exactly `passages` in `folder`, embedding only texts that the folder does not have yet.

    `kind` (flat, hnsw, ivf, pq, ivf-pq) and its options are FAISS's; other stores have options of their own. Passages no longer given
    are dropped. The old index stays usable until the new one replaces it in one step; a second build of the same folder waits.
    Raises IndexRefused when the folder holds other files, UpsertInterrupted when a server goes away meanwhile (the same call again goes
    on from there); warns when an old index cannot be reused and all is embedded again.
    """
    if store == "faiss":
        options["kind"] = kind
    elif kind != "flat":
        raise ValueError(f"kind={kind!r} is an option of store='faiss'; leave it out for store={store!r}")
    return _store_class(store).build(passages, embedder, folder, **options)


def open_index(folder: str | Path, embedder: Embeddings, store: str = "faiss", **options: Any) -> PassageStore:
    """Return the store in `folder` without embedding any passage.

    Raises IndexRefused with the reason: no index, another embedder, a truncated or altered file, a wrong dimension, another store.
    A server's copy is compared with the folder: what is missing there is sent, what is stale is deleted.
    """
    return _store_class(store).open(folder, embedder, **options)


def _store_class(store: str) -> type[PassageStore]:
    """Return the class of a store by name; its module, and so the engine, is imported only now."""
    if store not in STORES:
        raise ValueError(f"unknown store {store!r}; choose one of {', '.join(STORES)}")
    return getattr(import_module(f"utils.indexes.{store}_store"), STORES[store])
