"""Which stretch of a long passage a reranker should read: the window that shares most words with the query, rare words counting more.

Knows words and a tokenizer; knows nothing of models or scores.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from utils.retrieval import tokenize


class Window(NamedTuple):
    """A stretch of a passage and the words in it."""

    text: str
    words: frozenset[str]


class WindowChooser:
    """Picks windows of at most `tokens` tokens; windows overlap by a quarter. A passage's windows are cut once and kept."""

    def __init__(self, tokenizer: Any, tokens: int) -> None:
        self.tokenizer, self.tokens = tokenizer, tokens
        self._windows = lru_cache(maxsize=20_000)(self._split)

    def __call__(self, query: str, texts: Sequence[str]) -> list[str]:
        """Return, per text, its window with the largest weight of words shared with the query; the first one of equals.

        A word weighs log(1 + windows / windows that hold it), over the windows of these texts.
        """
        windows = [self._windows(text) for text in texts]
        if all(len(group) == 1 for group in windows):
            return [group[0].text for group in windows]
        every = [window for group in windows for window in group]
        found_in = Counter(word for window in every for word in window.words)
        asked = {word: math.log(1 + len(every) / found_in[word]) for word in set(tokenize(query)) & found_in.keys()}
        return [max(group, key=lambda window: sum(asked.get(word, 0.0) for word in window.words)).text for group in windows]

    def _split(self, text: str) -> tuple[Window, ...]:
        """Evenly spread windows, cut between words; a text that fits is one window."""
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False)
        spans = encoded["offset_mapping"]
        spare = len(spans) - self.tokens
        if spare <= 0:
            return (Window(text, frozenset(tokenize(text))),)
        steps = math.ceil(spare / (0.75 * self.tokens))
        firsts = [round(step * spare / steps) for step in range(steps + 1)]
        found = [_between_words(text, spans[first][0], spans[first + self.tokens - 1][1]) for first in firsts]
        return tuple(Window(one, frozenset(tokenize(one))) for one in dict.fromkeys(found))


def _between_words(text: str, start: int, end: int) -> str:
    """The part of text[start:end] without a word that either border cuts through; text[start:end] if it holds no other word."""
    head = 0 if start == 0 or text[start - 1].isspace() else re.match(r"\S*", text[start:end]).end()  # type: ignore[union-attr]
    tail = end - start if end == len(text) or text[end].isspace() else re.search(r"\S*\Z", text[start:end]).start()  # type: ignore[union-attr]
    return text[start:end][head:tail].strip() or text[start:end]
