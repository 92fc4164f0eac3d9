"""A handler's session finds no connection: its job waits, and no attempt is spent on that.

The worker's own sessions live on. The proxy refuses new ones, as a server does at a limit, in a
smart shutdown, or after a password was changed.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError
from sqlalchemy.util import await_only

from sqlalchemy_bgjob import Complete, MoveToDlq, Retry, constant
from sqlalchemy_bgjob._db.errors import describe, summary
from sqlalchemy_bgjob._worker.plan.pauses import Pauses
from sqlalchemy_bgjob.testing.points import at
from support.proxy import Proxy
from support.running import Gate, Workbench, in_turn, one_of_each, only_asyncio
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

    from sqlalchemy_bgjob import Context

SLOW = constant(3600.0)
SELECT_1 = text("SELECT 1")
REFUSALS = {
    "53300": 'too many connections for role "worker"',
    "57P03": "the database system is shutting down",
    "28P01": 'password authentication failed for user "worker"',
    "08P01": "no more connections allowed (max_client_conn)",
    None: "",
}
TO_USE = {"default": 4, "other": 1}
FULL = ("53300", REFUSALS["53300"])


@pytest.fixture
def proxy(bench: Workbench, workbench_url: str) -> Iterator[Proxy]:
    """Between the worker and the server; what looks from outside goes another way."""
    with Proxy(workbench_url) as proxy:
        bench.url = proxy.url
        yield proxy


def refuse(
    bench: Workbench, proxy: Proxy, sqlstate: str | None, words: str, *, in_use: int = 0
) -> None:
    """Once the worker has what it needs for itself, let there be no further connection.

    Handlers have so many of the connections *in_use*.
    """
    wait_until(lambda: bench.sql("SELECT 1 FROM bgjob_worker"), what="the worker's row")
    wait_until(lambda: proxy.connections >= 3 + in_use, what="those that claim, beat and watch")
    proxy.refuse(sqlstate, words, keep=True)


@in_turn("sqlstate", REFUSALS)
def test_jobs_wait_for_a_connection_attempt_unspent(
    bench: Workbench, proxy: Proxy, sqlstate: str | None
) -> None:
    """Jobs that use no session run meanwhile, also in the same queue."""
    uses = bench.handler("uses", bench.note, max_attempts=1, retry=SLOW)
    ran_plain: list[str] = []
    plain = bench.handler(
        "plain", lambda ctx: ran_plain.append(ctx.job.id), uses_session=False, session=False
    )
    ids, plain_ids = [], []

    def outage() -> None:
        refuse(bench, proxy, sqlstate, REFUSALS[sqlstate])
        ids.extend(bench.enqueue(uses) for _ in range(6))
        plain_ids.extend(bench.enqueue(plain, queue=queue) for queue in ("default", "other") * 2)
        wait_until(lambda: sorted(ran_plain) == sorted(plain_ids), 60.0, what="the plain jobs")
        wait_until(lambda: all(bench.job(id).last_error for id in ids), 60.0, what="the errors")
        assert [bench.dead(id) for id in ids] == [None] * len(ids)
        for id in ids:
            job = bench.job(id)
            assert job.attempt <= (job.claimed_by is not None)
            assert REFUSALS[sqlstate] in job.last_error
        proxy.pass_on()

    ran = bench.run(during=outage, until=bench.none_left, deadline=60.0, queues=TO_USE)

    for id in ids:
        assert bench.notes(id) == ["written"]
        assert ran.of(id)[-1] == "completed"
        assert set(ran.of(id)) == {"started", "rescheduled", "completed"}
        assert ran.last(id).job.attempt == 1


@one_of_each
def test_an_outage_is_not_spun_on(bench: Workbench, proxy: Proxy) -> None:
    """However many jobs are due, the server is asked a few times a second at most."""
    bench.handler("uses", bench.note, max_attempts=1, retry=SLOW)

    def outage() -> None:
        refuse(bench, proxy, *FULL)
        bench.sql(
            "INSERT INTO bgjob_job (id, queue, type) SELECT 'j' || n, 'default', 'uses'"
            " FROM generate_series(1, 500) n"
        )
        errors = "SELECT count(*) FROM bgjob_job WHERE last_error IS NOT NULL"
        wait_until(lambda: bench.sql(errors)[0][0], 60.0, what="the first that is put off")
        begun, before = time.monotonic(), proxy.refusals
        wait_until(lambda: time.monotonic() >= begun + 2.0)
        # A round of four slots after 0.05, 0.1, 0.2 ... seconds, or the half of that.
        assert proxy.refusals - before < 60
        assert bench.sql(errors)[0][0] < 60
        proxy.pass_on()

    bench.run(during=outage, until=bench.none_left, deadline=60.0)

    assert bench.sql("SELECT count(*) FROM note")[0][0] == 500


@one_of_each
def test_handlers_share_the_connections_that_there_are(bench: Workbench, proxy: Proxy) -> None:
    """Where there is room for fewer than the pool could hold, the others wait for these."""
    gate = Gate(bench)

    def holds(session: Session, ctx: Context[Any]) -> None:
        bench.note(session, ctx)
        gate.hold()

    first = bench.enqueue(bench.handler("first", holds, max_attempts=1))
    others = []

    def outage() -> None:
        gate.wait()
        refuse(bench, proxy, *FULL, in_use=1)
        before = proxy.refusals
        uses = bench.handler("uses", bench.note, max_attempts=1)
        others.extend(bench.enqueue(uses) for _ in range(12))
        wait_until(lambda: proxy.refusals >= before + 3, what="handlers that were refused")
        gate.open()

    ran = bench.run(during=outage, until=bench.none_left, deadline=60.0)

    for id in (first, *others):
        assert ran.of(id) == ["started", "completed"]
        assert bench.notes(id) == ["written"]


@one_of_each
def test_a_connection_that_comes_back_during_a_refusal_is_used(
    bench: Workbench, proxy: Proxy
) -> None:
    """The only one that there is was in use when a handler asked, and is free when it is told."""
    gate, refused = Gate(bench), []

    def is_told_late(error: Exception) -> None:
        refused.append(1)
        gate.open()
        bench.pause(lambda: bench.job(ids[0]) is None)

    def holds(session: Session, ctx: Context[Any]) -> None:
        bench.note(session, ctx)
        gate.hold()

    ids = [bench.enqueue(bench.handler("first", holds, max_attempts=1))]

    def outage() -> None:
        gate.wait()
        refuse(bench, proxy, *FULL, in_use=1)
        ids.append(bench.enqueue(bench.handler("uses", bench.note, max_attempts=1)))

    with at("unconnected", is_told_late):
        ran = bench.run(during=outage, until=bench.none_left, deadline=60.0)

    assert refused == [1]
    for id in ids:
        assert ran.of(id) == ["started", "completed"]
        assert bench.notes(id) == ["written"]


def swallows(outcome: Any) -> Callable[..., Any]:
    def body(session: Session, ctx: Context[Any]) -> Any:
        with suppress(SQLAlchemyError, OSError):
            session.execute(SELECT_1)
            return None
        if isinstance(outcome, type):
            raise outcome("in its stead")
        return outcome

    return body


@only_asyncio
def test_a_deadline_that_comes_while_it_connects_costs_nothing(bench: Workbench) -> None:
    hung = []

    def hang_once(_: object) -> None:
        if not hung:
            hung.append(1)
            object.__setattr__(handler.options, "timeout", 3600.0)  # the next has time enough
            await_only(asyncio.Event().wait())

    @bench.jobs.handler("t", timeout=2.0, max_attempts=1)
    async def handler(ctx: Context[AsyncSession]) -> None:
        errors.append(ctx.job.last_error)
        await ctx.session.run_sync(bench.note, ctx)

    errors: list[str | None] = []
    job_id = bench.enqueue(handler)
    with at("connecting", hang_once):
        ran = bench.run(until=lambda: bench.job(job_id) is None, deadline=60.0)

    assert ran.of(job_id) == ["started", "rescheduled", "started", "completed"]
    assert errors[0] is None
    assert "no connection within the handler's timeout" in (errors[1] or "")


@pytest.mark.parametrize(
    ("outcome", "becomes"),
    [
        (None, "put off"),
        (ValueError, "put off"),
        (Complete(), "completed"),
        (Retry(3600.0, "said"), "will_be_retried"),
        (MoveToDlq("said"), "moved_to_dlq"),
        (MoveToDlq, "moved_to_dlq"),
    ],
    ids=str,
)
@one_of_each
def test_a_handler_that_swallows_the_error_may_say_what_it_means(
    bench: Workbench, proxy: Proxy, outcome: Any, becomes: str
) -> None:
    handler = bench.handler("t", swallows(outcome), max_attempts=2, retry=SLOW)
    ids = []

    def outage() -> None:
        refuse(bench, proxy, *FULL)
        ids.append(bench.enqueue(handler))
        if becomes == "put off":
            wait_until(lambda: bench.job(ids[0]).last_error, what="its error")
        else:
            wait_until(bench.idle, what="its end")
        proxy.pass_on()

    until = bench.none_left if becomes == "put off" else bench.idle
    ran = bench.run(during=outage, until=until, deadline=60.0)

    if becomes == "put off":
        assert ran.of(ids[0])[-1] == "completed"
        assert "rescheduled" in ran.of(ids[0])
        assert bench.dead(ids[0]) is None
    else:
        assert ran.of(ids[0]) == ["started", becomes]


@one_of_each
def test_a_last_flush_waits_for_a_connection(bench: Workbench, proxy: Proxy) -> None:
    """The handler has returned before its session asks for a connection."""

    def adds(session: Session, ctx: Context[Any]) -> None:
        session.add(bench.Note(job_id=ctx.job.id, text="added"))

    handler = bench.handler("t", adds, max_attempts=1, retry=SLOW)
    ids = []

    def outage() -> None:
        refuse(bench, proxy, *FULL)
        ids.append(bench.enqueue(handler))
        wait_until(lambda: bench.job(ids[0]).last_error, what="its error")
        proxy.pass_on()

    bench.run(during=outage, until=bench.none_left, deadline=60.0)

    assert bench.notes(ids[0]) == ["added"]


def test_a_connection_lost_after_a_statement_fails_the_attempt(bench: Workbench) -> None:
    """What the handler has done meanwhile, nobody knows."""

    def ends_itself(session: Session, ctx: Context[Any]) -> None:
        bench.note(session, ctx)
        session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    job_id = bench.enqueue(bench.handler("t", ends_itself, retry=SLOW))

    ran = bench.run()

    assert ran.of(job_id) == ["started", "will_be_retried"]
    assert bench.job(job_id).attempt == 1


def test_a_connection_that_was_ended_while_idle_costs_nothing(bench: Workbench) -> None:
    """Neither an attempt nor a pause: another one is opened in its stead."""
    pids: list[int] = []

    def body(session: Session, ctx: Context[Any]) -> None:
        pids.append(session.scalar(text("SELECT pg_backend_pid()")) or 0)

    handler = bench.handler("t", body, max_attempts=1)
    ids = [bench.enqueue(handler)]

    def end_it() -> None:
        for count in range(1, 4):
            wait_until(bench.none_left, what="the job")
            assert len(pids) == count
            assert bench.sql("SELECT pg_terminate_backend(:pid, 5000)", pid=pids[-1])[0][0]
            ids.append(bench.enqueue(handler))

    ran = bench.run(during=end_it, until=bench.none_left, deadline=60.0)

    assert [ran.of(id) for id in ids] == [["started", "completed"]] * 4
    assert len(set(pids)) == 4


# ---- without a worker ---------------------------------------------------------------------------


def test_a_pause_grows_once_for_all_jobs_that_meet_it() -> None:
    pauses = Pauses()
    assert not pauses
    now, lasted = 100.0, []
    for _ in range(20):
        assert pauses.begins("q", now)
        until = pauses.until("q", now)
        assert [pauses.until("q", (now + until) / 2) for _ in range(10)] == [until] * 10
        assert not pauses.begins("q", (now + until) / 2)
        lasted.append(until - now)
        now = until

    assert lasted[0] <= 0.05
    assert lasted[3] > lasted[0]
    assert 2.5 <= lasted[-1] <= 5.0
    assert pauses.begins("another", now)
    assert pauses.end("q")
    assert not pauses.end("q")
    assert not pauses


class Silent(Exception):
    """A driver's error without an SQLSTATE."""


class Loud(Exception):
    sqlstate = "28P01"


@pytest.mark.parametrize(
    "words",
    [
        "invalid dsn: postgresql://me:hunter2@db/shop",
        'could not translate host name "hunter2@db" to address',
        "bad option in host=db password=hunter2 user=me",
        "bad option in password = 'hunter2'",
        "https://token:hunter2@db/token answers 503",
    ],
)
def test_no_password_gets_into_the_words_of_a_refusal(words: str) -> None:
    for error in (OperationalError(None, None, Silent(words)), Loud(words)):
        for told in (describe(error), summary(error)):
            assert "hunter2" not in told
            assert "***" in told


def test_errors_of_statements_keep_their_rows_to_themselves() -> None:
    """Only what has no statement, and is of a connection, is quoted."""
    unique = type("Unique", (Exception,), {"sqlstate": "23505"})
    for error in (
        DBAPIError("SELECT 1", None, Silent("secret")),
        OperationalError("SELECT 1", None, Loud("secret")),
        OperationalError(None, None, unique("secret")),
        DBAPIError(None, None, Silent("secret")),
        unique("secret"),
    ):
        assert "secret" not in describe(error)


def test_nobody_answers_is_told_in_the_drivers_words() -> None:
    engine = create_engine("postgresql+psycopg://me:hunter2@127.0.0.1:9/shop")
    with pytest.raises(OperationalError) as refused:
        engine.connect()

    assert "refused" in summary(refused.value).lower()
    assert "hunter2" not in describe(refused.value)
