"""Load test of an OpenAI-compatible server: `python -m tools.load_server` writes data/logs/serving/load.csv, which notebook 11 replots.

Every client sends its next request as soon as its last answer has ended (a closed loop), so `clients` requests are always on their
way. Requests are the RAG prompts of chapter 05; answers stream, and the clock of the first token stops at the first piece of text.
Server and clients share this machine, which makes both slower. Knows OpenAI's client; knows nothing of what runs behind the URL.

    engine            sequential (one request after the other) or continuous (continuous batching)
    clients, request  requests on their way, and a row's number within its level
    first_s, total_s  seconds until the first piece of text, and until the last
    tokens            of the answer
    level_s           seconds of the whole level, the same in all its rows
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tools.logs import write_csv
from tools.serve import CONTINUOUS, start_server
from utils.runtime import BUILD, DATA

LOG = DATA / "logs" / "serving" / "load.csv"
ENGINES: dict[str, tuple[str, ...]] = {"sequential": (), "continuous": CONTINUOUS}
CLIENTS = (1, 2, 4, 8, 16)
Chat = list[dict[str, str]]


class Timing(NamedTuple):
    """One answered request: seconds to its first text and to its end, answer tokens, the answer."""

    first_s: float
    total_s: float
    tokens: int
    text: str


async def timed_answer(client: Any, model: str, chat: Chat, max_tokens: int) -> Timing:
    """Returns the streamed answer with its clock."""
    start, first, tokens = time.perf_counter(), 0.0, 0
    pieces: list[str] = []
    stream = await client.chat.completions.create(model=model, messages=chat, max_tokens=max_tokens, temperature=0, stream=True)
    async for chunk in stream:
        if chunk.choices and (text := chunk.choices[0].delta.content):
            first = first or time.perf_counter() - start
            pieces.append(text)
        if chunk.usage:
            tokens = chunk.usage.completion_tokens
    total = time.perf_counter() - start
    return Timing(first or total, total, tokens or len(pieces), "".join(pieces))


async def load(
    base_url: str, model: str, chats: Sequence[Chat], clients: int, requests: int, max_tokens: int
) -> tuple[list[Timing], float]:
    """Returns the timings of `requests` requests by so many clients at once, and the seconds all of it took."""
    from openai import AsyncOpenAI

    waiting: Iterator[Chat] = iter([chats[number % len(chats)] for number in range(requests)])
    timings: list[Timing] = []
    async with AsyncOpenAI(base_url=base_url, api_key="not-needed", max_retries=0, timeout=300) as client:

        async def work() -> None:
            for chat in waiting:  # shared: who is free takes the next
                timings.append(await timed_answer(client, model, chat, max_tokens))

        start = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(clients)))
    return timings, time.perf_counter() - start


def rag_prompts(count: int, top_k: int = 3) -> list[Chat]:
    """Returns the prompts of `count` dev questions on the handbook, with the passages that dense search finds."""
    from utils.corpus import load_documents, split_documents
    from utils.indexes import build_index
    from utils.models import load_embedder
    from utils.questions import load_questions
    from utils.rag import rag_messages
    from utils.retrieval import DenseRetriever

    questions = [row["question"] for row in load_questions("handbook", split="dev") if row["answers"]]
    chosen = questions[:: len(questions) // count][:count]
    passages = split_documents(load_documents(DATA / "handbook").documents, max_tokens=160)
    store = build_index(passages, load_embedder(), BUILD / "indexes" / "handbook")
    found = DenseRetriever(store=store, top_k=top_k).batch(chosen)
    return [rag_messages(question, passages) for question, passages in zip(chosen, found, strict=True)]


def rows_of(engine: str, clients: int, timings: list[Timing], seconds: float) -> list[dict[str, Any]]:
    """Returns the rows of one level."""
    return [
        {"engine": engine, "clients": clients, "request": n, "first_s": f"{one.first_s:.4f}", "total_s": f"{one.total_s:.4f}",
         "tokens": one.tokens, "level_s": f"{seconds:.3f}"}
        for n, one in enumerate(timings, 1)
    ]  # fmt: skip


def measure(folder: Path, chats: list[Chat], requests: int, max_tokens: int) -> list[dict[str, Any]]:
    """Returns the rows of all engines and levels; each engine is warmed up first."""
    rows: list[dict[str, Any]] = []
    for engine, options in ENGINES.items():
        with start_server(folder, options) as server:
            asyncio.run(load(server.base_url, server.model, chats, 2, 4, max_tokens))
            for clients in CLIENTS:
                count = max(requests, 2 * clients)
                timings, seconds = asyncio.run(load(server.base_url, server.model, chats, clients, count, max_tokens))
                rows += rows_of(engine, clients, timings, seconds)
                print(f"{engine:10} {clients:2} clients: {len(timings) / seconds:.2f} requests/s", flush=True)
    return rows


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.load_server", description="Measure a server with 1 to 16 clients.")
    parser.add_argument("--model", help="catalog key or folder; the profile's default when left out")
    parser.add_argument("--requests", type=int, default=16, help="per level, at least two per client")
    parser.add_argument("--max-tokens", type=int, default=32, help="longest answer")
    parser.add_argument("--log", type=Path, default=LOG)
    chosen = parser.parse_args()
    from utils import checkpoints

    folder = Path(checkpoints.fetch(checkpoints.find(chosen.model, "llm")))
    write_csv(chosen.log, measure(folder, rag_prompts(16), chosen.requests, chosen.max_tokens))
    return 0


if __name__ == "__main__":
    sys.exit(main())
