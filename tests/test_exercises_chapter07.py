"""Chapter 07's checks: any right answer is accepted, however it is written, and a wrong one is told why."""

import random

import numpy as np
import pytest

from utils.evaluation import paired_bootstrap, recall_at_k
from utils.exercises import verdict


def hits_by_any(rankings, relevant, k):
    return sum(any(key in wanted for key in ranking[:k]) for ranking, wanted in zip(rankings, relevant)) / len(rankings)


def hits_by_recall(rankings, relevant, k):
    return (recall_at_k(rankings, relevant, k) > 0).mean()


def hits_by_sets(rankings, relevant, k):
    return np.mean([not set(ranking[:k]).isdisjoint(wanted) for ranking, wanted in zip(rankings, relevant)])


def verdict_by_pair(judge, question, first, second):
    verdicts = judge(question, first, second), judge(question, second, first)
    return {("A", "B"): "first", ("B", "A"): "second"}.get(verdicts, "tie")


def verdict_by_votes(judge, question, first, second):
    votes = [{"A": "first", "B": "second"}.get(judge(question, first, second))]
    votes.append({"A": "second", "B": "first"}.get(judge(question, second, first)))
    return votes[0] if votes[0] and votes[0] == votes[1] else "tie"


def p_vectorised(a, b):
    differences = a - b
    signs = np.random.default_rng(0).choice([-1, 1], size=(4000, len(a)))
    return (np.abs((signs * differences).mean(axis=1)) >= abs(differences.mean()) - 1e-12).mean()


def p_in_a_loop(a, b):
    draw, seen = random.Random(0), abs(sum(x - y for x, y in zip(a, b)))
    extreme = 0
    for _ in range(3000):
        swapped = sum(x - y if draw.random() < 0.5 else y - x for x, y in zip(a, b))
        extreme += abs(swapped) >= seen - 1e-9
    return (extreme + 1) / 3001


RIGHT = [
    ("07-easy", hits_by_any),
    ("07-easy", hits_by_recall),
    ("07-easy", hits_by_sets),
    ("07-medium", verdict_by_pair),
    ("07-medium", verdict_by_votes),
    ("07-hard", p_vectorised),
    ("07-hard", p_in_a_loop),
]


@pytest.mark.parametrize(("exercise", "answer"), RIGHT)
def test_right_answer_is_accepted(exercise, answer):
    right, why = verdict(exercise, answer)
    assert right, why


def hits_everywhere(rankings, relevant, k):
    return hits_by_any(rankings, relevant, 99)


def counted_hits(rankings, relevant, k):
    return hits_by_any(rankings, relevant, k) * len(rankings)


def recall(rankings, relevant, k):
    return recall_at_k(rankings, relevant, k).mean()


def every_hit(rankings, relevant, k):
    return np.mean([sum(key in wanted for key in ranking[:k]) for ranking, wanted in zip(rankings, relevant)])


def always_a_hit(rankings, relevant, k):
    return hits_by_any(rankings, relevant, k) if len(rankings) > 1 else 1.0


def one_order(judge, question, first, second):
    return {"A": "first", "B": "second"}.get(judge(question, first, second), "tie")


def same_order_twice(judge, question, first, second):
    return one_order(judge, question, first, second) if judge(question, first, second) == "A" else "tie"


def first_word_counts(judge, question, first, second):
    verdicts = judge(question, first, second), judge(question, second, first)
    return {"A": "first", "B": "second"}.get(verdicts[0], "tie")


def win_without_objection(judge, question, first, second):
    verdicts = judge(question, first, second), judge(question, second, first)
    if verdicts[0] == verdicts[1]:
        return "tie"
    return "first" if "A" == verdicts[0] or verdicts[1] == "B" else "second"


def one_sided(a, b):
    differences = a - b
    signs = np.random.default_rng(0).choice([-1, 1], size=(4000, len(a)))
    return ((signs * differences).mean(axis=1) >= abs(differences.mean()) - 1e-12).mean()


def the_other_share(a, b):
    return 1 - p_vectorised(a, b)


def unpaired(a, b):
    pooled, generator = np.concatenate([a, b]), np.random.default_rng(1)
    shuffled = [generator.permutation(pooled) for _ in range(2000)]
    return np.mean([abs(one[: len(a)].mean() - one[len(a) :].mean()) >= abs((a - b).mean()) for one in shuffled])


def strictly_further(a, b):
    differences = a - b
    signs = np.random.default_rng(0).choice([-1, 1], size=(4000, len(a)))
    return (np.abs((signs * differences).mean(axis=1)) > abs(differences.mean()) + 1e-12).mean()


def first_must_win(a, b):
    return p_vectorised(a, b) if (a - b).mean() >= 0 else 1.0


WRONG = [
    ("07-easy", lambda rankings, relevant, k: None, "one number"),
    ("07-easy", lambda rankings, relevant, k: [1.0], "one number"),
    ("07-easy", hits_everywhere, "below rank k"),
    ("07-easy", counted_hits, "divide"),
    ("07-easy", recall, "is recall"),
    ("07-easy", every_hit, "counts once"),
    ("07-easy", always_a_hit, "is no hit"),
    ("07-easy", lambda rankings, relevant, k: 0.1, "of 3 questions"),
    ("07-medium", lambda judge, question, first, second: None, "'tie'"),
    ("07-medium", one_order, "both orders"),
    ("07-medium", same_order_twice, "both orders"),
    ("07-medium", first_word_counts, "no opinion"),
    ("07-medium", win_without_objection, "not enough"),
    ("07-hard", lambda a, b: None, "from 0 to 1"),
    ("07-hard", lambda a, b: a - b, "from 0 to 1"),
    ("07-hard", one_sided, "one-sided"),
    ("07-hard", the_other_share, "less"),
    ("07-hard", unpaired, "lose the pairs"),
    ("07-hard", strictly_further, "p is 1"),
    ("07-hard", first_must_win, "swapping the two systems"),
    ("07-hard", lambda a, b: paired_bootstrap(a, b).p_value / 9, "should be near"),
    ("07-hard", 6, "not callable"),
]


@pytest.mark.parametrize(("exercise", "answer", "said"), WRONG)
def test_wrong_answer_is_explained(exercise, answer, said):
    right, why = verdict(exercise, answer)
    assert not right and said in why, why
