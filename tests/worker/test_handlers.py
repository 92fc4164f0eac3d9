"""What a handler does to its session, and what of it lasts: the containment, on every driver.

Whatever a handler does, its job is settled exactly once, its writes are all there or all gone,
and the worker gets back its connection and its permit (``Workbench.run`` checks that).
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, event, insert, select, text
from sqlalchemy.exc import IntegrityError

from sqlalchemy_bgjob import Complete, constant, enqueue_many
from sqlalchemy_bgjob._worker.transaction import TransactionEnded
from support.running import FLAVORS, AllAtOnce, Workbench, names, one_of_each, only_asyncio
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

    from sqlalchemy_bgjob import Context, JobType
    from support import TestServer


SELECT_1 = text("SELECT 1")
SLOW = constant(3600.0)


def fail(error: BaseException) -> Any:
    raise error


STEPS: dict[str, Callable[[Handlers, Session, Context[Any]], Any]] = {
    "commit": lambda h, s, ctx: s.commit(),
    "rollback": lambda h, s, ctx: s.rollback(),
    "close": lambda h, s, ctx: s.close(),
    "reset": lambda h, s, ctx: s.reset(),
    "invalidate": lambda h, s, ctx: s.invalidate(),
    "flush": lambda h, s, ctx: s.flush(),
    "savepoint": lambda h, s, ctx: s.begin_nested(),
    "connection": lambda h, s, ctx: s.connection(),
    "add": lambda h, s, ctx: s.add(h.bench.Note(job_id=ctx.job.id, text="a")),
    "add_nothing": lambda h, s, ctx: s.add(h.bench.Note(job_id=ctx.job.id)),
    "insert": lambda h, s, ctx: s.connection().execute(
        insert(h.bench.Note).values(job_id=ctx.job.id, text="a")
    ),
    "read": lambda h, s, ctx: s.execute(SELECT_1),
    "divide": lambda h, s, ctx: s.execute(text("SELECT 1/0")),
    "raise": lambda h, s, ctx: fail(ValueError("no")),
    "exit": lambda h, s, ctx: fail(SystemExit(3)),
    "complete": lambda h, s, ctx: Complete(),
    "root_rollback": lambda h, s, ctx: s.connection().get_transaction().rollback(),
    "COMMIT": lambda h, s, ctx: s.connection().exec_driver_sql("COMMIT"),
    "ROLLBACK": lambda h, s, ctx: s.connection().exec_driver_sql("ROLLBACK"),
    "BEGIN": lambda h, s, ctx: s.connection().exec_driver_sql("BEGIN"),
    "driver_commit": lambda h, s, ctx: s.connection().connection.commit(),
    "driver_rollback": lambda h, s, ctx: s.connection().connection.rollback(),
    "end": lambda h, s, ctx: h.end_session(s),
}


def steps(words: str) -> Callable[..., Any]:
    """A handler that takes these steps, and writes a note for each other word.

    After ``try_`` the step fails, and the handler goes on.
    """

    def body(handlers: Handlers, s: Session, ctx: Context[Any]) -> Complete | None:
        outcome = None
        for word in words.split():
            step = STEPS.get(word.removeprefix("try_"))
            if step is None:
                handlers.note(s, ctx, word)
            elif word.startswith("try_"):
                with pytest.raises(Exception):  # noqa: B017, PT011 - each driver has its own
                    step(handlers, s, ctx)
            else:
                outcome = step(handlers, s, ctx)
        return outcome if isinstance(outcome, Complete) else None

    return body


class Handlers:
    """What handlers do, each with its session and its context."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self.child = bench.handler("child", lambda s, ctx: None, queue="nobody")

    def note(self, session: Session, ctx: Context[Any], words: str) -> None:
        self.bench.note(session, ctx, words)

    def end_session(self, s: Session) -> None:
        pid = s.scalar(text("SELECT pg_backend_pid()"))
        self.bench.sql("SELECT pg_terminate_backend(:pid)", pid=pid)
        self.bench.pause(lambda: self.bench.has_ended(pid))

    ok = steps("a")
    raises = steps("a raise")
    commit_then_more = steps("a commit b")
    commit_then_raise = steps("a commit raise")
    commit_more_then_raise = steps("a commit b raise")
    rollback_then_more = steps("a rollback b")
    rollback_last = steps("a rollback")
    commit_more_rollback = steps("a commit b rollback")
    commit_twice_then_rollback = steps("a commit b commit c rollback rollback")
    commit_rollback_commit = steps("a commit b rollback c commit")
    commit_nothing = steps("commit rollback commit")
    connection_writes_then_closes = steps("insert close")
    adds_then_closes = steps("add close")
    adds_then_rollback = steps("add rollback")
    writes_then_reset = steps("a reset")
    writes_then_invalidate = steps("a invalidate")
    closes_in_a_savepoint = steps("savepoint a close")
    rollback_then_reads = steps("a rollback read close")
    rollback_then_complete = steps("a rollback complete")
    closes_then_complete = steps("a close complete")
    duplicate_flushed_then_rollback = steps("add_nothing try_flush rollback")
    closes = steps("a close")
    closes_then_more = steps("a close b")
    commits_then_closes = steps("a commit b close")
    own_savepoint_left_open = steps("a savepoint b")
    own_savepoint_then_rollback = steps("a savepoint b rollback c")
    savepoint_after_commit_then_rollback = steps("a commit savepoint b rollback c")
    commit_with_open_savepoint = steps("savepoint a commit b rollback")
    db_error = steps("a divide")
    db_error_swallowed = steps("a try_divide")
    db_error_swallowed_after_commit = steps("a commit try_divide")
    db_error_then_rollback = steps("a try_divide rollback b")
    commit_then_db_error_then_rollback = steps("a commit try_divide rollback b")
    flush_error_at_the_end = steps("a add_nothing")
    flush_error_swallowed = steps("a add_nothing try_flush")
    flush_error_then_rollback = steps("a add_nothing try_flush rollback b")
    flush_error_then_close = steps("a add_nothing try_flush close b")
    commit_then_flush_error_then_rollback = steps("a commit add_nothing try_flush rollback b")
    adds_only = steps("add")
    adds_then_commits = steps("add commit")
    reads_only = steps("read")
    root_rolled_back = steps("a root_rollback")
    root_rolled_back_then_more = steps("a root_rollback b")
    raw_commit = steps("a COMMIT b")
    raw_rollback = steps("a ROLLBACK")
    raw_commit_and_begin = steps("a COMMIT BEGIN b")
    raw_commit_then_raise = steps("a COMMIT raise")
    driver_commit = steps("a driver_commit b")
    driver_rollback = steps("a driver_rollback")
    takes_the_connection_only = steps("connection")
    ended_session = steps("a end read")
    ended_session_swallowed = steps("a end try_read")
    ended_session_unnoticed = steps("a end")
    ended_session_then_rollback = steps("a end try_read rollback b")
    commit_then_ended_session_then_rollback = steps("a commit end try_read rollback b")
    system_exit = steps("a exit")

    def with_begin_left_by_an_error(self, s: Session, ctx: Context[Any]) -> None:
        with suppress(ZeroDivisionError), s.begin():
            self.note(s, ctx, "a")
            _ = 1 / 0

    def core_writes_then_rollback(self, s: Session, ctx: Context[Any]) -> None:
        s.execute(insert(self.bench.Note).values(job_id=ctx.job.id, text="a"))
        s.rollback()

    def text_writes_then_closes(self, s: Session, ctx: Context[Any]) -> None:
        s.execute(text("INSERT INTO note (job_id, text) VALUES (:id, 'a')"), {"id": ctx.job.id})
        s.close()

    def changes_then_closes(self, s: Session, ctx: Context[Any]) -> None:
        note = self.bench.Note(job_id=ctx.job.id, text="a")
        s.add(note)
        s.commit()
        note.text = "b"
        s.close()

    def with_session_uncommitted(self, s: Session, ctx: Context[Any]) -> None:
        with s:
            self.note(s, ctx, "a")

    def rollback_over_a_savepoint(self, s: Session, ctx: Context[Any]) -> None:
        with s.begin_nested():
            self.note(s, ctx, "a")
        s.rollback()

    def enqueues_then_closes(self, s: Session, ctx: Context[Any]) -> None:
        enqueue_many(s, self.child, [None, None], ids=["c1", "c2"])
        s.close()

    def duplicate_then_rollback(self, s: Session, ctx: Context[Any]) -> None:
        with suppress(IntegrityError):
            s.execute(insert(self.bench.Note).values(job_id=ctx.job.id))
        s.rollback()

    def duplicate_in_savepoint_then_closes(self, s: Session, ctx: Context[Any]) -> None:
        with suppress(IntegrityError), s.begin_nested():
            s.add(self.bench.Note(job_id=ctx.job.id))
        s.close()

    def reads_then_closes(self, s: Session, ctx: Context[Any]) -> None:
        with s:
            s.execute(select(self.bench.Note).limit(1).with_for_update()).first()
            s.execute(text("-- all of it\n SELECT count(*) FROM note"))

    def reads_by_connection_then_closes(self, s: Session, ctx: Context[Any]) -> None:
        s.connection().execute(select(self.bench.Note).limit(1)).first()
        s.close()

    def reads_then_rollback(self, s: Session, ctx: Context[Any]) -> None:
        s.scalars(select(self.bench.Note).limit(1)).first()
        s.rollback()

    def with_session(self, s: Session, ctx: Context[Any]) -> None:
        with s:
            self.note(s, ctx, "a")
            s.commit()

    def with_begin(self, s: Session, ctx: Context[Any]) -> None:
        with s.begin():
            self.note(s, ctx, "a")

    def with_begin_twice(self, s: Session, ctx: Context[Any]) -> None:
        with s.begin():
            self.note(s, ctx, "a")
        with suppress(ZeroDivisionError), s.begin():
            self.note(s, ctx, "b")
            _ = 1 / 0
        with s.begin():
            self.note(s, ctx, "c")

    def own_savepoint(self, s: Session, ctx: Context[Any]) -> None:
        self.note(s, ctx, "a")
        with s.begin_nested():
            self.note(s, ctx, "b")

    def own_savepoint_rolled_back(self, s: Session, ctx: Context[Any]) -> None:
        self.note(s, ctx, "a")
        savepoint = s.begin_nested()
        self.note(s, ctx, "b")
        savepoint.rollback()
        self.note(s, ctx, "c")

    def core_savepoint(self, s: Session, ctx: Context[Any]) -> None:
        self.note(s, ctx, "a")
        with s.connection().begin_nested():
            self.note(s, ctx, "b")

    def db_error_in_savepoint(self, s: Session, ctx: Context[Any]) -> None:
        self.note(s, ctx, "a")
        try:
            with s.begin_nested():
                s.execute(text("SELECT 1/0"))
        except Exception:
            self.note(s, ctx, "b")

    def deferred_constraint(self, s: Session, ctx: Context[Any]) -> None:
        s.add_all(self.bench.Note(job_id=ctx.job.id, text="a", late=1) for _ in range(2))

    def root_rolled_back_behind_a_savepoint(self, s: Session, ctx: Context[Any]) -> None:
        self.note(s, ctx, "a")
        s.commit()
        self.note(s, ctx, "b")
        connection = s.connection()
        connection.get_transaction().rollback()
        s.close()
        self.note(s, ctx, "c")

    def core_left_in_a_transaction(self, s: Session, ctx: Context[Any]) -> None:
        connection = s.connection()
        s.rollback()
        connection.execute(SELECT_1)

    def text_commit(self, s: Session, ctx: Context[Any]) -> None:
        self.note(s, ctx, "a")
        s.execute(text("commit"))

    def text_rollback_swallowed(self, s: Session, ctx: Context[Any]) -> None:
        self.note(s, ctx, "a")
        with suppress(TransactionEnded):
            s.execute(text("/* all */ ROLLBACK WORK"))

    def text_to_a_savepoint(self, s: Session, ctx: Context[Any]) -> None:
        self.note(s, ctx, "a")
        s.execute(text("SAVEPOINT here"))
        self.note(s, ctx, "b")
        s.execute(text("ROLLBACK TO SAVEPOINT here"))
        s.expire_all()

    def get_bind_commit(self, s: Session, ctx: Context[Any]) -> None:
        self.note(s, ctx, "a")
        s.get_bind().exec_driver_sql("COMMIT")  # type: ignore[union-attr]
        self.note(s, ctx, "b")

    def takes_the_connection(self, s: Session, ctx: Context[Any]) -> None:
        self.note(s, ctx, "a")
        s.connection().execute(insert(self.bench.Note).values(job_id=ctx.job.id, text="b"))
        s.commit()
        s.connection().execute(insert(self.bench.Note).values(job_id=ctx.job.id, text="c"))

    def idle_too_long(self, s: Session, ctx: Context[Any]) -> None:
        s.execute(text("SET LOCAL idle_in_transaction_session_timeout = '50ms'"))
        pid = s.scalar(text("SELECT pg_backend_pid()"))
        self.note(s, ctx, "a")
        self.bench.pause(lambda: self.bench.has_ended(pid))


for name, body in vars(Handlers).items():
    if callable(body):
        body.__name__ = name

LOST_BY_CLOSE = "closed, or removed from its scope, over writes"
LOST_BY_ROLLBACK = "nothing is left of what the handler wrote"

COMPLETED: dict[Callable[..., Any], list[str]] = {
    Handlers.ok: ["a"],
    Handlers.commit_then_more: ["a", "b"],
    Handlers.rollback_then_more: ["b"],
    Handlers.commit_more_rollback: ["a"],
    Handlers.rollback_then_complete: [],
    Handlers.duplicate_then_rollback: [],
    Handlers.duplicate_flushed_then_rollback: [],
    Handlers.duplicate_in_savepoint_then_closes: [],
    Handlers.reads_then_closes: [],
    Handlers.reads_by_connection_then_closes: [],
    Handlers.reads_then_rollback: [],
    Handlers.text_to_a_savepoint: ["a"],
    Handlers.takes_the_connection: ["a", "b", "c"],
    Handlers.takes_the_connection_only: [],
    Handlers.commit_twice_then_rollback: ["a", "b"],
    Handlers.commit_rollback_commit: ["a", "c"],
    Handlers.commit_nothing: [],
    Handlers.with_session: ["a"],
    Handlers.with_begin: ["a"],
    Handlers.with_begin_twice: ["a", "c"],
    Handlers.own_savepoint: ["a", "b"],
    Handlers.own_savepoint_rolled_back: ["a", "c"],
    Handlers.own_savepoint_left_open: ["a", "b"],
    Handlers.own_savepoint_then_rollback: ["c"],
    Handlers.savepoint_after_commit_then_rollback: ["a", "c"],
    Handlers.commit_with_open_savepoint: ["a"],
    Handlers.core_savepoint: ["a", "b"],
    Handlers.db_error_in_savepoint: ["a", "b"],
    Handlers.db_error_then_rollback: ["b"],
    Handlers.commit_then_db_error_then_rollback: ["a", "b"],
    Handlers.flush_error_then_rollback: ["b"],
    Handlers.flush_error_then_close: ["b"],
    Handlers.commit_then_flush_error_then_rollback: ["a", "b"],
    Handlers.adds_only: ["a"],
    Handlers.adds_then_commits: ["a"],
    Handlers.reads_only: [],
    Handlers.ended_session_then_rollback: ["b"],
}
"""The job is completed, and these writes are there."""

FAILED: dict[Callable[..., Any], str] = {
    Handlers.raises: "ValueError: no",
    Handlers.closes: LOST_BY_CLOSE,
    Handlers.closes_then_more: LOST_BY_CLOSE,
    Handlers.closes_then_complete: LOST_BY_CLOSE,
    Handlers.commits_then_closes: LOST_BY_CLOSE,
    Handlers.text_writes_then_closes: LOST_BY_CLOSE,
    Handlers.connection_writes_then_closes: LOST_BY_CLOSE,
    Handlers.adds_then_closes: LOST_BY_CLOSE,
    Handlers.changes_then_closes: LOST_BY_CLOSE,
    Handlers.writes_then_reset: LOST_BY_CLOSE,
    Handlers.writes_then_invalidate: LOST_BY_CLOSE,
    Handlers.with_session_uncommitted: LOST_BY_CLOSE,
    Handlers.closes_in_a_savepoint: LOST_BY_CLOSE,
    Handlers.enqueues_then_closes: LOST_BY_CLOSE,
    Handlers.rollback_last: LOST_BY_ROLLBACK,
    Handlers.with_begin_left_by_an_error: LOST_BY_ROLLBACK,
    Handlers.core_writes_then_rollback: LOST_BY_ROLLBACK,
    Handlers.adds_then_rollback: LOST_BY_ROLLBACK,
    Handlers.rollback_over_a_savepoint: LOST_BY_ROLLBACK,
    Handlers.rollback_then_reads: LOST_BY_ROLLBACK,
    Handlers.text_commit: "TransactionEnded",
    Handlers.text_rollback_swallowed: "TransactionEnded",
    Handlers.raw_commit: "TransactionEnded",
    Handlers.raw_commit_and_begin: "TransactionEnded",
    Handlers.raw_rollback: "TransactionEnded",
    Handlers.driver_commit: "TransactionEnded",
    Handlers.driver_rollback: "TransactionEnded",
    Handlers.get_bind_commit: "TransactionEnded",
    Handlers.commit_then_raise: "ValueError: no",
    Handlers.commit_more_then_raise: "ValueError: no",
    Handlers.db_error: "22012",
    Handlers.db_error_swallowed: "swallowed a database error",
    Handlers.db_error_swallowed_after_commit: "swallowed a database error",
    Handlers.flush_error_at_the_end: "23502",
    Handlers.flush_error_swallowed: "PendingRollbackError",
    Handlers.deferred_constraint: "23505 note_late",
    Handlers.root_rolled_back: "TransactionEnded",
    Handlers.root_rolled_back_then_more: "TransactionEnded",
    Handlers.root_rolled_back_behind_a_savepoint: "TransactionEnded",
    Handlers.core_left_in_a_transaction: "TransactionEnded",
    Handlers.system_exit: "SystemExit: 3",
    Handlers.ended_session: "Error",
    Handlers.ended_session_swallowed: "TransactionEnded",
    Handlers.ended_session_unnoticed: "Error",
    Handlers.commit_then_ended_session_then_rollback: "TransactionEnded",
    Handlers.idle_too_long: "Error",
    Handlers.raw_commit_then_raise: "ValueError: no",
}
"""The attempt has failed with this error, and no write is left (but see LEAKED)."""

LEAKED = {
    Handlers.raw_commit_then_raise: ["a"],
    Handlers.raw_commit: ["a"],
    Handlers.raw_commit_and_begin: ["a"],
    Handlers.driver_commit: ["a"],
    Handlers.get_bind_commit: ["a"],
}
"""What the driver was told to commit, nobody can undo."""


@pytest.fixture(scope="module", params=FLAVORS, ids=str)
def everything(request: pytest.FixtureRequest, server: TestServer) -> Iterator[AllAtOnce]:
    with AllAtOnce.made(request.param, server, Handlers, (*COMPLETED, *FAILED)) as made:
        yield made


@pytest.mark.core
@pytest.mark.parametrize("body", names(COMPLETED))
def test_completed_with_the_writes_that_were_kept(
    everything: AllAtOnce, body: Callable[..., Any]
) -> None:
    bench, job_id = everything.bench, everything.ids[body.__name__]

    assert everything.ran.of(job_id) == ["started", "completed"]
    assert bench.notes(job_id) == COMPLETED[body]
    assert bench.job(job_id) is None
    assert bench.dead(job_id) is None


@pytest.mark.core
@pytest.mark.parametrize("body", names(FAILED))
def test_failed_without_a_trace(everything: AllAtOnce, body: Callable[..., Any]) -> None:
    bench, job_id = everything.bench, everything.ids[body.__name__]

    assert everything.ran.of(job_id) == ["started", "will_be_retried"]
    assert bench.notes(job_id) == LEAKED.get(body, [])
    job = bench.job(job_id)
    assert (job.attempt, job.claimed_by) == (1, None)
    assert FAILED[body] in job.last_error
    assert 3500 < job.due_in <= 3600


def test_the_worker_itself_met_no_error(everything: AllAtOnce) -> None:
    assert everything.ran.named("worker_error") == []


@pytest.mark.parametrize(("end", "asked"), [("raises", 0), ("closes", 1)])
def test_a_failed_attempt_asks_the_server_nothing(bench: Workbench, end: str, asked: int) -> None:
    """Whether it has written matters where it returns; a connection may be slow to answer."""
    sent: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        sent.append(statement)

    def body(s: Session, ctx: Context[Any]) -> None:
        s.connection().execute(SELECT_1)
        if end == "raises":
            raise ValueError("no")
        s.close()

    bench.enqueue(bench.handler("t", body, retry=SLOW))
    event.listen(Engine, "before_cursor_execute", note)
    try:
        bench.run()
    finally:
        event.remove(Engine, "before_cursor_execute", note)

    assert str(SELECT_1) in sent
    assert sum("pg_current_xact_id_if_assigned" in statement for statement in sent) == asked


# ---- only with asyncio ---------------------------------------------------------------------------

SLEEP = text("SELECT pg_sleep(30)")


@only_asyncio
@pytest.mark.parametrize("of", ["python", "query"])
def test_a_handlers_own_timeout(bench: Workbench, of: str) -> None:
    """SQLAlchemy gives the connection up where the query still runs in it, and nowhere else."""

    @bench.jobs.handler("t", retry=SLOW)
    async def handler(ctx: Context[AsyncSession]) -> None:
        await ctx.session.execute(insert(bench.Note).values(job_id=ctx.job.id, text="a"))
        with suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await (ctx.session.execute(SLEEP) if of == "query" else asyncio.Event().wait())
        if of == "python":
            await ctx.session.execute(insert(bench.Note).values(job_id=ctx.job.id, text="b"))

    job_id = bench.enqueue(handler)
    ran = bench.run()

    ends, notes = ("will_be_retried", []) if of == "query" else ("completed", ["a", "b"])
    assert ran.of(job_id) == ["started", ends]
    assert bench.notes(job_id) == notes
    if of == "query":
        assert bench.job(job_id).attempt == 1


@only_asyncio
@pytest.mark.parametrize("where", ["python", "query", "commit"])
def test_the_timeout_of_a_handler(bench: Workbench, where: str) -> None:
    @bench.jobs.handler("t", retry=SLOW, timeout=1.0)
    async def handler(ctx: Context[AsyncSession]) -> None:
        assert ctx.deadline is not None
        await ctx.session.execute(insert(bench.Note).values(job_id=ctx.job.id, text="a"))
        if where == "commit":
            await ctx.session.commit()
        if where == "query":
            await ctx.session.execute(SLEEP)
        await asyncio.Event().wait()

    job_id = bench.enqueue(handler)
    ran = bench.run()

    assert ran.of(job_id) == ["started", "will_be_retried"]
    assert bench.job(job_id).last_error.startswith("TimeoutError")
    assert bench.notes(job_id) == []


@only_asyncio
@pytest.mark.parametrize("where", ["python", "query", "connect"])
def test_a_cancelled_coroutine_is_a_failed_attempt(bench: Workbench, where: str) -> None:
    """Cancelled by its own program, as a task of it; a worker's stop gives the attempt back."""

    @bench.jobs.handler("t", retry=SLOW)
    async def handler(ctx: Context[AsyncSession]) -> None:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().call_later(0 if where == "connect" else 0.1, task.cancel)
        if where != "connect":
            await ctx.session.execute(insert(bench.Note).values(job_id=ctx.job.id, text="a"))
        if where == "query":
            await ctx.session.execute(SLEEP)
        if where == "connect":
            await asyncio.sleep(0)
            await ctx.session.execute(SLEEP)
        await asyncio.Event().wait()

    job_id = bench.enqueue(handler)
    ran = bench.run()

    assert ran.of(job_id) == ["started", "will_be_retried"]
    assert "CancelledError" in bench.job(job_id).last_error
    assert bench.notes(job_id) == []


@only_asyncio
@pytest.mark.parametrize("where", ["python", "query"])
def test_a_coroutine_that_a_stop_cancels_gets_its_attempt_back(
    bench: Workbench, where: str
) -> None:
    reached = threading.Event()

    @bench.jobs.handler("t", retry=SLOW)
    async def handler(ctx: Context[AsyncSession]) -> None:
        await ctx.session.execute(insert(bench.Note).values(job_id=ctx.job.id, text="a"))
        reached.set()
        if where == "query":
            await ctx.session.execute(SLEEP)
        await asyncio.Event().wait()

    job_id = bench.enqueue(handler)
    ran = bench.run(until=reached.is_set, shutdown_timeout=0.1)

    assert ran.of(job_id) == ["started"]
    job = bench.job(job_id)
    assert (job.attempt, job.claimed_by, job.last_error) == (0, None, "interrupted by shutdown")
    assert bench.notes(job_id) == []


# ---- connections and permits ---------------------------------------------------------------------


@pytest.mark.core
def test_many_handlers_share_one_connection(bench: Workbench) -> None:
    """A pool of three leaves one for eight slots: they wait for it, and none fails for it."""
    handlers = Handlers(bench)
    bodies = [
        Handlers.ok,
        Handlers.raises,
        Handlers.closes_then_more,
        Handlers.db_error_swallowed,
        Handlers.flush_error_at_the_end,
        Handlers.root_rolled_back,
        Handlers.ended_session_then_rollback,
        Handlers.deferred_constraint,
    ]

    def register(body: Callable[..., Any]) -> JobType[Any]:
        return bench.handler(body.__name__, lambda s, ctx: body(handlers, s, ctx), retry=SLOW)

    registered = [register(body) for body in bodies]
    ids = {bench.enqueue(handler): handler.type for handler in registered for _ in range(6)}

    ran = bench.run(engine={"pool_size": 3, "pool_timeout": 1.0}, queues={"default": 8})

    for job_id, name in ids.items():
        body = getattr(Handlers, name)
        last = "completed" if body in COMPLETED else "will_be_retried"
        assert ran.of(job_id) == ["started", last], (name, bench.job(job_id))
        assert bench.notes(job_id) == COMPLETED.get(body, [])


@pytest.mark.core
def test_no_connection_is_taken_for_a_handler_that_uses_none(bench: Workbench) -> None:
    """Neither for one that only looks at its session, nor for one that does not."""
    pools: list[int] = []

    def body(*args: Any) -> None:
        name = f"bgjob/{bench.job(args[-1].job.id).claimed_by}"

        def sessions() -> int:
            query = "SELECT FROM pg_stat_activity WHERE application_name = :name"
            return len(bench.sql(query, name=name))

        # The watch takes its name at its first turn after the worker was registered.
        wait_until(lambda: sessions() >= 3, 10, what="the worker's three sessions")
        pools.append(sessions())

    looks = bench.handler("looks", body)
    none = bench.handler("none", body, uses_session=False)
    for _ in range(5):
        bench.enqueue(looks)
        bench.enqueue(none)

    bench.run(queues={"default": 1}, rescue_interval=0.1)

    assert pools == [3] * 10, "the worker's own, its heart's and its watch's"


def test_session_false_means_no_session(bench: Workbench) -> None:
    job_id = bench.enqueue(bench.handler("t", lambda s, ctx: None, session=False, retry=SLOW))

    bench.run()

    assert "'t' has session=False, so there is no ctx.session; " in bench.job(job_id).last_error


@one_of_each
def test_effects_are_exactly_once_under_load(bench: Workbench) -> None:
    """Four hundred jobs, each failing once, in eight slots: one write for each."""

    def body(s: Session, ctx: Context[Any]) -> None:
        bench.note(s, ctx)
        if ctx.job.attempt == 1 and int(ctx.job.headers["n"]) % 4 == 0:
            raise ValueError("the first time")

    handler = bench.handler("t", body, retry=constant(0.0))
    ids = [bench.enqueue(handler, headers={"n": n}) for n in range(400)]

    ran = bench.run(queues={"default": 8}, engine={"pool_size": 10}, deadline=60.0)

    assert [
        tuple(row) for row in bench.sql("SELECT count(*), count(DISTINCT job_id) FROM note")
    ] == [(400, 400)]
    assert len(ran.named("job_completed")) == 400
    assert len(ran.named("job_will_be_retried")) == 100
    assert len(ids) == 400
