"""Chapter 06's checks: any right answer is accepted, however it is written, and a wrong one is told why."""

import numpy as np
import pytest

from utils.exercises import verdict
from utils.retrieval import Judgement


def counted(before, after, k):
    return ((after <= k) & (before > k)).sum(), ((after > k) & (before <= k)).sum()


def counted_in_a_loop(before, after, k):
    saved = hurt = 0
    for was, now in zip(before, after):
        saved += was > k and now <= k
        hurt += was <= k and now > k
    return [saved, hurt]


def counted_by_difference(before, after, k):
    change = np.less_equal(after, k).astype(int) - np.less_equal(before, k)
    return np.array([(change == 1).sum(), (change == -1).sum()])


def scale(scores):
    low, high = scores.min(axis=1, keepdims=True), scores.max(axis=1, keepdims=True)
    return (scores - low) / np.where(high > low, high - low, 1)


def fused(dense, bm25, weight):
    return weight * scale(dense) + (1 - weight) * scale(bm25)


def fused_row_by_row(dense, bm25, weight):
    def one(row):
        spread = max(row) - min(row)
        return [(value - min(row)) / spread if spread else 0.0 for value in row]

    return [[weight * a + (1 - weight) * b for a, b in zip(one(x), one(y))] for x, y in zip(dense, bm25)]


def unsure_by_scores(reranker, margin):
    def judge(query, passages):
        scores = [passage.metadata["score"] for passage in passages]
        sure = len(scores) < 2 or scores[0] - scores[1] >= margin
        return scores if sure else reranker(query, passages)

    return judge


def unsure_by_ranks(reranker, margin):
    def judge(query, passages):
        if len(passages) > 1 and passages[0].metadata["score"] - passages[1].metadata["score"] < margin:
            return [Judgement(score, {"asked": True}) for score in reranker(query, passages)]
        return [1 / rank for rank, _ in enumerate(passages, start=1)]

    return judge


RIGHT = [
    ("06-easy", counted),
    ("06-easy", counted_in_a_loop),
    ("06-easy", counted_by_difference),
    ("06-medium", fused),
    ("06-medium", fused_row_by_row),
    ("06-hard", unsure_by_scores),
    ("06-hard", unsure_by_ranks),
]


@pytest.mark.parametrize(("exercise", "answer"), RIGHT)
def test_right_answer_is_accepted(exercise, answer):
    right, why = verdict(exercise, answer)
    assert right, why


def all_moves(before, after, k):
    return (after < before).sum(), (after > before).sum()


def wrong_way_round(before, after, k):
    return counted(after, before, k)


def strictly_below(before, after, k):
    return ((after < k) & (before >= k)).sum(), ((after >= k) & (before < k)).sum()


def without_the_absent(before, after, k):
    both = np.isfinite(before) & np.isfinite(after)
    return counted(before[both], after[both], k)


def divided_by_nothing(dense, bm25, weight):
    def scale(scores):
        return (scores - scores.min(axis=1, keepdims=True)) / np.ptp(scores, axis=1)[:, None]

    return weight * scale(dense) + (1 - weight) * scale(bm25)


def scaled_together(dense, bm25, weight):
    return weight * (dense - dense.min()) / np.ptp(dense) + (1 - weight) * (bm25 - bm25.min()) / np.ptp(bm25)


def in_place(dense, bm25, weight):
    dense -= dense.min(axis=1, keepdims=True)
    return fused(dense, bm25, weight)


def by_spread(dense, bm25, weight):
    def scale(scores):
        return (scores - scores.mean(axis=1, keepdims=True)) / (scores.std(axis=1, keepdims=True) + 1e-9)

    return weight * scale(dense) + (1 - weight) * scale(bm25)


def always_asks(reranker, margin):
    return reranker


def never_asks(reranker, margin):
    return lambda query, passages: [passage.metadata["score"] for passage in passages]


def above_the_margin_only(reranker, margin):
    def judge(query, passages):
        scores = [passage.metadata["score"] for passage in passages]
        return scores if len(scores) < 2 or scores[0] - scores[1] > margin else reranker(query, passages)

    return judge


def asks_about_two(reranker, margin):
    def judge(query, passages):
        scores = [passage.metadata["score"] for passage in passages]
        unsure = len(scores) > 1 and scores[0] - scores[1] < margin
        return [*reranker(query, passages[:2]), *scores[2:]] if unsure else scores

    return judge


def forgets_the_reply(reranker, margin):
    def judge(query, passages):
        scores = [passage.metadata["score"] for passage in passages]
        if len(scores) > 1 and scores[0] - scores[1] < margin:
            reranker(query, passages)
        return scores

    return judge


def returns_nothing(reranker, margin):
    return lambda query, passages: None


def fails_on_one(reranker, margin):
    def judge(query, passages):
        scores = [passage.metadata["score"] for passage in passages]
        return scores if scores[0] - scores[1] >= margin else reranker(query, passages)

    return judge


WRONG = [
    ("06-easy", lambda before, after, k: None, "two counts"),
    ("06-easy", all_moves, "crossed rank"),
    ("06-easy", wrong_way_round, "wrong order"),
    ("06-easy", strictly_below, "itself is still"),
    ("06-easy", without_the_absent, "should be"),
    ("06-medium", lambda dense, bm25, weight: None, "shape"),
    ("06-medium", lambda dense, bm25, weight: weight * dense + (1 - weight) * bm25, "as they are"),
    ("06-medium", lambda dense, bm25, weight: fused(dense, bm25, 1 - weight), "other way round"),
    ("06-medium", divided_by_nothing, "no number"),
    ("06-medium", scaled_together, "all questions at once"),
    ("06-medium", in_place, "changes the arrays"),
    ("06-medium", by_spread, "should be"),
    ("06-hard", lambda reranker, margin: None, "return a reranker"),
    ("06-hard", always_asks, "should not be"),
    ("06-hard", never_asks, "was not called"),
    ("06-hard", above_the_margin_only, "on the margin"),
    ("06-hard", asks_about_two, "all passages"),
    ("06-hard", forgets_the_reply, "turned it round"),
    ("06-hard", returns_nothing, "one score per passage"),
    ("06-hard", fails_on_one, "IndexError"),
    ("06-hard", 6, "not callable"),
]


@pytest.mark.parametrize(("exercise", "answer", "said"), WRONG)
def test_wrong_answer_is_explained(exercise, answer, said):
    right, why = verdict(exercise, answer)
    assert not right and said in why, why
