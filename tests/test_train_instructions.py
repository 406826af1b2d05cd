"""Short instructions in training: the model stays a chat model, and no passage is cited where none was shown."""

import random

import pytest
import tiny_models

from tools.train_embedded.examples import ASKING, ExampleMaker, chat_tokens, proper_names
from tools.train_embedded.instructions import FORMS, Instructions, everyday, pointing, presentable
from tools.train_embedded.material import neighbours
from tools.train_embedded.reading import Passage
from tools.train_embedded.train_lm import instruction_batches, mixed

TEXT = "A tokenizer is a program that cuts text into tokens. The vocabulary is a list of all known tokens. Use it with care everywhere."


@pytest.fixture(scope="module")
def passages():
    """Technical text, and questions with short answers over other passages."""
    asked = {"Arbo": "two moons", "Belin": "five moons", "Corvu": "seven moons", "Dasha": "one moon"}
    made = [
        Passage(f"The planet {name} has {moons}. It is cold there.", "made", [(f"How many moons does {name} have?", moons)])
        for name, moons in asked.items()
    ]
    return [*made, Passage("A bird sings.", "made", [("Does a bird sing?", "Yes")]), Passage(TEXT, "text")]


def test_everyday_instructions_are_about_the_technical_texts(passages):
    prompts = everyday(passages, 60, random.Random(0))
    assert len(prompts) == 60 and len(set(prompts)) > 20
    assert all("tokenizer" in p or "vocabulary" in p or "Use it with care" in p for p in prompts)
    assert not any("moons" in p for p in prompts)
    assert everyday(passages[:1], 5, random.Random(0)) == []  # no technical text, no instruction


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        ("A tokenizer cuts text.", "A tokenizer cuts text."),
        ("1. Words\n2. Tokens", "1. Words\n2. Tokens"),
        ("Short.\n\nAlso short.", "Short.\nAlso short."),
        ("It is fine. " + " ".join(f"Word{i}" for i in range(80)) + ".", "It is fine."),  # cut before the sentence that is too long
        ("It is " + "very " * 30 + "wide.", None),
        ("A line\nA line", None),
        ("It moved build-to-" + "release-to-" * 12 + "release.", None),  # one word between spaces, a loop all the same
        (" ".join(f"word{i}" for i in range(80)), None),
        ("", None),
    ],
)
def test_answers_of_the_base_are_kept_whole_and_without_repetition(answer, kept):
    assert presentable(answer) == kept


def test_an_imitation_shows_two_examples_of_the_form_that_it_asks_for(passages):
    drawn = Instructions(passages, [], random.Random(1))
    for [turn], answer in (drawn.draw() for _ in range(200)):
        prompt = turn["content"]
        *worked, last = prompt.split("\n\n")
        worked = [block for block in worked if "moon" in block]
        assert len(worked) in (2, 3) and last.endswith(":") and "moon" in last
        plain = next(moons for moons in ("two moons", "five moons", "seven moons", "one moon") if moons in last)
        forms = [form for form in FORMS if form(plain) == answer]
        assert forms and all(any(block.endswith(form(one)) for form in forms for one in _answers()) for block in worked)
        assert "[1]" not in answer and "Yes" not in prompt


def _answers():
    return ("two moons", "five moons", "seven moons", "one moon")


def test_near_half_of_the_instructions_are_those_that_the_base_answered(passages):
    drawn = Instructions(passages, [("Say hello.", "Hello!")], random.Random(2))
    said = [{"role": "user", "content": "Say hello."}], "Hello!"
    share = sum(drawn.draw() == said for _ in range(400)) / 400
    assert 0.35 < share < 0.55


def test_a_follow_up_is_made_whole_in_the_words_of_the_chat(passages):
    from utils.conversation import REWRITE_PROMPT

    asked = [
        ("How many moons does Arbo have?", "two"),
        ("Who has ever lived on Arbo?", "nobody"),
        ("Is it cold?", "Yes"),
        ("What is Arbo's colour?", "red"),
    ]
    drawn = Instructions([Passage("Two moons.", "made", asked)], [], random.Random(0))
    assert [(before.question, name, whole) for before, name, whole in drawn.pairs] == [(asked[0][0], "Arbo", asked[1][0])]
    questions = set()
    for chat, answer in (drawn.rewritten() for _ in range(40)):
        assert [turn["role"] for turn in chat] == ["user", "assistant", "user"] and answer == "Who has ever lived on Arbo?"
        assert [turn["content"] for turn in chat[:2]] == list(asked[0])
        prompt, question = chat[2]["content"].split("\n\nNext question: ")
        assert prompt == REWRITE_PROMPT.messages[1].prompt.template.split("\n\n")[0]
        questions.add(question)
    assert questions == {
        "Who has ever lived on it?",
        "Who has ever lived on he?",
        "Who has ever lived on she?",
        "Who has ever lived on Arbo?",
    }
    assert (
        pointing("What colour do the Arbos like on the Arbos' day?", "Arbos", random.Random(0)) == "What colour do they like on their day?"
    )


def test_an_instruction_is_the_chat_that_a_reader_would_send(passages):
    tokenizer = tiny_models.tokenizer()
    chat = [{"role": "user", "content": "Say hello."}]
    prompt, answer = chat_tokens(chat, "Hello!", tokenizer)
    assert prompt == tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert answer[-1] == tokenizer.eos_token_id
    batch = next(instruction_batches(passages, [], tokenizer, tokens=600, seed=0))
    assert batch["tokens"].numel() <= 600 + batch["tokens"].shape[1] and int(batch["examples"]) == len(batch["tokens"])


def test_streams_of_batches_are_mixed_in_their_share():
    one, other = iter(lambda: {"a": 1}, None), iter(lambda: {"b": 1}, None)
    batches = mixed(one, other, share=0.25, seed=0)
    assert 0.15 < sum("b" in next(batches) for _ in range(400)) / 400 < 0.35


def test_a_transplanted_question_asks_what_the_passage_does_not_tell_of_its_name():
    passages = [
        Passage("For long the city of Ostermere was small, and Lady Farrow built its bridge.", "made", [("Who built it?", "Lady Farrow")]),
        Passage("People say that Corvu has seven moons.", "made", [("How many moons has Corvu?", "seven")]),
        Passage("There was a harbour in Belin.", "made", [("Which harbour did Belin have?", "a harbour")]),
    ]
    maker = ExampleMaker(passages, neighbours(passages, count=2), seed=3)
    text = passages[0].text
    asked = {maker.transplant(text) for _ in range(60)} - {None}
    assert asked and all(any(name in question for name in ("Ostermere", "Lady Farrow")) for question in asked)
    for question in asked:
        words = {word for word in question.lower().split() if len(word) > 3} - ASKING
        assert {"moons", "harbour"} & words and not {"moons", "harbour"} & set(text.lower().split())


def test_a_word_that_only_begins_a_sentence_is_no_name():
    assert proper_names("Then she met Ada Lovelace. Nobody knew, but The Times wrote in March of it.") == ["Ada Lovelace"]
