"""Draws the course on one page, notebooks/course_map.svg: the way of the data on top, and below it who builds which part.

`python -m tools.course_map` writes it, `--check` only says whether it is out of date (exit code 1). Titles come from the registry;
which parts a chapter takes apart and which it only uses is decided here. The file carries its own description, by which the check
knows it, because another matplotlib may draw the same picture with other bytes.
"""

import argparse
import html
import re
import sys
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.registry import NOTEBOOKS, Chapter, load_registry

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TARGET = NOTEBOOKS / "course_map.svg"
PARTS = ("documents", "passages", "embeddings", "index", "retrieval", "reranking", "language model", "answer", "evaluation")
# Each chapter: what it takes apart, and what it uses on the way.
CHAPTERS: dict[str, tuple[str, str]] = {
    "01": ("language model", ""),
    "02": ("language model", "evaluation"),
    "03": ("embeddings, index, retrieval", "documents, passages, evaluation"),
    "04": ("retrieval, language model, answer", "passages, embeddings, index, evaluation"),
    "05": ("documents, passages, answer", "embeddings, index, retrieval, language model, evaluation"),
    "06": ("retrieval, reranking", "passages, embeddings, index, language model, evaluation"),
    "07": ("evaluation", "passages, embeddings, index, retrieval, reranking, language model, answer"),
    "08": ("language model", "embeddings, evaluation"),
    "09": ("language model", "evaluation"),
    "10": ("answer, evaluation", "documents, passages, retrieval, language model"),
    "11": ("embeddings, index, language model", "passages, retrieval, answer"),
    "12": ("documents, passages, answer", "embeddings, index, retrieval, reranking, language model, evaluation"),
}
ROW, LEFT = 0.55, 3.3  # height of a row and width of the titles, in units of a column


def parts(chapter: Chapter) -> tuple[list[str], list[str]]:
    """Returns the parts that a chapter takes apart and those it uses; ValueError for a chapter or a part that the map does not know."""
    if chapter.id not in CHAPTERS:
        raise ValueError(f"Notebook {chapter.id} is not on the map: say in tools/course_map.py which parts it builds and which it uses.")
    built, used = ([name.strip() for name in listed.split(",") if name.strip()] for listed in CHAPTERS[chapter.id])
    if unknown := [name for name in built + used if name not in PARTS]:
        raise ValueError(f"Notebook {chapter.id}: the map has no part {', '.join(unknown)}; it has {', '.join(PARTS)}.")
    return built, used


def description(chapters: list[Chapter]) -> str:
    """Returns the map in words, the picture's text alternative."""
    way = " → ".join(PARTS)
    lines = [f"{c.id} {c.title}: takes apart {', '.join(parts(c)[0])}." for c in chapters]
    return f"The way of the data: {way}. A question enters at retrieval. " + " ".join(lines)


def draw(chapters: list[Chapter]) -> str:
    """Returns the map as SVG."""
    import matplotlib
    import matplotlib.pyplot as plt

    from utils.plots import use_course_style

    use_course_style()
    height = len(chapters) * ROW + 2.05
    with matplotlib.rc_context({"svg.hashsalt": "course map", "svg.fonttype": "path", "figure.constrained_layout.use": False}):
        figure = plt.figure(figsize=(10.2, 0.81 * height), facecolor="white")
        ax = figure.add_axes((0, 0, 1, 1))
        ax.set(xlim=(-LEFT - 0.15, len(PARTS) - 0.4), ylim=(len(chapters) * ROW + 0.35, -1.7))
        ax.axis("off")
        way(ax)
        for row, chapter in enumerate(chapters):
            chapter_row(ax, row * ROW, chapter)
        legend(ax, len(chapters) * ROW)
        text = StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Title": "Course map", "Description": description(chapters)})
        plt.close(figure)
    return re.sub(r"[ \t]+$", "", text.getvalue(), flags=re.MULTILINE)


def way(ax: "Axes") -> None:
    """Draws the boxes of the data's way, the arrows between them, and the question that enters at retrieval."""
    from matplotlib.patches import FancyBboxPatch

    from utils.plots import COLORS

    arrow: dict[str, Any] = {"arrowstyle": "-|>", "color": COLORS[0], "linewidth": 1.2, "mutation_scale": 8, "shrinkA": 0, "shrinkB": 0}
    for i, name in enumerate(PARTS):
        dark = name == "language model"
        fill = COLORS[0] if dark else "#e8eef4"
        ax.add_patch(FancyBboxPatch((i - 0.41, -1.0), 0.82, 0.5, boxstyle="round,pad=0.03", facecolor=fill, edgecolor=COLORS[0]))
        ax.text(i, -0.75, name.replace(" ", "\n"), ha="center", va="center", fontsize=7.8, color="white" if dark else "black")
        if i:
            ax.annotate("", (i - 0.43, -0.75), (i - 0.57, -0.75), arrowprops=arrow)
    at = PARTS.index("retrieval")
    ax.annotate("question", (at, -1.05), (at, -1.5), ha="center", va="center", fontsize=8.5, arrowprops={**arrow, "shrinkA": 7})
    ax.text(-LEFT, -0.75, "the way of the data", va="center", fontsize=10, style="italic")


def chapter_row(ax: "Axes", y: float, chapter: Chapter) -> None:
    """Draws one chapter: its title, and a mark under each part."""
    from utils.plots import COLORS

    built, used = parts(chapter)
    if int(chapter.id) % 2:
        ax.axhspan(y - ROW / 2, y + ROW / 2, color="#f4f4f2", linewidth=0, zorder=0)
    ax.text(-LEFT, y, f"{chapter.id}", va="center", fontsize=11, fontweight="bold", color=COLORS[0])
    ax.text(-LEFT + 0.4, y, chapter.title, va="center", fontsize=11)
    columns = [PARTS.index(name) for name in built + used]
    ax.plot([min(columns), max(columns)], [y, y], color="#b5b5b5", linewidth=1, zorder=1)
    ax.scatter([PARTS.index(name) for name in used], [y] * len(used), s=38, facecolor="white", edgecolor=COLORS[0], zorder=2)
    ax.scatter([PARTS.index(name) for name in built], [y] * len(built), s=120, marker="s", color=COLORS[1], zorder=3)


def legend(ax: "Axes", y: float) -> None:
    """Draws what the marks mean."""
    from utils.plots import COLORS

    ax.scatter([0], [y], s=120, marker="s", color=COLORS[1])
    ax.text(0.2, y, "taken apart here", va="center", fontsize=9.5)
    ax.scatter([2], [y], s=38, facecolor="white", edgecolor=COLORS[0])
    ax.text(2.2, y, "used on the way", va="center", fontsize=9.5)


def is_current(target: Path = TARGET) -> bool:
    """Returns whether the file shows what the registry and this module say."""
    written = target.read_text(encoding="utf-8") if target.is_file() else ""
    return html.escape(description(load_registry()), quote=False) in html.unescape(written).replace("&", "&amp;")


def main() -> int:
    """Returns the exit code: 1 when `--check` found the map out of date."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only say whether the map is out of date")
    current = is_current()
    if not parser.parse_args().check and not current:
        TARGET.write_text(draw(load_registry()), encoding="utf-8")
        print(f"written: notebooks/{TARGET.name}")
        return 0
    print("" if current else f"out of date: notebooks/{TARGET.name}; run `make badges`", end="" if current else "\n", file=sys.stderr)
    return int(not current)


if __name__ == "__main__":
    sys.exit(main())
