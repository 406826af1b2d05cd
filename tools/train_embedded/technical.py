"""Technical texts as reading material: plain paragraphs, and questions made from what single sentences say.

Handbooks are asked "What is X?", "What does X store?", "Why is X slow?", "How do I do X?". Such questions are made from sentences of just
these shapes, and the sentence is the answer. Knows markup and English word order; knows nothing of files, tokens or tensors.
"""

import random
import re
from collections.abc import Iterator

FENCE = re.compile(r"^[ \t]*(```|~~~).*?^[ \t]*\1[^\n]*$", re.MULTILINE | re.DOTALL)
TAG = re.compile(r"</?[A-Za-z!][^<>\n]{0,300}>|\[\[[^\]\n]*\]\]|:label:\S+|:\w+:(?=`)")
LINK = re.compile(r"\[([^\]\n]+)\](?:\([^)\n]*\)|\[[^\]\n]*\])|`+([^`<\n]+?)(?: <[^>\n]*>)?`+_*")
MARK = re.compile(r"\*\*|__|\\|(?<![\w*])\*(?=\w)|(?<=[\w.,])\*(?![\w*])|(?<!\w)_(?=\w)|(?<=\w)_(?!\w)")
STARTS_A_LINE = re.compile(r"\s*(?:[-*+•]|\d+[.)]|#{1,6}|>|\|)\s")
NOT_PROSE = re.compile(r"^(?: {4}|\t|\.\. |:\w|\||>>>|\$ |[=~\-^\"+#*_]{3,}|!\[|import |@)")

NOUN = r"((?:(?:An?|The) )?[A-Za-z][\w\-]*(?: \w[\w\-]*){0,3}?)"
ASIDE = (  # "LoRA (low-rank adaptation) is a ...", "NF4, short for 4-bit NormalFloat, is a ..."
    r"(?: \((?!born )(?P<bracketed>[^()]{2,60})\)"
    r"|, (?:(?:also|often|sometimes) (?:known as|called|abbreviated(?: as| to)?)|short for|or|which stands for) "
    r"(?P<other>[^,;:()]{2,60}),)?"
)
DEFINITION = re.compile(rf"^{NOUN}{ASIDE} (?P<verb>is|are) (?:an?|the|one of) ")
PURPOSE = re.compile(
    rf"^{NOUN}{ASIDE} (?P<verb>is|are) (?:(?:mainly|mostly|often|commonly|usually) )?(?:used|useful|meant|intended|designed) (?:to|for|as) "
)
REASON = re.compile(
    rf"^{NOUN} (is|are|was|were|can|cannot|could|should|must|will|would|does|do|did|has|have) ([^,;:()]+?),? "
    r"(?:because|(?<=, )since|so that) (?!of )"
)
HOW = re.compile(r"^To ([a-z]+ [^,;:()]{6,60}), (?:you|we|use|call|add|run|set|pass|write|create|just|simply|first) ?")
VERBS = (
    "add allow apply avoid check choose collect combine compare compute contain control convert copy create declare "
    "define delete describe determine divide enable ensure estimate evaluate execute expect extend extract fill "
    "generate guarantee handle hide hold implement include increase indicate keep learn limit load manage map mask "
    "match maximize measure merge minimize modify need normalize offer parse perform permit predict prevent produce "
    "project protect provide read receive reduce remove replace represent require return rotate sample save scale "
    "search select send share show simplify solve sort specify split store support take track train transform update "
    "use validate verify write yield"
)
BASE_OF = {  # the form after a singular subject: "copies" is of "copy"
    verb[:-1] + "ies" if re.search("[^aeiou]y$", verb) else verb + ("es" if re.search("(ch|sh|s|x)$", verb) else "s"): verb
    for verb in VERBS.split()
}
ACTION = re.compile(rf"^{NOUN}{ASIDE} (?P<verb>{'|'.join(BASE_OF)}) [A-Za-z\"'\d(]")
NOT_A_SUBJECT = re.compile(
    r"\b(this|that|it|there|these|those|here|which|what|following|he|she|they|we|you|i|if|when|where|while|as|to|for|in|on|at|with|by|from|"
    r"and|or|but|not|also|so|then|thus|however|example|note|first|second|one|who|such|same|other|another|each|every|any|both|our|your|their|"
    r"its|his|her|section|chapter|figure|table|listing|rfc|author|authors|pep|proposal|document|reason|problem|idea|result|goal|point|default|only|"
    r"below|above|former|latter|multiple|because|whether|once|since|too|all|more|most|currently|already|often|\w+ly)\b", re.I
)  # fmt: skip


def plain_paragraphs(markup: str) -> Iterator[str]:
    """Yields the prose of Markdown or reStructuredText, a paragraph in one line each, without code, tables, headings or links' targets."""
    for block in re.split(r"\n\s*\n", FENCE.sub("\n\n", markup)):
        lines: list[str] = []
        for line in block.splitlines():
            if NOT_PROSE.match(line) or not line.strip():
                continue
            if not lines or STARTS_A_LINE.match(line):
                lines.append("")
            lines[-1] += " " + line.strip()
        for line in lines:
            plain = MARK.sub("", LINK.sub(lambda m: m[1] or m[2], TAG.sub(" ", line)))
            plain = " ".join(re.sub(r"^\s*(?:[-*+•>|]|\d+[.)])\s+", "", plain).split())
            if not plain.startswith("#") and len(plain.split()) >= 5:
                yield plain


def asked_of(passage: list[str]) -> list[tuple[str, str]]:
    """(question, sentence) for each sentence of `passage` whose shape tells what a reader would ask for it.

    Of two sentences that answer one question the first does: a definition, and not what is added to it later.
    """
    first: dict[str, str] = {}
    for sentence in passage:
        for question in questions_about(sentence):
            first.setdefault(question, sentence)
    return list(first.items())


def questions_about(sentence: str) -> list[str]:
    """The questions that `sentence` answers by its shape, as a reader would ask them: one, two where a thing has two names, or none."""
    if not (7 <= len(sentence.split()) <= 40 and sentence.endswith(".") and sentence[0].isupper()):
        return []
    if found := HOW.match(sentence):
        return [f"How do I {found[1].replace('your', 'my')}?"] if not re.search(r"\b(this|that|it|these|them)\b", found[1]) else []
    for shape, ask in SHAPES:
        found = shape.match(sentence)
        if found and _can_be_asked_for(found[1]):
            names = [name for name in (_named(found[1]), _other_name(found)) if name]
            if asked := [question for name in names if (question := ask(found, name))]:  # else another shape may fit
                return asked
    return []


def named_twice(question: str, sentence: str, chance: random.Random, others: list[str]) -> tuple[str, str] | None:
    """`question` and the `sentence` that answers it, once the sentence gives its subject a second name, and perhaps asked by that.

    "A page map is a list ..." becomes "A page map (PM) is a list ...", asked for as PM half of the time; a subject of one word gets one
    of `others` as its other name. Names in an aside are rare in texts and common in handbooks. None where the sentence has another shape.
    """
    for shape, ask in SHAPES:
        found = shape.match(sentence)
        if not found or shape is REASON or found["bracketed"] or found["other"] or ask(found, _named(found[1])) != question:
            continue
        words = [word for word in found[1].split() if word not in ("A", "An", "The")]
        if len(words) == 1 and not others:
            return None
        initials = "".join(word[0].upper() for word in words) + ("s" if found["verb"] == "are" else "")
        other = initials if len(words) > 1 else chance.choice(others)
        aside = f" ({other})" if len(words) > 1 else f", {chance.choice(['short for', 'also known as', 'also called', 'or'])} {other},"
        by_other = ask(found, other) if len(words) > 1 and chance.random() < 0.5 else None
        return by_other or question, found[1] + aside + sentence[len(found[1]) :]
    return None


def _can_be_asked_for(subject: str) -> bool:
    """Whether `subject` names something, and nothing twice, as a title does that its text repeats."""
    words = subject.split()
    return not NOT_A_SUBJECT.search(subject) and not (len(words) % 2 == 0 and words[: len(words) // 2] == words[len(words) // 2 :])


def _other_name(found: re.Match[str]) -> str | None:
    """The short name that an aside adds, as it is asked for: "a KV cache" of "The key-value cache (KV cache) is"."""
    aside = found.groupdict()
    name = (aside.get("bracketed") or aside.get("other") or "").removeprefix("the ")
    if not re.fullmatch(r"[A-Z][\w\-]*[A-Z\d][\w\-]*(?: [\w\-]+){0,2}", name):
        return None
    return f"a {name}" if re.search(" [a-z]+$", name) and aside["verb"] != "are" else name


def _reason(found: re.Match[str], name: str) -> str | None:
    """The question after the reason that a sentence gives; None where it points to other sentences."""
    rest = found[3]
    if re.search(r"\b(this|that|it|these|those|they|them|also|therefore|thus|not)\b", rest) or len(rest.split()) > 12:
        return None
    if found[2] == "cannot":
        return f"Why can {name} not {rest}?"
    return f"Why {found[2]} {name} {rest}?"


def _named(subject: str) -> str:
    """The subject as it stands within a sentence: its article loses the capital."""
    return re.sub("^(?:An?|The) ", lambda article: article[0].lower(), subject)


SHAPES = [
    (PURPOSE, lambda found, name: f"What {found['verb']} {name} used for?"),
    (REASON, _reason),
    (DEFINITION, lambda found, name: f"What {found['verb']} {name.removeprefix('the ')}?"),
    (ACTION, lambda found, name: f"What does {name} {BASE_OF[found['verb']]}?"),
]
