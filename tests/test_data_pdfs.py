"""The PDFs of chapter 12 say what the script makes, on the pages that the gold questions name, in reading order."""

import json
import re

import pytest

from tools import make_pdfs
from utils.corpus import load_documents, split_documents
from utils.evaluation import support_passages
from utils.runtime import DATA
from utils.screening import without_markup

NAMES = ("handbook", "newsroom", "hostile")


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def pages():
    return {name: load_documents(DATA / "pdfs" / f"{name}.pdf") for name in NAMES}


@pytest.fixture(scope="module")
def questions():
    return read(make_pdfs.QUESTIONS)


def bare(text):
    """Letters only: line ends and heading marks are the page's, not the article's."""
    return re.sub(r"#+ |\s", "", without_markup(text))


def test_committed_files_are_what_the_script_makes(tmp_path, pages):
    make_pdfs.write_all(tmp_path, tmp_path / "pdfs.jsonl")
    assert (tmp_path / "pdfs.jsonl").read_bytes() == make_pdfs.QUESTIONS.read_bytes()
    for name in NAMES:
        made = load_documents(tmp_path / f"{name}.pdf").documents
        assert [page.page_content for page in made] == [page.page_content for page in pages[name].documents]


def test_same_bytes_on_every_run():
    assert make_pdfs.make_newsroom().output() == make_pdfs.make_newsroom().output()


def test_every_support_stands_on_its_pages(pages, questions):
    for row in questions:
        texts = {page.metadata["page"]: page.page_content for page in pages[row["document"][:-4]].documents} if row["document"] else {}
        together = bare("".join(texts[number] for number in row["pages"]))
        assert all(bare(support["text"]) in together for support in row["support"]), row["id"]
    assert {row["document"] for row in questions} == {"handbook.pdf", "newsroom.pdf", None}
    assert sum(bool(row["answers"]) for row in questions) > 200 and sum(not row["answers"] for row in questions) > 20


def test_every_question_has_a_passage_that_supports_it(pages, questions):
    passages = split_documents([page for loaded in pages.values() for page in loaded.documents])
    found = [bool(support_passages(row["support"], passages)) for row in questions if row["answers"] and len(row["pages"]) == 1]
    assert all(found) and len(found) > 200, "a sentence that runs over a page border is in no passage; those have two pages"


def test_page_without_text_is_reported_and_the_others_are_read(pages):
    assert pages["newsroom"].problems == [("newsroom.pdf", "no text on page 10 (scanned? run OCR on it first)")]
    assert [page.metadata["page"] for page in pages["newsroom"].documents] == list(range(1, 10))
    assert not pages["handbook"].problems and not pages["hostile"].problems


def test_two_columns_are_read_one_after_the_other(pages):
    printed = bare("".join(page.page_content for page in pages["newsroom"].documents[:-1]))
    articles = [bare(article.page_content) for article in make_pdfs.newest_articles()]
    assert printed == "".join(articles)


def test_printed_page_numbers_are_the_pages_of_the_file():
    from pypdf import PdfReader

    for name in NAMES:
        for number, page in enumerate(PdfReader(DATA / "pdfs" / f"{name}.pdf").pages, 1):
            assert page.extract_text().strip().split("\n")[-1].strip() == str(number)


def test_passages_know_their_article_and_section(pages):
    passages = split_documents(pages["handbook"].documents)
    assert all(passage.metadata["headings"] for passage in passages)
    block_size = next(passage for passage in passages if "default block size is 64" in " ".join(passage.page_content.split()))
    assert block_size.metadata["headings"] == "NF4: the 4-bit NormalFloat data type > Blocks of 64 weights"
    assert block_size.metadata["page"] == 9
    news = split_documents(pages["newsroom"].documents)
    headlines = {article.metadata["title"] for article in make_pdfs.newest_articles()}
    assert {passage.metadata["headings"] for passage in news} == headlines | {"Dates"}


def test_table_rows_are_found_with_their_columns_together(pages):
    table = pages["newsroom"].documents[-1].page_content
    assert "2026-05-12 Pellworth trams roll again after one-day strike" in table


def test_hidden_text_is_white_and_read_all_the_same(pages):
    attacks = read(make_pdfs.ATTACKS)
    assert len(pages["hostile"].documents) == len(attacks)
    for attack, page in zip(attacks, pages["hostile"].documents, strict=True):
        assert bare(page.page_content) == bare(attack["passage"]), attack["id"]


def test_follow_ups_point_at_questions_of_the_pdfs(questions):
    known = {row["id"]: row for row in questions}
    follow_ups = read(DATA / "questions" / "followups.jsonl")
    assert len(follow_ups) >= 24 and {row["split"] for row in follow_ups} == {"dev", "test"}
    for row in follow_ups:
        assert known[row["first"]]["answers"] and known[row["gold"]]["answers"]
        assert row["kind"] == "new topic" or row["standalone"] != row["question"]
    shared = [{row[key] for row in follow_ups if row["split"] == "dev"} for key in ("gold", "first")]
    tested = {row["gold"] for row in follow_ups if row["split"] == "test"}
    assert not shared[0] & tested, "no gold question is in both splits"


def test_attacks_name_questions_that_the_pdfs_answer(questions):
    known = {row["id"]: row for row in questions}
    assert all(known[attack["question"]]["answers"] for attack in read(make_pdfs.ATTACKS))
