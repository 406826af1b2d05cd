"""Retrieval: from a query to ranked passages, each with its score.

Three ways to rank: `DenseRetriever` compares meanings (embeddings), `BM25Retriever` compares words, `HybridRetriever`
fuses their rankings. `RerankingRetriever` sorts what one of them found by a slower look (`reranking`). All are LangChain
retrievers (`invoke`, `batch`, async) that put `score` and `rank` into the metadata of copies of the passages. Knows vector stores
only through LangChain's interface; knows nothing of prompts or answers.
"""

import re
from abc import abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from math import isfinite
from typing import Any, NamedTuple, TypeVar

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import run_in_executor
from langchain_core.vectorstores import VectorStore
from pydantic import Field, PrivateAttr

Key = TypeVar("Key", bound=Hashable)

# A word is a run of letters and digits; scripts written without spaces count character by character.
_UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
_NAME_PART = re.compile(r"\w(?:[\w+#.\-]*[\w+#])?|[.?!:](?=\s)")  # a word with all that may stand inside a name; or what ends a sentence


def tokenize(text: str) -> list[str]:
    """Return the lower-cased words of `text`: "top_k, top-k" gives top, k, top, k."""
    return _WORD.findall(text.lower())


def passage_key(passage: Document) -> str:
    """Return what identifies a passage across retrievers: `metadata["id"]`, the document's id, or its text."""
    return str(passage.metadata.get("id") or passage.id or passage.page_content)


def evidence(passages: Sequence[Document]) -> float:
    """Return how well the best passage fits its query: the highest `reranker_score`, or `score` where no reranker noted one.

    A score that a reranker blended with the first stage's compares the passages of one query and says nothing across queries; its own
    score does. Raises ValueError for no passages, or passages without scores.
    """
    found: list[Any] = [passage.metadata.get("reranker_score", passage.metadata.get("score")) for passage in passages]
    if not found or None in found:
        raise ValueError("There is no score to go by: use a retriever of utils.retrieval, such as DenseRetriever.")
    return float(max(found))


def missing_names(question: str, passages: Sequence[Document]) -> list[str]:
    """Return the names in `question` that none of the passages mentions: what is asked of them can hardly be answered from there.

    A name is a run of words with capitals, "GPT-4" or "Claude Opus"; a capital that only begins a sentence makes none. It is mentioned
    where a passage's text, title, headings or source holds one of its words, whatever the case and the marks inside: "falcon 7B" mentions
    "Falcon-7B".
    """
    keys = ("title", "headings", "source")
    known = _letters(" ".join(" ".join([one.page_content, *(str(one.metadata.get(key, "")) for key in keys)]) for one in passages))
    return [" ".join(name) for name in _names(question) if not any(_is_mentioned(word, known) for word in name)]


def _names(question: str) -> list[list[str]]:
    """Return the runs of words with capitals."""
    names: list[list[str]] = [[]]
    begins = True
    for word in _NAME_PART.findall(question):
        is_name = word != word.lower() and len(word) > 1 and not (begins and word[1:].islower())
        begins = word in ".?!:"
        if is_name:
            names[-1].append(word)
        else:
            names.append([])
    return [name for name in names if name]


def _letters(text: str) -> str:
    """Return the text's letters and digits alone, in lower case."""
    return "".join(filter(str.isalnum, text.lower()))


def _is_mentioned(word: str, known: str) -> bool:
    """Return whether `known` holds the word, also without its plural's s, or what stands before the hyphen of "FAISS-like"."""
    stem, _, rest = word.partition("-")
    form = _letters(stem if rest.islower() else word)
    return form in known or form.removesuffix("s") in known


def reciprocal_rank_fusion(rankings: Sequence[Sequence[Key]], rank_constant: int = 60) -> dict[Key, float]:
    """Return fused scores, best first: a passage gains 1 / (rank_constant + rank) from each ranking that lists it.

    Only ranks count, so cosine similarities and BM25 scores need no common scale. Ties keep the order of first appearance.
    Source: Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion", SIGIR 2009.
    """
    fused: dict[Key, float] = {}
    for ranking in rankings:
        for rank, key in enumerate(dict.fromkeys(ranking), start=1):
            fused[key] = fused.get(key, 0.0) + 1 / (rank_constant + rank)
    return dict(sorted(fused.items(), key=lambda item: -item[1]))


class ScoredRetriever(BaseRetriever):
    """Base of all retrievers here: `search` ranks; this class adds rank and score, limits, and async.

    `retriever.invoke(query, top_k=10)` overrides the constructor's `top_k`. A blank query finds nothing; a `top_k` larger
    than the index returns what there is. The passages returned are copies: the index's own are never changed.
    """

    top_k: int = Field(default=4, ge=1)

    @abstractmethod
    def search(self, query: str, top_k: int) -> list[tuple[Document, float]]:
        """Return at most `top_k` passages with their scores, best first. `query` is not blank."""

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, top_k: int | None = None
    ) -> list[Document]:
        top_k = self.top_k if top_k is None else top_k
        if top_k < 1:
            raise ValueError(f"top_k is {top_k}; ask for at least 1 passage.")
        found = self.search(query, top_k) if query.strip() else []
        return [
            passage.model_copy(update={"metadata": {**passage.metadata, "score": float(score), "rank": rank}})
            for rank, (passage, score) in enumerate(found, start=1)
        ]

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, top_k: int | None = None
    ) -> list[Document]:
        return await run_in_executor(None, self._get_relevant_documents, query, run_manager=run_manager.get_sync(), top_k=top_k)


class DenseRetriever(ScoredRetriever):
    """Ranks by the similarity of embeddings; the score is the vector store's (cosine similarity in `utils.indexes`)."""

    store: VectorStore

    def search(self, query: str, top_k: int) -> list[tuple[Document, float]]:
        """Return the `top_k` nearest passages with the store's scores. Raises ValueError if those are distances."""
        found = self.store.similarity_search_with_score(query, k=top_k)
        # LangChain leaves open what a score means; best first, similarities fall and distances rise.
        if found and found[0][1] < found[-1][1]:
            raise ValueError(f"{type(self.store).__name__} reports distances, not similarities. Use a store of utils.indexes.build_index.")
        return found


class BM25Retriever(ScoredRetriever):
    """Ranks by shared words, rare ones counting more; a passage that shares no word with the query is not returned.

    Source: Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009; computed by bm25s.
    """

    passages: list[Document] = Field(repr=False)
    k1: float = 1.5
    b: float = 0.75
    _index: Any = PrivateAttr(default=None)

    def model_post_init(self, context: Any, /) -> None:
        """Index the passages (0.25 s per 1,000 of 120 words)."""
        super().model_post_init(context)
        tokens = [tokenize(passage.page_content) for passage in self.passages]
        if any(tokens):
            import bm25s

            self._index = bm25s.BM25(k1=self.k1, b=self.b)
            self._index.index(tokens, show_progress=False)

    def search(self, query: str, top_k: int) -> list[tuple[Document, float]]:
        """Return the `top_k` passages with the highest BM25 scores above zero."""
        tokens = tokenize(query)
        if self._index is None or not tokens:
            return []
        scores = self._index.get_scores(tokens)
        best = (-scores).argsort(kind="stable")[:top_k]
        return [(self.passages[i], float(scores[i])) for i in best if scores[i] > 0]


class HybridRetriever(ScoredRetriever):
    """Fuses the rankings of several retrievers by reciprocal rank; the score is the fused one.

    `depth` candidates are asked of each retriever: a passage must stand that high in one of them to be found.
    """

    retrievers: list[ScoredRetriever] = Field(min_length=1)
    depth: int = Field(default=50, ge=1)
    rank_constant: int = Field(default=60, ge=0)

    def search(self, query: str, top_k: int) -> list[tuple[Document, float]]:
        """Return the `top_k` passages with the highest fused scores."""
        depth = max(self.depth, top_k)
        rankings = [[passage for passage, _ in retriever.search(query, depth)] for retriever in self.retrievers]
        passages = {passage_key(passage): passage for ranking in reversed(rankings) for passage in ranking}
        fused = reciprocal_rank_fusion([[passage_key(p) for p in ranking] for ranking in rankings], self.rank_constant)
        return [(passages[key], score) for key, score in list(fused.items())[:top_k]]


class Judgement(NamedTuple):
    """A reranker's score of one passage, higher is better, and what else it has to say, for the passage's metadata."""

    score: float
    notes: Mapping[str, Any] = {}


Reranker = Callable[[str, list[Document]], Sequence[float | Judgement]]
"""Scores passages for a query: one score or `Judgement` each, in order. They come as the first stage ranked them, with its `score`."""


class RerankingRetriever(ScoredRetriever):
    """Sorts the first `depth` passages of `retriever` by `reranker`; a passage that is not among them cannot be found.

    The reranker is any function or object that scores passages; `utils.reranking` has three. The metadata keep the first stage's
    verdict as `first_score` and `first_rank`. Equal scores keep its order.
    """

    retriever: BaseRetriever
    reranker: Reranker
    depth: int = Field(default=20, ge=1)

    def search(self, query: str, top_k: int) -> list[tuple[Document, float]]:
        """Return the `top_k` passages with the reranker's highest scores. Raises ValueError if it does not score each one."""
        passages = self._candidates(query, max(self.depth, top_k))
        verdicts = self.reranker(query, passages) if passages else []
        judged = [one if isinstance(one, Judgement) else Judgement(float(one)) for one in verdicts]
        if len(judged) != len(passages) or not all(isfinite(one.score) for one in judged):
            scores = [one.score for one in judged]
            raise ValueError(f"The reranker must return one finite number per passage, in order; for {len(passages)} it gave {scores}.")
        scored = [(_judged(p, rank, one), one.score) for rank, (p, one) in enumerate(zip(passages, judged), start=1)]
        return sorted(scored, key=lambda pair: -pair[1])[:top_k]

    def _candidates(self, query: str, depth: int) -> list[Document]:
        if isinstance(self.retriever, ScoredRetriever):
            return self.retriever.invoke(query, top_k=depth)
        return self.retriever.invoke(query)[:depth]


def _judged(passage: Document, rank: int, judgement: Judgement) -> Document:
    """Return a copy of the passage whose metadata say where the first stage had it and what the reranker noted."""
    first = {"first_score": passage.metadata.get("score"), "first_rank": rank}
    return passage.model_copy(update={"metadata": {**passage.metadata, **first, **judgement.notes}})
