"""Chancy, on psycopg.

The settings are those that the API reference has for ``AsyncExecutor``, ``Queue`` and ``Worker``:
the asyncio executor spares the overhead of processes and threads; the queue may run 1,000 jobs at
once, and ``eager_polling`` fetches more as jobs finish instead of waiting for the polling
interval; ``send_outgoing_interval``, how often results are written, is 0.1 s instead of 1 s. Of
the default plugins the three run that a queue needs: election, recovery and pruning; not those
for metrics and workflows. NOTIFY is on, also for latency. Producers use the synchronous methods,
which are faster than the asynchronous ones.
"""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from _common import Options, Recorder, at_once, main, one_by_one, paced, until_stopped
from chancy import Chancy, Job, Queue, Worker
from chancy.plugins.leadership import Leadership
from chancy.plugins.pruner import Pruner
from chancy.plugins.recovery import Recovery
from psycopg.rows import dict_row

CONCURRENCY, OUTGOING = 1000, 0.1
UNFINISHED = "FROM chancy_jobs WHERE state NOT IN ('succeeded', 'failed')"

recorder = Recorder()


async def noop(x: str | None = None, n: int | None = None) -> None:
    recorder.seen(n)


def make_app(dsn: str, connections: int = 1) -> Chancy:
    log = logging.getLogger("chancy")
    log.setLevel(logging.WARNING)
    return Chancy(
        dsn,
        plugins=[Leadership(), Recovery(), Pruner()],
        no_default_plugins=True,
        min_connection_pool_size=connections,
        max_connection_pool_size=connections,
        log=log,
    )


def make_job(value: dict[str, Any]) -> Job:
    return Job(func="peer_chancy.noop", kwargs=value)


@contextmanager
def producer(dsn: str) -> Iterator[Chancy]:
    with make_app(dsn) as app:
        with app.sync_pool.connection() as connection:
            connection.execute("SELECT 1")
        yield app


async def install(dsn: str, options: Options) -> dict[str, Any]:
    async with make_app(dsn, 2) as app:
        await app.migrate()
        await app.declare(
            Queue(
                name="default",
                executor=Chancy.Executor.Async,
                concurrency=CONCURRENCY,
                polling_interval=1,
                eager_polling=True,
            ),
            upsert=True,
        )
    return {
        "version": version("chancy"),
        "settings": (
            f"psycopg[binary]; asyncio executor, concurrency {CONCURRENCY}, eager"
            f" polling, results written each {OUTGOING} s, notifications,"
            " plugins Leadership, Recovery and Pruner; jobs pushed with sync_push()"
        ),
        "remaining_sql": f"SELECT EXISTS (SELECT 1 {UNFINISHED})",
        "clean_sql": ["TRUNCATE chancy_jobs"],
    }


async def enqueue(dsn: str, options: Options) -> dict[str, Any]:
    with producer(dsn) as app:

        async def send(value: dict[str, Any]) -> None:
            app.sync_push(make_job(value))

        return await one_by_one(options, send)


async def bulk(dsn: str, options: Options) -> dict[str, Any]:
    with producer(dsn) as app:

        async def send(values: list[dict[str, Any]]) -> None:
            # sync_push_many() commits each batch; this leaves it to the caller.
            with (
                app.sync_pool.connection() as connection,
                connection.cursor(row_factory=dict_row) as cursor,
            ):
                app.sync_push_many_ex(cursor, [make_job(value) for value in values])

        return await at_once(options, send)


async def pulse(dsn: str, options: Options) -> dict[str, Any]:
    with producer(dsn) as app:

        async def send(value: dict[str, Any]) -> None:
            app.sync_push(make_job(value))

        return await paced(options, send)


async def work(dsn: str, options: Options) -> dict[str, Any]:
    async with make_app(dsn, 10) as app:
        worker = Worker(app, register_signal_handlers=False)
        worker.send_outgoing_interval = OUTGOING
        await worker.start()
        await until_stopped(options)
        await asyncio.wait_for(worker.stop(), 60)
    return recorder.answer()


async def remaining(dsn: str, options: Options) -> dict[str, Any]:
    with producer(dsn) as app, app.sync_pool.connection() as connection:
        row = connection.execute(f"SELECT count(*) {UNFINISHED}").fetchone()
        return {"remaining": row[0]}


if __name__ == "__main__":
    # The worker imports the handler by its module's name, so the module must have one.
    import peer_chancy as this

    logging.basicConfig(level=logging.WARNING)
    main(
        install=this.install,
        enqueue=this.enqueue,
        bulk=this.bulk,
        work=this.work,
        pulse=this.pulse,
        remaining=this.remaining,
    )
