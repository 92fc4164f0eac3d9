"""What a worker says when handlers fail, embedded or not: one line for each failed attempt."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from sqlalchemy_bgjob import FinishedRun, JobInfo, MoveToDlq, constant
from sqlalchemy_bgjob._handlers.registry import Registry
from sqlalchemy_bgjob.telemetry import _job_log as job_log
from sqlalchemy_bgjob.telemetry._job_log import DebugLogObserver, LogObserver, log_observer
from support.running import one_of_each
from support.tables import new_queue

if TYPE_CHECKING:
    from support.running import Workbench

CANARY = "canary-5b70"


def lines_about(caplog: pytest.LogCaptureFixture, job_id: str) -> list[str]:
    messages = [r.getMessage() for r in caplog.records if r.name == "sqlalchemy_bgjob.jobs"]
    return [message for message in messages if message.startswith(f"job {job_id} ")]


@pytest.mark.core
@pytest.mark.parametrize("uses_session", [True, False], ids=["session", "plain"])
@one_of_each
def test_each_failed_attempt_is_one_line(
    bench: Workbench, caplog: pytest.LogCaptureFixture, uses_session: bool
) -> None:
    """Without any observer of the user's: type, attempt, message, and the user's own line."""

    def fail(*given: Any) -> None:
        json.loads("{")

    handler = bench.handler(
        "invoice", fail, uses_session=uses_session, max_attempts=2, retry=constant(0.0)
    )
    job_id = bench.enqueue(handler)
    bench.run(until=lambda: bench.dead(job_id) is not None)

    first, second = lines_about(caplog, job_id)
    message = "JSONDecodeError: Expecting property name enclosed in double quotes"
    named = f"job {job_id} (invoice, attempt"
    assert first.startswith(f"{named} 1 of 2) failed, next attempt in 0.0 s: {message}")
    assert second.startswith(f"{named} 2 of 2) moved to the DLQ: {message}")
    for line in (first, second):
        assert line.endswith(" in fail)")
        assert f"({__file__}:" in line
        assert "\n" not in line


def test_at_debug_there_is_the_traceback(
    bench: Workbench, caplog: pytest.LogCaptureFixture
) -> None:
    """With lines of the source, and without the value of any variable or parameter."""
    caplog.set_level(logging.DEBUG, logger="sqlalchemy_bgjob")

    def fail(session: Any, ctx: Any) -> None:
        number = f"{CANARY}"  # noqa: F841 - a local
        session.execute(text("SELECT CAST(CAST(:n AS text) AS int)"), {"n": CANARY})

    job_id = bench.enqueue(bench.handler("t", fail, max_attempts=1))
    bench.run(until=lambda: bench.dead(job_id) is not None)

    told, moved = lines_about(caplog, job_id)
    assert told.startswith(f"job {job_id} (t, attempt 1 of 1) raised\nTraceback (most recent call")
    assert 'session.execute(text("SELECT CAST' in told
    assert "22P02" in told
    assert "moved to the DLQ" in moved
    assert CANARY not in caplog.text


@one_of_each
def test_what_succeeds_is_logged_at_debug_only(
    bench: Workbench, caplog: pytest.LogCaptureFixture
) -> None:
    handler = bench.handler("t", lambda ctx: None, uses_session=False)
    quiet = bench.enqueue(handler)
    bench.run()
    caplog.set_level(logging.DEBUG, logger="sqlalchemy_bgjob")
    told = bench.enqueue(handler)
    bench.run()

    assert lines_about(caplog, quiet) == []
    assert lines_about(caplog, told) == [f"job {told} (t, attempt 1 of 20) completed"]


def test_an_application_may_turn_the_lines_off(
    bench: Workbench, caplog: pytest.LogCaptureFixture
) -> None:
    """And keep what the worker says of itself."""
    logger = logging.getLogger("sqlalchemy_bgjob.jobs")

    def fail(ctx: Any) -> Any:
        return MoveToDlq("no such order")

    job_id = bench.enqueue(bench.handler("t", fail, uses_session=False))
    logger.setLevel(logging.CRITICAL)
    try:
        bench.run(until=lambda: bench.dead(job_id) is not None)
    finally:
        logger.setLevel(logging.NOTSET)

    assert lines_about(caplog, job_id) == []


# ---- pure ----------------------------------------------------------------------------------------


def test_only_debug_hears_of_each_job(caplog: pytest.LogCaptureFixture) -> None:
    """A worker whose log shows no such lines has no events to make for them."""
    assert type(log_observer(Registry())) is LogObserver
    caplog.set_level(logging.DEBUG, logger="sqlalchemy_bgjob")
    assert type(log_observer(Registry())) is DebugLogObserver


def test_lines_name_jobs_and_stay_lines(caplog: pytest.LogCaptureFixture) -> None:
    jobs = new_queue()
    jobs.handler("send", queue="mail", max_attempts=5)(lambda ctx: None)
    jobs.handler("always", max_attempts=None)(lambda ctx: None)
    now = datetime.now(UTC)
    job = JobInfo("7", "mail", "send", 2, 1, 0, 0, None, {}, now, now, now)
    endless = JobInfo("8", "default", "always", 9, 1, 0, 0, None, {}, now, now, now)
    unknown = JobInfo("9", "mail", "new", 0, 1, 0, 0, None, {}, now, now, now)
    observer, retried = DebugLogObserver(jobs.registry), partial(FinishedRun, 0.0, 2.0)
    caplog.set_level(logging.DEBUG)

    observer.job_moved_to_dlq(job, FinishedRun(0.0, error="my own words"))
    observer.job_moved_to_dlq(job, FinishedRun(0.0, error=None))
    observer.job_will_be_retried(job, retried("ValueError: a\n  a.py:3 in f\n  b.py:4 in g"))
    observer.job_will_be_retried(job, retried("ValueError: a\nb\x1b[2J\n  b.py:4 in g"))
    observer.job_will_be_retried(job, retried("V: a\n  a.py:1 in g\nthe retry policy failed"))
    observer.job_will_be_retried(job, retried("A\x1b[2JB"))
    observer.job_will_be_retried(job, retried("X: two (2 sub-exceptions)\ncontains KeyError: 'b'"))
    observer.job_will_be_retried(endless, retried("Y: " + "a" * 1000))
    observer.job_moved_to_dlq(unknown, FinishedRun(0.0, error="UnknownType: no worker knew it"))
    observer.job_lease_lost(job)
    observer.job_completed(job, FinishedRun(0.1))
    observer.job_rescheduled(job, FinishedRun(0.0, 3.0))

    failed = "job 7 (send, attempt 2 of 5) failed, next attempt in 2.0 s"
    assert [record.getMessage() for record in caplog.records] == [
        "job 7 (send, attempt 2 of 5) moved to the DLQ: my own words",
        "job 7 (send, attempt 2 of 5) moved to the DLQ",
        f"{failed}: ValueError: a (b.py:4 in g)",
        f"{failed}: ValueError: a (b.py:4 in g)",
        f"{failed}: V: a (a.py:1 in g)",
        f"{failed}: A\\x1b[2JB",
        f"{failed}: X: two (2 sub-exceptions), contains KeyError: 'b'",
        f"job 8 (always, attempt 9) failed, next attempt in 2.0 s: Y: {'a' * 297}...",
        "job 9 (new, attempt 0) moved to the DLQ: UnknownType: no worker knew it",
        "job 7 (send, attempt 2 of 5) lost its lease, it runs elsewhere",
        "job 7 (send, attempt 2 of 5) completed",
        "job 7 (send, attempt 2 of 5) runs again in 3.0 s",
    ]
    fields = [vars(record) for record in caplog.records]
    assert {field["job_id"] for field in fields} == {"7", "8", "9"}
    assert (fields[2]["error"], fields[2]["place"]) == ("ValueError: a", "b.py:4 in g")
    assert (fields[2]["attempt"], fields[2]["max_attempts"]) == (2, 5)


def test_no_id_and_no_type_makes_a_line_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    """Ids are made of what people type, and SQL may have written any type."""
    now = datetime.now(UTC)
    job = JobInfo("7\nforged", "mail", "se\x1b[2Jnd", 2, 1, 0, 0, None, {}, now, now, now)

    LogObserver(Registry()).job_lease_lost(job)

    (record,) = caplog.records
    name = "job 7\\x0aforged (se\\x1b[2Jnd, attempt 2)"
    assert record.getMessage() == f"{name} lost its lease, it runs elsewhere"
    assert (vars(record)["job_id"], vars(record)["job_type"]) == (job.id, job.type)


class Refused(Exception):
    """A driver's error, whose message holds what a row holds."""

    def __init__(self, code: str) -> None:
        super().__init__("DETAIL: secret")
        self.sqlstate = code


def test_each_trouble_with_the_database_is_said_again_and_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of the second kind of an unbroken streak, and of what lasts for days."""
    now = 0.0
    monkeypatch.setattr(job_log, "time", SimpleNamespace(monotonic=lambda: now))
    observer = LogObserver(Registry())
    privilege = ProgrammingError("UPDATE", {"arg": "secret"}, Refused("42501"))
    column = ProgrammingError("UPDATE", {"arg": "secret"}, Refused("42703"))
    full = PoolTimeoutError("QueuePool limit of size 1 overflow 0 reached")

    for moment, error in [
        (0.0, privilege),
        (1.0, privilege),
        (2.0, column),
        (3.0, full),
        (3.0, Refused("42P01")),
        (4.9, privilege),
        (5.1, privilege),
        (6.0, column),
    ]:
        now = moment
        observer.worker_error(error)

    assert {record.levelname for record in caplog.records} == {"WARNING"}
    assert [record.getMessage() for record in caplog.records] == [
        "database error: ProgrammingError: Refused 42501 (the role lacks a privilege)",
        "database error: ProgrammingError: Refused 42703",
        "database error: TimeoutError: QueuePool limit of size 1 overflow 0 reached",
        (
            "database error: Refused: Refused 42P01 "
            "(a table is not in this database, or not in the search path)"
        ),
        "database error: ProgrammingError: Refused 42501 (the role lacks a privilege)",
    ]


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        ("25006", "the server is a standby, or default_transaction_read_only is on"),
        ("26000", "a pooler in transaction mode keeps no prepared statements: "),
        ("42P05", "a pooler in transaction mode keeps no prepared statements: "),
    ],
)
def test_a_session_of_no_use_is_no_lost_connection(
    caplog: pytest.LogCaptureFixture, code: str, advice: str
) -> None:
    observer = LogObserver(Registry())

    observer.worker_error(ProgrammingError("UPDATE", {"arg": "secret"}, Refused(code)))

    (record,) = caplog.records
    said = record.getMessage()
    assert said.startswith(f"database error: ProgrammingError: Refused {code} ({advice}")
