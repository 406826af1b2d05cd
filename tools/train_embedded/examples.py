"""Examples for the language model: a question, one to four passages, and the answer with the number of its passage, or the abstention.

The prompt is the one of `utils.rag`. Distracting passages and unanswerable questions come free: they are neighbours of the gold passage
(TF-IDF), or the gold passage itself with the answer's sentence gone, or the question turned so that its passage no longer answers it.
Knows passages and questions; knows no tensors.
"""

import random
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from tools.train_embedded.reading import Passage, sentences
from utils.rag import ABSTENTION, rag_messages

DISTRACTORS = [0.3, 0.15, 0.2, 0.35]  # shares of 0, 1, 2 and 3 passages beside the gold one
RETRIEVED = 0.6  # share of the questions whose distracting passages are those that a search for the question finds
UNANSWERABLE = 0.4
REMOVED, TURNED = 0.25, 0.5  # shares of the unanswerable: own passage without the answer's sentence; turned question over its own passage
CROPPED = 0.3  # share of passages cut to a few sentences: more questions in the same time
TECHNICAL = 0.07  # share of questions made from sentences of technical texts
UNANSWERED = 0.04  # share of questions that people asked of a text and that it does not answer
MAX_TOKENS = 900
NAME_OR_NUMBER = re.compile(r"(?<=\s)(?:[A-Z][\w\-]+(?: [A-Z][\w\-]+)*|\d[\d.,]*\d|\d)")
OPPOSITES = [  # a question with one of these words exchanged asks for what its passage rarely says
    ("first", "last"), ("largest", "smallest"), ("biggest", "smallest"), ("highest", "lowest"), ("most", "least"), ("more", "less"),
    ("before", "after"), ("north", "south"), ("northern", "southern"), ("east", "west"), ("eastern", "western"), ("oldest", "newest"),
    ("early", "late"), ("earliest", "latest"), ("began", "ended"), ("begin", "end"), ("start", "stop"), ("started", "stopped"),
    ("increase", "decrease"), ("increased", "decreased"), ("won", "lost"), ("win", "lose"), ("best", "worst"), ("good", "bad"),
    ("major", "minor"), ("born", "buried"), ("founded", "dissolved"), ("opened", "closed"), ("father", "mother"), ("son", "daughter"),
    ("king", "queen"), ("men", "women"), ("male", "female"), ("like", "dislike"), ("can", "cannot"), ("longest", "shortest"),
    ("allowed", "forbidden"), ("includes", "excludes"), ("support", "oppose"), ("buy", "sell"), ("positive", "negative"), ("old", "new"),
]  # fmt: skip
OPPOSITE = {here: there for pair in OPPOSITES for here, there in (pair, pair[::-1])}
PROPER_NAME = re.compile(r"(?<=[a-z,;] )[A-Z][\w\-]+(?: [A-Z][\w\-]+)*")
NOT_A_NAME = set(
    "The This That These What When Where Which Who Whose How Why Is Are Does If January February March April May June July August "
    "September October November December".split()
)
TRANSPLANTED = 0.3  # share of the turned questions that are another passage's, asked of a name of this one
ASKING = set("what when where which whom whose that does have been were with from this they their many much long type kind name".split())
NEGATABLE = re.compile(r"\b(did|does|do|is|are|was|were|can|could|should|would|has|have) (the |a |an |his |her |their )?\w+")


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


class ExampleMaker:
    """Draws examples at random from `passages`; the same seed draws the same ones. `found` is what `retrieved` gives."""

    def __init__(self, passages: list[Passage], near: np.ndarray, seed: int = 0, found: np.ndarray | None = None):
        self.passages, self.near, self.found, self.chance = passages, near, found, random.Random(seed)
        self.first_question = np.cumsum([0, *(len(p.questions) for p in passages)])
        self.anchors = [i for i, p in enumerate(passages) for _ in p.questions if p.source != "text"]
        self.technical = [i for i, p in enumerate(passages) if p.source == "text" and p.questions] or self.anchors
        self.open = [(i, q) for i, p in enumerate(passages) for q in p.unanswered]
        self.all_questions = [q for p in passages if p.source != "text" for q, _ in p.questions]
        self.known_questions = set(self.all_questions)
        self.next: Example | None = None

    def draw(self) -> Example:
        """A question that one of its passages answers, or, three times in ten, one that none of them answers.

        A turned question, and one whose answer was removed, is followed by the same question as it was, over the same passage:
        what tells the two apart is then the only thing to learn.
        """
        if self.next:
            example, self.next = self.next, None
            return example
        chance = self.chance
        if self.open and chance.random() < UNANSWERED:
            at, question = chance.choice(self.open)
            return Example(self.roughen(question), ABSTENTION, [self.passages[at].text], None)
        anchor = chance.choice(self.technical if chance.random() < TECHNICAL else self.anchors)
        gold = self.passages[anchor]
        asked = chance.randrange(len(gold.questions))
        question, answer = gold.questions[asked]
        distractors = chance.choices([0, 1, 2, 3], DISTRACTORS)[0]
        others = self.similar(anchor, asked)
        if chance.random() < UNANSWERABLE:
            return self.unanswerable(anchor, question, answer, distractors, others)
        pool = [self.some(i) for i in others if answer.lower() not in self.passages[i].text.lower()]
        home = self.crop(gold, answer) if chance.random() < CROPPED else gold.text
        shown = [home, *chance.sample(pool, min(distractors, len(pool)))]
        chance.shuffle(shown)
        return Example(self.roughen(question), answer, shown, shown.index(home))

    def similar(self, anchor: int, asked: int) -> np.ndarray:
        """Indices of passages like the one at `anchor`: found for its question number `asked`, or its neighbours."""
        if self.found is not None and self.chance.random() < RETRIEVED:
            return self.found[self.first_question[anchor] + asked]
        return self.near[anchor]

    def unanswerable(self, anchor: int, question: str, answer: str, distractors: int, others: np.ndarray) -> Example:
        """The question over its own passage without the answer's sentence, turned over its own passage, or over similar passages only."""
        chance, own, original = self.chance, self.passages[anchor], question
        yes_or_no = answer.lower() in ("yes", "no")  # turned, such a question has the other answer
        kind, home = (1.0 if yes_or_no else chance.random()), None
        if kind < REMOVED:
            home = without(own.text, answer)
        elif kind < REMOVED + TURNED and (turned := self.turn(question, own.text)):
            question, home = turned, self.crop(own, answer) if chance.random() < CROPPED else own.text
        if home:
            self.next = Example(self.roughen(original), answer, [own.text if kind < REMOVED else home], 0)
        texts = [self.some(i) for i in others]
        fits = [t for t in texts if answer.lower() not in t.lower() and not (home and self.names_in(question, t, beside=own.text))]
        pool = texts if yes_or_no else fits
        near = chance.sample(pool, min(distractors + (home is None), len(pool)))
        shown = [*near, home] if home else near or [self.passages[self.near[anchor][-1]].text]
        chance.shuffle(shown)
        return Example(self.roughen(question), ABSTENTION, shown, None)

    def names_in(self, question: str, text: str, beside: str) -> bool:
        """Whether `text` holds a name or number of `question` that `beside` lacks: then it could answer."""
        return any(name in text for name in NAME_OR_NUMBER.findall(question) if name not in beside)

    def turn(self, question: str, passage: str) -> str | None:
        """`question` with an opposite, another name or number (of `passage` where it has one), or a "not", or another question about a
        name of `passage`; None where nothing fits."""
        if self.chance.random() < TRANSPLANTED and (other := self.transplant(passage)):
            return other
        words = [word for word in re.findall(r"[a-z]+", question) if word in OPPOSITE]
        if words and self.chance.random() < 0.6:
            return re.sub(rf"\b{words[-1]}\b", OPPOSITE[words[-1]], question)
        return self.exchange(question, passage) or (self.negate(question) if self.chance.random() < 0.5 else None)

    def exchange(self, question: str, passage: str) -> str | None:
        """`question` with one name or number replaced by another of `passage`, or of another question; None where there is none."""
        here = NAME_OR_NUMBER.findall(question)
        if not here:
            return None
        old = self.chance.choice(here)
        source = passage if self.chance.random() < 0.7 else self.chance.choice(self.all_questions)
        pool = [n for n in NAME_OR_NUMBER.findall(source) if n.lower() not in question.lower() and n[0].isdigit() == old[0].isdigit()]
        return question.replace(old, self.chance.choice(pool)) if pool else None

    def transplant(self, passage: str) -> str | None:
        """The question of another passage, asked of a name of `passage` in place of its own: what `passage` does not tell of it."""
        names, words = proper_names(passage), set(re.findall(r"[a-z]{4,}", passage.lower()))
        for question in self.chance.choices(self.all_questions, k=12) if names else []:
            old = proper_names(question)
            if len(old) == 1 and len(question.split()) <= 12:
                asked = set(re.findall(r"[a-z]{4,}", question.replace(old[0], ""))) - ASKING
                made = question.replace(old[0], self.chance.choice(names))
                if asked and not asked & words and made not in self.known_questions:
                    return made
        return None

    def negate(self, question: str) -> str | None:
        """`question` with a "not" after its subject, None where its form is another."""
        found = NEGATABLE.search(question)
        return f"{question[: found.end()]} not{question[found.end() :]}" if found and "not" not in question else None

    def some(self, index: int) -> str:
        """The passage at `index`, or a few sentences of it: as long as gold passages are, so that length tells nothing."""
        passage = self.passages[index]
        return self.crop(passage, self.chance.choice(sentences(passage.text))) if self.chance.random() < CROPPED else passage.text

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


def proper_names(text: str) -> list[str]:
    """The names of `text`, those that begin a sentence left out, because there any word looks like one."""
    return [name for name in PROPER_NAME.findall(text) if len(name) > 3 and name.split()[0] not in NOT_A_NAME]


def without(passage: str, answer: str, least_words: int = 20) -> str | None:
    """`passage` without the sentences that hold `answer`; None where too little is left or the answer runs over sentences."""
    parts = sentences(passage)
    kept = [sentence for sentence in parts if answer.lower() not in sentence.lower()]
    text = " ".join(kept)
    return text if len(kept) < len(parts) and len(text.split()) >= least_words else None


def tokenized(example: Example, tokenizer: Any) -> tuple[list[int], list[int]] | None:
    """(prompt, answer) as token ids, exactly as the RAG chain would send and the model should reply; None where it is too long."""
    answer = example.answer if example.gold is None else f"{example.answer} [{example.gold + 1}]"
    prompt, reply = chat_tokens(rag_messages(example.question, example.passages), answer, tokenizer)
    return (prompt, reply) if len(prompt) + len(reply) <= MAX_TOKENS else None


def chat_tokens(chat: list[dict[str, str]], answer: str, tokenizer: Any) -> tuple[list[int], list[int]]:
    """(prompt, answer) as token ids: the chat as its template puts it, and what the model should reply."""
    prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ids = [tokenizer(text, add_special_tokens=False).input_ids for text in (prompt, answer + tokenizer.eos_token)]
    return ids[0], ids[1]
