"""The producers of the benchmark, each a command of ``_bench.app``."""

import json
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import timedelta
from functools import partial
from itertools import count
from math import ceil
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, func, insert, literal, select
from sqlalchemy.orm import Session
from sqlalchemy.schema import CreateSchema

from .._db.targets import Unit, run_in
from .._drafts.ids import new_id
from .._enqueue.many import enqueue_many
from .._enqueue.one import enqueue
from .._sql.words import parameters
from .._version import __version__
from .jobs import QUEUE, Answer, App


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
    job = app.handler.draft(value, {})

    def write(unit: Unit) -> object:
        values = parameters(id=job.id, arg=job.arg, **job.common._asdict())
        return unit.execute(app.statements.enqueue.job(False), values).first()

    run_in(connection, app.jobs.models, write, call="enqueue")


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
    statement = app.statements.enqueue.from_query(numbers, notify=False, ignore_duplicates=False)
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
