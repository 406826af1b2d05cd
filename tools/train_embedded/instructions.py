"""Short instructions for the language model, so that learning to read passages does not unlearn the rest of a chat.

Three kinds. *Kept*: what the base itself answers to an everyday instruction about technical words, sentences and paragraphs.
*Imitated*: two or three worked examples in some form and one more passage and question, to be answered in just that form. *Rewritten*:
a follow-up whose "it" stands for a name of the question before, to be made whole, in the words of `utils.conversation`. None shows
numbered passages, so no answer ends in a citation. Knows passages and words; the base's answers come from whoever has a model.
"""

import json
import random
import re
from collections.abc import Callable, Iterator

from langchain_core.messages import convert_to_openai_messages

from tools.train_embedded.examples import proper_names
from tools.train_embedded.reading import Passage, sentences
from tools.train_embedded.technical import DEFINITION, NOT_A_SUBJECT
from utils.conversation import REWRITE_PROMPT, Turn, as_messages

Chat = list[dict[str, str]]
MAX_ANSWER_WORDS = 60
KEPT, REWRITTEN = 0.45, 0.15  # shares; the others are imitated
WHOLE = 0.25  # share of the follow-ups that name what they ask about, and are to stay as they are
POINTERS = {"it": "its", "they": "their", "he": "his", "she": "her"}
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

        self.pairs = [pair for passage in passages if passage.source != "text" for pair in follow_ups(passage)]

    def draw(self) -> tuple[Chat, str]:
        """A chat that ends in an instruction, and what to reply."""
        kind = self.chance.random()
        if self.pairs and kind > 1 - REWRITTEN:
            return self.rewritten()
        instruction, answer = self.chance.choice(self.kept) if self.kept and kind < KEPT else self.imitated()
        return [{"role": "user", "content": instruction}], answer

    def rewritten(self) -> tuple[Chat, str]:
        """A question with its answer, and one more about the same name, which a pointer stands for: the reply says the name."""
        before, name, whole = self.chance.choice(self.pairs)
        asked = whole if self.chance.random() < WHOLE else pointing(whole, name, self.chance)
        messages = REWRITE_PROMPT.format_messages(history=as_messages([before]), question=asked)
        return convert_to_openai_messages(messages), whole  # type: ignore[return-value]

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


def follow_ups(passage: Passage) -> Iterator[tuple[Turn, str, str]]:
    """Yields (first question with its answer, name, second question), where just one name stands in both questions of a passage."""
    for (first, answer), (second, _) in zip(passage.questions, passage.questions[1:]):
        shared = set(proper_names(first)) & set(proper_names(second))
        if len(shared) == 1 and second.count(name := shared.pop()) == 1 and len(second.replace(name, "").split()) > 3:
            yield Turn(first, first, answer), name, second


def pointing(question: str, name: str, chance: random.Random) -> str:
    """`question` with "it" or the like for `name`, "its" for "name's"; people and plurals cannot be told by their names, so by chance."""
    plural = re.search(rf"\b(?:are|were|do|have) (?:the )?{re.escape(name)}", question)
    pointer = "they" if plural else chance.choice(["it", "it", "he", "she"])
    whose = rf"\b(?:the )?{re.escape(name)}"
    question = re.sub(rf"{whose}['’]s?(?!\w)", POINTERS[pointer], question)
    return re.sub(rf"{whose}(?!\w)", pointer, question)
