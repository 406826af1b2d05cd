"""The exercises of chapter 03, embeddings and indexes: exact search, recall, and an inverted file by hand.

Each checker runs the reader's function on random unit vectors and compares with a reference. Knows numpy; loads no model.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from utils.exercises import Exercise

Verdict = tuple[bool, str]
MISSING = "no result yet: your function has to end with `return` and the result."


def unit_rows(count: int, dimension: int, seed: int) -> np.ndarray:
    """Return random vectors of length 1, shape (count, dimension)."""
    matrix = np.random.default_rng(seed).normal(size=(count, dimension))
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


def best_rows(query: np.ndarray, vectors: np.ndarray, top_k: int) -> list[int]:
    """Return the rows with the largest dot products, best first."""
    return np.argsort(-(vectors @ query), kind="stable")[:top_k].tolist()


def as_rows(answer: Any) -> list[int] | None:
    """Return an answer as a flat list of rows without -1 (no hit); None when its values are not whole numbers."""
    values = np.asarray(answer).ravel().tolist()
    if any(isinstance(value, bool) or value != int(value) for value in values):
        return None
    return [int(value) for value in values if value != -1]


def check_nearest(answer: Any) -> Verdict:
    """A function (query, vectors, top_k) that returns the rows with the largest dot products, best first."""
    if not callable(answer):
        return False, "pass the function itself: check('03-easy', nearest)."
    for seed, (count, dimension, top_k) in enumerate([(6, 4, 3), (200, 16, 10), (3, 8, 3)]):
        vectors, query = unit_rows(count, dimension, seed), unit_rows(1, dimension, 90 + seed)[0]
        found = answer(query.copy(), vectors.copy(), top_k)
        if found is None or found is ...:
            return False, MISSING
        rows, wanted = as_rows(found), best_rows(query, vectors, top_k)
        if rows != wanted:
            return False, explain_nearest(rows, wanted, query, vectors, top_k)
    return True, "the right rows in the right order, whatever the number of vectors: this is what a flat index does."


def explain_nearest(rows: list[int] | None, wanted: list[int], query: np.ndarray, vectors: np.ndarray, top_k: int) -> str:
    """Return what went wrong in an exact search."""
    if rows is None:
        return "the result holds fractions, so these are scores; return the rows of the vectors instead (np.argsort gives rows)."
    if rows == best_rows(-query, vectors, top_k):
        return "these are the vectors farthest from the query: np.argsort sorts upwards, and a large dot product means near."
    if sorted(rows) == sorted(wanted):
        return f"the right rows in another order: {rows}; the best has to come first: {wanted}."
    if len(rows) != len(wanted):
        return f"top_k={top_k} of {len(vectors)} vectors should give {len(wanted)} rows, not {len(rows)}."
    return f"for one query the rows {wanted} have the largest dot products; yours are {rows}."


def check_recall(answer: Any) -> Verdict:
    """A function (found, exact) that returns the mean share of the exact rows that were found; -1 is no hit, order is free."""
    if not callable(answer):
        return False, "pass the function itself: check('03-medium', recall)."
    cases = {
        "everything found, in another order": ([[3, 1, 2]], [[1, 2, 3]], 1.0),
        "nothing found": ([[7, 8, 9]], [[1, 2, 3]], 0.0),
        "one of four found, the rest reported as -1 (no hit)": ([[5, -1, -1, -1]], [[5, 6, 7, 8]], 0.25),
        "two queries with shares 1 and 0.5": ([[1, 2], [3, 9]], [[2, 1], [3, 4]], 0.75),
        "the rows of one query found for another": ([[3, 4], [1, 2]], [[1, 2], [3, 4]], 0.0),
    }
    for what, (found, exact, wanted) in cases.items():
        value = answer(np.array(found), np.array(exact))
        if value is None or value is ...:
            return False, MISSING
        if np.size(value) != 1:
            return False, f"return one number, the mean over all queries, not {np.size(value)} numbers."
        share = float(np.asarray(value).item())
        if not abs(share - wanted) <= 1e-6:
            return False, f"{what}: found={found}, exact={exact} should give {wanted}, yours gives {share:.3g}."
    return True, "order does not count, a miss does, and every query weighs the same: this is recall@k."


def check_inverted_file(answer: Any) -> Verdict:
    """A function (query, vectors, centroids, cell_of, nprobe, top_k) that searches only the nprobe cells nearest to the query."""
    if not callable(answer):
        return False, "pass the function itself: check('03-hard', ivf_search)."
    vectors, centroids = unit_rows(300, 12, 1), unit_rows(10, 12, 2)
    cell_of = np.argmax(vectors @ centroids.T, axis=1)
    for seed, (nprobe, top_k) in enumerate([(10, 5), (1, 5), (3, 8), (1, 100)]):
        query = unit_rows(1, 12, 50 + seed)[0]
        found = answer(query.copy(), vectors.copy(), centroids.copy(), cell_of.copy(), nprobe, top_k)
        if found is None or found is ...:
            return False, MISSING
        rows, wanted = as_rows(found), inverted_file(query, vectors, centroids, cell_of, nprobe, top_k)
        if rows != wanted:
            return False, explain_inverted_file(rows, wanted, query, vectors, cell_of, (nprobe, top_k))
    return True, "it visits the right cells, ranks what lies in them, and agrees with the exact search when it visits all."


def inverted_file(query: np.ndarray, vectors: np.ndarray, centroids: np.ndarray, cell_of: np.ndarray, nprobe: int, top_k: int) -> list[int]:
    """Return the best rows among those in the nprobe cells whose centroids have the largest dot products with the query."""
    members = np.flatnonzero(np.isin(cell_of, best_rows(query, centroids, nprobe)))
    return members[best_rows(query, vectors[members], top_k)].tolist()


def explain_inverted_file(
    rows: list[int] | None, wanted: list[int], query: np.ndarray, vectors: np.ndarray, cell_of: np.ndarray, asked: tuple[int, int]
) -> str:
    """Return what went wrong in a search of an inverted file."""
    nprobe, top_k = asked
    case = f"with nprobe={nprobe} and top_k={top_k}"
    if rows is None:
        return f"{case} the result holds fractions; return row numbers of `vectors`."
    if rows == best_rows(query, vectors, top_k) and rows != wanted:
        return f"{case} you searched all vectors; only those in the {nprobe} cell(s) nearest to the query may be compared."
    if max(rows, default=0) >= len(vectors) or not all(np.isin(rows, wanted)) and len(rows) == len(wanted):
        return f"{case} the rows {rows[:4]} are not the best in the visited cells. Rows of `vectors`, or of a smaller array you cut out?"
    if sorted(rows) == sorted(wanted):
        return f"{case} the right rows in another order; the best has to come first."
    visited, expected = sorted(set(cell_of[np.array(rows, dtype=int)].tolist())), sorted(set(cell_of[wanted].tolist()))
    return f"{case} you return {len(rows)} rows from the cells {visited}; expected are {len(wanted)} from {expected}."


EXERCISES = [
    Exercise(
        "03-easy",
        "easy",
        [
            "`vectors @ query` gives one dot product per row.",
            "np.argsort sorts upwards and returns rows: sort the negative scores, then keep the first `top_k`.",
            "return np.argsort(-(vectors @ query))[:top_k]",
        ],
        check_nearest,
    ),
    Exercise(
        "03-medium",
        "medium",
        [
            "For one query, recall is the number of rows in both lists, divided by the number of exact rows.",
            "Sets ignore order: len(set(f) & set(e)) / len(e). A -1 stands in no exact list, so it never counts.",
            "return np.mean([len(set(f) & set(e)) / len(e) for f, e in zip(found.tolist(), exact.tolist())])",
        ],
        check_recall,
    ),
    Exercise(
        "03-hard",
        "hard",
        [
            "Two searches, one after the other: first among the centroids, then among the members of the chosen cells.",
            "cells = nearest(query, centroids, nprobe); members = np.flatnonzero(np.isin(cell_of, cells)).",
            "What nearest(query, vectors[members], top_k) returns counts inside `members`: take members[…] of it to get rows of `vectors`.",
        ],
        check_inverted_file,
    ),
]
