"""work_one: the caller's transaction decides what became of the job."""

from __future__ import annotations

import asyncio
import time
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, insert, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.util import await_only
from test_handlers import Handlers

from sqlalchemy_bgjob import (
    Complete,
    Context,
    MoveToDlq,
    Outcome,
    Reschedule,
    Retry,
    UnknownType,
    WorkerLost,
    constant,
)
from sqlalchemy_bgjob._worker.transaction import TransactionEnded
from sqlalchemy_bgjob.testing.points import at
from support.databases import with_driver
from support.running import FLAVORS, Note, Workbench, one_of_each, only_threads, paired

if TYPE_CHECKING:
    from collections.abc import Callable


SLOW = constant(3600.0)


@dataclass(frozen=True)
class Target:
    """A kind of target, and how a test does its work in it. Asyncio ones are driven by a loop."""

    kind: str

    def run(
        self, bench: Workbench, work: Callable[[Any, Callable[..., Any]], Any], **engine: Any
    ) -> Any:
        """Call ``work(target, call)``; ``call`` does what a caller would await."""
        url = with_driver(bench.url, bench.flavor.driver)
        if not bench.flavor.is_async:
            made = create_engine(url, **engine)
            make: Any = Session if self.kind == "session" else lambda made: made.connect()
            try:
                with make(made) as target:
                    result = work(target, lambda value: value)
                assert made.pool.checkedout() == 0  # type: ignore[attr-defined]
                return result
            finally:
                made.dispose()

        async def in_loop() -> Any:
            from sqlalchemy.util import greenlet_spawn

            made = create_async_engine(url, **engine)
            make: Any = AsyncSession if self.kind == "session" else lambda made: made.connect()
            try:
                async with make(made) as target:
                    result = await greenlet_spawn(work, target, await_only)
                assert made.pool.checkedout() == 0  # type: ignore[attr-defined]
                return result
            finally:
                await made.dispose()

        return asyncio.run(in_loop())


@pytest.fixture(params=["session", "connection"])
def target(request: pytest.FixtureRequest) -> Target:
    return Target(request.param)


def sync_of(target: Any) -> Any:
    if isinstance(target, AsyncSession):
        return target.sync_session
    return target.sync_connection if isinstance(target, AsyncConnection) else target


@pytest.mark.core
def test_the_callers_commit_commits_all_of_it(bench: Workbench, target: Target) -> None:
    job_id = bench.enqueue(bench.handler("t", bench.note))

    def work(t: Any, call: Callable[..., Any]) -> Any:
        outcome = call(bench.jobs.work_one(t, "default"))
        assert bench.job(job_id).attempt == 0, "nobody sees the claim"
        assert bench.notes(job_id) == []
        call(t.commit())
        return outcome

    assert isinstance(target.run(bench, work), Complete)
    assert bench.job(job_id) is None
    assert bench.notes(job_id) == ["written"]


@pytest.mark.core
@pytest.mark.parametrize("way", ["rollback", "close"])
def test_the_callers_rollback_leaves_the_job_as_it_was(
    bench: Workbench, target: Target, way: str
) -> None:
    job_id = bench.enqueue(bench.handler("t", bench.note))
    before = bench.job(job_id)[:-1]

    def work(t: Any, call: Callable[..., Any]) -> None:
        for _ in range(2):
            assert call(bench.jobs.work_one(t, "default"))
            call(t.rollback() if way == "rollback" else t.close())
            if way == "close":
                return

    target.run(bench, work)

    assert bench.job(job_id)[:-1] == before
    assert bench.notes(job_id) == []


def test_an_interrupted_handler_leaves_nothing_to_commit(bench: Workbench, target: Target) -> None:
    """The caller catches what ended it, and commits: the job is queued, and nothing written."""

    def body(session: Session, ctx: Context[Any]) -> None:
        bench.note(session, ctx)
        if bench.flavor.is_async:
            await_only(asyncio.sleep(3600))
        raise KeyboardInterrupt

    job_id = bench.enqueue(bench.handler("t", body))
    before = bench.job(job_id)

    def work(t: Any, call: Callable[..., Any]) -> None:
        if bench.flavor.is_async:
            with pytest.raises(TimeoutError):
                call(asyncio.wait_for(bench.jobs.work_one(t, "default"), 1.0))
        else:
            with pytest.raises(KeyboardInterrupt):
                bench.jobs.work_one(t, "default")
        call(t.commit())

    target.run(bench, work)

    job = bench.job(job_id)
    assert (job.claimed_by, job.attempt, job.last_error) == (None, 0, None)
    assert (job.next_run_at, job.lease) == (before.next_run_at, before.lease + 2)
    assert bench.notes(job_id) == []


@only_threads
def test_an_interrupt_after_the_run_undoes_nothing_else(bench: Workbench, target: Target) -> None:
    """The run itself is undone by then; the savepoint that is left is the caller's own."""

    def body(session: Session, ctx: Context[Any]) -> None:
        raise ValueError

    def interrupt(held: set[str]) -> None:
        raise KeyboardInterrupt

    job_id = bench.enqueue(bench.handler("t", body))
    written = insert(Note).values(job_id=job_id, text="the caller's")

    def work(t: Any, call: Callable[..., Any]) -> None:
        savepoint = t.begin_nested()
        t.execute(written)
        with at("write", interrupt), pytest.raises(KeyboardInterrupt):
            bench.jobs.work_one(t, "default")
        savepoint.commit()
        t.commit()

    target.run(bench, work)

    assert bench.notes(job_id) == ["the caller's"]


@one_of_each
def test_an_empty_queue_is_none(bench: Workbench, target: Target) -> None:
    bench.enqueue(bench.handler("t", lambda ctx: None, uses_session=False), delay=60)

    def work(t: Any, call: Callable[..., Any]) -> None:
        assert call(bench.jobs.work_one(t, "default")) is None
        call(t.commit())

    target.run(bench, work)


OUTCOMES: dict[str, tuple[Callable[[], Any], type[Outcome]]] = {
    "none": (lambda: None, Complete),
    "retry": (lambda: Retry(1000, "again"), Retry),
    "reschedule": (lambda: Reschedule(1000, arg={"page": 2}), Reschedule),
    "dlq": (lambda: MoveToDlq("hopeless"), MoveToDlq),
    "exception": (lambda: ValueError("plain"), Retry),
}


@pytest.mark.parametrize("way", ["return", "raise"])
def test_outcomes(bench: Workbench, target: Target, way: str) -> None:
    def body_of(name: str) -> Callable[..., Any]:
        def body(s: Session, ctx: Context[Any]) -> Any:
            bench.note(s, ctx)
            outcome = OUTCOMES[name][0]()
            if outcome is not None and (way == "raise" or name == "exception"):
                raise outcome
            return outcome

        return body

    ids = {
        name: bench.enqueue(bench.handler(name, body_of(name), retry=SLOW), {"page": 1})
        for name in OUTCOMES
    }

    def work(t: Any, call: Callable[..., Any]) -> None:
        for _, expected in OUTCOMES.values():  # in the order in which they were enqueued
            assert isinstance(call(bench.jobs.work_one(t, "default")), expected)
            call(t.commit())

    target.run(bench, work)

    for name, job_id in ids.items():
        kept = name == "none" or (way == "return" and name != "exception")
        assert bench.notes(job_id) == (["written"] if kept else [])
    assert bench.job(ids["none"]) is None
    assert bench.dead(ids["dlq"]).last_error == "hopeless"
    retried, rescheduled = bench.job(ids["retry"]), bench.job(ids["reschedule"])
    assert (retried.attempt, retried.last_error, retried.claimed_by) == (1, "again", None)
    assert (rescheduled.attempt, rescheduled.arg) == (0, b'{"page":2}')
    assert 900 < retried.due_in <= 1000
    assert "ValueError: plain" in bench.job(ids["exception"]).last_error


def test_jobs_of_one_transaction_go_together(bench: Workbench, target: Target) -> None:
    """Three jobs, the second fails; a database error in one does not harm the others."""

    def body(s: Session, ctx: Context[Any]) -> None:
        bench.note(s, ctx)
        if ctx.job.priority == 2:
            s.execute(text("SELECT 1/0"))

    handler = bench.handler("t", body, retry=SLOW)
    ids = [bench.enqueue(handler, priority=n) for n in (1, 2, 3)]

    def work(t: Any, call: Callable[..., Any]) -> None:
        while call(bench.jobs.work_one(t, "default")) is not None:
            pass
        call(t.commit())

    target.run(bench, work)

    assert [bench.notes(job_id) for job_id in ids] == [["written"], [], ["written"]]
    assert "22012" in bench.job(ids[1]).last_error


# ---- containment ---------------------------------------------------------------------------------


def deletes_its_row(handlers: Handlers, s: Session, ctx: Context[Any]) -> None:
    handlers.note(s, ctx, "a")
    s.delete(s.get_one(handlers.bench.jobs.Job, ctx.job.id))


def renames_its_row(handlers: Handlers, s: Session, ctx: Context[Any]) -> None:
    handlers.note(s, ctx, "a")
    s.execute(text("UPDATE bgjob_job SET id = 'other' WHERE id = :id"), {"id": ctx.job.id})


def leads_elsewhere(handlers: Handlers, s: Session, ctx: Context[Any]) -> None:
    handlers.note(s, ctx, "a")
    s.execute(text("CREATE TEMP TABLE bgjob_job (LIKE bgjob_job) ON COMMIT DROP"))


KEPT: dict[Callable[..., Any], list[str] | None] = {
    Handlers.commit_more_rollback: ["a"],
    Handlers.rollback_then_more: ["b"],
    Handlers.closes: None,
    Handlers.rollback_last: None,
    Handlers.rollback_then_complete: [],
    Handlers.text_writes_then_closes: None,
    Handlers.reads_by_connection_then_closes: [],
    Handlers.text_commit: None,
    deletes_its_row: None,
    renames_its_row: None,
    leads_elsewhere: None,
    Handlers.commit_then_raise: None,
    Handlers.flush_error_at_the_end: None,
    Handlers.db_error_swallowed: None,
}
"""What a handler does, and what is kept of it, or None for a failed attempt."""


@paired("body", KEPT)
def test_a_handler_can_not_end_the_callers_transaction(
    bench: Workbench, target: Target, body: Callable[..., Any]
) -> None:
    handlers = Handlers(bench)
    job_id = bench.enqueue(bench.handler("t", lambda s, ctx: body(handlers, s, ctx), retry=SLOW))

    def work(t: Any, call: Callable[..., Any]) -> None:
        call(t.execute(text("INSERT INTO note (job_id, text) VALUES ('caller', 'before')")))
        call(bench.jobs.work_one(t, "default"))
        assert bench.notes(job_id) == bench.notes("caller") == []
        call(t.execute(text("INSERT INTO note (job_id, text) VALUES ('caller', 'after')")))
        call(t.commit())

    target.run(bench, work)

    assert bench.notes("caller") == ["before", "after"]
    assert bench.notes(job_id) == (KEPT[body] or [])
    if KEPT[body] is None:
        assert bench.job(job_id).attempt == 1
    else:
        assert bench.job(job_id) is None


def test_a_handler_that_commits_by_the_driver_is_named(bench: Workbench, target: Target) -> None:
    """The caller's transaction is gone, so that the caller has to be told."""

    def body(s: Session, ctx: Context[Any]) -> None:
        bench.note(s, ctx)
        s.connection().exec_driver_sql("COMMIT")

    job_id = bench.enqueue(bench.handler("t", body))

    def work(t: Any, call: Callable[..., Any]) -> None:
        with pytest.raises(TransactionEnded, match="ended the transaction"):
            call(bench.jobs.work_one(t, "default"))
        call(t.rollback())

    target.run(bench, work)

    assert bench.job(job_id).attempt == 1, "the driver has committed the claim"


def test_a_trigger_that_keeps_the_row_is_named(bench: Workbench, target: Target) -> None:
    job_id = bench.enqueue(bench.handler("t", bench.note, retry=SLOW))

    def work(t: Any, call: Callable[..., Any]) -> None:
        call(bench.jobs.work_one(t, "default"))
        call(t.commit())

    with bench.trigger("RETURN NULL;"):
        target.run(bench, work)

    assert "a trigger keeps the job's row" in bench.job(job_id).last_error
    assert (bench.job(job_id).attempt, bench.notes(job_id)) == (1, [])


def ends_the_transaction(bench: Workbench, s: Session) -> None:
    s.connection().get_transaction().rollback()  # type: ignore[union-attr]


def loses_the_connection(bench: Workbench, s: Session) -> None:
    pid = s.scalar(text("SELECT pg_backend_pid()"))
    bench.sql("SELECT pg_terminate_backend(:pid, 5000)", pid=pid)
    s.execute(text("SELECT 1"))


@pytest.mark.filterwarnings("ignore:transaction already deassociated:sqlalchemy.exc.SAWarning")
@pytest.mark.parametrize("end", [ends_the_transaction, loses_the_connection])
def test_a_transaction_that_is_gone_is_the_callers_error(
    bench: Workbench, target: Target, end: Callable[[Workbench, Session], None]
) -> None:
    def body(s: Session, ctx: Context[Any]) -> None:
        bench.note(s, ctx)
        end(bench, s)

    job_id = bench.enqueue(bench.handler("t", body))

    def work(t: Any, call: Callable[..., Any]) -> None:
        with pytest.raises(Exception) as caught:  # noqa: PT011 - each driver has its own
            call(bench.jobs.work_one(t, "default"))
        assert not isinstance(caught.value, AssertionError)
        call(t.rollback())

    target.run(bench, work)

    assert bench.job(job_id).attempt == 0
    assert bench.notes(job_id) == []


# ---- the caller's commit -------------------------------------------------------------------------


def test_a_commit_that_fails_leaves_the_job_as_it_was(bench: Workbench, target: Target) -> None:
    def body(s: Session, ctx: Context[Any]) -> None:
        s.add_all(bench.Note(job_id=ctx.job.id, text="a", late=1) for _ in range(2))

    job_id = bench.enqueue(bench.handler("t", body))

    def work(t: Any, call: Callable[..., Any]) -> None:
        assert call(bench.jobs.work_one(t, "default"))
        with pytest.raises(IntegrityError):
            call(t.commit())
        call(t.rollback())
        assert call(t.execute(text("SELECT 1"))).scalar() == 1

    target.run(bench, work)

    assert bench.job(job_id).attempt == 0
    assert bench.notes(job_id) == []


def test_a_savepoint_of_the_callers_is_not_the_commit(bench: Workbench, target: Target) -> None:
    job_id = bench.enqueue(bench.handler("t", bench.note))

    def work(t: Any, call: Callable[..., Any]) -> None:
        call(t.execute(text("SELECT 1")))
        savepoint = call(t.begin_nested())
        assert call(bench.jobs.work_one(t, "default"))
        call(savepoint.commit())
        call(t.execute(text("SELECT 1")))
        assert bench.job(job_id).attempt == 0
        call(t.commit())

    target.run(bench, work)

    assert bench.job(job_id) is None
    assert bench.notes(job_id) == ["written"]


# ---- handlers and targets ------------------------------------------------------------------------


@one_of_each
def test_a_function_given_as_handler_takes_any_type(bench: Workbench, target: Target) -> None:
    seen: list[Any] = []
    job_id = bench.jobs.enqueue(bench.outside, "never seen", {"a": [1]}, queue="q").id

    def function(ctx: Context[Any], arg: Any) -> Any:
        seen.append((ctx.job.type, arg))
        bench.note(sync_of(ctx.session), ctx)
        return None

    async def coroutine(ctx: Context[AsyncSession], arg: Any) -> Any:
        seen.append((ctx.job.type, arg))
        await ctx.session.run_sync(bench.note, ctx)

    def work(t: Any, call: Callable[..., Any]) -> None:
        handlers = [function, coroutine] if bench.flavor.is_async else [function]
        for handler in handlers:
            assert call(bench.jobs.work_one(t, "q", handler))
            call(t.rollback())
        call(bench.jobs.work_one(t, "q", handlers[-1]))
        call(t.commit())

    target.run(bench, work)

    assert set(map(repr, seen)) == {repr(("never seen", {"a": [1]}))}
    assert bench.notes(job_id) == ["written"]


def test_a_function_gets_a_plain_session_also_under_asyncio(
    bench: Workbench, target: Target
) -> None:
    types: list[type] = []

    @bench.jobs.handler("t")
    def function(ctx: Context[Session]) -> None:
        types.append(type(ctx.session))
        bench.note(ctx.session, ctx)

    job_id = bench.enqueue(function)

    def work(t: Any, call: Callable[..., Any]) -> None:
        call(bench.jobs.work_one(t, "default"))
        call(t.commit())

    target.run(bench, work)

    assert types == [Session]
    assert bench.notes(job_id) == ["written"]


THREADS = [flavor for flavor in FLAVORS if not flavor.is_async]


@pytest.mark.parametrize("bench", THREADS, ids=str, indirect=True)
def test_a_coroutine_needs_an_asyncio_target(bench: Workbench, target: Target) -> None:
    """Given, it is refused; registered, it is left for those who can run it."""

    async def coroutine(ctx: Context[Any]) -> None:
        raise AssertionError

    job_id = bench.enqueue(bench.jobs.handler("t")(coroutine))
    before = bench.job(job_id)[:-1]

    def work(t: Any, call: Callable[..., Any]) -> None:
        with pytest.raises(TypeError, match="is a coroutine, and this connection is synchronous"):
            bench.jobs.work_one(t, "default", coroutine)
        t.commit()
        assert bench.job(job_id)[:-1] == before
        assert isinstance(bench.jobs.work_one(t, "default"), Reschedule)
        t.commit()

    target.run(bench, work)

    job = bench.job(job_id)
    assert (job.attempt, job.last_error) == (0, None)
    assert job.unknown_since is not None


@one_of_each
def test_an_unknown_type_is_put_off(bench: Workbench, target: Target) -> None:
    job_id = bench.jobs.enqueue(bench.outside, "tomorrow", None, queue="q").id

    def work(t: Any, call: Callable[..., Any]) -> None:
        outcome = call(bench.jobs.work_one(t, "q"))
        assert isinstance(outcome, Reschedule)
        call(t.commit())
        bench.sql(
            "UPDATE bgjob_job SET unknown_since = now() - interval '300 s', next_run_at = now()"
        )
        assert isinstance(call(bench.jobs.work_one(t, "q")), MoveToDlq)
        call(t.commit())

    target.run(bench, work)

    assert bench.dead(job_id).last_error == f"UnknownType: {UnknownType('tomorrow', 300.0)}"
    assert bench.dead(job_id).attempt == 0


@pytest.mark.parametrize("crashes", [0, 2])
@one_of_each
def test_a_job_whose_attempts_are_spent(bench: Workbench, target: Target, crashes: int) -> None:
    """As with a worker: it gets the run that it waits for, unless it took workers along."""
    ran: list[int] = []

    @bench.jobs.handler("t", queue="q", max_attempts=3)
    def handler(ctx: Context[Any]) -> None:
        ran.append(ctx.job.attempt)

    job_id = bench.enqueue(handler)
    bench.sql("UPDATE bgjob_job SET attempt = 5, crashes = :crashes", crashes=crashes)

    def work(t: Any, call: Callable[..., Any]) -> None:
        outcome = call(bench.jobs.work_one(t, "q"))
        call(t.commit())
        assert isinstance(outcome, MoveToDlq if crashes else Complete)

    target.run(bench, work)

    assert ran == ([] if crashes else [6])
    if crashes:
        reason = f"WorkerLost: {WorkerLost(2, 5, 3)}"
        assert (bench.dead(job_id).attempt, bench.dead(job_id).last_error) == (5, reason)


@one_of_each
def test_an_arg_that_does_not_decode_goes_to_the_dlq(bench: Workbench, target: Target) -> None:
    job_id = bench.jobs.enqueue(bench.outside, "t", "text", queue="q").id

    def handler(ctx: Context[Any], arg: int) -> None:
        raise AssertionError

    def work(t: Any, call: Callable[..., Any]) -> None:
        assert isinstance(call(bench.jobs.work_one(t, "q", handler)), MoveToDlq)
        call(t.commit())

    handler.__annotations__["arg"] = int
    target.run(bench, work)

    assert bench.dead(job_id).last_error.startswith("InvalidArg")


@pytest.mark.parametrize("way", ["return", "raise"])
@one_of_each
def test_a_new_arg_that_can_not_be_stored_is_a_failure(
    bench: Workbench, target: Target, way: str
) -> None:
    def body(ctx: Context[Any]) -> Any:
        outcome = Reschedule(1, arg=object())
        if way == "raise":
            raise outcome
        return outcome

    job_id = bench.enqueue(bench.handler("t", body, uses_session=False, retry=SLOW))

    def work(t: Any, call: Callable[..., Any]) -> None:
        assert isinstance(call(bench.jobs.work_one(t, "default")), Retry)
        call(t.commit())

    target.run(bench, work)

    assert "InvalidArg" in bench.job(job_id).last_error


@pytest.mark.core
@pytest.mark.parametrize("how", ["engine", "connection"])
def test_autocommit_is_refused(bench: Workbench, target: Target, how: str) -> None:
    job_id = bench.enqueue(bench.handler("t", lambda ctx: None, uses_session=False))
    before = bench.job(job_id)[:-1]
    level = {"isolation_level": "AUTOCOMMIT"}

    def work(t: Any, call: Callable[..., Any]) -> None:
        if how == "connection":
            if target.kind == "session":
                call(t.connection(execution_options=level))
            else:
                t = call(t.execution_options(**level)) or t
        with pytest.raises(ValueError, match="AUTOCOMMIT"):
            call(bench.jobs.work_one(t, "default"))

    target.run(bench, work, **(level if how == "engine" else {}))

    assert bench.job(job_id)[:-1] == before


@one_of_each
def test_session_false_means_no_session(bench: Workbench, target: Target) -> None:
    job_id = bench.enqueue(bench.handler("t", lambda s, ctx: None, session=False, retry=SLOW))

    def work(t: Any, call: Callable[..., Any]) -> None:
        call(bench.jobs.work_one(t, "default"))
        call(t.commit())

    target.run(bench, work)

    assert "'t' has session=False, so there is no ctx.session; " in bench.job(job_id).last_error


@pytest.mark.parametrize("bench", THREADS[:1], ids=str, indirect=True)
def test_the_callers_scoped_session_stays_the_callers(bench: Workbench) -> None:
    """Given as the factory too, it makes another session for the handler."""
    engine = create_engine(bench.url)
    app_session = scoped_session(sessionmaker(engine, info={"app": True}))
    mine = app_session()
    sessions: list[Session] = []

    def body(s: Session, ctx: Context[Any]) -> None:
        sessions.append(s)
        bench.note(s, ctx)

    job_id = bench.enqueue(bench.handler("t", body))
    try:
        bench.jobs.work_one(app_session, "default", session_factory=app_session)
        assert app_session() is mine
        assert mine.get_bind() is engine
        app_session.commit()
        app_session.remove()
    finally:
        engine.dispose()

    assert sessions[0] is not mine
    assert sessions[0].info == {"app": True}
    assert bench.notes(job_id) == ["written"]


@pytest.mark.parametrize("bench", THREADS[:1], ids=str, indirect=True)
@pytest.mark.parametrize("end", ["removed", "left open", "committed", "joined"])
def test_writes_of_a_scoped_session_in_a_scope_within(bench: Workbench, end: str) -> None:
    """As in a worker: one scope has the handler's session, and what another one loses is told."""
    engine, scope = create_engine(bench.url), ContextVar("scope", default="the caller's")
    app_session = scoped_session(sessionmaker(engine), scopefunc=scope.get)
    mine = app_session()

    def body(ctx: Context[Any]) -> None:
        assert app_session() is mine
        outer = scope.set("the job's")
        assert app_session() is ctx.session
        app_session.add(bench.Note(job_id=ctx.job.id, text="outside"))
        if end != "joined":
            inner = scope.set("within")
            assert app_session() not in (ctx.session, mine)
            app_session.add(bench.Note(job_id=ctx.job.id, text="within"))
            if end == "committed":
                app_session.commit()
            if end != "left open":
                app_session.remove()
            scope.reset(inner)
        scope.reset(outer)

    job_id = bench.enqueue(bench.handler("t", body, uses_session=False, retry=SLOW))
    bench.jobs.work_one(app_session, "default", session_factory=app_session)
    assert app_session() is mine
    app_session.commit()
    for name in ("the job's", "within", "the caller's"):
        scope.set(name)
        app_session.remove()
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    engine.dispose()

    kept = {"committed": ["outside", "within"], "joined": ["outside"]}.get(end, [])
    assert sorted(bench.notes(job_id)) == kept
    if not kept:
        word = {"removed": "was closed, or removed", "left open": "was left open"}[end]
        assert word in bench.job(job_id).last_error


@pytest.mark.parametrize("bench", THREADS[:1], ids=str, indirect=True)
def test_a_handler_that_works_on_another_job_keeps_its_scope(bench: Workbench) -> None:
    engine = create_engine(bench.url)
    app_session = scoped_session(sessionmaker(engine))

    def outer(ctx: Context[Any]) -> None:
        own = ctx.session
        bench.jobs.work_one(engine, "other", session_factory=app_session)
        app_session.remove()
        assert app_session() is own
        app_session.add(bench.Note(job_id=ctx.job.id, text="outer"))

    inner = bench.handler("inner", lambda ctx: None, uses_session=False, queue="other")
    within = bench.enqueue(inner)
    around = bench.enqueue(bench.handler("outer", outer, uses_session=False))
    bench.run(session_factory=app_session)
    engine.dispose()

    assert bench.notes(around) == ["outer"]
    assert bench.job(within) is None


@pytest.mark.parametrize("bench", FLAVORS[:1], ids=str, indirect=True)
def test_an_engine_is_a_transaction_of_its_own(bench: Workbench) -> None:
    job_id = bench.enqueue(bench.handler("t", bench.note))
    engine = create_engine(bench.url)
    try:
        assert isinstance(bench.jobs.work_one(engine, "default"), Complete)
    finally:
        engine.dispose()

    assert bench.job(job_id) is None
    assert bench.notes(job_id) == ["written"]


@pytest.mark.parametrize("bench", FLAVORS[:1], ids=str, indirect=True)
def test_two_callers_never_get_the_same_job(bench: Workbench) -> None:
    """The row is locked until the first one's transaction ends."""
    job_id = bench.enqueue(bench.handler("t", lambda ctx: None, uses_session=False))
    engine = create_engine(bench.url)
    try:
        with engine.connect() as first, engine.connect() as second:
            assert bench.jobs.work_one(first, "default") is not None
            assert bench.jobs.work_one(second, "default") is None
            first.rollback()
            second.rollback()
            assert bench.jobs.work_one(second, "default") is not None
            second.commit()
    finally:
        engine.dispose()

    assert bench.job(job_id) is None


@one_of_each
def test_the_timeout_of_a_handler_holds_here_too(bench: Workbench, target: Target) -> None:
    """A coroutine is ended, and the caller's transaction goes on; a function sees its deadline."""
    seen: list[tuple[bool, bool]] = []

    def body(ctx: Context[Any]) -> None:
        assert ctx.deadline is not None
        seen.append((0.0 < ctx.deadline - time.monotonic() <= 0.2, ctx.cancelled))
        if bench.flavor.is_async:
            bench.pause(lambda: False)
        bench.pause(lambda: ctx.cancelled)
        seen.append((True, ctx.cancelled))

    handler = bench.handler("t", body, uses_session=False, timeout=0.2, retry=SLOW)
    job_id = bench.enqueue(handler)

    def work(t: Any, call: Callable[..., Any]) -> Any:
        outcome = call(bench.jobs.work_one(t, "default"))
        call(t.commit())
        return outcome

    outcome = target.run(bench, work)

    assert isinstance(outcome, Retry)
    assert bench.job(job_id).last_error.startswith("TimeoutError")
    if bench.flavor.is_async:
        assert seen == [(True, False)]
    else:
        assert seen == [(True, False), (True, True)]


@pytest.mark.parametrize("bench", FLAVORS[:1], ids=str, indirect=True)
@pytest.mark.parametrize("ending", ["commit", "prepare", "prepare and roll back", "roll back"])
def test_a_two_phase_commit_decides(bench: Workbench, ending: str) -> None:
    """Once it is committed; that it is prepared says nothing yet."""
    job_id = bench.enqueue(bench.handler("t", bench.note))
    engine = create_engine(with_driver(bench.url, "psycopg"))

    with Session(engine, twophase=True) as session:
        assert bench.jobs.work_one(session, "default")
        if ending.startswith("prepare"):
            session.prepare()
        assert bench.job(job_id).attempt == 0
        session.rollback() if "roll back" in ending else session.commit()
    committed = "roll back" not in ending
    assert (bench.job(job_id) is None) == committed
    assert bench.notes(job_id) == (["written"] if committed else [])
    engine.dispose()
