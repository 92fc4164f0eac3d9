"""Workers that are killed while they fire a schedule of each second."""

from __future__ import annotations

from typing import TYPE_CHECKING

from support.processes import FAST
from support.waiting import wait_until

if TYPE_CHECKING:
    from support.processes import Fleet, WorkerProcess


def kill_one_each_time(fleet: Fleet, *, workers: int, times: int) -> list[str]:
    """Kill one worker and start another after each of so many fire times; what was wrong."""

    def start() -> WorkerProcess:
        return fleet.start(schedule=True, wait=False, **FAST)

    def wait_for_the_next() -> None:
        seen = len(fleet.fire_times("tick"))
        wait_until(lambda: len(fleet.fire_times("tick")) > seen, 60, what="the next fire time")

    alive = [start() for _ in range(workers)]
    for _ in range(times):
        wait_for_the_next()
        alive.pop(0).kill()
        alive.append(start())
    wait_for_the_next()
    return fleet.schedule_problems("tick", faults=times)
