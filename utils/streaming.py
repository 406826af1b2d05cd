"""Text pieces from a running `generate`, as the tokens come.

Knows threads and transformers' streamer interface. An error in the generating thread reaches the reader, and a reader that stops early
ends the generation. Stop strings never show, not even in part. (transformers' own TextIteratorStreamer gives whole words.)
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

UNFINISHED = "\ufffd"  # a character of which not all bytes have come decodes to this


class Stream:
    """Iterates over text pieces. Afterwards `token_ids` holds the new tokens and `stopped` tells whether a stop string ended it.

    `prompt` and `options` go to `model.generate`; the prompt has one row. `lock` is held while it generates.
    """

    def __init__(
        self, model: Any, tokenizer: Any, prompt: dict[str, Any], options: dict[str, Any], lock: Any, stop: list[str] | None = None
    ) -> None:
        self.token_ids: list[int] = []
        self.stopped = False
        self._tokenizer, self._stop, self._lock = tokenizer, stop or [], lock
        self._new: queue.Queue[list[int] | None] = queue.Queue()
        self._cancelled = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(model, prompt, options), daemon=True)

    def __iter__(self) -> Iterator[str]:
        self._thread.start()
        try:
            yield from self._without_stops()
        finally:
            self._cancelled.set()
            self._thread.join()
        if self._error:
            raise self._error

    def put(self, token_ids: Any) -> None:
        """Called by `generate` in its thread: first with the prompt, then with every new token."""
        self._new.put(token_ids.flatten().tolist())

    def end(self) -> None:
        """Called by `generate` after the last token."""

    def _run(self, model: Any, prompt: dict[str, Any], options: dict[str, Any]) -> None:
        def cancelled(input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            return input_ids.new_full((len(input_ids),), self._cancelled.is_set(), dtype=bool)

        try:
            with self._lock:
                model.generate(**prompt, **options, streamer=self, stopping_criteria=[cancelled])
        except Exception as error:  # carried over to the reading thread, which raises it
            self._error = error
        finally:
            self._new.put(None)

    def _pieces(self) -> Iterator[str]:
        """What each token adds to the decoded text."""
        shown = ""
        self._new.get()  # the prompt, or None when `generate` failed before it
        while not self._error and (ids := self._new.get()) is not None:
            self.token_ids += ids
            text = self._text()
            if len(text) > len(shown) and not text.endswith(UNFINISHED):
                yield text[len(shown) :]
                shown = text
        yield self._text()[len(shown) :]

    def _text(self) -> str:
        """The text so far, without the space that a word carries in front."""
        return self._tokenizer.decode(self.token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).lstrip()

    def _without_stops(self) -> Iterator[str]:
        """The pieces, holding back an end that might become a stop string."""
        pending = ""
        for piece in self._pieces():
            pending += piece
            found = min((pending.find(one) for one in self._stop if one in pending), default=-1)
            if found >= 0:
                self.stopped = True
                pending = pending[:found]
                break
            cut = len(pending) - possible_stop(pending, self._stop)
            if cut:
                yield pending[:cut]
            pending = pending[cut:]
        if pending:
            yield pending


def possible_stop(text: str, stop: list[str]) -> int:
    """Length of the longest end of `text` with which a stop string begins."""
    sizes = (size for one in stop for size in range(1, len(one)) if text.endswith(one[:size]))
    return max(sizes, default=0)
