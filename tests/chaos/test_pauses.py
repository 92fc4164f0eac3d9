"""Pauses and resumes for a minute, while jobs come and worker processes are killed."""

from __future__ import annotations

import random
import threading
import time
from typing import TYPE_CHECKING

import pytest

from sqlalchemy_bgjob import enqueue_many
from support.processes import ASYNC, THREADS

if TYPE_CHECKING:
    from support.processes import Fleet

CYCLES = 20
SEEN_WITHIN = 5.0
"""Seconds that only a fault can reach; a worker that has the CPU sees a pause within one."""


@pytest.mark.chaos
@pytest.mark.timeout(600)
@pytest.mark.parametrize("variant", [THREADS, ASYNC], ids=str)
def test_no_job_starts_in_a_paused_queue(fleet: Fleet) -> None:
    """Two of four processes do not listen; one is killed in every third pause."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice, jobs = random.Random(seed), fleet.app.jobs
    processes = [fleet.start(slots=5, listen=n % 2 == 0) for n in range(4)]
    listens = {p.pid for p in processes if p.config.settings["listen"]}
    ids: list[str] = []
    over = threading.Event()

    def produce() -> None:
        while not over.is_set():
            few = [f"job-{len(ids) + n:06}" for n in range(dice.randint(1, 40))]
            enqueue_many(fleet.engine, fleet.app.quick, [None] * len(few), ids=few)
            ids.extend(few)
            over.wait(0.05)

    producer = threading.Thread(target=produce)
    producer.start()
    paused: list[tuple[float, float]] = []
    kills = 0
    for cycle in range(CYCLES):
        time.sleep(dice.uniform(0.2, 1.0))
        jobs.pause(fleet.engine, "default", by="chaos")
        begun = time.monotonic()
        time.sleep(SEEN_WITHIN + 2.0 if cycle % 4 == 3 else dice.uniform(1.0, 2.5))
        if cycle % 3 == 2:
            victim = processes.pop(0)
            victim.kill()
            kills += 1
            another = fleet.start(slots=5, listen=victim.config.settings["listen"])
            processes.append(another)
            listens |= {another.pid} if victim.pid in listens else set()
        paused.append((begun, time.monotonic()))
        jobs.resume(fleet.engine, "default")
    over.set()
    producer.join()
    fleet.wait_until_done(120)

    starts = [line for lines in fleet.journal.starts().values() for line in lines]
    late = [
        (line["at"] - begun, line["pid"] in listens)
        for begun, ended in paused
        for line in starts
        if begun < line["at"] < ended
    ]
    print(
        f"{len(starts)} starts, {len(paused)} pauses, {kills} kills; the last start in a pause "
        f"was {max(late, default=None)} s after it, in a process that listens or not"
    )
    assert len(starts) >= len(ids) > 500
    pauses = [(begun + SEEN_WITHIN, ended) for begun, ended in paused]
    assert fleet.problems(ids, faults=kills, pauses=pauses) == []
