"""The chat page's own HTML: answers with citations that open, the list of documents, progress and outcomes.

Text from people, models and documents is escaped here, all of it: on the page it is text and nothing else, so no answer can load a
picture, link anywhere or run a script. Knows no Gradio.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from tools.app_uploads import Outcome

if TYPE_CHECKING:
    from utils.assistant import AssistantAnswer, DocumentReport, PageCitation


HEADING = re.compile(r"(?:^|(?<=<br>))#{1,6} (.*?)(?=<br>|$)")  # of markdown, in text that is escaped already


def text(words: str) -> str:
    """Return plain text as HTML."""
    return "<br>".join(escape(line) for line in words.strip().splitlines())


def message(words: str) -> str:
    """Return a message's text; the page keeps its line breaks, as in <pre>, but would interpret tags."""
    return escape(words.strip(), quote=False)


def support(found: AssistantAnswer) -> str:
    """Return what stands below an answer: its citations, what was searched for if not what was asked, and what was kept out."""
    parts = [citation(one) for one in dict.fromkeys(found.citations)]
    if found.standalone != found.question:
        parts.append(f'<p class="aside">Searched for: {text(found.standalone)}</p>')
    parts += [f'<p class="aside">Kept from the model, because it speaks to one: “{text(one)}”</p>' for one in found.withheld]
    return "".join(parts)


def citation(one: PageCitation) -> str:
    """Return a citation that opens by click, Enter or Space and shows its passage, the supporting sentence marked."""
    place = one.document if one.page is None else f"{one.document}, page {one.page}"
    section = f" · {text(one.section)}" if one.section else ""
    passage = f"<blockquote>{marked(one.text, one.quote)}</blockquote>"
    return f'<details class="citation"><summary>{text(place)}{section}</summary>{passage}</details>'


def marked(passage: str, quote: str) -> str:
    """Return the passage as HTML with its headings strong and the quote in <mark>, unless the passage does not hold it verbatim."""
    whole, part = HEADING.sub(r"<strong>\1</strong>", text(passage)), text(quote)
    return whole.replace(part, f"<mark>{part}</mark>", 1) if part else whole


def documents(reports: Sequence[DocumentReport]) -> str:
    """Return the list of documents with their pages, and by name what of them could not be read."""
    if not reports:
        return "<p>No document yet.</p>"
    return f"<ul>{''.join(map(document, reports))}</ul>"


def document(report: DocumentReport) -> str:
    """Return one document of the list."""
    notes = "".join(f"<br><em>{text(problem)}</em>" for problem in report.problems)
    return f"<li><strong>{text(report.name)}</strong>: {report.extent}{notes}</li>"


def progress(share: float, what: str) -> str:
    """Return a progress bar, `share` from 0 to 1, that says what is being done."""
    return f'<label>{text(what)} …<progress max="100" value="{100 * share:.0f}"></progress></label>'


def outcomes(done: Iterable[Outcome]) -> str:
    """Return what became of each uploaded file."""
    rows = [f"<li>{'✓' if one.taken else '✗'} {text(str(one))}</li>" for one in done]
    return f"<ul>{''.join(rows)}</ul>"
