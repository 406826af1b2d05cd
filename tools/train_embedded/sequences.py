"""Training sequences for the language model: a question, one to four passages, the question again, the answer.

The prompt is the one of `utils.rag`. The question stands before the passages, because a causal model reads them only once and
left to right: only so can it look for the answer while it reads. Distracting passages and unanswerable questions come free: they are
the neighbours of the gold passage (TF-IDF). Where an answer is copied, the sequence says from where.
"""

import random
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from tools.train_embedded.reading import Passage, cloze_tasks, sentences

ABSTENTION = "The documents do not say."
INSTRUCTION = "Answer the question from the passages. If they do not say, answer: The documents do not say."
SPECIAL = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
IGNORE = -100
MAX_LENGTH = 1000
PASSAGES_EARLY, PASSAGES_LATE = np.array([0.9, 0.1, 0.0, 0.0]), np.array([0.55, 0.2, 0.15, 0.1])  # shares of 1, 2, 3, 4 passages


@dataclass
class Sequence:
    tokens: list[int]
    prompt: int = 0  # tokens of the prompt; what follows is the answer, or nothing where the whole text is to be learnt
    sources: dict[int, list[int]] = field(default_factory=dict)  # for positions that predict a copied token: where the token stands


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


@dataclass
class Segment:
    question: str
    answer: str
    passage: int = 0  # the number of the passage that holds the answer, 0 for none
    cites: bool = False  # the answer ends with the passage's number


class SequenceMaker:
    """Draws sequences at random from `passages`; the same seed draws the same ones."""

    def __init__(self, passages: list[Passage], near: np.ndarray, tokenizer: Any, seed: int = 0):
        self.passages, self.near, self.tokenizer, self.chance = passages, near, tokenizer, random.Random(seed)
        self.progress = 0.0  # of the whole training, 0 to 1; see `ramp`
        self.anchors = [i for i, p in enumerate(passages) for _ in p.questions]
        self.texts = [i for i, p in enumerate(passages) if p.source == "text"]
        self.all_questions = [q for p in passages for q, _ in p.questions]

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def draw(self) -> Sequence:
        """A sequence: mostly a question over passages, now and then plain text or a question without passages."""
        kind = self.chance.random()
        if kind < 0.03:
            question, answer = self.chance.choice(self.passages[self.chance.choice(self.anchors)].questions)
            return self.closed_book(question, answer)
        if kind < 0.06:
            return Sequence(self.ids(f" {self.passages[self.chance.choice(self.texts)].text}")[:300])
        return self.grounded(self.chance.choice(self.texts if kind < 0.1 else self.anchors))

    def closed_book(self, question: str, answer: str) -> Sequence:
        """A question without passages, answered from the weights: the closed-book baseline needs the format too."""
        prompt = self.ids(f"<|user|> {question}<|end|>\n<|assistant|>")
        return Sequence(prompt + self.ids(f" {answer}<|end|>"), len(prompt))

    def grounded(self, anchor: int) -> Sequence:
        """A question and its passage, often cropped, often among others; or a question that none of the passages answers."""
        chance, gold = self.chance, self.passages[anchor]
        tasks = cloze_tasks(gold.text, chance) if not gold.questions or chance.random() < 0.08 else []
        question, answer = chance.choice(tasks or gold.questions or [("What does the passage say?", sentences(gold.text)[0])])
        if chance.random() < 0.15 * self.ramp(0.1, 0.4):
            return self.unanswerable(anchor, question)
        shown = [self.crop(gold, answer) if chance.random() > self.ramp(0.2, 0.6) else gold, *self.distractors(anchor, answer)]
        chance.shuffle(shown)
        gold_at = next(i for i, p in enumerate(shown) if p.text in gold.text)
        return self.assemble(self.roughen(question), answer, [p.text for p in shown], gold_at)

    def distractors(self, anchor: int, answer: str = "") -> list[Passage]:
        """None to three similar passages that do not hold the answer."""
        late = self.ramp(0.45, 0.8)
        count = self.chance.choices([0, 1, 2, 3], list(late * PASSAGES_LATE + (1 - late) * PASSAGES_EARLY))[0]
        near = [self.passages[i] for i in self.near[anchor]]
        pool = [p for p in near if not answer or answer.lower() not in p.text.lower()]
        return self.chance.sample(pool, min(count, len(pool)))

    def ramp(self, start: float, end: float) -> float:
        """0 before `start` of the training, 1 after `end`: copying is learnt from a few sentences first, then among passages."""
        return min(max((self.progress - start) / (end - start), 0.0), 1.0)

    def crop(self, passage: Passage, answer: str, max_words: int = 45) -> Passage:
        """One to a few sentences of `passage` around `answer`."""
        parts = sentences(passage.text)
        first = next((i for i, s in enumerate(parts) if answer in s), None)
        if first is None:  # the answer runs over sentences
            return passage
        last, total = first + 1, len(parts[first].split())
        while last < len(parts) and total + len(parts[last].split()) <= max_words and self.chance.random() < 0.8:
            total += len(parts[last].split())
            last += 1
        while first > 0 and total + len(parts[first - 1].split()) <= max_words:
            first -= 1
            total += len(parts[first].split())
        text = " ".join(parts[first:last])
        return Passage(text, passage.source) if text in passage.text else passage

    def unanswerable(self, anchor: int, question: str) -> Sequence:
        """The question over similar passages without its own, or with a name or number exchanged over its own."""
        shown = self.distractors(anchor) or [self.passages[self.near[anchor][0]]]
        changed = self.exchange(question) if self.chance.random() < 0.4 else None
        if changed:
            shown = [self.passages[anchor], *shown[1:]]
            self.chance.shuffle(shown)
        return self.assemble(self.roughen(changed or question), ABSTENTION, [p.text for p in shown], None)

    def exchange(self, question: str) -> str | None:
        """`question` with one name or number replaced by one of another question, or None where there is none."""
        pattern = r"(?<=\s)(?:[A-Z][\w\-]+(?: [A-Z][\w\-]+)*|\d[\d.,]*)"
        here, there = re.findall(pattern, question), re.findall(pattern, self.chance.choice(self.all_questions))
        if not here or not there or here[-1] == there[0] or here[-1].isdigit() != there[0].isdigit():
            return None
        return question.replace(here[-1], there[0])

    def roughen(self, question: str) -> str:
        """The question as users type it: sometimes without capitals or without the question mark."""
        if self.chance.random() < 0.15:
            question = question.lower()
        return question.rstrip("?").rstrip() if self.chance.random() < 0.15 else question

    def assemble(self, question: str, answer: str, texts: list[str], gold: int | None) -> Sequence:
        """The prompt over `texts` and the answer, copied from `texts[gold]`; over-long prompts lose passages that are not gold."""
        while len(texts) > 1 and sum(len(t.split()) for t in texts) > 560:
            drop = next(i for i in reversed(range(len(texts))) if i != gold)
            texts, gold = texts[:drop] + texts[drop + 1 :], gold - 1 if gold is not None and drop < gold else gold
        asked = self.ids(f"\n\nQuestion: {question}")
        first = asked if self.chance.random() < 0.9 else []  # other people's prompts ask only at the end
        tokens, starts = self.ids(f"<|user|> {INSTRUCTION}") + first, []
        for number, text in enumerate(texts, 1):
            starts.append(len(tokens))
            tokens += self.ids(f"\n\n[{number}] {text}")
        starts.append(len(tokens))
        tokens += asked + self.ids("<|end|>\n<|assistant|>")
        copied = self.ids(f" {answer}")
        made = Sequence(tokens + copied, len(tokens))
        if gold is None:
            made.sources[len(tokens) - 1] = [0]  # nothing to copy: point at the very start
        else:
            self.add_sources(made, copied, starts[gold], starts[gold + 1])
            digit, citation = self.ids(str(gold + 1))[0], self.ids(f" [{gold + 1}]")
            made.sources[len(made.tokens) - 1 + citation.index(digit)] = [made.tokens.index(digit, starts[gold])]
            made.tokens += citation
        made.tokens += self.ids("<|end|>")
        return made if len(made.tokens) <= MAX_LENGTH else self.closed_book(question, answer)

    @staticmethod
    def add_sources(made: Sequence, copied: list[int], start: int, end: int) -> None:
        found = [p for p in range(start, end - len(copied) + 1) if made.tokens[p : p + len(copied)] == copied]
        if found:
            made.sources |= {made.prompt - 1 + k: [p + k for p in found] for k in range(len(copied))}


def collate(sequences: list[Sequence], text_share: float, chance: random.Random) -> dict[str, torch.Tensor]:
    """Right-padded tokens, labels and weights (batch, length); labels are the next token where it is to be predicted, else IGNORE.

    Answer tokens weigh 1/√(answer length), so that a copied sentence does not drown a name; of the other positions a share of
    `text_share` is kept for next-token prediction (all where the sequence is plain text), marked by a negative weight. `pointing`
    (count, 2) are the rows and positions that predict a copied token, `sources` (count, length) where it stands.
    """
    length = max(len(s.tokens) for s in sequences)
    tokens = torch.zeros(len(sequences), length, dtype=torch.long)
    labels, weights = torch.full_like(tokens, IGNORE), torch.zeros(tokens.shape)
    for row, s in enumerate(sequences):
        n, answer = len(s.tokens), len(s.tokens) - s.prompt
        tokens[row, :n] = torch.tensor(s.tokens)
        share = text_share if s.prompt else 0.5
        weights[row, : n - 1] = torch.tensor([-1.0 if chance.random() < share else 0.0 for _ in range(n - 1)])
        if s.prompt:
            weights[row, s.prompt - 1 : n - 1] = answer**-0.5
        labels[row, : n - 1] = torch.where(weights[row, : n - 1] != 0, tokens[row, 1:n], IGNORE)
    pointing = [(row, position) for row, s in enumerate(sequences) for position in s.sources]
    sources = torch.zeros(len(pointing), length, dtype=torch.bool)
    for index, (row, position) in enumerate(pointing):
        sources[index, sequences[row].sources[position]] = True
    points = {"pointing": torch.tensor(pointing, dtype=torch.long).reshape(-1, 2), "sources": sources}
    return {"tokens": tokens, "labels": labels, "weights": weights, **points}
