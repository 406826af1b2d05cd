"""LangChain's public vector-store and retriever suites, sync and async, against our stores: in memory and written through to a folder."""

from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import VectorStore
from langchain_tests.integration_tests import RetrieversIntegrationTests, VectorStoreIntegrationTests

from tests.hash_embedder import HashEmbedder
from utils.indexes import build_index
from utils.indexes.faiss_store import FaissStore
from utils.retrieval import DenseRetriever


class TestFaissInMemory(VectorStoreIntegrationTests):
    @pytest.fixture(params=["flat", "hnsw", "ivf", "pq", "ivf-pq"])
    def vectorstore(self, request) -> VectorStore:
        return FaissStore(self.get_embeddings(), kind=request.param)


class TestFaissFolder(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, tmp_path) -> VectorStore:
        return build_index([], self.get_embeddings(), tmp_path / "index")


class TestChroma(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, tmp_path) -> VectorStore:
        return build_index([], self.get_embeddings(), tmp_path / "index", store="chroma")


class TestQdrant(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, tmp_path) -> VectorStore:
        return build_index([], self.get_embeddings(), tmp_path / "index", store="qdrant")


class TestRetrieverOverFaiss(RetrieversIntegrationTests):
    """The suite wants the number of results as a constructor argument, which the course's dense retriever has as `top_k`."""

    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return DenseRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        documents = [Document(page_content=text) for text in ("a graph of neighbours", "four bits", "rare words", "keys and values")]
        store = FaissStore(HashEmbedder())
        store.add_documents(documents)
        return {"store": store}

    @property
    def num_results_arg_name(self) -> str:
        return "top_k"

    @property
    def retriever_query_example(self) -> str:
        return "which graph?"
