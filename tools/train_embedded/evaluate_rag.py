"""Measures the RAG generator: `python -m tools.train_embedded.evaluate_rag --model build/train_embedded/rag/model`.

Token F1 and exact match of RagSequence, which retrieves five of the passages of retrieval/squadshifts_wiki by itself; beside it the same
generator on the nearest passage alone, on the gold passage, and closed-book. Every number comes with a bootstrap interval. Nothing is
no answer here: each passage has to propose one. `--show 10` prints random answers, not chosen ones.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from langchain_core.documents import Document
from tqdm import tqdm

from tools.train_embedded.evaluate import percent, sample
from tools.train_embedded.reading import read_rows
from tools.train_embedded.train_rag import MAX_ANSWER, MAX_TOKENS
from utils.evaluation import exact_match, token_f1
from utils.indexes import build_index
from utils.models import load_embedder, load_rag_sequence
from utils.rag_scores import as_written, score_answers

SCORE_SCALE = 20.0  # MiniLM was trained with its cosines times 20


def one_line(text: str) -> str:
    return " ".join(text.split())


def corpus(data: Path) -> list[Document]:
    """The passages of retrieval/squadshifts_wiki, without their titles, which are empty."""
    return [Document(page_content=one_line(row["text"])) for row in read_rows(str(data / "retrieval/squadshifts_wiki/corpus.jsonl.gz"))]


@torch.inference_mode()
def read(rag: Any, questions: list[str], texts: list[str], batch_size: int = 8) -> list[str]:
    """The generator's greedy answer to each question over its one text, which may be empty: closed-book."""
    answers = []
    for start in tqdm(range(0, len(questions), batch_size), desc="one passage each"):
        rows = range(start, min(start + batch_size, len(questions)))
        sources = [f" / {texts[i]} // {questions[i]}" for i in rows]
        options = {"padding": True, "truncation": True, "max_length": MAX_TOKENS, "return_tensors": "pt"}
        batch = rag.tokenizer.generator(sources, return_token_type_ids=False, **options)
        limits = {"max_new_tokens": MAX_ANSWER, "min_new_tokens": 1, "num_beams": 1}
        written = rag.model.generator.generate(**batch.to(rag.model.device), **limits)
        replies = rag.tokenizer.generator.batch_decode(written, skip_special_tokens=True)
        answers += [as_written(reply.strip(), [texts[i]]) for i, reply in zip(rows, replies)]
    return answers


def retrieve_and_read(rag: Any, rows: list[dict]) -> list[dict[str, Any]]:
    """For each row RagSequence's answer, that of its nearest passage alone, and whether the gold passage is among the retrieved."""
    found = []
    for row in tqdm(rows, desc="RagSequence"):
        scored = score_answers(rag, row["question"], max_new_tokens=MAX_ANSWER, min_new_tokens=1)
        texts = [passage["text"] for passage in scored.passages]
        answers = {"best": as_written(scored.best, texts), "nearest": as_written(scored.answers[scored.own[0]], texts[:1])}
        found.append(answers | {"found": one_line(row["context"]) in texts})
    return found


def measure(rag: Any, rows: list[dict]) -> tuple[dict[str, Any], list[str]]:
    """Numbers in percent, each a mean with its interval, and RagSequence's answers."""
    questions = [row["question"] for row in rows]
    retrieved = retrieve_and_read(rag, rows)
    answers = {
        "RagSequence": [one["best"] for one in retrieved],
        "nearest passage alone": [one["nearest"] for one in retrieved],
        "gold passage": read(rag, questions, [one_line(row["context"]) for row in rows]),
        "closed-book": read(rag, questions, [""] * len(rows)),
    }
    numbers: dict[str, Any] = {"questions": len(rows), "gold passage retrieved": percent([float(one["found"]) for one in retrieved])}
    for name, replies in answers.items():
        for measured, metric in (("F1", token_f1), ("exact match", exact_match)):
            numbers[f"{measured}, {name}"] = percent([metric(reply, row["answers"]) for reply, row in zip(replies, rows)])
    return numbers, answers["RagSequence"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="embedded", help='"embedded" or a model folder')
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--index", type=Path, default=Path("build/indexes/squadshifts-wiki"), help="made when it is not there")
    parser.add_argument("--count", type=int, default=400, help="questions")
    parser.add_argument("--top-k", type=int, default=5)
    parser.add_argument("--show", type=int, default=10)
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the numbers")
    args = parser.parse_args()
    build_index(corpus(args.data), load_embedder("minilm"), args.index)
    rag = load_rag_sequence(args.index, args.model, top_k=args.top_k, score_scale=SCORE_SCALE)
    rows = sample(read_rows(str(args.data / "qa/valid/squadshifts_wiki.jsonl.gz")), args.count)
    numbers, replies = measure(rag, rows)
    print(json.dumps(numbers, indent=1))
    for row, text in list(zip(rows, replies))[: args.show]:
        print(f"\nQ: {row['question']}\n   gold: {row['answers'][0]}\n   model: {text}")
    if args.out:
        args.out.write_text(json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    main()
