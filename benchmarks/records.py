"""What records and counts cost: ``python -m benchmarks records``.

The same jobs are drained by one AsyncWorker whose queue keeps nothing, counts, or keeps a record of
each job too. The variants take turns within a round, and each round begins with another one. CPU
is that of the worker's process and of the server: it varies less than the rate on a machine that
others use.
"""

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, Final

from sqlalchemy import URL, Engine, MetaData, create_engine, select
from sqlalchemy.ext.asyncio import create_async_engine

from benchmarks.server import new_database, running_server
from benchmarks.server_cpu import server_cpu
from sqlalchemy_bgjob import AsyncWorker, BGJob, Complete, Context, enqueue_many

CONCURRENCY: Final = 100
VARIANTS: Final[dict[str, tuple[dict[str, Any], dict[str, Any], bool]]] = {
    "nothing": ({}, {}, False),
    "counts": ({"records": True}, {}, False),
    "records": ({"records": True}, {"record": 86_400}, False),
    "records with results": ({"records": True}, {"record": 86_400}, True),
}
"""By name: options of the BGJob and of the handler, and whether it gives a result."""


class Variant:
    """One set of tables, and a handler that does nothing else."""

    def __init__(self, number: int, name: str) -> None:
        of_queue, of_handler, gives = VARIANTS[name]
        self.name = name
        self.jobs: BGJob[Any, Any] = BGJob(MetaData(), table_prefix=f"v{number}_", **of_queue)

        async def handler(ctx: Context[Any], arg: int) -> Complete[Any] | None:
            return Complete({"n": arg}) if gives else None

        self.handler = self.jobs.handler("bench", **of_handler)(handler)

    def drain(self, engine: Engine, url: URL, count: int) -> tuple[float, float]:
        """Drain so many jobs: seconds, and CPU seconds of the worker and the server together.

        Without the worker's start and end.
        """
        enqueue_many(engine, self.handler, range(count))
        return asyncio.run(self._work(engine, url))

    async def _work(self, engine: Engine, url: URL) -> tuple[float, float]:
        made = create_async_engine(url.set(drivername="postgresql+asyncpg"), pool_size=CONCURRENCY)
        left = select(self.jobs.models.job.c.id).limit(1)

        def is_left() -> bool:
            with engine.connect() as connection:
                return connection.execute(left).first() is not None

        async with AsyncWorker(self.jobs, made, queues={"default": CONCURRENCY}):
            begun, cpu = time.monotonic(), _cpu(engine)
            while await asyncio.to_thread(is_left):  # noqa: ASYNC110 - the database knows
                await asyncio.sleep(0.05)
            took = time.monotonic() - begun, _cpu(engine) - cpu
        await made.dispose()
        return took


def _cpu(engine: Engine) -> float:
    return time.process_time() + (server_cpu(engine) or 0.0)


def measure(
    url: URL, names: Iterable[str], jobs: int, rounds: int, say: Callable[[str], None]
) -> None:
    """Measure all variants, and tell the medians."""
    engine = create_engine(url.set(drivername="postgresql+psycopg"))
    variants = [Variant(number, name) for number, name in enumerate(names)]
    for variant in variants:
        variant.jobs.metadata.create_all(engine)
        variant.drain(engine, url, jobs // 10)
    figures: dict[str, list[tuple[float, float]]] = {it.name: [] for it in variants}
    for turn in _turns(variants, rounds):
        figures[turn.name].append(turn.drain(engine, url, jobs))
    engine.dispose()
    say(f"jobs {jobs:,}, rounds {rounds}, {os.cpu_count()} cores; medians, and CPU per job")
    base = 0.0
    for name, drains in figures.items():
        rate = jobs / median(took for took, _ in drains)
        cpus = sorted(cpu / jobs * 1e6 for _, cpu in drains)
        cpu = median(cpus)
        base = base or cpu
        say(
            f"{name:22}{rate:9,.0f} jobs/s{cpu:8.1f} µs, {cpu / base - 1:+7.1%}"
            f"   ({cpus[0]:.1f} to {cpus[-1]:.1f} µs)"
        )


def _turns(variants: list[Variant], rounds: int) -> Iterator[Variant]:
    for number in range(rounds):
        first = number % len(variants)
        yield from variants[first:] + variants[:first]


def run_records(
    names: Iterable[str], *, jobs: int, rounds: int, work_folder: Path, say: Callable[[str], None]
) -> None:
    """Measure on a server of its own."""
    with running_server(work_folder) as server:
        measure(new_database(server, "records"), names, jobs, rounds, say)
