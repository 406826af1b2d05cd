"""A LangChain chat model around a local transformers model.

Why not `langchain_huggingface.ChatHuggingFace`: with a local pipeline (1.2.2 and 1.2.3) it raises NotImplementedError on `ainvoke`,
its `astream` asks for a client that does not exist, and `batch` generates one prompt after the other. This one streams, batches in one
`generate` call, works async, counts tokens and says why it stopped. Knows the chat template; knows nothing about retrieval.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import RunnableConfig, run_in_executor
from pydantic import PrivateAttr

ROLES = {"human": "user", "ai": "assistant", "system": "system"}


class LocalChatModel(BaseChatModel):
    """Chats with `llm`. Temperature 0 is greedy. A model without a chat template (GPT-2) continues the messages' text.

    `prompt_lookup`: how many tokens to copy from the prompt at once, to be checked by one pass of the model (Saxena, 2023); 0 turns it
    off. A greedy answer stays the same, but for ties that rounding decides, and comes faster where it repeats its prompt, as answers
    from passages do. Seven guesses and the token before them are 8 rows, which int8 copies still multiply fast. One prompt at a time
    only, and not for models that forget (sliding windows, recurrent states), which cannot take a wrong guess back.

    A last message with `additional_kwargs={"opening_bias": {text: value}}` raises the logit of the text's first token by the value where
    the reply begins: `rag` tells the model in this way how sure the search is. Only models whose generation config has a `sequence_bias`
    for that token hear it, as course-lm has; with others "The" opens many answers, not just "The documents do not say."
    """

    llm: Any
    tokenizer: Any
    model_name: str
    max_new_tokens: int = 96
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    batch_size: int = 8
    prompt_lookup: int = 7
    _lock: Any = PrivateAttr(default_factory=threading.Lock)  # one generation at a time: threads would share the same cores

    @property
    def _llm_type(self) -> str:
        return "local-transformers"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        names = ("model_name", "max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty")
        return {name: getattr(self, name) for name in names}

    @property
    def context_length(self) -> int:
        """Tokens the model can see, prompt and answer together."""
        config = self.llm.config.get_text_config()
        return int(getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 2048)

    def get_token_ids(self, text: str) -> list[int]:
        """The model's own tokens of `text`, without special tokens."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Any = None) -> int:
        """Tokens of the whole prompt, chat template included."""
        return self._encode([messages])["input_ids"].shape[1]

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """Answers in order; prompts of similar length share one `generate` call of up to `batch_size`."""
        answer: Any = self._batch  # typed by langchain-core as a function without keyword arguments, which it passes on all the same
        return self._batch_with_config(answer, inputs, config, return_exceptions=return_exceptions, **kwargs)

    async def abatch(self, inputs: list[LanguageModelInput], config: Any = None, **kwargs: Any) -> list[AIMessage]:
        """`batch` in a worker thread, so that the event loop stays free."""
        return await run_in_executor(None, self.batch, inputs, config, **kwargs)

    def _batch(self, inputs: list[LanguageModelInput], stop: list[str] | None = None, **kwargs: Any) -> list[AIMessage]:
        conversations = [self._convert_input(one).to_messages() for one in inputs]
        order = sorted(range(len(inputs)), key=lambda row: sum(len(message.text) for message in conversations[row]))
        answers: dict[int, AIMessage] = {}
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            answers.update(zip(rows, self._answer([conversations[row] for row in rows], stop, kwargs), strict=True))
        return [answers[row] for row in range(len(inputs))]

    def _generate(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: CallbackManagerForLLMRun | None = None, **kwargs: Any
    ) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self._answer([messages], stop, kwargs)[0])])

    def _answer(self, conversations: Sequence[list[BaseMessage]], stop: list[str] | None, options: dict[str, Any]) -> list[AIMessage]:
        prompt = self._encode(conversations)
        generation = self._generation(prompt, stop, options) | self._opening_biases(conversations, prompt)
        with self._lock:
            output = self.llm.generate(**prompt, **generation)
        answers = output[:, prompt["input_ids"].shape[1] :].tolist()
        return [self._message(ids, int(used), stop) for ids, used in zip(answers, prompt["attention_mask"].sum(dim=1), strict=True)]

    def _message(self, ids: list[int], prompt_tokens: int, stop: list[str] | None) -> AIMessage:
        ends = self._end_ids()
        length = next((at for at, token in enumerate(ids) if token in ends), len(ids))
        text = self.tokenizer.decode(ids[:length], skip_special_tokens=True, clean_up_tokenization_spaces=False).lstrip()
        shown = cut_at_stop(text, stop)
        finished = length < len(ids) or shown != text
        return AIMessage(content=shown, **self._metadata(prompt_tokens, length, finished))

    def _metadata(self, prompt_tokens: int, answer_tokens: int, finished: bool) -> dict[str, Any]:
        usage = {"input_tokens": prompt_tokens, "output_tokens": answer_tokens, "total_tokens": prompt_tokens + answer_tokens}
        return {
            "usage_metadata": usage,
            "response_metadata": {"model_name": self.model_name, "finish_reason": "stop" if finished else "length"},
        }

    def _stream(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: CallbackManagerForLLMRun | None = None, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        from utils.streaming import Stream

        prompt = self._encode([messages])
        generation = self._generation(prompt, stop, kwargs) | self._opening_biases([messages], prompt)
        run = Stream(self.llm, self.tokenizer, prompt, generation, self._lock, stop)
        for text in run:
            chunk = ChatGenerationChunk(message=AIMessageChunk(content=text))
            if run_manager:
                run_manager.on_llm_new_token(text, chunk=chunk)
            yield chunk
        ids = run.token_ids
        finished = run.stopped or (bool(ids) and ids[-1] in self._end_ids())
        metadata = self._metadata(prompt["input_ids"].shape[1], len(ids) - (bool(ids) and ids[-1] in self._end_ids()), finished)
        yield ChatGenerationChunk(message=AIMessageChunk(content="", chunk_position="last", **metadata))

    def _encode(self, conversations: Sequence[list[BaseMessage]]) -> dict[str, Any]:
        """input_ids and attention_mask, left-padded, each of shape (conversations, tokens), on the model's device."""
        plain = without_special_tokens(self.tokenizer)
        chats = [[{"role": ROLES.get(one.type, one.type), "content": plain(str(one.text))} for one in chat] for chat in conversations]
        if self.tokenizer.chat_template:
            encoded = self.tokenizer.apply_chat_template(
                chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", padding=True
            )
        else:
            texts = ["\n\n".join(message["content"] for message in chat) for chat in chats]
            encoded = self.tokenizer(texts, return_tensors="pt", padding=True)
        return {name: encoded[name].to(self.llm.device) for name in ("input_ids", "attention_mask")}

    def _generation(self, prompt: dict[str, Any], stop: list[str] | None, options: dict[str, Any]) -> dict[str, Any]:
        """Keyword arguments of `generate`. Raises ValueError when the prompt leaves no room for an answer."""
        from transformers import GenerationConfig

        settings = self._identifying_params | options
        room = self.context_length - prompt["input_ids"].shape[1]
        if room < 1:
            raise ValueError(
                f"The prompt has {prompt['input_ids'].shape[1]} tokens, {self.model_name} sees {self.context_length}. "
                "Send fewer or shorter passages, or choose a model with a longer context."
            )
        sampling = {name: settings[name] for name in ("temperature", "top_p", "top_k")} if settings["temperature"] > 0 else {}
        config = GenerationConfig(
            max_new_tokens=min(settings["max_new_tokens"], room),
            do_sample=bool(sampling),
            repetition_penalty=settings["repetition_penalty"],
            eos_token_id=sorted(self._end_ids()) or None,
            pad_token_id=self.tokenizer.pad_token_id,
            prompt_lookup_num_tokens=self.prompt_lookup if self._may_look_up(prompt, sampling) else None,
            **sampling,
        )
        return {"generation_config": config} | ({"stop_strings": stop, "tokenizer": self.tokenizer} if stop else {})

    def _opening_biases(self, conversations: Sequence[list[BaseMessage]], prompt: dict[str, Any]) -> dict[str, Any]:
        """The `logits_processor` of `generate` for conversations whose last message carries an `opening_bias` that this model knows."""
        known = {ids[0] for ids, _ in self.llm.generation_config.sequence_bias or [] if len(ids) == 1}
        asked = [chat[-1].additional_kwargs.get("opening_bias", {}) if chat else {} for chat in conversations]
        firsts = [{self.get_token_ids(text)[0]: value for text, value in one.items()} for one in asked]
        biases = [{token: value for token, value in one.items() if token in known} for one in firsts]
        return {"logits_processor": [OpeningBias(biases, prompt["input_ids"].shape[1])]} if any(biases) else {}

    def _may_look_up(self, prompt: dict[str, Any], sampling: dict[str, Any]) -> bool:
        config = self.llm.config.get_text_config()
        layers = getattr(config, "layer_types", None) or ["sliding" if getattr(config, "sliding_window", None) else "full_attention"]
        remembers = set(layers) == {"full_attention"} and not getattr(self.llm, "_is_stateful", False)
        return self.prompt_lookup > 0 and remembers and not sampling and len(prompt["input_ids"]) == 1

    def _end_ids(self) -> set[int]:
        """Tokens that end an answer: the tokenizer's and those of the model's generation config."""
        ids = self.llm.generation_config.eos_token_id
        ends = set(ids) if isinstance(ids, list) else {ids}
        return {int(one) for one in ends | {self.tokenizer.eos_token_id} if one is not None}


class OpeningBias:
    """A logits processor: adds to the logits of tokens where a reply begins, for each row of the batch its own.

    biases: per row, what to add to which token id. prompt_tokens: the length of the prompts, padding included. Later tokens are left alone.
    """

    def __init__(self, biases: list[dict[int, float]], prompt_tokens: int) -> None:
        self.biases, self.prompt_tokens = biases, prompt_tokens

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """(rows, vocabulary) scores, changed where `input_ids`, (rows, tokens), end with the prompt."""
        if input_ids.shape[1] == self.prompt_tokens:
            for row, bias in zip(scores, self.biases, strict=True):
                for token, value in bias.items():
                    row[token] += value
        return scores


def without_special_tokens(tokenizer: Any) -> Callable[[str], str]:
    """A function that puts a space into each special token a text spells out: "<|im_end|>" in a passage ends nobody's turn.

    A chat template pastes texts as they are, and the tokenizer would read such marks as its own. Other texts come back unchanged.
    """
    known = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special} | set(tokenizer.all_special_tokens)

    def plain(text: str) -> str:
        text = text.encode("utf-8", "replace").decode("utf-8")  # tokenizers reject half characters
        spelled = [re.escape(mark) for mark in known if len(mark) > 1 and mark in text]
        return re.sub(rf"(?={'|'.join(spelled)})[\s\S]", r"\g<0> ", text) if spelled else text

    return plain


def cut_at_stop(text: str, stop: list[str] | None) -> str:
    """`text` up to the first of the `stop` strings."""
    return text[: min((text.find(one) for one in stop or [] if one in text), default=len(text))]
