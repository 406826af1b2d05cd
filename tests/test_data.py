"""The handbook and its questions hold what their data card says: sizes, exact supports, a fixed split, digests."""

import hashlib
import json
import re
from collections import Counter

import pytest
import yaml

from utils.evaluation import normalize_answer
from utils.runtime import DATA

ARTICLES = {path.stem: path.read_text(encoding="utf-8") for path in sorted((DATA / "handbook").glob("*.md"))}
QUESTIONS = [json.loads(line) for line in (DATA / "questions/handbook.jsonl").read_text(encoding="utf-8").splitlines()]
KINDS = {"fact", "definition", "how", "why", "multi", "unanswerable"}


def body(article: str) -> str:
    """The article without its front matter."""
    return ARTICLES[article].split("---\n", 2)[2]


def test_handbook_has_at_least_60_articles_and_35000_words():
    assert len(ARTICLES) >= 60 and sum(len(body(a).split()) for a in ARTICLES) >= 35_000


@pytest.mark.parametrize("article", ARTICLES)
def test_article_names_its_title_topic_and_sources(article):
    front = yaml.safe_load(ARTICLES[article].split("---\n", 2)[1])
    assert front["title"] and front["topic"] and front["sources"] and all(isinstance(s, str) for s in front["sources"])
    assert body(article).lstrip().startswith("# ") and body(article).count("\n## ") >= 4


def test_there_are_250_answerable_and_40_unanswerable_questions_in_two_splits():
    kinds = Counter(q["kind"] for q in QUESTIONS)
    assert set(kinds) == KINDS and kinds["unanswerable"] >= 40 and len(QUESTIONS) - kinds["unanswerable"] >= 250
    assert {q["split"] for q in QUESTIONS} == {"dev", "test"}
    assert len({q["id"] for q in QUESTIONS}) == len({q["question"].lower() for q in QUESTIONS}) == len(QUESTIONS)


def test_every_support_is_an_exact_text_of_its_article():
    wrong = [q["id"] for q in QUESTIONS for s in q["support"] if s["text"] not in body(s["article"])]
    assert not wrong, wrong


def test_every_question_has_a_support_or_is_unanswerable():
    assert all(bool(q["answers"]) == bool(q["support"]) == (q["kind"] != "unanswerable") for q in QUESTIONS)


def test_the_first_answer_to_a_fact_question_stands_in_a_support():
    for q in (q for q in QUESTIONS if q["kind"] == "fact"):
        assert any(q["answers"][0] in s["text"] for s in q["support"]), q["id"]


def test_every_article_is_asked_about():
    assert {s["article"] for q in QUESTIONS for s in q["support"]} == set(ARTICLES)


def test_no_answer_is_given_away_by_its_question():
    given = [
        q["id"] for q in QUESTIONS if q["answers"] and f" {normalize_answer(q['answers'][0])} " in f" {normalize_answer(q['question'])} "
    ]
    assert len(given) <= 0.03 * len(QUESTIONS), given


def test_the_data_card_knows_every_file_and_its_digest():
    """Digest lines look like: | `models/small-lm/model.safetensors` | 35.1 MB | `sha256` |; a folder's line digests its files in order."""
    card = (DATA / "README.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `([^`]+)` \|[^|]*\| `([0-9a-f]{64})` \|$", card, flags=re.M))
    assert listed
    for name, digest in listed.items():
        path = DATA / name
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        assert hashlib.sha256(b"".join(p.read_bytes() for p in files)).hexdigest() == digest, f"data/{name} changed: run make data-card"
    covered = [DATA / name for name in listed]
    missing = [
        p
        for p in DATA.rglob("*")
        if p.is_file() and p != DATA / "README.md" and DATA / "logs" not in p.parents and not any(c == p or c in p.parents for c in covered)
    ]
    assert not missing, missing
