"""Passages as an index holds them: id, text, metadata, and one unit vector each; read from and written to plain files.

Knows JSON Lines and `.npy`; does not know embedders, search engines, or where the files live.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from langchain_core.documents import Document


class Passage(NamedTuple):
    """One stored passage; `metadata` holds JSON values only."""

    id: str
    text: str
    metadata: dict[str, Any]

    def as_document(self) -> Document:
        """Return a fresh LangChain document: changing it does not change the index."""
        return Document(id=self.id, page_content=self.text, metadata=copy.deepcopy(self.metadata))


def content_id(*parts: str) -> str:
    """Return the content hash of some texts: 32 hexadecimal digits (128 bits) of SHA-256."""
    joined = "\x00".join(parts).encode("utf-8", "surrogatepass")
    return hashlib.sha256(joined).hexdigest()[:32]


def plain_metadata(passage: Passage) -> dict[str, Any]:
    """Return the metadata that every engine can hold beside a vector: text, numbers and truth values; other values as JSON text."""
    values = {key: value for key, value in passage.metadata.items() if value is not None}
    plain = {key: value if isinstance(value, str | int | float) else json.dumps(value) for key, value in values.items()}
    return {"id": passage.id, **plain}


def as_passages(documents: Sequence[Document], ids: Sequence[str | None] | None = None) -> list[Passage]:
    """Return the documents as passages; id: the given one, else the document's own, else its content hash."""
    given = list(ids) if ids is not None else [None] * len(documents)
    if len(given) != len(documents):
        raise ValueError(f"got {len(given)} ids for {len(documents)} documents; give one id per document, or none at all")
    passages = []
    for document, own in zip(documents, given, strict=True):
        encoded = _encode(document)
        identity = own or document.id or content_id(document.page_content, encoded)
        passages.append(Passage(str(identity), document.page_content, json.loads(encoded)))
    return passages


def _encode(document: Document) -> str:
    """Return the metadata as JSON; raises TypeError with the document's text when a value is no JSON value."""
    try:
        return json.dumps(document.metadata, sort_keys=True)
    except TypeError as error:
        start = document.page_content[:40]
        raise TypeError(f"metadata of the passage {start!r} cannot be stored: {error}; make it text, number, list or dict") from error


@dataclass(frozen=True)
class Contents:
    """What an index knows at one moment; never changed in place, so a search sees one consistent state."""

    passages: list[Passage]
    vectors: np.ndarray  # (len(passages), dimension), float32, rows of length 1

    @cached_property
    def row_of(self) -> dict[str, int]:
        """The row of each passage id."""
        return {passage.id: row for row, passage in enumerate(self.passages)}

    @cached_property
    def row_of_text(self) -> dict[str, int]:
        """A row for each text: where its vector can be taken from."""
        return {passage.text: row for row, passage in enumerate(self.passages)}

    def write(self, directory: Path) -> None:
        """Write `documents.jsonl` and `vectors.npy` into a directory."""
        with (directory / "documents.jsonl").open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(json.dumps(passage._asdict()) + "\n" for passage in self.passages)
        np.save(directory / "vectors.npy", self.vectors, allow_pickle=False)

    @classmethod
    def read(cls, directory: Path) -> Contents:
        """Return what `write` wrote; vectors stay on disk and are paged in when used. Raises ValueError on wrong content."""
        with (directory / "documents.jsonl").open(encoding="utf-8", newline="\n") as file:
            passages = [Passage(**row) for row in json.loads(f"[{','.join(file)}]")]  # one call: twice as fast as one per line
        if any((type(one.id), type(one.text), type(one.metadata)) != (str, str, dict) for one in passages):
            raise ValueError("documents.jsonl holds a passage whose id, text or metadata is of another kind")
        empty = not passages  # an empty array cannot be mapped
        try:
            vectors = np.load(directory / "vectors.npy", allow_pickle=False, mmap_mode=None if empty else "r")
        except OSError:
            raise
        except Exception as error:  # on a damaged header NumPy fails in many ways: SyntaxError and TokenError among them
            raise ValueError(f"vectors.npy cannot be read: {type(error).__name__}") from error
        if not isinstance(vectors, np.ndarray) or vectors.dtype != np.float32:
            raise ValueError("vectors.npy holds no array of float32")
        return cls(passages, vectors)
