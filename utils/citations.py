"""Citations: from a model's reply to an answer that points at its passages.

A reply may cite by markers, as in "four bits [2]"; they are parsed and kept out of the answer's text. A reply without markers
gets the passage that shares most words with it (post-hoc attribution), and so does one whose marker points beside the passage that it
was copied from. Knows texts and passages; nothing of models or chains.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from langchain_core.documents import Document

from utils.retrieval import passage_key, tokenize

ABSTENTION = "The documents do not say."

# "[2]" or "[1, 3]" standing free (not the index in "x[2]"), and one that a stream has only begun.
_MARKER = re.compile(r"\s*(?<!\w)\[(\d{1,2}(?:\s*,\s*\d{1,2})*)\]")
_UNFINISHED = re.compile(r"\s*(?:(?<!\w)\[[\d,\s]*)?$")
_SENTENCE_BORDER = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n\s*\n|\n(?=\s*(?:[-*#|]|\d+\.)\s)")
_HEADING = re.compile(r"^#{1,6}[ \t].*$", re.MULTILINE)
_STOP_WORDS = frozenset("a an and are as at be by does for from how in is it its of on or that the this to was what which with".split())


@dataclass(frozen=True)
class Citation:
    """A pointer from an answer to the passage that supports it."""

    number: int
    """The passage's number in the prompt, from 1."""
    source: str
    title: str
    page: int | None
    passage_id: str
    quote: str
    """The passage's sentence that best supports the answer, verbatim."""

    def __str__(self) -> str:
        place = self.source if self.page is None else f"{self.source}, page {self.page}"
        return f"[{self.number}] {self.title} ({place}): “{' '.join(self.quote.split())}”"


@dataclass(frozen=True)
class RagAnswer:
    """What the chain returns. `print` shows the answer and its citations."""

    question: str
    answer: str
    citations: list[Citation]
    passages: list[Document]
    """What retrieval found, as numbered in the prompt."""
    abstained: bool
    citation_method: Literal["model", "overlap", "none"]
    """Who chose the citations: the model by its markers, or the largest overlap of words with the answer."""
    truncated: bool
    """True if passages were left out to fit into the prompt."""

    def __str__(self) -> str:
        return "\n".join([self.answer, *map(str, self.citations)])

    def __radd__(self, pieces: str) -> "RagAnswer":
        """Return self: LangChain adds up what a stream yields, and the pieces of text add up to this answer."""
        return self


def read_reply(question: str, passages: list[Document], reply: str, truncated: bool = False) -> RagAnswer:
    """Return the answer in a model's reply: its text, whether it abstains, and what it cites.

    Without a valid marker, the passage that shares most words with the answer is cited (post-hoc attribution). A marker is not valid
    if another passage holds every word of the answer, and none of those that are cited does: small models copy well and count badly.
    """
    answer, texts = parse_answer(reply, len(passages)), [passage.page_content for passage in passages]
    abstained = tokenize(answer)[:5] == tokenize(ABSTENTION)
    numbers = [] if abstained else cited_numbers(reply, len(passages))
    if (whole := _holding_all(texts, answer)) and not whole & set(numbers):
        numbers = []
    method: Literal["model", "overlap", "none"] = "model" if numbers else "none"
    if not numbers and not abstained and (number := _closest(texts, answer, question)):
        numbers, method = [number], "overlap"
    citations = [_cite(number, passages[number - 1], answer, question) for number in numbers]
    return RagAnswer(question, answer, citations, passages, abstained, method, truncated)


def parse_answer(reply: str, count: int = 99) -> str:
    """Return the answer's text: the reply without citation markers, whole or begun; `count` passages were shown.

    Whatever is visible of a reply's beginning stays visible, so a stream never has to take text back.
    """
    certain = _UNFINISHED.sub("", reply)
    return _MARKER.sub(lambda marker: "" if _is_citation(_numbers(marker), count) else marker[0], certain).lstrip()


def cited_numbers(reply: str, count: int) -> list[int]:
    """Return the passage numbers that a reply cites, in order, each once; numbers beyond `count` are ignored."""
    markers = [_numbers(marker) for marker in _MARKER.finditer(reply)]
    cited = [number for numbers in markers if _is_citation(numbers, count) for number in numbers]
    return [number for number in dict.fromkeys(cited) if 1 <= number <= count]


def _numbers(marker: re.Match[str]) -> list[int]:
    return [int(number) for number in marker[1].split(",")]


def _is_citation(numbers: list[int], count: int) -> bool:
    """Return whether a marker is one: "[0, 1]" may be an interval and stays text, a lone "[9]" points nowhere and goes."""
    return len(numbers) == 1 or all(1 <= number <= count for number in numbers)


def _cite(number: int, passage: Document, answer: str, question: str) -> Citation:
    """Return the citation of a passage, with the sentence that shares most words with the answer, then with the question."""
    sentences = _sentences(passage.page_content)
    quote = sentences[(_closest(sentences, answer, question) or 1) - 1]
    meta = passage.metadata
    source = str(meta.get("source", ""))
    title = str(meta.get("title") or meta.get("article") or source)
    return Citation(number, source, title, meta.get("page"), passage_key(passage), quote)


def _sentences(text: str) -> list[str]:
    """Return the sentences of a passage, verbatim; markdown headings are no sentences, unless there is nothing else."""
    parts = [part.strip() for block in _HEADING.split(text) for part in _SENTENCE_BORDER.split(block)]
    return [part for part in parts if part] or [text.strip()]


def _holding_all(texts: Sequence[str], answer: str) -> set[int]:
    """Return the numbers (from 1) of the texts that hold every word of the answer, stop words aside; none if it has no other words."""
    wanted = set(tokenize(answer)) - _STOP_WORDS
    return {number for number, text in enumerate(texts, start=1) if wanted and wanted <= set(tokenize(text))}


def _closest(texts: Sequence[str], answer: str, question: str) -> int | None:
    """Return the number (from 1) of the text that shares most words with the answer, or None if none shares any."""
    wanted, asked = (set(tokenize(words)) - _STOP_WORDS for words in (answer, question))
    overlaps = [(len(words & wanted), len(words & asked)) for words in (set(tokenize(text)) for text in texts)]
    best = max(range(len(texts)), key=overlaps.__getitem__, default=None)
    return best + 1 if best is not None and overlaps[best][0] else None
