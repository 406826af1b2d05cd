"""Chapter 05's checks: any right answer is accepted, however it is written, and a wrong one is told why."""

import numpy as np
import pytest
from langchain_core.runnables import RunnableBranch, RunnableLambda, RunnablePassthrough

from utils.exercises import verdict


def numbered(passages):
    return "\n\n".join(f"[{n}] {p.metadata['title']}: {p.page_content}" for n, p in enumerate(passages, start=1))


def numbered_in_a_loop(passages):
    text = ""
    for i in range(len(passages)):
        text += f"[{i + 1}] " + passages[i].metadata["title"] + ": " + passages[i].page_content + "\n\n"
    return text


def threshold_by_trying(scores, answerable):
    def quality(threshold):
        through = scores >= threshold
        return through[answerable].mean() + (~through[~answerable]).mean()

    return max([*scores, np.inf], key=quality)


def threshold_between_scores(scores, answerable):
    ordered = np.sort(np.unique(scores))
    middle = np.concatenate([[ordered[0] - 1], (ordered[1:] + ordered[:-1]) / 2, [ordered[-1] + 1]])
    through = scores[None, :] >= middle[:, None]
    return float(middle[(through[:, answerable].mean(1) - through[:, ~answerable].mean(1)).argmax()])


def patient_by_function(first, second):
    def ask(question):
        answer = first.invoke(question)
        return second.invoke(question) if answer.abstained else answer

    return RunnableLambda(ask)


def patient_by_branch(first, second):
    ask_again = RunnableBranch(
        (lambda state: state["answer"].abstained, RunnableLambda(lambda state: state["question"]) | second),
        lambda state: state["answer"],
    )
    return {"question": RunnablePassthrough(), "answer": first} | ask_again


RIGHT = [
    ("05-easy", numbered),
    ("05-easy", numbered_in_a_loop),
    ("05-medium", threshold_by_trying),
    ("05-medium", threshold_between_scores),
    ("05-hard", patient_by_function),
    ("05-hard", patient_by_branch),
]


@pytest.mark.parametrize(("exercise", "answer"), RIGHT)
def test_right_answer_is_accepted(exercise, answer):
    right, why = verdict(exercise, answer)
    assert right, why


def from_zero(passages):
    return "\n\n".join(f"[{n}] {p.metadata['title']}: {p.page_content}" for n, p in enumerate(passages))


def without_title(passages):
    return "\n\n".join(f"[{n}] {p.page_content}" for n, p in enumerate(passages, start=1))


def without_blank_line(passages):
    return "\n".join(f"[{n}] {p.metadata['title']}: {p.page_content}" for n, p in enumerate(passages, start=1))


def without_number(passages):
    return "\n\n".join(f"{p.metadata['title']}: {p.page_content}" for p in passages)


def with_a_dash(passages):
    return "\n\n".join(f"[{n}] {p.metadata['title']} - {p.page_content}" for n, p in enumerate(passages, start=1))


def never_empty(passages):
    return numbered(passages) or "none"


def always_second(first, second):
    return RunnableLambda(lambda question: (first.invoke(question), second.invoke(question))[1])


def never_second(first, second):
    return RunnableLambda(first.invoke)


def second_for_safety(first, second):
    def ask(question):
        answers = first.invoke(question), second.invoke(question)
        return answers[answers[0].abstained]

    return RunnableLambda(ask)


def asks_first_twice(first, second):
    return RunnableLambda(lambda question: second.invoke(question) if first.invoke(question).abstained else first.invoke(question))


WRONG = [
    ("05-easy", lambda passages: None, "hint"),
    ("05-easy", from_zero, "starts at 0"),
    ("05-easy", without_number, "its own number"),
    ("05-easy", without_title, "titles are missing"),
    ("05-easy", without_blank_line, "blank line"),
    ("05-easy", with_a_dash, "nearly"),
    ("05-easy", never_empty, "should be empty"),
    ("05-medium", lambda scores, answerable: None, "one number"),
    ("05-medium", lambda scores, answerable: scores, "one number"),
    ("05-medium", lambda scores, answerable: 0.5, "is possible"),
    ("05-medium", lambda scores, answerable: scores.min(), "is possible"),
    ("05-hard", lambda first, second: None, "return a Runnable"),
    ("05-hard", lambda first, second: RunnableLambda(lambda question: "one"), "RagAnswer"),
    ("05-hard", always_second, "although the first"),
    ("05-hard", second_for_safety, "although the first"),
    ("05-hard", never_second, "'two'"),
    ("05-hard", asks_first_twice, "once"),
    ("05-hard", 6, "not callable"),
]


@pytest.mark.parametrize(("exercise", "answer", "said"), WRONG)
def test_wrong_answer_is_explained(exercise, answer, said):
    right, why = verdict(exercise, answer)
    assert not right and said in why
