"""Timeouts that somebody has set for the role or the database: they cost an attempt, no job."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from sqlalchemy_bgjob import constant
from support.running import in_turn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.orm import Session

    from sqlalchemy_bgjob import Context
    from support.running import Workbench

SELECT_1 = text("SELECT 1")


@contextmanager
def limited(bench: Workbench, name: str) -> Iterator[None]:
    """All new sessions begin with this setting, at two seconds."""
    database = bench.sql("SELECT quote_ident(current_database())")[0][0]
    bench.sql(f"ALTER DATABASE {database} SET {name} = '2s'")
    try:
        yield
    finally:
        bench.sql(f"ALTER DATABASE {database} RESET {name}")


def takes_long(bench: Workbench, session: Session) -> None:
    session.execute(text("SELECT pg_sleep(20)"))


def waits_for_a_lock(bench: Workbench, session: Session) -> None:
    session.execute(text("SELECT pg_advisory_xact_lock(1)"))


def is_idle(bench: Workbench, session: Session) -> None:
    pid = session.scalar(text("SELECT pg_backend_pid()"))
    bench.pause(lambda: bench.has_ended(pid))
    session.execute(SELECT_1)


def goes_on(bench: Workbench, session: Session) -> None:
    for _ in range(100):
        session.execute(text("SELECT pg_sleep(0.05)"))


TIMEOUTS = {
    "idle_in_transaction_session_timeout": (is_idle, "25P03"),  # psycopg is told of this,
    "statement_timeout": (takes_long, "57014"),
    "lock_timeout": (waits_for_a_lock, "55P03"),
    "transaction_timeout": (goes_on, "25P04"),  # and of this
}


@in_turn("timeout", TIMEOUTS)
def test_it_fails_the_attempt_and_is_named(bench: Workbench, timeout: str) -> None:
    body, sqlstate = TIMEOUTS[timeout]

    def handler(session: Session, ctx: Context[Any]) -> None:
        bench.note(session, ctx)
        body(bench, session)

    slow = bench.enqueue(bench.handler("slow", handler, retry=constant(3600.0)))
    plain = bench.handler("plain", bench.note)
    others = [bench.enqueue(plain) for _ in range(20)]
    blocker = bench.outside.connect().execution_options(isolation_level="READ COMMITTED")
    with limited(bench, timeout), blocker, blocker.begin():
        if body is waits_for_a_lock:
            blocker.execute(text("SELECT pg_advisory_xact_lock(1)"))
        ran = bench.run()

    assert ran.of(slow) == ["started", "will_be_retried"]
    error = bench.job(slow).last_error
    # Asyncpg passes on why the server has ended a connection if a statement was under way, psycopg2
    # never does.
    if sqlstate in ("57014", "55P03") or bench.flavor.driver == "psycopg":
        assert sqlstate in error
        assert timeout in error
    assert "Error" in error
    assert bench.notes(slow) == []
    for job_id in others:
        assert bench.notes(job_id) == ["written"]
        assert ran.of(job_id) == ["started", "completed"]
