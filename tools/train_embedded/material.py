"""What the trainers draw from: passages with their questions, and for each the passages that look like it. Cached in WORK.

Knows files and MiniLM; knows nothing of what is learnt.
"""

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tools.train_embedded.examples import ExampleMaker
from tools.train_embedded.reading import Passage, qa_passages, sentence_passages, text_passages
from utils.models import load_embedder

FOUND = 8  # passages found for each question


class Material(NamedTuple):
    passages: list[Passage]
    near: np.ndarray  # (passages, neighbours), as `neighbours` gives it
    found: np.ndarray  # (questions, FOUND), as `retrieved` gives it

    def maker(self, seed: int) -> ExampleMaker:
        return ExampleMaker(self.passages, self.near, seed, self.found)


def passages_of(data: Path) -> list[Passage]:
    """All passages that may be trained on, in an order that never changes."""
    return qa_passages(data) + sentence_passages(data) + text_passages(data)


def material(args: argparse.Namespace) -> Material:
    """Passages of `args.data`, their `args.neighbours` neighbours, and what a search finds for their questions; with the questions
    that `make_questions` made, if it did.

    Raises SystemExit where files in `args.work` are of other data.
    """
    args.work.mkdir(parents=True, exist_ok=True)
    passages = passages_of(args.data)
    asked = [question for passage in passages for question, _ in passage.questions]
    near_file, found_file = args.work / "neighbours.npy", args.work / "found.npy"
    if not near_file.exists():
        np.save(near_file, neighbours(passages, args.neighbours), allow_pickle=False)
    if not found_file.exists():
        embed = load_embedder("minilm").embed_documents
        vectors, queries = (np.array(embed(texts), dtype=np.float32) for texts in ([p.text for p in passages], asked))
        np.save(found_file, retrieved(passages, vectors, queries, min(FOUND, len(passages) - 1)), allow_pickle=False)
    near, found = (np.load(file, allow_pickle=False) for file in (near_file, found_file))
    for file, rows, of_now in ((near_file, near, passages), (found_file, found, asked)):
        if len(rows) != len(of_now):
            raise SystemExit(f"{file} is of other data ({len(rows)} rows, now {len(of_now)}): delete it and run again.")
    if (made := args.work / "made.json").exists():
        for index, question, answer in json.loads(made.read_text(encoding="utf-8")):
            if index >= len(passages) or answer not in passages[index].text:
                raise SystemExit(f"{made} is of other data (“{answer}” stands in no passage {index}): delete it and run again.")
            passages[index].made.append((question, answer))
    return Material(passages, near, found)


def neighbours(passages: list[Passage], count: int = 12) -> np.ndarray:
    """(len(passages), count) indices of the most similar other passages by TF-IDF; in chunks, about a minute for 45 k."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    limits = {"min_df": 2, "max_df": 0.05} if len(passages) > 1000 else {}
    matrix = TfidfVectorizer(**limits, sublinear_tf=True, dtype=np.float32).fit_transform([p.text for p in passages])
    result = np.zeros((len(passages), count), dtype=np.int32)
    for start in range(0, len(passages), 512):
        scores = (matrix[start : start + 512] @ matrix.T).toarray()
        scores[np.arange(len(scores)), np.arange(start, start + len(scores))] = -1
        best = np.argpartition(-scores, count, axis=1)[:, :count]
        order = np.argsort(-np.take_along_axis(scores, best, 1), axis=1)
        result[start : start + 512] = np.take_along_axis(best, order, 1)
    return result


def retrieved(passages: list[Passage], vectors: np.ndarray, queries: np.ndarray, count: int = 8) -> np.ndarray:
    """(questions, count) indices of the passages nearest to each question, its own left out; questions in the order of their passages.

    `vectors` (passages, size) and `queries` (questions, size) are normalised. These are what a retriever shows beside the right passage,
    or in its place.
    """
    homes = np.array([i for i, p in enumerate(passages) for _ in p.questions])
    result = np.zeros((len(queries), count), dtype=np.int32)
    for start in range(0, len(queries), 512):
        scores = queries[start : start + 512] @ vectors.T
        rows = np.arange(len(scores))[:, None]
        scores[rows[:, 0], homes[start : start + 512]] = -1
        best = np.argpartition(-scores, count, axis=1)[:, :count]
        result[start : start + 512] = np.take_along_axis(best, np.argsort(-scores[rows, best], axis=1), 1)
    return result
