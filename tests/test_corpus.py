"""Documents and passages: what is read, what is reported, and that every passage is a slice of its document."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.documents import Document

from utils.corpus import load_documents, split_documents
from utils.runtime import DATA
from utils.splitting import default_tokenizer

ARTICLE = """---
title: "Small numbers"
topic: quantization
sources:
  - "Dettmers et al., 2023"
checked: 2026-11-02
---
# Small numbers

## What NF4 stores

NF4 stores four bits per weight. The levels follow a normal distribution.

```python
# not a heading
levels = 16
```

### Double quantization

The scales are quantized too.
"""


def write_pdf(path, pages, password=None):
    from fpdf import FPDF

    pdf = FPDF()
    pdf.set_title("A printed report")
    pdf.set_font("helvetica", size=12)
    for text in pages:
        pdf.add_page()
        if text:
            pdf.multi_cell(0, 8, text)
    if password:
        pdf.set_encryption(owner_password=password, user_password=password)
    pdf.output(str(path))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "small-numbers.md").write_text(ARTICLE, encoding="utf-8")
    (tmp_path / "note.txt").write_bytes("# 5 apples\r\nGrüße".encode("utf-8-sig"))
    (tmp_path / "wide.txt").write_bytes("sixteen bits".encode("utf-16"))
    html = "<html><head><title>The page</title><script>x()</script></head><body><nav>menu</nav><h1>Caches</h1><p>Keys and\nvalues.</p>"
    (tmp_path / "page.html").write_text(html + "<h2>Size</h2><ul><li>one<li>two</ul><table><tr><td>a</td><td>b</td></tr></table>")
    write_pdf(tmp_path / "report.pdf", ["First page about graphs.", "", "Third page about ranks."])
    markdown, code = {"cell_type": "markdown", "source": ["# A notebook\n", "Prose."]}, {"cell_type": "code", "source": "print(1)"}
    (tmp_path / "book.ipynb").write_text(json.dumps({"cells": [markdown, {**code, "outputs": [{"text": "hidden"}]}], "nbformat": 4}))
    (tmp_path / ".hidden.md").write_text("hidden")
    return tmp_path


def by_source(documents):
    return {document.metadata["source"]: document for document in documents}


def test_mixed_folder_is_read_with_its_metadata(folder):
    documents, problems = load_documents(folder)
    found = by_source(documents)
    assert set(found) == {"book.ipynb", "note.txt", "page.html", "report.pdf", "sub/small-numbers.md", "wide.txt"}
    article = found["sub/small-numbers.md"]
    assert article.page_content.startswith("# Small numbers\n") and "Dettmers" not in article.page_content
    assert article.metadata == {
        "source": "sub/small-numbers.md",
        "article": "small-numbers",
        "title": "Small numbers",
        "format": "md",
        "topic": "quantization",
        "sources": ["Dettmers et al., 2023"],
        "checked": "2026-11-02",
    }
    assert found["note.txt"].page_content == "# 5 apples\nGrüße" and found["wide.txt"].page_content == "sixteen bits"
    assert found["page.html"].page_content == "# Caches\n\nKeys and\nvalues.\n\n## Size\n\n- one\n- two\n\na | b |"
    assert found["page.html"].metadata["title"] == "The page"
    assert found["book.ipynb"].page_content == "# A notebook\nProse.\n\n```python\nprint(1)\n```"
    pages = [document for document in documents if document.metadata["source"] == "report.pdf"]
    assert [(page.metadata["page"], page.metadata["title"]) for page in pages] == [(1, "A printed report"), (3, "A printed report")]
    assert "First page about graphs." in pages[0].page_content
    assert problems == [("report.pdf", "no text on page 2 (scanned? run OCR on it first)")]


def test_unreadable_files_are_reported_by_name_and_the_rest_is_read(tmp_path):
    (tmp_path / "good.txt").write_text("good text")
    (tmp_path / "empty.md").write_text(" \n")
    (tmp_path / "latin.txt").write_bytes("Grüße".encode("latin-1"))
    (tmp_path / "zeros.txt").write_bytes(b"a\x00b")
    (tmp_path / "half.ipynb").write_text('{"cells": [')
    (tmp_path / "letter.docx").write_bytes(b"PK")
    (tmp_path / "torn.pdf").write_bytes(b"%PDF-1.4 torn")
    (tmp_path / "front.md").write_text("---\ntitle: [unclosed\n---\nStill here.")
    write_pdf(tmp_path / "locked.pdf", ["secret"], password="key")
    write_pdf(tmp_path / "scan.pdf", ["", ""])
    documents, problems = load_documents(tmp_path)
    assert {document.metadata["source"] for document in documents} == {"good.txt", "front.md"}
    reasons = dict(problems)
    assert set(reasons) == {path.name for path in tmp_path.iterdir()} - {"good.txt"}
    assert reasons["latin.txt"] == "not valid UTF-8 at byte 2; save it as UTF-8" and reasons["empty.md"] == "the file is empty"
    assert "zero bytes" in reasons["zeros.txt"] and "JSONDecodeError" in reasons["half.ipynb"]
    assert "cannot be read as pdf" in reasons["torn.pdf"]
    assert "encrypted" in reasons["locked.pdf"] and "OCR" in reasons["scan.pdf"]
    assert "'.docx' are not read; convert it to one of .md" in reasons["letter.docx"] and "not valid YAML" in reasons["front.md"]


def test_sources_may_be_a_file_or_several_and_must_exist(folder):
    assert [d.metadata["source"] for d in load_documents(folder / "note.txt").documents] == ["note.txt"]
    assert len(load_documents([folder / "note.txt", str(folder / "sub")]).documents) == 2
    with pytest.raises(FileNotFoundError, match="absent does not exist; give a folder"):
        load_documents(folder / "absent")


def test_headings_page_and_front_matter_reach_the_passages(folder):
    passages = split_documents(load_documents(folder).documents, max_tokens=40)
    nf4 = [passage for passage in passages if passage.metadata["article"] == "small-numbers"]
    assert [passage.metadata["headings"] for passage in nf4] == [
        "Small numbers > What NF4 stores",
        "Small numbers > What NF4 stores > Double quantization",
    ]
    assert nf4[0].page_content.startswith("# Small numbers\n\n## What NF4") and "# not a heading" in nf4[0].page_content
    assert nf4[0].metadata["sources"] == ["Dettmers et al., 2023"] and nf4[0].id == nf4[0].metadata["id"] and len(nf4[0].id) == 32
    assert {passage.metadata.get("page") for passage in passages if passage.metadata["article"] == "report"} == {1, 3}
    assert [passage.metadata["headings"] for passage in passages if passage.metadata["article"] == "note"] == [""]


def assert_slices(document, passages, max_tokens, overlap=0, count=None):
    count = count or (lambda text: len(default_tokenizer().encode(text, add_special_tokens=False).ids))
    text, covered = document.page_content, 0
    for passage in passages:
        start, end = passage.metadata["start"], passage.metadata["end"]
        assert text[start:end] == passage.page_content == passage.page_content.strip() != ""
        assert count(passage.page_content) <= max_tokens or end - start == 1
        assert not text[covered:start].strip()
        if overlap == 0:
            assert start >= covered
        covered = end
    assert not text[covered:].strip()


PIECES = st.sampled_from(
    ["# Head\n", "## Sub head\n", "word ", "Longer sentence about vectors. ", "\n\n", "\n", "- item\n", "```\ncode # x\n\n", "```\n"]
    + ["量化。", "x" * 90]
    + ["naïve café ", "🙂🙂", "https://example.org/a/b?c=d&e=f ", "| a | b |\n", "\t", "1. first\n", "e.g. this! \u2028", "\u200b", "Ａ"]
)


@settings(max_examples=60, deadline=None)
@given(st.lists(PIECES, max_size=60), st.integers(1, 40), st.data())
def test_passages_are_slices_that_fit_and_cover_the_document(pieces, max_tokens, data):
    document = Document(page_content="".join(pieces), metadata={"format": "md"})
    overlap = data.draw(st.integers(0, max_tokens - 1))
    passages = split_documents([document], max_tokens=max_tokens, overlap=overlap)
    assert_slices(document, passages, max_tokens, overlap)
    assert len({passage.id for passage in passages}) == len(passages)


def test_overlap_repeats_the_end_of_the_passage_before():
    words = [f"word{number}" for number in range(300)]
    document = Document(page_content=" ".join(words))
    plain, overlapping = split_documents([document], max_tokens=60), split_documents([document], max_tokens=60, overlap=20)
    assert all(a.metadata["end"] <= b.metadata["start"] for a, b in zip(plain, plain[1:], strict=False))
    assert all(0 < a.metadata["end"] - b.metadata["start"] for a, b in zip(overlapping, overlapping[1:], strict=False))
    assert_slices(document, overlapping, 60, overlap=20)
    with pytest.raises(ValueError, match="0 ≤ overlap < max_tokens"):
        split_documents([document], max_tokens=60, overlap=60)


def test_splitting_prefers_sentences_and_equal_parts():
    sentences = [f"Sentence number {number} says something short." for number in range(30)]
    random.Random(0).shuffle(sentences)
    passages = split_documents([Document(page_content=" ".join(sentences))], max_tokens=100)
    assert all(passage.page_content.startswith("Sentence") and passage.page_content.endswith(".") for passage in passages)
    lengths = [len(passage.page_content) for passage in passages]
    assert min(lengths) > 0.6 * max(lengths)


def test_ids_are_content_hashes_that_do_not_depend_on_the_machine(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "text.txt").write_text("Same text.\n\n" * 2 + "Other.")
    ids = [[p.id for p in split_documents(load_documents(tmp_path / name).documents, max_tokens=4)] for name in ("a", "b")]
    assert ids[0] == ids[1] and len(set(ids[0])) == 3


def test_any_fast_tokenizer_counts_and_a_slow_one_is_refused():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    text = "The cache keeps keys.  It keeps values, too — naïvely. " * 20
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bpe.train_from_iterator([text], trainers.BpeTrainer(vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe)
    document = Document(page_content=text)
    for tokenizer in (bpe, fast):
        passages = split_documents([document], tokenizer, max_tokens=30)
        assert len(passages) > 5
        assert_slices(document, passages, 30, count=lambda piece: len(bpe.encode(piece).ids))
    unbroken = Document(page_content="QUJD" * 5000)
    assert_slices(unbroken, split_documents([unbroken], bpe, max_tokens=100), 100, count=lambda piece: len(bpe.encode(piece).ids))
    with pytest.raises(TypeError, match="gives no token offsets"):
        split_documents([document], str.split)


def test_handbook_is_read_whole_and_every_passage_is_a_slice():
    documents, problems = load_documents(DATA / "handbook")
    assert problems == [] and documents
    for document in documents:
        passages = split_documents([document])
        assert_slices(document, passages, 160)
        assert all(passage.metadata["title"] and passage.metadata["headings"] for passage in passages)
