"""Unique keys under load: producers that commit and roll back at random, workers that are killed.

Never two jobs of a key, never a change that no run sees, no deadlock, and no error but that a job
is there.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest
from sqlalchemy import create_engine

from support import wait_until
from support.changes import Producing, environment, produce
from support.processes import FAST

if TYPE_CHECKING:
    from support.processes import Fleet, WorkerProcess

DEADLOCKS = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
TWO_OF_A_KEY = (
    "SELECT convert_from(arg, 'UTF8'), count(*) FROM bgjob_job"
    " WHERE convert_from(arg, 'UTF8') LIKE '\"l%' GROUP BY 1 HAVING count(*) > 1"
)
"""Of scope live, by what the jobs are for."""


def producing(fleet: Fleet, producers: int, enqueues: int, keys: int, seed: int) -> list[Producing]:
    url = fleet.engine.url.render_as_string(hide_password=False)
    each = enqueues // producers
    return [Producing(url, str(fleet.journal.path), seed + n, each, keys) for n in range(producers)]


def check(fleet: Fleet, kills: int) -> None:
    """After the end of all producers: what was promised."""
    fleet.wait_until_done(120)
    added = {line["job"] for line in fleet.journal.read("added")}
    undone = {line["job"] for line in fleet.journal.read("undone")}
    told = fleet.journal.count("told")
    print(f"{len(added)} jobs, {len(undone)} undone, {told} changes to see, {kills} kills")
    assert [line["error"] for line in fleet.journal.read("failed")] == []
    assert fleet.problems(added, rolled_back=undone, faults=kills + 1, told_within=30.0) == []
    assert added
    assert undone
    assert told > len(added) / 4


@pytest.mark.timeout(120)
def test_no_job_is_doubled_and_no_change_is_lost(fleet: Fleet) -> None:
    """Three producers, six keys; a worker is killed among them."""
    victim = fleet.start(slots=1, **FAST)
    fleet.start(slots=1, **FAST)
    engine = create_engine(fleet.engine.url, pool_size=3)
    before = fleet.scalar(DEADLOCKS)
    with ThreadPoolExecutor(3) as pool:
        futures = [
            pool.submit(produce, what, engine, fleet.app.see, fleet.journal)
            for what in producing(fleet, 3, 240, 6, 7)
        ]
        wait_until(lambda: fleet.journal.count("told") > 20, 60)
        victim.kill()
        for future in futures:
            future.result(60)
    engine.dispose()

    check(fleet, 1)
    assert fleet.scalar(DEADLOCKS) == before


class Producers:
    """Producers in processes of their own, of which some are killed; others do the rest of theirs.

    Args:
        fleet: Whose jobs they make.
        shares: What each of them does.
        folder: Where their output goes.
    """

    def __init__(self, fleet: Fleet, shares: list[Producing], folder: Path) -> None:
        self._fleet, self._shares, self._folder = fleet, shares, folder
        self._stack = ExitStack()
        self._processes = [self._start(share) for share in shares]
        self.kills = 0

    def _start(self, share: Producing) -> subprocess.Popen[bytes]:
        log = self._stack.enter_context((self._folder / f"producer{share.seed}").open("wb"))
        process = subprocess.Popen(
            [sys.executable, "-m", "support.changes"],
            cwd=Path(__file__).parent.parent,
            env={**os.environ, **environment(share)},
            stdout=log,
            stderr=log,
        )
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        return process

    def kill_one(self, dice: random.Random) -> None:
        n = dice.choice([n for n, one in enumerate(self._processes) if one.poll() is None])
        process, share = self._processes[n], self._shares[n]
        process.kill()
        process.wait()
        self.kills += 1
        turns = [t for t in self._fleet.journal.read("turn") if t["pid"] == process.pid]
        rest = share.enqueues - sum(turn["enqueues"] for turn in turns)
        self._shares[n] = replace(share, seed=share.seed + 1_000, enqueues=rest)
        self._processes[n] = self._start(self._shares[n])

    @property
    def codes(self) -> list[int | None]:
        """The exit codes of the last one of each share; None while it goes on."""
        return [process.poll() for process in self._processes]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_16_processes_and_20_000_enqueues_of_500_keys(fleet: Fleet, tmp_path: Path) -> None:
    """Beside three workers, of which one is killed again and again, and so are two producers."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    workers: list[WorkerProcess] = [fleet.start(slots=5, **FAST) for _ in range(3)]
    before = fleet.scalar(DEADLOCKS)
    kills = 0
    twice: list[Any] = []
    with Producers(fleet, producing(fleet, 16, 20_000, 500, seed), tmp_path) as producers:

        def all_ended() -> bool:
            twice.extend(fleet.rows(TWO_OF_A_KEY))
            return None not in producers.codes

        def some_told(more: int) -> bool:
            return all_ended() or fleet.journal.count("told") >= more

        while not all_ended():
            so_far = fleet.journal.count("told")
            wait_until(partial(some_told, so_far + 700), 300, what="more changes")
            victim = dice.choice(workers)
            victim.kill()
            workers[workers.index(victim)] = fleet.start_again(victim)
            kills += 1
            if kills in (2, 3):
                producers.kill_one(dice)

    check(fleet, kills)
    enqueues = sum(turn["enqueues"] for turn in fleet.journal.read("turn"))
    print(f"{enqueues} enqueues, {producers.kills} producers killed")
    assert enqueues >= 20_000
    assert twice == []
    assert fleet.scalar(DEADLOCKS) == before
    assert kills > 3
    assert producers.kills == 2
    assert set(producers.codes) == {0}
