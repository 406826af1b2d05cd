"""Sending passages to an index server: in batches, tried again with growing waits, and a clear account when it fails in the middle.

Knows how to tell a fault that passes (no connection, too many requests, a server that is restarting) from one that stays, whichever
client raised it. Knows no server in particular.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

T = TypeVar("T")
logger = logging.getLogger(__name__)

PASSING_STATUS = {408, 425, 429, 500, 502, 503, 504}  # HTTP codes that mean: later, perhaps
# Names, so that no client has to be installed: httpx's base class of transport faults, and what the servers' clients wrap them in.
PASSING_ERRORS = {
    "TransportError",
    "PineconeConnectionError",
    "ResourceExhaustedResponse",
    "WeaviateConnectionError",
    "WeaviateGRPCUnavailableError",
    "WeaviateTimeoutError",
    "WeaviateRetryError",
}
PASSING_GRPC = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED"}
LONGEST_WAIT = 30.0  # seconds


class ServerUnavailable(ConnectionError):
    """An index server that still did not answer at the last try."""


class UpsertInterrupted(ServerUnavailable):
    """An upsert that ended in the middle; `stored` and `missing` hold the ids of the passages that the server has and has not."""

    def __init__(self, message: str, stored: Sequence[str], missing: Sequence[str]) -> None:
        super().__init__(message)
        self.stored, self.missing = list(stored), list(missing)


@dataclass(frozen=True)
class Patience:
    """How often a request is tried, and the first wait in seconds; each later wait is twice as long, plus a little chance."""

    attempts: int = 5
    first_wait: float = 0.5

    @property
    def in_vain(self) -> str:
        """What to say of a server when the last try failed."""
        return f"did not answer after {self.attempts} tries" if self.attempts > 1 else "did not answer"

    def call(self, request: Callable[..., T], *arguments: Any) -> T:
        """Return `request(*arguments)`, tried again while the fault is one that passes; raises the last error unchanged."""
        from tenacity import Retrying, before_sleep_log, retry_if_exception, stop_after_attempt, wait_exponential, wait_random

        retrying = Retrying(
            stop=stop_after_attempt(self.attempts),
            wait=wait_exponential(self.first_wait, LONGEST_WAIT) + wait_random(0, self.first_wait / 4),
            retry=retry_if_exception(passes),
            before_sleep=before_sleep_log(logger, logging.INFO),
            reraise=True,
        )
        return retrying(request, *arguments)


def passes(error: BaseException) -> bool:
    """Return whether a fault may be gone at the next try: a connection that broke, a server that is busy or restarting."""
    return any(_passes(link) for link in _chain(error))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those it was raised from, or wraps as `source` (Qdrant's client does that).

    An error of ours ends the chain: who runs a call again inside `except UpsertInterrupted` has it as context of every new error.
    """
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        link = waiting.pop()
        if id(link) not in seen and not isinstance(link, ServerUnavailable):
            seen.add(id(link))
            yield link
            waiting += [e for e in (link.__cause__, link.__context__, getattr(link, "source", None)) if isinstance(e, BaseException)]


def _passes(error: BaseException) -> bool:
    """Return whether one error of a chain is a passing one."""
    if isinstance(error, ConnectionError | TimeoutError) or PASSING_ERRORS & {kind.__name__ for kind in type(error).__mro__}:
        return True
    code = getattr(error, "code", None)
    if callable(code) and getattr(code(), "name", "") in PASSING_GRPC:
        return True
    status = getattr(error, "status_code", None) or getattr(getattr(error, "response", None), "status_code", None)
    return status in PASSING_STATUS


def in_batches(rows: Sequence[int], size_of: Callable[[int], int], most: int, most_bytes: int) -> Iterator[list[int]]:
    """Yield the rows in order, in lists of at most `most` rows and `most_bytes`; a single larger row goes alone."""
    batch: list[int] = []
    total = 0
    for row in rows:
        size = size_of(row)
        if batch and (len(batch) == most or total + size > most_bytes):
            yield batch
            batch, total = [], 0
        batch.append(row)
        total += size
    if batch:
        yield batch


def briefly(error: BaseException) -> str:
    """Return the fault's type and first line, for use inside another message: of the passing one, if that is what it was."""
    link = next((link for link in _chain(error) if _passes(link)), error)
    details = getattr(link, "details", None)  # of a gRPC error, whose text is a page long
    lines = str(details() if callable(details) else link).strip().splitlines()
    return f"{type(link).__name__}: {lines[0][:160]}" if lines else type(link).__name__


def checked_url(url: str | None) -> str | None:
    """Return a server's URL; raises ValueError when it is none, or carries a key, which would end up in manifests and messages."""
    if url is None:
        return None
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("url must look like http://127.0.0.1:8000 or https://host")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(f"the url of {parts.hostname} carries more than an address; set keys in the environment and leave them out of it")
    return url.rstrip("/")
