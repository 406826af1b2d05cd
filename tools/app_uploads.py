"""What the chat page takes in: names made harmless, sizes and types limited, and a reason in words for what is refused.

Knows files, limits and the assistant that reads them; knows nothing of the page. A file that is too large is never parsed.
"""

from __future__ import annotations

import queue
import re
import threading
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from utils.assistant import Assistant, DocumentReport

TYPES = (".pdf", ".md", ".txt", ".html", ".htm")
CHARACTERS_PER_PAGE = 3_000  # what counts as a page in formats without pages: a printed page holds about that many
LONGEST_NAME = 100  # characters; citations repeat the name at every answer
NAMELESS = "document"


@dataclass(frozen=True)
class Limits:
    """What one file may have at most. 300 pages are about 1,000 passages, a minute of embedding on two cores."""

    megabytes: float = 20.0
    """Of 10^6 bytes."""
    pages: int = 300

    def __str__(self) -> str:
        return f"up to {self.megabytes:g} MB and {self.pages} pages each"


class Outcome(NamedTuple):
    """What became of an uploaded file."""

    name: str
    taken: bool
    """Whether it can be asked about now."""
    words: str
    """How much was read and what was not, or why it was refused."""

    def __str__(self) -> str:
        return f"{self.name}: {self.words}"


def safe_name(name: str) -> str:
    """Return a name for showing and citing: no folders, no control or invisible characters, at most LONGEST_NAME characters.

    Letters of all scripts stay, in Unicode's composed form (NFC). HTML in a name stays, too: whoever shows it escapes it.
    """
    last = re.split(r"[/\\]", unicodedata.normalize("NFC", name))[-1]
    visible = "".join(" " if char.isspace() else char for char in last if char.isspace() or unicodedata.category(char)[0] != "C")
    plain = " ".join(visible.split()).lstrip(". ")
    suffix = Path(plain).suffix
    if len(suffix) > 10 or " " in suffix:  # a part of the name, not a type
        suffix = ""
    stem = plain.removesuffix(suffix)[: LONGEST_NAME - len(suffix)].rstrip()
    return (stem or NAMELESS) + suffix


def refusal(path: Path, name: str, limits: Limits) -> str | None:
    """Return why a file is not read, in words that say what would be; None when it may be read."""
    if path.is_symlink() or not path.is_file():
        return "it is no file of its own; upload a copy"
    suffix, size = Path(name).suffix.lower(), path.stat().st_size
    if suffix not in TYPES:
        return f"files of type {suffix or 'without ending'} are not read here; save it as one of {', '.join(TYPES)}"
    if size == 0:
        return "the file is empty"
    if size > limits.megabytes * 1e6:
        return f"it has {size / 1e6:.1f} MB and {limits.megabytes:g} MB are the limit; split it, or leave pictures out"
    pages = pdf_pages(path) if suffix == ".pdf" else size / CHARACTERS_PER_PAGE
    if pages is not None and pages > limits.pages:
        return f"it has {pages:,.0f} pages and {limits.pages:,} are the limit; split it into parts"
    return None


def pdf_pages(path: Path) -> int | None:
    """Return the number of pages; None where that cannot be told (broken, encrypted): whoever reads it says what is wrong."""
    from pypdf import PdfReader

    try:
        return len(PdfReader(path).pages)
    except Exception:  # pypdf may fail in any way on a broken file
        return None


def take_in(assistant: Assistant, files: Iterable[Path], limits: Limits) -> Iterator[tuple[float, str] | Outcome]:
    """Yield, file by file, (share, what is being done) and at last its outcome; one that fails leaves the rest alone.

    The files are the upload's own copies: they are deleted.
    """
    for file in files:
        name = safe_name(file.name)
        try:
            if reason := refusal(file, name, limits):
                yield Outcome(name, False, reason)
            else:
                yield from _read(assistant, file, name)
        finally:
            file.unlink(missing_ok=True)


def _read(assistant: Assistant, file: Path, name: str) -> Iterator[tuple[float, str] | Outcome]:
    """Yield the progress of `assistant.add`, which runs in a thread of its own, and its outcome."""
    news: queue.Queue[tuple[float, str] | Outcome] = queue.Queue()

    def run() -> None:
        try:
            news.put(outcome(assistant.add(file, name=name, progress=lambda share, what: news.put((share, what)))))
        except Exception as error:  # whatever it is, the page says so, and the other files are read
            news.put(Outcome(name, False, f"{type(error).__name__}: {error}"))

    threading.Thread(target=run, daemon=True).start()
    while not isinstance(item := news.get(), Outcome):
        yield item
    yield item


def outcome(report: DocumentReport) -> Outcome:
    """Return what the report says: a document without passages was not taken in."""
    known = [report.extent] if report.passages else [] if report.problems else ["it contains no text"]
    return Outcome(report.name, report.passages > 0, "; ".join([*known, *report.problems]))


def removed(assistant: Assistant, name: str | None) -> Outcome:
    """Return what became of the wish to remove a document; another tab may have been faster."""
    if not name:
        return Outcome("Remove a document", False, "choose one first")
    try:
        assistant.remove(name)
    except ValueError as error:
        return Outcome(name, False, str(error))
    return Outcome(name, True, "removed; answers no longer come from it")
