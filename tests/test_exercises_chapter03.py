"""Exercises of chapter 03: any right answer is accepted, each usual mistake is explained."""

import numpy as np
import pytest

from utils.exercises import verdict


def nearest(query, vectors, top_k):
    return np.argsort(-(vectors @ query))[:top_k]


def nearest_in_plain_python(query, vectors, top_k):
    scores = [sum(a * b for a, b in zip(query, row, strict=True)) for row in vectors]
    return sorted(range(len(scores)), key=lambda row: scores[row], reverse=True)[:top_k]


def nearest_by_distance(query, vectors, top_k):
    """For unit vectors the nearest by distance are the nearest by cosine."""
    return np.argsort(np.linalg.norm(vectors - query, axis=1))[:top_k]


@pytest.mark.parametrize("answer", [nearest, nearest_in_plain_python, nearest_by_distance])
def test_any_exact_search_is_right(answer):
    assert verdict("03-easy", answer)[0]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda q, v, k: np.argsort(v @ q)[:k], "farthest"),
        (lambda q, v, k: np.sort(v @ q)[::-1][:k], "scores"),
        (lambda q, v, k: nearest(q, v, k)[::-1], "best has to come first"),
        (lambda q, v, k: nearest(q, v, 1), "should give 3 rows"),
        (lambda q, v, k: np.arange(k), "largest dot products"),
        (lambda q, v, k: ..., "no result yet"),
        ([1, 2, 3], "pass the function"),
    ],
)
def test_wrong_exact_search_is_explained(answer, reason):
    right, why = verdict("03-easy", answer)
    assert not right and reason in why


def recall(found, exact):
    return np.mean([len(set(f) & set(e)) / len(e) for f, e in zip(found.tolist(), exact.tolist(), strict=True)])


def recall_without_sets(found, exact):
    return (found[:, :, None] == exact[:, None, :]).any(axis=1).mean()


@pytest.mark.parametrize("answer", [recall, recall_without_sets, lambda f, e: [recall(f, e)]])
def test_any_recall_is_right(answer):
    assert verdict("03-medium", answer)[0]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda f, e: (f == e).mean(), "another order"),
        (lambda f, e: len(set(f.ravel()) & set(e.ravel())) / e.size, "for another"),
        (lambda f, e: np.mean([len(set(a) & set(b)) / len(set(a)) for a, b in zip(f, e, strict=True)]), "no hit"),
        (lambda f, e: [len(set(a) & set(b)) / len(b) for a, b in zip(f, e, strict=True)], "one number"),
        (lambda f, e: sum(len(set(a) & set(b)) for a, b in zip(f, e, strict=True)), "should give 1.0"),
        (lambda f, e: ..., "no result yet"),
    ],
)
def test_wrong_recall_is_explained(answer, reason):
    right, why = verdict("03-medium", answer)
    assert not right and reason in why


def ivf_search(query, vectors, centroids, cell_of, nprobe, top_k):
    members = np.flatnonzero(np.isin(cell_of, nearest(query, centroids, nprobe)))
    return members[nearest(query, vectors[members], top_k)]


def ivf_search_that_masks(query, vectors, centroids, cell_of, nprobe, top_k):
    cells = set(nearest(query, centroids, nprobe).tolist())
    scores = [score if cell in cells else -np.inf for score, cell in zip(vectors @ query, cell_of, strict=True)]
    return [row for row in np.argsort(-np.array(scores)) if scores[row] > -np.inf][:top_k]


def ivf_search_that_pads(*arguments):
    rows = ivf_search(*arguments)
    return [*rows, *[-1] * (arguments[-1] - len(rows))]


@pytest.mark.parametrize("answer", [ivf_search, ivf_search_that_masks, ivf_search_that_pads])
def test_any_inverted_file_is_right(answer):
    assert verdict("03-hard", answer)[0]


def forgets_to_translate(query, vectors, centroids, cell_of, nprobe, top_k):
    return nearest(query, vectors[np.isin(cell_of, nearest(query, centroids, nprobe))], top_k)


def visits_far_cells(query, vectors, centroids, cell_of, nprobe, top_k):
    return ivf_search(query, vectors, -centroids, cell_of, nprobe, top_k)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda q, v, c, cell_of, nprobe, k: nearest(q, v, k), "searched all vectors"),
        (forgets_to_translate, "smaller array"),
        (visits_far_cells, "not the best in the visited cells"),
        (lambda *given: ivf_search(*given)[::-1], "best has to come first"),
        (lambda *given: ivf_search(*given)[:2], "expected are 5"),
        (lambda *given: ..., "no result yet"),
        (lambda *given: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_wrong_inverted_file_is_explained(answer, reason):
    right, why = verdict("03-hard", answer)
    assert not right and reason in why
