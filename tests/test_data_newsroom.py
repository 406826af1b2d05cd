"""The newsroom and its questions hold what their data card says: dates, exact supports, older answers that a newer article replaced."""

import json
from collections import Counter, defaultdict

import yaml

from utils.runtime import DATA

ARTICLES = {path.stem: path.read_text(encoding="utf-8").split("---\n", 2)[1:] for path in sorted((DATA / "newsroom").glob("*.md"))}
FRONT = {stem: yaml.safe_load(front) for stem, (front, _) in ARTICLES.items()}
BODY = {stem: body for stem, (_, body) in ARTICLES.items()}
QUESTIONS = [json.loads(line) for line in (DATA / "questions/newsroom.jsonl").read_text(encoding="utf-8").splitlines()]
LATEST = [q for q in QUESTIONS if q["kind"] == "latest"]


def story(question: dict) -> str:
    return FRONT[question["support"][0]["article"]]["story"]


def test_there_are_80_dated_articles_and_stories_that_develop():
    assert len(ARTICLES) >= 80 and all(stem.startswith(str(front["date"])) and front["title"] for stem, front in FRONT.items())
    assert sum(n >= 3 for n in Counter(front["story"] for front in FRONT.values()).values()) >= 20


def test_there_are_120_questions_about_the_newest_state_of_things():
    assert len(LATEST) >= 120 and len({q["question"].lower() for q in QUESTIONS}) == len({q["id"] for q in QUESTIONS}) == len(QUESTIONS)
    assert {q["kind"] for q in QUESTIONS} == {"latest", "fact", "unanswerable"}


def test_every_support_is_exact_and_holds_the_first_answer():
    for q in QUESTIONS:
        assert bool(q["answers"]) == bool(q["support"]) == (q["kind"] != "unanswerable"), q["id"]
        assert all(s["text"] in BODY[s["article"]] for s in q["support"]), q["id"]
        assert not q["answers"] or any(q["answers"][0] in s["text"] for s in q["support"]), q["id"]


def test_an_outdated_answer_stands_in_an_older_article_of_the_story():
    for q in LATEST:
        date = FRONT[q["support"][0]["article"]]["date"]
        older = " ".join(BODY[s] for s, front in FRONT.items() if front["story"] == story(q) and front["date"] < date)
        assert q["outdated"] and all(text in older for text in q["outdated"]), q["id"]
        assert not set(q["outdated"]) & set(q["answers"]), q["id"]


def test_no_story_is_asked_about_in_both_splits():
    splits = defaultdict(set)
    for q in QUESTIONS:
        splits[story(q) if q["support"] else q["id"]].add(q["split"])
    assert all(len(found) == 1 for found in splits.values()) and {s for found in splits.values() for s in found} == {"dev", "test"}
