"""A machine that has another time, or whose time jumps: a worker's, and the server's own."""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine

from sqlalchemy_bgjob import enqueue_many
from support import wait_until
from support.databases import private_server
from support.processes import FAST, TWO, Fleet

if TYPE_CHECKING:
    from collections.abc import Iterator

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


@pytest.fixture
def server_clock() -> Iterator[Clock]:
    """A clock whose file the server's user may read."""
    folder = Path(tempfile.mkdtemp(prefix="bgjob-clock-"))
    folder.chmod(0o755)
    yield Clock(folder / "faketime")
    shutil.rmtree(folder)


def test_the_server_s_clock_steps_back_behind_a_frozen_worker(
    server_clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its last beat lies an hour ahead, and its jobs move as soon as if the clock had not moved."""
    with monkeypatch.context() as patch:
        for name, value in server_clock.environment.items():
            patch.setenv(name, value)
        stack = private_server()
        server = stack.__enter__()
    try:
        engine = create_engine(server.url)
        with Fleet(engine, tmp_path) as fleet:
            fleet.create_tables()
            frozen = fleet.start(**FAST)
            naps = [f"nap-{n}" for n in range(3)]
            enqueue_many(engine, fleet.app.nap, [1.0] * 3, ids=naps)
            fleet.wait_for_starts(3, frozen)
            frozen.signal(signal.SIGSTOP)
            hour = "SELECT extract(epoch FROM clock_timestamp())"
            before = fleet.scalar(hour)
            server_clock.set("-1h")
            wait_until(lambda: fleet.scalar(hour) < before - 3000, what="the server's hour")
            other = fleet.start(**FAST)

            taken = "SELECT count(*) = 0 FROM bgjob_worker WHERE pid = :pid"
            wait_until(lambda: fleet.scalar(taken, pid=frozen.pid), 60, what="the rescue")

            assert other.alive
            # They are due at the time that they were enqueued at, which is to come again.
            rows = fleet.rows("SELECT crashes, claimed_by FROM bgjob_job")
            assert [(row.crashes, row.claimed_by) for row in rows] == [(1, None)] * 3
        engine.dispose()
    finally:
        stack.__exit__(None, None, None)
