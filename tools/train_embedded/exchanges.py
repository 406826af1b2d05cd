"""Words exchanged in a question, in its passage, or in both.

A question and the passage that answers it agree on names, numbers and words. Exchange one of these in the question alone, or in the passage
alone, and nothing answers any more; exchange it in both and the answer stands again. So an odd word gives nothing away: only reading both
does. Knows words; knows nothing of where passages come from, of tokens or tensors.
"""

import random
import re

from tools.train_embedded.reading import sentences

NAME_OR_NUMBER = re.compile(r"(?<=\s)(?:[A-Z][\w\-]+(?: [A-Z][\w\-]+)*|\d[\d.,]*\d(?!\w)|\d(?!\w))")
OPPOSITES = (
    "first last, largest smallest, biggest smallest, highest lowest, most least, more less, before after, north south, northern "
    "southern, east west, eastern western, oldest newest, early late, earliest latest, began ended, begin end, start stop, started "
    "stopped, increase decrease, increased decreased, won lost, win lose, best worst, good bad, major minor, born buried, founded "
    "dissolved, opened closed, father mother, son daughter, king queen, men women, male female, like dislike, can cannot, longest "
    "shortest, allowed forbidden, includes excludes, support oppose, buy sell, positive negative, old new, above below, accept "
    "reject, accepted rejected, active inactive, added removed, always never, arrive leave, arrived left, attack defend, attacked "
    "defended, beginning end, better worse, bought sold, brother sister, built destroyed, cause prevent, causes prevents, cold hot, "
    "common rare, complex simple, create destroy, created destroyed, day night, death birth, died lived, direct indirect, dry wet, "
    "easy difficult, enemy ally, entered left, external internal, failed succeeded, faster slower, fewer more, follow precede, gained "
    "lost, greater smaller, greatest smallest, heavy light, high low, higher lower, horizontal vertical, import export, inside "
    "outside, joined left, large small, larger smaller, legal illegal, long short, longer shorter, majority minority, maximum "
    "minimum, modern ancient, natural artificial, near far, older younger, open closed, permanent temporary, poor rich, possible "
    "impossible, present absent, private public, raise lower, raised lowered, reduce increase, reduced increased, rural urban, same "
    "different, shallow deep, single multiple, strong weak, stronger weaker, supported opposed, teacher student, upper lower, victory "
    "defeat, warm cool, wife husband, young old, youngest oldest, winter summer"
)
OPPOSITE = {here: there for pair in OPPOSITES.split(", ") for here, there in (pair.split(), pair.split()[::-1])}
COMMON = set(  # words that stand for nothing of their own, and the months: none is taken for a name or exchanged for another
    "a about also an and another april are as at august away because been being between both but by called could december do does "
    "done during each even ever february for from have having he her here his how i if in into is it its itself january july june "
    "just kind known long made make many march may much must name named no not november october of oh on only or other our out over "
    "part said september she should so some such take than that the their them then there these they thing things this those through "
    "time to type under until up upon used using very was we well were what when where which while who whom whose why will with would "
    "yes you your".split()
)
NAME_WEIGHT, OPPOSITE_WEIGHT = 3, 2  # how much likelier a name or number, or a word that has an opposite, is chosen than another word
ONLY_HERE = 0.5  # share of the exchanged for something else that the passage tells of


def exchanged(text: str, one: str, other: str) -> str:
    """`text` with the word or name `one` as `other` wherever it stands, and the other way round; a capital that begins a sentence stays."""
    flags = re.IGNORECASE if one.islower() else re.NOFLAG
    table = {one: other, other: one}

    def put(found: re.Match[str]) -> str:
        word = found[0]
        new = table.get(word) or table.get(word.lower(), word)
        return new[0].upper() + new[1:] if one.islower() and word[0].isupper() else new

    return re.sub(rf"(?<!\w)(?:{re.escape(one)}|{re.escape(other)})(?!\w)", put, text, flags=flags)


def stands_in(word: str, text: str) -> bool:
    return bool(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE if word.islower() else re.NOFLAG))


def exchange(question: str, passage: str, answer: str, elsewhere: str, chance: random.Random) -> tuple[str, str] | None:
    """A name, number or word of `question`, and another of its kind, of `passage` or of the text `elsewhere`; None where none fits.

    Words come from the sentence with the answer; names, numbers and words with an opposite may stand in the question only. Neither of
    the two is part of the answer, so that exchanging them leaves it as it is.
    """
    about = next((s for s in sentences(passage) if answer in s), passage)
    here = [word for word in NAME_OR_NUMBER.findall(question) for _ in range(NAME_WEIGHT)]
    for word in re.findall(r"(?<![\w'-])[a-z]{2,}(?![\w'-])", question):
        if word in OPPOSITE:
            here += [word] * OPPOSITE_WEIGHT
        elif len(word) > 3 and word not in COMMON and stands_in(word, about):
            here.append(word)
    fit = [word for word in here if not stands_in(word, answer)]
    for old in [chance.choice(fit) for _ in range(3)] if fit else []:
        if old in OPPOSITE and chance.random() < 0.8:
            others = [OPPOSITE[old]]
        else:
            others = _like(old, passage if chance.random() < ONLY_HERE else elsewhere)
        taken = f"{question} {answer}"
        if others := [new for new in others if not stands_in(new, taken)]:
            return old, chance.choice(others)
    return None


def _like(old: str, text: str) -> list[str]:
    """What of `text` could stand where `old` stands: a name for a name, a number for a number, a word for a word of the same ending."""
    if not old.islower():
        found = NAME_OR_NUMBER.findall(text)
        return [new for new in found if new[0].isdigit() == old[0].isdigit() and new.split()[0].lower() not in COMMON]
    words = set(re.findall(r"(?<![\w'-])[a-z]{4,}(?![\w'-])", text)) - COMMON
    return sorted(new for new in words if _ending(new) == _ending(old) and new[:4] != old[:4])


def _ending(word: str) -> str:
    return "s" if word.endswith("s") and not word.endswith("ss") else word[-2:]
