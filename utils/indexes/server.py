"""`ServerStore`: what the stores of Chroma, Qdrant, Weaviate and Pinecone have in common. The folder is the truth, the engine a copy.

A change is saved in the folder first, with its vectors, and then brought to the engine. An entry's key there is a digest of the
passage and its embedder, so comparing keys shows exactly what is missing and what is stale, whoever was killed and when. Opening
compares as well and fills what is missing. Keys begin with the index's own mark: entries of another origin are never touched.
Listing the keys is one request per thousand entries or so (Pinecone: per hundred), the price of opening a large index on a server.
"""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self
from urllib.parse import urlsplit

import numpy as np
from langchain_core.embeddings import Embeddings

from utils.indexes.engine import MARK, EngineStore
from utils.indexes.folder import exclusive, read_manifest, refuse
from utils.indexes.passages import Contents, Passage, content_id
from utils.indexes.search import State
from utils.indexes.upsert import ServerUnavailable, UpsertInterrupted, briefly, in_batches, passes


class Served(NamedTuple):
    """An engine's own object, and the row of each key that belongs to the contents beside it."""

    handle: Any
    row_of: dict[str, int]


class ServerStore(EngineStore):
    """Base of the stores whose engine keeps a copy, on a server or, without `url`, inside this process.

    `sent_count` is the number of passages that the last change, or opening, had to send.
    """

    most_bytes: ClassVar[int] = 16_000_000  # of one request

    def __init__(self, embedder: Embeddings, **options: Any) -> None:
        super().__init__(embedder, **options)
        self.sent_count = 0
        self._held: set[str] | None = None  # the keys that the engine is known to hold; None: ask it
        self._interrupted = False

    @property
    def index(self) -> Any:
        """The engine's own object: a Chroma collection, a QdrantClient, …; None while the store is empty."""
        return self.state.index.handle if self.state.index is not None else None

    @classmethod
    def open(cls, folder: str | Path, embedder: Embeddings, **settings: Any) -> Self:
        """Return the store in `folder`, embedding nothing; what the server lacks is sent, what is stale there is deleted.

        Raises IndexRefused when folder or collection do not fit, ServerUnavailable or UpsertInterrupted when the server is away.
        """
        if "url" not in settings:
            cls._check_named_server(Path(folder))
        self = super().open(folder, embedder, **settings)
        if self.state.index is not None and self._held is None:
            held = self._keys_there(self.state.index.handle)
            if held == set(self.state.index.row_of):
                self._held = held
                return self
            with exclusive(Path(folder)):  # a build may be at work: look again when it has finished
                self._load(Path(folder))
                self._sync(self.state)
        return self

    @classmethod
    def _check_named_server(cls, folder: Path) -> None:
        """Raise IndexRefused when a key would go to a server of which only the folder speaks: it may come from a stranger."""
        url = read_manifest(folder)["settings"].get("url")
        if url and os.environ.get(cls.key_variable) and urlsplit(url).hostname not in ("127.0.0.1", "localhost", "::1"):
            raise refuse(
                folder, f"it names the server {url}, which would get your {cls.key_variable}", f"If you trust it, pass url={url!r}."
            )

    def _take_over(self, manifest: dict[str, Any]) -> None:
        """Go on with the mark, and so the copy, of the index that is built again."""
        mark = manifest["settings"].get("mark")
        if mark and "mark" in self.settings:
            self.mark = self.settings["mark"] = mark

    def _read_index(self, contents: Contents, directory: Path) -> Served:
        """Return the engine for saved contents: in this process filled with them, a server as it is."""
        self._held = None
        if not self.remote:
            return self._change_index(State(contents, None), contents)
        return Served(self._connected(), self._rows(contents))

    def _in_step(self) -> bool:
        """Return whether the engine is known to hold the state's contents."""
        return self._held is not None

    def _commit(self, old: State, new: Contents) -> State:
        """Return the state for `new`, saved in the folder first, so that an interruption loses no vector, and then at the engine."""
        if self.folder is not None and new is not old.contents:
            self._save(State(new, None), self.folder)
        if not new.passages and not old.contents.passages:
            return State(new, old.index)
        try:
            return State(new, self._change_index(old, new))
        except BaseException:
            # The folder is ahead of the engine now: the next change reads it and goes on, and no search is answered from half a copy.
            self._generation, self._interrupted = "", True
            raise

    def _change_index(self, old: State, new: Contents) -> Served:
        """Return the engine, in step with `new`."""
        known = old.index is not None and self._held is not None
        served = Served(old.index.handle if known else self._connected(), self._rows(new))
        self._sync(State(new, served))
        return served

    def _sync(self, state: State) -> None:
        """Send what the engine lacks of the contents, then delete what else this index wrote there."""
        handle, row_of = state.index
        held = self._held if self._held is not None else self._keys_there(handle)
        self._held, self.sent_count = None, 0  # until all is done, nothing is certain
        self._send(state, {key for key in row_of if key in held})
        stale = [key for key in held if key not in row_of]
        for first in range(0, len(stale), self.batch_size):
            self._ask(self._remove, handle, stale[first : first + self.batch_size])
        self._held, self._interrupted = set(row_of), False

    def _send(self, state: State, there: set[str]) -> None:
        """Upsert the passages whose keys are not `there` yet, in batches; raises UpsertInterrupted with what was and was not stored."""
        (handle, row_of), contents = state.index, state.contents
        keys = [key for key in row_of if key not in there]
        rows = [row_of[key] for key in keys]
        for batch in in_batches(range(len(keys)), lambda n: self._bytes(contents, rows[n]), self.batch_size, self.most_bytes):
            sent, chosen = [keys[n] for n in batch], [rows[n] for n in batch]
            passages = [contents.passages[row] for row in chosen]
            try:
                self.patience.call(self._upsert, handle, sent, passages, contents.vectors[chosen])
            except Exception as error:
                raise self._interruption(error, state, there) from error
            there.update(sent)
            self.sent_count += len(sent)

    def _interruption(self, error: Exception, state: State, there: set[str]) -> UpsertInterrupted:
        """Return the error that says what the server has, what it lacks, and how to go on."""
        stored = [state.contents.passages[row].id for key, row in state.index.row_of.items() if key in there]
        missing = [state.contents.passages[row].id for key, row in state.index.row_of.items() if key not in there]
        fault, remedy = (self.patience.in_vain, self.remedy) if passes(error) else ("refused a batch", "Put right what it says.")
        kept = f"Nothing is lost: {self.folder} holds all of them with their vectors. " if self.folder is not None else ""
        return UpsertInterrupted(
            f"{self.place} {fault} ({briefly(error)}): {len(stored):,} of {len(stored) + len(missing):,} passages are stored there, "
            f"{len(missing):,} are not (the first of these: {missing[0]!r}). {kept}{remedy} "
            "Then run the same call again: it sends only what is missing.",
            stored,
            missing,
        )

    def _bytes(self, contents: Contents, row: int) -> int:
        """Return an upper bound of a passage's size in a JSON request: at most 24 characters a number."""
        passage = contents.passages[row]
        return 24 * contents.vectors.shape[1] + len(json.dumps([passage.text, passage.metadata, passage.metadata])) + len(passage.id) + 200

    def _rows(self, contents: Contents) -> dict[str, int]:
        """Return the row of each key; a key is a UUID, because Qdrant and Weaviate take no other text."""
        made_by = json.dumps(self.identity.as_dict(), sort_keys=True)
        return {self._key(made_by, passage): row for row, passage in enumerate(contents.passages)}

    def _key(self, made_by: str, passage: Passage) -> str:
        """Return the index's mark and 96 bits of the digest of all that an entry stands for, in the form of a UUID."""
        digest = content_id(made_by, passage.id, passage.text, json.dumps(passage.metadata, sort_keys=True))
        return str(uuid.UUID(self.mark + digest[: 32 - MARK]))

    def _keys_there(self, handle: Any) -> set[str]:
        """Return the keys that the engine holds; raises IndexRefused when some are not this index's own."""
        keys = self._ask(self._list_keys, handle)
        others = [key for key in keys if not key.startswith(self.mark)]
        if others:
            raise self._refusal(f"holds {len(others):,} entries that this index did not write (such as {others[0]!r})")
        return keys

    def _search_index(self, state: State, queries: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return cosine scores and rows, padded with -1 where a query found fewer; refuses to answer from half a copy."""
        if self._interrupted:
            raise ServerUnavailable(f"the copy at {self.place} is incomplete since a change was interrupted; run that call again")
        found = self._ask(self._nearest, state.index.handle, queries, top_k)
        scores = np.full((len(queries), top_k), -1, np.float32)
        rows = np.full((len(queries), top_k), -1, np.int64)
        for number, hits in enumerate(found):
            scores[number, : len(hits)] = [score for _, score in hits]
            rows[number, : len(hits)] = [state.index.row_of.get(key, -1) for key, _ in hits]
        return scores, rows
