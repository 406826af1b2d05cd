"""Training sequences for the language model: some passages once, then many questions about them.

A sequence is a shared prompt head with one to four passages, followed by segments "question, answer". Each segment sees the
head and itself, never another segment, and its positions continue right after the head; so one pass over 600 tokens of
passages teaches up to sixteen questions, and each question is exactly what the model meets at inference.
Distracting passages and unanswerable questions come free: they are the neighbours of the gold passage (TF-IDF).
"""

import random
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tools.train_embedded.reading import Passage, cloze_tasks, sentences

ABSTENTION = "The documents do not say."
INSTRUCTION = "Answer the question from the passages. If they do not say, answer: The documents do not say."
SPECIAL = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
IGNORE = -100
MAX_HEAD, MAX_SEGMENT, MAX_SEGMENTS = 840, 180, 16
PASSAGES_EARLY, PASSAGES_LATE = np.array([0.85, 0.15, 0.0, 0.0]), np.array([0.38, 0.22, 0.24, 0.16])  # shares of 1, 2, 3, 4 passages


@dataclass
class Sequence:
    tokens: list[int]
    positions: list[int]
    segment: list[int]  # 0 in the head, 1, 2, … in the segments
    labels: list[int]  # the next token where it is to be predicted, else IGNORE
    is_answer: list[bool]  # true where the label belongs to an answer, false where it is plain text


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


class SequenceMaker:
    """Draws sequences at random from `passages`; the same seed draws the same ones."""

    def __init__(self, passages: list[Passage], near: np.ndarray, tokenizer: Any, seed: int = 0):
        self.passages, self.near, self.tokenizer, self.chance = passages, near, tokenizer, random.Random(seed)
        self.progress = 0.0  # of the whole training, 0 to 1; see `ramp`
        self.anchors = [i for i, p in enumerate(passages) for _ in p.questions]  # as often as there are questions: cheap lessons first
        self.texts = [i for i, p in enumerate(passages) if p.source == "text"]
        self.all_questions = [q for p in passages for q, _ in p.questions]

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def draw(self) -> Sequence:
        """A sequence: mostly questions over passages, now and then plain text or questions without passages."""
        kind = self.chance.random()
        if kind < 0.04:
            return self.closed_book()
        anchor = self.chance.choice(self.anchors if kind < 0.9 else self.texts)
        return self.grounded(anchor)

    def grounded(self, anchor: int) -> Sequence:
        chance, late = self.chance, self.ramp(0.35, 0.65)
        count = chance.choices([1, 2, 3, 4], list(late * PASSAGES_LATE + (1 - late) * PASSAGES_EARLY))[0]
        pool = [int(i) for i in self.near[anchor]]
        asked = [i for i in pool if self.passages[i].questions] or pool
        others = [
            chance.choice(asked if chance.random() < 0.8 else pool) if chance.random() < 0.8 else chance.choice(self.anchors)
            for _ in range(count - 1)
        ]
        chosen = list(dict.fromkeys([anchor, *others]))
        chance.shuffle(chosen)
        numbered = chance.random() < 0.85
        shown = [self.passages[i] for i in chosen]
        if chance.random() > self.ramp(0.3, 0.6):
            shown = [self.crop(p) for p in shown]
        head = self.head([p.text for p in shown], numbered)
        if len(head) > MAX_HEAD:
            chosen, shown = [anchor], [self.passages[anchor]]
            head = self.head([shown[0].text], numbered)
        segments = self.answerable(shown, numbered)
        segments += self.unanswerable(pool, chosen, shown, len(segments))
        chance.shuffle(segments)
        return self.assemble(head, segments[:MAX_SEGMENTS])

    def ramp(self, start: float, end: float) -> float:
        """0 before `start` of the training, 1 after `end`: copying is learnt from a few sentences first, then among passages."""
        return min(max((self.progress - start) / (end - start), 0.0), 1.0)

    def crop(self, passage: Passage, max_words: int = 45) -> Passage:
        """One to a few sentences around the answer of a random question, with all questions that they answer."""
        parts = sentences(passage.text)
        answer = self.chance.choice(passage.questions)[1] if passage.questions else ""
        first = next((i for i, s in enumerate(parts) if answer and answer in s), self.chance.randrange(len(parts)))
        last, total = first + 1, len(parts[first].split())
        while last < len(parts) and total + len(parts[last].split()) <= max_words:
            total += len(parts[last].split())
            last += 1
        while first > 0 and total + len(parts[first - 1].split()) <= max_words and self.chance.random() < 0.5:
            first -= 1
            total += len(parts[first].split())
        text = " ".join(parts[first:last])
        return Passage(text, passage.source, [(q, a) for q, a in passage.questions if a in text])

    def head(self, texts: list[str], numbered: bool) -> list[int]:
        bodies = [f"[{n}] {text}" for n, text in enumerate(texts, 1)] if numbered else texts
        start = INSTRUCTION if numbered or self.chance.random() < 0.5 else self.chance.choice(["Context:", "Passages:", "Read this."])
        return self.ids("<|user|>\n" + "\n\n".join([start, *bodies]))

    def answerable(self, shown: list[Passage], numbered: bool) -> list[tuple[str, str]]:
        found = []
        for number, passage in enumerate(shown, 1):
            tasks = cloze_tasks(passage.text, self.chance) if self.chance.random() < (0.35 if passage.questions else 0.7) else []
            found += [(self.roughen(q), f"{a} [{number}]" if numbered else a) for q, a in passage.questions + tasks]
        return found

    def unanswerable(self, pool: list[int], chosen: list[int], shown: list[Passage], answerable: int) -> list[tuple[str, str]]:
        """Questions of similar passages that are not shown, and questions with a name or number exchanged."""
        text = " ".join(p.text for p in shown).lower()
        share = 0.04 + 0.2 * self.ramp(0.3, 0.5)
        hidden = [q for i in pool if i not in chosen for q, a in self.passages[i].questions if a.lower() not in text or len(a) < 3]
        wanted = sum(self.chance.random() < share for _ in range(min(answerable, MAX_SEGMENTS) + 1))
        questions = self.chance.sample(hidden, min(wanted, len(hidden)))
        for question, _ in [qa for p in shown for qa in p.questions]:
            if self.chance.random() < share / 4 and (changed := self.exchange(question)):
                questions.append(changed)
        return [(self.roughen(q), ABSTENTION) for q in questions]

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

    def closed_book(self) -> Sequence:
        """Questions without passages, each answered from the weights: the closed-book baseline needs the format too."""
        pairs = [self.chance.choice(self.passages[self.chance.choice(self.anchors)].questions) for _ in range(8)]
        return self.assemble(self.ids("<|user|>\n"), pairs, joint="")

    def assemble(self, head: list[int], segments: list[tuple[str, str]], joint: str = "\n\nQuestion: ") -> Sequence:
        made = Sequence(list(head), list(range(len(head))), [0] * len(head), head[1:] + [IGNORE], [False] * len(head))
        for number, (question, answer) in enumerate(segments, 1):
            prompt = self.ids(f"{joint}{question}<|end|>\n<|assistant|>\n")
            tokens = prompt + self.ids(f"{answer}<|end|>")
            if len(tokens) > MAX_SEGMENT:
                continue
            made.tokens += tokens
            made.positions += range(len(head), len(head) + len(tokens))
            made.segment += [number] * len(tokens)
            made.labels += [IGNORE] * (len(prompt) - 1) + tokens[len(prompt) :] + [IGNORE]
            made.is_answer += [True] * len(tokens)
        return made


def collate(sequences: list[Sequence], text_share: float, chance: random.Random) -> dict[str, torch.Tensor]:
    """Padded tensors: tokens, positions, labels, weights (batch, length) and the mask (batch, 1, length, length).

    Answer tokens weigh 1/√(answer length), so that a copied sentence does not drown a name; a share of the plain-text
    positions is kept for next-token prediction, marked by a negative weight.
    """
    length = max(len(s.tokens) for s in sequences)
    tokens = torch.zeros(len(sequences), length, dtype=torch.long)
    positions, labels, weights = torch.zeros_like(tokens), torch.full_like(tokens, IGNORE), torch.zeros(tokens.shape)
    segment = torch.full_like(tokens, -1)
    for row, s in enumerate(sequences):
        n = len(s.tokens)
        tokens[row, :n], positions[row, :n], segment[row, :n] = map(torch.tensor, (s.tokens, s.positions, s.segment))
        lab, seg, answer = np.array(s.labels), np.array(s.segment), np.array(s.is_answer)
        counts = np.bincount(seg[(lab != IGNORE) & answer], minlength=seg.max() + 1).clip(1)
        keep_text = np.array([chance.random() < text_share for _ in range(n)])
        weight = np.where(answer, 1 / np.sqrt(counts[seg]), -1.0) * ((lab != IGNORE) & (answer | keep_text))
        labels[row, :n] = torch.tensor(np.where(weight != 0, lab, IGNORE))
        weights[row, :n] = torch.tensor(weight, dtype=torch.float32)
    allowed = (segment[:, None, :] == 0) | (segment[:, None, :] == segment[:, :, None])
    allowed &= torch.ones(length, length, dtype=torch.bool).tril()
    return {"tokens": tokens, "positions": positions, "labels": labels, "weights": weights, "mask": allowed[:, None]}
