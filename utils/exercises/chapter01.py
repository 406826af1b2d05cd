"""Exercises of chapter 01, LLM inference: choose a model, write top-p, write a generation loop with a KV cache.

Each checker takes the reader's answer in any sensible form and returns (right or not, why). Knows the catalog, and makes the small
model that it watches while the reader's loop runs.
"""

from __future__ import annotations

from typing import Any

from utils.exercises import Exercise

T4_GB = 15.0  # what a T4 leaves of its 16 GB
SPARE_GB = 3.0  # for KV cache and activations
PROMPT, NEW_TOKENS = 9, 12  # tokens of the hard exercise


def check_model_choice(answer: Any) -> tuple[bool, str]:
    """A catalog key: an ungated LLM, too large for a T4 in 16 bits, small enough in NF4."""
    from utils import catalog

    if not isinstance(answer, str):
        return False, f"give one key of the catalog as a string, not {type(answer).__name__}."
    try:
        card = catalog.get(answer.strip())
    except catalog.UnknownModelError as error:
        return False, str(error)
    half, four_bit = card.memory_gb("bf16"), card.memory_gb("nf4")
    reasons = {
        f"{card.key} is not a language model but of kind {card.kind!r}.": card.kind != "llm",
        f"{card.key} is gated: your colleagues would each need an account and a token.": card.gated,
        f"{card.key} needs Python code from its own repository, which the course never runs.": card.own_code,
        f"{card.key} takes {half:.1f} GB in bf16, so it fits a T4's {T4_GB:.0f} GB as it is; take a larger one.": half <= T4_GB,
        f"{card.key} takes {four_bit:.1f} GB even in NF4, which leaves less than {SPARE_GB:.0f} of {T4_GB:.0f} GB.": four_bit
        > T4_GB - SPARE_GB,
    }
    wrong = next((reason for reason, applies in reasons.items() if applies), None)
    return wrong is None, wrong or f"{card.key} takes {half:.1f} GB in bf16, too much for a T4, but {four_bit:.1f} GB in NF4."


def check_nucleus(answer: Any) -> tuple[bool, str]:
    """A function (probabilities, top_p) that returns the kept token ids, or a Boolean mask over the vocabulary."""
    import torch

    if not callable(answer):
        return False, "pass the function itself: check('01-medium', nucleus)."
    running = [0.50, 0.20, 0.15, 0.10, 0.05]
    wide = torch.softmax(2 * torch.randn(50, generator=torch.Generator().manual_seed(1)), dim=0).tolist()
    cases = [(running, 0.8), (running[::-1], 0.8), ([0.1, 0.05, 0.5, 0.15, 0.2], 0.9), (running, 0.4), (running, 1.0), (wide, 0.9)]
    for probabilities, top_p in cases:
        kept = answer(torch.tensor(probabilities), top_p)
        if kept is None:
            return False, "your function returns None: end it with `return` and the token ids to keep."
        found, expected = _token_ids(kept, len(probabilities)), _nucleus(probabilities, top_p)
        if found != expected:
            return False, _explain_nucleus(probabilities, top_p, found, expected)
    return True, f"right on all {len(cases)} distributions, sorted or not, and it never keeps fewer than one token."


def _nucleus(probabilities: list[float], top_p: float, reach: bool = True) -> set[int]:
    """The smallest set of most likely ids whose sum reaches top_p; without `reach`, those before the sum gets there."""
    kept, total = set(), 0.0
    for index in sorted(range(len(probabilities)), key=lambda i: -probabilities[i]):
        if total >= top_p or (not reach and total + probabilities[index] > top_p):
            break
        kept.add(index)
        total += probabilities[index]
    return kept


def _token_ids(kept: Any, size: int) -> set[int]:
    """The ids in a set, list, array, tensor or Boolean mask."""
    values = kept.tolist() if hasattr(kept, "tolist") else list(kept)
    if len(values) == size and all(isinstance(value, bool) for value in values):
        return {index for index, value in enumerate(values) if value}
    return {int(value) for value in values}


def _explain_nucleus(probabilities: list[float], top_p: float, found: set[int], expected: set[int]) -> str:
    shown = f"{probabilities} and top_p={top_p}" if len(probabilities) <= 5 else f"a distribution over 50 tokens and top_p={top_p}"
    got = f"for {shown} you keep {sorted(found) or 'nothing'}, expected {sorted(expected)}."
    if found == _nucleus(probabilities, top_p, reach=False):
        return f"{got} The token with which the sum reaches top_p belongs to the nucleus."
    if probabilities != sorted(probabilities, reverse=True) and found != expected:
        return f"{got} Sort by probability first, and return the original ids, not the ranks."
    return f"{got} Add up the most likely first, and stop once the sum has reached top_p."


def check_cached_loop(answer: Any) -> tuple[bool, str]:
    """A function (model, input_ids, max_new_tokens) that returns greedy tokens and feeds every token through the model once."""
    import torch

    if not callable(answer):
        return False, "pass the function itself: check('01-hard', generate_with_cache)."
    model = _small_model()
    prompt = torch.arange(3, 3 + PROMPT).unsqueeze(0)
    expected = model.generate(prompt, max_new_tokens=NEW_TOKENS, do_sample=False)[0, PROMPT:].tolist()
    fed = _watch(model)
    produced = answer(model, prompt.clone(), NEW_TOKENS)
    if produced is None:
        return False, "your function returns None: end it with `return` and the tokens."
    tokens = _flat(produced)
    if len(tokens) == PROMPT + NEW_TOKENS and tokens[:PROMPT] == prompt[0].tolist():
        tokens = tokens[PROMPT:]
    calls = f"{len(fed)} calls with {', '.join(map(str, fed[:5]))}{' …' if len(fed) > 5 else ''} tokens"
    if not fed:
        return False, "your function never calls the model."
    if sum(fed) > PROMPT + NEW_TOKENS:
        return False, f"{calls}: that is {sum(fed)} in all. Keep past_key_values, and feed only the newest token after the first call."
    if len(tokens) != NEW_TOKENS:
        return False, f"{NEW_TOKENS} new tokens were asked for and {len(tokens)} came back (the prompt may be included or not)."
    if tokens != expected:
        at = next(i for i in range(NEW_TOKENS) if tokens[i] != expected[i])
        return False, f"new token {at + 1} is {tokens[at]}, but greedy decoding gives {expected[at]}. Is the cache handed on at every call?"
    return True, f"the same tokens as generate, in {calls}: {sum(fed)} in all, where a loop without cache feeds {_without_cache()}."


def _without_cache() -> int:
    return sum(PROMPT + step for step in range(NEW_TOKENS))


def _small_model() -> Any:
    """A random Llama of 0.03 M parameters that never ends early."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(vocab_size=97, initializer_range=0.3, pad_token_id=0, eos_token_id=None, bos_token_id=None, **shape)
        return LlamaForCausalLM(config).eval()


def _watch(model: Any) -> list[int]:
    """A list that gets the number of tokens of every forward call; from here on the model refuses `generate`."""
    fed: list[int] = []

    def note(module: Any, args: tuple, kwargs: dict) -> None:
        tokens: Any = args[0] if args else kwargs.get("input_ids", kwargs.get("inputs_embeds"))
        fed.append(tokens.shape[1])

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("here the loop is yours to write: call the model itself, not generate")

    model.register_forward_pre_hook(note, with_kwargs=True)
    model.generate = refuse
    return fed


def _flat(tokens: Any) -> list[int]:
    """Token ids from a tensor or (nested) list, flattened."""
    import torch

    if isinstance(tokens, list | tuple):
        tokens = [token.item() if isinstance(token, torch.Tensor) and token.numel() == 1 else token for token in tokens]
    return [int(token) for token in torch.as_tensor(tokens).flatten()]


EXERCISES = [
    Exercise(
        "01-easy",
        "easy",
        (
            'pd.DataFrame(catalog.table("llm")) has a column per precision; compare bf16_gb and nf4_gb with 15 and 12.',
            "A parameter takes 2 bytes in bf16 and a little over half a byte in NF4: look between 8 and 20 billion parameters.",
            'Filter: table[~table.gated & (table.bf16_gb > 15) & (table.nf4_gb < 12) & (table.replaced_by == "")].',
        ),
        check_model_choice,
    ),
    Exercise(
        "01-medium",
        "medium",
        (
            "Sort the probabilities, add them up from the largest, and find where the sum first reaches top_p.",
            "probabilities.sort(descending=True) gives values and ids; values.cumsum(0) the running sum.",
            "A token is kept if the sum *before* it is still below top_p: values.cumsum(0) - values < top_p.",
        ),
        check_nucleus,
    ),
    Exercise(
        "01-hard",
        "hard",
        (
            "The first call gets the whole prompt; every later call gets one token and the cache of the call before.",
            "out = model(input_ids=tokens, past_key_values=cache, use_cache=True), then cache = out.past_key_values.",
            "The next token is out.logits[:, -1].argmax(-1, keepdim=True); it is both what you keep and what you feed next.",
        ),
        check_cached_loop,
    ),
]
