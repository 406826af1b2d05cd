"""Sets how readily the language model abstains: `python -m tools.train_embedded.calibrate --adapter FOLDER`.

Where a small model is unsure, its doubt spreads over many possible answers, and the one fixed sentence of abstention wins the
argmax. A bias on that sentence's first token mends this. "The" without a space before it stands nowhere else than at the start of a
reply, so `sequence_bias` in generation_config.json, which every `generate` reads, does it. The bias is chosen by balanced accuracy on
validation questions of which half have no answer, a third over one passage, the others over three; `evaluate.py` reports on others.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import GenerationConfig

from tools.train_embedded.evaluate import distracted, merged_if_adapter, messages, sample
from tools.train_embedded.reading import read_rows
from utils.models import load_embedder, load_llm
from utils.rag import ABSTENTION

SEED = 1  # evaluate.py reports on the questions of seed 0


def margins(model: Any, tokenizer: Any, rows: list[dict], passages: list[list[str]]) -> np.ndarray:
    """(rows,) logit of the abstention's first token minus the best other logit, where the reply to a row over its passages begins."""
    first = tokenizer(ABSTENTION, add_special_tokens=False).input_ids[0]
    found = []
    for row, shown in tqdm(list(zip(rows, passages)), desc="reading"):
        chat = messages(row["question"], shown)
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True).input_ids
        with torch.inference_mode():
            logits = model(ids.to(model.device), logits_to_keep=1).logits[0, -1].float()
        others = torch.cat([logits[:first], logits[first + 1 :]])
        found.append((logits[first] - others.max()).item())
    return np.array(found)


def best_shift(margin: np.ndarray, unanswerable: np.ndarray) -> float:
    """The bias to add, so that the margin's sign splits answerable from unanswerable questions well.

    Of all cuts within one standard error of the best balanced accuracy (a rule of Breiman et al., Classification and Regression Trees,
    1984), the one that answers most.
    """
    tolerance = 0.5 / len(margin) ** 0.5
    cuts = np.quantile(margin, np.linspace(0.02, 0.98, 97))
    accuracy = np.array([((margin >= c)[unanswerable].mean() + (margin < c)[~unanswerable].mean()) / 2 for c in cuts])
    return -float(cuts[accuracy >= accuracy.max() - tolerance].max())


def three(gold: str, passages: list[str], place: int) -> list[str]:
    """Two of the `passages` with `gold` at `place` among them."""
    others = [passage for passage in passages if passage != gold][:2]
    return [*others[:place], gold, *others[place:]]


def validation_questions(data: Path, count: int, embedder: Any) -> tuple[list[dict], list[list[str]]]:
    """At most `count` questions that `evaluate.py` does not report on, half of them unanswerable, and one or three passages for each."""
    every = read_rows(str(data / "qa/valid/squad2_dev_half.jsonl.gz"))
    held = {row["question"] for row in sample(every, 400)}
    rows = [row for row in sample(every, count, seed=SEED) if row["question"] not in held]
    crowd = distracted(rows, list(dict.fromkeys(row["context"] for row in rows)), embedder)
    return rows, [[row["context"]] if index % 3 == 0 else three(row["context"], crowd[index], index % 3) for index, row in enumerate(rows)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--adapter", type=Path, default=Path("build/train_embedded/lm/adapter"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--count", type=int, default=2500, help="few questions leave the rule much room: 448 led to a loss of four points")
    args = parser.parse_args()
    (args.adapter / "generation_config.json").unlink(missing_ok=True)
    model, tokenizer, _ = load_llm(merged_if_adapter(str(args.adapter)))
    rows, shown = validation_questions(args.data, args.count, load_embedder("minilm"))
    shift = best_shift(margins(model, tokenizer, rows, shown), np.array([not row["answers"] for row in rows]))
    first = tokenizer(ABSTENTION, add_special_tokens=False).input_ids[0]
    ends = {name: getattr(model.generation_config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    GenerationConfig(**ends, sequence_bias=[[[first], round(shift, 3)]]).save_pretrained(args.adapter)
    print(f"bias of {tokenizer.decode([first])!r} set to {shift:+.2f}, chosen on {len(rows)} questions")


if __name__ == "__main__":
    main()
