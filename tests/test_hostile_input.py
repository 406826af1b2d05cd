"""Documents and uploads from people who mean harm, or whose files are broken: read, or refused in words, and never for ever."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from fpdf import FPDF
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.documents import Document

from tests.hash_embedder import HashEmbedder
from tests.hostile import REPEATABLE, contents, damaged, ends
from tools.app_uploads import Limits, Outcome, take_in
from utils.corpus import load_documents, split_documents
from utils.indexes.passages import as_passages
from utils.library import Library
from utils.runtime import DATA

HTML = "<html><head><title>T</title></head><body><h1>A &amp; B</h1><ul><li>one<li>two</ul><table><tr><td>a<td>b</table><p>é</p>"
NOTEBOOK = {"cells": [{"cell_type": "markdown", "source": ["# A\n", "text"]}, {"cell_type": "code", "source": "1", "outputs": []}]}
POSIX = pytest.mark.skipif(os.name == "nt", reason="pipes and links are POSIX")


def small_pdf() -> bytes:
    """Returns a PDF of two pages with an outline."""
    pdf = FPDF()
    pdf.set_font("helvetica", size=12)
    for title in ("The harbour", "The mole"):
        pdf.add_page()
        pdf.start_section(title)
        pdf.multi_cell(0, 8, f"{title}\nIt is 340 metres long.")
    return bytes(pdf.output())


REAL = {
    ".md": (DATA / "handbook" / "chat-templates.md").read_bytes()[:1500],
    ".txt": "# 5 apples\r\nGrüße".encode("utf-16"),
    ".html": HTML.encode(),
    ".ipynb": json.dumps(NOTEBOOK).encode(),
    ".pdf": small_pdf(),
}


def read_or_named(path: Path) -> list[Document]:
    """Returns the passages of a file, after asserting that it was read or named with a reason, that passages are exact and can be kept."""
    with ends():
        documents, problems = load_documents(path)
        passages = [(document, passage) for document in documents for passage in split_documents([document])]
    assert documents or problems
    assert all(problem.path == path.name and problem.reason.strip() for problem in problems)
    for document, passage in passages:
        assert document.metadata["source"] == path.name and document.metadata["format"] == path.suffix[1:]
        assert document.page_content[passage.metadata["start"] : passage.metadata["end"]] == passage.page_content
    as_passages([passage for _, passage in passages])
    return [passage for _, passage in passages]


@pytest.mark.parametrize("suffix", REAL)
def test_damaged_file_is_read_or_named_with_a_reason(tmp_path, suffix):
    file = tmp_path / f"file{suffix}"
    for copy in [REAL[suffix], *damaged(REAL[suffix], 40 if suffix == ".pdf" else 150)]:
        file.write_bytes(copy)
        read_or_named(file)
    assert list(contents(tmp_path)) == [file.name]


YAML = st.text(alphabet="ab:- \n{}[]&*!#'\"|>%@0129.~", max_size=60)
FRONT = st.builds(lambda front, body: f"---\n{front}\n---\n{body}".encode(), YAML, st.text(max_size=20))


@REPEATABLE
@given(suffix=st.sampled_from(list(REAL)), raw=st.binary(max_size=200) | st.text(max_size=200).map(str.encode) | FRONT)
def test_any_bytes_under_any_name_are_read_or_named(tmp_path, suffix, raw):
    file = tmp_path / f"file{suffix}"
    file.write_bytes(raw)
    read_or_named(file)


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=6
)
CELL = st.fixed_dictionaries({}, optional={"cell_type": st.sampled_from(["markdown", "code"]) | JSON, "source": JSON}) | JSON


@REPEATABLE
@given(notebook=st.fixed_dictionaries({"cells": st.lists(CELL, max_size=3) | JSON}) | JSON)
def test_any_json_is_read_as_a_notebook_or_named(tmp_path, notebook):
    (tmp_path / "file.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    read_or_named(tmp_path / "file.ipynb")


MARKS = st.sampled_from(
    ["# ", "## a #", "```", "~~~~", "\n", "\r", "\u2028", "\x00", "\x0b", " " * 9, "- ", ".", "“", "。", "e\u0301", "👩‍👩‍👧", "\ud800"]
)


@REPEATABLE
@given(parts=st.lists(MARKS | st.text(max_size=12), max_size=12), max_tokens=st.integers(1, 20), above=JSON)
def test_passages_of_any_text_are_exact_slices_of_it(parts, max_tokens, above):
    document = Document(page_content="".join(parts), metadata={"section": above})
    for passage in split_documents([document], max_tokens=max_tokens):
        assert document.page_content[passage.metadata["start"] : passage.metadata["end"]] == passage.page_content != ""


ALIASES = "\n".join(["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))])
SLOW = {
    "a heading with many spaces": (".md", "# a" + " " * 20_000 + "b"),
    "a heading with many marks": (".md", "# a" + "#" * 20_000 + "b"),
    "backticks without end": (".md", "`" * 120_000),
    "headings between fences": (".md", "# a\n```\nb\n```\n" * 8_000),
    "one line": (".txt", "a" * 150_000),
    "quotes after a point": (".txt", "." + '"' * 30_000 + "a"),
    "points": (".txt", ". " * 20_000),
    "empty lines": (".txt", "a" + "\n" * 200_000 + "a"),
    "HTML in HTML": (".html", "<div><h1>" * 8_000 + "x"),
    "lists in lists": (".html", "<ul><li>" * 8_000 + "x"),
    "front matter that grows": (".md", f"---\n{ALIASES}\n---\nText."),
    "front matter that holds itself": (".md", "---\na: &a [*a]\n---\nText."),
    "front matter in brackets": (".md", f"---\na: {'[' * 15_000}\n---\nText."),
    "front matter of a megabyte": (".md", "---\n" + "a: b\n" * 200_000 + "---\nText."),
    "JSON in JSON": (".ipynb", '{"cells": ' + "[" * 200_000),
}


@pytest.mark.parametrize("what", SLOW)
def test_text_made_to_take_for_ever_does_not(tmp_path, what):
    suffix, text = SLOW[what]
    (tmp_path / f"file{suffix}").write_text(text, encoding="utf-8")
    passages = read_or_named(tmp_path / f"file{suffix}")
    assert passages or suffix == ".ipynb"


@POSIX
def test_pipe_and_dead_link_are_named_not_waited_for_and_a_strange_name_can_be_shown(tmp_path):
    os.mkfifo(tmp_path / "pipe.md")
    (tmp_path / "link.md").symlink_to(tmp_path / "nowhere")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.md")).write_text("# Text\n\nHere.")
    with ends():
        documents, problems = load_documents(tmp_path)
    assert [document.metadata["source"] for document in documents] == ["caf\ufffd.md"]
    assert [(one.path, one.reason.split(":")[0]) for one in problems] == [("link.md", "it is no file"), ("pipe.md", "it is no file")]


def test_front_matter_cannot_say_that_the_text_is_from_another_file(tmp_path):
    front = "source: trusted.md\narticle: trusted\nformat: pdf\npage: 7\ntitle: 5\nsection: 3\nraw: !!binary aGVsbG8=\nnan: .nan"
    (tmp_path / "own.md").write_text(f"---\n{front}\n---\n# Text\n\nHere.")
    (passage,) = read_or_named(tmp_path / "own.md")
    assert (passage.metadata["source"], passage.metadata["article"], passage.metadata["title"]) == ("own.md", "own", "5")
    assert "page" not in passage.metadata and passage.metadata["nan"] == "nan"


@POSIX
def test_upload_that_is_a_link_a_pipe_or_gone_is_refused_and_what_it_points_at_stays(tmp_path):
    uploads, secret = tmp_path / "uploads", tmp_path / "secret.md"
    uploads.mkdir()
    secret.write_text("# Secret\n\nNot to be read.")
    (uploads / "link.md").symlink_to(secret)
    os.mkfifo(uploads / "pipe.md")
    files = [uploads / name for name in ("link.md", "pipe.md", "gone.md")]
    with ends():
        outcomes = [one for one in take_in(SimpleNamespace(add=pytest.fail), files, Limits()) if isinstance(one, Outcome)]
    assert [one.words for one in outcomes] == ["it is no file of its own; upload a copy"] * 3
    assert contents(uploads) == {} and "Not to be read" in secret.read_text()


@pytest.mark.parametrize("name", ["../../up.md", "/etc/passwd", "..\\up.md", "a\x00b", "\ud800.md", "CON", ".", "x" * 5_000])
def test_document_of_any_name_stays_within_its_folder(tmp_path, name):
    (tmp_path / "given.md").write_text("# Text\n\nHere.", encoding="utf-8")
    library = Library(HashEmbedder(), tmp_path / "in" / "library")
    library.add(tmp_path / "given.md", name=name)
    assert [path.name for path in tmp_path.iterdir()] in (["given.md", "in"], ["in", "given.md"])
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["library"]
    again = Library(HashEmbedder(), tmp_path / "in" / "library")
    assert [report.name for report in again.reports()] == [name] and again.remove(name).name == name
