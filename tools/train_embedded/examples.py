"""Examples for the language model: a question, one to four passages, and the answer with the number of its passage, or the abstention.

The prompt is the one of `utils.rag`. Distracting passages and unanswerable questions come free: they are neighbours of the gold passage
(TF-IDF). Knows passages and questions; knows no tensors.
"""

import random
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from tools.train_embedded.reading import Passage, sentences
from utils.rag import ABSTENTION, rag_messages

DISTRACTORS = [0.6, 0.2, 0.12, 0.08]  # shares of 0, 1, 2 and 3 passages beside the gold one
UNANSWERABLE = 0.25
CROPPED = 0.4  # share of gold passages cut to a few sentences: more questions in the same time
DEFINITIONS = 0.06  # share of "What is X?" questions made from technical texts
MAX_TOKENS = 700


@dataclass
class Example:
    question: str
    answer: str  # without the passage's number
    passages: list[str]
    gold: int | None  # index of the passage that holds the answer


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


class ExampleMaker:
    """Draws examples at random from `passages`; the same seed draws the same ones."""

    def __init__(self, passages: list[Passage], near: np.ndarray, seed: int = 0):
        self.passages, self.near, self.chance = passages, near, random.Random(seed)
        self.anchors = [i for i, p in enumerate(passages) for _ in p.questions if p.source != "text"]
        self.definitions = [i for i, p in enumerate(passages) if p.source == "text" and p.questions] or self.anchors
        self.all_questions = [q for p in passages for q, _ in p.questions]

    def draw(self) -> Example:
        """A question that one of its passages answers, or, one time in four, one that none of them answers."""
        chance = self.chance
        anchor = chance.choice(self.definitions if chance.random() < DEFINITIONS else self.anchors)
        gold = self.passages[anchor]
        question, answer = chance.choice(gold.questions)
        distractors = chance.choices([0, 1, 2, 3], DISTRACTORS)[0]
        if chance.random() < UNANSWERABLE:
            return self.unanswerable(anchor, question, distractors)
        pool = [self.passages[i].text for i in self.near[anchor] if answer.lower() not in self.passages[i].text.lower()]
        home = self.crop(gold, answer) if chance.random() < CROPPED else gold.text
        shown = [home, *chance.sample(pool, min(distractors, len(pool)))]
        chance.shuffle(shown)
        return Example(self.roughen(question), answer, shown, shown.index(home))

    def unanswerable(self, anchor: int, question: str, distractors: int) -> Example:
        """The question over similar passages without its own, or with a name or number exchanged over its own."""
        if self.chance.random() < 0.4 and (changed := self.exchange(question)):
            return Example(self.roughen(changed), ABSTENTION, [self.passages[anchor].text], None)
        near = self.chance.sample(list(self.near[anchor]), min(distractors + 1, len(self.near[anchor])))
        return Example(self.roughen(question), ABSTENTION, [self.passages[i].text for i in near], None)

    def exchange(self, question: str) -> str | None:
        """`question` with one name or number replaced by one of another question, or None where there is none."""
        pattern = r"(?<=\s)(?:[A-Z][\w\-]+(?: [A-Z][\w\-]+)*|\d[\d.,]*)"
        here, there = re.findall(pattern, question), re.findall(pattern, self.chance.choice(self.all_questions))
        if not here or not there or here[-1] == there[0] or here[-1].isdigit() != there[0].isdigit():
            return None
        return question.replace(here[-1], there[0])

    def crop(self, passage: Passage, answer: str, max_words: int = 45) -> str:
        """One to a few sentences of `passage` around `answer`."""
        parts = sentences(passage.text)
        first = next((i for i, s in enumerate(parts) if answer in s), None)
        if first is None:  # the answer runs over sentences
            return passage.text
        last, total = first + 1, len(parts[first].split())
        while last < len(parts) and total + len(parts[last].split()) <= max_words and self.chance.random() < 0.8:
            total += len(parts[last].split())
            last += 1
        while first > 0 and total + len(parts[first - 1].split()) <= max_words:
            first -= 1
            total += len(parts[first].split())
        return " ".join(parts[first:last])

    def roughen(self, question: str) -> str:
        """The question as users type it: sometimes without capitals or without the question mark."""
        if self.chance.random() < 0.15:
            question = question.lower()
        return question.rstrip("?").rstrip() if self.chance.random() < 0.15 else question


def tokenized(example: Example, tokenizer: Any) -> tuple[list[int], list[int]] | None:
    """(prompt, answer) as token ids, exactly as the RAG chain would send and the model should reply; None where it is too long."""
    prompt = tokenizer.apply_chat_template(rag_messages(example.question, example.passages), tokenize=False, add_generation_prompt=True)
    answer = example.answer if example.gold is None else f"{example.answer} [{example.gold + 1}]"
    ids = [tokenizer(text, add_special_tokens=False).input_ids for text in (prompt, answer + tokenizer.eos_token)]
    return (ids[0], ids[1]) if len(ids[0]) + len(ids[1]) <= MAX_TOKENS else None
