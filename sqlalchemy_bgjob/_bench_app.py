"""The application of the benchmarks: ``python -m sqlalchemy_bgjob._bench_app COMMAND DSN [JSON]``.

It speaks the protocol of the adapters in ``benchmarks/peers``: one command a process, one line of
JSON on stdout, times of ``time.monotonic()``. DSN is a URL for SQLAlchemy or libpq; ``-`` takes it
from BGJOB_DATABASE_URL, because everybody can read the arguments of a process.

``install``, ``bulk``, ``fill``, ``enqueue``, ``pulse``, ``stream`` and ``remaining`` are a
producer's part, ``work`` a worker's. ``by_hand`` and ``raw`` are the yardsticks: what the same
work costs when it is written by hand, and what the statements allow without any worker around
them. ``poll`` tells what a poll that finds nothing reads.
"""

import asyncio
import json
import os
import resource
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from functools import partial
from itertools import count
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psycopg
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Executable,
    Identity,
    MetaData,
    Table,
    Text,
    create_engine,
    delete,
    func,
    insert,
    literal,
    make_url,
    select,
)
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.schema import CreateSchema

from . import _lifecycle as lifecycle
from ._enqueue import enqueue, enqueue_many, statements_of
from ._execution import Context
from ._ids import new_id, new_worker_id
from ._lifecycle import ClaimedJob
from ._statements import parameters
from ._targets import Unit, run_in
from ._validation import EARLIEST
from ._version import __version__
from .aio import AsyncWorker
from .bgjob import BGJob
from .settings import SPARE_CONNECTIONS
from .worker import Worker

if TYPE_CHECKING:
    from ._registry import JobType

MARK_EVERY: Final = 500
"""Every how many handler calls the time is kept."""
SETTLE: Final = 3.0
"""Seconds for which a worker is given time to be idle and to listen; behind some poolers it never
does. Before that no latency can be measured."""
TICK: Final = 0.02
SAMPLE_EVERY: Final = 0.1
QUEUE: Final = "default"
RAW_BATCH: Final = 200
CLAIM_BATCH: Final = 100

Options = Mapping[str, Any]
Answer = dict[str, Any]


class App:
    """The tables of one schema in one database, with a handler for their jobs."""

    def __init__(self, dsn: str, options: Options) -> None:
        dsn = os.environ["BGJOB_DATABASE_URL"] if dsn == "-" else dsn
        self.url = make_url(dsn).set(drivername="postgresql+psycopg")
        self.options = options
        self.schema: str | None = options.get("schema")
        self.metadata = MetaData(schema=self.schema)
        self.jobs = BGJob(self.metadata)
        self.job = self.jobs.models.job
        self.effect = Table(
            "bench_effect",
            self.metadata,
            Column("id", BigInteger, Identity(), primary_key=True),
            Column("job_id", Text, nullable=False),
        )
        self.statements = statements_of(self.jobs.models)
        self.recorder = Recorder()
        kind = options.get("handler", "noop")
        handlers = self._coroutines() if self.is_async else self._functions()
        register = self.jobs.handler(kind, queue=QUEUE)
        self.handler: JobType[dict[str, Any]] = register(handlers[kind])

    @property
    def driver(self) -> str:
        """AsyncWorker's."""
        return str(self.options.get("driver", "asyncpg"))

    @property
    def is_async(self) -> bool:
        """Whether an AsyncWorker works."""
        return bool(self.options.get("kind", "async") == "async")

    @contextmanager
    def engine(self, pool_size: int = 1) -> Iterator[Engine]:
        """An engine for threads, whose first connection is there already."""
        settings = [f"-c {name}={value}" for name, value in self.options.get("set", {}).items()]
        arguments = {"options": " ".join(settings)} if settings else {}
        engine = create_engine(
            self.url, pool_size=pool_size, max_overflow=0, connect_args=arguments
        )
        with engine.connect() as connection:
            connection.exec_driver_sql("SELECT 1")
        try:
            yield engine
        finally:
            engine.dispose()

    # ---- handlers ---------------------------------------------------------------------------

    def _coroutines(self) -> dict[str, Callable[..., Any]]:
        seen, effect = self.recorder.seen, self.effect

        async def noop(ctx: Context[Any], arg: dict[str, Any]) -> None:
            seen(arg.get("n"))

        async def sleep(ctx: Context[Any], arg: dict[str, Any]) -> None:
            seen(arg.get("n"))
            await asyncio.sleep(0.001)

        async def mixed(ctx: Context[Any], arg: dict[str, Any]) -> None:
            seen(arg.get("n"))
            await asyncio.sleep(arg["s"])

        async def session(ctx: Context[Any], arg: dict[str, Any]) -> None:
            seen(arg.get("n"))
            await ctx.session.execute(insert(effect), {"job_id": ctx.job.id})

        return {"noop": noop, "sleep": sleep, "mixed": mixed, "session": session}

    def _functions(self) -> dict[str, Callable[..., Any]]:
        seen, effect = self.recorder.seen, self.effect

        def noop(ctx: Context[Any], arg: dict[str, Any]) -> None:
            seen(arg.get("n"))

        def sleep(ctx: Context[Any], arg: dict[str, Any]) -> None:
            seen(arg.get("n"))
            time.sleep(0.001)

        def mixed(ctx: Context[Any], arg: dict[str, Any]) -> None:
            seen(arg.get("n"))
            time.sleep(arg["s"])

        def session(ctx: Context[Any], arg: dict[str, Any]) -> None:
            seen(arg.get("n"))
            ctx.session.execute(insert(effect), {"job_id": ctx.job.id})

        return {"noop": noop, "sleep": sleep, "mixed": mixed, "session": session}


class Recorder:
    """What the handlers of one worker saw. Kept small: the process's memory is measured too."""

    def __init__(self) -> None:
        self._calls = count(1)  # its next() is one step, whichever thread it is in
        self.count = 0
        self.first: float | None = None
        self.last: float | None = None
        self._marks: list[tuple[int, float]] = []
        self._numbers, self._times = array("q"), array("d")
        self.samples: list[tuple[float, float, int]] = []
        """Time, processor time and resident bytes, now and then."""

    def seen(self, number: int | None) -> None:
        """Note a handler's call; *number* is the job's, when its arg has one."""
        now = time.monotonic()
        calls = self.count = next(self._calls)
        if calls == 1:
            self.first = now
        self.last = now
        if calls % MARK_EVERY == 0:
            self._marks.append((calls, now))
        if number is not None:
            self._numbers.append(number)
            self._times.append(now)

    def sample(self) -> None:
        """Note what the process has used."""
        self.samples.append((time.monotonic(), time.process_time(), resident_bytes()))

    def answer(self) -> Answer:
        """All of it, as the harness reads it."""
        return {
            "count": next(self._calls) - 1,
            "first": self.first,
            "last": self.last,
            "marks": sorted(self._marks),
            "picked": list(zip(self._numbers, self._times, strict=True)),
            "samples": self.samples,
            "peak_bytes": peak_bytes(),
        }


def resident_bytes() -> int:
    """The process's memory now; where the system does not tell, the most it has had."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except OSError:
        return peak_bytes()
    return int(pages) * resource.getpagesize()


def peak_bytes() -> int:
    """The most memory that the process has had."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


# ---- producers ------------------------------------------------------------------------------


def install(app: App) -> Answer:
    """Make the schema and the tables."""
    with app.engine() as engine:
        with engine.begin() as connection:
            if app.schema is not None:
                connection.execute(CreateSchema(app.schema, if_not_exists=True))
            app.metadata.create_all(connection)
        _vacuum(app, engine)
    tables = [table.fullname for table in app.metadata.sorted_tables]
    return {
        "version": __version__,
        "settings": f"AsyncWorker on {app.driver}, Worker on psycopg; concurrency 100",
        "remaining_sql": f"SELECT EXISTS (SELECT 1 FROM {app.job.fullname})",  # noqa: S608 - our own
        "clean_sql": [f"TRUNCATE {', '.join(tables)}"]
        + [f"VACUUM ANALYZE {table}" for table in tables],
    }


def _vacuum(app: App, engine: Engine) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for table in app.metadata.sorted_tables:
            connection.exec_driver_sql(f"VACUUM ANALYZE {table.fullname}")


def value_of(app: App) -> dict[str, Any]:
    """A job's arg, whose JSON has ``arg_bytes`` bytes."""
    return {"x": "a" * (int(app.options.get("arg_bytes", 20)) - len('{"x":""}'))}


def enqueue_one_by_one(app: App) -> Answer:
    """One committed job after the other, from ``clients`` threads, each with a connection.

    With a ``go_file`` it is waited for, so that several processes begin together.
    """
    clients = app.options.get("clients", 1)
    share = app.options["jobs"] // clients
    send = _PRODUCERS[app.options.get("through", "session")]
    with ExitStack() as stack:
        engines = [stack.enter_context(app.engine()) for _ in range(clients)]
        if "go_file" in app.options:
            Path(app.options["ready_file"]).touch()
            while not Path(app.options["go_file"]).exists():
                time.sleep(0.001)
        began = time.monotonic()
        _in_threads([partial(send, app, engine, share) for engine in engines])
        ended = time.monotonic()
    return {"seconds": ended - began, "jobs": share * clients, "began": began, "ended": ended}


def _through_session(app: App, engine: Engine, jobs: int) -> None:
    value = value_of(app)
    with Session(engine) as session:
        for _ in range(jobs):
            with session.begin():
                enqueue(session, app.handler, value)


def _through_connection(app: App, engine: Engine, jobs: int) -> None:
    value = value_of(app)
    notify = app.options.get("notify", True)
    with engine.connect() as connection:
        for _ in range(jobs):
            with connection.begin():
                if notify:
                    enqueue(connection, app.handler, value)
                else:
                    _enqueue_silently(app, connection, value)


def _enqueue_silently(app: App, connection: Connection, value: dict[str, Any]) -> None:
    """What enqueue() does, by the statement that wakes nobody."""
    job = app.handler.new_job(value, None, None, None, None, 0, None)

    def write(unit: Unit) -> object:
        values = parameters(
            id=job.id,
            queue=job.queue,
            type=job.type,
            arg=job.arg,
            priority=job.priority,
            headers=job.headers,
            delay=None,
            run_at=None,
        )
        return unit.execute(app.statements.insert_job(False), values).first()

    run_in(connection, app.jobs.models, write)


def _through_core_session(app: App, engine: Engine, jobs: int) -> None:
    row = _row_by_hand(app)
    with Session(engine) as session:
        for _ in range(jobs):
            with session.begin():
                session.execute(insert(app.job).values(id=new_id(), **row))


def _through_core_connection(app: App, engine: Engine, jobs: int) -> None:
    row = _row_by_hand(app)
    with engine.connect() as connection:
        for _ in range(jobs):
            with connection.begin():
                connection.execute(insert(app.job).values(id=new_id(), **row))


def _row_by_hand(app: App) -> dict[str, Any]:
    arg = json.dumps(value_of(app), separators=(",", ":")).encode()
    return {"queue": QUEUE, "type": app.handler.type, "arg": arg}


_PRODUCERS: Final[Mapping[str, Callable[[App, Engine, int], None]]] = {
    "session": _through_session,
    "connection": _through_connection,
    "core-session": _through_core_session,
    "core-connection": _through_core_connection,
}


def bulk(app: App) -> Answer:
    """Many jobs in one transaction; making the list of args is not measured.

    With ``slow_every`` they are for the handler "mixed": each such job takes ``slow`` seconds.
    """
    every, slow = app.options.get("slow_every"), app.options.get("slow")
    values: list[dict[str, Any]] = [value_of(app) for _ in range(app.options["jobs"])]
    if every is not None:
        values = [
            {"n": number, "s": 0.001 if number % every else slow} for number in range(len(values))
        ]
    with app.engine() as engine:
        began = time.monotonic()
        with Session(engine) as session, session.begin():
            enqueue_many(session, app.handler, values)
        ended = time.monotonic()
    return {"seconds": ended - began, "jobs": len(values), "ended": ended}


def fill(app: App) -> Answer:
    """A big backlog by one INSERT ... SELECT: ``jobs`` over ``priorities``, due in ``delay`` s."""
    numbers = select(
        literal("a" * 12).label("x"),
        (func.generate_series(0, app.options["jobs"] - 1) % app.options.get("priorities", 1)).label(
            "priority"
        ),
    )
    statement = app.statements.insert_from(numbers, notify=False, ignore_duplicates=False)
    values = {
        "queue": QUEUE,
        "type": app.handler.type,
        "headers": None,
        "delay": timedelta(seconds=app.options.get("delay", 0)),
        "run_at": None,
    }
    with app.engine() as engine:
        with engine.begin() as connection:
            connection.execute(statement, parameters(**values))
        _vacuum(app, engine)
    return {"jobs": app.options["jobs"]}


def pulse(app: App) -> Answer:
    """A job each ``interval``, on a schedule that does not drift."""
    sent = []
    with app.engine() as engine, Session(engine) as session:
        started = time.monotonic()
        for number in range(app.options["jobs"]):
            _sleep_until(started + number * app.options.get("interval", 0.05))
            before = time.monotonic()
            with session.begin():
                enqueue(session, app.handler, {"n": number})
            sent.append([number, before, time.monotonic()])
    return {"sent": sent}


def stream(app: App) -> Answer:
    """``rate`` jobs a second for ``seconds``, ``per_commit`` of them in each transaction.

    With ``held`` each transaction stays open for so many seconds before its COMMIT; there are as
    many connections as that takes.
    """
    rate, per_commit = app.options.get("rate", 2000), app.options.get("per_commit", 20)
    held = app.options.get("held", 0.0)
    interval = per_commit / rate
    commits = count()
    last = round(app.options["seconds"] / interval)
    clients = ceil(held / interval * 1.2) + 2 if held else 1
    sent: list[tuple[int, float]] = []

    def send(engine: Engine, started: float) -> None:
        with engine.connect() as connection:
            while (number := next(commits)) < last:
                _sleep_until(started + number * interval)
                numbers = range(number * per_commit, (number + 1) * per_commit)
                with connection.begin():
                    enqueue_many(connection, app.handler, [{"n": n} for n in numbers])
                    if held:
                        time.sleep(held)
                now = time.monotonic()
                sent.extend((n, now) for n in numbers)

    with app.engine(clients) as engine:
        cpu, started = time.process_time(), time.monotonic() + 0.1
        _in_threads([partial(send, engine, started)] * clients)
        cpu, ended = time.process_time() - cpu, time.monotonic()
    return {"sent": sorted(sent), "seconds": ended - started, "cpu_seconds": cpu}


def remaining(app: App) -> Answer:
    """How many jobs are not done."""
    with app.engine() as engine, engine.connect() as connection:
        query = select(func.count()).select_from(app.job)
        return {"remaining": connection.execute(query).scalar_one()}


def _sleep_until(moment: float) -> None:
    wait = moment - time.monotonic()
    if wait > 0:
        time.sleep(wait)


def _in_threads(actions: list[Callable[[], None]]) -> None:
    """Do all at once; an error of any is raised here."""
    errors: list[BaseException] = []

    def run(action: Callable[[], None]) -> None:
        try:
            action()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


# ---- the worker -----------------------------------------------------------------------------


def work(app: App) -> Answer:
    """Work until the ``stop_file`` exists, the parent is gone or ``enough`` handlers were called.

    The ``ready_file`` is made when the worker runs.
    """
    concurrency = app.options.get("concurrency", 100)
    cpu = time.process_time()
    if app.is_async:
        asyncio.run(_work_async(app, concurrency))
    else:
        _work_threads(app, concurrency)
    return {**app.recorder.answer(), "cpu_seconds": time.process_time() - cpu}


def _work_threads(app: App, concurrency: int) -> None:
    engine = create_engine(app.url, pool_size=concurrency + SPARE_CONNECTIONS, max_overflow=0)
    try:
        with Worker(app.jobs, engine, queues={QUEUE: concurrency}):
            _settle(app)
            for _ in _ticks(app):
                time.sleep(TICK)
    finally:
        engine.dispose()


async def _work_async(app: App, concurrency: int) -> None:
    url = app.url.set(drivername=f"postgresql+{app.driver}")
    engine = create_async_engine(url, pool_size=concurrency + SPARE_CONNECTIONS, max_overflow=0)
    try:
        async with AsyncWorker(app.jobs, engine, queues={QUEUE: concurrency}):
            await asyncio.to_thread(_settle, app)
            for _ in _ticks(app):
                await asyncio.sleep(TICK)
    finally:
        await engine.dispose()


def _settle(app: App) -> None:
    """Where latency is measured, wait until the worker says that it waits to be woken."""
    if not app.options.get("latency"):
        return
    row = app.jobs.WorkerRow
    query = select(row.listener_pid, row.waits_for).where(row.pid == os.getpid())
    give_up_at = time.monotonic() + SETTLE
    with app.engine() as engine:
        while time.monotonic() < give_up_at:
            with engine.connect() as connection:
                found = connection.execute(query).all()
            if found and all(listener and QUEUE in waits for listener, waits in found):
                return
            time.sleep(TICK)


def _ticks(app: App) -> Iterator[None]:
    """One for each TICK in which to go on; samples what the process uses."""
    parent = os.getppid()
    enough = app.options.get("enough")
    Path(app.options["ready_file"]).touch()
    sample_at = 0.0
    while not os.path.exists(app.options["stop_file"]):  # noqa: PTH110 - fifty times a second
        if os.getppid() != parent or (enough is not None and app.recorder.count >= enough):
            return
        if time.monotonic() >= sample_at:
            app.recorder.sample()
            sample_at = time.monotonic() + SAMPLE_EVERY
        yield
    app.recorder.sample()


# ---- yardsticks -----------------------------------------------------------------------------


def by_hand(app: App) -> Answer:
    """What a handler with ``ctx.session`` costs when it is written by hand.

    Jobs are claimed in batches, which is not measured; then for each a Session, the INSERT of its
    row, the DELETE of the job that names the lease, and the COMMIT.
    """
    worker_id = new_worker_id()
    done, seconds = 0, 0.0
    with app.engine(2) as engine, engine.connect() as claims:
        while batch := _claimed(app, claims, worker_id):
            began = time.monotonic()
            for job in batch:
                with Session(engine) as session, session.begin():
                    session.execute(insert(app.effect), {"job_id": job.id})
                    session.execute(_fenced(app, job, worker_id))
            seconds += time.monotonic() - began
            done += len(batch)
    return {"jobs": done, "seconds": seconds}


def _claimed(app: App, connection: Connection, worker_id: int) -> list[ClaimedJob]:
    with connection.begin():
        return lifecycle.claim(
            connection, app.statements, queue=QUEUE, limit=CLAIM_BATCH, worker_id=worker_id
        )


def _fenced(app: App, job: ClaimedJob, worker_id: int) -> Executable:
    c = app.job.c
    return delete(app.job).where(c.id == job.id, c.lease == job.lease, c.claimed_by == worker_id)


def raw(app: App) -> Answer:
    """The limit of the design: its statements on the bare driver, without worker or handlers."""
    worker_id = new_worker_id()
    claim, claim_values = _compiled(app.statements.claim_onward)
    complete, complete_values = _compiled(app.statements.complete(False))
    dsn = app.url.set(drivername="postgresql").render_as_string(hide_password=False)
    done, at, last_id = 0, EARLIEST, ""
    with psycopg.connect(dsn) as connection:
        connection.execute("SELECT 1")
        connection.commit()
        began = time.monotonic()
        while True:
            given = parameters(
                queue=QUEUE,
                limit=RAW_BATCH,
                worker=worker_id,
                priority=[0],
                at=[at],
                id=[last_id],
            )
            rows = connection.execute(claim, {**claim_values, **given}).fetchall()
            connection.commit()
            if not rows:
                break
            # Columns as the claim returns them: 0 is the id, 6 the lease, 9 next_run_at.
            at, last_id = max((row[9], row[0]) for row in rows)
            rows.sort(key=lambda row: str(row[0]))
            given = parameters(
                worker=worker_id,
                ids=[row[0] for row in rows],
                leases=[row[6] for row in rows],
            )
            connection.execute(complete, {**complete_values, **given}).fetchall()
            connection.commit()
            done += len(rows)
        ended = time.monotonic()
    return {"jobs": done - remaining(app)["remaining"], "seconds": ended - began}


def _compiled(statement: Executable) -> tuple[Any, dict[str, Any]]:
    """A statement as the driver takes it, and the values that it brings along."""
    make: Any = PGDialect_psycopg
    compiled: Any = statement.compile(dialect=make())  # type: ignore[attr-defined]
    return str(compiled), dict(compiled.params)


def poll(app: App) -> Answer:
    """The pages that each statement of a poll reads, by the server's own count."""
    statements = app.statements
    found: dict[str, int] = {}
    with (
        app.engine() as engine,
        engine.connect() as connection,
        connection.begin() as transaction,
    ):
        given = parameters(queue=QUEUE)
        priorities = connection.execute(statements.lanes, given).scalars().all()
        lanes = {
            "priority": list(priorities),
            "at": [None] * len(priorities),
            "id": [""] * len(priorities),
        }
        given = parameters(
            queue=QUEUE,
            limit=RAW_BATCH,
            worker=new_worker_id(),
            priorities=list(priorities),
            **lanes,
        )
        for name in ("claim", "lanes", "next_due", "claim_onward"):
            text, values = _compiled(getattr(statements, name))
            plan = connection.exec_driver_sql(
                f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {text}",
                {key: given.get(key, value) for key, value in values.items()},
            ).scalar_one()[0]["Plan"]
            found[name] = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
        transaction.rollback()
    return {"buffers": found}


COMMANDS: Final[Mapping[str, Callable[[App], Answer]]] = {
    "install": install,
    "enqueue": enqueue_one_by_one,
    "bulk": bulk,
    "fill": fill,
    "pulse": pulse,
    "stream": stream,
    "work": work,
    "by_hand": by_hand,
    "raw": raw,
    "poll": poll,
    "remaining": remaining,
}


def main() -> None:
    """Run the command of the command line and print its answer."""
    name, dsn, *rest = sys.argv[1:]
    options: Options = json.loads(rest[0]) if rest else {}
    # Only the answer goes to stdout.
    answers, sys.stdout = sys.stdout, sys.stderr
    answer = COMMANDS[name](App(dsn, options))
    print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
