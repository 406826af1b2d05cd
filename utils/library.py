"""A library of documents that can be searched: files in, an index and a report of each file out, kept in one folder.

    library = Library(load_embedder(), "build/library")
    print(library.add("data/pdfs/handbook.pdf"))     # handbook.pdf: 33 pages with text, 151 passages

Knows `corpus`, `splitting` and `indexes`; knows nothing of questions. What could not be read is in the report, not in the log.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings

from utils.corpus import load_documents, split_documents
from utils.indexes import build_index, open_index
from utils.indexes.embedding import identify
from utils.indexes.folder import IndexRefused, refuse
from utils.indexes.store import PassageStore

Progress = Callable[[float, str], object]
"""Called with the share done, from 0 to 1, and what is being done, in words."""
PART = 32  # passages embedded between two reports of progress


@dataclass(frozen=True)
class DocumentReport:
    """What became of one document. `str` is a line for people."""

    name: str
    pages: int
    """Pages with text; 1 for a format without pages."""
    passages: int
    """Passages that can be found; 0 means the document was not taken in, and `problems` says why."""
    problems: tuple[str, ...] = ()
    """What could not be read, and why: pages without text, a broken or encrypted file."""
    embedded: int = 0
    """Passages that had to be embedded for it this time."""

    @property
    def extent(self) -> str:
        """Return "1 page with text, 2 passages"."""
        return f"{self.pages:,} page{'s' * (self.pages != 1)} with text, {self.passages:,} passage{'s' * (self.passages != 1)}"

    def __str__(self) -> str:
        return f"{self.name}: " + "; ".join([self.extent, *self.problems])


class Library:
    """Documents by name in one index; a new library on the same folder goes on where the last one stopped.

    Adding and removing are safe from several threads; `store` is replaced as a whole, so a search under way goes on with the one before.
    """

    def __init__(self, embedder: Embeddings, folder: str | Path) -> None:
        self.embedder, self.folder = embedder, Path(folder)
        self._changing = threading.Lock()
        self._reports = self._read_reports()
        self.store = self._opened() if self._reports else None

    @property
    def passages(self) -> list[Document]:
        """Return the passages of all documents."""
        return self.store.documents if self.store else []

    def reports(self) -> list[DocumentReport]:
        """Return the reports of all documents, in the order of their arrival."""
        return list(self._reports.values())

    def add(self, path: str | Path, *, name: str | None = None, progress: Progress | None = None) -> DocumentReport:
        """Take one file in and return what became of it; what is already there is not embedded again.

        `name` is what citations call it (default: the file's name); a document of that name is replaced. A file that cannot be read
        changes nothing: its report has no passages, and says why. Raises FileNotFoundError if there is no file.
        """
        told: Progress = progress or (lambda share, what: None)
        name = name or Path(path).name
        told(0.0, f"reading {name}")
        pages, problems = _read(Path(path), name)
        fresh = split_documents(pages)
        if not fresh:
            return DocumentReport(name, 0, 0, problems)
        with self._changing:
            self.store = build_index([*self._without(name), *fresh], _Watched(self.embedder, told), self.folder / "index")
            report = DocumentReport(name, len(pages), len(fresh), problems, self.store.embedded_count)
            self._reports = {**self._reports, name: report}
            self._write_reports()
        told(1.0, f"{name} is ready")
        return report

    def remove(self, name: str) -> DocumentReport:
        """Take a document's passages out of the index, in memory and on disk, and return the report it had; nothing is embedded.

        Raises ValueError, with the names there are, if no document has this one.
        """
        with self._changing:
            if name not in self._reports:
                raise ValueError(f"There is no document {name!r}. The documents are: {', '.join(self._reports) or 'none yet'}.")
            left = build_index(self._without(name), self.embedder, self.folder / "index")
            report = self._reports[name]
            self._reports = {key: one for key, one in self._reports.items() if key != name}
            self.store = left if self._reports else None
            self._write_reports()
        return report

    def _without(self, name: str) -> list[Document]:
        """Return the passages of all documents but one."""
        return [passage for passage in self.passages if passage.metadata["source"] != name]

    def _opened(self) -> PassageStore | None:
        """Return the index of the documents that are listed; raises IndexRefused where it cannot be used."""
        try:
            return open_index(self.folder / "index", self.embedder)
        except IndexRefused as error:
            raise refuse(self.folder / "index", error.reason, self._anew) from error

    @property
    def _anew(self) -> str:
        """What to do where the folder cannot be used."""
        return f"Delete {self.folder / 'index'} and {self.folder / 'documents.json'}, and add the documents again."

    def _read_reports(self) -> dict[str, DocumentReport]:
        file = self.folder / "documents.json"
        try:
            rows = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
            reports = [DocumentReport(**{**row, "problems": tuple(map(str, row["problems"]))}) for row in rows]
            if any([type(value) for value in (one.name, one.pages, one.passages, one.embedded)] != [str, int, int, int] for one in reports):
                raise ValueError("a value of another kind")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"The list of documents cannot be used ({type(error).__name__}: {error}). {self._anew}") from error
        return {report.name: report for report in reports}

    def _write_reports(self) -> None:
        temporary = self.folder / "documents.json.new"
        temporary.unlink(missing_ok=True)  # it might be a link to a file elsewhere
        temporary.write_text(json.dumps([asdict(report) for report in self._reports.values()], indent=1), encoding="utf-8")
        os.replace(temporary, self.folder / "documents.json")


class _Watched(Embeddings):
    """The same embedder, for an index's eyes too, that reports its progress through its texts."""

    shows_progress = True  # an index hands over all texts at once and draws no bar of its own

    def __init__(self, embedder: Embeddings, progress: Progress) -> None:
        identity = identify(embedder)
        self.id, self.digest, self.dimension = identity.id, identity.digest, identity.dimension
        self.embedder, self.progress = embedder, progress

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return one vector per text; after each part the progress is told."""
        vectors: list[list[float]] = []
        for start in range(0, len(texts), PART):
            vectors += self.embedder.embed_documents(texts[start : start + PART])
            self.progress(0.1 + 0.85 * len(vectors) / len(texts), f"embedding passage {len(vectors)} of {len(texts)}")
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of one query."""
        return self.embedder.embed_query(text)


def _read(path: Path, name: str) -> tuple[list[Document], tuple[str, ...]]:
    """Return the pages of a file, called `name`, and what could not be read."""
    loaded = load_documents(path)
    own = {"source": name, "article": Path(name).stem}
    pages = [page.model_copy(update={"metadata": {**page.metadata, **own}}) for page in loaded.documents]
    return pages, tuple(problem.reason for problem in loaded.problems)
