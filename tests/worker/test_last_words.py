"""The server says why it ends a session; ``last_error`` keeps that, where the driver would not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from sqlalchemy_bgjob import constant
from support.running import Flavor

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from sqlalchemy_bgjob import Context
    from support.running import Workbench

PSYCOPG = [Flavor("psycopg", is_async=False), Flavor("psycopg", is_async=True)]


def lets_its_session_end(bench: Workbench, session: Session) -> None:
    session.execute(text("SET LOCAL idle_in_transaction_session_timeout = '50ms'"))
    pid = session.scalar(text("SELECT pg_backend_pid()"))
    bench.pause(lambda: bench.has_ended(pid))


def is_idle_for_too_long(bench: Workbench, session: Session) -> None:
    """The server's words are read before the next statement, as psycopg may do at one's end."""
    lets_its_session_end(bench, session)
    driver: Any = session.connection().connection.driver_connection
    driver.pgconn.consume_input()
    driver.pgconn.notifies()
    session.execute(text("SELECT 1"))


def is_terminated(bench: Workbench, session: Session) -> None:
    pid = session.scalar(text("SELECT pg_backend_pid()"))
    session.execute(text("SELECT pg_terminate_backend(:pid), pg_sleep(20)"), {"pid": pid})


def hides_it(bench: Workbench, session: Session) -> None:
    try:
        is_idle_for_too_long(bench, session)
    except DBAPIError as error:
        raise RuntimeError("no receipt") from error


@pytest.mark.parametrize(
    ("bench", "body", "sqlstate"),
    [
        *((flavor, is_idle_for_too_long, "25P03") for flavor in PSYCOPG),
        *((flavor, hides_it, "25P03") for flavor in PSYCOPG),
        *((flavor, is_terminated, "57P01") for flavor in PSYCOPG),
        (Flavor("asyncpg", is_async=True), is_terminated, "57P01"),
    ],
    indirect=["bench"],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_why_the_server_ended_a_session_is_kept(bench: Workbench, body: Any, sqlstate: str) -> None:
    def handler(session: Session, ctx: Context[Any]) -> None:
        body(bench, session)

    job = bench.enqueue(bench.handler("slow", handler, retry=constant(3600.0)))

    ran = bench.run()

    assert ran.of(job) == ["started", "will_be_retried"]
    assert sqlstate in bench.job(job).last_error


def test_words_of_an_earlier_session_are_not_kept(bench: Workbench) -> None:
    """The second attempt has a connection of its own, made for the same place in the pool."""

    def handler(session: Session, ctx: Context[Any]) -> None:
        if ctx.job.attempt == 1:
            lets_its_session_end(bench, session)
        session.execute(text("SELECT no_such_column"))

    job = bench.enqueue(bench.handler("slow", handler, max_attempts=2, retry=constant(0.0)))

    bench.run(engine={"pool_size": 3})

    assert "42703" in bench.dead(job).last_error
    assert "25P03" not in bench.dead(job).last_error
