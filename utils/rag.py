"""Retrieval-augmented generation: an answer from passages, with citations, or an honest "the documents do not say".

`build_rag_chain` is plain LCEL: retrieve → fit → prompt → chat model → read the reply. The prompt is one user message: the
question, the numbered passages, and the question again, because a causal model reads once, left to right, and must know what to
look for. Knows retrievers and chat models through LangChain's interfaces; knows nothing of how passages are stored or what
runs the model. What a reply means is `citations`' business.
"""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from typing import Any, cast

from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.messages.utils import count_tokens_approximately
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableBranch, RunnableGenerator, RunnableLambda, RunnableParallel, RunnablePassthrough
from langchain_core.runnables.config import get_config_list
from langchain_core.runnables.passthrough import RunnableAssign

from utils.citations import ABSTENTION, Citation, RagAnswer, parse_answer, read_reply
from utils.retrieval import ScoredRetriever, evidence, missing_names

__all__ = [
    "ABSTENTION", "INSTRUCTION", "PROMPT", "UNKNOWN_NAME", "Citation", "RagAnswer", "build_rag_chain", "parse_answer",
    "rag_messages", "read_reply",
]  # fmt: skip

INSTRUCTION = f"Answer the question from the passages. If they do not say, answer: {ABSTENTION}"
UNKNOWN_NAME = 0.05  # a name of the question that no passage mentions weighs like evidence so far below min_score
PROMPT = ChatPromptTemplate([("human", INSTRUCTION + "\n\nQuestion: {question}\n\n{passages}\n\nQuestion: {question}")])

State = dict[str, Any]
"""What travels through the chain: question, passages, truncated, and from the model on the reply."""


def build_rag_chain(
    retriever: Runnable[str, list[Document]],
    chat_model: BaseChatModel,
    *,
    top_k: int = 3,
    max_prompt_tokens: int | None = None,
    min_score: float | None = None,
    evidence_weight: float = 0.0,
) -> Runnable[str, RagAnswer]:
    """Return a chain from a question to a `RagAnswer`; `stream` yields pieces of the answer's text, then the `RagAnswer`.

    top_k: passages in the prompt at most. max_prompt_tokens: passages that do not fit are left out, last ones first
    (default: what a local model's context leaves beside the answer). min_score: abstain without asking the model if no
    passage scores that high, by `retrieval.evidence`. evidence_weight: for each unit that the best passage scores above min_score, a
    local model's logit of abstaining is lowered by so much, if it was calibrated for that as course-lm was; others do not hear of it.
    Where the question holds a name that no passage mentions (`retrieval.missing_names`), it is raised, by `UNKNOWN_NAME` times that.

    Raises ValueError if there is an evidence_weight without the min_score that it counts from.
    """
    if evidence_weight and min_score is None:
        raise ValueError("evidence_weight counts from min_score: give both, for instance min_score=0.57, evidence_weight=20.")
    asked = retriever.bind(top_k=top_k) if isinstance(retriever, ScoredRetriever) else retriever
    limit = max_prompt_tokens or _room_for_prompt(chat_model)
    retrieve = RunnableParallel(question=RunnablePassthrough(), passages=asked)
    fit = RunnableLambda(partial(_fit, top_k=top_k, limit=limit, count=_token_counter(chat_model)))
    ask = RunnableLambda(partial(_prompt, min_score=min_score, evidence_weight=evidence_weight)) | chat_model | StrOutputParser()
    reply = _AssignReply(ask, partial(_worth_asking, min_score=min_score))
    chain = retrieve | fit | reply | RunnableGenerator(_read_stream, _aread_stream)
    return cast(Runnable[str, RagAnswer], chain.with_types(input_type=str, output_type=RagAnswer))


def rag_messages(question: str, passages: Sequence[Document | str]) -> list[dict[str, str]]:
    """Return the chain's prompt as a chat, for `tokenizer.apply_chat_template` or a chat model: one user message."""
    values = _prompt_values({"question": question, "passages": passages})
    return [{"role": "user", "content": str(PROMPT.format_messages(**values)[0].content)}]


def _prompt(state: State, *, min_score: float | None, evidence_weight: float) -> list[BaseMessage]:
    """Return the prompt; it carries, for a local model, how much the evidence of the passages speaks against abstaining."""
    messages = PROMPT.format_messages(**_prompt_values(state))
    if min_score is not None and evidence_weight:
        unknown = missing_names(state["question"], state["passages"])
        below = UNKNOWN_NAME if unknown else min_score - evidence(state["passages"])
        messages[-1].additional_kwargs["opening_bias"] = {ABSTENTION: evidence_weight * below}
    return messages


def _prompt_values(state: State) -> dict[str, str]:
    """Return what fills the prompt: the question, and the passages numbered from 1."""
    texts = [passage if isinstance(passage, str) else passage.page_content for passage in state["passages"]]
    numbered = [f"[{number}] {text.strip()}" for number, text in enumerate(texts, start=1)]
    return {"question": state["question"].strip(), "passages": "\n\n".join(numbered)}


def _fit(state: State, *, top_k: int, limit: int | None, count: Callable[[list[BaseMessage]], int]) -> State:
    """Return the state with as many of the first `top_k` passages as the prompt holds. Passages are never cut inside."""
    question, found = state["question"], state["passages"][:top_k]
    kept = list(found)
    while limit and kept:
        needed = count(PROMPT.format_messages(**_prompt_values({"question": question, "passages": kept})))
        if needed <= limit:
            break
        if len(kept) == 1:
            raise ValueError(
                f"The question and its best passage need {needed} tokens, but the prompt may have {limit}. "
                "Split the documents into smaller passages, shorten the question, or raise max_prompt_tokens."
            )
        kept.pop()
    return {"question": question, "passages": kept, "truncated": len(kept) < len(found)}


def _room_for_prompt(chat_model: BaseChatModel) -> int | None:
    """Return the tokens that a local model's context leaves beside the answer, at least half; None if the context is unknown."""
    context = getattr(chat_model, "context_length", None)
    return max(context - getattr(chat_model, "max_new_tokens", 0), context // 2) if context else None


def _token_counter(chat_model: BaseChatModel) -> Callable[[list[BaseMessage]], int]:
    """Return what counts a prompt's tokens: a local model's own tokenizer, else a cautious 3 characters per token.

    LangChain's default counter, and that of OpenAI's models, would fetch a tokenizer from the network.
    """
    if hasattr(chat_model, "context_length") or chat_model.custom_get_token_ids is not None:
        return chat_model.get_num_tokens_from_messages
    return partial(count_tokens_approximately, chars_per_token=3.0)


def _worth_asking(state: State, *, min_score: float | None) -> bool:
    """Return whether retrieval found anything that may hold the answer."""
    passages = state["passages"]
    return bool(passages) and (min_score is None or evidence(passages) >= min_score)


class _AssignReply(RunnableAssign):
    """`RunnablePassthrough.assign(reply=ask)` that abstains where there is nothing to ask.

    A batch reaches the model as one batch: LangChain's own `assign` makes it threads, right for a server, slow for a local model.
    """

    ask: Any
    worth_asking: Any

    def __init__(self, ask: Runnable, worth_asking: Callable[[State], bool]) -> None:
        reply = RunnableBranch((worth_asking, ask), RunnableLambda(lambda state: ABSTENTION))
        super().__init__(RunnableParallel(reply=reply), ask=ask, worth_asking=worth_asking)

    def batch(self, inputs: list[State], config: Any = None, *, return_exceptions: bool = False, **kwargs: Any) -> list[Any]:
        """Return the states with their replies, or with `return_exceptions` the error in its place."""
        asked, configs = self._asked(inputs, config)
        return self._with_replies(inputs, asked, self.ask.batch(asked, configs, return_exceptions=return_exceptions))

    async def abatch(self, inputs: list[State], config: Any = None, *, return_exceptions: bool = False, **kwargs: Any) -> list[Any]:
        """Return the same as `batch`."""
        asked, configs = self._asked(inputs, config)
        return self._with_replies(inputs, asked, await self.ask.abatch(asked, configs, return_exceptions=return_exceptions))

    def _asked(self, inputs: list[State], config: Any) -> tuple[list[State], list[Any]]:
        pairs = [(s, c) for s, c in zip(inputs, get_config_list(config, len(inputs)), strict=True) if self.worth_asking(s)]
        return [state for state, _ in pairs], [one for _, one in pairs]

    def _with_replies(self, inputs: list[State], asked: list[State], replies: list[Any]) -> list[Any]:
        reply_of = {id(state): reply for state, reply in zip(asked, replies, strict=True)}
        all_replies = [reply_of.get(id(state), ABSTENTION) for state in inputs]
        return [r if isinstance(r, Exception) else s | {"reply": r} for s, r in zip(inputs, all_replies, strict=True)]


def _read_stream(chunks: Iterator[State]) -> Iterator[str | RagAnswer]:
    """Yield the reply's text as it comes, markers left out, then the whole answer."""
    state: State = {"reply": ""}
    for chunk in chunks:
        yield from _new_text(state, chunk)
    yield read_reply(**state)


async def _aread_stream(chunks: AsyncIterator[State]) -> AsyncIterator[str | RagAnswer]:
    """Yield the same as `_read_stream`."""
    state: State = {"reply": ""}
    async for chunk in chunks:
        for piece in _new_text(state, chunk):
            yield piece
    yield read_reply(**state)


def _new_text(state: State, chunk: State) -> Iterator[str]:
    """Merge the chunk into the state, and yield the text that has become visible by it, if any."""
    before = len(parse_answer(state["reply"], len(state.get("passages", []))))
    state |= chunk | {"reply": state["reply"] + chunk.get("reply", "")}
    if new := parse_answer(state["reply"], len(state["passages"]))[before:]:
        yield new
