"""Questions with known answers: what retrieval and answers are measured with. Reads JSON Lines; the course's own, or a reader's.

Each line is an object with `question`; `answers`, the accepted ones, empty where the documents do not answer; `split`, dev for trying
things out and test for reporting; `kind`; and `support`, the article and the exact text that answers. Only `question` must be there.
Knows the format; nothing of documents or models.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from utils.runtime import DATA

Question = dict[str, Any]
DEFAULTS: Question = {"answers": [], "support": [], "split": "dev", "kind": "fact"}


def load_questions(file: str | Path = "handbook", *, split: str | None = None, kind: str | None = None) -> list[Question]:
    """The questions of a file, or of a name in data/questions, in order; `split` and `kind` keep only those.

    Raises:
        FileNotFoundError: with the names there are.
        ValueError: names the line that cannot be read, and what a line looks like.
    """
    path = Path(file)
    if not path.suffix and len(path.parts) == 1:
        path = DATA / "questions" / f"{file}.jsonl"
    if not path.is_file():
        names = ", ".join(sorted(one.stem for one in (DATA / "questions").glob("*.jsonl")))
        raise FileNotFoundError(f"There is no file of questions at {path}. Give the path of a JSON Lines file, or one of: {names}.")
    lines = path.read_text(encoding="utf-8", errors="replace").lstrip("\ufeff").split("\n")
    found = [_read(line, f"{path.name}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    return [one for one in found if split in (None, one["split"]) and kind in (None, one["kind"])]


def _read(line: str, place: str) -> Question:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} is not JSON ({error}). {_EXAMPLE}") from None
    if not isinstance(entry, dict) or not isinstance(entry.get("question"), str) or not entry["question"].strip():
        raise ValueError(f"{place} has no question. {_EXAMPLE}")
    entry = {"id": place} | DEFAULTS | entry
    answers = entry["answers"]
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise ValueError(f"{place}: answers must be a list of texts, empty where the documents do not answer. {_EXAMPLE}")
    return entry


_EXAMPLE = 'A line looks like {"question": "What is NF4?", "answers": ["a 4-bit format"], "split": "dev"}.'
