"""Notebook 05 runs on the reader's own folder by changing one parameter; what needs gold questions says so and is skipped."""

import os
import shutil

import nbformat
import pytest
from fpdf import FPDF

from tools.execute import execute
from tools.registry import ROOT, load_registry

QUESTION = "When must the boiler in the cellar be bled?"
CHAPTER = next(chapter for chapter in load_registry() if chapter.id == "05")

MARKDOWN = """---
title: The boiler
---
# The boiler

## Bleeding

The boiler in the cellar must be bled every October, before the first frost. Open the small valve until water comes.
"""
PAGE = (
    "<html><head><title>The garden</title></head><body><nav>Home</nav><h1>The garden</h1>"
    "<p>The hedge is cut in June, after the birds have left their nests.</p></body></html>"
)


@pytest.fixture
def folder(tmp_path):
    """A folder as people have them: four formats, a sub-folder, an empty file and a spreadsheet."""
    house = tmp_path / "house"
    (house / "papers").mkdir(parents=True)
    (house / "boiler.md").write_text(MARKDOWN, encoding="utf-8")
    (house / "keys.txt").write_text("The spare key hangs behind the third flower pot on the balcony.", encoding="utf-8")
    (house / "papers" / "garden.html").write_text(PAGE, encoding="utf-8")
    (house / "papers" / "empty.txt").write_text("", encoding="utf-8")
    (house / "papers" / "costs.xlsx").write_bytes(b"PK\x03\x04")
    pdf = FPDF()
    pdf.set_font("helvetica", size=12)
    for text in ("The roof was covered with new tiles in 2019.", "The roofer is Mrs Hansen, and her guarantee ends in 2029."):
        pdf.add_page()
        pdf.multi_cell(0, text=text)
    pdf.output(str(house / "papers" / "roof.pdf"))
    return house


@pytest.fixture
def changed(folder):
    """The notebook with one parameter and two questions changed, below the repository, where its set-up cell finds the course."""
    notebook = nbformat.read(CHAPTER.path, as_version=4)
    cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    cell.source += f"\nDOCUMENTS = {str(folder)!r}\nQUESTION = {QUESTION!r}"
    place = ROOT / "build" / f"own-documents-{os.getpid()}"
    place.mkdir(parents=True)
    nbformat.write(notebook, place / CHAPTER.file)
    yield place / CHAPTER.file
    shutil.rmtree(place)
    shutil.rmtree(ROOT / "build" / "indexes" / f"own-{folder.name}", ignore_errors=True)


def printed(notebook) -> str:
    """Everything that the code cells show as text."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "\n".join(output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in outputs)


@pytest.mark.slow
def test_notebook_answers_from_a_mixed_folder(changed):
    result = execute(changed, {"COURSE_PROFILE": "embedded"})
    assert result.failure is None, result.failure
    shown = printed(result.notebook)
    assert "5 documents" in shown and "2 problems" in shown, "one document for each file and PDF page, and the two unreadable files named"
    assert "empty.txt" in shown and "costs.xlsx" in shown
    assert all(kind in shown for kind in ("md", "txt", "html", "pdf"))
    assert "5 of 5 passages are exact slices" in shown
    assert "The boiler" in shown and "every October" in shown, "the passage that answers the question is found"
    assert "Skipped: measuring needs gold questions" in shown
    assert "application/vnd.grounded-llms.result+json" not in str(result.notebook), "nothing is measured without gold questions"
