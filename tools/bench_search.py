"""Speed of reranking and of hybrid search beside the plain path, for `bench`: what comes back is measured too, so that no speed is bought.

The passages are cut from the handbook. Plain reranking is sentence-transformers' CrossEncoder in fp32 with its default settings; plain
hybrid search is LangChain's in-memory store with HuggingFaceEmbeddings in fp32, beside the same BM25 and the same fusion.
"""

import re
import shutil
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings

from tools.bench import Comparison
from utils.questions import load_questions
from utils.runtime import BUILD, DATA

PASSAGE_TOKENS, DEPTH = 200, 20  # what is reranked: 20 passages of 200 tokens
MANY = 10_000
MANY_FOLDER = BUILD / "indexes" / "bench-many"
QUERIES = 32


def questions() -> list[dict[str, Any]]:
    """Returns some of the handbook's questions for choosing, with their answers' places."""
    answerable = [question for question in load_questions("handbook", split="dev") if question["answers"]]
    return answerable[:: len(answerable) // QUERIES][:QUERIES]


def long_passages() -> list[Document]:
    """Returns the handbook in passages of `PASSAGE_TOKENS` tokens on average, cut without regard to headings, which make most shorter.

    The splitter makes the parts of a document equal, and so smaller than the limit: 260 gives 200.
    """
    from utils.corpus import load_documents, split_documents

    documents = load_documents(DATA / "handbook").documents
    plain = [one.model_copy(update={"metadata": {**one.metadata, "format": "txt"}}) for one in documents]
    return split_documents(plain, max_tokens=round(1.3 * PASSAGE_TOKENS))


def many_passages() -> list[Document]:
    """Returns 10,000 different passages: runs of one to five sentences of the handbook, from every sentence on."""
    from utils.corpus import load_documents

    texts: dict[str, None] = {}
    for document in load_documents(DATA / "handbook").documents:
        sentences = re.split(r"(?<=[.!?])\s+", document.page_content)
        runs = [" ".join(sentences[at : at + size]) for size in range(1, 6) for at in range(len(sentences) + 1 - size)]
        texts |= dict.fromkeys(runs)
    chosen = list(texts)[:: max(1, len(texts) // MANY)][:MANY]
    return [Document(id=str(number), page_content=text, metadata={"id": str(number)}) for number, text in enumerate(chosen)]


def each(work: Callable[[Any], Any], items: list[Any]) -> list[float]:
    """Returns the seconds of `work` for each item; the first item is done once before, to warm up."""
    return [seconds for seconds, _ in each_with_result(work, items)]


def each_with_result(work: Callable[[Any], Any], items: list[Any]) -> list[tuple[float, Any]]:
    """Returns the seconds of `work` and its result for each item; the first item is done once before, to warm up."""
    work(items[0])
    done = []
    for item in items:
        start = time.perf_counter()
        result = work(item)
        done.append((time.perf_counter() - start, result))
    return done


def p50(seconds: list[float]) -> float:
    """Returns the median."""
    return float(np.median(seconds))


def p95(seconds: list[float]) -> float:
    """Returns the 95th percentile."""
    return float(np.quantile(seconds, 0.95))


def reranking_comparison(key: str | None = None) -> Comparison:
    """Returns the median seconds of reranking 20 passages both ways, and the points of nDCG@10 that ours loses."""
    import torch
    from sentence_transformers import CrossEncoder

    from utils import checkpoints, evaluation
    from utils.models import load_reranker
    from utils.reranking import CrossEncoderReranker
    from utils.retrieval import BM25Retriever

    passages, asked = long_passages(), questions()
    words = BM25Retriever(passages=passages, top_k=DEPTH)
    cases = [(question["question"], words.invoke(question["question"])) for question in asked]
    relevant = [evaluation.support_passages(question["support"], passages) for question in asked]
    plain = CrossEncoder(str(checkpoints.fetch(checkpoints.find(key, "reranker"))), device="cpu", model_kwargs={"dtype": torch.float32})
    ours = CrossEncoderReranker(load_reranker(key, device="cpu"))
    plain_done = each_with_result(lambda case: plain.predict([(case[0], p.page_content) for p in case[1]]), cases)
    our_done = each_with_result(lambda case: ours(*case), cases)

    def ndcg(scores: list[Any]) -> float:
        found = [[case[1][place].metadata["id"] for place in np.argsort(-np.asarray(one))] for case, one in zip(cases, scores, strict=True)]
        return float(evaluation.ndcg_at_k(found, relevant, 10).mean())

    lost = 100 * (ndcg([scores for _, scores in plain_done]) - ndcg([[one.score for one in verdicts] for _, verdicts in our_done]))
    plain_seconds, our_seconds = (p50([seconds for seconds, _ in done]) for done in (plain_done, our_done))
    what = f"reranking {DEPTH} passages of {PASSAGE_TOKENS} tokens, p50"
    return Comparison(what, plain_seconds, our_seconds, aim=2.5, most=0.35, lost=lost)


class Known(Embeddings):
    """Vectors of passages that are known already, and another embedder's vectors of queries: fills a store without embedding."""

    def __init__(self, vectors: np.ndarray, queries: Embeddings) -> None:
        self.vectors, self.queries = vectors, queries

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Returns the known vectors, whose order is that of the texts."""
        return self.vectors.tolist()

    def embed_query(self, text: str) -> list[float]:
        """Returns the other embedder's vector of the query."""
        return self.queries.embed_query(text)


def reopening_comparison() -> Comparison:
    """Returns the seconds of building the index of 10,000 passages from nothing, and of opening it; `hybrid_searches` goes on with it."""
    from utils.indexes import build_index, open_index
    from utils.models import load_embedder

    passages, embedder = many_passages(), load_embedder()
    embedder.embed_query("warm")
    shutil.rmtree(MANY_FOLDER, ignore_errors=True)
    start = time.perf_counter()
    build_index(passages, embedder, MANY_FOLDER)
    built = time.perf_counter() - start
    opened = each(lambda folder: open_index(folder, embedder), [MANY_FOLDER] * 5)
    return Comparison(f"index of {MANY:,} passages: reopened, not rebuilt", built, p50(opened), aim=500)


def hybrid_searches() -> tuple[Callable[[str], list[Document]], Any]:
    """Returns hybrid search over 10,000 passages both ways: LangChain's in-memory store with fp32 vectors, and the course's retriever.

    The index is that of `reopening_comparison`, if it stands already.
    """
    from langchain_core.vectorstores import InMemoryVectorStore
    from langchain_huggingface import HuggingFaceEmbeddings

    from utils import catalog
    from utils.indexes import build_index
    from utils.models import load_embedder
    from utils.retrieval import BM25Retriever, DenseRetriever, HybridRetriever, passage_key, reciprocal_rank_fusion

    embedder = load_embedder()
    store = build_index(many_passages(), embedder, MANY_FOLDER)
    words = BM25Retriever(passages=store.documents)
    ours = HybridRetriever(retrievers=[DenseRetriever(store=store), words], top_k=DEPTH)
    fp32 = HuggingFaceEmbeddings(model_name=str(catalog.get("minilm").path), model_kwargs={"device": "cpu"})
    plain = InMemoryVectorStore.from_documents(store.documents, Known(store.vectors, fp32))

    def plain_search(query: str) -> list[Document]:
        rankings = [plain.similarity_search(query, k=50), words.invoke(query, top_k=50)]
        found = {passage_key(passage): passage for ranking in rankings for passage in ranking}
        return [found[key] for key in list(reciprocal_rank_fusion([[passage_key(p) for p in ranking] for ranking in rankings]))[:DEPTH]]

    return plain_search, ours


def search_comparisons() -> list[Comparison]:
    """Returns the seconds of one hybrid search, and of one with reranking of its first 20, both ways, the query's embedding included."""
    import torch
    from sentence_transformers import CrossEncoder

    from utils import checkpoints
    from utils.models import load_reranker
    from utils.reranking import CrossEncoderReranker
    from utils.retrieval import RerankingRetriever

    plain, ours = hybrid_searches()
    judge = CrossEncoder(str(checkpoints.fetch(checkpoints.find(None, "reranker"))), device="cpu", model_kwargs={"dtype": torch.float32})
    reranked = RerankingRetriever(retriever=ours, reranker=CrossEncoderReranker(load_reranker(device="cpu")), depth=DEPTH)

    def plain_reranked(query: str) -> list[Document]:
        found = plain(query)
        scores = judge.predict([(query, passage.page_content) for passage in found])
        return [found[place] for place in np.argsort(-scores)]

    asked = [question["question"] for question in questions()]
    plain_seconds, our_seconds = each(plain, asked), each(ours.invoke, asked)
    plain_full, our_full = each(plain_reranked, asked), each(reranked.invoke, asked)
    return [
        Comparison(f"hybrid search over {MANY:,} passages, p50", p50(plain_seconds), p50(our_seconds), aim=1, most=0.025),
        Comparison(f"query: hybrid and {DEPTH} reranked, p50", p50(plain_full), p50(our_full), aim=2.5),
        Comparison(f"query: hybrid and {DEPTH} reranked, p95", p95(plain_full), p95(our_full), aim=2.5),
    ]
