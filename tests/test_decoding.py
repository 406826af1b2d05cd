"""Int8 copies and prompt lookup: the same answers with fewer and cheaper steps, and off where they would not be."""

import copy
import re

import pytest
import torch
from langchain_core.messages import HumanMessage
from tiny_models import make_llm
from torch import nn

from tools.load_server import rag_prompts
from utils import models
from utils.chat import LocalChatModel
from utils.decoding import MOST_ROWS, FewRowsInt8, keep_int8_copies


def linear(bias: bool, dtype: torch.dtype) -> tuple[nn.Linear, nn.Linear]:
    """A linear layer, and the same one with an int8 copy."""
    torch.manual_seed(0)
    plain = nn.Linear(64, 48, bias=bias, dtype=dtype)
    copied = copy.deepcopy(plain)
    assert keep_int8_copies(copied) == 64 * 48
    return plain, copied


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@torch.no_grad()
def test_few_rows_are_multiplied_by_the_copy_within_its_rounding(bias, dtype):
    plain, copied = linear(bias, dtype)
    x = torch.randn(2, 2, 64, dtype=dtype)
    exact = nn.functional.linear(x.double(), plain.weight.double(), None if plain.bias is None else plain.bias.double())
    error = (copied(x).double() - exact).norm() / exact.norm()
    assert copied(x).shape == exact.shape and 0 < error < 0.01
    assert not torch.equal(copied(x), plain(x))


def test_many_rows_and_training_use_the_weights_themselves():
    plain, copied = linear(True, torch.float32)
    few, many = torch.randn(1, 64), torch.randn(MOST_ROWS + 1, 64)
    with torch.no_grad():
        assert torch.equal(copied(many), plain(many))
    assert torch.equal(copied(few), plain(few))  # gradients are on
    copied(few).sum().backward()
    assert copied.weight.grad is not None


def test_copies_are_not_saved_and_zero_rows_give_zero():
    plain, copied = linear(False, torch.float32)
    assert copied.state_dict().keys() == plain.state_dict().keys()
    with torch.no_grad():
        copied.weight[3] = 0
        keep_int8_copies(copied)
        assert copied(torch.randn(1, 64))[0, 3] == 0


def test_quantized_layers_stay_as_they_are(tmp_path):
    chat = models.load_chat_model(make_llm(tmp_path / "llama", "llama"), quantization="nf4", max_new_tokens=2)
    kinds = {type(layer).__name__ for layer in chat.llm.modules()}
    assert "Linear4bit" in kinds
    assert all(layer.weight.dtype.is_floating_point for layer in chat.llm.modules() if isinstance(layer, FewRowsInt8))
    assert chat.invoke("What does NF4 store?").usage_metadata["output_tokens"] <= 2


def test_model_without_room_for_copies_does_without(tmp_path, monkeypatch):
    folder = make_llm(tmp_path / "llama", "llama")
    monkeypatch.setattr(models, "free_memory_gb", lambda: 1e-5)
    assert not any(isinstance(layer, FewRowsInt8) for layer in models.load_chat_model(folder).llm.modules())


@pytest.mark.parametrize(("family", "looks_up"), [("llama", True), ("qwen2", True), ("gemma3_text", False), ("gemma2", False)])
def test_models_with_sliding_windows_do_not_look_up(family, looks_up, tmp_path):
    chat = models.load_chat_model(make_llm(tmp_path / family, family), max_new_tokens=4)
    prompt = chat._encode([[HumanMessage("four bits, four bits")]])
    assert bool(chat._generation(prompt, None, {})["generation_config"].prompt_lookup_num_tokens) == looks_up
    assert chat._generation(prompt, None, {"temperature": 0.7})["generation_config"].prompt_lookup_num_tokens is None
    assert chat.invoke("four bits, four bits").usage_metadata["output_tokens"] <= 4


@pytest.fixture(scope="module")
def real_prompts() -> list[str]:
    """Four prompts of the RAG chain, with the passages that retrieval found."""
    return [chat[0]["content"] for chat in rag_prompts(4)]


def counted(chat: LocalChatModel, prompts: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], int]:
    """The answers, each also as streamed, and how often the model was called for each way."""
    calls = []
    forward = chat.llm.forward
    with monkeypatch.context() as patch:
        patch.setattr(chat.llm, "forward", lambda *args, **options: calls.append(1) or forward(*args, **options))
        answers = [str(chat.invoke(prompt).content) for prompt in prompts]
        passes = len(calls)
    assert ["".join(str(piece.content) for piece in chat.stream(prompt)) for prompt in prompts[:2]] == answers[:2]
    return answers, passes


@pytest.mark.slow
def test_answers_from_passages_stay_the_same_in_fewer_calls(real_prompts, monkeypatch):
    loaded = models.load_llm("course-lm")
    settings = {"llm": loaded.model, "tokenizer": loaded.tokenizer, "model_name": "course-lm", "max_new_tokens": 24}
    plain, plain_passes = counted(LocalChatModel(**settings, prompt_lookup=0), real_prompts, monkeypatch)
    looked_up, passes = counted(LocalChatModel(**settings), real_prompts, monkeypatch)
    assert looked_up == plain and passes < 0.7 * plain_passes
    keep_int8_copies(loaded.model)
    assert counted(LocalChatModel(**settings), real_prompts, monkeypatch)[0] == plain


@pytest.mark.slow
def test_the_course_model_stays_a_chat_model_where_no_passages_are_shown():
    """It cites passages only where there are some, imitates examples, and remembers what was said."""
    chat = models.load_chat_model("course-lm").bind(max_new_tokens=24)
    plain = ["Write one sentence about the sea.", "Say hello to Maria.", "What is a tokenizer?", "Explain what a vector database is."]
    assert not any(re.search(r"\[\d\]", reply.text) for reply in chat.batch(plain))
    worked = "Q: Who wrote Hamlet?\nA: <<Shakespeare>>\n\nQ: What is the capital of Italy?\nA: <<Rome>>"
    style = f"{worked}\n\nQ: What is the largest planet?\nA:"
    mood = "\n\n".join(
        f"Text: {text}\nSentiment: {label}".rstrip()
        for text, label in [("I loved it.", "positive"), ("It was bland and cold.", "negative"), ("What a wonderful day we had.", "")]
    )
    said, name = ("human", "My name is Ada."), ("human", "What is my name?")
    shaped, felt, remembered = chat.batch([style, mood, [said, ("ai", "Hello Ada."), name]])
    assert re.fullmatch(r"<<[^<>]+>>", shaped.text) and felt.text == "positive" and "Ada" in remembered.text
