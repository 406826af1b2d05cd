"""The exercises of chapter 01 accept every right answer and explain the wrong ones."""

import pytest
import torch

from utils import catalog
from utils.exercises import exercises, verdict


def test_chapter_has_one_exercise_of_each_level():
    assert [exercise.level for exercise in exercises("01").values()] == ["easy", "medium", "hard"]


def test_some_but_not_all_models_of_the_catalog_are_right():
    right = [key for key in catalog.MODELS if verdict("01-easy", key)[0]]
    assert {"qwen3-8b", "qwen3-14b"} <= set(right) < set(catalog.MODELS)
    assert verdict("01-easy", "Qwen/Qwen3-14B")[0]  # a Hub id is as good


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("llama-3.1-8b-instruct", "gated"),
        ("gpt2", "fits a T4"),
        ("qwen2.5-72b-instruct", "even in NF4"),
        ("qwen-14b-chat", "own repository"),
        ("bge-m3", "embedder"),
        ("qwen3-14", "Did you mean"),
        (7, "string"),
    ],
)
def test_a_wrong_model_is_explained(key, reason):
    right, why = verdict("01-easy", key)
    assert not right and reason in why


def ids(probabilities, top_p):
    values, order = probabilities.sort(descending=True)
    return order[values.cumsum(0) - values < top_p]


def mask(probabilities, top_p):
    kept = torch.zeros(len(probabilities), dtype=torch.bool)
    kept[ids(probabilities, top_p)] = True
    return kept


def by_hand(probabilities, top_p):
    kept, total = [], 0
    for index in probabilities.numpy().argsort()[::-1]:
        kept.append(index)
        total += probabilities[index]
        if total >= top_p:
            return kept
    return kept


@pytest.mark.parametrize("nucleus", [ids, mask, by_hand, lambda p, t: set(ids(p, t).tolist()), lambda p, t: ids(p, t).numpy()])
def test_every_form_of_the_right_nucleus_is_accepted(nucleus):
    assert verdict("01-medium", nucleus)[0]


def one_short(probabilities, top_p):
    values, order = probabilities.sort(descending=True)
    return order[values.cumsum(0) <= top_p]


def unsorted(probabilities, top_p):
    return [i for i in range(len(probabilities)) if probabilities[:i].sum() < top_p]


@pytest.mark.parametrize(
    ("nucleus", "reason"),
    [
        (one_short, "reaches top_p belongs"),
        (unsorted, "Sort by probability"),
        (lambda p, t: range(len(p)), "stop once"),
        (lambda p, t: None, "returns None"),
        (lambda p, t: 1 / 0, "ZeroDivisionError"),
        ([0, 1], "function itself"),
        (None, "no answer yet"),
    ],
)
def test_a_wrong_nucleus_is_explained(nucleus, reason):
    right, why = verdict("01-medium", nucleus)
    assert not right and reason in why


def cached(model, input_ids, max_new_tokens):
    tokens, cache, produced = input_ids, None, []
    for _ in range(max_new_tokens):
        out = model(input_ids=tokens, past_key_values=cache, use_cache=True)
        cache, tokens = out.past_key_values, out.logits[:, -1].argmax(-1, keepdim=True)
        produced.append(tokens)
    return torch.cat([input_ids, *produced], dim=1)


def uncached(model, input_ids, max_new_tokens):
    for _ in range(max_new_tokens):
        input_ids = torch.cat([input_ids, model(input_ids).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    return input_ids


def forgetful(model, input_ids, max_new_tokens):
    tokens = [model(input_ids).logits[0, -1].argmax()]
    while len(tokens) < max_new_tokens:
        tokens.append(model(tokens[-1].view(1, 1)).logits[0, -1].argmax())
    return tokens


@pytest.mark.parametrize("form", [lambda t: t, lambda t: t[0], lambda t: t[:, 9:], lambda t: t[0, 9:].tolist(), lambda t: list(t[0, 9:])])
def test_every_form_of_the_right_loop_is_accepted(form):
    with torch.inference_mode():
        assert verdict("01-hard", lambda *args: form(cached(*args)))[0]


@pytest.mark.parametrize(
    ("loop", "reason"),
    [
        (uncached, "Keep past_key_values"),
        (forgetful, "Is the cache handed on"),
        (lambda model, ids, n: model.generate(ids, max_new_tokens=n), "yours to write"),
        (lambda model, ids, n: cached(model, ids, n - 1), "came back"),
        (lambda model, ids, n: [], "never calls"),
        (lambda model, ids, n: None, "returns None"),
        (3, "function itself"),
    ],
)
def test_a_wrong_loop_is_explained(loop, reason):
    with torch.inference_mode():
        right, why = verdict("01-hard", loop)
    assert not right and reason in why
