"""Rerankers: three ways to look again, more slowly, at the passages that a first retriever found.

`CrossEncoderReranker` reads query and passage together, `LateInteractionReranker` compares their tokens (MaxSim), `LLMReranker` asks a
chat model for an order. Each is a function of a query and its passages, for `retrieval.RerankingRetriever`. Models are handed in,
loaded by `models`; nothing here knows where passages come from.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.prompts import ChatPromptTemplate

from utils.retrieval import Judgement
from utils.windows import WindowChooser

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

LISTWISE_PROMPT = ChatPromptTemplate(
    [
        (
            "human",
            "Below are {count} passages, each with its number in brackets. Order them by how well they answer the question, best first.\n\n"
            "{passages}\n\nQuestion: {question}\n\nReply with the numbers only, for example: [2] > [3] > [1]",
        )
    ]
)


MAX_SIM_EVIDENCE: dict[str, Any] = {"min_score": 0.57, "evidence_weight": 60.0}
"""What `build_rag_chain` makes of bare MaxSim by MiniLM, with course-lm, chosen by `tools.train_embedded.weigh_evidence`: one answerable
question of the handbook's dev split in twenty scores below `min_score`, and the weight has the fewest errors of both kinds, there and on
questions of SQuAD 2 that were written to have no answer. Other embedders and models need values of their own."""


def blend(scores: Sequence[float], passages: Sequence[Document], weight: float) -> list[Judgement]:
    """Return a judgement per passage: its score, standardised, plus `weight` times the first stage's score, standardised.

    Standardised: minus the mean, over the standard deviation, of these passages; so the two scales need not agree. The reranker's own
    score goes into the notes. Weight 0 leaves scores as they are. A first stage without scores counts by its ranks.
    """
    if weight == 0:
        return [Judgement(float(score)) for score in scores]
    first = [passage.metadata.get("score") for passage in passages]
    known = [float(one) for one in first if one is not None]
    first_stage = known if len(known) == len(first) else [-float(rank) for rank in range(len(first))]
    mixed = standardized(scores) + weight * standardized(first_stage)
    return [Judgement(float(one), {"reranker_score": float(own)}) for one, own in zip(mixed, scores)]


def standardized(scores: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return the scores minus their mean, over their standard deviation; equal scores become 0."""
    values = np.asarray(scores, dtype=np.float64)
    spread = values.std()
    return (values - values.mean()) / spread if spread > 1e-12 else np.zeros_like(values)


class CrossEncoderReranker:
    """Scores passages by a cross-encoder, which reads query and passage as one text; the score is the model's.

    Of a passage longer than `window_tokens`, the window that shares most words with the query, rare ones counting more, is read, not
    the whole: time grows with length, and the answer is in one place. With the course's reranker, windows of 96 and of 192 tokens each
    lost about 3 points of nDCG@10 to 128 on longer passages. `weight`: see `blend`.
    """

    def __init__(self, model: CrossEncoder, *, window_tokens: int = 128, weight: float = 0.0, batch_size: int = 32) -> None:
        self.model, self.weight, self.batch_size = model, weight, batch_size
        self.best_windows = WindowChooser(model.tokenizer, window_tokens)

    def __call__(self, query: str, passages: list[Document]) -> list[Judgement]:
        """Return a judgement per passage. Raises ValueError if the model gives more than one score per pair."""
        pairs = [(query, window) for window in self.best_windows(query, [passage.page_content for passage in passages])]
        scores = np.asarray(self.model.predict(pairs, batch_size=self.batch_size, show_progress_bar=False))
        if scores.shape != (len(passages),):
            raise ValueError(
                f"The model gave scores of shape {scores.shape} for {len(passages)} pairs: use a cross-encoder with one label."
            )
        return blend(scores.tolist(), passages, self.weight)


class TokenEmbedder(Protocol):
    """What embeds single tokens, as `utils.embedder.SentenceEmbedder` does."""

    def token_embeddings(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return normalised vectors of shape (tokens, dimension) per text."""


class LateInteractionReranker:
    """Scores by MaxSim: each query token takes its most similar passage token, and the similarities are averaged over the query.

    Source: Khattab and Zaharia, ColBERT, 2020, with a mean where ColBERT sums. `weight`: see `blend`. Measured with MiniLM, which was
    not trained for it, on the 20 best passages of hybrid search, 150 questions each of four collections (the handbook's dev split, code,
    mixed texts, Wikipedia): every weight from 0 to 6 raises nDCG@10 on all four; 0.5, the default, by 2.7, 4.2, 3.3 and 5.2 points.
    Vectors of passages are kept in memory as float16, at most `cache_tokens` of them (0.77 KB each with MiniLM): embedded once.
    """

    def __init__(self, embedder: TokenEmbedder, *, weight: float = 0.5, cache_tokens: int = 500_000) -> None:
        self.embedder, self.weight, self.cache_tokens = embedder, weight, cache_tokens
        self._kept: OrderedDict[str, np.ndarray] = OrderedDict()
        self._tokens, self._lock = 0, threading.Lock()

    def __call__(self, query: str, passages: list[Document]) -> list[Judgement]:
        """Return a judgement per passage."""
        vectors = self.vectors([passage.page_content for passage in passages])
        return blend(max_sim(self.embedder.token_embeddings([query])[0], vectors).tolist(), passages, self.weight)

    def vectors(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the token vectors of passages, float16; called with an index's texts ahead of time, it makes the first query fast too."""
        with self._lock:
            found = {text: self._kept[text] for text in texts if text in self._kept}
        missing = [text for text in dict.fromkeys(texts) if text not in found]
        found |= {text: one.astype(np.float16) for text, one in zip(missing, self.embedder.token_embeddings(missing))}
        with self._lock:
            for text in found:
                self._keep(text, found[text])
        return [found[text] for text in texts]

    def _keep(self, text: str, vectors: np.ndarray) -> None:
        """Put the text's vectors last in the cache, and drop the first, longest unused ones beyond the limit."""
        self._tokens += len(vectors) - len(self._kept.pop(text, ()))
        self._kept[text] = vectors
        while self._tokens > self.cache_tokens:
            self._tokens -= len(self._kept.popitem(last=False)[1])


def max_sim(query: np.ndarray, passages: Sequence[np.ndarray]) -> np.ndarray:
    """Return, per passage, the mean over query tokens of the highest cosine similarity to a token of it; shape (passages,).

    query: (tokens, dimension), passages: (tokens, dimension) each, rows of length 1. A text without tokens gets −1. PyTorch multiplies:
    NumPy's threads would still be waiting for more when PyTorch's have the next query to embed, and on two cores that trebled its time.
    """
    import torch

    scores = np.full(len(passages), -1.0)
    filled = [place for place, vectors in enumerate(passages) if len(vectors)]
    if len(query) and filled:
        tokens = torch.from_numpy(np.concatenate([passages[place] for place in filled])).float()
        similarities = (torch.from_numpy(query).float() @ tokens.T).numpy()
        starts = np.cumsum([0, *(len(passages[place]) for place in filled[:-1])])
        scores[filled] = np.maximum.reduceat(similarities, starts, axis=1).mean(axis=0)
    return scores


class LLMReranker:
    """Asks a chat model for the order of the passages (listwise); the score is 1 / rank.

    More than `window` passages go in windows that slide from the end of the list to its front by `step`, as in RankGPT (Sun et al.,
    2023). A passage whose number the reply leaves out stands behind the others in the first stage's order, and its metadata say
    `ranked_by: first stage` instead of `model`. Passages are cut at `max_characters` in the prompt.
    """

    def __init__(self, chat_model: BaseChatModel, *, window: int = 10, step: int = 5, max_characters: int = 800) -> None:
        if not 1 <= step <= window:
            raise ValueError(f"window={window}, step={step}: the step must be at least 1 and at most the window, or passages are skipped.")
        self.chat_model, self.window, self.step, self.max_characters = chat_model, window, step, max_characters

    def __call__(self, query: str, passages: list[Document]) -> list[Judgement]:
        """Return a judgement per passage."""
        order, named = list(range(len(passages))), set[int]()
        last = max(0, len(order) - self.window)
        for start in [*range(last, 0, -self.step), 0]:
            part = order[start : start + self.window]
            chosen = [part[number - 1] for number in self._ask(query, [passages[place] for place in part])]
            order[start : start + self.window] = chosen + [place for place in part if place not in chosen]
            named = named - set(part) | set(chosen)
        rank = {place: position for position, place in enumerate(order, start=1)}
        by = {True: {"ranked_by": "model"}, False: {"ranked_by": "first stage"}}
        return [Judgement(1 / rank[place], by[place in named]) for place in range(len(passages))]

    def _ask(self, query: str, passages: Sequence[Document]) -> list[int]:
        """Return the numbers, from 1, in the order that the model's reply gives them."""
        texts = [" ".join(passage.page_content.split())[: self.max_characters] for passage in passages]
        numbered = "\n\n".join(f"[{number}] {text}" for number, text in enumerate(texts, start=1))
        values: dict[str, Any] = {"count": len(texts), "passages": numbered, "question": " ".join(query.split())}
        return parse_order(str(self.chat_model.invoke(LISTWISE_PROMPT.format_messages(**values)).text), len(passages))


def parse_order(reply: str, count: int) -> list[int]:
    """Return the passage numbers in a model's reply, in its order, each once, those from 1 to `count` only.

    Understands "[2] > [1]", "[2, 1]", "2 > 1", "2, 1" and a list of lines; what a model thinks before its answer does not count, and
    where numbers stand in brackets or in a row, others in the text do not.
    """
    answer = reply.rpartition("</think>")[2]
    bracketed = " ".join(re.findall(r"\[([\d\s,>]+)\]", answer))
    rows = re.findall(r"\d+(?:\s*[>,]\s*\d+)+", answer)
    numbers = re.findall(r"(?<!\d)\d{1,4}(?!\d)", bracketed or max(rows, key=len, default=answer))
    return [number for number in dict.fromkeys(map(int, numbers)) if 1 <= number <= count]
