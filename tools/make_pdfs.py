"""Makes the PDFs of chapter 12 and the questions about them: `python -m tools.make_pdfs` (for maintainers).

data/pdfs/handbook.pdf     16 articles of the handbook, one column, and a table of their sources
data/pdfs/newsroom.pdf     the newest article of each story in two columns, a table of dates, and a page that is only an image
data/pdfs/hostile.pdf      one page for each attack of data/injections.jsonl, the hidden ones in white
data/questions/pdfs.jsonl  the handbook's and the newsroom's questions that these PDFs answer, each with its pages, and those without answer

The files are committed, so that readers need no fpdf2. They are the same bytes on every run with the same packages: fixed date, fonts from
matplotlib's package. Printed page numbers, pages of the file and pages in citations are the same numbers.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from fpdf import FPDF
from langchain_core.documents import Document

from utils.corpus import load_documents
from utils.runtime import DATA

PDFS, QUESTIONS, ATTACKS = DATA / "pdfs", DATA / "questions" / "pdfs.jsonl", DATA / "injections.jsonl"
HANDBOOK = (
    "tokenization-bpe kv-cache sampling-temperature number-formats nf4 lora qlora chunking sentence-embeddings bm25 hnsw "
    "late-interaction retrieval-metrics retrieval-augmented-generation conversational-rag prompt-injection"
).split()
MADE = datetime(2026, 10, 1, tzinfo=UTC)
SIZES = {1: 15, 2: 11.5}  # points; text has 10
LINE = 1.35  # of the font size


class Pages(FPDF):
    """Pages on which text flows line by line through `columns` columns, headings becoming bookmarks, with a page number below."""

    def __init__(self, title: str, family: str, columns: int) -> None:
        super().__init__(format="A4", unit="pt")
        self.columns, self.column, self.family = columns, columns, family
        self.set_margins(54, 54)
        self.set_auto_page_break(False)
        self.set_creation_date(MADE)
        self.set_title(title)
        self.set_producer("tools/make_pdfs.py")
        import matplotlib

        fonts = Path(matplotlib.get_data_path(), "fonts", "ttf")
        self.add_font("text", "", fonts / f"{family}.ttf")
        self.add_font("text", "B", fonts / f"{family}-Bold.ttf")

    def footer(self) -> None:
        """Print the page number."""
        self.set_font("text", "", 9)
        self.set_text_color(0)
        self.set_xy(self.l_margin, self.h - 40)
        self.cell(self.epw, 12, str(self.page_no()), align="C")

    @property
    def column_width(self) -> float:
        """Points that a line may take."""
        return (self.epw - 18 * (self.columns - 1)) / self.columns

    def new_page(self) -> None:
        """Start a page at its first column."""
        self.add_page()
        self.column = 0

    def make_room(self, height: float) -> None:
        """Go to the next column, or page, unless `height` points are left in this one."""
        if self.page and self.y + height <= self.h - 54:
            return
        if self.page and self.column + 1 < self.columns:
            self.column += 1
            self.y = self.t_margin
        else:
            self.new_page()

    def flow(self, text: str, size: float = 10, style: str = "", keep: int = 1) -> None:
        """Print a paragraph; its first line stays on one column with the `keep` − 1 lines below it."""
        self.set_font("text", style, size)
        lines = cast(list[str], self.multi_cell(self.column_width, text=text, dry_run=True, output="LINES", align="L"))
        for number, line in enumerate(lines):
            self.make_room(LINE * size * (keep if number == 0 else 1))
            self.set_font("text", style, size)  # a footer may have come between
            self.set_x(self.l_margin + self.column * (self.column_width + 18))
            self.cell(self.column_width, LINE * size, line.strip(), new_x="LEFT", new_y="NEXT")
        self.y += 0.6 * size

    def heading(self, title: str, level: int) -> None:
        """Print a heading with a bookmark; it is never the last line of a column."""
        self.make_room(LINE * SIZES[level] * 3 + 30)
        self.start_section(title, level - 1)
        self.flow(title, SIZES[level], "B")

    def article(self, text: str) -> None:
        """Print markdown: headings, paragraphs and list items."""
        for block in re.split(r"\n\s*\n|\n(?=#|- |\d+\. )|(?<=\n)(?=#)", text):
            heading = re.match(r"(#{1,2}) ([^\n]+)\n?(.*)", block.strip(), re.DOTALL)
            if heading:
                self.heading(heading[2].strip(), len(heading[1]))
            body = heading[3] if heading else block
            if body.strip():
                self.flow(" ".join(body.split()))

    def table_page(self, title: str, rows: list[tuple[str, ...]], widths: tuple[int, ...]) -> None:
        """Print a table on pages of its own, its head repeated."""
        self.columns = 1
        self.new_page()
        self.heading(title, 1)
        self.set_font("text", "", 8.5)
        self.set_auto_page_break(True, 60)
        with self.table(col_widths=widths, line_height=13, text_align="LEFT") as table:
            for row in rows:
                table.row(row)
        self.set_auto_page_break(False)


def make_handbook() -> Pages:
    """Return handbook.pdf: one article after the other, each on a new page, then the table of sources."""
    articles = [_article("handbook", stem) for stem in HANDBOOK]
    pdf = Pages("The handbook of LLM engineering, in print", "DejaVuSans", columns=1)
    for article in articles:
        pdf.new_page()
        pdf.article(article.page_content)
    rows = [(a.metadata["title"].split(":")[0], a.metadata["sources"][0]) for a in articles]
    pdf.table_page("Sources", [("Article", "First source"), *rows], (1, 2))
    return pdf


def make_newsroom() -> Pages:
    """Return newsroom.pdf: two columns in which articles flow, the table of dates, and a page without text."""
    articles = newest_articles()
    pdf = Pages("Lorvane Courier: the year's stories as they ended", "DejaVuSerif", columns=2)
    pdf.new_page()
    for article in articles:
        pdf.article(article.page_content)
    rows = [(article.metadata["date"], article.metadata["title"]) for article in articles]
    pdf.table_page("Dates", [("Date", "Headline"), *rows], (1, 4))
    pdf.new_page()
    pdf.image(scanned_page(), x=54, y=54, w=pdf.epw)
    return pdf


def newest_articles() -> list[Document]:
    """Return the newest article of each story, by date."""
    articles = sorted(load_documents(DATA / "newsroom").documents, key=lambda article: article.metadata["date"])
    newest = {article.metadata["story"]: article for article in articles}
    return sorted(newest.values(), key=lambda article: article.metadata["date"])


def _article(folder: str, stem: str) -> Document:
    return load_documents(DATA / folder / f"{stem}.md").documents[0]


def scanned_page() -> Any:
    """Return the picture of a page of text, as a scanner gives it: what a person can read and a text extractor cannot."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    text = _article("newsroom", "2026-03-24-minimum-wage-plan").page_content.replace("# ", "").split()
    image = Image.new("1", (900, 700), 1)
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSerif.ttf")), 20)
    lines = "\n".join(" ".join(text[start : start + 11]) for start in range(0, 150, 11))
    ImageDraw.Draw(image).multiline_text((30, 30), lines, fill=0, font=font, spacing=14)
    return image


def make_hostile() -> Pages:
    """Return hostile.pdf: each attack on a page of its own; a person sees nothing of those that are hidden."""
    pdf = Pages("Notes from elsewhere", "DejaVuSans", columns=1)
    for attack in map(json.loads, ATTACKS.read_text(encoding="utf-8").splitlines()):
        pdf.new_page()
        pdf.set_text_color(255 if attack["family"] == "hidden" else 0)
        for paragraph in attack["passage"].split("\n"):
            if paragraph.strip():
                pdf.flow(paragraph)
    return pdf


def questions(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the questions that the PDFs in `folder` answer, with their pages, and those that they do not answer."""
    pages = {name: load_documents(folder / f"{name}.pdf").documents for name in ("handbook", "newsroom")}
    printed = {"handbook": set(HANDBOOK), "newsroom": {article.metadata["article"] for article in newest_articles()}}
    for name in pages:
        for line in (DATA / "questions" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if any(support["article"] not in printed[name] for support in row["support"]):
                continue
            found = [pages_of(support["text"], pages[name]) for support in row["support"]]
            support = [{"article": name, "text": one["text"]} for one in row["support"]]
            where = {"document": f"{name}.pdf" if found else None, "pages": sorted({page for one in found for page in one})}
            asked, about = ({key: row[key] for key in keys} for keys in (("id", "question", "answers"), ("kind", "split")))
            yield asked | where | {"support": support} | about


def pages_of(text: str, pages: list[Document]) -> list[int]:
    """Return the pages that a text stands on, two where it runs over a border. Raises ValueError if it is on none."""
    wanted = "".join(text.split())
    bare = [re.sub(r"#+ |\s", "", page.page_content) for page in pages]
    single = [page.metadata["page"] for page, content in zip(pages, bare, strict=True) if wanted in content]
    pairs = [n for n in range(len(bare) - 1) if wanted in bare[n] + bare[n + 1]]
    found = single or [page.metadata["page"] for n in pairs for page in pages[n : n + 2]]
    if not found:
        raise ValueError(f"no page says {text!r}: the PDF lost or reordered it.")
    return found


def write_all(pdfs: Path = PDFS, questions_file: Path = QUESTIONS) -> None:
    """Write PDFs and questions, each file complete or not at all."""
    pdfs.mkdir(parents=True, exist_ok=True)
    for name, make in (("handbook", make_handbook), ("newsroom", make_newsroom), ("hostile", make_hostile)):
        _replace(pdfs / f"{name}.pdf", bytes(make().output()))
    rows = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in questions(pdfs))
    _replace(questions_file, rows.encode())


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_bytes(content)
    os.replace(temporary, path)


if __name__ == "__main__":
    write_all()
