"""Questions for the reranker, in pools: passages that could be retrieved together, and queries with the passage that answers each.

Reads questions with contexts, judged sentences and technical texts (JSON Lines), and makes queries where a text has none: headings,
sentences taken out of a passage, keywords, "how do I …" from "to …, do …", and what a function or type in a code block is for.
Knows nothing of tokens or tensors.
"""

import glob
import random
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from langchain_core.documents import Document
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from tools.train_embedded.reading import read_rows, sentences
from tools.train_embedded.technical import asked_of
from utils.splitting import split_documents

STOP_WORDS = ENGLISH_STOP_WORDS | {"does", "did", "doing", "s"}
POOLS = {  # share of the training's lists; the sources of its questions. Not PolicyQA: most of its passages answer most of its questions
    "squad": (0.2, ["squad_dutest", "squad_flan", "squad_routerlens", "adversarialqa_t0", "quoref_t0"]),
    "reviews": (0.08, ["squadshifts_amazon", "squadshifts_reddit"]),
    "mixed": (0.12, ["pubmedqa", "boolq", "selqa", "tatqa_text", "hotpot_sample", "ropes_t0"]),
}
TEXT_POOLS = {
    "peps": (0.08, ["python__peps"]),
    "books": (0.07, ["d2l-ai__d2l-en", "huggingface__course"]),
    "rust": (0.08, ["rust-lang__book", "rust-lang__reference"]),
    "docs": (0.09, ["tiangolo__fastapi", "huggingface__datasets", "python__devguide", "huggingface__deep-rl-class", "mdn__learning-area",
                    "google__eng-practices", "donnemartin__system-design-primer"]),
}  # fmt: skip
SENTENCES, CODE, COMMANDS = 0.1, 0.1, 0.04
PASSAGE_TOKENS = [64, 128, 256, 448]  # a document is cut into passages of one of these sizes, as corpora are
PIECES = 20  # most passages of one document
RST_HEADING = re.compile(r"^(\S[^\n]*)\n([=\-~^\"#*])\2{2,}[ \t]*$", re.MULTILINE)
FENCED = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
DEFINED = re.compile(r"\b(fn|struct|enum|trait|def|class)\s+([A-Za-z_]\w{3,})")
HOW_TO = re.compile(
    r"(?:(?:^|[.!?]\s)To|\b(?:used?|us(?:e|ing) [^.,;]{2,40}|you can|allows? (?:you|us)|(?:want|need) to|possible) to)"
    r" ([a-z]+ [^.,;:()\n]{10,80})(?=[.,;:()])"
)
ASKED_OF_CODE = {
    "fn": [
        "What does the {name} function do?",
        "What does {name} return?",
        "How is {name} implemented?",
        "Which parameters does {name} take?",
    ],
    "struct": ["What is the purpose of the {name} struct?", "Which fields does {name} have?", "How do you create a new {name}?"],
    "enum": ["What are the possible values of the {name} enum?", "What is {name} for?"],
    "trait": ["What does the {name} trait require?", "Which methods does {name} define?"],
    "class": ["What is the purpose of the {name} class?", "How do I create an instance of {name}?", "What does {name} do?"],
}
ASKED_OF_CODE["def"] = ASKED_OF_CODE["fn"]


@dataclass
class Query:
    """A query and the passages of its pool that answer it: `gold`, and others, never used as negatives."""

    text: str
    gold: int
    also: set[int] = field(default_factory=set)


@dataclass
class Pool:
    """Passages and queries about them. `share` of the training's lists are drawn here."""

    name: str
    share: float
    passages: list[str]
    queries: list[Query]


def keywords(text: str, chance: random.Random, most: int = 6) -> str:
    """`text` as people type it into a search box: lower case, no stop words, at most `most` words, in any order half the time."""
    words = [word for word in re.findall(r"[\w\-.:]*\w", re.sub(r"['’]s\b", "", text.lower())) if word not in STOP_WORDS]
    kept = sorted(chance.sample(range(len(words)), min(most, len(words))))
    if chance.random() < 0.5:
        chance.shuffle(kept)
    return " ".join(words[place] for place in kept)


def question_pool(folder: Path, name: str, size: int, chance: random.Random) -> Pool:
    """Contexts of `qa/train` with up to two of their questions each. Contexts keep their order, so that neighbours are of one article."""
    share, sources = POOLS[name]
    by_context: dict[str, list[dict]] = defaultdict(list)
    for source in sources:
        rows = [row for row in read_rows(str(folder / f"qa/train/{source}.jsonl.gz")) if row["answers"] and len(row["context"]) < 4000]
        contexts = list(dict.fromkeys(row["context"] for row in rows))
        start = chance.randrange(max(1, len(contexts) - size // len(sources)))
        chosen = set(contexts[start : start + -(-size // len(sources))])
        for row in rows:
            if row["context"] in chosen:
                by_context[row["context"]].append(row)
    passages, queries = list(by_context), []
    for gold, rows in enumerate(by_context.values()):
        for row in chance.sample(rows, min(2, len(rows))):
            answer = row["answers"][0].lower()
            also = {place for place, text in enumerate(passages) if len(answer) > 3 and answer in text.lower()} - {gold}
            text = " ".join(row["question"].split())
            queries.append(Query(keywords(text, chance, 9) if chance.random() < 0.15 else text, gold, also))
    return Pool(name, share, passages, queries)


def sentence_pool(folder: Path, size: int, chance: random.Random) -> Pool:
    """Single sentences: those that annotators judged for WikiQA and SelQA questions, and SQuAD's questions with their sentence."""
    rows = read_rows(str(folder / "rerank/*.jsonl.gz"))
    by_question: dict[str, list[dict]] = defaultdict(list)
    for row in rows:
        by_question[row["question"]].append(row)
    answered = [group for group in by_question.values() if any(row.get("label", 1) for row in group)]
    passages: dict[str, int] = {}
    queries = []
    for group in chance.sample(answered, len(answered)):
        if len(passages) > size:
            break
        places = [passages.setdefault(" ".join(row["passage"].split()), len(passages)) for row in group[:12]]
        right = {place for place, row in zip(places, group) if row.get("label", 1)}
        queries += [Query(re.sub(r" \?$", "?", group[0]["question"]), gold, right - {gold}) for gold in sorted(right)[:1]]
    return Pool("sentences", SENTENCES, list(passages), queries)


def documents(folder: Path, names: Iterable[str], chance: random.Random) -> list[str]:
    """Technical documents in random order, as markdown, without the invisible parts."""
    texts = []
    for name in names:
        for row in read_rows(str(folder / f"text/{name}.jsonl.gz")):
            marked = RST_HEADING.sub(lambda m: ("# " if m[2] in "=#*" else "## ") + m[1], row["text"])
            texts.append(re.sub(r"<!--.*?-->|\[\[[^\]]*\]\]|^<[A-Z][^>]*/>$", "", marked, flags=re.S | re.M))
    chance.shuffle(texts)
    return texts


def text_pool(folder: Path, name: str, size: int, chance: random.Random) -> Pool:
    """Passages of technical documents with queries made from them. Whole documents, so that a passage's neighbours are there too."""
    share, sources = TEXT_POOLS[name]
    pool = Pool(name, share, [], [])
    for text in documents(folder, sources, chance):
        if len(pool.passages) >= size:
            break
        pieces = split_documents([Document(page_content=text[:40_000])], max_tokens=chance.choice(PASSAGE_TOKENS))
        with_headings, sections = chance.random() < 0.3, defaultdict[str, set[int]](set)
        first = chance.randrange(max(1, len(pieces) - PIECES))
        for piece in pieces[first : first + PIECES]:
            headings = piece.metadata.get("headings", "")
            plain = piece.page_content if with_headings else re.sub(r"^#+ .*\n?", "", piece.page_content, flags=re.M).strip()
            if len(plain.split()) >= 25:
                sections[headings].add(len(pool.passages))  # pieces of one section share its heading: none is a negative of the others
                add_passage(re.sub(r"(?<=[\w,;)`*])\n(?=[\w`(*\"])", " ", plain), pool, chance)
                if headings and not with_headings and chance.random() < 0.6:
                    pool.queries.append(Query(heading_query(headings.split(" > "), chance), len(pool.passages) - 1, sections[headings]))
    return pool


def add_passage(text: str, pool: Pool, chance: random.Random) -> None:
    """Adds the passage, half the time without the sentence that becomes its query, and up to one query of another kind."""
    gold, made = len(pool.passages), []
    told = [s for s in sentences(text) if 6 <= len(s.split()) <= 28 and s[0].isalpha() and s in text]
    if len(told) > 2 and chance.random() < 0.5:
        taken = told[0] if chance.random() < 0.5 else chance.choice(told)
        text = text.replace(taken, "").strip()
        pool.queries.append(Query(taken if chance.random() < 0.6 else keywords(taken, chance), gold))
    pool.passages.append(text)
    made += [f"How {chance.choice(['do I', 'can I', 'to', 'do you'])} {goal.strip()}?" for goal in HOW_TO.findall(text)[:1]]
    made += [question for question, _ in asked_of(sentences(text))[:1]]
    if told and not made and chance.random() < 0.4:
        made.append(keywords(chance.choice(told), chance))
    pool.queries += [Query(one, gold) for one in made[:1] if one.strip()]


def heading_query(path: list[str], chance: random.Random) -> str:
    """The heading as a query: alone, with its document's title, or in a question."""
    last = re.sub(r"[`*]|^[\d.]+ ", "", path[-1]).strip()
    full = last if len(path) == 1 else f"{path[0]} {last}"
    return chance.choice([last, full, full.lower(), f"What about {last}?", f"How does {last} work?", f"explain {full.lower()}"])


def code_pool(folder: Path, size: int, chance: random.Random) -> Pool:
    """Code blocks of at most 30 lines, asked for by what they define or by the sentence before them."""
    passages: list[str] = []
    queries: list[Query] = []
    names = [name for _, sources in TEXT_POOLS.values() for name in sources if not name.startswith("python__peps")]
    for text in documents(folder, names, chance):
        for match in list(FENCED.finditer(text))[:12]:
            lines = match[1].strip("\n").splitlines()
            if len(lines) < 3 or len(passages) >= size:
                continue
            code = "\n".join(lines[:30])
            queries += [Query(asked, len(passages)) for asked in asked_of_code(code, text[: match.start()], chance)]
            passages.append(code)
    for query in queries:  # other blocks that define the same name answer too
        named = re.findall(r"[A-Za-z_]\w{3,}", query.text)
        defined = [place for place, code in enumerate(passages) if any(name in named for _, name in DEFINED.findall(code))]
        query.also = set(defined) - {query.gold}
    return Pool("code", CODE, passages, queries)


def asked_of_code(code: str, before: str, chance: random.Random) -> list[str]:
    """Up to two queries: about one of the names that `code` defines, and the end of the prose before it."""
    asked = []
    found = [(kind, name) for kind, name in DEFINED.findall(code) if name not in ("main", "test", "__init__")]
    if found:
        kind, name = chance.choice(found)
        spoken = " ".join(re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+", name)).lower()
        asked.append(chance.choice(ASKED_OF_CODE[kind]).format(name=name if chance.random() < 0.8 else spoken))
    told = sentences(before[-600:])
    if told and 6 <= len(told[-1].split()) <= 40:
        asked.append(told[-1].rstrip(":") if chance.random() < 0.6 else keywords(told[-1], chance))
    return asked


def command_pool(folder: Path, size: int, chance: random.Random) -> Pool:
    """tldr's pages; the query is what one of the commands does, which is then cut from the page."""
    passages: list[str] = []
    queries: list[Query] = []
    rows = read_rows(str(folder / "text/tldr-pages__tldr.jsonl.gz"))
    for row in chance.sample(rows, min(size, len(rows))):
        tasks = re.findall(r"^- (.+):$", row["text"], re.M)
        if tasks:
            task = chance.choice(tasks)
            queries.append(Query(chance.choice([task, f"How do I {task[0].lower()}{task[1:]}?", keywords(task, chance)]), len(passages)))
            passages.append(row["text"].replace(f"- {task}:\n", "") if chance.random() < 0.5 else row["text"])
    return Pool("commands", COMMANDS, passages, queries)


def pools(folder: Path, size: int = 600, seed: int = 0) -> list[Pool]:
    """All pools for which `folder` has data, of about `size` passages each."""
    chance = random.Random(seed)
    made = [question_pool(folder, name, size, chance) for name in POOLS]
    made += [text_pool(folder, name, size, chance) for name in TEXT_POOLS]
    made += [code_pool(folder, size, chance)]
    if glob.glob(str(folder / "rerank/*.jsonl.gz")):
        made.append(sentence_pool(folder, 2 * size, chance))
    if glob.glob(str(folder / "text/tldr*.jsonl.gz")):
        made.append(command_pool(folder, size, chance))
    return [pool for pool in made if len(pool.passages) > 1 and pool.queries]
