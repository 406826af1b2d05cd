"""Trains the RAG generator: `python -m tools.train_embedded.train_rag --minutes 60`.

It reads one passage with a question, in RagRetriever's own format "title / text // question", and writes a short answer in lower case, or
nothing at all where the passage does not answer: so p(empty | question, passage) tells an irrelevant passage, and the marginal over
passages (Lewis et al., arXiv:2005.11401) listens to those that know. Besides the answers, the loss tells the cross-attention where the
copied words stand.
"""

import argparse
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import BartForConditionalGeneration, PreTrainedTokenizerFast

from tools.train_embedded.examples import ExampleMaker
from tools.train_embedded.material import material
from tools.train_embedded.rag_start import smaller_tokenizer, warm_start
from tools.train_embedded.training import Batch, Plan, arguments, drawn, of_like_length, steps_done, train
from utils import checkpoints

IGNORE = -100
MAX_TOKENS, MAX_ANSWER = 256, 24
CROPPED = 0.4  # share of passages cut to a few sentences
POINTER_WEIGHT = 0.5
POINTERS = {0: 4, 1: 12}  # decoder layer: heads of its cross-attention, from the first, that learn to point


def parse() -> argparse.Namespace:
    parser = arguments(__doc__.splitlines()[0], "build/train_embedded/rag", minutes=60, learning_rate=4e-4)
    add = parser.add_argument
    add("--tokens", type=int, default=3000, help="encoder tokens in a step")
    add("--vocabulary", type=int, default=14_500, help="tokens of a fresh model")
    add("--init", type=Path, default=None, help="model folder to start from, of any training, in place of a fresh model")
    add("--irrelevant", type=float, default=0.2, help="share of passages that do not answer")
    add("--neighbours", type=int, default=12, help="similar passages kept per passage, as irrelevant ones")
    return parser.parse_args()


@dataclass
class Pair:
    source: list[int]
    target: list[int]  # answer and end, only the end where the passage does not answer
    places: dict[int, list[int]]  # position in the target: where in the source its word stands


class PairMaker:
    """Draws (question and passage, answer) pairs; the same seed draws the same ones."""

    def __init__(self, examples: ExampleMaker, tokenizer: Any, irrelevant: float = 0.2, seed: int = 0):
        self.examples, self.tokenizer, self.irrelevant, self.chance = examples, tokenizer, irrelevant, random.Random(seed)

    def draw(self) -> Pair | None:
        """A pair, or None where it is too long."""
        maker, chance = self.examples, self.chance
        anchor = chance.choice(maker.anchors)
        passage = maker.passages[anchor]
        asked = chance.randrange(len(passage.questions))
        question, answer = passage.questions[asked]
        text = maker.crop(passage, answer) if chance.random() < CROPPED else passage.text
        if chance.random() < self.irrelevant:
            other = maker.passages[chance.choice(list(maker.similar(anchor, asked)))].text
            if answer.lower() in other.lower():
                return None
            text, answer = other, ""
        return self.pair(title_of(text) if chance.random() < 0.5 else "", text, maker.roughen(question), answer)

    def pair(self, title: str, text: str, question: str, answer: str) -> Pair | None:
        source = self.tokenizer(f"{title} / {text} // {question}".replace("  ", " ")).input_ids
        copied = self.tokenizer(answer, add_special_tokens=False).input_ids
        if len(source) > MAX_TOKENS or len(copied) > MAX_ANSWER:
            return None
        found = [p for p in range(len(source) - len(copied) + 1) if copied and source[p : p + len(copied)] == copied]
        places = {k: [p + k for p in found] for k in range(len(copied))} if found else {}
        return Pair(source, [*copied, self.tokenizer.sep_token_id], places)


def title_of(text: str) -> str:
    """A heading such as a document might have: the first capitalised words of the text."""
    match = re.search(r"[A-Z][\w\-]+(?: [A-Z][\w\-]+){0,3}", text)
    return match[0] if match else ""


def batches(maker: PairMaker, tokens: int) -> Iterator[Batch]:
    """Endless batches of about `tokens` padded encoder tokens, made of pairs of like length."""
    while True:
        pairs = [pair for pair in (maker.draw() for _ in range(max(512, tokens // 8))) if pair]
        made = of_like_length(pairs, lambda pair: len(pair.source), tokens)
        maker.chance.shuffle(made)
        yield from (collate(group) for group in made)


def collate(pairs: list[Pair]) -> Batch:
    """tokens and mask (batch, source), inputs and labels (batch, target), places (batch, target, source)."""
    longest, deepest = max(len(p.source) for p in pairs), max(len(p.target) for p in pairs)
    tokens, labels = torch.zeros(len(pairs), longest, dtype=torch.long), torch.full((len(pairs), deepest), IGNORE)
    places = torch.zeros(len(pairs), deepest, longest, dtype=torch.bool)
    for row, pair in enumerate(pairs):
        tokens[row, : len(pair.source)] = torch.tensor(pair.source)
        labels[row, : len(pair.target)] = torch.tensor(pair.target)
        for position, standing in pair.places.items():
            places[row, position, standing] = True
    inputs = torch.roll(labels, 1, dims=1)
    inputs[:, 0] = 101  # [CLS] starts the answer
    batch = {"tokens": tokens, "mask": (tokens != 0).long(), "inputs": inputs.masked_fill(inputs == IGNORE, 0)}
    return batch | {"labels": labels, "places": places, "examples": torch.tensor(len(pairs))}


def losses(model: Any, batch: Batch) -> dict[str, torch.Tensor]:
    """Answer loss plus pointer loss, both of them, and the share of answers whose first token is right."""
    seen: dict[int, dict[str, torch.Tensor]] = {layer: {} for layer in POINTERS}
    hooks = [
        getattr(model.model.decoder.layers[layer].encoder_attn, name).register_forward_hook(
            lambda module, inputs, output, kept=seen[layer], name=name: kept.__setitem__(name, output)
        )
        for layer in POINTERS
        for name in ("q_proj", "k_proj")
    ]
    states = model.model(
        input_ids=batch["tokens"], attention_mask=batch["mask"], decoder_input_ids=batch["inputs"], use_cache=False
    ).last_hidden_state
    for hook in hooks:
        hook.remove()
    at = batch["labels"] != IGNORE
    logits = model.lm_head(states[at]).float()
    weights = (at / at.sum(1, keepdim=True).sqrt())[at]
    each = torch.nn.functional.cross_entropy(logits, batch["labels"][at], reduction="none")
    with torch.autocast(logits.device.type, enabled=False):
        answer, pointer = (each * weights).sum() / weights.sum(), pointer_loss(seen, batch)
    first = torch.zeros_like(at).index_fill_(1, torch.zeros(1, dtype=torch.long, device=at.device), True)[at]
    right = (logits.argmax(-1) == batch["labels"][at])[first].float().mean()
    return {"loss": answer + POINTER_WEIGHT * pointer, "answer_loss": answer, "pointer_loss": pointer, "first_token_accuracy": right}


def pointer_loss(seen: dict[int, dict[str, torch.Tensor]], batch: Batch) -> torch.Tensor:
    """How little of the pointing heads' attention falls on the words that are copied: mean of -log."""
    never, found = torch.finfo(torch.float32).min, []
    rows, positions = batch["places"].any(-1).nonzero(as_tuple=True)
    for layer, heads in POINTERS.items():
        queries, keys = (seen[layer][name].unflatten(-1, (12, 32))[:, :, :heads].float() for name in ("q_proj", "k_proj"))
        scores = torch.einsum("chd,clhd->chl", queries[rows, positions], keys[rows]) / 32**0.5
        scores = scores.masked_fill(batch["mask"][rows, None] == 0, never)
        chosen = scores.masked_fill(~batch["places"][rows, positions][:, None], never)
        found.append((scores.logsumexp(-1) - chosen.logsumexp(-1)).mean(1))
    weights = (1 / batch["places"].any(-1).sum(1).clamp(min=1).sqrt())[rows]
    return (sum(found) * weights).sum() / len(found) / weights.sum().clamp(min=1e-6)


def main() -> None:
    args = parse()
    torch.manual_seed(args.seed)
    read = material(args)
    model: Any
    if args.init:
        tokenizer, model = PreTrainedTokenizerFast.from_pretrained(args.init), trained_before(args.init)
    else:
        source = checkpoints.fetch(checkpoints.find("minilm", "embedder"))
        asked = [passage for passage in read.passages if passage.questions and passage.source != "text"]
        texts = [passage.text for passage in asked]
        tokenizer, ids = smaller_tokenizer(source, texts + [q for p in asked for q, _ in p.questions], args.vocabulary)
        model = warm_start(source, tokenizer, ids, texts[:300], args.seed)
    model.to("cuda" if torch.cuda.is_available() else "cpu").train()

    def stream(seed: int) -> Iterator[Batch]:
        return batches(PairMaker(read.maker(seed), tokenizer, args.irrelevant, seed), args.tokens)

    plan = Plan(args.work, args.learning_rate, args.minutes, args.steps, log=args.log)
    train(model, losses, drawn(stream, args.seed + steps_done(args.work), args.workers), plan)
    save(model, tokenizer, args.out or args.work / "model")


def trained_before(folder: Path) -> BartForConditionalGeneration:
    """The model in `folder` in fp32, with the attention that has the faster gradient on a CPU."""
    return BartForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


def save(model: Any, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    model.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    print("written:", out)


if __name__ == "__main__":
    main()
