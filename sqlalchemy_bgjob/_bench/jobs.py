"""The jobs of the benchmark: their tables, their handlers, and what the handlers note."""

import asyncio
import os
import resource
import sys
import time
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    BigInteger,
    Column,
    Engine,
    Identity,
    MetaData,
    Table,
    Text,
    create_engine,
    insert,
    make_url,
)

from .._sql import statements_of
from .._worker.run import Context
from ..bgjob import BGJob

if TYPE_CHECKING:
    from .._handlers.registry import JobType

MARK_EVERY: Final = 500
"""Every how many handler calls the time is kept."""
QUEUE: Final = "default"

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
