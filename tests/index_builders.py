"""What the processes do that `test_index_crash` starts, kills and lets meet. A module of its own, so that a fresh process can import it."""

import itertools
import os
import shutil
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from langchain_core.documents import Document

from tests.hash_embedder import HashEmbedder
from utils.indexes import build_index

SIZES = (300, 500)  # the process to be killed builds one and the other in turn, so every build replaces an index
TEXT = "passage number {} about retrieval"
STEPS: list[tuple[Any, str]] = [
    (os, "fsync"),
    (os, "replace"),
    (shutil, "rmtree"),
    (np, "save"),
    (Path, "mkdir"),
    (Path, "write_text"),
    (Path, "open"),
]


def passages(size: int) -> list[Document]:
    """Passages that say which build they belong to."""
    return [Document(page_content=TEXT.format(number), metadata={"size": size}) for number in range(size)]


def build_for_ever(folder: str, held: int, pipe: Connection) -> None:
    """Build one index after the other, first the one that is not `held`; send how many seconds each build took."""
    for size in itertools.cycle(SIZES if held == SIZES[1] else SIZES[::-1]):
        start = time.perf_counter()
        build_index(passages(size), HashEmbedder(), folder)
        pipe.send(time.perf_counter() - start)


def build_until_step(folder: str, last: int, pipe: Connection) -> None:
    """Build once, and die by SIGKILL, as from the kernel, just before the `last`-th step that touches the disk."""
    taken = itertools.count()

    def killing(step: Any) -> Any:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            if next(taken) >= last:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(*arguments, **options)

        return wrapped

    for owner, name in STEPS:
        setattr(owner, name, killing(getattr(owner, name)))
    build_index(passages(SIZES[1]), HashEmbedder(), folder)
    pipe.send("finished")


def build_slowly(folder: str, size: int, pipe: Connection) -> None:
    """Build once when told to; send how many texts were embedded and how many passages there are."""
    pipe.send("ready")
    pipe.recv()
    store = build_index(passages(size), HashEmbedder(delay=0.5 / size), folder)
    pipe.send((store.embedded_count, store.count))


def build_until_batch(folder: str, url: str, last: int) -> None:
    """Build an index behind a Chroma server, 100 passages a batch, and die by SIGKILL just before batch number `last`."""
    from utils.indexes.chroma_store import ChromaStore

    batches, upsert = itertools.count(), ChromaStore._upsert

    def killing(self: ChromaStore, *arguments: Any) -> None:
        if next(batches) == last:
            os.kill(os.getpid(), signal.SIGKILL)
        upsert(self, *arguments)

    ChromaStore._upsert = killing  # type: ignore[method-assign]
    build_index(passages(SIZES[1]), HashEmbedder(), folder, store="chroma", url=url, batch_size=100)
