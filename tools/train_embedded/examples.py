"""Examples for the language model: a question, one to four passages, and the answer with the number of its passage, or the abstention.

The prompt is the one of `utils.rag`. Distracting passages and unanswerable questions come free: they are neighbours of the gold passage
(TF-IDF) or what a search finds; the gold passage itself with the answer's sentence gone; a word exchanged in the question or the passage,
or the question turned, so that the one no longer answers the other.
Knows passages and questions; knows no tensors.
"""

import random
import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tools.train_embedded.exchanges import COMMON, NAME_OR_NUMBER, OPPOSITE, exchange, exchanged
from tools.train_embedded.reading import Passage, sentences
from tools.train_embedded.technical import named_twice
from utils.rag import ABSTENTION, rag_messages

DISTRACTORS = [0.3, 0.15, 0.2, 0.35]  # shares of 0, 1, 2 and 3 passages beside the gold one
RETRIEVED = 0.6  # share of the questions whose distracting passages are those that a search for the question finds
UNANSWERABLE = 0.4
REMOVED = 0.15  # share of the unanswerable over their own passage without the answer's sentence
EXCHANGED = 0.5  # with a word exchanged in the question or in the passage
TURNED = 0.2  # with the question turned; the others are over similar passages only
ALONE = 0.5  # share of the misleading ones that no distracting passages surround
CROPPED = 0.3  # share of passages cut to a few sentences: more questions in the same time
TECHNICAL = 0.15  # share of questions made from sentences of technical texts
MADE = 0.07  # share of questions that a model made, where there are such
NAMED_TWICE = 0.5  # share of the questions made from a sentence on one subject that give it a second name
UNANSWERED = 0.04  # share of questions that people asked of a text and that it does not answer
MAX_TOKENS = 900
PROPER_NAME = re.compile(r"(?<=[a-z,;] )[A-Z][\w\-]+(?: [A-Z][\w\-]+)*")
TRANSPLANTED, OPPOSED = 0.4, 0.4  # shares of the turned questions: another passage's, asked of a name of this one; with an opposite
ASKING = set("what when where which whom whose that does have been were with from this they their many much long type kind name".split())
NEGATABLE = re.compile(r"\b(did|does|do|is|are|was|were|can|could|should|would|has|have) (the |a |an |his |her |their )?\w+")


@dataclass
class Example:
    question: str
    answer: str  # without the passage's number
    passages: list[str]
    gold: int | None  # index of the passage that holds the answer


class ExampleMaker:
    """Draws examples at random from `passages`; the same seed draws the same ones. `near` and `found` are what
    `material.neighbours` and `material.retrieved` give."""

    def __init__(self, passages: list[Passage], near: np.ndarray, seed: int = 0, found: np.ndarray | None = None):
        self.passages, self.near, self.found, self.chance = passages, near, found, random.Random(seed)
        self.first_question = np.cumsum([0, *(len(p.questions) for p in passages)])
        self.anchors = [i for i, p in enumerate(passages) for _ in p.questions if p.source != "text"]
        self.technical = [i for i, p in enumerate(passages) if p.source == "text" and p.questions] or self.anchors
        self.made = [(i, made) for i, p in enumerate(passages) for made in p.made]
        self.open = [(i, q) for i, p in enumerate(passages) for q in p.unanswered]
        self.all_questions = [q for p in passages if p.source != "text" for q, _ in p.questions]
        technical = [q for p in passages if p.source == "text" for q, _ in p.questions]
        self.subjects = [q[len("What is ") : -1] for q in technical if re.match(r"What is \S+( \S+){0,2}\?", q)]
        self.known_questions = set(self.all_questions)
        self.next: Example | None = None

    def draw(self) -> Example:
        """A question that one of its passages answers, or, three times in ten, one that none of them answers.

        What misleads is followed by its like that is answered, between the same passages: what tells the two apart is then the only
        thing to learn.
        """
        if self.next:
            example, self.next = self.next, None
            return example
        chance = self.chance
        if self.open and chance.random() < UNANSWERED:
            at, question = chance.choice(self.open)
            return Example(self.roughen(question), ABSTENTION, [self.passages[at].text], None)
        anchor, question, answer, others = self.asked()
        gold = self.passages[anchor]
        distractors = chance.choices([0, 1, 2, 3], DISTRACTORS)[0]
        if chance.random() < UNANSWERABLE:
            return self.unanswerable(anchor, question, answer, distractors, others)
        if chance.random() < NAMED_TWICE and answer in gold.text and (made := named_twice(question, answer, chance, self.subjects)):
            gold = replace(gold, text=gold.text.replace(answer, made[1], 1))
            question, answer = made
        pool = [self.some(i) for i in others if answer.lower() not in self.passages[i].text.lower()]
        home = self.crop(gold, answer) if chance.random() < CROPPED else gold.text
        shown = [home, *chance.sample(pool, min(distractors, len(pool)))]
        chance.shuffle(shown)
        return Example(self.roughen(question), answer, shown, shown.index(home))

    def asked(self) -> tuple[int, str, str, np.ndarray]:
        """The index of a passage, a question that it answers, the answer, and indices of passages like it."""
        chance = self.chance
        if self.made and chance.random() < MADE:
            anchor, (question, answer) = chance.choice(self.made)
            return anchor, question, answer, self.near[anchor]
        anchor = chance.choice(self.technical if chance.random() < TECHNICAL else self.anchors)
        asked = chance.randrange(len(self.passages[anchor].questions))
        return anchor, *self.passages[anchor].questions[asked], self.similar(anchor, asked)

    def similar(self, anchor: int, asked: int) -> np.ndarray:
        """Indices of passages like the one at `anchor`: found for its question number `asked`, or its neighbours."""
        if self.found is not None and self.chance.random() < RETRIEVED:
            return self.found[self.first_question[anchor] + asked]
        return self.near[anchor]

    def unanswerable(self, anchor: int, question: str, answer: str, distractors: int, others: np.ndarray) -> Example:
        """The question over its own passage without the answer's sentence, or with a word exchanged in one of the two; turned over its own
        passage; or over similar passages only."""
        chance, own = self.chance, self.passages[anchor]
        yes_or_no = answer.lower() in ("yes", "no")  # changed, such a question has the other answer
        wrong, right = (None, None) if yes_or_no else self.misleading(question, answer, anchor)
        if wrong and chance.random() < ALONE:
            distractors = 0
        asked, home = wrong or (question, None)
        texts = [self.some(i) for i in others]
        fits = [t for t in texts if answer.lower() not in t.lower() and not (home and self.names_in(asked, t, beside=own.text))]
        pool = texts if yes_or_no else fits
        near = chance.sample(pool, min(distractors + (home is None), len(pool)))
        shown = [*near, home] if home else near or [self.passages[self.near[anchor][-1]].text]
        chance.shuffle(shown)
        if right and home:
            at = shown.index(home)
            self.next = Example(self.roughen(right[0]), answer, [*shown[:at], right[1], *shown[at + 1 :]], at)
        return Example(self.roughen(asked), ABSTENTION, shown, None)

    def misleading(self, question: str, answer: str, anchor: int) -> tuple[tuple[str, str], tuple[str, str]] | tuple[None, None]:
        """(question, passage) that does not answer, and one that does and looks alike; Nones where nothing of the drawn kind fits."""
        chance, own, kind = self.chance, self.passages[anchor], self.chance.random()
        elsewhere = self.passages[chance.choice(self.near[anchor])].text
        if kind < REMOVED:
            left = without(own.text, answer)
            return ((question, left), (question, own.text)) if left else (None, None)
        home = self.crop(own, answer) if chance.random() < CROPPED else own.text
        as_it_was = question, home
        if kind < REMOVED + EXCHANGED and (pair := exchange(question, home, answer, elsewhere, chance)):
            asked, read = exchanged(question, *pair), exchanged(home, *pair)
            if read == home or answer not in read:
                return (asked, home), as_it_was
            return chance.choice([(asked, home), (question, read)]), chance.choice([as_it_was, (asked, read)])
        if kind < REMOVED + EXCHANGED + TURNED and (turned := self.turn(question, home, answer, elsewhere)):
            return (turned, home), as_it_was
        return None, None

    def names_in(self, question: str, text: str, beside: str) -> bool:
        """Whether `text` holds a name or number of `question` that `beside` lacks: then it could answer."""
        return any(name in text for name in NAME_OR_NUMBER.findall(question) if name not in beside)

    def turn(self, question: str, passage: str, answer: str, elsewhere: str) -> str | None:
        """Another question about a name of `passage`; or `question` with an opposite, another name or number (of `passage` or
        `elsewhere`), or a "not"; None where nothing fits."""
        chance = self.chance
        if chance.random() < TRANSPLANTED and (other := self.transplant(passage)):
            return other
        words = [word for word in re.findall(r"[a-z]+", question) if word in OPPOSITE]
        if words and chance.random() < OPPOSED:
            return exchanged(question, words[-1], OPPOSITE[words[-1]])
        if pair := exchange(question, passage, answer, elsewhere, chance):
            return exchanged(question, *pair)
        return self.negate(question) if chance.random() < 0.5 else None

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
    return [name for name in PROPER_NAME.findall(text) if len(name) > 3 and name.split()[0].lower() not in COMMON]


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
