"""Sets how readily the language model abstains: `python -m tools.train_embedded.calibrate --adapter FOLDER`.

Where a small model is unsure, its doubt spreads over many possible answers, and the one fixed sentence of abstention wins the
argmax. A bias on that sentence's first token mends this. "The" without a space before it stands nowhere else than at the start of a
reply, so `sequence_bias` in generation_config.json, which every `generate` reads, does it. The bias is chosen on validation questions,
half of which have no answer, by balanced accuracy; `evaluate.py` reports on other questions.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import GenerationConfig

from tools.train_embedded.evaluate import merged_if_adapter, messages, sample
from tools.train_embedded.reading import read_rows
from utils.models import load_llm
from utils.rag import ABSTENTION

SEED = 1  # evaluate.py reports on the questions of seed 0


def margins(model: Any, tokenizer: Any, rows: list[dict]) -> np.ndarray:
    """(rows,) logit of the abstention's first token minus the best other logit, where the reply begins."""
    first = tokenizer(ABSTENTION, add_special_tokens=False).input_ids[0]
    found = []
    for row in tqdm(rows, desc="reading"):
        chat = messages(row["question"], [row["context"]])
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True).input_ids
        with torch.inference_mode():
            logits = model(ids.to(model.device), logits_to_keep=1).logits[0, -1].float()
        others = torch.cat([logits[:first], logits[first + 1 :]])
        found.append((logits[first] - others.max()).item())
    return np.array(found)


def best_shift(margin: np.ndarray, unanswerable: np.ndarray, tolerance: float = 0.02) -> float:
    """The bias to add, so that the margin's sign splits answerable from unanswerable questions well.

    Of all cuts within `tolerance` (about one standard error) of the best balanced accuracy, the one that answers most.
    """
    cuts = np.quantile(margin, np.linspace(0.02, 0.98, 97))
    accuracy = np.array([((margin >= c)[unanswerable].mean() + (margin < c)[~unanswerable].mean()) / 2 for c in cuts])
    return -float(cuts[accuracy >= accuracy.max() - tolerance].max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--adapter", type=Path, default=Path("build/train_embedded/lm/adapter"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--count", type=int, default=300)
    args = parser.parse_args()
    (args.adapter / "generation_config.json").unlink(missing_ok=True)
    model, tokenizer, _ = load_llm(merged_if_adapter(str(args.adapter)))
    every = read_rows(str(args.data / "qa/valid/squad2_dev_half.jsonl.gz"))
    held = {row["question"] for row in sample(every, 400)}
    rows = [row for row in sample(every, args.count, seed=SEED) if row["question"] not in held]
    shift = best_shift(margins(model, tokenizer, rows), np.array([not row["answers"] for row in rows]))
    first = tokenizer(ABSTENTION, add_special_tokens=False).input_ids[0]
    settings = model.generation_config.to_diff_dict() | {"sequence_bias": [[[first], shift]]}
    GenerationConfig(**settings).save_pretrained(args.adapter)
    print(f"bias of {tokenizer.decode([first])!r} set to {shift:+.2f}, chosen on {len(rows)} questions")


if __name__ == "__main__":
    main()
