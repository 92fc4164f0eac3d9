"""The producers that the comparison adds to those of ``bench``."""

import json
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from functools import partial
from itertools import count
from math import ceil
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, func, insert, literal, select
from sqlalchemy.orm import Session

from benchmarks.jobs import App
from sqlalchemy_bgjob import enqueue_many
from sqlalchemy_bgjob._bench import jobs
from sqlalchemy_bgjob._bench import producers as of_bench
from sqlalchemy_bgjob._bench.jobs import QUEUE, Answer
from sqlalchemy_bgjob._bench.producers import enqueue_all, sleep_until, vacuum, value_of
from sqlalchemy_bgjob._db.targets import Unit, run_in
from sqlalchemy_bgjob._drafts.ids import new_id
from sqlalchemy_bgjob._sql.words import parameters


def _by_hand_session(app: jobs.App, engine: Engine, jobs: int) -> None:
    row = _row_by_hand(app)
    with Session(engine) as session:
        for _ in range(jobs):
            with session.begin():
                session.execute(insert(app.job).values(id=new_id(), **row))


def _by_hand_connection(app: jobs.App, engine: Engine, jobs: int) -> None:
    row = _row_by_hand(app)
    with engine.connect() as connection:
        for _ in range(jobs):
            with connection.begin():
                connection.execute(insert(app.job).values(id=new_id(), **row))


def _row_by_hand(app: jobs.App) -> dict[str, Any]:
    arg = json.dumps(value_of(app), separators=(",", ":")).encode()
    return {"queue": QUEUE, "type": app.handler.type, "arg": arg}


WAYS: Final[of_bench.Ways] = {
    **of_bench.WAYS,
    "core-session": _by_hand_session,
    "core-connection": _by_hand_connection,
}


def together(app: App) -> Answer:
    """One committed job after the other from each of ``clients`` connections, from a signal on.

    The signal is the ``go_file``, so that several processes begin at once. With *notify* false no
    worker is woken.
    """
    clients = app.options["clients"]
    share = app.options["jobs"] // clients
    send = of_bench.WAYS["connection"] if app.options["notify"] else _silently
    with ExitStack() as stack:
        engines = [stack.enter_context(app.engine()) for _ in range(clients)]
        Path(app.options["ready_file"]).touch()
        while not Path(app.options["go_file"]).exists():
            time.sleep(0.001)
        began = time.monotonic()
        _in_threads([partial(send, app, engine, share) for engine in engines])
        ended = time.monotonic()
    return {"jobs": share * clients, "began": began, "ended": ended}


def _silently(app: App, engine: Engine, jobs: int) -> None:
    value = value_of(app)
    with engine.connect() as connection:
        for _ in range(jobs):
            with connection.begin():
                _enqueue_silently(app, connection, value)


def _enqueue_silently(app: App, connection: Connection, value: dict[str, Any]) -> None:
    """What enqueue() does, by the statement that wakes nobody."""
    job = app.handler.draft(value, None, {})

    def write(unit: Unit) -> object:
        values = parameters(id=job.id, arg=job.arg, **job.common._asdict())
        return unit.execute(app.statements.enqueue.job(False), values).first()

    run_in(connection, app.jobs.models, write, call="enqueue")


def mixed(app: App) -> Answer:
    """All in one transaction; every ``slow_every``-th takes ``slow`` seconds, the others 1 ms."""
    every, slow = app.options["slow_every"], app.options["slow"]
    numbers = range(app.options["jobs"])
    return enqueue_all(app, [{"n": n, "s": 0.001 if n % every else slow} for n in numbers])


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
        vacuum(app, engine)
    return {"jobs": app.options["jobs"]}


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
                sleep_until(started + number * interval)
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
