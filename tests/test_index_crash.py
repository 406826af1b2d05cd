"""Builds that are really killed, and builds that meet: the index on disk is always the old one or the new one, complete."""

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document

from tests.hash_embedder import HashEmbedder
from tests.index_builders import SIZES, TEXT, build_for_ever, build_slowly, build_until_step, passages
from utils.indexes import build_index, open_index
from utils.indexes.folder import MANIFEST

pytestmark = pytest.mark.skipif(os.name == "nt", reason="SIGKILL and the fork server are POSIX")
KILLS = 20
WAIT = 120  # seconds


@pytest.fixture(scope="module")
def start() -> Callable[..., tuple[Any, Connection]]:
    """Starts a process of its own with the libraries loaded already; returns it and the pipe to it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "faiss", "tests.index_builders", "utils.indexes.faiss_store", "filelock", "tqdm"])

    def starter(job: Callable[..., None], *arguments: Any) -> tuple[Any, Connection]:
        here, there = context.Pipe()
        process = context.Process(target=job, args=(*arguments, there), daemon=True)
        process.start()
        there.close()
        return process, here

    return starter


def assert_whole(folder: Path) -> int:
    """The index opens (all digests are checked), answers, and is exactly one of the two that were built."""
    store = open_index(folder, HashEmbedder())
    assert store.count in SIZES
    assert {document.metadata["size"] for document in store.documents} == {store.count}
    assert store.similarity_search(TEXT.format(7), k=1)[0].page_content == TEXT.format(7)
    return store.count


def test_killing_a_build_twenty_times_at_random_moments_leaves_a_whole_index_each_time(tmp_path, start):
    dice, held = random.Random(0), 0
    for _ in range(KILLS):
        builder, pipe = start(build_for_ever, str(tmp_path), held)
        assert pipe.poll(WAIT)
        seconds = pipe.recv()  # one build is done; the next ones, about as long, replace it in turn
        time.sleep(dice.uniform(0, 2 * seconds))
        builder.kill()
        builder.join(WAIT)
        assert builder.exitcode == -signal.SIGKILL
        held = assert_whole(tmp_path)
    build_index(passages(SIZES[0]), HashEmbedder(), tmp_path)
    assert assert_whole(tmp_path) == SIZES[0]
    build_index(passages(SIZES[1]), HashEmbedder(), tmp_path)
    assert len(list(tmp_path.glob("generation-*"))) == 1  # what killed builds left behind is swept


def test_killing_a_build_before_each_step_on_disk_leaves_the_old_index_up_to_the_swap_and_the_new_one_after(tmp_path, start):
    build_index(passages(SIZES[0]), HashEmbedder(), tmp_path / "old")
    outcomes, finished = [], False
    while not finished:
        folder = tmp_path / str(len(outcomes))
        build_index(passages(SIZES[0]), HashEmbedder(), folder)
        builder, pipe = start(build_until_step, str(folder), len(outcomes))
        builder.join(WAIT)
        finished = builder.exitcode == 0
        assert finished or builder.exitcode == -signal.SIGKILL
        outcomes.append(assert_whole(folder))
    assert len(outcomes) > 10 and outcomes == sorted(outcomes) and set(outcomes) == set(SIZES)


def test_of_two_processes_building_at_once_one_waits_and_embeds_nothing(tmp_path, start):
    builders = [start(build_slowly, str(tmp_path), 100) for _ in range(2)]
    for _, pipe in builders:
        assert pipe.recv() == "ready"
    for _, pipe in builders:
        pipe.send("go")
    assert all(pipe.poll(WAIT) for _, pipe in builders)
    assert sorted(pipe.recv() for _, pipe in builders) == [(0, 100), (100, 100)]


def test_index_is_readable_all_the_time_while_another_process_builds(tmp_path, start):
    build_index(passages(5), HashEmbedder(), tmp_path)
    _, pipe = start(build_slowly, str(tmp_path), 100)
    assert pipe.recv() == "ready"
    pipe.send("go")
    counts = [open_index(tmp_path, HashEmbedder()).count]
    while not pipe.poll():
        counts.append(open_index(tmp_path, HashEmbedder()).count)
    counts.append(open_index(tmp_path, HashEmbedder()).count)
    assert counts == sorted(counts) and set(counts) == {5, 100}


def test_first_build_that_was_killed_can_be_built_again(tmp_path):
    (tmp_path / "generation-123").mkdir()
    (tmp_path / (MANIFEST + ".new")).write_text("{")
    assert build_index([Document(page_content="text")], HashEmbedder(), tmp_path).count == 1
    assert [path.name for path in tmp_path.glob("generation-*")] != ["generation-123"]
