"""Searching a store of passages: the LangChain search methods, once, for every engine.

Scores are cosine similarities in [-1, 1]; relevance scores are (1 + score) / 2. Knows nothing of files or of how an engine works.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore
from langchain_core.vectorstores.utils import maximal_marginal_relevance

from utils.indexes.embedding import unit_vectors
from utils.indexes.passages import Contents, Passage

Filter = dict[str, Any] | Callable[[Document], bool]


class State(NamedTuple):
    """Contents and the engine that serves them; replaced as one, so that a search in another thread never sees half a change."""

    contents: Contents
    index: Any


class SearchStore(VectorStore):
    """The reading half of a store; a subclass provides `state`, `embedder` and the engine's search."""

    embedder: Embeddings
    state: State

    @abstractmethod
    def _search_index(self, state: State, queries: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return cosine scores and rows, each (queries, ≤ top_k), best first; a row of -1 is no hit."""

    @property
    def embeddings(self) -> Embeddings:
        """The embedder, under LangChain's name."""
        return self.embedder

    @property
    def index(self) -> Any:
        """The engine's own object: a faiss index, a Chroma collection, …; None while the store is empty."""
        return self.state.index

    @property
    def vectors(self) -> np.ndarray:
        """The passages' unit vectors, shape (count, dimension), float32."""
        return self.state.contents.vectors

    @property
    def documents(self) -> list[Document]:
        """All passages, in the order of `vectors`."""
        return [passage.as_document() for passage in self.state.contents.passages]

    @property
    def count(self) -> int:
        """The number of passages."""
        return len(self.state.contents.passages)

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return the passages with these ids; unknown ids are left out."""
        contents = self.state.contents
        return [contents.passages[contents.row_of[key]].as_document() for key in ids if key in contents.row_of]

    def search_vectors(self, queries: np.ndarray, top_k: int = 4) -> tuple[np.ndarray, np.ndarray]:
        """Return cosine scores and rows for a batch of query vectors (queries, dimension); a row of -1 is no hit."""
        return self._search(self.state, queries, top_k)

    def _search(self, state: State, queries: Any, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """Search one state; see `search_vectors`."""
        matrix = _checked(state, queries, top_k)
        if not state.contents.passages:
            return np.empty((len(matrix), 0), np.float32), np.empty((len(matrix), 0), np.int64)
        scores, rows = self._search_index(state, matrix, min(top_k, len(state.contents.passages)))
        return np.clip(scores, -1, 1), rows

    def _hits(self, vector: Any, k: int, filter: Filter | None = None) -> list[tuple[Passage, float, np.ndarray]]:
        """Return passages, scores and vectors, best first; a filter is applied first and then searched exactly."""
        state = self.state
        passages, vectors = state.contents.passages, state.contents.vectors
        if filter is None:
            scores, rows = (found[0] for found in self._search(state, [vector], k))
        else:
            kept = np.array([row for row, passage in enumerate(passages) if _matches(passage, filter)], dtype=np.int64)
            similarities = vectors[kept] @ _checked(state, [vector], k)[0] if len(kept) else np.empty(0)
            best = np.argsort(-similarities, kind="stable")[:k]
            scores, rows = similarities[best], kept[best]
        return [(passages[row], float(score), vectors[row]) for score, row in zip(scores, rows, strict=True) if row >= 0]

    def similarity_search_with_score_by_vector(
        self, embedding: list[float], k: int = 4, filter: Filter | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """Return the `k` nearest passages with their cosine similarity; `filter`: a dict of metadata values, or a function of it."""
        return [(passage.as_document(), score) for passage, score, _ in self._hits(embedding, k, filter)]

    def similarity_search_with_score(self, query: str, k: int = 4, **kwargs: Any) -> list[tuple[Document, float]]:
        """Return the `k` passages nearest to a text, with their cosine similarity."""
        if not self.count:
            return []
        return self.similarity_search_with_score_by_vector(self.embedder.embed_query(query), k, **kwargs)

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """Return the `k` passages nearest to a text."""
        return [document for document, _ in self.similarity_search_with_score(query, k, **kwargs)]

    def similarity_search_by_vector(self, embedding: list[float], k: int = 4, **kwargs: Any) -> list[Document]:
        """Return the `k` passages nearest to a vector."""
        return [document for document, _ in self.similarity_search_with_score_by_vector(embedding, k, **kwargs)]

    def max_marginal_relevance_search_by_vector(
        self, embedding: list[float], k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, filter: Filter | None = None, **kwargs: Any
    ) -> list[Document]:
        """Return `k` of the `fetch_k` nearest passages, near to the query and far from each other (Carbonell and Goldstein, 1998)."""
        hits = self._hits(embedding, fetch_k, filter)
        if not hits:
            return []
        candidates: list[Any] = [vector for *_, vector in hits]
        chosen = maximal_marginal_relevance(unit_vectors([embedding])[0], candidates, lambda_mult, k)
        return [hits[number][0].as_document() for number in chosen]

    def max_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """Return `k` varied passages for a text."""
        return self.max_marginal_relevance_search_by_vector(self.embedder.embed_query(query), k, fetch_k, lambda_mult, **kwargs)

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        """Return the map from cosine similarity to LangChain's relevance in [0, 1]."""
        return lambda score: (1 + score) / 2


def _checked(state: State, queries: Any, top_k: int) -> np.ndarray:
    """Return the queries as unit vectors; raises ValueError when their dimension or `top_k` makes no sense."""
    if top_k < 1:
        raise ValueError(f"top_k (k) is {top_k}; ask for at least 1 passage")
    matrix, dimension = unit_vectors(queries), state.contents.vectors.shape[1]
    if state.contents.passages and matrix.shape[1] != dimension:
        raise ValueError(f"the query has {matrix.shape[1]} dimensions, the index {dimension}; embed queries with the index's embedder")
    return matrix


def _matches(passage: Passage, filter: Filter) -> bool:
    """Return whether a passage has all the metadata values of a dict, or satisfies a function of its document."""
    if callable(filter):
        return bool(filter(passage.as_document()))
    return all(passage.metadata.get(key) == value for key, value in filter.items())
