"""Sheets: questions that share one reading of their passages get the loss and the gradient they would get alone."""

import pytest
import tiny_models
import torch

from tools.train_embedded.examples import ExampleMaker
from tools.train_embedded.material import neighbours
from tools.train_embedded.reading import Passage
from tools.train_embedded.sheet_attention import sheet_attention
from tools.train_embedded.sheets import ABSTAINED, ANSWERED, MAX_BRANCH, MAX_TOKENS, Sheets, tokenized_sheet
from tools.train_embedded.train_lm import collate, collate_sheet, in_turn, losses, with_adapter
from utils.rag import ABSTENTION, rag_messages

MOONS = {"Arbo": "2", "Belin": "5", "Corvu": "7", "Dasha": "11", "Elmo": "13", "Fintu": "19"}


@pytest.fixture(scope="module")
def sheets():
    """Sheets over six passages with two questions each."""
    passages = []
    for name, moons in MOONS.items():
        text = f"Planet {name} is cold. {name} has {moons} moons and a ring. Nobody lives there. It was seen by probe {moons}."
        questions = [(f"How many moons does {name} have?", f"{moons} moons"), (f"What saw {name} first?", f"probe {moons}")]
        passages.append(Passage(text, "made", questions))
    return Sheets(ExampleMaker(passages, neighbours(passages, count=3), seed=1))


def test_every_question_of_a_sheet_shares_its_passages_and_tells_where_its_answer_stands(sheets):
    for sheet in (sheets.draw() for _ in range(200)):
        assert len({tuple(e.passages) for e in sheet}) == 1
        for example in sheet:
            holding = [i for i, text in enumerate(example.passages) if example.answer in text]
            assert holding == ([] if example.gold is None else [example.gold])


def test_a_sheet_has_answers_and_abstentions_in_their_shares(sheets):
    drawn = [sheets.draw() for _ in range(300)]
    for sheet in drawn:
        answered = sum(e.gold is not None for e in sheet)
        assert 1 <= answered <= ANSWERED and len(sheet) - answered <= max(1, round(ABSTAINED * answered))
    abstained = [e for sheet in drawn for e in sheet if e.gold is None]
    assert {e.answer for e in abstained} == {ABSTENTION} and 0.15 < len(abstained) / sum(map(len, drawn)) < 0.45


def test_what_a_sheet_abstains_from_its_passages_do_not_say(sheets):
    for example in (e for _ in range(200) for e in sheets.draw() if e.gold is None):
        name = next((n for n in MOONS if n.lower() in example.question.lower()), None)
        plain = " not" not in example.question and "last" not in example.question.lower()
        if name and plain:
            fact = f"{MOONS[name]} moons" if "moons" in example.question.lower() else f"probe {MOONS[name]}"
            assert fact not in " ".join(example.passages)


def test_a_sheet_is_the_prompt_of_the_chain_without_the_question_before_the_passages(sheets):
    tokenizer, sheet = tiny_models.tokenizer(), sheets.draw()
    shared, branches = tokenized_sheet(sheet, tokenizer)
    assert len(branches) == len(sheet) and len(shared) + sum(map(len, branches[0])) <= MAX_TOKENS
    for example, (rest, answer) in zip(sheet, branches):
        [chat] = rag_messages(example.question, example.passages)
        chat["content"] = chat["content"].replace(f"Question: {example.question}\n\n", "", 1)
        assert shared + rest == tokenizer.apply_chat_template([chat], add_generation_prompt=True, return_dict=True)["input_ids"]
        assert tokenizer.decode(answer).startswith(example.answer) and len(rest) + len(answer) <= MAX_BRANCH


def test_attention_over_a_sheet_equals_attention_under_its_mask_and_so_does_its_gradient():
    shared, branches, length = 5, 3, 4
    total = shared + branches * length
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, n, total, 8, dtype=torch.float64, generator=generator, requires_grad=True) for n in (4, 2, 2))
    branch = torch.cat([torch.full((shared,), -1), torch.arange(branches).repeat_interleave(length)])
    seen = ((branch[None] == branch[:, None]) | (branch[None] == -1)) & torch.ones(total, total).tril().bool()
    plain = torch.nn.functional.scaled_dot_product_attention(
        query, key.repeat_interleave(2, 1), value.repeat_interleave(2, 1), attn_mask=seen, scale=0.3
    )
    assert torch.allclose(sheet_attention(query, key, value, 0.3, shared, branches), plain)
    assert torch.autograd.gradcheck(lambda *parts: sheet_attention(*parts, 0.3, shared, branches), (query, key, value))


def test_a_sheet_gives_the_loss_of_its_questions_one_by_one(sheets, tmp_path):
    import argparse

    base, tokenizer = tiny_models.make_llm(tmp_path / "base", max_position_embeddings=1024), tiny_models.tokenizer()
    model = with_adapter(base, argparse.Namespace(init=None, rank=4), "cpu").float()
    shared, branches = tokenized_sheet(max((sheets.draw() for _ in range(20)), key=len), tokenizer)
    together = losses(model, collate_sheet(shared, branches, tokenizer.pad_token_id))
    alone = losses(model, collate([(shared + rest, answer) for rest, answer in branches], tokenizer.pad_token_id))
    assert len(branches) > 2
    assert together["answer_loss"].item() == pytest.approx(alone["answer_loss"].item(), rel=1e-4)
    together["answer_loss"].backward()
    assert any(w.grad is not None and w.grad.abs().max() > 0 for w in model.parameters())


def test_batches_change_when_their_time_has_come():
    numbers, letters, done = iter(range(100)), iter("abc"), []
    mixed = in_turn(numbers, letters, lambda: len(done) >= 4)
    for item in mixed:
        done.append(item)
    assert done == [0, 1, 2, 3, "a", "b", "c"]
