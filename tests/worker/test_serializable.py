"""Handlers under SERIALIZABLE, as a role's default may be: the queue's own statements take part."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from sqlalchemy_bgjob import constant
from support.running import one_of_each

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.orm import Session

    from sqlalchemy_bgjob import Context
    from support.running import Workbench

SLOW = constant(3_600.0)


@pytest.fixture
def serializable(bench: Workbench) -> Iterator[None]:
    """All sessions of the database are, unless they say otherwise."""
    database = bench.sql("SELECT quote_ident(current_database())")[0][0]
    bench.sql(f"ALTER DATABASE {database} SET default_transaction_isolation = 'serializable'")
    yield
    bench.sql(f"ALTER DATABASE {database} RESET default_transaction_isolation")


@pytest.fixture(params=["settlement", "commit"])
def conflicts(bench: Workbench, request: pytest.FixtureRequest) -> Iterator[Callable[[int], None]]:
    """Let the next settlements by a handler's own transaction fail, there or at its COMMIT."""
    bench.sql("CREATE SEQUENCE conflicts")
    deferred = request.param == "commit"

    def set_up(times: int) -> None:
        bench.sql(
            f"CREATE FUNCTION conflict() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            f" IF current_setting('test.handler', true) = 'on'"
            f" AND nextval('conflicts') <= {times} THEN"
            f" RAISE EXCEPTION 'as if' USING ERRCODE = '40001'; END IF; RETURN OLD; END $$"
        )
        when = "AFTER DELETE" if deferred else "BEFORE DELETE"
        kind = "CONSTRAINT TRIGGER" if deferred else "TRIGGER"
        late = "DEFERRABLE INITIALLY DEFERRED" if deferred else ""
        bench.sql(
            f"CREATE {kind} conflict {when} ON bgjob_job {late}"
            f" FOR EACH ROW EXECUTE FUNCTION conflict()"
        )

    yield set_up
    bench.sql("DROP FUNCTION conflict() CASCADE")
    bench.sql("DROP SEQUENCE conflicts")


def marked(bench: Workbench) -> Callable[..., None]:
    """A handler whose transaction the trigger knows."""

    def body(session: Session, ctx: Context[Any]) -> None:
        session.execute(text("SET LOCAL test.handler = 'on'"))
        bench.note(session, ctx)

    return body


def test_a_conflict_is_a_failed_attempt_made_again_at_once(
    bench: Workbench, conflicts: Callable[[int], None]
) -> None:
    conflicts(1)
    job_id = bench.enqueue(bench.handler("t", marked(bench), max_attempts=2, retry=SLOW))

    ran = bench.run(until=bench.none_left, deadline=60.0)

    assert ran.of(job_id) == ["started", "will_be_retried", "started", "completed"]
    (retried,) = ran.named("job_will_be_retried")
    error, delay = retried.rest
    assert "40001" in error
    assert delay == 0.0
    assert bench.notes(job_id) == ["written"]


@one_of_each
def test_a_job_that_always_conflicts_is_dead_in_the_end(
    bench: Workbench, conflicts: Callable[[int], None]
) -> None:
    conflicts(1_000)
    job_id = bench.enqueue(bench.handler("t", marked(bench), max_attempts=3, retry=SLOW))

    ran = bench.run(until=bench.none_left, deadline=60.0)

    assert ran.of(job_id) == [*["started", "will_be_retried"] * 2, "started", "moved_to_dlq"]
    dead = bench.dead(job_id)
    assert dead.attempt == 3
    assert "40001" in dead.last_error
    assert bench.notes(job_id) == []


def test_a_handler_that_conflicts_with_itself_is_dead(bench: Workbench) -> None:
    """Another session of the handler's own writes what ``ctx.session`` has read, and reads it."""
    serializable = bench.outside.execution_options(isolation_level="SERIALIZABLE")

    def body(session: Session, ctx: Context[Any]) -> None:
        session.execute(text("SELECT count(*) FROM note"))
        with serializable.begin() as other:
            other.execute(text("SELECT count(*) FROM note"))
            other.execute(text("INSERT INTO note (text) VALUES ('of the other session')"))
        bench.note(session, ctx)

    handler = bench.handler("t", body, isolation_level="SERIALIZABLE", max_attempts=3, retry=SLOW)
    job_id = bench.enqueue(handler)

    ran = bench.run(until=bench.none_left, deadline=60.0)

    assert ran.of(job_id).count("started") == 3
    assert "40001" in bench.dead(job_id).last_error


def test_a_conflict_of_the_handlers_own_is_a_failed_attempt(bench: Workbench) -> None:
    def body(session: Session, ctx: Context[Any]) -> None:
        if ctx.job.attempt == 1:
            session.execute(
                text("DO $$ BEGIN RAISE EXCEPTION 'as if' USING ERRCODE = '40001'; END $$")
            )

    job_id = bench.enqueue(bench.handler("t", body, max_attempts=2, retry=SLOW))

    ran = bench.run(until=bench.none_left, deadline=60.0)

    assert ran.of(job_id) == ["started", "will_be_retried", "started", "completed"]


@pytest.mark.usefixtures("serializable")
@one_of_each
def test_serializable_by_default_loses_no_effect(bench: Workbench) -> None:
    handler = bench.handler("t", bench.note)
    ids = [bench.enqueue(handler) for _ in range(100)]

    bench.run(until=bench.none_left, deadline=60.0)

    assert bench.sql("SELECT count(*), count(DISTINCT job_id) FROM note") == [(len(ids),) * 2]
    assert bench.sql("SELECT 1 FROM bgjob_dead_job") == []
