"""Trains the adapter of the course's reranker: `python -m tools.train_embedded.train_reranker --minutes 30`.

A LoRA adapter (Hu et al., arXiv:2106.09685) and a scoring head make a cross-encoder of all-MiniLM-L6-v2. Each step sees lists: a query,
the passage that answers it and hard negatives. The loss is half listwise cross-entropy on the right passage (Cao et al., 2007), half
cross-entropy with a teacher's distribution over the list (late interaction with fusion, see `mining`). Runs on CPU and on CUDA.
"""

import argparse
import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tools.train_embedded import mining
from tools.train_embedded.ranking import pools
from tools.train_embedded.training import Batch, Plan, arguments, autocast, save_adapter, steps_done, train
from utils import checkpoints
from utils.models import load_embedder
from utils.windows import WindowChooser

WINDOWS = {128: 0.55, 256: 0.3, 460: 0.15}  # tokens that a list's passages are cut to, as the reranker cuts them at inference
HARDEST, FROM_HARDEST = 8, 0.6  # negatives among the first 8 found; the share of negatives taken there
SHARPNESS = 1.5  # the teacher's scores times this, in a softmax, predict the right passage best (fitted on the lists)
TOKENS_AT_ONCE = 2048


def parse() -> argparse.Namespace:
    parser = arguments(__doc__.splitlines()[0], "build/train_embedded/reranker", minutes=30, learning_rate=6e-4)
    add = parser.add_argument
    add("--lists", type=int, default=6, help="lists in a step")
    add("--negatives", type=int, default=6, help="negatives in a list")
    add("--teacher", type=float, default=0.5, help="the teacher's share of the loss")
    add("--rank", type=int, default=32)
    add("--pool", type=int, default=380, help="passages that are searched together")
    return parser.parse_args()


class ListMaker:
    """Draws lists: a pool by its share, a query of it, its passage first and then negatives. The same seed draws the same ones."""

    def __init__(self, lists: list[dict], passages: list[str], tokenizer: Any, negatives: int, seed: int = 0):
        self.passages, self.tokenizer, self.negatives, self.chance = passages, tokenizer, negatives, random.Random(seed)
        self.choosers = {size: WindowChooser(tokenizer, size) for size in WINDOWS}
        self.by_pool: dict[str, list[dict]] = defaultdict(list)
        for row in lists:
            if len(row["passages"]) > negatives:
                self.by_pool[row["pool"]].append(row)
        if not self.by_pool:
            raise SystemExit(f"No list has {negatives} negatives: lower --negatives, or give more data.")
        self.shares = [rows[0]["share"] for rows in self.by_pool.values()]
        self.waiting: dict[str, list[dict]] = {name: [] for name in self.by_pool}

    def draw(self) -> tuple[list[list[int]], list[list[int]], list[float]]:
        """Token ids and token types per pair, the right one first, and the teacher's scores."""
        name = self.chance.choices(list(self.by_pool), self.shares)[0]
        if not self.waiting[name]:  # every query once before any comes again
            self.waiting[name] = self.chance.sample(self.by_pool[name], len(self.by_pool[name]))
        row = self.waiting[name].pop()
        places = [0, *self.negatives_of(row)]
        size = self.chance.choices(list(WINDOWS), list(WINDOWS.values()))[0]
        texts = self.choosers[size](row["query"], [self.passages[row["passages"][place]] for place in places])
        encoded = self.tokenizer(
            [row["query"]] * len(texts), texts, truncation="only_second" if len(row["query"]) < 800 else True, max_length=512
        )
        return encoded["input_ids"], encoded["token_type_ids"], [row["teacher"][place] for place in places]

    def negatives_of(self, row: dict) -> list[int]:
        """Places in the row: mostly among the first found, the others from the rest."""
        hard = list(range(1, min(HARDEST + 1, len(row["passages"]))))
        rest = list(range(len(hard) + 1, len(row["passages"])))
        easy = self.chance.sample(rest, min(len(rest), round((1 - FROM_HARDEST) * self.negatives)))
        more = self.chance.sample(hard, min(len(hard), self.negatives - len(easy)))
        left = [place for place in rest if place not in easy]
        return [*more, *easy, *self.chance.sample(left, self.negatives - len(more) - len(easy))]


def batches(maker: ListMaker, lists: int) -> Iterator[Batch]:
    """Endless batches of `lists` lists, pairs one after the other without padding."""
    while True:
        drawn = [maker.draw() for _ in range(lists)]
        pairs = [(ids, types) for many_ids, many_types, _ in drawn for ids, types in zip(many_ids, many_types)]
        yield {
            "tokens": torch.tensor([token for ids, _ in pairs for token in ids]),
            "types": torch.tensor([kind for _, types in pairs for kind in types]),
            "lengths": torch.tensor([len(ids) for ids, _ in pairs]),
            "teacher": torch.tensor([scores for _, _, scores in drawn]),
            "examples": torch.tensor(lists),
        }


def scored(model: Any, batch: Batch) -> torch.Tensor:
    """The model's score of each pair, (pairs,) float32; pairs of like length go through it together."""
    lengths = batch["lengths"].tolist()
    tokens, types = (torch.split(batch[name], lengths) for name in ("tokens", "types"))
    order = sorted(range(len(lengths)), key=lambda place: lengths[place])
    groups: list[list[int]] = [[]]
    for place in order:
        if groups[-1] and (len(groups[-1]) + 1) * lengths[place] > TOKENS_AT_ONCE:
            groups.append([])
        groups[-1].append(place)
    scores = []
    for group in groups:
        ids, kinds = (torch.nn.utils.rnn.pad_sequence([one[place] for place in group], batch_first=True) for one in (tokens, types))
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(tokens[place]) for place in group], batch_first=True)
        scores.append(model(input_ids=ids, token_type_ids=kinds, attention_mask=mask).logits[:, 0].float())
    return torch.cat(scores)[torch.tensor(order).argsort()]


def losses(model: Any, batch: Batch, teacher_share: float) -> dict[str, torch.Tensor]:
    """The mixed loss, its two parts, and how often the right passage has the highest score."""
    scores = scored(model, batch).view(len(batch["teacher"]), -1).log_softmax(-1)
    right = -scores[:, 0].mean()
    taught = -((SHARPNESS * batch["teacher"]).softmax(-1) * scores).sum(-1).mean()
    first = (scores.argmax(-1) == 0).float().mean()
    return {"loss": (1 - teacher_share) * right + teacher_share * taught, "label_loss": right, "teacher_loss": taught, "right_first": first}


def cross_encoder(folder: Path, rank: int, device: str) -> Any:
    """MiniLM with one score per pair: fresh LoRA matrices in every layer, a fresh pooler and head, all of these in fp32.

    MiniLM's own pooler never took part in its training as an embedder; an orthogonal one keeps all of the first token's vector.
    """
    frozen = torch.bfloat16 if autocast(device)._enabled else torch.float32
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=frozen, attn_implementation="eager", **off)
    pooler = model.bert.pooler.dense
    pooler.weight.data.copy_(torch.nn.init.orthogonal_(torch.empty(pooler.weight.shape)))
    layers = r".*\.layer\.\d+\..*(query|key|value|dense)"
    head = ["pooler", "classifier"]
    model = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=layers, task_type="SEQ_CLS", modules_to_save=head))
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
    return model.to(device)


def main() -> None:
    args = parse()
    torch.manual_seed(args.seed)
    args.work.mkdir(parents=True, exist_ok=True)
    base = checkpoints.find("minilm", "embedder")
    folder = checkpoints.fetch(base)
    if not (args.work / "lists.jsonl.gz").exists():
        mining.write(pools(args.data, args.pool, args.seed), load_embedder("minilm"), args.work)
    lists, passages = mining.read(args.work)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    maker = ListMaker(lists, passages, tokenizer, args.negatives, args.seed + steps_done(args.work))
    model = cross_encoder(folder, args.rank, "cuda" if torch.cuda.is_available() else "cpu").train()
    plan = Plan(args.work, args.learning_rate, args.minutes, args.steps, log=args.log)
    train(model, lambda model, batch: losses(model, batch, args.teacher), batches(maker, args.lists), plan, args.seed)
    save_adapter(model, base.card.hub_id if base.card else str(base.folder), args.out or args.work / "adapter")


if __name__ == "__main__":
    main()
