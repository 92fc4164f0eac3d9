"""Whose session a handler gets: factories, hooks, binds, isolation levels, and lost leases."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import pytest
import sqlmodel
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import (
    Column,
    Engine,
    Integer,
    MetaData,
    Table,
    Text,
    create_engine,
    event,
    insert,
    text,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from sqlalchemy_bgjob import BGJob, Complete, Context, JobType, Retry, Worker, constant, enqueue
from sqlalchemy_bgjob._worker.handler_session import JobEnded
from support import wait_until
from support.running import (
    FLAVORS,
    Flavor,
    Gate,
    Recorder,
    Workbench,
    one_of_each,
    only_asyncio,
    paired,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support import TestServer

THREADS = [flavor for flavor in FLAVORS if not flavor.is_async]
only_threads = pytest.mark.parametrize("bench", THREADS[:1], ids=str, indirect=True)
SLOW = constant(3600.0)


class OwnSession(Session):
    """What a user's class may be: with hooks, and a get_bind of its own."""


class StubbornSession(Session):
    """Like Flask-SQLAlchemy's: ``bind=`` has no effect on it."""

    engine: Engine

    def get_bind(self, *args: Any, **kwargs: Any) -> Engine:  # type: ignore[override]
        return self.engine


def factory_for(
    bench: Workbench, session_class: type[Session], **options: Any
) -> Callable[[], Any]:
    if bench.flavor.is_async:
        return async_sessionmaker(sync_session_class=session_class, **options)
    return sessionmaker(class_=session_class, **options)


def write_and_fail_once(bench: Workbench) -> tuple[Callable[..., Any], list[Any]]:
    """A body that writes; its first attempt fails afterwards. And the sessions it got."""
    sessions: list[Any] = []

    def body(s: Session, ctx: Context[Any]) -> Any:
        sessions.append(s)
        bench.note(s, ctx, str(ctx.job.attempt))
        return None if ctx.job.attempt > 1 else fail()

    return body, sessions


def fail() -> None:
    raise ValueError("after the write")


# ---- factories -----------------------------------------------------------------------------------


@paired("session_class", [Session, OwnSession, StubbornSession, sqlmodel.Session])
def test_a_factory_of_the_users_own(bench: Workbench, session_class: type[Session]) -> None:
    body, sessions = write_and_fail_once(bench)
    job_id = bench.enqueue(bench.handler("t", body, retry=constant(0.0)))
    outside = create_engine(bench.url)
    StubbornSession.engine = outside
    try:
        bench.run(session_factory=factory_for(bench, session_class, expire_on_commit=False))
    finally:
        outside.dispose()

    assert bench.notes(job_id) == ["2"]
    assert all(isinstance(session, session_class) for session in sessions)
    assert all(session.expire_on_commit is False for session in sessions)


@only_threads
def test_a_factory_bound_to_another_engine_of_the_same_database(bench: Workbench) -> None:
    """Its writes belong to the job's transaction all the same."""
    body, _ = write_and_fail_once(bench)
    job_id = bench.enqueue(bench.handler("t", body, retry=constant(0.0)))
    other = create_engine(bench.url)
    try:
        bench.run(session_factory=factory_for(bench, Session, binds={bench.Note: other}))
        assert other.pool.checkedin() == 0, "the other engine was used"  # type: ignore[attr-defined]
    finally:
        other.dispose()

    assert bench.notes(job_id) == ["2"]


@only_threads
def test_a_session_class_as_factory(bench: Workbench) -> None:
    body, sessions = write_and_fail_once(bench)
    job_id = bench.enqueue(bench.handler("t", body, retry=constant(0.0)))

    bench.run(session_factory=OwnSession)

    assert bench.notes(job_id) == ["2"]
    assert {type(session) for session in sessions} == {OwnSession}


@only_threads
def test_an_applications_scoped_session_is_the_handlers(bench: Workbench) -> None:
    """Also for a handler that never asks for ``ctx.session``."""
    engine = create_engine(bench.url)
    app_session = scoped_session(sessionmaker(engine))
    seen: list[bool] = []

    def body(ctx: Context[Any]) -> None:
        app_session.add(bench.Note(job_id=ctx.job.id, text=str(ctx.job.attempt)))
        app_session.flush()
        if ctx.job.type == "asks":
            seen.append(ctx.session is app_session())
        if ctx.job.attempt == 1:
            fail()

    handlers = [
        bench.handler(name, body, uses_session=False, retry=constant(0.0))
        for name in ("asks", "does not")
    ]
    ids = [bench.enqueue(handler) for handler in handlers for _ in range(10)]
    try:
        ran = bench.run(session_factory=app_session)
        assert engine.pool.checkedin() == 0, "the application's own engine was used"
    finally:
        engine.dispose()

    for job_id in ids:
        assert bench.notes(job_id) == ["2"]
        assert ran.of(job_id) == ["started", "will_be_retried", "started", "completed"]
    assert seen == [True] * 20


@only_threads
def test_a_scoped_session_that_is_removed_over_writes(bench: Workbench) -> None:
    app_session = scoped_session(sessionmaker())

    def body(ctx: Context[Any]) -> None:
        app_session.add(bench.Note(job_id=ctx.job.id, text="lost"))
        app_session.remove()

    job_id = bench.enqueue(bench.handler("t", body, uses_session=False, retry=SLOW))
    ran = bench.run(session_factory=app_session)

    assert ran.of(job_id) == ["started", "will_be_retried"]
    assert "removed from its scope" in bench.job(job_id).last_error


@only_threads
@pytest.mark.parametrize("end", ["removed", "left open", "committed"])
def test_writes_of_a_scoped_session_in_a_scope_within(bench: Workbench, end: str) -> None:
    """A scope that the handler enters has a session beside ``ctx.session``."""
    engine, scope = create_engine(bench.url), ContextVar("scope", default="jobs")
    app_session = scoped_session(sessionmaker(engine), scopefunc=scope.get)

    def body(ctx: Context[Any]) -> None:
        app_session.add(bench.Note(job_id=ctx.job.id, text="outside"))
        token = scope.set("within")
        assert app_session() is not ctx.session
        app_session.add(bench.Note(job_id=ctx.job.id, text="within"))
        if end == "committed":
            app_session.commit()
        if end != "left open":
            app_session.remove()
        scope.reset(token)

    job_id = bench.enqueue(bench.handler("t", body, uses_session=False, retry=SLOW))
    ran = bench.run(session_factory=app_session)
    scope.set("within")
    app_session.remove()
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    engine.dispose()

    if end == "committed":
        assert ran.of(job_id) == ["started", "completed"]
        assert sorted(bench.notes(job_id)) == ["outside", "within"]
    else:
        assert ran.of(job_id) == ["started", "will_be_retried"]
        assert bench.notes(job_id) == []
        word = {"removed": "was closed, or removed", "left open": "was left open"}[end]
        assert word in bench.job(job_id).last_error


@only_threads
def test_a_session_that_outlives_the_run_is_no_longer_watched(bench: Workbench) -> None:
    """A scope may last longer than the handler that was first in it."""
    engine, scope = create_engine(bench.url), ContextVar("scope", default="jobs")
    app_session = scoped_session(sessionmaker(engine), scopefunc=scope.get)
    made: list[Session] = []

    def body(ctx: Context[Any]) -> None:
        token = scope.set("within")
        made.append(app_session())
        scope.reset(token)

    job_id = bench.enqueue(bench.handler("t", body, uses_session=False))
    ran = bench.run(session_factory=app_session)
    assert ran.of(job_id) == ["started", "completed"]

    (session,) = made
    session.add(bench.Note(job_id=job_id, text="by the application"))
    session.commit()
    session.execute(text("SELECT 1"))
    session.close()
    engine.dispose()
    assert bench.notes(job_id) == ["by the application"]
    assert session.info == {}


@only_asyncio
def test_an_async_scoped_session_that_is_removed_over_writes(bench: Workbench) -> None:
    import asyncio

    app_session = async_scoped_session(async_sessionmaker(), scopefunc=asyncio.current_task)

    @bench.jobs.handler("t", retry=SLOW)
    async def handler(ctx: Context[AsyncSession]) -> None:
        app_session.add(bench.Note(job_id=ctx.job.id, text="lost"))
        await app_session.flush()
        await app_session.remove()

    job_id = bench.enqueue(handler)
    ran = bench.run(session_factory=app_session)

    assert ran.of(job_id) == ["started", "will_be_retried"]
    assert "removed from its scope" in bench.job(job_id).last_error


@only_threads
def test_a_run_leaves_nothing_in_the_scope(bench: Workbench) -> None:
    app_session = scoped_session(sessionmaker())
    left: list[bool] = []

    def body(ctx: Context[Any]) -> None:
        left.append(app_session.registry.has() and app_session() is not ctx.session)

    handler = bench.handler("t", body, uses_session=False)
    without = bench.handler(
        "without", lambda ctx: left.append(app_session.registry.has()), uses_session=False,
        session=False,
    )  # fmt: skip
    for _ in range(5):
        bench.enqueue(handler)
        bench.enqueue(without)

    bench.run(session_factory=app_session, queues={"default": 1})

    assert left == [False] * 10


@only_asyncio
def test_an_async_scoped_session_is_the_handlers(bench: Workbench) -> None:
    import asyncio

    app_session = async_scoped_session(async_sessionmaker(), scopefunc=asyncio.current_task)

    @bench.jobs.handler("t", retry=constant(0.0))
    async def handler(ctx: Context[AsyncSession]) -> None:
        app_session.add(bench.Note(job_id=ctx.job.id, text=str(ctx.job.attempt)))
        await app_session.flush()
        if ctx.job.attempt == 1:
            fail()

    ids = [bench.enqueue(handler) for _ in range(10)]
    bench.run(session_factory=app_session)

    assert [bench.notes(job_id) for job_id in ids] == [["2"]] * 10
    assert app_session.registry.registry == {}


@one_of_each
def test_a_session_that_outlives_its_job_takes_no_connection(bench: Workbench) -> None:
    """A thread, a task or a lazy load that is late gets an error, and no transaction of its own."""
    kept: list[Any] = []

    def body(s: Session, ctx: Context[Any]) -> None:
        if ctx.job.type == "first":
            bench.note(s, ctx)
            kept.append(s)
            return
        with pytest.raises(JobEnded, match=r"has ended.* before the handler returns"):
            kept[0].execute(text("SELECT 1"))
        kept[0].add(bench.Note(job_id=ctx.job.id, text="late"))
        with pytest.raises(JobEnded):
            kept[0].commit()
        kept[0].close()

    first = bench.enqueue(bench.handler("first", body))
    second = bench.enqueue(bench.handler("second", body, retry=SLOW))
    ran = bench.run(queues={"default": 1})

    assert ran.of(first) == ran.of(second) == ["started", "completed"], bench.job(second)
    assert bench.notes(first) == ["written"]
    assert bench.notes(second) == []


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_functions_of_an_async_worker_have_synchronous_sessions(
    workbench_url: str, driver: str
) -> None:
    """On psycopg it makes the engine for them itself; on asyncpg it is given one."""
    bench = Workbench(Flavor(driver, is_async=True), workbench_url)
    bench.reset()
    sync_engine = create_engine(workbench_url, pool_size=3, max_overflow=0)
    sessions: list[Any] = []

    @bench.jobs.handler("function", retry=constant(0.0))
    def function(ctx: Context[Session]) -> None:
        sessions.append((type(ctx.session), threading.current_thread() is main))
        bench.note(ctx.session, ctx, str(ctx.job.attempt))
        if ctx.job.attempt == 1:
            fail()

    body, _ = write_and_fail_once(bench)
    coroutine = bench.handler("coroutine", body, retry=constant(0.0))
    main = threading.current_thread()
    ids = [bench.enqueue(handler) for handler in (function, coroutine) for _ in range(10)]
    given = {"sync_engine": sync_engine} if driver == "asyncpg" else {}
    try:
        ran = bench.run(**given)
        assert sync_engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        for job_id in ids:
            assert bench.notes(job_id) == ["2"]
            assert ran.of(job_id) == ["started", "will_be_retried", "started", "completed"]
        assert set(sessions) == {(Session, False)}
    finally:
        sync_engine.dispose()
        bench.close()


# ---- Flask ---------------------------------------------------------------------------------------


class FlaskShop:
    def __init__(self, url: str) -> None:
        self.app = Flask("shop")
        self.app.config["SQLALCHEMY_DATABASE_URI"] = url
        self.db = SQLAlchemy(self.app)
        self.jobs = BGJob(self.db)

        class Note(self.db.Model):  # type: ignore[name-defined, misc]
            __tablename__ = "flask_note"
            id = Column(Integer, primary_key=True)
            text = Column(Text)

        self.Note = Note
        with self.app.app_context():
            self.db.create_all()
            self.engine = self.db.engine

    def run(self, **options: Any) -> tuple[list[str], Recorder]:
        engine, recorder = create_engine(self.engine.url), Recorder()
        worker = Worker(
            self.jobs, engine, listen=False, poll_interval=0.05, observers=[recorder], **options
        )
        with worker, engine.connect() as connection:
            wait_until(lambda: not self._left(connection))
        assert engine.pool.checkedout() == 0
        with engine.connect() as connection:
            notes = list(connection.scalars(text("SELECT text FROM flask_note ORDER BY id")))
        engine.dispose()
        return notes, recorder

    def _left(self, connection: Any) -> int:
        with connection.begin():
            return int(connection.scalar(text("SELECT count(*) FROM bgjob_job")))


@pytest.fixture
def shop(database_url: str) -> Iterator[FlaskShop]:
    shop = FlaskShop(database_url)
    yield shop
    shop.engine.dispose()


def test_flasks_scoped_session_joins_within_its_app_context(shop: FlaskShop) -> None:
    """The handler enters it by itself, and so has to commit before it leaves it."""

    @shop.jobs.handler("t", retry=constant(0.0))
    def handler(ctx: Context[Session], words: str) -> None:
        with shop.app.app_context():
            assert ctx.session is shop.db.session()
            shop.db.session.add(shop.Note(text=words))
            shop.db.session.commit()
            if ctx.job.attempt == 1:
                fail()

    with shop.app.app_context():
        enqueue(shop.db.session, handler, "kept")
        shop.db.session.commit()

    notes, recorder = shop.run(session_factory=shop.db.session)

    assert notes == ["kept"]
    assert [e.name for e in recorder.events if e.job] == [
        "job_started",
        "job_will_be_retried",
        "job_started",
        "job_completed",
    ]


@pytest.mark.parametrize("asks", ["not", "before", "within"])
def test_flasks_session_is_the_handlers_in_each_context(shop: FlaskShop, asks: str) -> None:
    """Also where ``ctx.session`` is never asked for, or is before there is a context."""

    @shop.jobs.handler("t", retry=constant(0.0))
    def handler(ctx: Context[Session], words: str) -> None:
        if asks == "before":
            assert ctx.session.scalar(text("SELECT 1")) == 1
        for part in ("first", "second"):
            with shop.app.app_context():
                shop.db.session.add(shop.Note(text=f"{words} {part}"))
                if asks == "within":
                    assert ctx.session is shop.db.session()
                with shop.app.app_context():
                    assert shop.db.session() is not ctx.session, "a context within has its own"
                shop.db.session.commit()
        if ctx.job.attempt == 1:
            fail()

    enqueue(shop.engine, handler, "kept")

    notes, _ = shop.run(session_factory=shop.db.session)

    assert notes == ["kept first", "kept second"], "the writes of the first attempt are undone"
    with shop.app.app_context():
        assert shop.db.session().get_bind() is shop.db.engine, "it is Flask's own again"


@pytest.mark.parametrize("kept_before", [False, True])
def test_what_flasks_app_context_drops_fails_the_attempt(
    shop: FlaskShop, kept_before: bool
) -> None:
    """It removes the session when the handler leaves it: what was not committed is lost."""

    @shop.jobs.handler("t", max_attempts=1)
    def handler(ctx: Context[Session], words: str) -> None:
        with shop.app.app_context():
            if kept_before:
                shop.db.session.add(shop.Note(text=words))
                shop.db.session.commit()
            shop.db.session.add(shop.Note(text="not committed"))

    enqueue(shop.engine, handler, "kept")

    notes, recorder = shop.run(session_factory=shop.db.session)

    assert notes == []
    told = [(e.name, *e.rest) for e in recorder.events if e.job][1:]
    assert [name for name, _ in told] == ["job_moved_to_dlq"]
    assert "around=" in told[0][1]


class Within:
    """Bodies of handlers that enter a context within the job's, which has a session of its own."""

    def __init__(self, shop: FlaskShop) -> None:
        self.shop, self.db = shop, shop.db
        self.next = shop.jobs.handler("next", queue="elsewhere")(lambda ctx: None)

    def handler(self, body: Callable[[Within], Any]) -> JobType[None]:
        """A handler that writes in the job's session too."""

        def handle(ctx: Context[Session]) -> Any:
            if body not in WRITES_NOTHING_OUTSIDE:
                self.db.session.add(self.note("outside"))
            return body(self)

        return self.shop.jobs.handler(body.__name__, max_attempts=1)(handle)

    def note(self, words: str) -> Any:
        return self.shop.Note(text=words)

    def context(self) -> Any:
        return self.shop.app.app_context()

    def text(self, sql: str) -> None:
        self.db.session.execute(text(sql))

    # ---- what is lost -----------------------------------------------------------------------

    def adds(self) -> None:
        with self.context():
            self.db.session.add(self.note("lost"))

    def adds_then_names_an_outcome(self) -> Complete:
        self.adds()
        return Complete()

    def flushes(self) -> None:
        with self.context():
            self.db.session.add(self.note("lost"))
            self.db.session.flush()

    def commits_and_adds(self) -> None:
        with self.context():
            self.db.session.add(self.note("commits_and_adds"))
            self.db.session.commit()
            self.db.session.add(self.note("lost"))

    def executes_text(self) -> None:
        with self.context():
            self.text("INSERT INTO flask_note (text) VALUES ('lost')")

    def takes_the_connection(self) -> None:
        with self.context():
            self.db.session.connection().execute(insert(self.shop.Note).values(text="lost"))

    def enqueues(self) -> None:
        with self.context():
            enqueue(self.db.session, self.next)

    def swallows_an_error(self) -> None:
        with suppress(ValueError), self.context():
            self.db.session.add(self.note("lost"))
            fail()

    def removes(self) -> None:
        with self.context():
            self.db.session.add(self.note("lost"))
            self.db.session.remove()

    def rolls_all_back(self) -> None:
        with self.context():
            self.db.session.execute(insert(self.shop.Note).values(text="lost"))
            self.db.session.rollback()

    # ---- what is not ------------------------------------------------------------------------

    def commits(self) -> None:
        with self.context():
            self.db.session.add(self.note("commits"))
            self.db.session.commit()

    def commits_by_text(self) -> None:
        with self.context():
            self.text("INSERT INTO flask_note (text) VALUES ('commits_by_text')")
            self.text("COMMIT")

    def commits_by_with(self) -> None:
        with self.context(), self.db.session.begin():
            self.db.session.add(self.note("commits_by_with"))

    def commits_by_itself(self) -> None:
        with self.context():
            self.db.session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
            self.db.session.add(self.note("commits_by_itself"))
            self.db.session.flush()

    def reads(self) -> None:
        with self.context():
            assert self.db.session.query(self.shop.Note).count() >= 0
            assert self.db.session.connection().scalar(text("SELECT 1")) == 1

    def rolls_back_and_writes_outside(self) -> None:
        with self.context():
            self.db.session.add(self.note("lost"))
            self.db.session.flush()
            self.db.session.rollback()
        self.db.session.add(self.note("rolls_back_and_writes_outside"))

    def rolls_back_and_says_so(self) -> Complete:
        self.rolls_all_back()
        return Complete()

    def meets_a_duplicate(self) -> None:
        with self.context():
            self.db.session.add(self.shop.Note(id=0, text="lost"))
            with suppress(IntegrityError):
                self.db.session.commit()
            self.db.session.rollback()


IS_CLOSED = "was closed, or removed from its scope, over writes that are lost now"
LOST_WITHIN = {
    Within.adds: IS_CLOSED,
    Within.adds_then_names_an_outcome: IS_CLOSED,
    Within.flushes: IS_CLOSED,
    Within.commits_and_adds: IS_CLOSED,
    Within.executes_text: IS_CLOSED,
    Within.takes_the_connection: IS_CLOSED,
    Within.enqueues: IS_CLOSED,
    Within.swallows_an_error: IS_CLOSED,
    Within.removes: IS_CLOSED,
    Within.rolls_all_back: "was rolled back, and nothing is left of what the handler wrote",
}
KEPT_WITHIN = (
    Within.commits,
    Within.commits_by_text,
    Within.commits_by_with,
    Within.commits_by_itself,
    Within.reads,
    Within.rolls_back_and_writes_outside,
    Within.rolls_back_and_says_so,
    Within.meets_a_duplicate,
)
WRITES_NOTHING_OUTSIDE = (Within.rolls_all_back, Within.rolls_back_and_says_so)
WRITES = {
    Within.commits_and_adds,
    *(Within.commits, Within.commits_by_text, Within.commits_by_with, Within.commits_by_itself),
    Within.rolls_back_and_writes_outside,
}


def test_what_a_context_within_the_jobs_drops_fails_the_attempt(shop: FlaskShop) -> None:
    """Flask's second context has a session of its own, which only the handler can commit."""
    within = Within(shop)
    with shop.app.app_context():
        shop.db.session.add(shop.Note(id=0, text="first"))
        shop.db.session.commit()
    for body in (*LOST_WITHIN, *KEPT_WITHIN):
        enqueue(shop.engine, within.handler(body))

    notes, recorder = shop.run(session_factory=shop.db.session, around=shop.app.app_context)

    told = {e.job.type: e for e in recorder.events if e.job and e.name != "job_started"}
    for body, words in LOST_WITHIN.items():
        event = told[body.__name__]
        assert event.name == "job_moved_to_dlq", body.__name__
        assert words in event.rest[0]
    assert "leave out that scope" in told["adds"].rest[0]
    for body in KEPT_WITHIN:
        event = told[body.__name__]
        assert event.name == "job_completed", (body.__name__, event.rest)
    assert notes.count("outside") == len(KEPT_WITHIN) - 1
    assert set(notes) - {"outside", "first"} == {body.__name__ for body in WRITES}


def test_flasks_session_class_joins_despite_its_get_bind(shop: FlaskShop) -> None:
    """Its get_bind returns the engine, and outside of an app context it raises."""

    @shop.jobs.handler("t", retry=constant(0.0))
    def handler(ctx: Context[Session], words: str) -> None:
        with shop.app.app_context():
            ctx.session.add(shop.Note(text=words))
            ctx.session.flush()
        ctx.session.add(shop.Note(text="outside of the context"))
        if ctx.job.attempt == 1:
            fail()

    enqueue(shop.engine, handler, "inside")

    notes, _ = shop.run(session_factory=shop.db.session.session_factory)

    assert notes == ["inside", "outside of the context"]


# ---- hooks ---------------------------------------------------------------------------------------


class Hooks:
    """A session class of its own, with a user's hooks on it."""

    def __init__(self, bench: Workbench) -> None:
        self.bench, self.calls = bench, list[str]()
        self.fail_before, self.fail_after = False, False

        class HookedSession(Session):
            pass

        event.listen(HookedSession, "before_commit", self.before)
        event.listen(HookedSession, "after_commit", self.after)
        self.factory = factory_for(bench, HookedSession)

    def body(self, s: Session, ctx: Context[Any]) -> None:
        s.info["job"] = ctx.job.id
        self.bench.note(s, ctx, "handler")

    def before(self, session: Session) -> None:
        job_id = session.info["job"]
        self.calls.append("before")
        assert self.bench.notes(job_id) == [], "not committed yet"
        session.add(self.bench.Note(job_id=job_id, text="hook"))
        if self.fail_before:
            raise ValueError("the hook says no")

    def after(self, session: Session) -> None:
        job_id = session.info["job"]
        gone = self.bench.job(job_id) is None
        self.calls.append(f"after {'the settlement' if gone else 'nothing'}")
        assert self.bench.notes(job_id) == ["handler", "hook"]
        if self.fail_after:
            raise ValueError("too late")


@pytest.mark.core
@one_of_each
def test_hooks_run_once_and_after_commit_tells_the_truth(bench: Workbench) -> None:
    hooks = Hooks(bench)
    job_id = bench.enqueue(bench.handler("t", hooks.body))

    bench.run(session_factory=hooks.factory)

    assert hooks.calls == ["before", "after the settlement"]
    assert bench.notes(job_id) == ["handler", "hook"]


@one_of_each
def test_no_after_commit_for_a_handler_that_failed(bench: Workbench) -> None:
    hooks = Hooks(bench)

    def body(s: Session, ctx: Context[Any]) -> None:
        hooks.body(s, ctx)
        fail()

    bench.enqueue(bench.handler("t", body, retry=SLOW))
    bench.run(session_factory=hooks.factory)

    assert hooks.calls == []


@one_of_each
def test_a_hook_that_refuses_the_commit_fails_the_attempt(bench: Workbench) -> None:
    hooks = Hooks(bench)
    hooks.fail_before = True
    job_id = bench.enqueue(bench.handler("t", hooks.body, retry=SLOW))

    bench.run(session_factory=hooks.factory)

    assert hooks.calls == ["before"]
    assert "the hook says no" in bench.job(job_id).last_error
    assert bench.notes(job_id) == []


@one_of_each
def test_a_hook_that_fails_after_commit_keeps_the_job_completed(
    bench: Workbench, caplog: pytest.LogCaptureFixture
) -> None:
    hooks = Hooks(bench)
    hooks.fail_after = True
    job_id = bench.enqueue(bench.handler("t", hooks.body))

    ran = bench.run(session_factory=hooks.factory)

    assert hooks.calls == ["before", "after the settlement"]
    assert ran.of(job_id) == ["started", "completed"]
    assert bench.job(job_id) is None
    assert bench.notes(job_id) == ["handler", "hook"]
    assert f"job {job_id}: after the commit: ValueError: too late" in caplog.text


# ---- another database ----------------------------------------------------------------------------


@pytest.fixture
def other(server: TestServer) -> Iterator[tuple[Engine, Table]]:
    url = server.create_database("other")
    engine = create_engine(url)
    table = Table("elsewhere", MetaData(), Column("job_id", Text))
    table.create(engine)
    yield engine, table
    engine.dispose()
    server.drop_database(url)


@only_threads
@pytest.mark.parametrize("end", ["return", "raise", "stolen"])
def test_a_session_with_a_bind_to_another_database(
    bench: Workbench, other: tuple[Engine, Table], end: str
) -> None:
    """It keeps its own engine, and its commit follows the one of the job, or does not come."""
    engine, table = other

    def body(s: Session, ctx: Context[Any]) -> None:
        bench.note(s, ctx)
        s.execute(table.insert().values(job_id=ctx.job.id))
        if end == "stolen":
            bench.steal(ctx.job.id)
        if end == "raise":
            fail()

    job_id = bench.enqueue(bench.handler("t", body, retry=SLOW))
    factory = sessionmaker(binds={table: engine})
    seen = Recorder()
    bench.run(
        session_factory=factory,
        observers=(seen,),
        until=lambda: any(e.job and e.name != "job_started" for e in seen.events),
    )

    with engine.connect() as connection:
        elsewhere = list(connection.scalars(table.select()))
    assert elsewhere == ([job_id] if end == "return" else [])
    assert bench.notes(job_id) == (["written"] if end == "return" else [])
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]


# ---- isolation -----------------------------------------------------------------------------------

ENGINES = {
    "autocommit engine": ({"isolation_level": "AUTOCOMMIT"}, {}),
    "autocommit option": ({}, {"isolation_level": "AUTOCOMMIT"}),
    "repeatable read engine": ({"isolation_level": "REPEATABLE READ"}, {}),
    "serializable option": ({}, {"isolation_level": "SERIALIZABLE"}),
}


@paired("kind", ENGINES)
def test_two_workers_on_an_engine_of_another_isolation_level(bench: Workbench, kind: str) -> None:
    """No job runs twice, and a handler's writes are all there or all gone."""
    engine, execution = ENGINES[kind]

    def body(s: Session, ctx: Context[Any]) -> None:
        level = s.scalar(text("SHOW transaction_isolation"))
        bench.note(s, ctx, f"{level} {ctx.job.attempt}")
        if ctx.job.type == "fails" and ctx.job.attempt == 1:
            fail()

    good, fails = bench.handler("good", body), bench.handler("fails", body, retry=constant(0.0))
    ids = {bench.enqueue(good): 1 for _ in range(12)} | {bench.enqueue(fails): 2 for _ in range(12)}
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(bench.run, engine=engine, execution=execution) for _ in range(2)]
        ran = [run.result() for run in runs]

    level = {"repeatable read engine": "repeatable read", "serializable option": "serializable"}
    for job_id, attempt in ids.items():
        # Under SERIALIZABLE neighbours may conflict; that is one more attempt, made at once.
        (note,) = bench.notes(job_id)
        assert note.rsplit(" ", 1)[0] == level.get(kind, "read committed")
        if kind != "serializable option":
            assert note.endswith(f" {attempt}")
            assert sum(r.of(job_id).count("started") for r in ran) == attempt
        assert sum(r.of(job_id).count("completed") for r in ran) == 1


@pytest.mark.parametrize("kind", ["autocommit engine", "autocommit option"])
def test_the_connection_after_a_lost_one_has_a_transaction(bench: Workbench, kind: str) -> None:
    """The handler rolls back and goes on; on its new connection, AUTOCOMMIT is overridden again."""
    engine, execution = ENGINES[kind]

    def body(s: Session, ctx: Context[Any]) -> None:
        pid = s.scalar(text("SELECT pg_backend_pid()"))
        bench.sql("SELECT pg_terminate_backend(:pid, 5000)", pid=pid)
        with suppress(Exception):
            s.execute(text("SELECT 1"))
        s.rollback()
        bench.note(s, ctx)
        assert bench.notes(ctx.job.id) == [], "committed by itself"
        if ctx.job.type == "fails":
            fail()

    ids = {
        name: bench.enqueue(bench.handler(name, body, retry=SLOW)) for name in ("fails", "passes")
    }
    bench.run(engine=engine, execution=execution)

    assert bench.notes(ids["fails"]) == []
    assert "ValueError: after the write" in bench.job(ids["fails"]).last_error
    assert bench.notes(ids["passes"]) == ["written"]
    assert bench.job(ids["passes"]) is None


@one_of_each
def test_a_handler_under_serializable(bench: Workbench) -> None:
    """Of two that read what the other writes, one fails with 40001 and is run again at once."""
    met: list[str] = []

    def body(s: Session, ctx: Context[Any]) -> Any:
        assert s.scalar(text("SHOW transaction_isolation")) == "serializable"
        count = s.scalar(text("SELECT count(*) FROM note WHERE text <> 'read committed'"))
        if ctx.job.attempt == 1:
            met.append(ctx.job.id)
            bench.pause(lambda: len(met) == 2)
        bench.note(s, ctx, f"{count}")
        return None

    def plain(s: Session, ctx: Context[Any]) -> None:
        bench.note(s, ctx, s.scalar(text("SHOW transaction_isolation")) or "")

    handler = bench.handler("t", body, isolation_level="SERIALIZABLE", retry=SLOW)
    ids = [bench.enqueue(handler) for _ in range(2)]
    later = bench.enqueue(bench.handler("plain", plain), priority=9)

    ran = bench.run()

    assert sorted(bench.notes(ids[0]) + bench.notes(ids[1])) == ["0", "1"]
    retried = ran.named("job_will_be_retried")
    assert len(retried) == 1
    assert retried[0].rest[1] == 0.0
    assert "40001" in retried[0].rest[0]
    assert bench.notes(later) == ["read committed"]


# ---- lost leases ---------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["complete", "retry", "raise"])
@pytest.mark.parametrize("uses_session", [True, False])
@one_of_each
def test_a_superseded_attempt_changes_nothing(
    bench: Workbench, end: str, uses_session: bool
) -> None:
    hooks, gate = Hooks(bench), Gate(bench)

    def body(*args: Any) -> Any:
        if uses_session:
            hooks.body(args[0], args[1])
        gate.hold()
        if end == "raise":
            fail()
        return Retry(0, "late") if end == "retry" else None

    job_id = bench.enqueue(bench.handler("t", body, uses_session=uses_session, retry=constant(0.0)))
    neighbour = bench.handler("n", lambda ctx: None, uses_session=False)
    after: list[Any] = []
    ids: list[str] = []

    def steal() -> None:
        gate.wait()
        bench.steal(job_id)
        after.append(bench.job(job_id)[:-1])
        ids.extend(bench.enqueue(neighbour) for _ in range(5))
        gate.open()

    recorder = Recorder()
    bench.run(
        during=steal,
        observers=(recorder,),
        session_factory=hooks.factory,
        until=lambda: (
            any(e.name == "job_lease_lost" for e in recorder.events)
            and sum(e.name == "job_completed" for e in recorder.events) == 5
        ),
    )

    assert [e.name for e in recorder.events if e.subject == job_id] == [
        "job_started",
        "job_lease_lost",
    ]
    assert bench.job(job_id)[:-1] == after[0], "the new lease is untouched"
    assert bench.notes(job_id) == []
    assert "after the settlement" not in hooks.calls
    assert "after nothing" not in hooks.calls


@one_of_each
def test_a_late_settlement_of_an_earlier_life_changes_nothing(bench: Workbench) -> None:
    """An own id: frozen, rescued, completed elsewhere, enqueued again and claimed again."""
    gate = Gate(bench)

    def body(s: Session, ctx: Context[Any]) -> None:
        bench.note(s, ctx, "first life")
        gate.hold()

    handler = bench.handler("t", body)
    bench.enqueue(handler, id="daily")
    rows: list[Any] = []

    def live_again() -> None:
        gate.wait()
        first = bench.job("daily")
        bench.sql("DELETE FROM bgjob_job")  # rescued, and completed by another worker
        bench.enqueue(handler, id="daily", delay=3600)
        # The same worker id and attempt, so that nothing but the lease tells the lives apart.
        bench.sql(
            "UPDATE bgjob_job SET claimed_by = :me, lease = lease + 1, attempt = 1",
            me=first.claimed_by,
        )
        second = bench.job("daily")
        assert second.lease > first.lease
        rows.append(second[:-1])
        gate.open()

    recorder = Recorder()
    # Looked at before the stop, which hands back what is claimed under this worker's id.
    seen: list[Any] = []
    bench.run(
        during=live_again,
        observers=(recorder,),
        until=lambda: (
            any(e.name == "job_lease_lost" for e in recorder.events)
            and (seen.append(bench.job("daily")[:-1]) or True)
        ),
    )

    assert seen[0] == rows[0]
    assert bench.notes("daily") == []
    assert [e.name for e in recorder.events if e.job] == ["job_started", "job_lease_lost"]
