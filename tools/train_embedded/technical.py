"""Technical texts as reading material: plain paragraphs, and questions made from what single sentences say.

Handbooks are asked "What is X?", "What does X store?", "Why is X slow?", "How do I do X?". Such questions are made from sentences of just
these shapes, and the sentence is the answer. Knows markup and English word order; knows nothing of files, tokens or tensors.
"""

import re
from collections.abc import Iterator

FENCE = re.compile(r"^[ \t]*(```|~~~).*?^[ \t]*\1[^\n]*$", re.MULTILINE | re.DOTALL)
TAG = re.compile(r"</?[A-Za-z!][^<>\n]{0,300}>|\[\[[^\]\n]*\]\]|:label:\S+|:\w+:(?=`)")
LINK = re.compile(r"\[([^\]\n]+)\](?:\([^)\n]*\)|\[[^\]\n]*\])|`+([^`<\n]+?)(?: <[^>\n]*>)?`+_*")
MARK = re.compile(r"\*\*|__|\\|(?<![\w*])\*(?=\w)|(?<=[\w.,])\*(?![\w*])|(?<!\w)_(?=\w)|(?<=\w)_(?!\w)")
STARTS_A_LINE = re.compile(r"\s*(?:[-*+•]|\d+[.)]|#{1,6}|>|\|)\s")
NOT_PROSE = re.compile(r"^(?: {4}|\t|\.\. |:\w|\||>>>|\$ |[=~\-^\"+#*_]{3,}|!\[|import |@)")

NOUN = r"((?:(?:An?|The) )?[A-Za-z][\w\-]*(?: [\w\-]+){0,3}?)"
DEFINITION = re.compile(rf"^{NOUN} (is|are) (?:an?|the|one of) ")
PURPOSE = re.compile(
    rf"^{NOUN} (is|are) (?:(?:mainly|mostly|often|commonly|usually) )?(?:used|useful|meant|intended|designed) (?:to|for|as) "
)
REASON = re.compile(
    rf"^{NOUN} (is|are|was|were|can|cannot|could|should|must|will|would|does|do|did|has|have) ([^,;:()]+?),? "
    r"(?:because|since|so that) (?!of )"
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
ACTION = re.compile(rf"^{NOUN} ({'|'.join(BASE_OF)}) [A-Za-z\"'\d(]")
NOT_A_SUBJECT = re.compile(
    r"\b(this|that|it|there|these|those|here|which|what|following|he|she|they|we|you|i|if|when|where|while|as|to|for|in|on|at|with|by|from|"
    r"and|or|but|not|also|so|then|thus|however|example|note|first|second|one|who|such|same|other|another|each|every|any|both|our|your|their|"
    r"its|his|her|section|chapter|figure|table|listing|rfc|author|authors|pep|proposal|document|reason|problem|idea|result|goal|point|default|only|"
    r"below|above|former|latter|multiple|because|whether|once|currently|already|often|\w+ly)\b", re.I
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


def questions_about(sentence: str) -> list[str]:
    """The questions that `sentence` answers by its shape: at most one, as a reader would ask it, or none."""
    if not (7 <= len(sentence.split()) <= 40 and sentence.endswith(".") and sentence[0].isupper()):
        return []
    if found := HOW.match(sentence):
        return [f"How do I {found[1].replace('your', 'my')}?"] if not re.search(r"\b(this|that|it|these|them)\b", found[1]) else []
    for shape, ask in SHAPES:
        found = shape.match(sentence)
        if found and not NOT_A_SUBJECT.search(found[1]) and (question := ask(found)):
            return [question]
    return []


def _reason(found: re.Match[str]) -> str | None:
    """The question after the reason that a sentence gives; None where it points to other sentences."""
    rest = found[3]
    if re.search(r"\b(this|that|it|these|those|they|them|also|therefore|thus|not)\b", rest) or len(rest.split()) > 12:
        return None
    if found[2] == "cannot":
        return f"Why can {_named(found[1])} not {rest}?"
    return f"Why {found[2]} {_named(found[1])} {rest}?"


def _named(subject: str) -> str:
    """The subject as it stands within a sentence: its article loses the capital."""
    return re.sub("^(?:An?|The) ", lambda article: article[0].lower(), subject)


SHAPES = [
    (PURPOSE, lambda found: f"What {found[2]} {_named(found[1])} used for?"),
    (REASON, _reason),
    (DEFINITION, lambda found: f"What {found[2]} {_named(found[1].removeprefix('The '))}?"),
    (ACTION, lambda found: f"What does {_named(found[1])} {BASE_OF[found[2]]}?"),
]
