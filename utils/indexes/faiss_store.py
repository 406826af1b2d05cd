"""`FaissStore`: a LangChain vector store on FAISS that is saved without pickle.

LangChain has no maintained FAISS integration, and its old one loads pickled documents; this store fills the gap. Files, embedding
and searching are in the neighbouring modules; here is only what is particular to FAISS.

    store = FaissStore.build(passages, embedder, "build/indexes/handbook", kind="hnsw")
    store.as_retriever(search_kwargs={"k": 3}).invoke("What does NF4 store?")
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from langchain_core.embeddings import Embeddings

from utils.indexes.faiss_kinds import TRAINED, check_settings, make
from utils.indexes.passages import Contents
from utils.indexes.search import State
from utils.indexes.store import PassageStore

FILE = "index.faiss"
REFINE = 4  # product-quantized kinds fetch this many times top_k and rank them by their exact vectors


class FaissStore(PassageStore):
    """Passages searched by a FAISS index of a kind: flat, hnsw, ivf, pq or ivf-pq (options in `faiss_kinds`).

    Scores are exact cosine similarities for every kind: product-quantized candidates are rescored with the stored vectors
    (`refine=1` keeps exactly the candidates that the codes alone would have chosen). IVF kinds may find fewer than `k`.
    `store.index` is the faiss index itself: set `store.index.nprobe` or `store.index.hnsw.efSearch` to trade recall for time.
    """

    store = "faiss"
    engine_files = True

    def __init__(self, embedder: Embeddings, kind: str = "flat", **options: int) -> None:
        check_settings(kind, options)
        super().__init__(embedder, kind=kind, **options)
        self.kind, self.options = kind, options

    def _change_index(self, old: State, new: Contents) -> Any:
        """Return a faiss index of `new`: a copy grown at its end if passages were only added, else one made anew.

        Trained kinds are always made anew, so that adding gives the same index as building.
        """
        import faiss

        if not new.passages:
            return None
        count = len(old.contents.passages)
        if old.index is not None and self.kind not in TRAINED and _texts(new, count) == _texts(old.contents, count):
            index = faiss.clone_index(old.index)  # a copy, because faiss does not allow searching while adding
            index.add(np.ascontiguousarray(new.vectors[count:]))
            return index
        return make(np.ascontiguousarray(new.vectors), self.kind, self.options)

    def _search_index(self, state: State, queries: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return exact cosine scores and rows, best first."""
        if "pq" not in self.kind:
            return state.index.search(queries, top_k)
        fetch = min(len(state.contents.passages), top_k * self.options.get("refine", REFINE))
        _, rows = state.index.search(queries, fetch)
        exact = np.einsum("qkd,qd->qk", state.contents.vectors[rows], queries)
        exact[rows < 0] = -np.inf
        best = np.argsort(-exact, axis=1, kind="stable")[:, :top_k]
        return np.take_along_axis(exact, best, axis=1), np.take_along_axis(rows, best, axis=1)

    def _write_index(self, index: Any, directory: Path) -> None:
        """Write the faiss index into a file that `faiss.read_index` reads."""
        import faiss

        faiss.write_index(index, str(directory / FILE))

    def _read_index(self, contents: Contents, directory: Path) -> Any:
        """Return the saved faiss index; raises ValueError when it does not hold the contents' vectors."""
        import faiss

        path = directory / FILE
        try:
            index = faiss.read_index(str(path))
        except RuntimeError:
            path.stat()  # a file swept away meanwhile is a FileNotFoundError: the newer index is read then
            raise
        found, expected = (index.ntotal, index.d), contents.vectors.shape
        if found != expected:
            raise ValueError(f"{FILE} holds {found[0]} vectors of {found[1]} dimensions, expected {expected}")
        return index


def _texts(contents: Contents, count: int) -> list[str]:
    """Return the first `count` texts, in the order of the vectors."""
    return [passage.text for passage in contents.passages[:count]]
