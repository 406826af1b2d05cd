"""What every store of the course has in common: a LangChain `VectorStore` over a safe folder.

Passages and vectors live in our own files (`folder`, `passages`), whichever engine searches them, so every store adds only unseen
texts, deletes, reopens without embedding and refuses what does not fit. A subclass says how its engine is made and searched.
"""

from __future__ import annotations

import threading
import warnings
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings

from utils.indexes.embedding import EmbedderIdentity, difference, embed_texts, identify
from utils.indexes.folder import MANIFEST, IndexRefused, exclusive, load_generation, read_manifest, refuse, write_generation
from utils.indexes.passages import Contents, Passage, as_passages
from utils.indexes.search import SearchStore, State

NOTHING = Contents([], np.empty((0, 0), np.float32))


class PassageStore(SearchStore):
    """Base of the stores. A new one lives in memory; one from `build` or `open` writes every change through to its folder.

    `embedded_count` is the number of texts the last build or addition had to embed.
    """

    store: ClassVar[str]
    engine_files: ClassVar[bool] = False  # whether the engine's own files stand in the folder, to be read again

    def __init__(self, embedder: Embeddings, **settings: Any) -> None:
        self.embedder = embedder
        self.settings = settings  # JSON values: what the manifest needs to open the store again
        self.folder: Path | None = None
        self.embedded_count = 0
        self.state = State(NOTHING, None)
        self._generation = ""
        self._as_saved = False  # whether the folder was built for this store with these settings
        self._guard = threading.RLock()

    @cached_property
    def identity(self) -> EmbedderIdentity:
        """Who the embedder is; an index is opened only with the one that made it."""
        return identify(self.embedder)

    @abstractmethod
    def _change_index(self, old: State, new: Contents) -> Any:
        """Return the engine for `new`; `old.index` is None when there is nothing to go on from."""

    def _prepare(self) -> None:
        """Make sure of the engine before anything is embedded for it."""

    def _take_over(self, manifest: dict[str, Any]) -> None:
        """Take from the manifest of the index that is built again what has to stay the same."""

    def _in_step(self) -> bool:
        """Return whether the engine holds the state's contents."""
        return True

    def _write_index(self, index: Any, directory: Path) -> None:
        """Write the engine's own files, if it has any."""

    def _read_index(self, contents: Contents, directory: Path) -> Any:
        """Return the engine for saved contents; by default it is filled anew, which embeds nothing."""
        return self._change_index(State(NOTHING, None), contents)

    @classmethod
    def build(cls, passages: Iterable[Document], embedder: Embeddings, folder: str | Path, **settings: Any) -> Self:
        """Return the store of exactly `passages` in `folder`; texts that the folder already has are not embedded again.

        Raises IndexRefused when the folder holds something else. Another process building there is waited for.
        """
        self = cls(embedder, **settings)
        self.folder = Path(folder)
        self._prepare()
        wanted = {passage.id: passage for passage in as_passages(list(passages))}
        with exclusive(self.folder):
            if (self.folder / MANIFEST).exists():
                self._reuse()
            self._apply(list(wanted.values()))
        return self

    @classmethod
    def open(cls, folder: str | Path, embedder: Embeddings, **settings: Any) -> Self:
        """Return the store in `folder`, embedding no passage; raises IndexRefused with the reason when it does not fit."""
        made = read_manifest(Path(folder))
        if made["store"] != cls.store:
            raise refuse(Path(folder), f"it was built for store={made['store']!r}, not {cls.store!r}", "Open it with its own store.")
        try:
            self = cls(embedder, **{**made["settings"], **settings})
        except (TypeError, ValueError) as error:
            if settings:
                raise  # it may be the caller's own that do not fit
            raise refuse(Path(folder), f"its settings are not those of store={cls.store!r} ({error})") from error
        self.folder = Path(folder)
        self._prepare()
        self._load(self.folder)
        return self

    def _reuse(self) -> None:
        """Take over what the folder holds, or say in a warning why everything is embedded again."""
        assert self.folder is not None
        try:
            self._load(self.folder, other_settings=True)
        except IndexRefused as error:
            warnings.warn(f"embedding all passages again, because the index in {self.folder} cannot be used: {error.reason}", stacklevel=4)

    def _load(self, folder: Path, other_settings: bool = False) -> None:
        """Read the folder into memory; with `other_settings` (building again) only an engine from files of the same kind is read."""

        def load(manifest: dict[str, Any], directory: Path) -> None:
            self._check_embedder(folder, manifest)
            if other_settings:
                self._take_over(manifest)
            self._as_saved = (manifest["store"], manifest["settings"]) == (self.store, self.settings)
            wanted = not other_settings or (self._as_saved and self.engine_files)
            try:
                contents = self._checked(Contents.read(directory), manifest)
                self.state = State(contents, self._read_index(contents, directory) if contents.passages and wanted else None)
            except IndexRefused:
                raise
            except (ValueError, KeyError, TypeError, RuntimeError, EOFError, MemoryError) as error:
                raise refuse(folder, f"its files do not fit together ({error})") from error
            self._generation = manifest["generation"]

        self._check_embedder(folder, read_manifest(folder))  # before reading large files
        load_generation(folder, load)

    def _check_embedder(self, folder: Path, manifest: dict[str, Any]) -> None:
        """Raise IndexRefused when the embedder is not the one that made the index."""
        try:
            made_by = EmbedderIdentity.from_dict(manifest["embedder"])
        except (ValueError, KeyError, TypeError) as error:
            raise refuse(folder, f"what it says of its embedder cannot be used ({type(error).__name__}: {error})") from error
        reason = difference(made_by, self.identity)
        if reason:
            raise refuse(folder, reason, "Open it with the embedder that made it, or build it again.")

    def _checked(self, contents: Contents, manifest: dict[str, Any]) -> Contents:
        """Return `contents`; raises ValueError when the numbers of passages, vectors or dimensions disagree."""
        found, expected = (len(contents.passages), *contents.vectors.shape), (manifest["count"], manifest["count"], self.identity.dimension)
        if found != expected:
            raise ValueError(f"passages, vectors and dimension are {found}, expected {expected}")
        return contents

    def _save(self, state: State, folder: Path) -> None:
        """Swap a state into the folder."""
        contents, index = state

        def write(directory: Path) -> None:
            contents.write(directory)
            if index is not None:
                self._write_index(index, directory)

        described = {"store": self.store, "settings": self.settings, "metric": "cosine", "count": len(contents.passages)}
        self._generation = write_generation(folder, {**described, "embedder": self.identity.as_dict()}, write)
        self._as_saved = True

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Passage]]:
        """Yield the passages by id for changing, then apply them; what another process added meanwhile is read first."""
        with self._guard:
            if self.folder is None:
                yield from self._change_and_apply()
                return
            with exclusive(self.folder):
                if read_manifest(self.folder)["generation"] != self._generation:
                    self._load(self.folder)
                yield from self._change_and_apply()

    def _change_and_apply(self) -> Iterator[dict[str, Passage]]:
        """Yield the passages by id; apply what the caller made of them."""
        passages = {passage.id: passage for passage in self.state.contents.passages}
        yield passages
        self._apply(list(passages.values()))

    def _apply(self, wanted: list[Passage]) -> None:
        """Make `wanted` the contents: embed unseen texts, change the engine, write the folder, and then show it to searches."""
        old = self.state
        self.embedded_count = 0
        same = wanted == old.contents.passages
        if same and old.index is not None and self._in_step():
            return
        new = old.contents if same and self._as_saved else Contents(wanted, self._vectors_of(wanted, old.contents))
        self.state = self._commit(old, new)

    def _commit(self, old: State, new: Contents) -> State:
        """Return the state for `new` after changing the engine and saving both in the folder."""
        state = State(new, self._change_index(old, new) if new.passages or old.index is not None else None)
        if self.folder is not None:
            self._save(state, self.folder)
        return state

    def _vectors_of(self, wanted: list[Passage], old: Contents) -> np.ndarray:
        """Return the vectors of `wanted`, taken from `old` where the text is known, else embedded."""
        dimension = self.identity.dimension
        unseen = list(dict.fromkeys(passage.text for passage in wanted if passage.text not in old.row_of_text))
        fresh = embed_texts(self.embedder, unseen, dimension)
        self.embedded_count = len(unseen)
        rows = {**old.row_of_text, **{text: len(old.passages) + number for number, text in enumerate(unseen)}}
        known = np.concatenate([old.vectors.reshape(-1, dimension), fresh])
        return known[np.array([rows[passage.text] for passage in wanted], dtype=np.int64)]

    def add_documents(self, documents: list[Document], ids: list[str] | None = None, **kwargs: Any) -> list[str]:
        """Add or replace passages by id and return their ids; only texts the store has not seen are embedded."""
        fresh = as_passages(documents, ids)
        with self._changing() as passages:
            passages.update({passage.id: passage for passage in fresh})
        return [passage.id for passage in fresh]

    def delete(self, ids: Sequence[str] | None = None, **kwargs: Any) -> bool:
        """Delete passages by id, all of them without `ids`; unknown ids are no error."""
        with self._changing() as passages:
            for key in list(passages) if ids is None else ids:
                passages.pop(key, None)
        return True

    @classmethod
    def from_texts(
        cls, texts: list[str], embedding: Embeddings, metadatas: list[dict] | None = None, *, ids: list[str] | None = None, **settings: Any
    ) -> Self:
        """Return an in-memory store of texts, LangChain's usual constructor."""
        self = cls(embedding, **settings)
        metadata = metadatas or [{} for _ in texts]
        self.add_documents([Document(page_content=text, metadata=values) for text, values in zip(texts, metadata, strict=True)], ids)
        return self
