"""The exercises of chapter 12: page-citation accuracy, a memory that fits its budget, and a vote that one liar cannot win."""

from __future__ import annotations

import math
from typing import Any

from utils.citations import ABSTENTION
from utils.exercises import Exercise

Pages = list[tuple[str, int]]


def check_page_accuracy(answer: Any) -> tuple[bool, str]:
    """A function (cited, gold), lists of (document, page) per question, that returns the share of cited answers that cite a gold page."""
    if not callable(answer):
        return False, "pass the function itself: check('12-easy', page_accuracy)."
    book, news = "handbook.pdf", "newsroom.pdf"
    cases: list[tuple[list[Pages], list[Pages]]] = [
        ([[(book, 12)], [(news, 3)]], [[(book, 12)], [(news, 4)]]),
        ([[(book, 12)], []], [[(book, 12)], [(news, 4)]]),
        ([[(news, 12)]], [[(book, 12)]]),
        ([[(book, 1), (book, 2)], [(news, 8)], [(news, 7)]], [[(book, 2)], [(news, 7), (news, 8)], [(news, 1)]]),
        ([[], []], [[(book, 1)], [(book, 2)]]),
    ]
    for cited, gold in cases:
        found, expected = answer([list(one) for one in cited], [list(one) for one in gold]), _page_accuracy(cited, gold)
        if found is None:
            return False, "the function returned None; it has to return a number."
        if not (math.isnan(expected) and math.isnan(float(found))) and not abs(float(found) - expected) < 1e-9:
            return False, _explain_accuracy(cited, gold, float(found), expected)
    return True, "refusals are left out, documents count as well as pages, and one right page of several is enough."


def _page_accuracy(cited: list[Pages], gold: list[Pages]) -> float:
    hits = [bool(set(c) & set(g)) for c, g in zip(cited, gold, strict=True) if c]
    return sum(hits) / len(hits) if hits else math.nan


def _explain_accuracy(cited: list[Pages], gold: list[Pages], found: float, expected: float) -> str:
    got = f"for citations {cited} and gold pages {gold} you return {found:.3g}, expected {expected:.3g}."
    if math.isnan(expected):
        return f"{got} Nothing is cited: there is no share to speak of; return float('nan')."
    if abs(found - expected * sum(map(bool, cited)) / len(cited)) < 1e-9:
        return f"{got} An answer without citations is a refusal: leave it out of the count."
    pages = [bool({p for _, p in c} & {p for _, p in g}) for c, g in zip(cited, gold) if c]
    if abs(found - sum(pages) / len(pages)) < 1e-9:
        return f"{got} Page 12 of another document is another page: compare the pairs."
    return f"{got} A citation is right if document and page are among the gold ones; one right one is enough."


def check_fit_memory(answer: Any) -> tuple[bool, str]:
    """A function (turns, budget, count) that returns the newest turns whose counts add up to at most the budget, oldest first."""
    if not callable(answer):
        return False, "pass the function itself: check('12-medium', fit_memory)."

    def words(turn: str) -> int:
        return len(turn.split())

    turns = ["What is NF4 ?", "And its block size ?", "Thanks", "Who wrote the paper on it, and in which year was that ?", "Where ?"]
    cases = [(turns, 100), (turns, 14), (turns, 15), (turns, 16), (turns, 13), (turns, 1), (turns, 0), ([], 10)]
    for given, budget in cases:
        found = answer(list(given), budget, words)
        if found is None:
            return False, "the function returned None; it has to return a list of turns."
        if problem := _memory_problem(list(found), given, budget):
            return False, f"with a budget of {budget} words: {problem}"
    return True, f"right for {len(cases)} budgets: the newest turns, in their order, and nothing where nothing fits."


def _memory_problem(found: list[str], turns: list[str], budget: int) -> str | None:
    """Why `found` is wrong; None when it is right."""
    expected: list[str] = []
    for turn in reversed(turns):
        if sum(len(one.split()) for one in [turn, *expected]) > budget:
            break
        expected.insert(0, turn)
    if found == expected:
        return None
    if found == expected[::-1]:
        return "the right turns, but in reverse: the oldest comes first."
    if sum(len(one.split()) for one in found) > budget:
        return f"your turns have {sum(len(one.split()) for one in found)} words."
    if found and found[-1] != turns[-1]:
        return "you start from the oldest turn; a follow-up leans on the newest ones."
    if len(found) > len(expected):
        return "a turn in between is missing: a memory with a hole misleads, so stop at the first turn that does not fit."
    return f"you keep {found}, expected {expected}."


def check_vote(answer: Any) -> tuple[bool, str]:
    """A function (answers, least) that returns the answer most passages gave on their own, or an abstention."""
    if not callable(answer):
        return False, "pass the function itself: check('12-hard', vote)."
    no = ABSTENTION
    cases = [
        (["408 metres", "412 elephants", "408 metres"], 2, "408 metres"),
        (["408 metres", "408 metres.", "The 408 Metres"], 3, "408 metres"),
        ([no, "64", no, "64", no], 2, "64"),
        (["Maud Perrilow", "Wilbur Crake"], 1, no),
        (["Maud Perrilow", "Wilbur Crake"], 2, no),
        (["GREEN MARBLE", no, no], 2, no),
        (["a", "b", "b", "c", "c"], 2, no),
        ([no, no], 1, no),
        ([], 1, no),
    ]
    for answers, least, expected in cases:
        found = answer(list(answers), least)
        if not isinstance(found, str):
            return False, f"the function returned {found!r}; it has to return a text."
        if _plain(found) != _plain(expected):
            return False, _explain_vote(answers, least, found, expected)
    return True, f"right on {len(cases)} votes: forms of one answer count together, refusals do not vote, a tie decides nothing."


def _plain(text: str) -> str:
    from utils.evaluation import normalize_answer

    return normalize_answer(text)


def _explain_vote(answers: list[str], least: int, found: str, expected: str) -> str:
    got = f"for {answers} with least={least} you return {found!r}, expected {expected!r}."
    votes = [_plain(one) for one in answers if one != ABSTENTION]
    if expected == ABSTENTION and _plain(found) in votes:
        count = votes.count(_plain(found))
        why = f"It has {count} of the {least} votes asked for" if count < least else "Another answer has as many votes"
        return f"{got} {why}: abstain."
    if found == ABSTENTION and ABSTENTION in answers:
        return f"{got} A passage that does not say has no vote: leave its refusal out."
    if found == ABSTENTION:
        return f"{got} '408 metres', '408 metres.' and 'The 408 Metres' are one answer: count them normalised."
    return f"{got} The answer with most votes wins, not the first."


EXERCISES = [
    Exercise(
        "12-easy",
        "easy",
        (
            "Walk through both lists together with zip, and skip questions without a citation.",
            "set(c) & set(g) holds the pairs of document and page that are in both.",
            "hits = [bool(set(c) & set(g)) for c, g in zip(cited, gold) if c]; the mean of that, or float('nan') if it is empty.",
        ),
        check_page_accuracy,
    ),
    Exercise(
        "12-medium",
        "medium",
        (
            "Start from the end: a follow-up leans on what was said last.",
            "Add turns while the budget lasts, and stop at the first that does not fit.",
            "kept = []; for turn in reversed(turns): stop if count(turn) + what kept has > budget; at the end turn the order round.",
        ),
        check_fit_memory,
    ),
    Exercise(
        "12-hard",
        "hard",
        (
            "Leave refusals out, normalise the others with normalize_answer, and count them with collections.Counter.",
            "Counter.most_common(2) shows whether the best is alone at the top.",
            "Return one answer whose normalised form won with at least `least` votes and more than the second; else ABSTENTION.",
        ),
        check_vote,
    ),
]
