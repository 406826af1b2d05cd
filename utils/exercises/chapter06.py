"""The exercises of chapter 06, reranking: count the saved and the hurt, fuse scores, rerank only when in doubt.

The checks run on made-up ranks, scores and passages; they know no model.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from langchain_core.documents import Document

from utils.exercises import Exercise
from utils.retrieval import Judgement

Verdict = tuple[bool, str]


def check_saved_and_hurt(answer: Callable[[np.ndarray, np.ndarray, int], Any]) -> Verdict:
    """A right answer counts the passages that crossed rank k in either direction; absent ones have rank infinity."""
    before = np.array([1, 2, 4, 9, 3, 3, np.inf, 5, np.inf, 8, 6])
    after = np.array([2, 5, 1, 3, 3, 4, 3, np.inf, np.inf, 7, 2])
    for k, wanted in ((3, (4, 2)), (1, (1, 1)), (10, (1, 1))):
        found = answer(before.copy(), after.copy(), k)
        if not isinstance(found, tuple | list | np.ndarray) or len(found) != 2:
            return False, f"the function returned {found!r}; it has to return two counts. Stuck? hint('06-easy')"
        if (int(found[0]), int(found[1])) != wanted:
            return False, explain_counts((int(found[0]), int(found[1])), wanted, before, after, k)
    return True, "only passages that crossed rank k count, in both directions, found or not."


def explain_counts(found: tuple[int, int], wanted: tuple[int, int], before: np.ndarray, after: np.ndarray, k: int) -> str:
    """Return what is wrong with two counts, the most telling fault first."""
    if found == wanted[::-1]:
        return f"for k={k} the counts are in the wrong order: first the saved, then the hurt."
    if found == (int((after < before).sum()), int((after > before).sum())):
        return f"you count every passage that moved; only those that crossed rank k={k} change what is in the first k."
    if found == (int(((after < k) & (before >= k)).sum()), int(((after >= k) & (before < k)).sum())):
        return f"rank {k} itself is still among the first {k}: compare with <= and >."
    return f"for k={k} you count {found[0]} saved and {found[1]} hurt; it should be {wanted[0]} and {wanted[1]}."


def scaled(scores: np.ndarray) -> np.ndarray:
    """Return each row scaled to 0–1; a row of equal scores becomes 0."""
    lowest, highest = scores.min(axis=1, keepdims=True), scores.max(axis=1, keepdims=True)
    return (scores - lowest) / np.where(highest > lowest, highest - lowest, 1)


def check_fuse_scores(answer: Callable[[np.ndarray, np.ndarray, float], Any]) -> Verdict:
    """A right answer scales each question's scores by themselves and mixes them; a question without a shared word has equal ones."""
    generator = np.random.default_rng(6)
    dense = generator.normal(0.4, 0.1, (5, 8))
    words = generator.gamma(2.0, 3.0, (5, 8)) * np.arange(1, 6)[:, None]
    words[2] = 0.0
    for weight in (0.3, 0.7, 1.0, 0.0):
        given = dense.copy(), words.copy()
        with np.errstate(all="ignore"):
            found = answer(*given, weight)
        if not np.array_equal(given[0], dense) or not np.array_equal(given[1], words):
            return False, "your function changes the arrays that it was given; make new ones."
        if np.shape(found) != dense.shape:
            return False, f"the result has shape {np.shape(found)}, expected {dense.shape}: one score per passage. Stuck? hint('06-medium')"
        if problem := explain_fusion(np.asarray(found, dtype=float), dense, words, weight):
            return False, problem
    return True, "each question's scores are scaled by themselves, and a question that shares no word with any passage does no harm."


def explain_fusion(found: np.ndarray, dense: np.ndarray, words: np.ndarray, weight: float) -> str:
    """Return what is wrong with fused scores, the most telling fault first; "" if nothing is."""
    wanted = weight * scaled(dense) + (1 - weight) * scaled(words)
    if not np.isfinite(found).all():
        return "a row of equal scores gives something that is no number: its range is 0, so do not divide by it."
    if np.allclose(found, wanted):
        return ""
    if np.allclose(found, weight * scaled(words) + (1 - weight) * scaled(dense)):
        return "the weight belongs to the dense scores, 1 − weight to BM25; you have them the other way round."
    flat = weight * scaled(dense.reshape(1, -1)) + (1 - weight) * scaled(words.reshape(1, -1))
    if np.allclose(found.reshape(1, -1), flat):
        return "minimum and range are taken over all questions at once; each row has its own (axis=1, keepdims=True)."
    if np.allclose(found, weight * dense + (1 - weight) * words):
        return "the scores are added up as they are; BM25's larger numbers drown the similarities. Scale each row to 0–1 first."
    right, yours = wanted[0].round(2).tolist(), found[0].round(2).tolist()
    return f"for weight {weight} the scores of the first question should be {right}, not {yours}."


CASES: dict[str, list[float]] = {
    "sure": [1.0, 0.5, 0.25],
    "unsure": [1.0, 0.875, 0.25],
    "on the margin": [1.0, 0.75, 0.5],
    "a single passage": [0.5],
    "no passage": [],
}


def passages_with(scores: list[float]) -> list[Document]:
    """Return passages as a first stage would rank them, its scores in their metadata."""
    return [Document(page_content=f"passage {place}", metadata={"score": score}) for place, score in enumerate(scores)]


def order_of(verdicts: Any, count: int) -> list[int] | None:
    """Return the places in the order of the verdicts, best first, equal ones as they came; None if there is not one for each."""
    if verdicts is None or np.ndim(verdicts) == 0 or len(verdicts) != count:
        return None
    scores = [float(one.score if isinstance(one, Judgement) else one) for one in verdicts]
    return sorted(range(count), key=lambda place: -scores[place])


def check_only_if_unsure(answer: Callable[[Any, float], Any]) -> Verdict:
    """A right answer calls the reranker only where the first stage's lead is below the margin, and else keeps its order."""
    calls: list[int] = []

    def reverse(query: str, passages: list[Document]) -> list[float]:
        calls.append(len(passages))
        return [float(place) for place in range(len(passages))]

    judge = answer(reverse, 0.25)
    if not callable(judge):
        return False, f"the function returned {judge!r}; return a reranker, a function of query and passages. Stuck? hint('06-hard')"
    for case, scores in CASES.items():
        calls.clear()
        order, asked = order_of(judge("a question", passages_with(scores)), len(scores)), case == "unsure"
        if order is None:
            return False, f"{case}: a reranker returns one score per passage, for {len(scores)} passages {len(scores)} of them."
        if bool(calls) != asked:
            words = "was not called; it should be" if asked else "was called; it should not be"
            return False, f"{case} (first-stage scores {scores}, margin 0.25): the reranker {words}."
        if asked and calls != [len(scores)]:
            return False, f"{case}: call the reranker once, with all passages; it was called with {calls}."
        if order != (list(range(len(scores)))[::-1] if asked else list(range(len(scores)))):
            return False, f"{case}: the order is {order}; {'the reranker turned it round' if asked else 'the first stage had it right'}."
    return True, "the reranker works only where the first stage hesitates, and its verdict is passed on unchanged."


EXERCISES = [
    Exercise(
        "06-easy",
        "easy",
        [
            "A passage is among the first k if its rank is at most k; infinity never is.",
            "Comparing arrays gives arrays of True and False; `&` combines two of them, and `.sum()` counts.",
            "Saved: `((after <= k) & (before > k)).sum()`. Hurt: the same with `before` and `after` exchanged.",
        ],
        check_saved_and_hurt,
    ),
    Exercise(
        "06-medium",
        "medium",
        [
            "Write a function that scales one array first, and use it twice.",
            "`scores.min(axis=1, keepdims=True)` gives each row's minimum in a shape that can be subtracted from the array.",
            "A range of 0 must not be divided by: `np.where(range > 0, range, 1)` leaves such a row at 0.",
        ],
        check_fuse_scores,
    ),
    Exercise(
        "06-hard",
        "hard",
        [
            "Return a function defined inside yours: `def judge(query, passages): …`, then `return judge`, as `with_dates` does.",
            "The first stage's scores are `[passage.metadata['score'] for passage in passages]`; the lead is the first minus the second.",
            "Keeping an order means falling scores: the first stage's own scores will do.",
        ],
        check_only_if_unsure,
    ),
]
