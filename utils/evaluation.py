"""Evaluation: are the right passages found, are the answers right, and how sure can we be?

Ranking metrics return one value per question (a float array), so that intervals and paired comparisons can follow;
`values.mean()` is the usual figure. NaN marks a question to which a metric does not apply. The metrics of answers live in
`answer_metrics` and are imported from here. Knows ids, strings and numbers only; nothing of models, retrievers or chains.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from utils.answer_metrics import (
    AbstentionScores,
    Faithfulness,
    abstention_scores,
    citation_precision,
    citation_recall,
    exact_match,
    faithfulness,
    normalize_answer,
    rouge_l,
    token_f1,
)

__all__ = ["recall_at_k", "precision_at_k", "mrr_at_k", "ndcg_at_k", "support_passages"]
__all__ += ["normalize_answer", "exact_match", "token_f1", "rouge_l", "faithfulness", "Faithfulness"]
__all__ += ["citation_precision", "citation_recall", "abstention_scores", "AbstentionScores"]
__all__ += ["bootstrap_interval", "Interval", "paired_bootstrap", "PairedDifference"]

Floats = NDArray[np.float64]
Relevant = Collection[str] | Mapping[str, float]

_RESAMPLED_AT_ONCE = 4_000_000  # values drawn per step of a bootstrap: 32 MB of indices


def recall_at_k(rankings: Sequence[Sequence[str]], relevant: Sequence[Relevant], k: int) -> Floats:
    """Return, per question, the share of its relevant passages among the first `k`; shape (questions,)."""
    gains, wanted = _gains(rankings, relevant, k)
    return (gains > 0).sum(axis=1) / np.array([len(one) for one in wanted])


def precision_at_k(rankings: Sequence[Sequence[str]], relevant: Sequence[Relevant], k: int) -> Floats:
    """Return, per question, the share of the first `k` places that hold a relevant passage; shape (questions,)."""
    gains, _ = _gains(rankings, relevant, k)
    return (gains > 0).mean(axis=1)


def mrr_at_k(rankings: Sequence[Sequence[str]], relevant: Sequence[Relevant], k: int) -> Floats:
    """Return, per question, 1 / rank of the first relevant passage among the first `k`, else 0; shape (questions,)."""
    hits = _gains(rankings, relevant, k)[0] > 0
    return np.where(hits.any(axis=1), 1 / (hits.argmax(axis=1) + 1), 0.0)


def ndcg_at_k(rankings: Sequence[Sequence[str]], relevant: Sequence[Relevant], k: int) -> Floats:
    """Return, per question, the gain discounted by log2(rank + 1), over that of the best ranking; shape (questions,).

    Relevance may be graded: a mapping from id to gain. Source: Järvelin and Kekäläinen, TOIS 2002 (linear gains).
    """
    gains, wanted = _gains(rankings, relevant, k)
    best = [sorted(one.values(), reverse=True)[:k] for one in wanted]
    discounts = 1 / np.log2(np.arange(2, k + 2))
    return gains @ discounts / np.array([np.dot(one, discounts[: len(one)]) for one in best])


def _gains(rankings: Sequence[Sequence[str]], relevant: Sequence[Relevant], k: int) -> tuple[Floats, list[dict[str, float]]]:
    """Return the gain of each place, shape (questions, k), and of each relevant id.

    A passage listed twice counts at its first place only. Raises ValueError for a question without a relevant passage.
    """
    if len(rankings) != len(relevant) or k < 1:
        raise ValueError(f"{len(rankings)} rankings, {len(relevant)} sets of relevant ids, k={k}: give one each per question, k ≥ 1.")
    graded = [{key: gain for key, gain in r.items() if gain > 0} if isinstance(r, Mapping) else dict.fromkeys(r, 1.0) for r in relevant]
    if not all(graded):
        row = next(i for i, wanted in enumerate(graded) if not wanted)
        raise ValueError(f"Question {row} has no relevant passage. Leave such questions out; abstention_scores judges them.")
    gains = np.zeros((len(rankings), k))
    for row, (ranking, wanted) in enumerate(zip(rankings, graded, strict=True)):
        for place, key in enumerate(islice(dict.fromkeys(ranking), k)):
            if key in wanted:
                gains[row, place] = wanted[key]
    return gains, graded


def support_passages(support: Sequence[Mapping[str, str]], passages: Sequence[Any]) -> set[str]:
    """Return the ids of the passages that hold the supporting text of a gold question, wherever the splitter cut.

    support: {"article": …, "text": …} each; passages: documents with `id` and `article` in their metadata.
    A passage is relevant if it contains the text, lies within it, or contains a whole sentence of it (over three words).
    """
    found = set()
    for passage in passages:
        text = " ".join(passage.page_content.split())
        for gold in support:
            wanted = " ".join(gold["text"].split())
            sentences = [wanted, *(s for s in re.split(r"(?<=[.!?])\s", wanted) if len(s.split()) > 3)]
            if passage.metadata.get("article") == gold["article"] and (text in wanted or any(s in text for s in sentences)):
                found.add(passage.metadata["id"])
    return found


class Interval(NamedTuple):
    """A mean with its bootstrap confidence interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


class PairedDifference(NamedTuple):
    """The mean of a − b over the same questions, its interval, and the two-sided p-value of "no difference"."""

    mean: float
    low: float
    high: float
    p_value: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}], p = {self.p_value:.3f}"


def bootstrap_interval(values: ArrayLike, n: int = 1000, seed: int = 0, confidence: float = 0.95) -> Interval:
    """Return the mean of `values` with a percentile bootstrap interval; NaNs are left out.

    n: how many times the questions are drawn anew, with replacement. Raises ValueError if there is nothing to average.
    """
    kept = _without_nan(np.asarray(values, dtype=np.float64))
    low, high = np.quantile(_resampled_means(kept, n, seed), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(kept.mean()), float(low), float(high))


def paired_bootstrap(a: ArrayLike, b: ArrayLike, n: int = 1000, seed: int = 0, confidence: float = 0.95) -> PairedDifference:
    """Return how much system a beats system b on the same questions; pairs with a NaN are left out.

    Pairing removes what makes a question hard for both, so it sees differences that two separate intervals hide.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"a has {first.size} values, b {second.size}: give both systems' values for the same questions.")
    differences = _without_nan(first - second)
    means = _resampled_means(differences, n, seed)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    tail = (1 + min((means <= 0).sum(), (means >= 0).sum())) / (n + 1)
    return PairedDifference(float(differences.mean()), float(low), float(high), float(min(1.0, 2 * tail)))


def _without_nan(values: Floats) -> Floats:
    kept = values[~np.isnan(values)]
    if kept.ndim != 1 or not kept.size:
        raise ValueError("Nothing to average: give one value per question, at least one of them not NaN.")
    return kept


def _resampled_means(values: Floats, n: int, seed: int) -> Floats:
    """Return the means of `n` samples of `values` drawn with replacement, shape (n,)."""
    generator, rows = np.random.default_rng(seed), max(1, _RESAMPLED_AT_ONCE // values.size)
    sizes = [min(rows, n - start) for start in range(0, n, rows)]
    return np.concatenate([values[generator.integers(values.size, size=(size, values.size))].mean(axis=1) for size in sizes])
