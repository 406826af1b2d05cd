"""The exercises of chapter 05, RAG with LangChain: number the passages, choose a threshold, ask twice.

The checks run on made-up passages, scores and chains; they know no model.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from langchain_core.documents import Document
from langchain_core.runnables import Runnable, RunnableLambda

from utils.exercises import Exercise
from utils.rag import ABSTENTION, RagAnswer

Verdict = tuple[bool, str]


def passage(title: str, text: str) -> Document:
    """Return a passage for a check."""
    return Document(page_content=text, metadata={"title": title, "source": f"{title}.md"})


def check_number_passages(answer: Callable[[list[Document]], str]) -> Verdict:
    """A right answer returns the passages as one text: "[number] title: text", a blank line between two."""
    shown = [passage("NF4", "Four bits per weight."), passage("KV cache", "Keys and values are kept.")]
    wanted = "[1] NF4: Four bits per weight.\n\n[2] KV cache: Keys and values are kept."
    found = answer(shown)
    if not isinstance(found, str):
        return False, f"the function returned {found!r}; it has to return text. Stuck? hint('05-easy')"
    if found.strip() != wanted:
        return False, explain_numbering(found, wanted)
    if (empty := answer([])) != "":
        return False, f"two passages are right, but without any passage the text should be empty, not {empty!r}."
    return True, "numbers, titles and blank lines are as the prompt needs them."


def explain_numbering(found: str, wanted: str) -> str:
    """Return what is wrong with a numbered text, the most telling fault first."""
    if "[0]" in found:
        return "numbering starts at 0; the model was trained on passages numbered from 1, as people count."
    if "[1]" not in found or "[2]" not in found:
        return f"each passage needs its own number in brackets, [1] and [2]; yours is {found!r}."
    if "NF4" not in found or "KV cache" not in found:
        return "the titles are missing: they are in passage.metadata['title']."
    if "\n\n" not in found.strip():
        return "put a blank line (two line ends) between two passages, so that the model sees where one ends."
    return f"nearly; two passages should give\n{wanted!r}\nand yours gives\n{found!r}"


def balanced_accuracy(threshold: float, scores: np.ndarray, answerable: np.ndarray) -> float:
    """Return the mean of two shares: answerable questions let through, unanswerable ones held back."""
    through = scores >= threshold
    return float((through[answerable].mean() + (~through[~answerable]).mean()) / 2)


def check_best_threshold(answer: Callable[[np.ndarray, np.ndarray], float]) -> Verdict:
    """A right answer returns any threshold that reaches the highest balanced accuracy; three draws, the last one inverted."""
    generator = np.random.default_rng(5)
    for shift in (0.15, 0.05, -0.1):
        answerable = np.arange(60) % 3 > 0
        scores = np.round(generator.normal(0.5, 0.1, 60) + shift * answerable, 3)
        found = answer(scores.copy(), answerable.copy())
        if found is None or np.ndim(found) or np.isnan(float(found)):
            return False, f"the function returned {found!r}; it has to return one number. Stuck? hint('05-medium')"
        candidates = np.append(scores, np.inf)
        best = max(balanced_accuracy(candidate, scores, answerable) for candidate in candidates)
        reached = balanced_accuracy(float(found), scores, answerable)
        if reached < best - 1e-9:
            return False, f"on one of the draws your threshold {float(found):.3f} reaches {reached:.3f}; {best:.3f} is possible."
    return True, "no other threshold lets more of the right questions through, on three draws of scores."


def scripted(replies: dict[str, str], asked: list[str]) -> Runnable[str, RagAnswer]:
    """Return a chain that answers from a dictionary, abstains on other questions, and notes what it was asked."""

    def reply(question: str) -> RagAnswer:
        asked.append(question)
        text = replies.get(question, ABSTENTION)
        return RagAnswer(question, text, [], [], text == ABSTENTION, "none", False)

    return RunnableLambda(reply)


def check_patient_chain(answer: Callable[[Any, Any], Any]) -> Verdict:
    """A right answer returns a Runnable that asks the second chain only what the first one left unanswered."""
    first_asked: list[str] = []
    second_asked: list[str] = []
    chain = answer(scripted({"easy": "one"}, first_asked), scripted({"easy": "wrong", "difficult": "two"}, second_asked))
    if not isinstance(chain, Runnable):
        return False, f"the function returned {chain!r}; return a Runnable, so that batch and async work. Stuck? hint('05-hard')"
    found = [chain.invoke(question) for question in ("easy", "difficult", "impossible")]
    if not all(isinstance(one, RagAnswer) for one in found):
        return False, f"the chain returns {type(found[0]).__name__}; it has to return the RagAnswer of one of the two chains."
    if "easy" in second_asked:
        return False, "the second chain was asked although the first one had answered: look at `.abstained` before asking again."
    if [one.answer for one in found] != ["one", "two", ABSTENTION]:
        return False, f"answers should be 'one', 'two' and {ABSTENTION!r}; yours are {[one.answer for one in found]}."
    if first_asked != ["easy", "difficult", "impossible"]:
        return False, f"the first chain should be asked every question once; it was asked {first_asked}."
    if [one.answer for one in chain.batch(["difficult", "easy"])] != ["two", "one"]:
        return False, "invoke is right, but batch gives other answers or another order."
    return True, "the second chain is asked only what the first one left open, one question at a time or in a batch."


EXERCISES = [
    Exercise(
        "05-easy",
        "easy",
        [
            "`enumerate(passages, start=1)` gives each passage with its number.",
            "A passage's text is `passage.page_content`, its title `passage.metadata['title']`; an f-string puts them together.",
            "`'\\n\\n'.join(f\"[{n}] {p.metadata['title']}: {p.page_content}\" for n, p in enumerate(passages, start=1))`",
        ],
        check_number_passages,
    ),
    Exercise(
        "05-medium",
        "medium",
        [
            "Only the scores themselves (and one number above them all) can change who is let through: try each of them.",
            "For a threshold t: `through = scores >= t`; the quality is `through[answerable].mean() + (~through[~answerable]).mean()`.",
            "`max(candidates, key=quality)` returns the candidate of highest quality; the candidates are `[*scores, np.inf]`.",
        ],
        check_best_threshold,
    ),
    Exercise(
        "05-hard",
        "hard",
        [
            "A plain function from question to RagAnswer is enough: ask `first`, look at `.abstained`, maybe ask `second`.",
            "`RunnableLambda(function)` makes a function a Runnable, with `batch`, `stream` and async for nothing.",
            "Or without a function: `RunnablePassthrough.assign(...)` keeps the question beside the answer, and `RunnableBranch` chooses.",
        ],
        check_patient_chain,
    ),
]
