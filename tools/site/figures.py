"""The text alternative of a notebook's figures: STYLE asks for one in the prose, in italics, right after the picture.

Knows the habit of the course: the markdown cell after a plot opens with `*what the picture shows*`, or with `*In words:* what it shows`.
"""

import re
from collections.abc import Sequence

import nbformat

IN_WORDS = re.compile(r"\A\*In words:\*\s*(.+?)(?:\n\n|\Z)", re.DOTALL)
ITALIC = re.compile(r"\A\*([^*]{20,}?)\*(?:\s|\Z)", re.DOTALL)


def has_figure(cell: nbformat.NotebookNode) -> bool:
    """Returns whether a cell is saved with a picture."""
    return any(mime.startswith("image/") for output in cell.get("outputs", []) for mime in output.get("data", {}))


def figure_text(cells: Sequence[nbformat.NotebookNode], position: int) -> str:
    """Returns the words for a cell's figure: its text alternative, else the section that it stands in; "" for a cell without figure."""
    if not has_figure(cells[position]):
        return ""
    return alternative(cells, position) or f"Figure in the section “{section(cells, position)}”; the text around it says what it shows."


def alternative(cells: Sequence[nbformat.NotebookNode], position: int) -> str:
    """Returns the text alternative that opens the markdown after a figure, as one line; "" if there is none."""
    after = next((cell for cell in cells[position + 1 :] if not is_silent(cell)), None)
    if after is None or after.cell_type != "markdown":
        return ""
    found = IN_WORDS.match(after.source) or ITALIC.match(after.source)
    return " ".join(found.group(1).split()) if found else ""


def is_silent(cell: nbformat.NotebookNode) -> bool:
    """Returns whether a cell shows the reader nothing."""
    return not cell.source.strip()


def section(cells: Sequence[nbformat.NotebookNode], position: int) -> str:
    """Returns the nearest heading above a cell."""
    for cell in reversed(cells[: position + 1]):
        if cell.cell_type == "markdown" and (found := re.findall(r"^#+ (.+)$", cell.source, re.MULTILINE)):
            return str(found[-1])
    return "before the first section"


def without_alternative(cells: Sequence[nbformat.NotebookNode]) -> list[int]:
    """Returns the positions of the figures that no text alternative follows."""
    return [i for i, cell in enumerate(cells) if has_figure(cell) and not alternative(cells, i)]
