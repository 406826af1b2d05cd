"""Reading material from technical texts: whole sentences out of wrapped markup, and questions that fit what a sentence says."""

import pytest

from tools.train_embedded.reading import sentences, text_passages
from tools.train_embedded.technical import asked_of, named_twice, plain_paragraphs, questions_about

MARKDOWN = """# Caches

A cache keeps results,
so that a `lookup` is *fast* when a < b and
[the table](https://example.org/table) is large.

```python
x = compute()
```

- It is **bounded**, and old entries go when
  new ones come.
    indented_code()
| a | b |

<p>Tags go, the words between them stay.</p>
"""


def test_wrapped_lines_become_whole_sentences_and_code_tables_headings_go():
    assert list(plain_paragraphs(MARKDOWN)) == [
        "A cache keeps results, so that a lookup is fast when a < b and the table is large.",
        "It is bounded, and old entries go when new ones come.",
        "Tags go, the words between them stay.",
    ]


def test_less_than_sign_does_not_swallow_the_text_up_to_the_next_greater_than():
    text = "One value is smaller if a < b holds.\n\n" + "A sentence that has to stay here.\n\n" * 3 + "And c > d ends it all."
    assert len(list(plain_paragraphs(text))) == 5


@pytest.mark.parametrize(
    ("sentence", "question"),
    [
        ("A cache is a store that keeps results for the next time.", "What is a cache?"),
        ("The page map is a list of the pages that one sequence holds.", "What is page map?"),
        ("LoRA stores two narrow matrices for each layer that it tunes.", "What does LoRA store?"),
        ("The tokenizer copies bytes that it does not know.", "What does the tokenizer copy?"),
        ("The Enigma passes only once, and matches nothing else.", None),
        ("Type hints are used to find errors before the program runs.", "What are Type hints used for?"),
        ("The second pass is slow because the cache is cold by then.", None),
        ("The last pass is slow because the cache is cold by then.", "Why is the last pass slow?"),
        ("A frozen list cannot be changed because its hash would change.", "Why can a frozen list not be changed?"),
        ("To read your file again, call the function with its name.", "How do I read my file again?"),
        ("This is a sentence that points to another one before it.", None),
        ("It stores the values that were given to it before.", None),
        ("A cache is a store", None),
        ("NF4 has sixteen values.", None),
        ("A stack is a list of that program's frames because calls nest.", "What is a stack?"),  # no reason, but a definition
        ("PQ8, short for product quantization, is a way to store a vector in few bytes.", "What is PQ8?"),
        ("The team has been a member of the league since 1993 and won it twice.", None),
        ("Ada Byron Ada Byron (Countess of Lovelace) is a mathematician of her time.", None),
    ],
)
def test_question_fits_what_the_sentence_says(sentence, question):
    assert questions_about(sentence) == ([question] if question else [])


def test_a_thing_with_two_names_is_asked_for_by_both():
    page = "The paged key store (KV store) is the memory that holds what was read."
    assert questions_about(page) == ["What is paged key store?", "What is a KV store?"]
    assert questions_about("Body mass indexes (BMIs) are a measure of weight for height.") == [
        "What are Body mass indexes?",
        "What are BMIs?",
    ]


def test_first_of_two_sentences_about_one_thing_answers():
    first = "NF4 is a data type with sixteen values for normal weights."
    assert asked_of([first, "NF4 is a format for storing numbers and nothing else."]) == [("What is NF4?", first)]


def test_a_second_name_is_put_where_texts_have_it_and_sometimes_asked_for():
    import random

    page = "A page map is a list of the pages that one sequence holds."
    made = {named_twice("What is a page map?", page, random.Random(seed), []) for seed in range(9)}
    renamed = "A page map (PM) is a list of the pages that one sequence holds."
    assert made == {("What is a page map?", renamed), ("What is PM?", renamed)}
    asked, sentence = named_twice(
        "What does LoRA store?", "LoRA stores two matrices for each layer that it tunes.", random.Random(0), ["a cap"]
    )
    assert asked == "What does LoRA store?" and " a cap, stores two matrices" in sentence
    assert questions_about(sentence)[0] == asked  # the aside is one that `questions_about` reads
    assert named_twice(asked, "LoRA stores two matrices for each layer that it tunes.", random.Random(0), []) is None
    assert named_twice("Who was it?", page, random.Random(0), []) is None
    assert named_twice("What is a page map?", renamed, random.Random(0), []) is None


def test_answers_stand_in_their_passages(tmp_path):
    import gzip
    import json

    (tmp_path / "text").mkdir()
    with gzip.open(tmp_path / "text" / "docs.jsonl.gz", "wt", encoding="utf-8") as stream:
        stream.write(json.dumps({"path": "a.md", "text": MARKDOWN * 4 + "\nA cache is a store that keeps results\nfor the next time.\n"}))
    passages = text_passages(tmp_path)
    assert [question for passage in passages for question, _ in passage.questions][-1] == "What is a cache?"
    assert all(answer in passage.text for passage in passages for _, answer in passage.questions)
    assert asked_of(sentences("Nothing is asked of this.")) == []
