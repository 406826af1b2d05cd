"""Chat rows as a `datasets.Dataset` that TRL trains on: token ids, and which of them the loss counts.

Knows messages and a tokenizer's chat template. Knows nothing about models. Rows are tokenized here, once, because only then is it
known which are longer than the context; TRL takes the result as it is and would otherwise cut such rows without a word.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]


@dataclass(frozen=True)
class DataReport:
    """What became of the rows. `too_long` holds (row, tokens) of those left out; token counts are those of the rows kept."""

    rows: int
    kept: int
    max_length: int
    longest: int
    prompt_tokens: int
    completion_tokens: int
    too_long: tuple[tuple[int, int], ...] = ()
    re_rendered: int = 0

    def __str__(self) -> str:
        share = 100 * self.completion_tokens / max(1, self.prompt_tokens + self.completion_tokens)
        lines = [
            f"rows       {self.kept:,} of {self.rows:,} kept; the longest has {self.longest:,} of {self.max_length:,} tokens",
            f"tokens     {self.prompt_tokens:,} in prompts, {self.completion_tokens:,} in completions: the loss counts {share:.0f} %",
        ]
        if self.too_long:
            lines.append(f"left out   {_listed(self.too_long)}")
        if self.re_rendered:
            lines.append(f"note       the chat template renders the prompt alone differently in {self.re_rendered:,} rows")
        return "\n".join(lines)


class ChatDataset(NamedTuple):
    """The dataset (prompt, completion, input_ids, completion_mask) and the report on its rows."""

    dataset: Dataset
    report: DataReport


def prepare_chat_dataset(rows: Iterable[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, max_length: int) -> ChatDataset:
    """The rows as a prompt/completion dataset, tokenized; a row longer than `max_length` tokens is left out and named.

    rows: {"prompt", "completion"} as text or as lists of messages, or {"messages"} whose last message is the completion.
    completion_mask is 1 for the tokens the loss counts: the answer and the token that ends it.

    Raises:
        ValueError: for a row without prompt or completion (says which), or when no row fits.
    """
    from datasets import Dataset

    kept: list[dict[str, Any]] = []
    too_long: list[tuple[int, int]] = []
    re_rendered = count = 0
    for count, row in enumerate(rows, start=1):
        prompt, completion = _messages(row, count - 1)
        ids, start, differs = _tokenize(tokenizer, prompt, completion)
        if len(ids) > max_length:
            too_long.append((count - 1, len(ids)))
            continue
        mask = [0] * start + [1] * (len(ids) - start)
        kept.append({"prompt": prompt, "completion": completion, "input_ids": ids, "completion_mask": mask})
        re_rendered += differs
    if not kept:
        raise ValueError(f"None of {count} rows fits into {max_length} tokens. Give rows, shorter ones, or a larger max_length.")
    if too_long:
        warnings.warn(
            f"{len(too_long)} of {count} rows are longer than {max_length} tokens and left out: {_listed(too_long)}", stacklevel=2
        )
    trained = sum(sum(row["completion_mask"]) for row in kept)
    lengths = [len(row["input_ids"]) for row in kept]
    report = DataReport(count, len(kept), max_length, max(lengths), sum(lengths) - trained, trained, tuple(too_long), re_rendered)
    return ChatDataset(Dataset.from_list(kept), report)


def _messages(row: Mapping[str, Any], number: int) -> tuple[list[Message], list[Message]]:
    """(prompt, completion) as message lists."""
    if row.get("messages"):
        prompt, completion = list(row["messages"][:-1]), list(row["messages"][-1:])
    else:
        prompt, completion = _as_messages(row.get("prompt"), "user"), _as_messages(row.get("completion"), "assistant")
    problem = (
        "no prompt" if not prompt
        else "no completion" if not any(message["content"].strip() for message in completion)
        else f"a completion by {completion[0]['role']!r}, not by 'assistant'" if completion[0]["role"] != "assistant"
        else ""
    )  # fmt: skip
    if problem:
        raise ValueError(f"Row {number} has {problem}. A row is {{'prompt': …, 'completion': …}}, each a text or a list of messages.")
    return prompt, completion


def _as_messages(value: Any, role: str) -> list[Message]:
    return [{"role": role, "content": value}] if isinstance(value, str) else [dict(message) for message in value or []]


def _tokenize(tokenizer: Any, prompt: list[Message], completion: list[Message]) -> tuple[list[int], int, bool]:
    """(token ids of the whole row, where the completion starts, whether the template rendered the prompt differently in it).

    Without a chat template the row is text, joined as `utils.chat` joins it when it asks.
    """
    if tokenizer.chat_template:
        alone = _apply(tokenizer, prompt, add_generation_prompt=True)
        whole = _apply(tokenizer, prompt + completion, add_generation_prompt=False)
    else:
        text, answer = ("\n\n".join(message["content"] for message in part) for part in (prompt, completion))
        alone = tokenizer(text)["input_ids"]
        whole = alone + tokenizer("\n\n" + answer, add_special_tokens=False)["input_ids"]
    start = next((at for at, (one, other) in enumerate(zip(alone, whole)) if one != other), min(len(alone), len(whole)))
    end = tokenizer.eos_token_id
    if end is not None and end not in whole[start:]:  # the model would never learn to stop
        whole = [*whole, end]
    return whole, start, start < len(alone)


def _apply(tokenizer: Any, messages: list[Message], add_generation_prompt: bool) -> list[int]:
    encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=add_generation_prompt, tokenize=True, return_dict=True)
    return list(encoded["input_ids"])


def _listed(rows: Iterable[tuple[int, int]]) -> str:
    """ "row 3 (1,200 tokens), row 9 (1,100 tokens), … 4 more"."""
    rows = list(rows)
    shown = ", ".join(f"row {number} ({tokens:,} tokens)" for number, tokens in rows[:5])
    return shown + (f", … {len(rows) - 5} more" if len(rows) > 5 else "")
