"""The exercises of chapter 11 accept every right answer and explain wrong ones."""

import bisect
import functools
import hashlib
import heapq
import math
import random
import zlib

import pytest

from utils.exercises import verdict


def servers_needed(readers, pause, seconds, rate):
    return max(1, math.ceil(readers / (pause + seconds) / (0.7 * rate)))


def by_trying(readers, pause, seconds, rate):
    servers = 1
    while readers / (pause + seconds) > 0.7 * rate * servers + 1e-9:
        servers += 1
    return float(servers)


@pytest.mark.parametrize("answer", [servers_needed, by_trying])
def test_every_form_of_servers_needed_is_accepted(answer):
    assert verdict("11-easy", answer)[0]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda n, pause, s, rate: n / (pause + s) / (0.7 * rate), "round up"),
        (lambda n, pause, s, rate: max(1, math.ceil(n / (pause + s) / rate)), "at most 70 %"),
        (lambda n, pause, s, rate: max(1, math.ceil(n / max(pause, 1e-9) / (0.7 * rate))), "waiting plus reading"),
        (lambda n, pause, s, rate: max(1, math.ceil(n / s / (0.7 * rate))), "Nobody asks again at once"),
        (lambda n, pause, s, rate: n, "Requests per second are"),
        (lambda n, pause, s, rate: None, "returned None"),
        (lambda n, pause, s, rate: n / 0, "ZeroDivisionError"),
        (5, "function itself"),
    ],
)
def test_a_wrong_number_of_servers_is_explained(answer, reason):
    right, why = verdict("11-easy", answer)
    assert not right and reason in why


def continuous_steps(lengths, slots):
    ends = [0] * slots
    for length in lengths:
        heapq.heapreplace(ends, min(ends) + length)
    return max(ends)


def step_by_step(lengths, slots):
    queue, running, steps = list(lengths), [], 0
    while queue or running:
        while queue and len(running) < slots:
            running.append(queue.pop(0))
        running = [left - 1 for left in running if left > 1]
        steps += 1
    return steps


@pytest.mark.parametrize("answer", [continuous_steps, step_by_step])
def test_every_form_of_continuous_steps_is_accepted(answer):
    assert verdict("11-medium", answer)[0]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda ls, n: sum(max(ls[at : at + n]) for at in range(0, len(ls), n)), "batch after batch"),
        (lambda ls, n: math.ceil(sum(ls) / n), "split an answer"),
        (lambda ls, n: sum(ls), "one answer after the other"),
        (lambda ls, n: continuous_steps(ls, n) - 1, "the last step"),
        (lambda ls, n: continuous_steps(sorted(ls, reverse=True), n), "in the order in which they came"),
        (lambda ls, n: 1000, "fill a free slot"),
        (lambda ls, n: None, "returned None"),
        (lambda ls, n: ls[99], "IndexError"),
        ([], "function itself"),
    ],
)
def test_a_wrong_number_of_steps_is_explained(answer, reason):
    right, why = verdict("11-medium", answer)
    assert not right and reason in why


def score(passage_id, shard):
    return hashlib.sha256(f"{shard}/{passage_id}".encode()).digest()


def rendezvous(passage_id, shards):
    return max(shards, key=lambda shard: score(passage_id, shard))


@functools.cache
def points_of(shards):
    return sorted((score(str(number), shard), shard) for shard in shards for number in range(300))


def ring(passage_id, shards):
    """Consistent hashing with many points per shard is right as well."""
    points, key = points_of(tuple(shards)), score(passage_id, "")
    return points[bisect.bisect_left(points, (key, "")) % len(points)][1]


@pytest.mark.parametrize("answer", [rendezvous, ring])
def test_every_form_of_stable_shards_is_accepted(answer):
    assert verdict("11-hard", answer) == (True, verdict("11-hard", rendezvous)[1])


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda one, shards: shards[zlib.crc32(one.encode()) % len(shards)], "move"),
        (lambda one, shards: shards[hash(one) % len(shards)], "another process"),
        (lambda one, shards: random.choice(shards), "the second time"),
        (lambda one, shards: shards[0], "an even share"),
        (lambda one, shards: rendezvous(one, shards[:5]), "the new shard gets 0"),
        (lambda one, shards: 3, "return one of the names"),
        (lambda one, shards: None, "return one of the names"),
        (lambda one, shards: shards[one], "TypeError"),
        ("a", "function itself"),
    ],
)
def test_wrong_shards_are_explained(answer, reason):
    right, why = verdict("11-hard", answer)
    assert not right and reason in why
