"""Running jobs through a real worker, the same way for threads and for asyncio.

A handler's body is written once, over a plain ``Session``: a coroutine gets it by ``run_sync``. A
run ends when nothing is due or running any more; it then has checked that the worker gave back
every connection and every permit.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import itemgetter
from typing import TYPE_CHECKING, Any, cast

import pytest
from sqlalchemy import (
    Engine,
    Row,
    Text,
    UniqueConstraint,
    create_engine,
    func,
    or_,
    select,
    text,
)
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.util import await_only, greenlet_spawn

from sqlalchemy_bgjob import (
    AsyncWorker,
    BGJob,
    Context,
    JobType,
    Observer,
    Worker,
    constant,
    enqueue,
)
from support.databases import with_driver
from support.tables import without_handlers
from support.waiting import wait_until, wait_until_async

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sqlalchemy_bgjob import FinishedRun, JobInfo
    from support.databases import TestServer


@dataclass(frozen=True)
class Flavor:
    """A kind of worker on a driver."""

    driver: str
    is_async: bool

    def __str__(self) -> str:
        return f"{'asyncio' if self.is_async else 'threads'}-{self.driver}"


FLAVORS = (
    Flavor("psycopg", is_async=False),
    Flavor("psycopg2", is_async=False),
    Flavor("psycopg", is_async=True),
    Flavor("asyncpg", is_async=True),
)


one_of_each = pytest.mark.parametrize("bench", [FLAVORS[0], FLAVORS[-1]], ids=str, indirect=True)
"""For a test whose subject is above the driver: a worker of each kind will do."""


only_threads = pytest.mark.parametrize("bench", FLAVORS[:2], ids=str, indirect=True)
only_asyncio = pytest.mark.parametrize("bench", FLAVORS[2:], ids=str, indirect=True)


def paired(name: str, values: Iterable[Any]) -> pytest.MarkDecorator:
    """Each value with a worker of each kind, whose drivers take turns."""
    return pytest.mark.parametrize(
        ("bench", name),
        [
            (flavor, value)
            for number, value in enumerate(values)
            for flavor in (FLAVORS[number % 2], FLAVORS[2 + number % 2])
        ],
        ids=lambda value: str(value) if isinstance(value, Flavor) else None,
        indirect=["bench"],
    )


def in_turn(name: str, values: Iterable[Any]) -> pytest.MarkDecorator:
    """Each value with one worker: the kinds and their drivers take turns."""
    turns = itertools.cycle((FLAVORS[0], FLAVORS[3], FLAVORS[1], FLAVORS[2]))
    return pytest.mark.parametrize(
        ("bench", name),
        list(zip(turns, values, strict=False)),
        ids=lambda value: str(value) if isinstance(value, Flavor) else None,
        indirect=["bench"],
    )


@dataclass(frozen=True)
class Event:
    """One call of an observer."""

    name: str
    subject: str
    job: JobInfo | None = None
    rest: tuple[Any, ...] = ()


class Recorder(Observer):
    """Keeps every event, in order."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def job_started(self, job: JobInfo) -> None:
        self._add("job_started", job)

    def job_completed(self, job: JobInfo, run: FinishedRun) -> None:
        self._add("job_completed", job, run.seconds)

    def job_rescheduled(self, job: JobInfo, run: FinishedRun) -> None:
        self._add("job_rescheduled", job, run.delay)

    def job_will_be_retried(self, job: JobInfo, run: FinishedRun) -> None:
        self._add("job_will_be_retried", job, run.error, run.delay)

    def job_moved_to_dlq(self, job: JobInfo, run: FinishedRun) -> None:
        self._add("job_moved_to_dlq", job, run.error)

    def job_cancelled(self, job: JobInfo, run: FinishedRun) -> None:
        self._add("job_cancelled", job)

    def job_expired(self, job: JobInfo, run: FinishedRun) -> None:
        self._add("job_expired", job)

    def job_lease_lost(self, job: JobInfo) -> None:
        self._add("job_lease_lost", job)

    def queue_is_empty(self, queue: str) -> None:
        self.events.append(Event("queue_is_empty", queue))

    def worker_error(self, error: BaseException) -> None:
        self.events.append(Event("worker_error", type(error).__name__, rest=(error,)))

    def _add(self, name: str, job: JobInfo, *rest: Any) -> None:
        self.events.append(Event(name, job.id, job, rest))


@dataclass
class Ran:
    """What a run showed to an observer."""

    events: list[Event] = field(default_factory=list)

    def of(self, job_id: str, *, lease: int | None = None) -> list[str]:
        """The events of one job by name, without the prefix ``job_``, in the order of its leases.

        Only within a lease is the order of events promised.
        """
        events = [(e.job.lease, e.name) for e in self.events if e.job and e.subject == job_id]
        events.sort(key=itemgetter(0))
        return [name.removeprefix("job_") for of, name in events if lease in (None, of)]

    def last(self, job_id: str) -> Event:
        return next(e for e in reversed(self.events) if e.job and e.subject == job_id)

    def named(self, name: str) -> list[Event]:
        return [event for event in self.events if event.name == name]


class Base(DeclarativeBase):
    """The application's base."""


class Note(Base):
    """What handlers leave behind: ``late`` is checked at COMMIT, ``text`` at once."""

    __tablename__ = "note"
    __table_args__ = (
        UniqueConstraint("late", deferrable=True, initially="DEFERRED", name="note_late"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[str | None] = mapped_column(Text)
    text: Mapped[str] = mapped_column(Text)
    late: Mapped[int | None]


JOBS = BGJob(Base)


@functools.lru_cache(maxsize=8)
def _outside(url: str) -> Engine:
    """It keeps what it has compiled for the next test, and no connection."""
    return create_engine(url, isolation_level="AUTOCOMMIT")


_POOL = {"pool_size": 8, "max_overflow": 0}
_SPARE: dict[tuple[Any, str], Any] = {}
"""Engines of workers that have ended: they keep what they have compiled, and no connection."""


class Workbench:
    """An application with jobs, a table of its own, and a worker of one flavor.

    All workbenches have the same mapped classes, and each has handlers of its own.
    """

    def __init__(self, flavor: Flavor, url: str) -> None:
        self.flavor, self.url = flavor, url
        self.Base, self.Note = Base, Note
        self.jobs = without_handlers(JOBS)
        # From outside: what another session sees.
        self.outside: Engine = _outside(url)

    def reset(self) -> None:
        """Make the tables if they are not there, and empty them."""
        names = [table.fullname for table in self.Base.metadata.sorted_tables]
        there = text("SELECT to_regclass(n) IS NOT NULL FROM unnest(CAST(:names AS text[])) n")
        with self.outside.connect() as connection:
            complete = all(connection.scalars(there, {"names": names}))
        if not complete:
            self.Base.metadata.create_all(self.outside)
        with self.outside.connect() as connection:
            # It is much faster than TRUNCATE for a few rows.
            connection.exec_driver_sql("; ".join(f"DELETE FROM {name}" for name in names))

    def close(self) -> None:
        self.outside.dispose()

    # ---- handlers ----

    def handler(
        self, type: str, body: Callable[..., Any], *, uses_session: bool = True, **options: Any
    ) -> JobType[Any]:
        """Register ``body(session, ctx)``, or without a session ``body(ctx)``.

        If the type is a default's (``"*"``) it serves its queue's other types.
        """
        register: Any = self.jobs.handler
        args: tuple[Any, ...] = (type,)
        if type == "*":
            register, args = self.jobs.default_handler, ()

        if not self.flavor.is_async:

            def function(ctx: Context[Session], arg: Any = None) -> Any:
                return body(ctx.session, ctx) if uses_session else body(ctx)

            return cast("JobType[Any]", register(*args, **options)(function))

        async def coroutine(ctx: Context[AsyncSession], arg: Any = None) -> Any:
            if uses_session:
                return await ctx.session.run_sync(body, ctx)
            return await greenlet_spawn(body, ctx)

        return cast("JobType[Any]", register(*args, **options)(coroutine))

    def pause(self, condition: Callable[[], Any]) -> None:
        """Wait inside a handler's body, the event loop going on."""
        if self.flavor.is_async:
            await_only(wait_until_async(condition))
        else:
            wait_until(condition)

    def note(self, session: Session, ctx: Context[Any], words: str = "written") -> None:
        """Write a row through the handler's session, at once."""
        session.add(self.Note(job_id=ctx.job.id, text=words))
        session.flush()

    # ---- the world outside ----

    def enqueue(self, handler: JobType[Any], arg: Any = None, **options: Any) -> str:
        return enqueue(self.outside, handler, arg, **options).id

    def sql(self, statement: str, **values: Any) -> list[Row[Any]]:
        with self.outside.connect() as connection:
            result = connection.execute(text(statement), values)
            return list(result) if result.returns_rows else []

    def notes(self, job_id: str) -> list[str]:
        note = self.Note.__table__.c
        with self.outside.connect() as connection:
            found = select(note.text).where(note.job_id == job_id).order_by(note.id)
            return list(connection.scalars(found))

    def job(self, job_id: str) -> Any:
        """The live row, or None."""
        with self.outside.connect() as connection:
            job = self.jobs.models.job
            due = func.extract("epoch", job.c.next_run_at - func.clock_timestamp())
            return connection.execute(
                select(job, due.label("due_in")).where(job.c.id == job_id)
            ).one_or_none()

    def dead(self, job_id: str) -> Any:
        """The dead row, or None; more than one is an error."""
        with self.outside.connect() as connection:
            dead = self.jobs.models.dead_job
            return connection.execute(select(dead).where(dead.c.job_id == job_id)).one_or_none()

    def idle(self) -> bool:
        """Whether nothing is due or running."""
        job = self.jobs.models.job.c
        busy = select(func.count()).where(
            or_(job.claimed_by.is_not(None), job.next_run_at <= func.clock_timestamp())
        )
        with self.outside.connect() as connection:
            return connection.scalar(busy) == 0

    def none_left(self) -> bool:
        """Whether there is no job: also none that was put off."""
        return not self.sql("SELECT 1 FROM bgjob_job")

    def has_ended(self, pid: int | None) -> bool:
        """Whether the server has no such session any more."""
        return not self.sql("SELECT 1 FROM pg_stat_activity WHERE pid = :pid", pid=pid or 0)

    def put_lost_job(self, schema: str = "public") -> None:
        """A job "lost" of the type "t", which runs in a worker that is silent for an hour."""
        self.sql(
            f"INSERT INTO {schema}.bgjob_worker"
            " (id, hostname, pid, version, queues, lease_timeout, beat_at)"
            " VALUES (815, 'elsewhere', 1, '0', '{}', 1, now() - interval '1 hour')"
        )
        self.sql(
            f"INSERT INTO {schema}.bgjob_job (id, queue, type, claimed_by, attempt)"
            " VALUES ('lost', 'default', 't', 815, 1)"
        )

    @contextmanager
    def trigger(self, body: str, when: str = "BEFORE DELETE") -> Iterator[None]:
        """A user's trigger on the job table, for as long as it lasts."""
        self.sql(
            f"CREATE FUNCTION of_the_user() RETURNS trigger LANGUAGE plpgsql "
            f"AS $$ BEGIN {body} END $$"
        )
        self.sql(
            f"CREATE TRIGGER of_the_user {when} ON bgjob_job "
            f"FOR EACH ROW EXECUTE FUNCTION of_the_user()"
        )
        try:
            yield
        finally:
            self.sql("DROP FUNCTION of_the_user CASCADE")

    def steal(self, job_id: str, *, worker_id: int = 4711) -> None:
        """Give a running job to another worker that lives, as a rescue and a claim would."""
        self.sql(
            "INSERT INTO bgjob_worker (id, hostname, pid, version, queues, lease_timeout)"
            " VALUES (:worker, 'elsewhere', 1, '0', '{}', 3600) ON CONFLICT DO NOTHING",
            worker=worker_id,
        )
        self.sql(
            "UPDATE bgjob_job SET claimed_by = :worker, lease = lease + 2, attempt = attempt + 1"
            " WHERE id = :id",
            id=job_id,
            worker=worker_id,
        )

    # ---- running ----

    def run(
        self,
        *,
        until: Callable[[], Any] | None = None,
        during: Callable[[], Any] | None = None,
        deadline: float = 20.0,
        engine: dict[str, Any] | None = None,
        execution: dict[str, Any] | None = None,
        observers: tuple[Observer, ...] = (),
        **options: Any,
    ) -> Ran:
        """Run a worker until *until* holds (by default until nothing is left to do).

        Args:
            until: What ends the run, asked again and again from outside.
            during: Called once in a thread of its own, before *until* is asked.
            deadline: Seconds for *until*.
            engine: Options of ``create_engine``.
            execution: Options of ``engine.execution_options``.
            observers: More than the one that records.
            options: Those of the worker.
        """
        recorder = Recorder()
        options = {"queues": {"default": 4}, "poll_interval": 0.05, "listen": False} | options
        options["observers"] = (recorder, *observers)
        made = _POOL | (engine or {})

        def drive() -> None:
            if during is not None:
                during()
            wait_until(until or self.idle, deadline, what="the end of the run")

        if self.flavor.is_async:
            asyncio.run(self._run_async(drive, made, execution or {}, options))
        else:
            self._run_threads(drive, made, execution or {}, options)
        return Ran(recorder.events)

    def _run_threads(
        self,
        drive: Callable[[], None],
        made: dict[str, Any],
        execution: dict[str, Any],
        options: dict[str, Any],
    ) -> None:
        engine = self._engine(create_engine, made)
        try:
            worker = Worker(self.jobs, engine.execution_options(**execution), **options)
            with worker:
                drive()
            self._check_given_back(worker._loop, engine.pool)
        finally:
            engine.dispose()
            self._leave(create_engine, made, engine)

    async def _run_async(
        self,
        drive: Callable[[], None],
        made: dict[str, Any],
        execution: dict[str, Any],
        options: dict[str, Any],
    ) -> None:
        engine = self._engine(create_async_engine, made)
        try:
            worker = AsyncWorker(self.jobs, engine.execution_options(**execution), **options)
            async with worker:
                await asyncio.to_thread(drive)
            self._check_given_back(worker._loop, engine.pool)
        finally:
            await engine.dispose()
            self._leave(create_async_engine, made, engine)

    def _engine(self, make: Callable[..., Any], made: dict[str, Any]) -> Any:
        """One that another worker has left, if it was made in the same way, or a new one."""
        url = with_driver(self.url, self.flavor.driver)
        left = _SPARE.pop((make, url), None) if made == _POOL else None
        return left or make(url, **made)

    def _leave(self, make: Callable[..., Any], made: dict[str, Any], engine: Any) -> None:
        if made == _POOL:
            _SPARE[make, with_driver(self.url, self.flavor.driver)] = engine

    def _check_given_back(self, loop: Any, pool: Any) -> None:
        checked_out = getattr(pool, "checkedout", lambda: 0)()
        assert checked_out == 0, f"{checked_out} connections were not given back"
        for handler in self.jobs.registry:
            connections = loop._slots._environment(handler).connect.__self__
            permits, own_pool = connections._permits, connections._engine.pool
            if permits is not None:
                free = getattr(permits, "_semaphore", permits)._value
                most = own_pool.size() + own_pool._max_overflow - 2
                assert free == most, f"{most - free} of {most} permits were not given back"


class Gate:
    """Holds a handler until the test lets it go on; the test can see that it is there."""

    def __init__(self, bench: Workbench) -> None:
        self._bench = bench
        self._reached, self._open = threading.Event(), threading.Event()

    def hold(self) -> None:
        """For the handler's body."""
        self._reached.set()
        self._bench.pause(self._open.is_set)

    def wait(self) -> None:
        """For the test: the handler is held now."""
        assert self._reached.wait(60.0), "no handler came to the gate"

    def open(self) -> None:
        self._open.set()


@dataclass
class AllAtOnce:
    """Many handlers that have run in one worker: none may harm its neighbours."""

    bench: Workbench
    ran: Ran
    ids: dict[str, str]
    """The job of each handler, by the handler's name."""

    @classmethod
    @contextmanager
    def made(
        cls,
        flavor: Flavor,
        server: TestServer,
        handlers: Callable[[Workbench], Any],
        bodies: Iterable[Callable[..., Any]],
    ) -> Iterator[AllAtOnce]:
        """Run them in a database of their own; each body is a method of *handlers*."""
        url = server.create_database("handlers")
        bench = Workbench(flavor, url)
        bench.reset()
        of, ids = handlers(bench), {}
        for body in bodies:
            handler = bench.handler(
                body.__name__, functools.partial(body, of), retry=constant(3600.0)
            )
            ids[body.__name__] = bench.enqueue(handler)
        yield cls(bench, bench.run(deadline=60.0), ids)
        bench.close()
        server.drop_database(url)


def names(bodies: Iterable[Callable[..., Any]]) -> list[Any]:
    """The bodies as parameters that are called like them."""
    return [pytest.param(body, id=body.__name__) for body in bodies]
