"""A handler's pooled session is of no use for the job: it is replaced, and no attempt is spent.

It was opened while the database was read-only, or the statements that its driver has prepared are
gone, as behind a pooler that has begun to share sessions.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from sqlalchemy_bgjob import Complete, MoveToDlq, Retry, constant
from support.running import FLAVORS, one_of_each, paired
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import TextClause
    from sqlalchemy.orm import Session

    from sqlalchemy_bgjob import Context
    from support.running import Workbench

SLOW = constant(3600.0)
ONE = {"default": 1}


def default_read_only(session: Session) -> None:
    """Leave the handler's session as one that began in a read-only time would be."""
    session.connection().exec_driver_sql("SET default_transaction_read_only = on")


def writes(bench: Workbench) -> Callable[..., Any]:
    return bench.note


def reads(bench: Workbench) -> Callable[..., Any]:
    """The first write is the job's end."""
    return lambda session, ctx: session.execute(text("SELECT 1")) and None


def adds(bench: Workbench) -> Callable[..., Any]:
    """The first write is the last flush."""
    return lambda session, ctx: session.add(bench.Note(job_id=ctx.job.id, text="written"))


def raises_another(bench: Workbench) -> Callable[..., Any]:
    def body(session: Session, ctx: Context[Any]) -> None:
        try:
            bench.note(session, ctx)
        except DBAPIError as error:
            raise ValueError("in its stead") from error

    return body


def swallows(bench: Workbench) -> Callable[..., Any]:
    def body(session: Session, ctx: Context[Any]) -> None:
        with suppress(DBAPIError):
            bench.note(session, ctx)

    return body


def leaves_savepoint(bench: Workbench) -> Callable[..., Any]:
    def body(session: Session, ctx: Context[Any]) -> Complete:
        with suppress(DBAPIError), session.begin_nested():
            bench.note(session, ctx)
        return Complete()

    return body


BODIES = [writes, reads, adds, raises_another, swallows, leaves_savepoint]


@paired("body", BODIES)
def test_a_read_only_session_costs_no_attempt(bench: Workbench, body: Callable[..., Any]) -> None:
    """One handler's session was left read-only by another: only that it is so matters."""
    spoils = bench.handler("spoils", lambda session, ctx: default_read_only(session))
    handler = bench.handler("t", body(bench), max_attempts=1)
    ids = []

    def during() -> None:
        first = bench.enqueue(spoils)
        wait_until(bench.none_left, what="the session that is read-only")
        assert bench.dead(first) is None
        ids.append(bench.enqueue(handler))

    ran = bench.run(during=during, until=bench.none_left, queues=ONE, deadline=60.0)

    assert ran.of(ids[0]) == ["started", "rescheduled", "started", "completed"]
    assert ran.last(ids[0]).job.attempt == 1
    assert "default_transaction_read_only" in ran.last(ids[0]).job.last_error


def test_a_transaction_that_the_handler_made_read_only(bench: Workbench) -> None:
    """That it can't write is the handler's own doing."""

    def body(session: Session, ctx: Context[Any]) -> None:
        session.execute(text("SET TRANSACTION READ ONLY"))
        bench.note(session, ctx)

    job_id = bench.enqueue(bench.handler("t", body, retry=SLOW))

    ran = bench.run()

    assert ran.of(job_id) == ["started", "will_be_retried"]
    assert bench.job(job_id).attempt == 1


def says(outcome: Any) -> Callable[[Workbench], Callable[..., Any]]:
    def made(bench: Workbench) -> Callable[..., Any]:
        def body(session: Session, ctx: Context[Any]) -> None:
            try:
                bench.note(session, ctx)
            except DBAPIError as error:
                raise outcome from error

        return body

    return made


@pytest.mark.parametrize(
    ("outcome", "becomes"),
    [(Retry(3600.0, "said"), "will_be_retried"), (MoveToDlq("said"), "moved_to_dlq")],
    ids=["Retry", "MoveToDlq"],
)
@one_of_each
def test_what_the_handler_says_holds_and_the_session_goes(
    bench: Workbench, outcome: Any, becomes: str
) -> None:
    spoils = bench.handler("spoils", lambda session, ctx: default_read_only(session))
    handler = bench.handler("t", says(outcome)(bench), max_attempts=2)
    plain = bench.handler("plain", bench.note, max_attempts=1)
    ids = []

    def during() -> None:
        bench.enqueue(spoils)
        wait_until(bench.none_left, what="the session that is read-only")
        ids.append(bench.enqueue(handler))
        wait_until(bench.idle, what="its end")
        ids.append(bench.enqueue(plain))

    ran = bench.run(during=during, queues=ONE)

    assert ran.of(ids[0]) == ["started", becomes]
    assert ran.of(ids[1]) == ["started", "completed"]


@one_of_each
def test_sessions_of_a_read_only_time_are_all_replaced(bench: Workbench) -> None:
    """The first that is met tells of all that lie in the pool with it."""
    held: list[str] = []

    def holds(session: Session, ctx: Context[Any]) -> None:
        default_read_only(session)
        held.append(ctx.job.id)
        bench.pause(lambda: len(held) == 4)

    spoils = bench.handler("spoils", holds)
    handler = bench.handler("t", bench.note, max_attempts=1)
    ids = []

    def during() -> None:
        for _ in range(4):
            bench.enqueue(spoils)
        wait_until(bench.none_left, what="four sessions that are read-only")
        ids.append(bench.enqueue(handler))
        wait_until(bench.none_left, what="the job that meets the first")
        for _ in range(8):
            ids.append(bench.enqueue(handler))
            wait_until(bench.none_left, what="the jobs after it")

    ran = bench.run(during=during, until=bench.none_left, deadline=60.0)

    assert ran.of(ids[0]) == ["started", "rescheduled", "started", "completed"]
    assert [ran.of(id) for id in ids[1:]] == [["started", "completed"]] * 8


PREPARING = [flavor for flavor in FLAVORS if flavor.driver != "psycopg2"]


GONE = "DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$"
OF_ANOTHER = """DO $$ DECLARE prepared record; BEGIN
FOR prepared IN SELECT name FROM pg_prepared_statements WHERE statement NOT LIKE 'DO%' LOOP
EXECUTE format('DEALLOCATE %I', prepared.name);
EXECUTE format('PREPARE %I AS SELECT 1', prepared.name);
END LOOP; END $$"""


@pytest.mark.parametrize("spoil", [GONE, OF_ANOTHER], ids=["gone", "of another"])
@pytest.mark.parametrize("bench", PREPARING, ids=str, indirect=True)
def test_prepared_statements_that_are_gone_cost_no_attempt(bench: Workbench, spoil: str) -> None:
    """They go behind the driver's back, as with a pooler; in a new session all is well."""
    spoilt: list[str] = []

    def body(session: Session, ctx: Context[Any]) -> None:
        if len(ids) == 8 and not spoilt:
            spoilt.append(ctx.job.id)
            session.execute(text(spoil))
        bench.note(session, ctx)

    handler = bench.handler("t", body, max_attempts=1)
    ids: list[str] = []

    def during() -> None:
        for n in range(8):  # psycopg prepares what was sent five times
            ids.append(f"job-{n}")
            bench.enqueue(handler, id=ids[-1])
            wait_until(bench.none_left, what="the job")

    ran = bench.run(during=during, until=bench.none_left, queues=ONE, deadline=60.0)

    assert spoilt == ["job-7"]
    assert ran.of("job-7") == ["started", "rescheduled", "started", "completed"]
    assert bench.notes("job-7") == ["written"]
    assert "prepare_threshold" in ran.last("job-7").job.last_error


@pytest.mark.parametrize(
    "statement",
    [
        text("EXECUTE unheard_of"),
        text("/* its own */ EXECUTE unheard_of"),
        text("SELECT CAST($2 AS int), CAST(:one AS int)").bindparams(one=1),
    ],
    ids=["execute", "after a comment", "parameters"],
)
def test_a_handlers_own_prepared_statement_is_its_own_affair(
    bench: Workbench, statement: TextClause
) -> None:
    def body(session: Session, ctx: Context[Any]) -> None:
        session.execute(statement)

    job_id = bench.enqueue(bench.handler("t", body, retry=SLOW))

    ran = bench.run()

    assert ran.of(job_id) == ["started", "will_be_retried"]
