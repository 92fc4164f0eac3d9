"""Cancels at random moments, from another process, while workers drain, die and start again."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from sqlalchemy_bgjob import enqueue_many
from support import wait_until
from support.processes import ASYNC, FAST, THREADS

if TYPE_CHECKING:
    from support.processes import Fleet, WorkerProcess

SLOTS = 250
"""Of each of four workers, so that a thousand jobs run at once."""
UNTIL_THE_END = 600.0
"""Seconds for which every second job would go on, were it not released after the cancels."""
QUICKLY: dict[str, Any] = {**FAST, "shutdown_timeout": 0.5}


class Storm:
    """Cancels half of the jobs, each at a moment of its own, and keeps what it was told.

    Args:
        fleet: Whose jobs.
        ids: Of these jobs half are cancelled, some by id and some by a condition.
        seconds: How long it lasts.
        dice: Decide.
    """

    def __init__(self, fleet: Fleet, ids: list[str], seconds: float, dice: random.Random) -> None:
        self._fleet, self._seconds = fleet, seconds
        self.chosen = dice.sample(ids, len(ids) // 2)
        self._moments = sorted(dice.uniform(0, seconds) for _ in self.chosen)
        self._by_id = [dice.random() < 0.7 for _ in self.chosen]
        self.answers: Counter[str | None] = Counter()
        self.deleted: set[str] = set()
        self.failures: list[BaseException] = []
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        begun = time.monotonic()
        try:
            for job_id, at, by_id in zip(self.chosen, self._moments, self._by_id, strict=True):
                while time.monotonic() < begun + at:
                    time.sleep(0.001)
                self._cancel(job_id, by_id=by_id)
        except BaseException as error:
            self.failures.append(error)

    def _cancel(self, job_id: str, *, by_id: bool) -> None:
        jobs, engine = self._fleet.app.jobs, self._fleet.engine
        if by_id:
            answer: str | None = jobs.cancel(engine, job_id)
        else:
            found = jobs.cancel_where(engine, jobs.Job.id == job_id)
            answer = "cancelled" if found.cancelled else "asked" if found.asked else None
        self.answers[answer] += 1
        if answer == "cancelled":
            self.deleted.add(job_id)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("variant", "count", "listen"),
    [
        pytest.param(THREADS, 40, True, id="sync-40"),
        *(
            pytest.param(variant, 1_000, listen, marks=pytest.mark.chaos, id=f"{variant}-{listen}")
            for variant in (THREADS, ASYNC)
            for listen in (True, False)
        ),
    ],
)
def test_each_job_is_cancelled_or_complete_and_told_once(
    fleet: Fleet, count: int, listen: bool
) -> None:
    """A handler goes on for seconds or to the end, and begins anew where a drain interrupts it."""
    seed = 7 if count < 100 else random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    long = count >= 100
    seconds = (2.0, 8.0) if long else (0.5, 3.0)
    ids = [f"{n:04}" for n in range(count)]
    written = ids[: 4 + count // 25]  # these have a session, of which there are not so many
    rest = ids[len(written) :]
    for handler, some in ((fleet.app.write_and_wait, written), (fleet.app.wait, rest)):
        lasts = [dice.choice((dice.uniform(*seconds), UNTIL_THE_END)) for _ in some]
        enqueue_many(fleet.engine, handler, lasts, ids=some)

    def start() -> WorkerProcess:
        slots = SLOTS if long else 15
        return fleet.start(slots=slots, listen=listen, wait=False, **QUICKLY)

    workers = [start() for _ in range(4 if long else 2)]
    for worker in workers:
        fleet.wait_for(worker)
    wait_until(lambda: len(fleet.journal.starts()) >= min(count, 4 * SLOTS) * 0.7, 60)
    storm = Storm(fleet, ids, 10.0 if long else 1.5, dice)
    storm.thread.start()
    restarts = 0
    while storm.thread.is_alive() or restarts < (3 if long else 1):
        worker = workers.pop(0)
        worker.signal(signal.SIGTERM)
        workers.append(start())
        restarts += 1
        wait_until(lambda worker=worker: not worker.alive, 30)
        fleet.wait_for(workers[-1])
    storm.thread.join()
    fleet.journal.release()
    fleet.wait_until_done(120)

    print(dict(storm.answers), f"{restarts} restarts", dict(_told(fleet)))
    assert storm.failures == []
    assert storm.answers["asked"] + storm.answers["cancelled"] >= count / 8
    problems = fleet.problems(
        ids, with_effects=written, faults=restarts, cancelled=storm.deleted, told_within=20.0
    )
    assert problems == []
    told = _told(fleet)
    assert told["cancelled"] + told["completed"] == count - len(storm.deleted)
    assert told["cancelled"] > 0


def _told(fleet: Fleet) -> Counter[str]:
    return Counter(line["event"] for line in fleet.journal.read())
