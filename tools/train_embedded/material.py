"""What the trainers draw from: passages with their questions, and for each the passages that look like it. Cached in WORK.

Knows files and MiniLM; knows nothing of what is learnt.
"""

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tools.train_embedded.examples import ExampleMaker, neighbours, retrieved
from tools.train_embedded.reading import Passage, qa_passages, sentence_passages, text_passages
from utils.models import load_embedder

FOUND = 8  # passages found for each question


class Material(NamedTuple):
    passages: list[Passage]
    near: np.ndarray  # (passages, neighbours), as `examples.neighbours` gives it
    found: np.ndarray  # (questions, FOUND), as `examples.retrieved` gives it

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
