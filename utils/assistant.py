"""The assistant of chapter 12: documents in, a conversation with cited answers out.

Wires the course's parts together: `library` keeps documents, `retrieval` and `reranking` search, `conversation` remembers and completes
follow-ups, `screening` guards, `rag` answers. Knows documents by name, page and section; knows nothing of web pages (`tools.app` has
one) or of how a model runs.

    assistant = Assistant(load_chat_model(), load_embedder(), "build/assistant")
    print(assistant.add("data/pdfs/handbook.pdf"))
    print(assistant.ask("What is the default block size of NF4?"))     # 64 (handbook.pdf, p. 9)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import Runnable, RunnableLambda

from utils.citations import RagAnswer
from utils.conversation import Conversations, Rewriter, Turn, after_previous_if_incomplete
from utils.library import DocumentReport, Library, Progress
from utils.rag import build_rag_chain
from utils.reranking import MAX_SIM_EVIDENCE, LateInteractionReranker
from utils.retrieval import BM25Retriever, DenseRetriever, HybridRetriever, Reranker, RerankingRetriever, ScoredRetriever, passage_key
from utils.screening import safe_stream, safe_text, screen

__all__ = ["Assistant", "AssistantAnswer", "DocumentReport", "PageCitation"]

Withheld = dict[str, list[str]]
"""By question, the sentences for whose sake screening kept passages from the model."""
SPARE = 2  # passages found beyond top_k, to take the place of those that screening leaves out


@dataclass(frozen=True)
class PageCitation:
    """Where an answer stands: the document's name, the page (None in formats without pages), the section, and the passage's text."""

    document: str
    page: int | None
    section: str
    text: str
    quote: str
    """The passage's sentence that best supports the answer, verbatim."""

    @property
    def label(self) -> str:
        """Return "(handbook.pdf, p. 12)"."""
        return f"({self.document})" if self.page is None else f"({self.document}, p. {self.page})"


@dataclass(frozen=True)
class AssistantAnswer:
    """An answer with its citations. `str` is the text with the labels behind it."""

    question: str
    standalone: str
    """The question that was searched for: the one asked, completed from the conversation."""
    answer: str
    citations: tuple[PageCitation, ...]
    abstained: bool
    passages: tuple[Document, ...] = ()
    """What the model was shown, best first."""
    withheld: tuple[str, ...] = ()
    """Sentences for whose sake a passage was kept from the model: they speak to a model instead of a reader."""

    def __str__(self) -> str:
        return " ".join([self.answer, *dict.fromkeys(citation.label for citation in self.citations)])


class Assistant:
    """Answers from the documents added to it, per session; one for a process, usable from several threads.

    `folder` keeps index and reports: a new assistant on the same folder goes on where the last one stopped. `reranker`:
    "late-interaction", None, or any reranker of `utils.reranking`. `defended=False` leaves screening out, to measure what it does.
    """

    def __init__(
        self,
        chat_model: BaseChatModel,
        embedder: Embeddings,
        folder: str | Path,
        *,
        top_k: int = 2,
        reranker: str | Reranker | None = "late-interaction",
        rewriter: Rewriter = after_previous_if_incomplete,
        defended: bool = True,
    ) -> None:
        self.chat_model, self.top_k, self.rewriter, self.defended = chat_model, top_k, rewriter, defended
        self.reranker = _reranker(reranker, embedder)
        self.conversations = Conversations()
        self.library = Library(embedder, folder)
        self._search = self._searcher()

    def add(self, path: str | Path, *, name: str | None = None, progress: Progress | None = None) -> DocumentReport:
        """Take one file in and return what became of it, as `Library.add` does."""
        report = self.library.add(path, name=name, progress=progress)
        if report.passages:
            self._search = self._searcher()
        return report

    def remove(self, name: str) -> DocumentReport:
        """Forget a document and return the report it had, as `Library.remove` does; answers given from it stay in the conversations."""
        report = self.library.remove(name)
        self._search = self._searcher()
        return report

    def documents(self) -> list[DocumentReport]:
        """Return the reports of all documents that can be asked about, in the order of their arrival."""
        return self.library.reports()

    def ask(self, question: str, session: str = "default") -> AssistantAnswer:
        """Return the answer; the session's earlier turns complete a follow-up question. Raises ValueError as `stream` does."""
        *_, answer = self.stream(question, session)
        assert isinstance(answer, AssistantAnswer)
        return answer

    def stream(self, question: str, session: str = "default") -> Iterator[str | AssistantAnswer]:
        """Yield pieces of the answer's text as they are written, then the whole `AssistantAnswer`, which is what counts.

        Raises ValueError if the question is blank or no document was added.
        """
        if not question.strip():
            raise ValueError("The question is empty. Ask something about the documents.")
        standalone = self.rewriter(question, self.conversations.turns(session))
        withheld: Withheld = {}
        result: list[RagAnswer] = []
        pieces = _texts(self.chain(withheld, standalone).stream(question.strip()), result)
        yield from safe_stream(pieces) if self.defended else pieces
        answer = self._finished(standalone, result[0], withheld)
        self.conversations.add(session, Turn(question.strip(), standalone, answer.answer))
        yield answer

    def ask_all(self, questions: Sequence[str]) -> list[AssistantAnswer]:
        """Return the answers to questions that stand alone, generated in batches: no session, no memory."""
        withheld: Withheld = {}
        found = self.chain(withheld).batch(list(questions))
        return [self._finished(question.strip(), one, withheld) for question, one in zip(questions, found, strict=True)]

    def reset(self, session: str = "default") -> None:
        """Forget the conversation of one session; documents stay."""
        self.conversations.reset(session)

    def chain(self, withheld: Withheld | None = None, searched: str | None = None) -> Runnable[str, RagAnswer]:
        """Return the chain from a question to an answer; `withheld` gets what screening left out, by question.

        `searched`: what is searched for in the question's place. The model still reads the question as asked: with the completed one, two
        questions in one, course-lm's F1 on 20 follow-ups was 0.38 instead of 0.51. Raises ValueError if no document was added.
        """
        noted: Withheld = {} if withheld is None else withheld

        def found(question: str) -> list[Document]:
            passages = self.search(searched or question)
            if self.defended:
                passages, noted[question] = screen(passages)
            return passages

        weighed = MAX_SIM_EVIDENCE if isinstance(self.reranker, LateInteractionReranker) else {}
        return build_rag_chain(RunnableLambda(found), self.chat_model, top_k=self.top_k, **weighed)

    def search(self, question: str) -> list[Document]:
        """Return the passages for a standalone question, best first: some more than `top_k`, in case screening takes any.

        Raises ValueError if no document was added.
        """
        if self._search is None:
            raise ValueError("There is no document to answer from yet. Add one first: assistant.add('file.pdf').")
        return self._search.invoke(question, top_k=self.top_k + SPARE)

    def _searcher(self) -> ScoredRetriever | None:
        """Return the search over all documents: hybrid, reranked; None while there is no document."""
        store = self.library.store
        if store is None:
            return None
        hybrid = HybridRetriever(retrievers=[DenseRetriever(store=store), BM25Retriever(passages=store.documents)])
        return RerankingRetriever(retriever=hybrid, reranker=self.reranker) if self.reranker else hybrid

    def _finished(self, searched: str, found: RagAnswer, withheld: Withheld) -> AssistantAnswer:
        text = safe_text(found.answer) if self.defended else found.answer
        passages = {passage_key(passage): passage for passage in found.passages}
        citations = tuple(_page_citation(passages[one.passage_id], one.quote) for one in found.citations)
        kept_out = tuple(withheld.get(found.question, ()))
        return AssistantAnswer(found.question, searched, text, citations, found.abstained, tuple(found.passages), kept_out)


def _reranker(chosen: str | Reranker | None, embedder: Any) -> Reranker | None:
    """Return the reranker that was asked for by name, as an object, or not at all."""
    if not isinstance(chosen, str):
        return chosen
    if chosen != "late-interaction":
        raise ValueError(f"Unknown reranker {chosen!r}. Use 'late-interaction', None, or an object of utils.reranking.")
    return LateInteractionReranker(embedder)


def _texts(stream: Iterator[Any], result: list[RagAnswer]) -> Iterator[str]:
    """Yield the stream's pieces of text, and put the answer that comes last into `result`."""
    for one in stream:
        if isinstance(one, str):
            yield one
        else:
            result.append(one)


def _page_citation(passage: Document, quote: str) -> PageCitation:
    meta = passage.metadata
    section = str(meta.get("headings") or meta.get("section") or "")
    return PageCitation(str(meta["source"]), meta.get("page"), section, passage.page_content, quote)
