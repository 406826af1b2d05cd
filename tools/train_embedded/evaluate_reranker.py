"""Measures rerankers on the 20 best passages of hybrid search: `python -m tools.train_embedded.evaluate_reranker --model course-reranker`.

nDCG@10 with bootstrap intervals, and the paired difference to reciprocal rank fusion alone, on the three `retrieval/` sets and on the
handbook's questions; none of them is trained on. Compares late interaction, the cross-encoder, and both, each alone and blended with the
fusion score. Retrieval and late interaction are cached in --work, so a second model costs only its own scores.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from langchain_core.documents import Document
from tqdm import tqdm

from tools.train_embedded.evaluate import merged_if_adapter
from tools.train_embedded.mining import DEPTH
from tools.train_embedded.reading import read_rows
from utils.corpus import load_documents
from utils.evaluation import bootstrap_interval, ndcg_at_k, paired_bootstrap, support_passages
from utils.models import load_embedder, load_reranker
from utils.questions import load_questions
from utils.reranking import CrossEncoderReranker, LateInteractionReranker, standardized
from utils.retrieval import BM25Retriever, reciprocal_rank_fusion
from utils.runtime import DATA
from utils.splitting import split_documents

SETS = ["codebase", "chunking_eval", "squadshifts_wiki", "handbook"]
WEIGHTS = {
    "late interaction": (1, 0, 0),
    "late interaction + 0.5 fusion": (1, 0, 0.5),
    "cross-encoder": (0, 1, 0),
    "cross-encoder + 0.5 fusion": (0, 1, 0.5),
    "cross-encoder + late interaction": (1, 1, 0),
    "cross-encoder + late interaction + 0.5 fusion": (1, 1, 0.5),
}
"""Weights of the standardised scores: late interaction, cross-encoder, fusion."""


def collection(name: str, data: Path, count: int, seed: int = 0) -> tuple[list[Document], list[tuple[str, list[str]]]]:
    """All passages of a set, and `count` of its questions with the ids of the passages that answer them."""
    if name == "handbook":
        passages = split_documents(load_documents(DATA / "handbook").documents)
        asked = [row for row in load_questions("handbook", split="dev") if row["answers"]]
        questions = [(row["question"], sorted(support_passages(row["support"], passages))) for row in asked]
    else:
        folder = data / "retrieval" / name
        passages = [Document(page_content=row["text"], metadata={"id": row["id"]}) for row in read_rows(str(folder / "corpus.jsonl.gz"))]
        right: dict[str, list[str]] = {}
        for query, passage, grade in (line.split("\t") for line in (folder / "qrels.tsv").read_text().splitlines()):
            if grade.strip().isdigit() and int(grade) > 0:
                right.setdefault(query, []).append(passage)
        rows = read_rows(str(folder / "queries.jsonl.gz"))
        questions = [(row["text"], right[row["id"]]) for row in rows if row["id"] in right]
    return passages, random.Random(seed).sample(questions, min(count, len(questions)))


def found(name: str, data: Path, count: int, embedder: Any) -> list[dict[str, Any]]:
    """Per question: the 20 best passages of hybrid search with fusion and late-interaction scores, and what is right."""
    passages, questions = collection(name, data, count)
    by_id = {passage.metadata["id"]: passage for passage in passages}
    ids = list(by_id)
    vectors = embedder.encode([passage.page_content for passage in by_id.values()])
    words, late = BM25Retriever(passages=list(by_id.values())), LateInteractionReranker(embedder, weight=0)
    rows = []
    for question, right in tqdm(questions, desc=name):
        dense = [ids[place] for place in np.argsort(-(vectors @ embedder.encode([question])[0]), kind="stable")[:50]]
        lexical = [passage.metadata["id"] for passage, _ in words.search(question, 50)]
        fused = list(reciprocal_rank_fusion([dense, lexical]).items())[:DEPTH]
        texts = [by_id[key].page_content for key, _ in fused]
        scores = [one.score for one in late(question, [Document(page_content=text) for text in texts])]
        known = {"question": question, "right": right, "ids": [key for key, _ in fused], "texts": texts}
        rows.append(known | {"fusion": [score for _, score in fused], "late": scores})
    return rows


def cached(file: Path, name: str, data: Path, count: int, embedder: Any) -> list[dict[str, Any]]:
    """What `found` returns, kept in `file`."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found(name, data, count, embedder)), encoding="utf-8")
    return json.loads(file.read_text(encoding="utf-8"))


def ndcg(rows: list[dict[str, Any]], scores: list[np.ndarray]) -> np.ndarray:
    """nDCG@10 per question when its passages are sorted by `scores`; equal scores keep the order of fusion."""
    rankings = [[row["ids"][place] for place in np.argsort(-one, kind="stable")] for row, one in zip(rows, scores)]
    return ndcg_at_k(rankings, [row["right"] for row in rows], 10)


def mixed(row: dict[str, Any], weights: tuple[float, float, float]) -> np.ndarray:
    """The weighted sum of the standardised late-interaction, cross-encoder and fusion scores of a question's passages."""
    parts = zip(weights, (row["late"], row["cross"], row["fusion"]))
    return sum((weight * standardized(np.array(scores)) for weight, scores in parts), np.zeros(len(row["ids"])))


def measured(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Per system nDCG@10 with its interval, and the paired difference to fusion alone with its interval; in points."""
    fusion = ndcg(rows, [np.array(row["fusion"]) for row in rows])
    table = {"fusion alone": [*bootstrap_interval(fusion)[:3], 0.0, 0.0, 0.0]}
    for system, weights in WEIGHTS.items():
        values = ndcg(rows, [mixed(row, weights) for row in rows])
        table[system] = [*bootstrap_interval(values)[:3], *paired_bootstrap(values, fusion)[:3]]
    return {system: [round(100 * value, 1) for value in values] for system, values in table.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", default="course-reranker", help="catalog key, model folder or adapter folder")
    add("--data", type=Path, default=Path("../shared/data"))
    add("--work", type=Path, default=Path("build/train_embedded/reranker"), help="where retrieval is cached")
    add("--sets", nargs="+", default=SETS, choices=SETS)
    add("--count", type=int, default=150, help="questions per set")
    add("--window", type=int, default=128, help="tokens of a passage that the cross-encoder reads")
    add("--out", type=Path, default=None, help="JSON file for the numbers")
    args = parser.parse_args()
    model, embedder = load_reranker(merged_if_adapter(args.model, "embedder")), load_embedder("minilm")
    reranker = CrossEncoderReranker(model, window_tokens=args.window)
    results = {}
    for name in args.sets:
        rows = cached(args.work / f"found_{name}_{args.count}.json", name, args.data, args.count, embedder)
        for row in tqdm(rows, desc=f"{name}: cross-encoder"):
            row["cross"] = [one.score for one in reranker(row["question"], [Document(page_content=text) for text in row["texts"]])]
        results[name] = measured(rows)
        print(f"\n{name}, {len(rows)} questions: nDCG@10 (95 % interval), difference to fusion alone (95 % interval)")
        for system, (mean, low, high, gain, gain_low, gain_high) in results[name].items():
            print(f"  {system:<46} {mean:5.1f} ({low:.1f} to {high:.1f})  {gain:+5.1f} ({gain_low:+.1f} to {gain_high:+.1f})", flush=True)
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
