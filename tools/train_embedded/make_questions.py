"""Makes more questions: `python -m tools.train_embedded.make_questions --init data/models/course-lm`, before `train_lm`, on a GPU.

A model learns from the questions there are to write an answer and its question below a passage; it does so for passages with few
questions; and a pair stays only where the reader in `--init`, asked, gives the very same answer (round-trip consistency: Alberti et al.,
arXiv:1906.05416). `WORK/made.json` holds them; `material` reads it. Knows passages and models; knows nothing of distractors.
"""

import argparse
import json
import random
import time
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm
from transformers import AutoTokenizer

from tools.train_embedded.examples import chat_tokens
from tools.train_embedded.material import passages_of
from tools.train_embedded.reading import Passage
from tools.train_embedded.train_lm import CHAT_TEMPLATE, collate, losses, with_adapter
from tools.train_embedded.training import Batch, Plan, arguments, autocast, drawn, of_like_length, train
from utils import checkpoints
from utils.rag import rag_messages

PROMPT = "Write a short answer from this text, and below it the question that it answers.\n\n{}"
LEARNT_FROM = ("squad", "adversarialqa", "hotpot", "confiqa", "selqa", "tatqa", "wikiqa")  # sources whose answers stand in their passages
ASKED = (*LEARNT_FROM, "text", "boolq", "nq_swap", "pubmedqa", "narrativeqa", "quoref", "ropes", "musique")  # no dialogues, no terms of use
ENOUGH = 3  # passages with so many questions get no more
MOST_WORDS = 200


class Made(NamedTuple):
    passage: int  # its index in `passages_of`
    question: str
    answer: str


def parse() -> argparse.Namespace:
    parser = arguments(__doc__.splitlines()[0], "build/train_embedded/lm", minutes=1.2, learning_rate=1e-3)
    add = parser.add_argument
    add("--base", default="smollm2-135m-instruct", help="catalog key or folder of the model under the adapters")
    add("--init", type=Path, required=True, help="adapter of the reader; the asking model starts from it too")
    add("--tokens", type=int, default=24_000, help="tokens in a step")
    add("--batch", type=int, default=1024, help="passages asked about at once")
    add("--each", type=int, default=2, help="pairs written for a passage")
    add("--asking-minutes", type=float, default=2.0, help="no more passages are asked about after so long")
    return parser.parse_args()


def prompt(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": PROMPT.format(text)}]


def lessons(passages: list[Passage], tokenizer: Any, tokens: int, seed: int) -> Iterator[Batch]:
    """Endless batches of about `tokens` tokens: a passage, one of its answers, the question."""
    chance = random.Random(seed)
    asked = [(p.text, q, a) for p in passages if p.source.startswith(LEARNT_FROM) for q, a in p.questions if a in p.text]
    while True:
        rows = [chat_tokens(prompt(text), f"{a}\n{q}", tokenizer) for text, q, a in chance.choices(asked, k=max(16, tokens // 16))]
        groups = of_like_length(rows, lambda row: len(row[0]) + len(row[1]), tokens)
        chance.shuffle(groups)
        yield from (collate(group, tokenizer.pad_token_id) for group in groups)


def to_ask(passages: list[Passage], chance: random.Random) -> list[int]:
    """Indices of the passages that can do with more questions, in random order."""
    fit = [i for i, p in enumerate(passages) if p.source.startswith(ASKED) and 25 <= len(p.text.split()) <= MOST_WORDS]
    few = [i for i in fit if len(passages[i].questions) < ENOUGH]
    chance.shuffle(few)
    return few


def written(model: Any, tokenizer: Any, passages: list[Passage], order: list[int], args: argparse.Namespace) -> list[Made]:
    """What `model` writes for the passages in `order`, `args.each` pairs for each, sampled, until the time is over."""
    made, end = [], time.time() + 60 * args.asking_minutes
    for start in tqdm(range(0, len(order), args.batch), desc="asking"):
        if time.time() > end:
            break
        rows = order[start : start + args.batch]
        texts = [tokenizer.apply_chat_template(prompt(passages[i].text), tokenize=False, add_generation_prompt=True) for i in rows]
        options = {"padding_side": "left", "add_special_tokens": False, "return_token_type_ids": False}
        batch = tokenizer(texts, return_tensors="pt", padding=True, **options).to(model.device)
        sampling = {"do_sample": True, "temperature": 0.8, "top_k": 50, "num_return_sequences": args.each}
        with torch.inference_mode():
            out = model.generate(**batch, max_new_tokens=40, pad_token_id=tokenizer.pad_token_id, **sampling)
        replies = tokenizer.batch_decode(out[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
        made += [pair for row, reply in enumerate(replies) if (pair := well_formed(reply, rows[row // args.each], passages))]
    return list(dict.fromkeys(made))


def well_formed(reply: str, index: int, passages: list[Passage]) -> Made | None:
    """The pair in `reply`, None where it has another form, the passage lacks the answer, or the question gives it away or is an old one."""
    answer, _, question = (part.strip() for part in reply.partition("\n"))
    words, old = question.split(), {q.lower() for q, _ in passages[index].questions}
    if not answer or len(answer.split()) > 30 or answer not in passages[index].text or answer.lower() in question.lower():
        return None
    right = 4 <= len(words) <= 30 and question.endswith("?") and "\n" not in question and question.lower() not in old
    return Made(index, question, answer) if right else None


def confirmed(reader: Any, tokenizer: Any, passages: list[Passage], made: list[Made], tokens: int) -> list[Made]:
    """Those pairs whose question `reader` answers, over the passage, with the very answer, and in full: every token is its likeliest."""
    chats = [rag_messages(pair.question, [passages[pair.passage].text]) for pair in made]
    rows = [(pair, *chat_tokens(chat, f"{pair.answer} [1]", tokenizer)) for pair, chat in zip(made, chats)]
    kept = []
    for group in tqdm(of_like_length(rows, lambda row: len(row[1]) + len(row[2]), tokens), desc="checking"):
        batch = {name: value.to(reader.device) for name, value in collate([row[1:] for row in group], tokenizer.pad_token_id).items()}
        with torch.inference_mode(), autocast(reader.device.type):
            hidden = reader.model(input_ids=batch["tokens"], use_cache=False).last_hidden_state  # padding stands on the right
            at = batch["at"]
            right = reader.lm_head(hidden.flatten(0, 1)[at]).argmax(-1) == batch["labels"].flatten()[at]
        row_of, wrong = at // batch["tokens"].shape[1], torch.zeros(len(group), dtype=torch.bool, device=at.device)
        wrong[row_of[~right]] = True
        kept += [row[0] for row, failed in zip(group, wrong.tolist()) if not failed]
    return kept


def main() -> None:
    args = parse()
    torch.manual_seed(args.seed)
    folder = checkpoints.fetch(checkpoints.find(args.base, "llm"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = CHAT_TEMPLATE
    device = "cuda" if torch.cuda.is_available() else "cpu"
    passages, model = passages_of(args.data), with_adapter(folder, args, device).train()
    reader = deepcopy(model).merge_and_unload().eval()
    plan = Plan(args.work / "asker", args.learning_rate, args.minutes, args.steps, log=args.log)
    plan.work.mkdir(parents=True, exist_ok=True)
    train(model, losses, drawn(lambda seed: lessons(passages, tokenizer, args.tokens, seed), args.seed, args.workers), plan)
    asking = model.merge_and_unload().eval()
    asking.set_attn_implementation("sdpa")  # replies are padded on the left, so they need a mask
    order = to_ask(passages, random.Random(args.seed))
    made = written(asking, tokenizer, passages, order, args)
    kept = confirmed(reader, tokenizer, passages, made, 4 * args.tokens)
    (args.work / "made.json").write_text(json.dumps(kept, indent=0, ensure_ascii=False), encoding="utf-8")
    print(f"{len(order)} passages with few questions, {len(made)} questions written, {len(kept)} answered alike: {args.work / 'made.json'}")


if __name__ == "__main__":
    main()
