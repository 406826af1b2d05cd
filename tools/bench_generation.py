"""Speed of generating text, for `bench`: the course's chat model beside plain `generate` of the same model in bf16."""

from collections.abc import Callable
from typing import Any

from tools.bench import QUESTION, Comparison, timed

TOKENS = 64


def generation_comparisons() -> list[Comparison]:
    """Returns the key-value cache, batching, int8 copies and prompt lookup, each against generating without it.

    The last two stand beside plain `generate`, with the attention that transformers takes by itself.
    """
    from utils.attention import best_attention
    from utils.chat import LocalChatModel
    from utils.decoding import keep_int8_copies
    from utils.models import load_llm

    loaded = load_llm()
    generate = generator(loaded.model, loaded.tokenizer)
    prompts = [f"{QUESTION} ({number})" for number in range(8)]
    asked, answers = [[prompt] for prompt in prompts[:3]], [[chat] for chat in rag_prompts(loaded.tokenizer)]
    generate(prompts[:1], TOKENS)
    without, _ = timed(lambda: generate(prompts[:1], TOKENS, use_cache=False))
    one_by_one, _ = timed(lambda: [generate([prompt], TOKENS) for prompt in prompts])
    batched, _ = timed(lambda: generate(prompts, TOKENS))
    loaded.model.set_attn_implementation("sdpa")
    plain, plain_rag = after_first_token(generate, asked), after_first_token(generate, answers)
    loaded.model.set_attn_implementation(best_attention(loaded.model))
    keep_int8_copies(loaded.model)
    copied = after_first_token(generate, asked)
    copied_rag = after_first_token(generate, answers, prompt_lookup_num_tokens=LocalChatModel.model_fields["prompt_lookup"].default)
    return [
        Comparison(f"{TOKENS} tokens with the KV cache", without, one_by_one / len(prompts), aim=1),
        Comparison("8 answers as one batch", one_by_one, batched, aim=2),
        Comparison("free text after its first token, int8 copies", plain, copied, aim=2),
        Comparison("RAG answers after their first token, and lookup", plain_rag, copied_rag, aim=2),
    ]


def rag_prompts(tokenizer: Any) -> list[str]:
    """Returns 8 prompts of the RAG chain as text."""
    from tools import load_server

    return [tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) for chat in load_server.rag_prompts(8)]


def generator(model: Any, tokenizer: Any) -> Callable[..., None]:
    """Returns a function of texts, a number of tokens and options that generates exactly so many tokens, greedily, in one batch."""
    import torch

    tokenizer.padding_side = "left"

    def generate(texts: list[str], tokens: int, **options: Any) -> None:
        inputs = tokenizer(texts, return_tensors="pt", padding=True).to(model.device)
        with torch.inference_mode():
            model.generate(**inputs, min_new_tokens=tokens, max_new_tokens=tokens, do_sample=False, **options)

    return generate


def after_first_token(generate: Callable[..., None], prompts: list[list[str]], **options: Any) -> float:
    """Returns the seconds that one prompt after the other takes for 33 tokens, less those for the first; medians of three rounds."""

    def seconds(tokens: int) -> float:
        def work() -> None:
            for one in prompts:
                generate(one, tokens, **options)

        return timed(work, repeats=3)[0]

    return seconds(33) - seconds(1)
