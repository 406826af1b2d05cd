"""Documents in, passages out: markdown, plain text, HTML, PDF and notebooks become LangChain documents.

Knows file formats and says by name which files it could not read. Does not know tokens (`splitting` does) or embeddings.

    documents, problems = load_documents("data/handbook")
    passages = split_documents(documents, max_tokens=160)
    # documents[0].page_content[p.metadata["start"] : p.metadata["end"]] == p.page_content for each passage p of the first document

Metadata of a document: source (path below the loaded folder), article (file stem), title, format, page (PDF, from 1), section (PDF with
an outline: the headings open where the page begins, "A > B"), and what a markdown front matter says (topic, sources, …). HTML, notebooks
and PDFs with an outline are turned into markdown, so their headings are kept.
"""

from __future__ import annotations

import codecs
import json
import os
import re
from collections.abc import Callable, Iterable
from datetime import date
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

from langchain_core.documents import Document

from utils.html_text import markdown_of
from utils.pdf import read_pages
from utils.splitting import heading_title, split_documents

__all__ = ["LoadResult", "Problem", "load_documents", "split_documents"]

FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?\n)??---[ \t]*(?:\n|\Z)", re.DOTALL)
FIRST_HEADING = re.compile(r"^#{1,2}[ \t]++(.+)$", re.MULTILINE)
LONGEST_FRONT_MATTER, MOST_BRACKETS = 20_000, 500  # PyYAML needs 0.1 s for 500 brackets in one another, and 180 s for 20,000
OF_THE_FILE = ("source", "article", "format", "page")  # what a front matter cannot say otherwise: citations rest on it
Texts = list[tuple[str, dict[str, Any]]]  # text and its own metadata, for each document of a file


class Problem(NamedTuple):
    """A file, or a part of one, that was not read, and why."""

    path: str
    reason: str


class LoadResult(NamedTuple):
    """What was read and what was not."""

    documents: list[Document]
    problems: list[Problem]


class Unreadable(ValueError):
    """The reason why one file gives no document."""


def load_documents(source: str | Path | Iterable[str | Path]) -> LoadResult:
    """Return the documents of a folder (with its sub-folders), a file, or several of these, and the problems met on the way.

    Files that are empty, broken, encrypted or of another format are reported in `problems`; the rest is read.
    Raises FileNotFoundError when a source does not exist. Hidden files and folders are skipped.
    """
    from tqdm import tqdm

    sources = [source] if isinstance(source, str | Path) else list(source)
    files = [file for one in sources for file in _files_of(Path(one))]
    documents: list[Document] = []
    problems: list[Problem] = []
    for path, name in tqdm(files, desc="reading", unit="file", delay=2, leave=False):
        try:
            documents += _read(path, name, problems)
        except Unreadable as error:
            problems.append(Problem(name, str(error)))
        except Exception as error:  # a parser may fail in any way on a broken file; it is reported by name and the rest goes on
            problems.append(Problem(name, f"cannot be read as {path.suffix[1:]}: {type(error).__name__}: {error}"))
    return LoadResult(documents, problems)


def _files_of(source: Path) -> list[tuple[Path, str]]:
    """Return the files of a source, sorted, each with its path below the source."""
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist; give a folder of documents or a file ({', '.join(READERS)})")
    if source.is_file():
        return [(source, source.name)]
    found = []
    for directory, folders, names in os.walk(source):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(directory, name) for name in names if not name.startswith(".")]
    return [(path, os.fsencode(path.relative_to(source).as_posix()).decode("utf-8", "replace")) for path in sorted(found)]


def _read(path: Path, name: str, problems: list[Problem]) -> list[Document]:
    """Return the documents of one file; raises Unreadable with the reason when it has none."""
    if not path.is_file():
        raise Unreadable("it is no file: a link that leads nowhere, or a pipe or device; put a copy of the text there")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise Unreadable(f"files of type {path.suffix or 'without suffix'!r} are not read; convert it to one of {', '.join(READERS)}")
    raw = path.read_bytes()
    if not raw.strip():
        raise Unreadable("the file is empty")
    notes: list[str] = []
    texts = [(text, own) for text, own in reader(raw, notes) if text.strip()]
    problems += [Problem(name, note) for note in notes]
    if not texts:
        raise Unreadable("it contains no text" + (" (scanned pages? run OCR on it first)" if path.suffix.lower() == ".pdf" else ""))
    base = {"source": name, "article": path.stem, "title": path.stem, "format": path.suffix.lower()[1:]}
    return [Document(page_content=text, metadata={**base, **own}) for text, own in texts]


def _decode(raw: bytes) -> str:
    """Return the text of a file in UTF-8, or in UTF-16 with its mark, with plain line ends."""
    encoding = "utf-16" if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise Unreadable(f"not valid {encoding[:6].upper().rstrip('-')} at byte {error.start}; save it as UTF-8") from error
    if "\x00" in text:
        raise Unreadable("it contains zero bytes, so it is not text")
    return _clean(text)


def _clean(text: str) -> str:
    """Return text with plain line ends and without lone surrogates, which tokenizers reject."""
    return text.replace("\r\n", "\n").replace("\r", "\n").encode("utf-8", "replace").decode("utf-8")


def _title_of(text: str) -> dict[str, str]:
    """Return the first heading as the title, if there is one."""
    heading = FIRST_HEADING.search(text)
    return {"title": heading_title(heading.group(1))} if heading else {}


def _read_text(raw: bytes, notes: list[str]) -> Texts:
    """Return a plain text file."""
    return [(_decode(raw), {})]


def _read_markdown(raw: bytes, notes: list[str]) -> Texts:
    """Return a markdown file without its front matter, whose values become metadata."""
    text = _decode(raw)
    front = FRONT_MATTER.match(text)
    if front is None:
        return [(text, _title_of(text))]
    body = text[front.end() :].lstrip("\n")
    return [(body, {**_title_of(body), **_front_matter(front.group(1) or "", notes)})]


def _front_matter(text: str, notes: list[str]) -> dict[str, Any]:
    """Return the values of a front matter; none, and a note that says why, where it cannot be used.

    Aliases (*name) are refused: a few lines of them stand for more values than a memory holds.
    """
    import yaml

    if len(text) > LONGEST_FRONT_MATTER or text.count("[") + text.count("{") > MOST_BRACKETS:
        most = f"{LONGEST_FRONT_MATTER:,} characters and {MOST_BRACKETS} brackets"
        notes.append(f"its front matter of {len(text):,} characters was left out; at most {most} are read")
        return {}
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise ValueError("aliases (*name) are not read")
        values = _json_values(yaml.safe_load(text) or {})
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: 2026-02-30 is no date
        notes.append(f"its front matter is not valid YAML and was left out: {str(error).splitlines()[0]}")
        return {}
    if not isinstance(values, dict):
        notes.append("its front matter is not a list of 'name: value' lines and was left out")
        return {}
    titled = {"title": str(values["title"])} if "title" in values else {}
    return {**{key: value for key, value in values.items() if key not in OF_THE_FILE}, **titled}


def _json_values(value: Any) -> Any:
    """Return YAML values as JSON values: dates and what JSON does not know become text, keys become text."""
    if isinstance(value, dict):
        return {str(key): _json_values(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_json_values(item) for item in value]
    if isinstance(value, date):
        return value.isoformat()
    return value if value is None or isinstance(value, str | int) or (isinstance(value, float) and isfinite(value)) else str(value)


def _read_html(raw: bytes, notes: list[str]) -> Texts:
    """Return a web page's text as markdown, without scripts and navigation."""
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(raw, "html.parser")
    if soup.contains_replacement_characters:
        notes.append("some characters did not fit its encoding and were replaced; save it as UTF-8")
    title = soup.title.get_text(" ", strip=True) if soup.title else ""
    text = _clean(markdown_of(soup.body or soup))
    return [(text, {**_title_of(text), **({"title": title} if title else {})})]


def _read_pdf(raw: bytes, notes: list[str]) -> Texts:
    """Return one text per page, with its number from 1 and its section; raises Unreadable for a PDF that asks for a password."""
    from io import BytesIO

    from pypdf import PdfReader

    reader = PdfReader(BytesIO(raw))
    if reader.is_encrypted and not reader.decrypt(""):
        raise Unreadable("it is encrypted; save a copy without a password")
    title = str((reader.metadata and reader.metadata.title) or "").strip()
    pages, has_outline = read_pages(reader, notes)
    empty = [str(page.number) for page in pages if not page.text.strip()]
    if empty and len(empty) < len(pages):
        notes.append(f"no text on page {', '.join(empty)} (scanned? run OCR on it first)")
    own = {"title": title} if title else {}
    return [(_clean(p.text), {**own, "page": p.number, **({"section": p.section} if has_outline else {})}) for p in pages]


def _read_notebook(raw: bytes, notes: list[str]) -> Texts:
    """Return a notebook as markdown: its prose, and its code in fences; outputs are left out."""
    parts = []
    for cell in json.loads(_decode(raw))["cells"]:
        source = "".join(cell["source"]).strip("\n")
        if source.strip() and cell["cell_type"] in ("markdown", "code"):
            parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
    text = _clean("\n\n".join(parts))
    return [(text, _title_of(text))]


READERS: dict[str, Callable[[bytes, list[str]], Texts]] = {
    ".md": _read_markdown,
    ".markdown": _read_markdown,
    ".txt": _read_text,
    ".html": _read_html,
    ".htm": _read_html,
    ".pdf": _read_pdf,
    ".ipynb": _read_notebook,
}
