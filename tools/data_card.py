"""Writes the table of digests into data/README.md: `python -m tools.data_card` (make data-card)."""

import hashlib
import re

from utils.runtime import DATA

ENTRIES = ["handbook", "questions/handbook.jsonl", "newsroom", "questions/newsroom.jsonl", "clinic", "sentiment"]
ENTRIES += ["pdfs", "questions/pdfs.jsonl", "questions/followups.jsonl", "injections.jsonl"]
START, END = "<!-- digests:start (rendered by `make data-card`) -->", "<!-- digests:end -->"


def digest(name: str) -> tuple[int, str]:
    """Returns size in bytes and SHA-256 of a file, or of a folder's files one after the other in the order of their names."""
    path = DATA / name
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    content = b"".join(p.read_bytes() for p in files)
    return len(content), hashlib.sha256(content).hexdigest()


def table() -> str:
    """Returns the Markdown table: what, size, SHA-256."""
    models = sorted(str(p.relative_to(DATA)) for p in (DATA / "models").rglob("*") if p.is_file())
    rows = [f"| `{name}` | {digest(name)[0] / 1e6:.2f} MB | `{digest(name)[1]}` |" for name in [*ENTRIES, *models]]
    return "\n".join([START, "| what | size | SHA-256 |", "|---|---|---|", *rows, END])


def main() -> None:
    """Replaces the table in data/README.md."""
    card = DATA / "README.md"
    text = card.read_text(encoding="utf-8")
    card.write_text(re.sub(re.escape(START) + ".*?" + re.escape(END), lambda _: table(), text, flags=re.S), encoding="utf-8")


if __name__ == "__main__":
    main()
