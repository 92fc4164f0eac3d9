"""What features cost that not every job uses: ``python -m benchmarks features``.

Each is measured beside the same work without it, in this process: Session and Worker on psycopg.
"""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Generator  # noqa: TC003 - the queue reads the annotation
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any, Final, TypedDict

import click
from sqlalchemy import MetaData, create_engine
from sqlalchemy.orm import Session

from benchmarks.report import origin_lines
from benchmarks.server import new_database, running_server
from sqlalchemy_bgjob import BGJob, Observer, Queue, Unique, Worker, enqueue, enqueue_many
from sqlalchemy_bgjob._bench.command import harness_engine, origin
from sqlalchemy_bgjob._bench.machine import server_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from sqlalchemy import Engine

    from sqlalchemy_bgjob import Context, FinishedRun, JobInfo

SLOTS: Final = 10
BULK: Final = 5_000
"""Jobs of each call of enqueue_many, as few as are never sent by COPY with a unique key."""


class App:
    """A queue of its own, with a handler that only counts its calls."""

    def __init__(self, **options: Any) -> None:
        self.jobs = BGJob(MetaData(), **options)
        self.calls = count(1)
        self.first = self.last = 0.0
        self.wanted = 0
        self.done = threading.Event()
        self.handler = self.jobs.handler("bench")(self._count)

    def _count(self, ctx: Context[Session], n: int) -> None:
        now = time.perf_counter()
        calls = next(self.calls)
        if calls == 1:
            self.first = now
        self.last = now
        if calls == self.wanted:
            self.done.set()


class Watch(Observer):
    """Overrides one method, so that each completed job is told."""

    def job_completed(self, job: JobInfo, run: FinishedRun) -> None:
        """Do nothing."""


def _middleware(call: Callable[[], Any], ctx: Context[Any]) -> Any:
    return call()


class _Resources(TypedDict):
    mailer: object


@contextmanager
def _provider(ctx: Context[Any]) -> Generator[_Resources]:
    yield {"mailer": None}


def _wrapped() -> App:
    app = App()
    app.jobs.middleware(_middleware)
    return app


def _provided() -> App:
    app = App(provide=_provider)

    def takes(ctx: Context[Session], n: int, *, mailer: object) -> None:
        app._count(ctx, n)  # noqa: SLF001 - its own

    app.handler = app.jobs.handler("bench takes")(takes)
    return app


@dataclass(frozen=True)
class Feature:
    """One way to enqueue or to work, and the options that it takes.

    Attributes:
        name: What is used.
        app: Makes the queue.
        one: Options of each single enqueue, by the job's number.
        many: Options of each bulk enqueue.
        worker: Options of the worker.
    """

    name: str
    app: Callable[[], App] = App
    one: Callable[[int], dict[str, Any]] = lambda n: {}
    many: dict[str, Any] = field(default_factory=dict)
    worker: dict[str, Any] = field(default_factory=dict)


ENQUEUES: Final = (
    Feature("nothing"),
    Feature(
        "unique key, scope live",
        one=lambda n: {"unique": f"k:{n}"},
        many={"unique": lambda n: f"k:{n}"},
    ),
    Feature(
        "unique key, scope queued",
        one=lambda n: {"unique": Unique(f"k:{n}", "queued")},
        many={"unique": lambda n: Unique(f"k:{n}", "queued")},
    ),
    Feature(
        "unique key, for a period",
        one=lambda n: {"unique": Unique(f"k:{n}", period=60)},
        many={"unique": lambda n: Unique(f"k:{n}", period=60)},
    ),
    Feature("expires=", one=lambda n: {"expires": 3600}, many={"expires": 3600}),
)
DRAINS: Final = (
    Feature("nothing"),
    Feature("unique key, scope live", many={"unique": lambda n: f"k:{n}"}),
    Feature("unique key, scope queued", many={"unique": lambda n: Unique(f"k:{n}", "queued")}),
    Feature("expires=", many={"expires": 3600}),
    Feature("a middleware", app=_wrapped),
    Feature("a resource of a provider", app=_provided),
    Feature("order by time", worker={"queues": {"default": Queue(SLOTS, order="time")}}),
    Feature("an observer", worker={"observers": [Watch()]}),
)


def enqueue_each(engine: Engine, feature: Feature, jobs: int) -> float:
    """Jobs a second, each with its own commit."""
    app = feature.app()
    with Session(engine) as session:
        begun = time.perf_counter()
        for n in range(jobs):
            enqueue(session, app.handler, n, **feature.one(n))
            session.commit()
        return jobs / (time.perf_counter() - begun)


def enqueue_together(engine: Engine, feature: Feature, jobs: int) -> float:
    """Jobs a second, in one transaction."""
    app = feature.app()
    with Session(engine) as session, session.begin():
        begun = time.perf_counter()
        for first in range(0, jobs, BULK):
            enqueue_many(session, app.handler, range(first, first + BULK), **feature.many)
        return jobs / (time.perf_counter() - begun)


def drain(engine: Engine, feature: Feature, jobs: int) -> float:
    """Jobs a second from the first call of a handler to the last."""
    app = feature.app()
    with Session(engine) as session, session.begin():
        enqueue_many(session, app.handler, range(jobs), **feature.many)
    app.wanted = jobs
    with Worker(app.jobs, engine, **{"queues": {"default": SLOTS}, **feature.worker}):
        if not app.done.wait(300):
            raise RuntimeError(f"{feature.name}: only {next(app.calls) - 1} of {jobs} jobs ran")
    return (jobs - 1) / (app.last - app.first)


PARTS: Final = (
    ("enqueue, a commit each", enqueue_each, ENQUEUES, 0.02),
    ("enqueue, in one transaction", enqueue_together, ENQUEUES, 1.0),
    ("drain", drain, DRAINS, 1.0),
)
"""What is done, with which features, and the share of the jobs."""


def run_features(*, jobs: int, rounds: int, out: Path | None, work_folder: Path) -> None:
    """Measure all of them in turn, print the medians, and write the JSON.

    Raises:
        CommandError: There is no server.
    """
    rates: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with running_server(work_folder) as server:
        url = new_database(server, "features").set(drivername="postgresql+psycopg")
        found = origin(server_settings(harness_engine(server)))
        for line in origin_lines(found):
            click.echo(line)
        engine = create_engine(url, pool_size=SLOTS + 5)
        models = App().jobs
        models.metadata.create_all(engine)
        for _ in range(rounds):
            for part, measure, features, share in PARTS:
                for feature in features:
                    number = max(BULK, round(jobs * share / BULK) * BULK)
                    if share < 1:
                        number = round(jobs * share)
                    rates[part][feature.name].append(measure(engine, feature, number))
                    with harness_engine(url).connect() as connection:
                        for table in reversed(models.metadata.sorted_tables):
                            connection.exec_driver_sql(f"TRUNCATE {table.name} CASCADE")
                        connection.exec_driver_sql("CHECKPOINT")
        engine.dispose()
    for line in lines(rates):
        click.echo(line)
    if out is not None:
        out.write_text(json.dumps({**found, "jobs": jobs, "rates": rates}, indent=2) + "\n")


def lines(rates: Mapping[str, Mapping[str, list[float]]]) -> Iterator[str]:
    """The medians, with the least and the most, and each as a share of the first one's."""
    for part, by_name in rates.items():
        yield f"\n{part}"
        first = statistics.median(next(iter(by_name.values())))
        for name, values in by_name.items():
            median = statistics.median(values)
            yield (
                f"  {name:<26} {median:>9,.0f} jobs/s  [{min(values):,.0f} .. {max(values):,.0f}]"
                f"  {median / first:.2f}"
            )
