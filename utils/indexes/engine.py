"""What an engine has to do to hold a copy of an index, and how it is talked to: the seam between `server.py` and each database.

A subclass knows one database's client: how to connect, list keys, upsert, delete and search. Here are the name of the copy, the
patience with a server that is away, and the refusal of collections that do not fit. Nothing here knows what belongs into the copy.
"""

from __future__ import annotations

import uuid
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import numpy as np
from langchain_core.embeddings import Embeddings

from utils.indexes.folder import IndexRefused
from utils.indexes.passages import Passage
from utils.indexes.store import PassageStore
from utils.indexes.upsert import Patience, ServerUnavailable, briefly, checked_url, passes

T = TypeVar("T")
MARK = 8  # leading hexadecimal digits of every key of an index: they say which index wrote it


class EngineStore(PassageStore):
    """Base of `ServerStore`: the engine's side.

    `collection` is the copy's name there; left out, the index gets one of its own. `attempts` and `first_wait` (seconds, doubling)
    say how long a server that is away is waited for.
    """

    engine: ClassVar[str]
    remedy: ClassVar[str]  # what to do when the server does not answer
    named: ClassVar[str] = "collection"  # the option that names the copy
    shaped: ClassVar[str] = "collection"  # the option that names what has a dimension
    key_variable: ClassVar[str] = ""  # the environment variable with the server's key; it stands nowhere else

    def __init__(
        self,
        embedder: Embeddings,
        url: str | None = None,
        collection: str | None = None,
        mark: str | None = None,
        batch_size: int = 200,
        attempts: int = 5,
        first_wait: float = 0.5,
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.url, self.mark, self.given_name = checked_url(url), mark or uuid.uuid4().hex[:MARK], collection
        copy = {"url": self.url, self.named: collection, "mark": self.mark} if self.remote else {}
        super().__init__(embedder, **(settings or {}), **copy)
        self.batch_size, self.patience = batch_size, Patience(attempts, first_wait)
        self._client: Any = None

    @abstractmethod
    def _make_client(self) -> Any:
        """Return the engine's client after one sign of life from the server; raises an error naming what is not installed or set."""

    @abstractmethod
    def _connect(self, dimension: int) -> Any:
        """Return the engine's object for the collection, made if missing; calls `_check_shape` when it was there."""

    @abstractmethod
    def _list_keys(self, handle: Any) -> set[str]:
        """Return the keys of all entries in the collection."""

    @abstractmethod
    def _upsert(self, handle: Any, keys: list[str], passages: list[Passage], vectors: np.ndarray) -> None:
        """Store one batch; returns only when the engine has confirmed it."""

    @abstractmethod
    def _remove(self, handle: Any, keys: list[str]) -> None:
        """Delete one batch of entries."""

    @abstractmethod
    def _nearest(self, handle: Any, queries: np.ndarray, top_k: int) -> list[list[tuple[str, float]]]:
        """Return, for each query, keys and cosine scores of the nearest entries, best first."""

    @property
    def remote(self) -> bool:
        """Whether the engine is a server outside this process."""
        return self.url is not None

    @property
    def collection(self) -> str:
        """The name of the copy."""
        return self.given_name or f"passages-{self.mark}"

    @property
    def place(self) -> str:
        """Where the copy is, in words."""
        return f"{self.engine} at {self.url}" if self.url else self.engine

    @property
    def client(self) -> Any:
        """The engine's client, made once."""
        if self._client is None:
            self._client = self._ask(self._make_client)
        return self._client

    def close(self) -> None:
        """Close the connection to the server; a later request opens another."""
        if self._client is not None and self.remote:
            self._client.close()
            self._client = None

    def _prepare(self) -> None:
        """Reach the server before anything is embedded for it."""
        self.client  # noqa: B018 (makes it)

    def _check_shape(self, dimension: int, found_dimension: Any, metric: Any) -> None:
        """Raise IndexRefused when a collection that was there has another dimension or metric."""
        if found_dimension not in (None, dimension) or str(metric).lower() != "cosine":
            raise self._refusal(
                f"has dimension {found_dimension} and metric {metric}, expected {dimension} (the embedder's) and cosine", self.shaped
            )

    def _refusal(self, reason: str, option: str = "") -> IndexRefused:
        """Return the error for a collection that must not be used, and the option to change."""
        error = IndexRefused(f"{self.named} {self.collection!r} of {self.place} {reason}; give another {option or self.named}")
        error.reason = reason
        return error

    def _connected(self) -> Any:
        """Return the engine's object for the collection."""
        return self._ask(self._connect, self.identity.dimension)

    def _ask(self, request: Callable[..., T], *arguments: Any) -> T:
        """Return the answer to a request; raises ServerUnavailable when the server is still away at the last try."""
        try:
            return self.patience.call(request, *arguments)
        except Exception as error:
            if not passes(error):
                raise
            raise ServerUnavailable(f"{self.place} {self.patience.in_vain} ({briefly(error)}). {self.remedy}") from error
