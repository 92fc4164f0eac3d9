"""A worker that has run many jobs holds no more than one that has run a few."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sqlalchemy_bgjob import enqueue_many
from support.processes import THREADS, VARIANTS

if TYPE_CHECKING:
    from support.processes import Fleet, WorkerProcess

MEGABYTE = 1_048_576
SLOTS = 5
FAILS = {"how": "parameters", "secret": "x" * 100}
LONG = [
    pytest.param(variant, 10_000, 100_000, 20_000, marks=pytest.mark.chaos) for variant in VARIANTS
]


@dataclass(frozen=True)
class Held:
    """What the system says that a process holds."""

    memory: int
    files: int
    threads: int


def held(process: WorkerProcess) -> Held:
    folder = Path(f"/proc/{process.pid}")
    pages = int((folder / "statm").read_text().split()[1])
    return Held(
        memory=pages * os.sysconf("SC_PAGE_SIZE"),
        files=len(list((folder / "fd").iterdir())),
        threads=len(list((folder / "task").iterdir())),
    )


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("variant", "warm_up", "completing", "failing"),
    [(THREADS, 3_000, 5_000, 500), *LONG],
    ids=str,
)
def test_jobs_leak_nothing_whether_they_complete_or_fail(
    fleet: Fleet, warm_up: int, completing: int, failing: int
) -> None:
    """Less than a megabyte for each 10,000 jobs; files and threads are those of the slots."""
    process = fleet.start(slots=SLOTS)

    def work_off(job: Any, arg: Any, count: int) -> Held:
        for begin in range(0, count, 10_000):
            enqueue_many(fleet.engine, job, [arg] * min(10_000, count - begin))
            fleet.wait_until_done(300)
        return held(process)

    work_off(fleet.app.leak, FAILS, warm_up // 10)
    before = work_off(fleet.app.quick, None, warm_up)
    completed = work_off(fleet.app.quick, None, completing)
    failed = work_off(fleet.app.leak, FAILS, failing)

    print(
        f"{completing} completed: {(completed.memory - before.memory) / MEGABYTE:+.2f} MB, "
        f"{failing} failed: {(failed.memory - completed.memory) / MEGABYTE:+.2f} MB, {failed}"
    )
    assert fleet.journal.count("start") >= completing + failing
    assert fleet.scalar("SELECT count(*) FROM bgjob_dead_job") >= failing
    # What grows at first is room that is used again.
    room = 4 * MEGABYTE
    assert completed.memory - before.memory < room + MEGABYTE * completing / 10_000
    assert failed.memory - completed.memory < room + MEGABYTE * failing / 10_000
    # Each slot may have come to its own thread and connection.
    assert failed.files <= before.files + SLOTS
    assert failed.threads <= before.threads + SLOTS
