"""The clinic: its rows, and a parser for the house style of its triage answers.

The dialogues are fictional and **not medical advice**; say so wherever one is shown. Knows data/clinic and the four lines of an answer.
Knows no model: notebooks use the parser to judge what a model wrote.

    Urgency: EMERGENCY, URGENT, SOON or SELF-CARE
    Advice: one or more sentences
    Watch for: two or three signs, separated by semicolons
    Seek help: one or more sentences
"""

from __future__ import annotations

import json
import re
from typing import NamedTuple

from utils.runtime import DATA

URGENCIES = ("EMERGENCY", "URGENT", "SOON", "SELF-CARE")
NOT_MEDICAL_ADVICE = "Fictional text from a course on language models. Not medical advice."

_HOUSE_STYLE = re.compile(
    rf"Urgency: (?P<urgency>{'|'.join(URGENCIES)})\n"
    r"Advice: (?P<advice>[A-Z][^\n]+\.)\nWatch for: (?P<watch_for>[^\n]+\.)\nSeek help: (?P<seek_help>[A-Z][^\n]+\.)"
)


class TriageAnswer(NamedTuple):
    """The four parts of an answer in house style; `watch_for` holds two or three signs."""

    urgency: str
    advice: str
    watch_for: tuple[str, ...]
    seek_help: str


def parse_triage(text: str) -> TriageAnswer | None:
    """The four parts of `text`, or None when it breaks the house style anywhere; space around the whole is forgiven."""
    match = _HOUSE_STYLE.fullmatch(text.strip())
    if match is None:
        return None
    signs = tuple(sign.strip() for sign in match["watch_for"].rstrip(".").split(";"))
    if not 2 <= len(signs) <= 3 or not all(signs):
        return None
    return TriageAnswer(match["urgency"], match["advice"], signs, match["seek_help"])


def is_house_style(text: str) -> bool:
    """True when `text` is exactly the four lines of the house style."""
    return parse_triage(text) is not None


def load_triage(split: str | None = None) -> list[dict[str, str]]:
    """The triage rows of "train", "valid" or "test", or all: id, scenario, split, patient, answer. No scenario is in two splits."""
    return _rows("triage.jsonl", split)


def load_dialogues(split: str | None = None) -> list[dict[str, str]]:
    """The front desk's dialogues of a split, or all: id, scenario, split, dialogue, summary."""
    return _rows("dialogues.jsonl", split)


def _rows(name: str, split: str | None) -> list[dict[str, str]]:
    if split not in (None, "train", "valid", "test"):
        raise ValueError(f"Unknown split {split!r}. Use 'train', 'valid' or 'test', or None for all.")
    rows = [json.loads(line) for line in (DATA / "clinic" / name).read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if split in (None, row["split"])]
