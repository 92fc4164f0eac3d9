"""The producers of the benchmark, each a command of ``_bench.app``."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Engine
from sqlalchemy.orm import Session
from sqlalchemy.schema import CreateSchema

from .._enqueue.many import enqueue_many
from .._enqueue.one import enqueue
from .._version import __version__
from .jobs import Answer, App

Ways = Mapping[str, Callable[[App, Engine, int], None]]


def install(app: App) -> Answer:
    """Make the schema and the tables."""
    with app.engine() as engine:
        with engine.begin() as connection:
            if app.schema is not None:
                connection.execute(CreateSchema(app.schema, if_not_exists=True))
            app.metadata.create_all(connection)
        vacuum(app, engine)
    tables = [table.fullname for table in app.metadata.sorted_tables]
    return {
        "version": __version__,
        "settings": f"AsyncWorker on {app.driver}, Worker on psycopg; concurrency 100",
        "remaining_sql": f"SELECT EXISTS (SELECT 1 FROM {app.job.fullname})",  # noqa: S608 - our own
        "clean_sql": [f"TRUNCATE {', '.join(tables)}"]
        + [f"VACUUM ANALYZE {table}" for table in tables],
    }


def vacuum(app: App, engine: Engine) -> None:
    """Vacuum and analyze the tables."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for table in app.metadata.sorted_tables:
            connection.exec_driver_sql(f"VACUUM ANALYZE {table.fullname}")


def value_of(app: App) -> dict[str, Any]:
    """An arg whose JSON has ``arg_bytes`` bytes."""
    return {"x": "a" * (int(app.options.get("arg_bytes", 20)) - len('{"x":""}'))}


def _through_session(app: App, engine: Engine, jobs: int) -> None:
    value = value_of(app)
    with Session(engine) as session:
        for _ in range(jobs):
            with session.begin():
                enqueue(session, app.handler, value)


def _through_connection(app: App, engine: Engine, jobs: int) -> None:
    value = value_of(app)
    with engine.connect() as connection:
        for _ in range(jobs):
            with connection.begin():
                enqueue(connection, app.handler, value)


WAYS: Final[Ways] = {
    "session": _through_session,
    "connection": _through_connection,
}


def enqueue_one_by_one(app: App, ways: Ways = WAYS) -> Answer:
    """Enqueue job by job, each with its COMMIT; ``through`` picks one of the *ways*."""
    jobs = app.options["jobs"]
    send = ways[app.options.get("through", "session")]
    with app.engine() as engine:
        began = time.monotonic()
        send(app, engine, jobs)
        ended = time.monotonic()
    return {"seconds": ended - began, "jobs": jobs}


def bulk(app: App) -> Answer:
    """Enqueue many jobs in one transaction; making the list of args is not measured."""
    return enqueue_all(app, [value_of(app) for _ in range(app.options["jobs"])])


def enqueue_all(app: App, values: Sequence[dict[str, Any]]) -> Answer:
    """Enqueue a job for each value, in one transaction."""
    with app.engine() as engine:
        began = time.monotonic()
        with Session(engine) as session, session.begin():
            enqueue_many(session, app.handler, values)
        ended = time.monotonic()
    return {"seconds": ended - began, "jobs": len(values), "ended": ended}


def pulse(app: App) -> Answer:
    """Enqueue a job every ``interval`` seconds, without drift, in each queue in turn."""
    sent = []
    queues = app.queues
    with app.engine() as engine, Session(engine) as session:
        started = time.monotonic()
        for number in range(app.options["jobs"]):
            sleep_until(started + number * app.options.get("interval", 0.05))
            before = time.monotonic()
            with session.begin():
                enqueue(session, app.handler, {"n": number}, queue=queues[number % len(queues)])
            sent.append([number, before, time.monotonic()])
    return {"sent": sent}


def sleep_until(moment: float) -> None:
    """Sleep until a time of ``time.monotonic()``."""
    wait = moment - time.monotonic()
    if wait > 0:
        time.sleep(wait)
