"""The jobs of the benchmark: their tables, their handler, and what it records."""

import os
import time
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Engine, MetaData, create_engine, make_url

from .._worker.run import Context
from ..bgjob import BGJob

if TYPE_CHECKING:
    from .._handlers.registry import JobType

MARK_EVERY: Final = 500
"""Number of handler calls from one recorded time to the next."""
QUEUE: Final = "default"

Options = Mapping[str, Any]
Answer = dict[str, Any]


class Recorder:
    """Records the handler calls of one worker. Small, as ``benchmarks`` measures memory too."""

    def __init__(self) -> None:
        self._calls = count(1)  # its next() is atomic between threads
        self.count = 0
        self.first: float | None = None
        self.last: float | None = None
        self._marks: list[tuple[int, float]] = []
        self._numbers, self._times = array("q"), array("d")
        self.samples: list[tuple[float, ...]] = []
        """Pairs of time and processor time, one for each sample."""

    def seen(self, number: int | None) -> None:
        """Record a handler's call; *number* is the job's, if its arg has one."""
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
        """Record the processor time of the process."""
        self.samples.append((time.monotonic(), time.process_time()))

    def answer(self) -> Answer:
        """The record as the harness reads it."""
        return {
            "count": next(self._calls) - 1,
            "first": self.first,
            "last": self.last,
            "marks": sorted(self._marks),
            "picked": list(zip(self._numbers, self._times, strict=True)),
            "samples": self.samples,
        }


class App:
    """The tables of one schema in one database, with a handler for their jobs."""

    recorder_class = Recorder

    def __init__(self, dsn: str, options: Options) -> None:
        dsn = os.environ["BGJOB_DATABASE_URL"] if dsn == "-" else dsn
        self.url = make_url(dsn).set(drivername="postgresql+psycopg")
        self.options = options
        self.schema: str | None = options.get("schema")
        self.metadata = MetaData(schema=self.schema)
        self.jobs = BGJob(self.metadata)
        self.job = self.jobs.models.job
        self.recorder = self.recorder_class()
        register: Any = self.jobs.handler("bench", queue=QUEUE, **self.handler_options)
        self.handler: JobType[dict[str, Any]] = register(self.function())

    @property
    def handler_options(self) -> dict[str, Any]:
        """What the handler is registered with."""
        return {}

    @property
    def driver(self) -> str:
        """The driver of AsyncWorker."""
        return str(self.options.get("driver", "asyncpg"))

    @property
    def queues(self) -> list[str]:
        """The default queue, or as many as the option ``queues`` says."""
        number = self.options.get("queues")
        return [QUEUE] if number is None else [f"{QUEUE}-{n}" for n in range(number)]

    @property
    def is_async(self) -> bool:
        """Whether the worker is an AsyncWorker."""
        return bool(self.options.get("kind", "async") == "async")

    @contextmanager
    def engine(self, pool_size: int = 1) -> Iterator[Engine]:
        """An engine for threads, with its first connection open."""
        engine = create_engine(self.url, pool_size=pool_size, max_overflow=0)
        with engine.connect() as connection:
            connection.exec_driver_sql("SELECT 1")
        try:
            yield engine
        finally:
            engine.dispose()

    def function(self) -> Callable[..., Any]:
        """The handler, which only records its call."""
        seen = self.recorder.seen

        def noop(ctx: Context[Any], arg: dict[str, Any]) -> None:
            seen(arg.get("n"))

        async def async_noop(ctx: Context[Any], arg: dict[str, Any]) -> None:
            seen(arg.get("n"))

        return async_noop if self.is_async else noop
