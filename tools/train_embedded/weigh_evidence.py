"""How much the search should have a say in abstaining: `python -m tools.train_embedded.weigh_evidence --model course-lm`.

The model alone judges badly whether passages answer a question; bare MaxSim judges well whether they are about it. `build_rag_chain` takes
both: below `min_score` nobody is asked, and above it `evidence_weight` lowers the logit of abstaining. This tool measures many weights
over three kinds of questions: those of the handbook's dev split, where the search finds the passages; pairs of them that differ in a name,
where the handbook answers the one and has never heard of the other's ("How many parameters does GPT-4 have?"); and questions from SQuAD 2
that were written to have no answer in the very passage shown. It writes data/logs/evidence_weights.csv and chooses
`reranking.MAX_SIM_EVIDENCE`. The handbook's test split is measured beside them and has no say.

    weight, questions                  evidence_weight; "handbook dev", "handbook test", the two with ", names" for the pairs, or "squad2"
    names                              heeded: a name that no passage mentions (`missing_names`) speaks for abstaining; or ignored
    abstains_answerable, abstains_unanswerable     shares of these questions
    balanced_accuracy                  mean of the share of answerable ones answered and of unanswerable ones abstained from
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from langchain_core.documents import Document

from tools.ask import HANDBOOK, TOP_K, cached_index, course_retriever
from tools.logs import write_csv
from tools.train_embedded.calibrate import margins, validation_questions
from tools.train_embedded.evaluate import merged_if_adapter, sample
from utils.models import load_embedder, load_llm
from utils.questions import load_questions
from utils.rag import ABSTENTION, UNKNOWN_NAME
from utils.reranking import LateInteractionReranker
from utils.retrieval import evidence, missing_names
from utils.runtime import DATA

LOG = DATA / "logs" / "evidence_weights.csv"
WEIGHTS = [0, 5, 10, 20, 30, 40, 60, 80, 120, 1000]
FITTED = ("handbook dev", "handbook dev, names", "squad2")  # the kinds of questions that choose the weight
PRICE = 0.05  # share of the answerable dev questions that the threshold may turn away


class Judged(NamedTuple):
    """What model and search say of questions, each of shape (questions,)."""

    answerable: np.ndarray
    margin: np.ndarray
    """Logit of abstaining minus the best other one, with the model's own bias."""
    evidence: np.ndarray
    strange: np.ndarray
    """Whether the question holds a name that no passage mentions."""


def judged(model: Any, tokenizer: Any, rows: list[dict], passages: list[list[Document]]) -> Judged:
    """Returns the verdicts on rows with "question" and "answers", over passages that carry their scores."""
    [[[[_], bias]]] = [model.generation_config.sequence_bias or [[[0], 0.0]]]
    margin = margins(model, tokenizer, rows, [[one.page_content for one in shown] for shown in passages]) + bias
    strange = [bool(missing_names(row["question"], shown)) for row, shown in zip(rows, passages, strict=True)]
    answerable = np.array([bool(row["answers"]) for row in rows])
    return Judged(answerable, margin, np.array([evidence(shown) for shown in passages]), np.array(strange))


def scores(found: Judged, threshold: float, weight: float, heeds_names: bool = True) -> dict[str, float]:
    """Returns the shares of abstentions and their balanced accuracy."""
    say = weight * np.where(found.strange & heeds_names, -UNKNOWN_NAME, found.evidence - threshold)
    silent = (found.evidence < threshold) | (found.margin >= say)
    wrong, right = silent[found.answerable].mean(), silent[~found.answerable].mean()
    return {"abstains_answerable": wrong, "abstains_unanswerable": right, "balanced_accuracy": (1 - wrong + right) / 2}


def chosen(table: dict[int, list[float]]) -> int:
    """Returns the weight with the best mean of its balanced accuracies, the smaller one of two that are equal."""
    return max(sorted(table), key=lambda weight: float(np.mean(table[weight])))


def handbook(split: str, count: int, retriever: Any) -> tuple[list[dict], list[list[Document]]]:
    """Returns `count` answerable questions and all unanswerable ones of a split, and the passages that `make ask` would show."""
    rows = load_questions("handbook", split=split)
    rows = sample([row for row in rows if row["answers"]], count) + [row for row in rows if not row["answers"]]
    return rows, [retriever.invoke(row["question"], top_k=TOP_K) for row in rows]


def names_exchanged(rows: list[dict], documents: list[Document]) -> list[dict]:
    """Returns the answerable rows whose question holds a name that `documents` mention, each followed by its twin about another name: one
    that `documents` never mention, taken from the unanswerable rows. Nothing answers the twin."""
    strange = cycle([name for row in rows if not row["answers"] for name in missing_names(row["question"], documents)])
    pairs = []
    for row in rows:
        known = missing_names(row["question"], [])  # without passages, all its names
        if row["answers"] and known and not missing_names(row["question"], documents):
            pairs += [row, {"question": row["question"].replace(known[-1], next(strange)), "answers": []}]
    return pairs


def asked_handbook(store: Any, retriever: Any, count: int) -> Iterator[tuple[str, list[dict], list[list[Document]]]]:
    """Yields name, rows and shown passages of each set of the handbook's questions."""
    for split in ("dev", "test"):
        rows, passages = handbook(split, count, retriever)
        yield f"handbook {split}", rows, passages
        pairs = names_exchanged(rows, store.documents)
        yield f"handbook {split}, names", pairs, [retriever.invoke(row["question"], top_k=TOP_K) for row in pairs]


def asked_squad(data: Path, count: int, embedder: Any) -> tuple[list[dict], list[list[Document]]]:
    """Returns rows and shown passages of SQuAD 2, the passages with their scores by MaxSim."""
    rows, texts = validation_questions(data, count, embedder)
    max_sim = LateInteractionReranker(embedder, weight=0.0)
    shown = [[Document(page_content=text) for text in few] for few in texts]
    for row, few in zip(rows, shown, strict=True):
        for passage, verdict in zip(few, max_sim(row["question"], few), strict=True):
            passage.metadata["score"] = verdict.score
    return rows, shown


def min_score(retriever: Any) -> float:
    """Returns the threshold that turns PRICE of the answerable dev questions away."""
    answerable = [row["question"] for row in load_questions("handbook", split="dev") if row["answers"]]
    best = [evidence(retriever.invoke(question, top_k=TOP_K)) for question in answerable]
    return round(float(np.quantile(best, PRICE)), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="course-lm", help="catalog key, model folder or adapter folder")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--count", type=int, default=110, help="answerable questions of each split; three times as many of SQuAD 2")
    parser.add_argument("--log", type=Path, default=LOG)
    args = parser.parse_args()
    model, tokenizer, _ = load_llm(merged_if_adapter(args.model))
    embedder = load_embedder("minilm")
    store = cached_index(HANDBOOK, embedder)[0]
    retriever = course_retriever(store, embedder)
    asked = [*asked_handbook(store, retriever, args.count), ("squad2", *asked_squad(args.data, 3 * args.count, embedder))]
    found = {name: judged(model, tokenizer, rows, passages) for name, rows, passages in asked}
    threshold = min_score(retriever)
    table = [
        {"weight": weight, "questions": name, "names": "heeded" if heeds else "ignored"}
        | {key: round(value, 4) for key, value in scores(one, threshold, weight, heeds).items()}
        for weight in WEIGHTS
        for name, one in found.items()
        for heeds in (True, False)
    ]
    write_csv(args.log, table)
    fitted = {w: [scores(found[name], threshold, w)["balanced_accuracy"] for name in FITTED] for w in WEIGHTS}
    print(*table, sep="\n")
    print(f"min_score {threshold}, evidence_weight {chosen(fitted)}, for the logit of {ABSTENTION!r}")


if __name__ == "__main__":
    main()
