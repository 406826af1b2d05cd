"""Exercises of chapter 07: counting what search finds, a judge asked in both orders, and a test by coin flips.

Knows what right answers must do on small examples; compares behaviour, never code.
"""

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np

from utils.exercises import Exercise

Verdict = tuple[bool, str]

# Rankings of three questions and their relevant ids. The first question has two relevant passages, only one of them among the first 3;
# the second one's stands at rank 2 and again at 3; the third one's at rank 4.
RANKINGS = [["a", "x", "y", "b"], ["x", "c", "c", "z"], ["x", "y", "z", "d"]]
RELEVANT = [{"a", "b"}, {"c"}, {"d"}]
HIT_RATES = {1: 1 / 3, 2: 2 / 3, 3: 2 / 3, 4: 1.0}


def check_hit_rate(answer: Callable[[Sequence[Sequence[str]], Sequence[set[str]], int], float]) -> Verdict:
    """A right answer returns the share of questions with a relevant passage among the first k, for four values of k."""
    found = {k: answer([list(one) for one in RANKINGS], [set(one) for one in RELEVANT], k) for k in HIT_RATES}
    if any(one is None or np.ndim(one) for one in found.values()):
        return False, f"the function returned {found[1]!r}; it has to return one number. Stuck? hint('07-easy')"
    wrong = next((k for k, wanted in HIT_RATES.items() if not abs(float(found[k]) - wanted) <= 1e-9), None)
    if wrong is not None:
        return False, explain_hit_rate(found, wrong)
    if answer([["x"]], [{"a"}], 5):
        return False, "a ranking shorter than k, without any relevant passage, is no hit."
    return True, "a question counts once, however many of its passages were found, and nothing below rank k counts."


def explain_hit_rate(found: dict[int, float], wrong: int) -> str:
    """Return what is wrong with hit rates by k, the first wrong one at k=`wrong`; told by what a known slip would give at every k."""
    pairs, n = list(zip(RANKINGS, RELEVANT)), len(RANKINGS)
    counts = {k: sum(sum(key in ids for key in row[:k]) for row, ids in pairs) for k in HIT_RATES}
    slips: list[tuple[dict[int, float], str]] = [
        (dict.fromkeys(HIT_RATES, 1.0), "passages below rank k seem to count: look at `ranking[:k]` only."),
        ({k: rate * n for k, rate in HIT_RATES.items()}, "that is a number of questions; divide by how many there are."),
        ({k: recall(k) for k in HIT_RATES}, "that is recall, the share of a question's passages. A hit needs only one of them."),
        ({k: one / n for k, one in counts.items()}, "a question with two relevant passages, or one listed twice, counts once."),
    ]
    for rates, explanation in slips:
        if all(abs(float(found[k]) - rate) < 1e-9 for k, rate in rates.items()):
            return explanation
    return f"at k={wrong}, {round(HIT_RATES[wrong] * n)} of {n} questions have a relevant passage; yours says {float(found[wrong]):.3f}."


def recall(k: int) -> float:
    """Return the mean recall at k of the example's rankings."""
    return float(np.mean([len(set(row[:k]) & ids) / len(ids) for row, ids in zip(RANKINGS, RELEVANT)]))


Judge = Callable[[str, str, str], str]


def scripted_judge(choose: Callable[[str, str], str], asked: list[tuple[str, str]]) -> Judge:
    """Return a judge that decides by `choose(answer_a, answer_b)` and notes in which order it was shown the answers."""

    def judge(question: str, a: str, b: str) -> str:
        asked.append((a, b))
        return choose(a, b)

    return judge


# Who judges, what is right for ("short", "a longer one"), and what a wrong answer has overlooked.
JUDGES: list[tuple[Callable[[str, str], str], str, str]] = [
    (lambda a, b: "A", "tie", "a judge that always says A has no opinion: both orders contradict each other, so it is a tie."),
    (lambda a, b: "B", "tie", "a judge that always says B has no opinion: both orders contradict each other, so it is a tie."),
    (lambda a, b: "A" if len(a) > len(b) else "B", "second", "this judge prefers the second answer, in both orders."),
    (lambda a, b: "A" if len(a) < len(b) else "B", "first", "this judge prefers the first answer, in both orders."),
    (lambda a, b: "?", "tie", "a judge that names neither has not decided: a tie."),
    (lambda a, b: "A" if a == "short" else "?", "tie", "one order gave a verdict, the other none: that is not enough for a win."),
]


def check_fair_verdict(answer: Callable[[Judge, str, str, str], str]) -> Verdict:
    """A right answer shows both orders to the judge and counts a win only if both verdicts agree; six judges."""
    for choose, wanted, explanation in JUDGES:
        asked: list[tuple[str, str]] = []
        found = answer(scripted_judge(choose, asked), "Which?", "short", "a longer one")
        if found not in ("first", "second", "tie"):
            return False, f"the function returned {found!r}; it has to return 'first', 'second' or 'tie'. Stuck? hint('07-medium')"
        if set(asked) != {("short", "a longer one"), ("a longer one", "short")}:
            return False, f"the judge has to see both orders of the two answers; it was shown {asked}."
        if found != wanted:
            return False, f"{explanation} Yours says {found!r}."
    return True, "a win counts only if the judge stays with its verdict when the answers change places."


def exact_p_value(a: np.ndarray, b: np.ndarray) -> float:
    """Return the two-sided p-value over all ways to swap the systems' labels: the share at least as far from 0 as what was seen."""
    differences = a - b
    means = np.array(list(product([1, -1], repeat=len(differences)))) @ differences / len(differences)
    return float((np.abs(means) >= abs(differences.mean()) - 1e-12).mean())


def check_sign_flip(answer: Callable[[np.ndarray, np.ndarray], float]) -> Verdict:
    """A right answer is near the exact p-value on pairs with a small, a large and no difference, and does not care who is first."""
    generator = np.random.default_rng(7)
    for shift in (0.05, 0.15, -0.1, 0.0):
        hardness = generator.random(10)
        a, b = hardness + shift + generator.normal(0, 0.1, 10), hardness
        a, b = (b.copy(), b.copy()) if shift == 0 else (a, b)
        found, wanted = answer(a.copy(), b.copy()), exact_p_value(a, b)
        if found is None or np.ndim(found) or not 0 <= float(found) <= 1:
            return False, f"the function returned {found!r}; a p-value is one number from 0 to 1. Stuck? hint('07-hard')"
        if abs(float(found) - wanted) > 0.04:
            return False, explain_p_value(float(found), wanted, a, b)
        if abs(float(answer(b.copy(), a.copy())) - wanted) > 0.04:
            return False, "swapping the two systems changes your p-value: compare distances from 0, `abs(…)`, on both sides."
    return True, "it is within chance of the exact value over all 1,024 ways to flip, whichever system comes first."


def explain_p_value(found: float, wanted: float, a: np.ndarray, b: np.ndarray) -> str:
    """Return what is wrong with a p-value, the most telling fault first."""
    if np.array_equal(a, b):
        return f"two equal systems differ by 0, and every flip is at least as far away as that: p is 1, yours is {found:.3f}."
    pooled, generator = np.concatenate([a, b]), np.random.default_rng(0)
    shuffled = np.array([generator.permutation(pooled) for _ in range(2000)])
    unpaired = (np.abs(shuffled[:, : len(a)].mean(1) - shuffled[:, len(a) :].mean(1)) >= abs((a - b).mean())).mean()
    if abs(found - wanted / 2) < 0.03:
        return f"that looks one-sided: {found:.3f}, where {wanted:.3f} counts both directions. Compare absolute values."
    if abs(found - (1 - wanted)) < 0.03:
        return f"that is the share of flips that are *less* far from 0; the p-value is the rest, {wanted:.3f}."
    if abs(found - unpaired) < 0.05:
        return f"you shuffle all values together and lose the pairs: flip the sign of each question's own difference. p is {wanted:.3f}."
    return f"on one of the examples p should be near {wanted:.3f}; yours is {found:.3f}. Use 2,000 flips or more."


EXERCISES = [
    Exercise(
        "07-easy",
        "easy",
        [
            "For one question: does any of the ids in `ranking[:k]` stand in its relevant ids?",
            "`any(key in wanted for key in ranking[:k])` is True or False, and Python counts True as 1.",
            "`sum(any(key in wanted for key in ranking[:k]) for ranking, wanted in zip(rankings, relevant)) / len(rankings)`",
        ],
        check_hit_rate,
    ),
    Exercise(
        "07-medium",
        "medium",
        [
            "Ask twice: `judge(question, first, second)` and `judge(question, second, first)`.",
            "If the judge means the first answer, it must say 'A' the first time and 'B' the second time.",
            "`verdicts = judge(question, first, second), judge(question, second, first)`; 'first' if they are ('A', 'B'), "
            "'second' if they are ('B', 'A'), else 'tie'.",
        ],
        check_fair_verdict,
    ),
    Exercise(
        "07-hard",
        "hard",
        [
            "If both systems are alike, each question's difference could as well have the other sign: a coin decides.",
            "`signs = generator.choice([-1, 1], size=(n, len(a)))` makes n rows of coins; `(signs * (a - b)).mean(axis=1)` are n means.",
            "The p-value is the share of these means whose absolute value is at least `abs((a - b).mean())`; "
            "subtract 1e-12 from the right side, so that equal numbers count in spite of rounding.",
        ],
        check_sign_flip,
    ),
]
