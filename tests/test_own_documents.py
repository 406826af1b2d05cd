"""Notebook 03 runs on the reader's own folder by changing one parameter: four formats, and files among them that cannot be read."""

import os
import shutil

import nbformat
import pytest
from fpdf import FPDF

from tools.execute import execute
from tools.registry import ROOT, load_registry

QUESTION = "How long does the battery of the buoy last?"
CHAPTER = next(chapter for chapter in load_registry() if chapter.id == "03")

MARKDOWN = """# The lighthouse

## The lamp

The lamp turns once in twelve seconds. It was changed to light-emitting diodes in 2011, and the old lens is kept in the museum.

## The stairs

There are 187 steps to the gallery. Visitors may climb them on Sundays, in groups of at most eight.
"""
TEXT = "The keeper's log is written by hand. Each entry names the wind, the visibility and the ships that passed before noon.\n"
PAGE = (
    "<html><head><title>The harbour</title></head><body><nav>Home</nav><h1>The harbour</h1><p>The ferry leaves at seven, and at nine "
    "when the tide is low.</p><h2>Fees</h2><p>A berth costs eleven crowns a night, electricity included.</p></body></html>"
)
PDF_PAGES = ("The buoy marks the sandbank in the north.", "The battery of the buoy lasts four years and is charged by a solar panel.")


@pytest.fixture
def folder(tmp_path):
    """A folder as people have them: four formats, a sub-folder, a file that is not text, and one of an unknown format."""
    coast = tmp_path / "coast"
    (coast / "papers").mkdir(parents=True)
    (coast / "lighthouse.md").write_text(MARKDOWN, encoding="utf-8")
    (coast / "log.txt").write_text(TEXT, encoding="utf-8")
    (coast / "papers" / "harbour.html").write_text(PAGE, encoding="utf-8")
    (coast / "papers" / "broken.txt").write_bytes(b"caf\xe9 \xff\xfe\x00")
    (coast / "papers" / "tides.xlsx").write_bytes(b"PK\x03\x04")
    pdf = FPDF()
    pdf.set_font("helvetica", size=12)
    for text in PDF_PAGES:
        pdf.add_page()
        pdf.multi_cell(0, text=text)
    pdf.output(str(coast / "papers" / "buoy.pdf"))
    return coast


@pytest.fixture
def changed(folder):
    """The notebook with its parameter and question changed, below the repository, where its set-up cell finds the course."""
    notebook = nbformat.read(CHAPTER.path, as_version=4)
    cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    cell.source += f"\nDOCUMENTS = {str(folder)!r}\nQUESTION = {QUESTION!r}"
    place = ROOT / "build" / f"own-documents-03-{os.getpid()}"
    place.mkdir(parents=True)
    nbformat.write(notebook, place / CHAPTER.file)
    yield place / CHAPTER.file
    shutil.rmtree(place)
    for index in (ROOT / "build" / "indexes").glob(f"03-{folder.name}*"):
        shutil.rmtree(index)


def printed(notebook) -> str:
    """Everything that the code cells show as text."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "\n".join(output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in outputs)


@pytest.mark.slow
def test_notebook_searches_a_mixed_folder(changed):
    result = execute(changed, {"COURSE_PROFILE": "embedded"})
    assert result.failure is None, result.failure
    shown = printed(result.notebook)
    assert "5 documents" in shown and "2 problems" in shown, "one document for each file and PDF page, and two problems"
    assert "not read: papers/broken.txt" in shown and "not read: papers/tides.xlsx" in shown
    assert all(name in shown for name in ("lighthouse.md", "papers/buoy.pdf, page 2"))
    first_hit = shown.split(f"Question: {QUESTION}\n", 1)[1].splitlines()[0]
    assert "papers/buoy.pdf, page 2" in first_hit, "the page that answers the question comes first"
    assert "refused: made by another embedder" in shown
    pictures = [output for cell in result.notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
    assert len(pictures) >= 4
