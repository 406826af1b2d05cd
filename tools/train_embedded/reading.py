"""Reading material for the language model: passages of about 120 words, each with the questions it answers.

Reads JSON Lines (`question`, `context`, `answers`) and plain technical text, and cuts both into the size of passage that the
course retrieves. Knows nothing of tokens or tensors.
"""

import glob
import gzip
import json
import random
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from tools.train_embedded.technical import asked_of, plain_paragraphs

SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[A-Z0-9\"'(\[])|\n+")
TLDR_SHARE = 0.1  # 6,669 of the 8,161 texts are two-line command pages
CAP_PER_PASSAGE = {"qamr": 6, "policyqa": 2, "friendsqa": 4}  # 34 k questions over 978 sentences: a few of each are enough
FACTOID = re.compile(r"^(who|when|where|what year|how (many|much|long|old|far|often|tall|big))\b", re.I)


@dataclass
class Passage:
    text: str
    source: str
    questions: list[tuple[str, str]] = field(default_factory=list)
    unanswered: list[str] = field(default_factory=list)  # questions that people asked of this text, and that it does not answer
    made: list[tuple[str, str]] = field(default_factory=list)  # questions that a model made, and their answers


def read_rows(pattern: str) -> list[dict]:
    """All rows of the gzipped JSON Lines files that match `pattern`."""
    return [json.loads(line) for path in sorted(glob.glob(pattern)) for line in gzip.open(path, "rt", encoding="utf-8")]


def sentences(text: str) -> list[str]:
    """The sentences of `text`, whitespace normalised, none empty."""
    return [" ".join(s.split()) for s in SENTENCE_END.split(text) if s and s.strip()]


def chunk(text: str, max_words: int = 125) -> list[str]:
    """Pieces of at most about `max_words` words, cut at sentence borders; an over-long sentence is cut at a word."""
    pieces: list[str] = []
    current: list[str] = []
    for sentence in sentences(text):
        words = sentence.split()
        if current and len(current) + len(words) > max_words:
            pieces.append(" ".join(current))
            current = []
        current += words
        while len(current) > 1.5 * max_words:
            pieces.append(" ".join(current[:max_words]))
            current = current[max_words:]
    if current:
        pieces.append(" ".join(current))
    return pieces


def supporting_sentence(passage: str, answer: str) -> str | None:
    """The sentence of `passage` that contains `answer`, if there is one."""
    return next((s for s in sentences(passage) if answer in s), None)


def qa_passages(folder: Path, seed: int = 0) -> list[Passage]:
    """Passages of `qa/train`, each with the questions whose answer stands in it.

    A long context becomes several passages; a question goes to the one that contains its best answer. Yes/no questions (boolq)
    and free-form answers stay only where the whole context is one passage. "How" and "why" questions get the supporting
    sentence in place of a short span one time in four, because that is what readers of a handbook expect.
    """
    chance = random.Random(seed)
    by_context: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for row in read_rows(str(folder / "qa/train/*.jsonl.gz")):
        answer = " ".join(row["answers"][0].split()) if row["answers"] else ""
        if answer and len(answer.split()) <= 45 and row["source"] != "narrativeqa_flan":
            by_context[row["context"], row["source"]].append((" ".join(row["question"].split()), answer))
    result: list[Passage] = []
    for (context, source), questions in by_context.items():
        pieces = [Passage(text, source) for text in chunk(context)]
        chance.shuffle(questions)
        for question, answer in questions[: CAP_PER_PASSAGE.get(source, 99)]:
            home = next((p for p in pieces if answer in p.text), pieces[0] if len(pieces) == 1 else None)
            if home is None:
                continue
            if re.match(r"(why|how (?!many|much|long|old|far|often|tall))", question.lower()) and chance.random() < 0.25:
                answer = supporting_sentence(home.text, answer) or answer
            home.questions.append((question, answer))
        for piece in pieces:
            piece.questions += asked_of(sentences(piece.text))[:1]
        result += pieces
    return result


def sentence_passages(folder: Path) -> list[Passage]:
    """Passages of WikiQA (Yang et al., 2015): the sentences that annotators judged for a question, joined.

    Where one answers, it is the answer to a what-is, how or why question; where none does, the question is unanswered.
    """
    judged: dict[str, list[dict]] = defaultdict(list)
    for row in read_rows(str(folder / "rerank/wikiqa_*.jsonl.gz")):
        judged[row["question"]].append(row | {"passage": re.sub(r" ([.,;:?!%)\]]|'s\b|n't\b)|([(\[]) ", r"\1\2", row["passage"])})
    result = []
    for question, rows in judged.items():
        asked = re.sub(r" \?$", "?", question)
        right = [row["passage"] for row in rows if row["label"]]
        pieces = [Passage(text, "wikiqa") for text in chunk(" ".join(row["passage"] for row in rows))]
        if not right:
            pieces[0].unanswered.append(asked)
        elif not FACTOID.match(asked) and (home := next((p for p in pieces if right[0] in p.text), None)):
            home.questions.append((asked, right[0]))
        result += pieces
    return result


def text_passages(folder: Path, seed: int = 0) -> list[Passage]:
    """Passages of the technical texts: their prose only, short command pages thinned out."""
    chance = random.Random(seed)
    result = []
    for path in sorted(glob.glob(str(folder / "text/*.jsonl.gz"))):
        for row in read_rows(path):
            if "tldr" in path and chance.random() > TLDR_SHARE:
                continue
            prose = "\n".join(plain_paragraphs(row["text"]))
            result += [Passage(text, "text", asked_of(sentences(text))) for text in chunk(prose) if len(text.split()) >= 25]
    return result
