"""The reviews hold what their data card says: size, balance, splits by product, no text twice."""

import json
from collections import Counter, defaultdict

from utils.runtime import DATA

REVIEWS = [json.loads(line) for line in (DATA / "sentiment/reviews.jsonl").read_text(encoding="utf-8").splitlines()]


def test_there_are_240_balanced_reviews_in_every_product():
    assert len(REVIEWS) >= 240
    for product in {row["product"] for row in REVIEWS}:
        labels = Counter(row["label"] for row in REVIEWS if row["product"] == product)
        assert set(labels) == {"positive", "negative"} and labels["positive"] == labels["negative"], product


def test_no_product_stands_in_two_splits_and_each_split_has_gadgets_and_books():
    splits = defaultdict(set)
    for row in REVIEWS:
        splits[row["product"]].add(row["split"])
    assert all(len(found) == 1 for found in splits.values())
    assert {(row["split"], row["kind"]) for row in REVIEWS} == {(s, k) for s in ("train", "valid", "test") for k in ("gadget", "book")}
    assert Counter(row["split"] for row in REVIEWS)["test"] >= 60


def test_every_review_has_its_own_id_and_text_of_a_short_length():
    assert len({row["id"] for row in REVIEWS}) == len({row["text"].lower() for row in REVIEWS}) == len(REVIEWS)
    assert all(3 <= len(row["text"].split()) <= 40 and row["text"] == row["text"].strip() for row in REVIEWS)


def test_reviews_do_not_name_their_product_so_a_model_reads_the_opinion():
    for row in REVIEWS:
        assert row["product"].lower() not in row["text"].lower(), row["id"]
        assert set(row) == {"id", "product", "kind", "split", "text", "label"}
