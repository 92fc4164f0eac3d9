"""Sessions keep what the server was when they began: those of a bad time are given up.

A provider makes a database read-only while its disk is full; a failover leads to a reader for some
seconds; somebody sets a wrong search_path for a minute.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from sqlalchemy import make_url

from sqlalchemy_bgjob import aio, worker
from sqlalchemy_bgjob._db.errors import sqlstate
from support import wait_until
from support.processes import FAST
from support.running import in_turn, one_of_each

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import pytest

    from support.databases import TestServer
    from support.running import Workbench
    from support.tuning import Tune

READ_ONLY = {"default_transaction_read_only": "on"}
BAD_TIMES: dict[str, tuple[dict[str, str], str]] = {
    "read-only": (READ_ONLY, "25006"),
    "search_path": ({"search_path": "nowhere"}, "42P01"),
}
SETTINGS = {**FAST, "listen": True}


def end_sessions(server: TestServer, bench: Workbench) -> None:
    with server._connect() as admin:
        admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
            [make_url(bench.url).database],
        )
    bench.outside.dispose()


@contextlib.contextmanager
def bad_time(
    server: TestServer, bench: Workbench, settings: Mapping[str, str] = READ_ONLY
) -> Iterator[None]:
    """Every session that begins in the block has these settings, as long as it lasts."""
    database = make_url(bench.url).database
    with server._connect() as admin:
        for name, value in settings.items():
            admin.execute(f'ALTER DATABASE "{database}" SET {name} = {value}')
        end_sessions(server, bench)
        try:
            yield
        finally:
            admin.execute(f'ALTER DATABASE "{database}" RESET ALL')
            bench.outside.dispose()


def refused(caplog: pytest.LogCaptureFixture, code: str, *beginnings: str) -> bool:
    """Whether one of these lines of the log tells of a refusal."""
    return any(
        line.startswith(beginnings) and code in line
        for line in (record.getMessage() for record in list(caplog.records))
    )


@in_turn("kind", BAD_TIMES)
def test_a_worker_gives_up_sessions_of_a_bad_time(
    bench: Workbench, server: TestServer, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """Heart, rescuer and loop have all met it; afterwards each of them does its work."""
    settings, code = BAD_TIMES[kind]
    handler = bench.handler("t", bench.note)
    caplog.set_level(logging.DEBUG, "sqlalchemy_bgjob")

    def during() -> None:
        first = bench.enqueue(handler)
        wait_until(lambda: bench.notes(first), 60, what="a job before")
        with bad_time(server, bench, settings):
            for meets, who in (
                (code, ("heartbeat interrupted",)),
                (code, ("rescuer interrupted", "a sweep failed")),
                # It may be the end of its session: without a heartbeat nothing is claimed after it.
                ("", ("worker interrupted", "queue 'default' can't")),
            ):
                wait_until(
                    lambda meets=meets, who=who: refused(caplog, meets, *who),
                    60,
                    what=f"{who} in the log",
                )
        since = bench.sql("SELECT clock_timestamp()")[0][0]
        bench.put_lost_job()
        after = bench.enqueue(handler)
        wait_until(lambda: bench.notes(after), 60, what="a job after")
        wait_until(lambda: bench.notes("lost"), 60, what="the job of a lost worker")
        wait_until(
            lambda: bench.sql("SELECT 1 FROM bgjob_worker WHERE beat_at > :since", since=since),
            60,
            what="a heartbeat",
        )

    ran = bench.run(during=during, deadline=120.0, **SETTINGS)

    # One error of each connection in five seconds is told: perhaps that its session was ended.
    errors = {sqlstate(event.rest[0]) for event in ran.named("worker_error")}
    assert errors & {code, "57P01"}


@one_of_each
def test_a_worker_that_began_in_a_read_only_time_goes_on(
    bench: Workbench, server: TestServer, caplog: pytest.LogCaptureFixture, tune: Tune
) -> None:
    """It waits as for a database that is not up yet, and registers when it can."""
    for starts in (worker, aio):
        tune(starts, START_TIMEOUT=0.5)
    handler = bench.handler("t", bench.note)
    caplog.set_level(logging.DEBUG, "sqlalchemy_bgjob")
    done: list[str] = []

    def during() -> None:
        wait_until(lambda: refused(caplog, "25006", "heartbeat"), 60, what="a refused heartbeat")
        stack.close()
        done.append(bench.enqueue(handler))
        wait_until(lambda: bench.notes(done[0]), 60, what="the job")

    with contextlib.ExitStack() as stack:
        stack.enter_context(bad_time(server, bench))
        bench.run(during=during, deadline=120.0, **SETTINGS)

    assert bench.notes(done[0]) == ["written"]
