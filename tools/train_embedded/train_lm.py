"""Trains the adapter of the course's language model: `python -m tools.train_embedded.train_lm --minutes 50`.

A LoRA adapter (Hu et al., arXiv:2106.09685) teaches a small instruct model to answer briefly from passages, name the passage and
abstain. The loss counts answer tokens only, and the output layer runs only where they are predicted. Runs on CPU and on CUDA.
"""

import argparse
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer
from transformers.masking_utils import AttentionMaskInterface

from tools.train_embedded.evaluate import reply
from tools.train_embedded.examples import ExampleMaker, chat_tokens, tokenized
from tools.train_embedded.instructions import Instructions, everyday, presentable
from tools.train_embedded.material import material
from tools.train_embedded.reading import Passage
from tools.train_embedded.sheet_attention import sheet_attention
from tools.train_embedded.sheets import Sheets, tokenized_sheet
from tools.train_embedded.training import (
    Batch,
    Plan,
    arguments,
    autocast,
    drawn,
    of_like_length,
    save_adapter,
    steps_done,
    train,
    trainable,
)
from utils import catalog, checkpoints
from utils.models import load_llm

IGNORE = -100
INSTRUCTED = 0.1  # share of batches of short instructions, which keep the model a chat model
CHAT_TEMPLATE = (  # ChatML as the base knows it, without its default system message: 20 tokens less in every prompt
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def parse() -> argparse.Namespace:
    parser = arguments(__doc__.splitlines()[0], "build/train_embedded/lm", minutes=50, learning_rate=6e-4)
    add = parser.add_argument
    add("--base", default="smollm2-135m-instruct", help="catalog key or folder of the model that gets the adapter")
    add("--tokens", type=int, default=1400, help="tokens in a step")
    add("--rank", type=int, default=16)
    add("--init", type=Path, default=None, help="adapter folder to start from, of any training; --rank is then the adapter's")
    add("--blend", type=float, default=0.0, help="share of --init in the adapter that is written: it keeps what a short run would unlearn")
    add("--compile", action="store_true", help="compile the layers: a minute at the start, then 1.5 times faster on a CPU with AMX")
    add("--sheets", type=float, default=0.0, help="share of the run, from its start, over sheets: many questions over the same passages")
    add("--kept", type=int, default=400, help="everyday instructions that the base answers once, before training; its answers are kept")
    add("--neighbours", type=int, default=12, help="similar passages kept per passage, as distractors")
    args = parser.parse_args()
    if args.workers and args.sheets:
        raise SystemExit("--sheets is for CPUs, --workers for a GPU: leave one of them out.")
    if not 0 <= args.blend <= 1 or (args.blend and not args.init):
        raise SystemExit("--blend is a share, from 0 to 1, of the adapter in --init: give both, or leave it out.")
    return args


def batches(maker: ExampleMaker, tokenizer: Any, tokens: int) -> Iterator[Batch]:
    """Endless batches of about `tokens` padded tokens, made of examples of like length."""
    while True:
        pairs = [pair for pair in (tokenized(maker.draw(), tokenizer) for _ in range(max(128, tokens // 16))) if pair]
        made = of_like_length(pairs, lambda pair: len(pair[0]) + len(pair[1]), tokens)
        maker.chance.shuffle(made)
        yield from (collate(group, tokenizer.pad_token_id) for group in made)


def collate(pairs: list[tuple[list[int], list[int]]], pad: int) -> Batch:
    """Right-padded tokens, labels and weights (batch, length). Answer tokens weigh 1/√(answer length), so that a copied sentence
    does not drown a name; the first, which decides between answer and abstention, weighs 1."""
    length = max(len(prompt) + len(answer) for prompt, answer in pairs)
    tokens = torch.full((len(pairs), length), pad)
    labels, weights = torch.full((len(pairs), length), IGNORE), torch.zeros(len(pairs), length)
    for row, (prompt, answer) in enumerate(pairs):
        tokens[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        predicting = slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
        labels[row, predicting], weights[row, predicting] = torch.tensor(answer), len(answer) ** -0.5
        weights[row, len(prompt) - 1] = 1.0
    return {"tokens": tokens, "labels": labels, "weights": weights, "at": answers(labels), "examples": torch.tensor(len(pairs))}


def answers(labels: torch.Tensor) -> torch.Tensor:
    """Where answer tokens are predicted, as indices into flat `labels`: found here, because a GPU would have to be waited for."""
    return torch.nonzero(labels.flatten() != IGNORE)[:, 0]


def instruction_batches(passages: list[Passage], kept: list[tuple[str, str]], tokenizer: Any, tokens: int, seed: int) -> Iterator[Batch]:
    """Endless batches of short instructions and their answers, of about `tokens` tokens."""
    drawn = Instructions(passages, kept, random.Random(seed))
    while True:
        rows: list[tuple[list[int], list[int]]] = []
        while (len(rows) + 1) * max((len(p) + len(a) for p, a in rows), default=0) <= tokens:
            rows.append(chat_tokens(*drawn.draw(), tokenizer))
        yield collate(rows, tokenizer.pad_token_id)


def kept_answers(args: argparse.Namespace, passages: list[Passage]) -> list[tuple[str, str]]:
    """(instruction, answer) pairs as the base answers them, the presentable ones; cached in WORK."""
    file = args.work / "instructions.json"
    if not file.exists():
        prompts = everyday(passages, args.kept, random.Random(args.seed))
        model, tokenizer, _ = load_llm(args.base)
        replies = reply(model, tokenizer, [[{"role": "user", "content": p}] for p in prompts], 16, 96)
        pairs = [(prompt, answer) for prompt, text in zip(prompts, replies) if (answer := presentable(text))]
        file.write_text(json.dumps(pairs, indent=0), encoding="utf-8")
    return [(prompt, answer) for prompt, answer in json.loads(file.read_text(encoding="utf-8"))]


def sheet_batches(maker: ExampleMaker, tokenizer: Any) -> Iterator[Batch]:
    """Endless batches of one sheet each."""
    sheets = Sheets(maker)
    while True:
        if made := tokenized_sheet(sheets.draw(), tokenizer):
            yield collate_sheet(*made, tokenizer.pad_token_id)


def collate_sheet(shared: list[int], branches: list[tuple[list[int], list[int]]], pad: int) -> Batch:
    """The branches as by `collate`, laid one after another behind the shared prompt: one row, and where each token stands in its text."""
    tails = collate(branches, pad)
    count, length = tails["tokens"].shape
    labels = torch.cat([torch.full((1, len(shared)), IGNORE), tails["labels"].view(1, -1)], 1)
    return {
        "tokens": torch.cat([torch.tensor([shared]), tails["tokens"].view(1, -1)], 1),
        "labels": labels,
        "weights": torch.cat([torch.zeros(1, len(shared)), tails["weights"].view(1, -1)], 1),
        "at": answers(labels),
        "positions": torch.cat([torch.arange(len(shared)), len(shared) + torch.arange(length).repeat(count)])[None],
        "shared": torch.tensor(len(shared)),
        "examples": torch.tensor(count),
    }


def in_turn(first: Iterator[Batch], second: Iterator[Batch], begin_second: Callable[[], bool]) -> Iterator[Batch]:
    """Batches of `first` until `begin_second` says so, then of `second`."""
    while not begin_second():
        yield next(first)
    yield from second


def mixed(main: Iterator[Batch], other: Iterator[Batch], share: float, seed: int) -> Iterator[Batch]:
    """Batches of `main`, a random `share` of them of `other`."""
    chance = random.Random(seed)
    while True:
        yield next(other if chance.random() < share else main)


def losses(model: Any, batch: Batch) -> dict[str, torch.Tensor]:
    """The weighted answer loss, and the share of answers whose first token is right."""
    causal = model.get_base_model()
    layout = {}
    if "shared" in batch:
        layout = {"position_ids": batch["positions"], "shared": int(batch["shared"]), "branches": int(batch["examples"])}
    hidden = causal.model(input_ids=batch["tokens"], use_cache=False, **layout).last_hidden_state
    at = batch["at"]
    hidden, labels, weights = (part[at] for part in (hidden.flatten(0, 1), batch["labels"].flatten(), batch["weights"].flatten()))
    logits = causal.lm_head(hidden).float()
    each = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    first = at != torch.roll(at, 1) + 1
    right = ((logits.argmax(-1) == labels) & first).sum() / first.sum()
    return {"answer_loss": (each * weights).sum() / weights.sum(), "first_token_accuracy": right}


def plain_attention(module: Any, query: Any, key: Any, value: Any, mask: None, scaling: float, **options: Any) -> tuple[Any, None]:
    """Causal attention without a mask for padding (it stands on the right), query heads that share a key in one product.

    On a CPU with AMX four times as fast, with its gradient, as PyTorch's own for heads of 64 dimensions. CUDA has PyTorch's own.
    """
    if shared := options.get("shared"):
        return sheet_attention(query, key, value, scaling, shared, options["branches"]).transpose(1, 2).contiguous(), None
    if query.is_cuda:
        attention = torch.nn.functional.scaled_dot_product_attention
        return attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True).transpose(1, 2).contiguous(), None
    batch, heads, length, size = query.shape
    groups = key.shape[1]
    scores = (query.reshape(batch, groups, heads // groups * length, size) @ key.mT).view(batch, heads, length, length) * scaling
    ahead = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
    shares = scores.masked_fill(ahead, float("-inf")).softmax(-1).to(value.dtype)
    mixed = shares.view(batch, groups, heads // groups * length, length) @ value
    return mixed.view(batch, heads, length, size).transpose(1, 2).contiguous(), None


def merged_linear(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """What a LoRA layer of PEFT computes, its matrices added to the weights first: one large product on a GPU in place of three."""
    low_rank = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    return torch.nn.functional.linear(x, (layer.base_layer.weight + layer.scaling["default"] * low_rank).to(x.dtype))


def with_adapter(folder: Path, args: argparse.Namespace, device: str) -> Any:
    """The base in `folder` with fresh LoRA matrices or those of `args.init`. The matrices are fp32, whatever the base is."""
    AttentionInterface.register("plain", plain_attention)
    AttentionMaskInterface.register("plain", lambda *args, **kwargs: None)
    frozen = torch.bfloat16 if autocast(device)._enabled else torch.float32
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=frozen, attn_implementation="plain")
    if device == "cuda":
        peft.tuners.lora.Linear.forward = merged_linear  # type: ignore[method-assign, assignment]
    if args.init:
        return PeftModel.from_pretrained(model, args.init, is_trainable=True).to(device)
    lora = LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, lora).to(device)


def blend(model: Any, start: dict[str, torch.Tensor], share: float) -> None:
    """Moves the trained weights back towards `start`, by `share` of the way (Wortsman et al., arXiv:2109.01903)."""
    for name, weight in trainable(model).items():
        weight.data.lerp_(start[name], share)


def main() -> None:
    args = parse()
    torch.manual_seed(args.seed)
    base = checkpoints.find(args.base, "llm")
    folder = checkpoints.fetch(base)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = CHAT_TEMPLATE
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = with_adapter(folder, args, device).train()
    start = {name: weight.detach().clone() for name, weight in trainable(model).items()}
    if args.compile:
        model.enable_input_require_grads()  # else the first layer, whose input has no gradient, is compiled a second time
        for layer in model.get_base_model().model.layers:
            layer.compile(dynamic=True)
    passages = (read := material(args)).passages
    plan = Plan(args.work, args.learning_rate, args.minutes, args.steps, log=args.log)
    kept = kept_answers(args, passages)

    def stream(seed: int) -> Iterator[Batch]:
        maker = read.maker(seed)
        many, singly = sheet_batches(maker, tokenizer), batches(maker, tokenizer, args.tokens)
        reading = in_turn(many, singly, lambda: plan.progress >= args.sheets)
        return mixed(reading, instruction_batches(passages, kept, tokenizer, args.tokens // 2, seed), INSTRUCTED, seed)

    seed = args.seed + steps_done(args.work)  # a resumed run does not see the same examples again
    train(model, losses, drawn(stream, seed, args.workers), plan)
    blend(model, start, args.blend)
    known = base.card or (catalog.get(base.name) if base.name in catalog.MODELS else None)
    out = args.out or args.work / "adapter"
    save_adapter(model, known.hub_id if known and known.hub_id else str(base.folder), out)
    (out / "chat_template.jinja").write_text(tokenizer.chat_template, encoding="utf-8")


if __name__ == "__main__":
    main()
