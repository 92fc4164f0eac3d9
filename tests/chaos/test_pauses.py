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

OBEYED_WITHIN = 1.0
"""Seconds, as is promised."""
CYCLES = 20


@pytest.mark.chaos
@pytest.mark.timeout(600)
@pytest.mark.parametrize("variant", [THREADS, ASYNC], ids=str)
def test_no_job_starts_in_a_paused_queue(fleet: Fleet) -> None:
    """Two of four processes do not listen; one is killed in every third pause."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice, jobs = random.Random(seed), fleet.app.jobs
    processes = [fleet.start(slots=5, listen=n % 2 == 0) for n in range(4)]
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
        time.sleep(dice.uniform(1.0, 2.5))
        if cycle % 3 == 2:
            victim = processes.pop(0)
            victim.kill()
            kills += 1
            processes.append(fleet.start(slots=5, listen=victim.config.settings["listen"]))
        paused.append((begun, time.monotonic()))
        jobs.resume(fleet.engine, "default")
    over.set()
    producer.join()
    fleet.wait_until_done(120)

    starts = [line["at"] for lines in fleet.journal.starts().values() for line in lines]
    late = [at - begun for begun, ended in paused for at in starts if begun < at < ended]
    print(
        f"{len(starts)} starts, {len(paused)} pauses, {kills} kills; the last start in a pause "
        f"{max(late, default=0.0):.3f} s after it"
    )
    assert len(starts) >= len(ids) > 500
    assert max(late, default=0.0) < OBEYED_WITHIN
    fleet.check(ids, faults=kills)
