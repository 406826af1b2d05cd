"""Files of questions: the course's own are read as they are, a reader's may hold little, and what cannot be read is named."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.questions import load_questions
from utils.runtime import DATA


@pytest.mark.parametrize("name", ["handbook", "newsroom", "pdfs"])
def test_questions_of_the_course_are_read_as_they_stand(name):
    lines = (DATA / "questions" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    assert load_questions(name) == [json.loads(line) for line in lines] == load_questions(DATA / "questions" / f"{name}.jsonl")


def test_split_and_kind_choose():
    every = load_questions("newsroom")
    latest = load_questions("newsroom", split="test", kind="latest")
    assert 0 < len(latest) < len(every) and {(one["split"], one["kind"]) for one in latest} == {("test", "latest")}


def test_a_question_alone_is_enough(tmp_path):
    file = tmp_path / "own.jsonl"
    file.write_bytes("\ufeff".encode() + b'{"question": "Who?"}\r\n\r\n{"question": "When?", "answers": ["now"], "mine": 1}\n')
    first, second = load_questions(file)
    assert (first["answers"], first["split"], first["id"]) == ([], "dev", "own.jsonl, line 1")
    assert second["mine"] == 1 and second["answers"] == ["now"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{'question': 'Who?'}", "line 2 is not JSON"),
        ("[" * 100_000, "line 2 is not JSON"),
        ('["Who?"]', "line 2 has no question"),
        ('{"question": " "}', "line 2 has no question"),
        ('{"question": "Who?", "answers": "me"}', "line 2: answers must be a list of texts"),
        ('{"question": "Who?", "answers": [1]}', "line 2: answers must be a list of texts"),
    ],
)
def test_line_that_cannot_be_read_is_named_with_an_example(line, reason, tmp_path):
    (tmp_path / "own.jsonl").write_text('{"question": "Who?"}\n' + line, encoding="utf-8")
    with pytest.raises(ValueError, match=reason) as caught:
        load_questions(tmp_path / "own.jsonl")
    assert "A line looks like" in str(caught.value)


def test_missing_file_names_those_that_are_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"one of: .*handbook, .*newsroom"):
        load_questions("handbok")
    with pytest.raises(FileNotFoundError, match="JSON Lines file"):
        load_questions(tmp_path)


@settings(max_examples=150, derandomize=True, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.text(max_size=100).map(lambda text: json.dumps({"question": text}).encode())))
def test_any_bytes_give_questions_or_a_reason(tmp_path_factory, content):
    file = tmp_path_factory.getbasetemp() / "any.jsonl"
    file.write_bytes(content)
    try:
        assert all(one["question"].strip() for one in load_questions(file))
    except ValueError as error:
        assert "A line looks like" in str(error)
