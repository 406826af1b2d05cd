"""Short instructions for the language model, so that learning to read passages does not unlearn the rest of a chat.

Two kinds. *Kept*: what the base itself answers to an everyday instruction about technical words, sentences and paragraphs.
*Imitated*: two or three worked examples in some form and one more passage and question, to be answered in just that form. Neither
shows numbered passages, so neither answer ends in a citation. Knows passages and words; the base's answers come from whoever has a model.
"""

import json
import random
import re
from collections.abc import Callable

from tools.train_embedded.reading import Passage, sentences
from tools.train_embedded.technical import DEFINITION, NOT_A_SUBJECT

MAX_ANSWER_WORDS = 60
ABOUT_A_WORD = [
    "What is {}?", "Explain {} in one sentence.", "Explain what {} is in two sentences.", "Write one sentence about {}.",
    "Tell me about {}.", "List three things to know about {}.", "Give me two tips for working with {}.", "Why would someone use {}?",
    "What is {} good for?", "Write a short paragraph about {}.", "Describe {} to a child.", "Write a question about {}.",
    "Name three words that have to do with {}.", "Write a haiku about {}.", "Write a headline about {}.", "Give an example of {}.",
    "Say in one sentence why {} matters.", "Write a friendly greeting to a colleague who works on {}.",
    "Write a two-line email that asks for help with {}.", "Compare {} with something from everyday life.",
]  # fmt: skip
ABOUT_A_SENTENCE = [
    "Rewrite this in simpler words: {}", "Say this in other words: {}", "Rewrite this politely: {}", "Turn this into a question: {}",
    "What is the subject of this sentence? {}", "Shorten this: {}", "Is this sentence about computers? Answer yes or no. {}",
    "Continue: {}",
]  # fmt: skip
ABOUT_A_PARAGRAPH = [
    "Summarise in one sentence:\n\n{}", "Give this text a title:\n\n{}", "What is this text about?\n\n{}", "List the main points:\n\n{}",
    "Write one question that this text answers:\n\n{}", "Which word is most important here?\n\n{}",
]  # fmt: skip
FORMS: list[Callable[[str], str]] = [  # what an answer is turned into
    str, str.upper, str.lower, "<<{}>>".format, "({})".format, '"{}"'.format, "**{}**".format, "Answer: {}".format, "- {}".format,
    "The answer is: {}.".format, lambda a: json.dumps({"answer": a}), lambda a: f"ANSWER: {a}\nEND", lambda a: f"{a} ({len(a.split())})",
    lambda a: f"FOUND: yes\nANSWER: {a}", lambda a: f"[{a.upper()}]", lambda a: f"{a}!", lambda a: f"Short: {a}\nLong: It is {a}.",
]  # fmt: skip
LABELS = [
    ("Text", "Question", "Answer"), ("Passage", "Q", "A"), ("Document", "Ask", "Reply"), ("Note", "User", "Assistant"), ("", "Q", "A"),
    ("Context", "Input", "Output"),
]  # fmt: skip
LEADS = ["", "", "Answer in the form of the examples.\n\n", "Do as in the examples.\n\n", "Continue:\n\n", "Follow the pattern.\n\n"]


def everyday(passages: list[Passage], count: int, chance: random.Random) -> list[str]:
    """`count` instructions about words, sentences and paragraphs of technical texts: half about words."""
    texts = [p.text for p in passages if p.source == "text"]
    said = [s for text in texts for s in sentences(text)]
    subjects = {m[1].removeprefix("The ") for s in said if (m := DEFINITION.match(s)) and not NOT_A_SUBJECT.search(m[1])}
    words = sorted(word for word in subjects if len(word) > 3)
    plain = [s for s in said if 7 <= len(s.split()) <= 25 and s.endswith(".")]
    paragraphs = [text for text in texts if len(text.split()) <= 90]
    sources = [(ABOUT_A_WORD, words, 5), (ABOUT_A_SENTENCE, plain, 2), (ABOUT_A_PARAGRAPH, paragraphs, 3)]
    kinds = [(shapes, things) for shapes, things, share in sources for _ in range(share) if things]
    result = []
    for _ in range(count if kinds else 0):
        shapes, things = chance.choice(kinds)
        thing = chance.choice(things)
        result.append(chance.choice(shapes).format(thing[0].lower() + thing[1:] if re.match("An? ", thing) else thing))
    return result


def presentable(answer: str) -> str | None:
    """`answer` cut to whole sentences of 60 words at most; None where it repeats itself, or nothing whole is left."""
    lines = [line.strip() for line in answer.strip().splitlines() if line.strip()]
    parts = [(at, part) for at, line in enumerate(lines) for part in re.split(r"(?<=[a-z][.!?])\s+(?=[A-Z])", line)]
    kept: dict[int, list[str]] = {}
    total = 0
    for at, part in parts:
        total += len(part.split())
        if total > MAX_ANSWER_WORDS:
            break
        kept.setdefault(at, []).append(part)
    text = "\n".join(" ".join(part) for part in kept.values())
    words = re.findall(r"\w+", text.lower())
    runs = [tuple(words[i : i + 3]) for i in range(len(words) - 2)]
    repeats = len({part for _, part in parts}) < len(parts) or len(set(runs)) < 0.9 * len(runs)
    return None if repeats or not text else text


class Instructions:
    """Draws (instruction, answer); the same seed draws the same ones. `kept` are pairs of the first kind."""

    def __init__(self, passages: list[Passage], kept: list[tuple[str, str]], chance: random.Random):
        self.kept, self.chance = kept, chance
        self.short = [
            (passage, question, answer) for passage in passages for question, answer in passage.questions
            if passage.source != "text" and 2 < len(answer) < 50 and answer in passage.text and answer.lower() != "yes"
        ]  # fmt: skip

    def draw(self) -> tuple[str, str]:
        return self.chance.choice(self.kept) if self.kept and self.chance.random() < 0.5 else self.imitated()

    def imitated(self) -> tuple[str, str]:
        """Two or three questions with their sentence and an answer in one form, then one without its answer."""
        chance = self.chance
        form, (text, ask, reply) = chance.choice(FORMS), chance.choice(LABELS)
        shown = chance.choices(self.short, k=chance.choice([3, 4]))
        blocks = []
        for passage, question, answer in shown:
            about = next(s for s in [*sentences(passage.text), passage.text] if answer in s)
            label = f"{text}: " if text else ""
            blocks.append((f"{label}{about}\n{ask}: {question}\n{reply}:", form(answer)))
        worked = "\n\n".join(f"{block} {answer}" for block, answer in blocks[:-1])
        return f"{chance.choice(LEADS)}{worked}\n\n{blocks[-1][0]}", blocks[-1][1]
