"""PDF pages as text that keeps its sections: the outline's bookmarks become markdown headings in the text of their pages.

Knows pypdf. A PDF stores letters with positions, no headings and no paragraphs; its outline, where it has one, is the only place that
says which line is a heading. Text comes in the order in which the file draws it, which for columns is nearly always the reading order.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any, NamedTuple

LONGEST_TITLE = 300  # characters; a longer one is no heading, and slow to look for
Headings = dict[int, list[tuple[int, str]]]
"""By page, from 1: level, from 1, and title of each heading, in the order of the outline."""


class Page(NamedTuple):
    """A page's text with its headings marked (#), and the path of headings that is open where it begins ("A > B")."""

    number: int
    text: str
    section: str


def read_pages(reader: Any, notes: list[str]) -> tuple[list[Page], bool]:
    """Return all pages of a pypdf reader, and whether its outline named any headings; what went wrong goes to `notes`."""
    headings = _headings(reader, notes)
    pages, open_headings = [], dict[int, str]()
    for number, page in enumerate(reader.pages, 1):
        section = " > ".join(open_headings.values())
        text = without_page_number(page.extract_text().replace("\x00", ""), number)
        for level, title in headings.get(number, ()):
            open_headings = {**{key: name for key, name in open_headings.items() if key < level}, level: title}
        pages.append(Page(number, mark_headings(text, headings.get(number, [])), section))
    return pages, bool(headings)


def without_page_number(text: str, number: int) -> str:
    """Return the text without a first or last line that holds nothing but the page's own number."""
    return re.sub(rf"\A\s*{number}[ \t]*(?:\n|\Z)|\n[ \t]*{number}\s*\Z", "", text)


def mark_headings(text: str, headings: list[tuple[int, str]]) -> str:
    """Return the text with each heading, found in order as whole lines (it may be broken into several), as a markdown heading line."""
    marked, rest = "", text
    for level, title in headings:
        words = r"\s+".join(map(re.escape, title.split()))
        found = re.search(rf"^[ \t]*{words}[ \t]*$", rest, re.MULTILINE)
        if found:
            marked += f"{rest[: found.start()]}\n{'#' * min(level, 6)} {' '.join(title.split())}\n"
            rest = rest[found.end() :]
    return marked + rest


def _headings(reader: Any, notes: list[str]) -> Headings:
    """Return the headings that the outline names; none if there is no outline, or if it is broken, which is noted."""
    from pypdf.errors import PyPdfError

    found: Headings = defaultdict(list)
    try:
        for level, entry in _flat(reader.outline):
            page = reader.get_destination_page_number(entry)
            title = " ".join(str(entry.title or "").split())
            if page is not None and page >= 0 and 0 < len(title) <= LONGEST_TITLE:
                found[page + 1].append((level, title))
    except (PyPdfError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        notes.append(f"its outline cannot be read ({type(error).__name__}), so sections are not known")
        return {}
    return dict(found)


def _flat(outline: list[Any], level: int = 1) -> list[tuple[int, Any]]:
    """Return the entries of pypdf's nested outline with their levels: a list within it holds the children of the entry before."""
    pairs: list[tuple[int, Any]] = []
    for entry in outline:
        pairs += _flat(entry, level + 1) if isinstance(entry, list) else [(level, entry)]
    return pairs
