"""The site: built from the registry without a warning, every internal link holds, and no page fetches anything from elsewhere."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output

from tools.build_site import build
from tools.headers import badge
from tools.registry import ROOT, load_registry, load_repository
from tools.site.docstrings import as_rst
from tools.site.figures import alternative, figure_text, without_alternative
from tools.site.formulas import formula_svg
from tools.site.pages import api_modules, article, handbook_page, start_page, write_notebook, write_sources
from utils.results import MIME_TYPE

REGISTRY, REPOSITORY = load_registry(), load_repository()


# Sources


def test_sources_have_every_chapter_article_module_and_card(tmp_path):
    write_sources(tmp_path)
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert {f"notebooks/{chapter.file}" for chapter in REGISTRY} | {f"notebooks/solutions/{chapter.file}" for chapter in REGISTRY} <= found
    assert {f"data/handbook/{path.name}" for path in (ROOT / "data" / "handbook").glob("*.md")} <= found
    assert {"index.md", "notebooks/GLOSSARY.md", "notebooks/COMMON_ERRORS.md", "notebooks/course_map.svg", "api/utils.rag.rst"} <= found


def test_start_page_lists_the_registry():
    page = start_page(REGISTRY, REPOSITORY)
    assert all(f"| {c.id} | [{c.title}](notebooks/{c.file}) | {c.promise} |" in page for c in REGISTRY)
    assert "@" not in re.sub(r"```.*?```", "", page, flags=re.DOTALL).replace("recall@k", "")


def test_checkers_of_exercises_are_no_reference():
    modules = api_modules(ROOT / "utils")
    assert {"utils", "utils.rag", "utils.indexes", "utils.finetuning.training"} <= set(modules)
    assert not any("chapter" in name for name in modules) and all(modules.values())


def test_article_shows_its_sources_at_the_end():
    text = '---\ntitle: T\ntopic: rag\nsources:\n  - "A paper, 2020"\n---\n# T\n\nBody.\n'
    assert article(text) == "# T\n\nBody.\n\n## Sources\n\n- A paper, 2020\n"


def test_unknown_topic_is_named(tmp_path):
    (tmp_path / "a.md").write_text("---\ntitle: A\ntopic: cooking\n---\n# A\n", encoding="utf-8")
    with pytest.raises(ValueError, match="cooking"):
        handbook_page(tmp_path)


def test_notebook_loses_the_badge_image_and_the_stored_numbers(tmp_path):
    chapter, target = REGISTRY[0], tmp_path / "n.ipynb"
    write_notebook(chapter.path, target, chapter, REPOSITORY)
    before, after = nbformat.read(chapter.path, 4), nbformat.read(target, 4)
    assert badge(chapter, REPOSITORY) in before.cells[0].source and "colab-badge.svg" not in after.cells[0].source
    assert "[Open in Colab](https://colab.research.google.com/github/" in after.cells[0].source
    assert MIME_TYPE in chapter.path.read_text(encoding="utf-8") and MIME_TYPE not in target.read_text(encoding="utf-8")
    assert len(after.cells) == len(before.cells)


# Figures and formulas


def plot() -> nbformat.NotebookNode:
    return new_code_cell("draw()", outputs=[new_output("display_data", data={"image/png": "aGVsbG8="})])


def test_text_alternative_is_the_italic_line_after_the_figure():
    cells = [new_markdown_cell("## 3 · Speed"), plot(), new_markdown_cell("*Two curves that rise over the length.* More of it.")]
    assert alternative(cells, 1) == "Two curves that rise over the length."
    cells[2].source = "*In words:* the left one\nrises.\n\nMore."
    assert alternative(cells, 1) == "the left one rises."


def test_figure_without_alternative_is_listed_and_named_by_its_section():
    cells = [new_markdown_cell("## 3 · Speed"), plot(), new_markdown_cell("The curve rises."), new_code_cell("1")]
    assert without_alternative(cells) == [1]
    assert figure_text(cells, 1).startswith("Figure in the section “3 · Speed”")
    assert figure_text(cells, 3) == ""


def test_formula_is_drawn_with_its_source_as_text_alternative():
    svg = formula_svg(r"y = W x + \frac{\alpha}{r}\, B\, A\, x < 1")
    assert svg.startswith("<svg") and 'fill="currentColor"' in svg and 'aria-label="y = W x + \\frac{' in svg and "&lt; 1" in svg
    width = float(re.search(r"width:([\d.]+)em", svg).group(1))
    assert 5 < width < 20 and svg.count("M") > 8


def test_formula_that_cannot_be_read_is_an_error():
    with pytest.raises(ValueError):
        formula_svg(r"\frac{1}{")


# Docstrings


def test_docstring_keeps_its_prose_its_examples_and_its_errors():
    text = "Return a*b of `x_`.\n\n    store = build_index(p)  # *\n\nMore | of it.\n\nRaises:\n    ValueError: when `a` is\n        wrong."
    assert as_rst(text.split("\n")) == [
        *["Return a\\*b of `x_`.", "", "::", "", "    store = build_index(p)  # *", "", "More \\| of it.", ""],
        *["", "Raises:", "", "- ``ValueError``: when `a` is", "  wrong."],
    ]


# The built site


class Page(HTMLParser):
    """Collects a page's ids, links, what it loads, and pictures without words."""

    def __init__(self, text: str):
        super().__init__()
        self.ids, self.links, self.loaded, self.wordless = set(), [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        own = dict(attributes)
        self.ids.add(own.get("id"))
        if tag == "a" and own.get("href"):
            self.links.append(own["href"])
        loaded = own.get("src") or (own.get("href") if tag == "link" and own.get("rel") in ("stylesheet", "icon") else None)
        if loaded and tag != "a":
            self.loaded.append(loaded)
        if tag == "img" and not own.get("alt"):
            self.wordless.append(own.get("src"))


def dead_links(pages: dict[Path, Page], root: Path) -> Iterator[str]:
    for path, page in pages.items():
        for target in page.links + page.loaded:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            goal = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            goal = goal / "index.html" if goal.is_dir() else goal
            if not goal.is_file():
                yield f"{path.relative_to(root)}: {target}"
            elif parts.fragment and goal in pages and unquote(parts.fragment) not in pages[goal].ids:
                yield f"{path.relative_to(root)}: {target} (no such place)"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> dict[Path, Page]:
    folder = tmp_path_factory.mktemp("site").resolve()
    assert build(folder) == 0, "Sphinx found warnings: run `make site`"
    return {path: Page(path.read_text(encoding="utf-8")) for path in (folder / "html").rglob("*.html")}


@pytest.mark.slow
def test_site_builds_without_a_warning_and_has_every_page(site):
    root = next(path.parent for path in site if path.name == "search.html")
    pages = {path.relative_to(root).as_posix() for path in site}
    assert {f"notebooks/{Path(c.file).stem}.html" for c in REGISTRY} <= pages
    beside = {"notebooks/GLOSSARY.html", "notebooks/COMMON_ERRORS.html", "api/utils.rag.html", "data/handbook/bm25.html"}
    assert beside | {"index.html", "search.html"} <= pages
    assert list(dead_links(site, root)) == []


@pytest.mark.slow
def test_no_page_fetches_anything_from_elsewhere(site):
    outside = {path.name: [x for x in page.loaded if urlsplit(x).netloc] for path, page in site.items()}
    assert {name: found for name, found in outside.items() if found} == {}


@pytest.mark.slow
def test_every_picture_has_words_and_chapters_lead_on(site):
    assert {path.name: page.wordless for path, page in site.items() if page.wordless} == {}
    stems = [Path(chapter.file).stem for chapter in REGISTRY]
    for one, following in zip(stems, stems[1:]):
        page = next(page for path, page in site.items() if path.name == f"{one}.html" and path.parent.name == "notebooks")
        assert f"{following}.html" in page.links
