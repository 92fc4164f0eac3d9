"""Procrastinate, on psycopg.

Of the worker's options (``App.run_worker_async()`` in the API reference) only ``concurrency`` is
about throughput: 100 jobs at once in one process, which fetches them one by one. Its pool has 10
connections; psycopg's default of 4 and 20 measured the same. ``delete_jobs="always"`` ("Delete
finished jobs", docs/howto/production/delete_finished_jobs.md) keeps the table small.
``listen_notify`` is on by default, also for latency. Producers use the synchronous connector
(docs/howto/advanced/sync_defer.md), which is faster than the asynchronous one, and
``batch_defer()`` (docs/howto/basics/batch_defer.md) for many jobs.
"""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from _common import Options, Recorder, at_once, main, names, one_by_one, paced_over, until_stopped
from procrastinate import App, PsycopgConnector, SyncPsycopgConnector
from procrastinate.connector import BaseConnector

CONCURRENCY, POOL = 100, 10
UNFINISHED = "FROM procrastinate_jobs WHERE status IN ('todo', 'doing')"


def make_app(connector: BaseConnector, recorder: Recorder | None = None) -> App:
    app = App(connector=connector)

    @app.task(name="noop")
    async def noop(x: str | None = None, n: int | None = None) -> None:
        if recorder is not None:
            recorder.seen(n)

    return app


@contextmanager
def producer(dsn: str) -> Iterator[App]:
    app = make_app(SyncPsycopgConnector(conninfo=dsn, min_size=1, max_size=1))
    with app.open():
        app.connector.execute_query_one("SELECT 1 AS one")
        yield app


async def install(dsn: str, options: Options) -> dict[str, Any]:
    with producer(dsn) as app:
        app.schema_manager.apply_schema()
    return {
        "version": version("procrastinate"),
        "settings": (
            f"psycopg[binary]; concurrency {CONCURRENCY}, a pool of {POOL}, delete_jobs=always,"
            " listen_notify; jobs deferred through SyncPsycopgConnector"
        ),
        "remaining_sql": f"SELECT EXISTS (SELECT 1 {UNFINISHED})",
        "clean_sql": ["TRUNCATE procrastinate_jobs, procrastinate_events CASCADE"],
    }


async def enqueue(dsn: str, options: Options) -> dict[str, Any]:
    with producer(dsn) as app:
        task = app.tasks["noop"]

        async def send(value: dict[str, Any]) -> None:
            task.defer(**value)

        return await one_by_one(options, send)


async def bulk(dsn: str, options: Options) -> dict[str, Any]:
    with producer(dsn) as app:
        task = app.tasks["noop"]

        async def send(values: list[dict[str, Any]]) -> None:
            task.batch_defer(*values)

        return await at_once(options, send)


async def pulse(dsn: str, options: Options) -> dict[str, Any]:
    with producer(dsn) as app:
        tasks = {name: app.tasks["noop"].configure(queue=name) for name in names(options)}

        async def send(name: str, value: dict[str, Any]) -> None:
            tasks[name].defer(**value)

        return await paced_over(options, send)


async def work(dsn: str, options: Options) -> dict[str, Any]:
    recorder = Recorder()
    connector = PsycopgConnector(conninfo=dsn, min_size=POOL, max_size=POOL)
    async with make_app(connector, recorder).open_async() as app:
        worker = asyncio.create_task(
            app.run_worker_async(
                queues=names(options) if "queues" in options else None,
                concurrency=CONCURRENCY,
                delete_jobs="always",
                listen_notify=True,
                install_signal_handlers=False,
            )
        )
        await until_stopped(options)
        worker.cancel()
        await asyncio.wait([worker])
    return recorder.answer()


async def remaining(dsn: str, options: Options) -> dict[str, Any]:
    with producer(dsn) as app:
        row = app.connector.execute_query_one(f"SELECT count(*) AS left {UNFINISHED}")
        return {"remaining": row["left"]}


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    main(install=install, enqueue=enqueue, bulk=bulk, work=work, pulse=pulse, remaining=remaining)
