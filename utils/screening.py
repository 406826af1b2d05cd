"""Screening: what passages and answers must not carry where documents come from strangers.

A document may hold text meant for the model instead of the reader (indirect prompt injection: Greshake et al., 2023, arXiv:2302.12173).
Before the prompt, `screen` cleans passages; after the model, `safe_text` cleans answers. Rules over words: they understand nothing, so a
false statement in plain words passes, and so does an attacker who knows the rules. `data/injections.jsonl` measures both.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from langchain_core.documents import Document

LEFT_OUT = "[left out]"

_INVISIBLE = re.compile("[\u00ad\u200b-\u200d\u2060-\u2064\ufeff\U000e0000-\U000e007f]")
_CHAT_MARKUP = re.compile(r"<\|[^<>|]{1,40}\|>|\[/?INST\]|<</?SYS>>|</?s>")
_SENTENCE = re.compile(r"(?<=[.!?])[\"'”’)\]]*\s+|\n\s*\n|\n(?=\s*(?:#+|[-*]|\w+(?: \w+)?:)\s)")

_MODEL = r"(?:assistants?|chat ?bots?|language models?|llms?|(?:an? )?ai\b(?: (?:systems?|readers?|models?))?|automated readers?|bots?)"
_ORDER = r"(?:answer|reply|respond|output|print|say|write|repeat|cite|insert|include|copy|give|state|report|render|add|continue)"
_REPLY = r"(?:answers?|repl(?:y|ies)|responses?|outputs?)"
_MUST = r"(?:must|should|shall|has to|have to|may not)"
_TELLS = {
    "takes instructions back": r"\b(?:ignore|disregard|forget|override)\b.{0,40}"
    r"\b(?:instructions?|rules?|passages?|documents?|above|question)\b",
    "speaks of a model's duty": rf"\b{_MODEL}\W+(?:\w+\W+)?(?:{_MUST}|please|always|respond|reply)\b",
    "is addressed to a model": rf"\b(?:if|dear|note to|using|(?:text|line|note|message|instructions?)\b.{{0,30}}\bfor)\b"
    rf".{{0,30}}\b{_MODEL}\b",
    "orders an answer": rf"(?:^|[,;:]\s*|\b(?:please|only|then|and|always|you|{_MUST})\s+){_ORDER}\b.{{0,60}}"
    rf"(?:\b(?:only|exactly|nothing else|every|each|always|{_REPLY})\b|:\s*\S)",
    "speaks of the answer to come": rf"\b(?:your|(?:in|with) every)\s+(?:\w+\s+)?{_REPLY}\b",
    "orders its reader": rf"^You are\b|\b(?:you|whoever|your)\b.{{0,40}}"
    rf"\b(?:{_MUST}|are now|only task|instructions?|{_ORDER})\b",
    "opens a turn": r"<\|(?:im_start|im_end|system|user|assistant|start_header_id|eot_id)\|>|\[/?INST\]|<</?SYS>>",
    "plays a role": r"^\W*(?:system|user|assistant|developer|human|ai|policy|question|"
    rf"{_REPLY})(?: message| update| prompt)?\s*\d*\s*(?::|$)",
    "speaks for the assistant": r"\b(?:documents|passages) (?:above )?(?:do not|don't|cannot) (?:say|contain|answer)\b|"
    r"\bend of (?:the )?passages\b",
}
_SUSPICIOUS = re.compile("|".join(f"(?:{tell})" for tell in _TELLS.values()), re.IGNORECASE | re.DOTALL)

_ADDRESS = re.compile(r"\S*(?:\w://|\]\(|\bwww\.|<[a-zA-Z/!])\S*")
_LABEL = re.compile(r"\(?[\w.-]+\.(?:pdf|md|txt|html?|docx?)\b(?:,? (?:p|page|pp)\.? ?\d+)?\)?", re.IGNORECASE)


def without_markup(text: str) -> str:
    """Return the text without invisible characters and with chat markup broken: "<|im_end|>" is text again, not the end of a message.

    A chat template puts passages into the prompt as they are, and a tokenizer turns such marks into the same tokens it uses itself.
    """
    visible = _INVISIBLE.sub("", text)
    return _CHAT_MARKUP.sub(lambda mark: " ".join(re.findall(r"\w+", mark[0])), visible)


def suspicious_sentences(text: str) -> list[str]:
    """Return the sentences of a text, in order, that speak to a model instead of a reader."""
    return [sentence for sentence in sentences(_INVISIBLE.sub("", text)) if _SUSPICIOUS.search(sentence)]


def sentences(text: str) -> list[str]:
    """Return a text's sentences, headings and lines of a list, stripped."""
    return [part.strip() for part in _SENTENCE.split(text) if part and part.strip()]


def screen(passages: Sequence[Document]) -> tuple[list[Document], list[str]]:
    """Return the passages fit for a prompt, and what was left out: a passage with a sentence that speaks to a model is left out whole.

    The rest of such a passage is bait. The others come back without chat markup and invisible characters; nothing else is changed.
    """
    kept, withheld = [], []
    for passage in passages:
        suspicious = suspicious_sentences(passage.page_content)
        withheld += suspicious
        if not suspicious:
            text = without_markup(passage.page_content)
            kept.append(passage if text == passage.page_content else passage.model_copy(update={"page_content": text}))
    return kept, withheld


def safe_text(text: str) -> str:
    """Return an answer's text without addresses and without page references: showing it loads nothing, and only the program cites."""
    return _LABEL.sub(LEFT_OUT, _ADDRESS.sub(LEFT_OUT, text))


def safe_stream(pieces: Iterable[str]) -> Iterator[str]:
    """Yield the pieces word by word, addresses left out at once; what they add up to may still lose a page reference in `safe_text`."""
    pending = ""
    for piece in pieces:
        pending += piece
        complete = re.match(r".*\s", pending, re.DOTALL)
        if complete:
            yield _ADDRESS.sub(LEFT_OUT, complete[0])
            pending = pending[complete.end() :]
    if pending:
        yield _ADDRESS.sub(LEFT_OUT, pending)
