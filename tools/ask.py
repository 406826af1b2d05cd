"""Answers one question from the handbook, or from a folder of your own, with citations.

`python -m tools.ask "What is QLoRA?" [--docs folder]`. The first call on a folder embeds it; later calls reopen the index in
build/indexes and read the documents again only if one of them changed. Loading Python's libraries is most of a second call's time.
"""

import argparse
import gc
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.runtime import BUILD, DATA

if TYPE_CHECKING:
    from langchain_core.embeddings import Embeddings

    from utils.embedder import SentenceEmbedder
    from utils.indexes.store import PassageStore
    from utils.rag import RagAnswer
    from utils.retrieval import RerankingRetriever

HANDBOOK = DATA / "handbook"
TOP_K = 3  # passages in the prompt


def index_folder(documents: Path) -> Path:
    """Returns where the index of a folder of documents is cached."""
    if documents == HANDBOOK:
        return BUILD / "indexes" / "handbook"
    return BUILD / "indexes" / f"{documents.name}-{hashlib.sha256(str(documents).encode()).hexdigest()[:8]}"


def fingerprint(documents: Path) -> list[list[str | int]]:
    """Returns path, size and time of change of every file: what tells whether the documents must be read again."""
    files = [documents] if documents.is_file() else sorted(path for path in documents.rglob("*") if path.is_file())
    return [[str(path.relative_to(documents.parent)), path.stat().st_size, path.stat().st_mtime_ns] for path in files]


def is_unchanged(seen: Path, found: list[list[str | int]]) -> bool:
    """Returns whether `seen` says that the index was made of just these files; a file that cannot be read says nothing."""
    try:
        return bool(json.loads(seen.read_text(encoding="utf-8")) == found)
    except (OSError, ValueError, RecursionError):
        return False


def cached_index(documents: Path, embedder: "Embeddings") -> tuple["PassageStore", str]:
    """Returns the index of the documents and what was done for it, in words; only what is new gets embedded.

    Raises ValueError when no document in the folder can be read.
    """
    from utils.indexes import build_index, open_index

    folder = index_folder(documents)
    seen, found = folder.with_suffix(".sources.json"), fingerprint(documents)
    if is_unchanged(seen, found):
        try:
            store = open_index(folder, embedder)
            return store, f"{store.count} passages, index reopened"
        except ValueError as error:
            print(f"The cached index is not used: {error}", file=sys.stderr)
    passages, problems = read_passages(documents)
    store = build_index(passages, embedder, folder)
    seen.write_text(json.dumps(found), encoding="utf-8")
    return store, f"{store.count} passages, {store.embedded_count} embedded now{problems}"


def read_passages(documents: Path) -> tuple[list, str]:
    """Returns the passages of the folder and, in words, how many files could not be read; those are named on stderr."""
    from utils.corpus import load_documents, split_documents

    loaded = load_documents(documents)
    for problem in loaded.problems:
        print(f"Not read: {problem.path}: {problem.reason}", file=sys.stderr)
    passages = split_documents(loaded.documents)
    if not passages:
        raise ValueError(f"there is no text in {documents}; put md, txt, html, pdf or ipynb files there.")
    return passages, f", {len(loaded.problems)} files not read" if loaded.problems else ""


def course_retriever(store: "PassageStore", embedder: "SentenceEmbedder") -> "RerankingRetriever":
    """Returns the search that did best in chapter 06 for its cost: words and meanings fused, then late interaction."""
    from utils.reranking import LateInteractionReranker
    from utils.retrieval import BM25Retriever, DenseRetriever, HybridRetriever, RerankingRetriever

    hybrid = HybridRetriever(retrievers=[DenseRetriever(store=store), BM25Retriever(passages=store.documents)])
    return RerankingRetriever(retriever=hybrid, reranker=LateInteractionReranker(embedder))


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Lets Python look for garbage only afterwards: loading makes objects that stay, and looking through them took a fifth of its time."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # what is there now is never looked through
        gc.enable()


def answer(question: str, documents: Path) -> tuple["RagAnswer", str, float]:
    """Prints the answer while it is written; returns it with what was done for the index and the seconds of searching and answering.

    The passages are searched while the language model loads: two threads that mostly compute, each on a core of its own if there are two.
    """
    with without_garbage_collection(), ThreadPoolExecutor(1) as pool:
        from langchain_core.runnables import RunnableLambda

        from utils.models import load_chat_model, load_embedder
        from utils.rag import build_rag_chain
        from utils.reranking import MAX_SIM_EVIDENCE

        embedder = load_embedder()
        store, done = cached_index(documents, embedder)
        retriever = course_retriever(store, embedder)
        searched = pool.submit(timed, partial(retriever.invoke, question, top_k=TOP_K))
        found = RunnableLambda(lambda _: searched.result()[0])
        chain = build_rag_chain(found, load_chat_model(), top_k=TOP_K, **MAX_SIM_EVIDENCE)
    start, last = time.perf_counter() - searched.result()[1], None
    for last in chain.stream(question):
        if isinstance(last, str):
            print(last, end="", flush=True)
    print()
    assert last is not None and not isinstance(last, str)
    return last, done, time.perf_counter() - start


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Returns what `work` returns, and its seconds without those in which other threads had the core."""
    start = time.thread_time()
    return work(), time.thread_time() - start


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.ask", description="Answer a question from documents, with citations.")
    parser.add_argument("question", help="what you want to know")
    parser.add_argument(
        "--docs", type=Path, default=HANDBOOK, help="a folder or file of md, txt, html, pdf or ipynb; default: the handbook"
    )
    chosen, start = parser.parse_args(), time.perf_counter()
    documents = chosen.docs.expanduser().resolve()
    if not chosen.question.strip():
        print('Ask something: make ask Q="What is QLoRA?"', file=sys.stderr)
        return 2
    if not documents.exists():
        print(f"There is no {chosen.docs}: give --docs (DOCS= with make) a folder or file that exists.", file=sys.stderr)
        return 2
    try:
        result, done, seconds = answer(chosen.question, documents)
    except ValueError as error:
        print(f"No answer: {error}", file=sys.stderr)
        return 1
    for citation in result.citations:
        print(f"  {citation}")
    print(f"({done}; answered in {seconds:.1f} s, {time.perf_counter() - start:.1f} s with loading)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
