"""Measures the language model where the data allow it: `python -m tools.train_embedded.evaluate --model course-lm`.

Token F1 with the gold passage, with three distracting passages that MiniLM retrieves, and closed-book; abstention on questions
of which half have no answer; answers from the handbook on its test questions, as `make ask` gives them. Every number comes with a
bootstrap interval. `--show 10` prints random answers, not chosen ones.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from langchain_core.embeddings import Embeddings
from tqdm import tqdm

from tools.ask import HANDBOOK, cached_index, course_retriever
from tools.train_embedded.reading import read_rows
from utils import checkpoints, packaged
from utils.chat import LocalChatModel
from utils.evaluation import bootstrap_interval, citation_precision, support_passages, token_f1
from utils.models import load_embedder, load_llm
from utils.questions import load_questions
from utils.rag import ABSTENTION, build_rag_chain, parse_answer, rag_messages
from utils.reranking import MAX_SIM_EVIDENCE


def reply(model: Any, tokenizer: Any, conversations: list[list[dict]], batch_size: int = 8, max_new_tokens: int = 48) -> list[str]:
    """Greedy replies, one per conversation, in order; batches are made of prompts of like length."""
    prompts = [tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True) for c in conversations]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    replies = [""] * len(prompts)
    for start in tqdm(range(0, len(order), batch_size), desc="generating"):
        rows = order[start : start + batch_size]
        batch = tokenizer(
            [prompts[i] for i in rows], return_tensors="pt", padding=True, add_special_tokens=False, return_token_type_ids=False
        )
        with torch.inference_mode():
            out = model.generate(**batch.to(model.device), max_new_tokens=max_new_tokens, do_sample=False)
        for i, text in zip(rows, tokenizer.batch_decode(out[:, batch.input_ids.shape[1] :], skip_special_tokens=True)):
            replies[i] = text.strip()
    return replies


def messages(question: str, passages: list[str]) -> list[dict]:
    """The chat of the course's RAG chain over plain passages."""
    return rag_messages(question, passages)


def distracted(rows: list[dict], corpus: list[str], embedder: Embeddings, seed: int = 0, max_words: int = 450) -> list[list[str]]:
    """For each row its context and the three most similar other passages by MiniLM, shuffled; fewer where the prompt gets too long."""
    vectors = np.array(embedder.embed_documents(corpus))
    queries = np.array([embedder.embed_query(r["question"]) for r in rows])
    chance, result = random.Random(seed), []
    for row, scores in zip(rows, queries @ vectors.T):
        others = [corpus[i] for i in np.argsort(-scores)[:8] if corpus[i] != row["context"]][:3]
        passages = [row["context"], *others]
        while sum(len(p.split()) for p in passages) > max_words and len(passages) > 1:
            passages.pop()
        chance.shuffle(passages)
        result.append(passages)
    return result


def f1_of(replies: list[str], rows: list[dict]) -> list[float]:
    return [token_f1(parse_answer(reply_text), r["answers"]) for reply_text, r in zip(replies, rows)]


def percent(shares: Any) -> list[float]:
    """Mean, low and high end of the bootstrap interval of `shares`, in percent."""
    return [round(100 * value, 1) for value in bootstrap_interval(shares)]


def abstention(model: Any, tokenizer: Any, rows: list[dict]) -> dict:
    """Balanced accuracy of abstaining: the mean of the share right among answerable and among unanswerable questions."""
    said = np.array([ABSTENTION in text for text in reply(model, tokenizer, [messages(r["question"], [r["context"]]) for r in rows])])
    unanswerable = np.array([not r["answers"] for r in rows])
    right, share = (said == unanswerable).astype(float), unanswerable.mean()
    return {
        "balanced accuracy": percent(right / np.where(unanswerable, 2 * share, 2 * (1 - share))),  # its mean is that of the two shares
        "abstains rightly": percent(right[unanswerable]),
        "answers rightly": percent(right[~unanswerable]),
    }


def handbook(model: Any, tokenizer: Any, count: int) -> dict:
    """Answers from the handbook on its test questions, retrieved as `make ask` retrieves: F1 beside closed-book, citations, abstention."""
    questions = load_questions("handbook", split="test")
    rows, open_rows = (sample([q for q in questions if bool(q["answers"]) == answerable], count) for answerable in (True, False))
    chat_model = LocalChatModel(llm=model, tokenizer=tokenizer, model_name="evaluated")
    embedder = load_embedder("minilm")
    store, _ = cached_index(HANDBOOK, embedder)
    chain = build_rag_chain(course_retriever(store, embedder), chat_model, **MAX_SIM_EVIDENCE)
    answers, open_answers = (chain.batch([q["question"] for q in group]) for group in (rows, open_rows))
    closed = reply(model, tokenizer, [[{"role": "user", "content": q["question"]}] for q in rows])
    relevant = [support_passages(q["support"], store.documents) for q in rows]
    f1 = np.array([0.0 if a.abstained else token_f1(a.answer, q["answers"]) for a, q in zip(answers, rows)])
    found = np.array([bool({p.metadata["id"] for p in a.passages} & gold) for a, gold in zip(answers, relevant)])
    cited = citation_precision([{c.passage_id for c in a.citations} for a in answers], relevant)
    measured = {
        "F1": f1, "F1 where a supporting passage was shown": f1[found], "F1, closed-book": f1_of(closed, rows),
        "supporting passage shown": found, "citation precision": cited, "abstains, answerable": [a.abstained for a in answers],
        "abstains, unanswerable": [a.abstained for a in open_answers],
    }  # fmt: skip
    return {"questions": len(rows)} | {name: percent(np.asarray(values, dtype=float)) for name, values in measured.items()}


def sample(rows: list[dict], count: int, seed: int = 0) -> list[dict]:
    return random.Random(seed).sample(rows, min(count, len(rows)))


def merged_if_adapter(model: str, kind: str = "llm") -> str | Path:
    """`model`, a catalog key or folder; or, where it is a folder with an adapter, the folder of its base of `kind` with that merged in."""
    folder = Path(model)
    if not (folder / "adapter_config.json").is_file():
        return folder if folder.is_dir() else model
    base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    return packaged.merged(checkpoints.fetch(checkpoints.find(base, kind)), folder, f"candidate-{kind}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="course-lm", help="catalog key, model folder or adapter folder")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--count", type=int, default=400, help="questions per measure")
    parser.add_argument("--show", type=int, default=10)
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the numbers")
    args = parser.parse_args()
    model, tokenizer, _ = load_llm(merged_if_adapter(args.model))
    every = read_rows(str(args.data / "qa/valid/squadshifts_wiki.jsonl.gz"))
    rows, corpus = sample(every, args.count), list(dict.fromkeys(r["context"] for r in every))
    gold = reply(model, tokenizer, [messages(r["question"], [r["context"]]) for r in rows])
    crowd = distracted(rows, corpus, load_embedder("minilm"))
    mixed = reply(model, tokenizer, [messages(r["question"], p) for r, p in zip(rows, crowd)])
    closed = reply(model, tokenizer, [[{"role": "user", "content": r["question"]}] for r in rows])
    numbers: dict = {"questions": len(rows)}
    for name, replies in [("F1, gold passage", gold), ("F1, three distracting passages", mixed), ("F1, closed-book", closed)]:
        numbers[name] = percent(f1_of(replies, rows))
    half = sample(read_rows(str(args.data / "qa/valid/squad2_dev_half.jsonl.gz")), args.count)
    numbers["abstention"] = abstention(model, tokenizer, half)
    numbers["handbook, test questions"] = handbook(model, tokenizer, args.count)
    print(json.dumps(numbers, indent=1))
    for r, text in list(zip(rows, gold))[: args.show]:
        print(f"\nQ: {r['question']}\n   gold: {r['answers'][0]}\n   model: {text}")
    if args.out:
        args.out.write_text(json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    main()
