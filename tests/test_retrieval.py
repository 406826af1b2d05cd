"""Retrievers: the public LangChain suite for each, and how they behave at the edges."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_tests.integration_tests import RetrieversIntegrationTests

from utils.retrieval import (
    BM25Retriever,
    DenseRetriever,
    HybridRetriever,
    ScoredRetriever,
    evidence,
    missing_names,
    reciprocal_rank_fusion,
    tokenize,
)

TEXTS = [
    "NF4 stores each weight in four bits.",
    "The KV cache keeps keys and values, so each token is computed once.",
    "BM25 weighs rare words more than frequent words.",
    "HNSW walks a graph of neighbours, layer by layer.",
    "量化把权重存成四位。",
    "Токенизатор делит слова на части.",
]
QUERY = "How does the KV cache keep each weight and the words?"


class CountedWords(Embeddings):
    """A real, tiny embedder: how often each word of `TEXTS` occurs."""

    vocabulary = sorted({word for text in TEXTS for word in tokenize(text)})

    def embed_query(self, text: str) -> list[float]:
        words = tokenize(text)
        return [words.count(word) + 1e-6 for word in self.vocabulary]

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]


def passages() -> list[Document]:
    return [Document(page_content=text, metadata={"id": f"p{i}"}) for i, text in enumerate(TEXTS)]


def dense(top_k: int = 4) -> DenseRetriever:
    store = InMemoryVectorStore(CountedWords())
    store.add_documents(passages())
    return DenseRetriever(store=store, top_k=top_k)


def bm25(top_k: int = 4) -> BM25Retriever:
    return BM25Retriever(passages=passages(), top_k=top_k)


def hybrid(top_k: int = 4) -> HybridRetriever:
    return HybridRetriever(retrievers=[dense(), bm25()], top_k=top_k)


class _PublicSuite(RetrieversIntegrationTests):
    built = staticmethod(dense)

    @property
    def retriever_constructor(self):
        return type(self.built())

    @property
    def retriever_constructor_params(self):
        retriever = self.built()
        return {name: getattr(retriever, name) for name in ("store", "passages", "retrievers") if hasattr(retriever, name)}

    @property
    def retriever_query_example(self):
        return QUERY

    @property
    def num_results_arg_name(self):
        return "top_k"

    def test_awaiting_returns_the_same_documents(self, retriever):
        assert asyncio.run(retriever.ainvoke(QUERY)) == retriever.invoke(QUERY)


class TestDenseRetriever(_PublicSuite):
    built = staticmethod(dense)


class TestBM25Retriever(_PublicSuite):
    built = staticmethod(bm25)


class TestHybridRetriever(_PublicSuite):
    built = staticmethod(hybrid)


EVERY = pytest.mark.parametrize("build", [dense, bm25, hybrid], ids=["dense", "bm25", "hybrid"])


@EVERY
def test_passages_come_best_first_with_score_and_rank(build):
    found = build().invoke(QUERY)
    assert [p.metadata["rank"] for p in found] == [1, 2, 3, 4][: len(found)]
    scores = [p.metadata["score"] for p in found]
    assert scores == sorted(scores, reverse=True)
    assert found[0].metadata["id"] == "p1"


@EVERY
def test_blank_query_finds_nothing(build):
    assert build().invoke("") == build().invoke(" \n\t") == []


@EVERY
def test_top_k_larger_than_the_index_returns_what_there_is(build):
    found = build(top_k=1000).invoke(QUERY)
    assert 0 < len(found) <= len(TEXTS)
    assert len({p.metadata["id"] for p in found}) == len(found)


@EVERY
@pytest.mark.parametrize(("query", "expected"), [("权重四位", "p4"), ("токенизатор", "p5")])
def test_other_scripts_are_found(build, query, expected):
    assert build().invoke(query)[0].metadata["id"] == expected


@EVERY
def test_top_k_below_one_is_refused(build):
    with pytest.raises(ValueError, match="at least 1"):
        build().invoke(QUERY, top_k=0)
    with pytest.raises(ValueError, match="top_k"):
        build(top_k=0)


@EVERY
def test_awaited_call_takes_top_k_too(build):
    assert len(asyncio.run(build().ainvoke(QUERY, top_k=2))) == 2


@EVERY
def test_batch_equals_one_by_one(build):
    retriever = build()
    assert retriever.batch([QUERY, "graph"]) == [retriever.invoke(QUERY), retriever.invoke("graph")]


def test_evidence_is_the_best_absolute_score():
    plain = [Document(page_content="a", metadata={"score": 0.3}), Document(page_content="b", metadata={"score": 0.2})]
    assert evidence(plain) == 0.3
    blended = [Document(page_content="a", metadata={"score": 2.0, "reranker_score": 0.1 * rank}) for rank in (5, 6)]
    assert evidence(blended) == pytest.approx(0.6)
    for nothing in ([], [Document(page_content="a")]):
        with pytest.raises(ValueError, match="DenseRetriever"):
            evidence(nothing)


MENTIONED = Document(
    page_content="The falcon 7b, BM25 and an LLM, in C++.", metadata={"title": "GPT-2", "source": "Ada Lovelace.md", "id": "405b"}
)


@pytest.mark.parametrize(
    ("question", "missing"),
    [
        ("How many parameters does GPT-4 have?", ["GPT-4"]),
        ("Is Falcon-7B larger than GPT-2, and what do LLMs gain from Bm25-like C++?", []),
        ("Does Claude Opus know Ada Byron?", ["Claude Opus"]),
        ("What did Google's ScaNN do? Is it good: Why not? A test, I hope.", ["Google", "ScaNN"]),
        ("Who met Zoë Ångström at 405B", ["Zoë Ångström", "405B"]),
        ("how many parameters does gpt-4 have", []),
        ("", []),
    ],
)
def test_names_that_no_passage_mentions_are_told(question, missing):
    assert missing_names(question, [Document(page_content="nothing"), MENTIONED]) == missing


def test_without_passages_every_name_is_missing():
    assert missing_names("Does Qdrant run HNSW on 2 GPUs?", []) == ["Qdrant", "HNSW", "GPUs"]


def test_own_passages_are_not_changed():
    own = passages()
    BM25Retriever(passages=own).invoke(QUERY)
    assert own == passages()


def test_empty_indexes_find_nothing():
    empty_dense = DenseRetriever(store=InMemoryVectorStore(CountedWords()))
    empty_words = BM25Retriever(passages=[Document(page_content="…")])
    for retriever in (empty_dense, BM25Retriever(passages=[]), empty_words, HybridRetriever(retrievers=[empty_dense, empty_words])):
        assert retriever.invoke(QUERY) == []


def test_store_that_reports_distances_is_refused():
    class Distances(InMemoryVectorStore):
        def similarity_search_with_score(self, query, k=4, **kwargs):
            return [(p, 1 - score) for p, score in super().similarity_search_with_score(query, k, **kwargs)]

    store = Distances(CountedWords())
    store.add_documents(passages())
    with pytest.raises(ValueError, match="Distances reports distances"):
        DenseRetriever(store=store).invoke(QUERY)


def test_bm25_returns_only_passages_that_share_a_word():
    assert [p.metadata["id"] for p in bm25(top_k=6).invoke("neighbours")] == ["p3"]
    assert bm25().invoke("zebra") == bm25().invoke("?!") == []


def test_hybrid_finds_what_either_retriever_finds():
    class Fixed(ScoredRetriever):
        ids: list[str]

        def search(self, query, top_k):
            return [(Document(page_content=i, metadata={"id": i}), 9.0) for i in self.ids[:top_k]]

    fused = HybridRetriever(retrievers=[Fixed(ids=["a", "b", "c"]), Fixed(ids=["c", "d"])], top_k=9).invoke("q")
    assert [p.metadata["id"] for p in fused] == ["c", "a", "b", "d"]
    assert fused[0].metadata["score"] == pytest.approx(1 / 63 + 1 / 61)


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.lists(st.sampled_from("abcdefgh"), unique=True), max_size=4))
def test_fusion_equals_the_formula(rankings):
    fused = reciprocal_rank_fusion(rankings)
    for key, score in fused.items():
        assert score == pytest.approx(sum(1 / (61 + r.index(key)) for r in rankings if key in r))
    assert list(fused.values()) == sorted(fused.values(), reverse=True)
