"""A worker whose machine has another time, or whose time jumps: the database's clock counts."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from sqlalchemy_bgjob import enqueue_many
from support import wait_until
from support.processes import FAST, TWO, Fleet

pytestmark = pytest.mark.system

FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)


class Clock:
    """What a process takes for the time of day; its monotonic clock is left alone."""

    def __init__(self, file: Path) -> None:
        assert FAKETIME is not None, "libfaketime is missing: apt-get install libfaketime"
        self._file = file
        self.environment = {
            "LD_PRELOAD": str(FAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }
        self.set("+0")

    def set(self, offset: str) -> None:
        """Let it be so much ahead from now on: ``+2d``, ``-3h``."""
        self._file.write_text(f"{offset}\n")


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of all processes that are started from now on."""
    clock = Clock(tmp_path / "faketime")
    for name, value in clock.environment.items():
        monkeypatch.setenv(name, value)
    return clock


@pytest.mark.parametrize("variant", TWO, ids=str)
@pytest.mark.parametrize("first", ["+5000d", "-2500d"])
def test_a_clock_that_is_wrong_and_jumps_changes_nothing(
    fleet: Fleet, clock: Clock, first: str
) -> None:
    """Neither is a job started too early or too late, nor does a worker lose or take a job."""
    clock.set(first)
    process, other = fleet.start(**FAST), fleet.start(**FAST)
    naps = [f"nap-{n}" for n in range(4)]
    enqueue_many(fleet.engine, fleet.app.nap, [6.0] * 4, ids=naps)
    later = [f"later-{n}" for n in range(20)]
    enqueue_many(fleet.engine, fleet.app.effect, [None] * 20, delay=4.0, ids=later)
    never = [f"never-{n}" for n in range(5)]
    enqueue_many(fleet.engine, fleet.app.effect, [None] * 5, delay=3600.0, ids=never)
    enqueued = time.monotonic()
    wait_until(lambda: len(fleet.journal.starts()) == 4, what="running jobs")

    for offset in ("+1h", "-1h", "+3650d", "-3650d", first):
        clock.set(offset)
        jumped = time.monotonic()
        wait_until(lambda since=jumped: time.monotonic() - since > 0.7, what="some beats")
    wait_until(lambda: fleet.jobs_left == 5, what="the end of what is due")

    assert process.alive
    assert other.alive
    starts = fleet.journal.starts()
    assert {len(starts[job_id]) for job_id in naps + later} == {1}
    assert {line["crashes"] for line in fleet.journal.read("start")} == {0}
    waits = [starts[job_id][0]["at"] - enqueued for job_id in later]
    assert min(waits) > 3.5
    assert max(waits) < 8.0
    years = {line["year"] for line in fleet.journal.read("start")}
    assert years - {time.gmtime().tm_year}, "the clock was never wrong"
