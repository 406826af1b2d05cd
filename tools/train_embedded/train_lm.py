"""Trains the adapter of the course's language model: `python -m tools.train_embedded.train_lm --minutes 50`.

A LoRA adapter (Hu et al., arXiv:2106.09685) teaches a small instruct model to answer briefly from passages, name the passage and
abstain. The loss counts answer tokens only, and the output layer runs only where they are predicted. Runs on CPU and on CUDA.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from tools.train_embedded.examples import ExampleMaker, neighbours, tokenized
from tools.train_embedded.reading import Passage, qa_passages, text_passages
from tools.train_embedded.training import Batch, Plan, steps_done, train
from utils import catalog, checkpoints

IGNORE = -100
CHAT_TEMPLATE = (  # ChatML as the base knows it, without its default system message: 20 tokens less in every prompt
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", type=Path, default=Path("../shared/data"), help="folder of JSON Lines, laid out as qa/train and text")
    add("--work", type=Path, default=Path("build/train_embedded/lm"), help="checkpoint, log and prepared files")
    add("--base", default="smollm2-135m-instruct", help="catalog key or folder of the model that gets the adapter")
    add("--out", type=Path, default=None, help="adapter folder; default WORK/adapter")
    add("--minutes", type=float, default=50, help="length of the whole run; the learning rate falls to zero over it")
    add("--steps", type=int, default=None, help="length of the run in steps, in place of minutes")
    add("--tokens", type=int, default=1400, help="tokens in a step")
    add("--rank", type=int, default=16)
    add("--learning-rate", type=float, default=6e-4)
    add("--log", type=Path, default=None, help="CSV log; default WORK/log.csv")
    add("--neighbours", type=int, default=12, help="similar passages kept per passage, as distractors")
    add("--seed", type=int, default=0)
    return parser.parse_args()


def prepared(args: argparse.Namespace) -> tuple[list[Passage], np.ndarray]:
    """Passages and their neighbours; these are cached in WORK."""
    args.work.mkdir(parents=True, exist_ok=True)
    passages = qa_passages(args.data) + text_passages(args.data)
    near_file = args.work / "neighbours.npy"
    if not near_file.exists():
        np.save(near_file, neighbours(passages, args.neighbours), allow_pickle=False)
    near = np.load(near_file, allow_pickle=False)
    if len(near) != len(passages):
        raise SystemExit(f"{near_file} is of other data ({len(near)} passages, now {len(passages)}): delete it and run again.")
    return passages, near


def batches(maker: ExampleMaker, tokenizer: Any, tokens: int) -> Iterator[Batch]:
    """Endless batches of about `tokens` padded tokens, made of examples of like length."""
    while True:
        drawn = [pair for pair in (tokenized(maker.draw(), tokenizer) for _ in range(128)) if pair]
        drawn.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
        made, start = [], 0
        for end in range(1, len(drawn) + 1):
            if end == len(drawn) or (end + 1 - start) * sum(map(len, drawn[end])) > tokens:
                made.append(drawn[start:end])
                start = end
        maker.chance.shuffle(made)
        yield from (collate(group, tokenizer.pad_token_id) for group in made)


def collate(pairs: list[tuple[list[int], list[int]]], pad: int) -> Batch:
    """Right-padded tokens, labels and weights (batch, length). Answer tokens weigh 1/√(answer length), so that a copied sentence
    does not drown a name."""
    length = max(len(prompt) + len(answer) for prompt, answer in pairs)
    tokens = torch.full((len(pairs), length), pad)
    labels, weights = torch.full((len(pairs), length), IGNORE), torch.zeros(len(pairs), length)
    for row, (prompt, answer) in enumerate(pairs):
        tokens[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        predicting = slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
        labels[row, predicting], weights[row, predicting] = torch.tensor(answer), len(answer) ** -0.5
    return {"tokens": tokens, "labels": labels, "weights": weights, "examples": torch.tensor(len(pairs))}


def losses(model: Any, batch: Batch) -> dict[str, torch.Tensor]:
    """The weighted answer loss, and the share of answers whose first token is right."""
    causal = model.get_base_model()
    hidden = causal.model(input_ids=batch["tokens"], use_cache=False).last_hidden_state
    at = batch["labels"] != IGNORE
    logits, labels, weights = causal.lm_head(hidden[at]).float(), batch["labels"][at], batch["weights"][at]
    each = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    first = (at & ~torch.roll(at, 1, dims=1))[at]
    right = (logits.argmax(-1) == labels)[first].float().mean()
    return {"answer_loss": (each * weights).sum() / weights.sum(), "first_token_accuracy": right}


def main() -> None:
    args = parse()
    torch.manual_seed(args.seed)
    base = checkpoints.find(args.base, "llm")
    folder = checkpoints.fetch(base)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = CHAT_TEMPLATE
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    lora = LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, lora).to("cuda" if torch.cuda.is_available() else "cpu").train()
    passages, near = prepared(args)
    plan = Plan(args.work, args.learning_rate, args.minutes, args.steps, log=args.log)
    maker = ExampleMaker(passages, near, args.seed + steps_done(args.work))  # a resumed run does not see the same examples again
    train(model, losses, batches(maker, tokenizer, args.tokens), plan)
    save_adapter(model, tokenizer, base, args.out or args.work / "adapter")


def save_adapter(model: Any, tokenizer: Any, base: checkpoints.Source, out: Path) -> None:
    """The adapter in fp16 with its tokenizer; it names its base by Hub id where there is one."""
    known = base.card or (catalog.get(base.name) if base.name in catalog.MODELS else None)
    model.peft_config["default"].base_model_name_or_path = known.hub_id if known else str(base.folder)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.half()
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "README.md").unlink(missing_ok=True)  # PEFT's empty form; the model card is written by hand
    print("written:", out)


if __name__ == "__main__":
    main()
