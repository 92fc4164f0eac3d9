"""Ids: UUIDv7 text that only grows, and random numbers for workers."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from itertools import pairwise
from types import SimpleNamespace
from uuid import UUID

import pytest

from sqlalchemy_bgjob._drafts import ids as ids_module
from sqlalchemy_bgjob._drafts.ids import new_id, new_worker_id


@pytest.mark.core
def test_an_id_is_a_uuid_of_version_7_with_the_time() -> None:
    before = time.time_ns() // 1_000_000
    id = new_id()
    after = time.time_ns() // 1_000_000

    assert str(UUID(id)) == id
    assert (UUID(id).version, UUID(id).variant) == (7, "specified in RFC 4122")
    # Ids made before within the same millisecond may have pushed it on, by far less than this.
    assert before <= int(id.replace("-", "")[:12], 16) <= after + 5


@pytest.mark.core
def test_ids_only_grow_within_a_process() -> None:
    """Text and number alike: jobs of one transaction keep their order."""
    ids = [new_id() for _ in range(50_000)]

    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Shows the nanoseconds that a test sets."""
    clock = SimpleNamespace(now=time.time_ns())
    monkeypatch.setattr(time, "time_ns", lambda: clock.now)
    return clock


def test_ids_grow_when_the_clock_is_set_back(clock: SimpleNamespace) -> None:
    first = new_id()
    for seconds in (-3600, 3599, 1, -10, 3610, -3600):
        clock.now += seconds * 1_000_000_000
        following = new_id()
        assert following > first
        first = following
    ids_module._state.reset()


def test_ids_go_on_when_a_millisecond_is_full(
    clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The random bits overflow into the time, and the version and variant stay."""
    clock.now = 1_000_000_000
    state = ids_module._Monotonic()
    monkeypatch.setattr(ids_module, "_state", state)
    state.last = (1_000 << 74) + (1 << 74) - 2
    ids = [new_id() for _ in range(3)]

    assert ids == sorted(ids)
    for id in ids:
        assert (UUID(id).version, UUID(id).variant) == (7, "specified in RFC 4122")
    assert int(ids[-1].replace("-", "")[:12], 16) == 1_001


def test_threads_never_share_an_id() -> None:
    made: list[list[str]] = []

    def make() -> None:
        made.append([new_id() for _ in range(5_000)])

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len({id for ids in made for id in ids}) == 40_000
    for ids in made:
        assert ids == sorted(ids)


def test_a_forked_child_repeats_no_id() -> None:
    """Nor waits for ever for a lock that another thread of its parent held."""
    code = """
import os, sys, threading
from sqlalchemy_bgjob._drafts import ids
ids.new_id()
reader, writer = os.pipe()
ids._state.lock.acquire()
child = os.fork()
if child == 0:
    os.write(writer, " ".join(ids.new_id() for _ in range(100)).encode())
    os._exit(0)
ids._state.lock.release()
parents = {ids.new_id() for _ in range(100)}
os.waitpid(child, 0)
childs = set(os.read(reader, 100_000).decode().split())
assert len(childs) == 100
assert not parents & childs
print("ok")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout.strip() == "ok", done.stderr


def test_the_random_part_is_not_to_be_guessed() -> None:
    """Neighbours differ by a random step, and processes start anywhere."""
    numbers = [int(new_id().replace("-", ""), 16) for _ in range(1_000)]
    steps = {b - a for a, b in pairwise(numbers)}
    assert len(steps) > 990


def test_a_worker_id_is_a_positive_bigint() -> None:
    ids = {new_worker_id() for _ in range(10_000)}
    assert len(ids) == 10_000
    assert all(0 < id < 2**63 for id in ids)
    assert max(ids) > 2**60
