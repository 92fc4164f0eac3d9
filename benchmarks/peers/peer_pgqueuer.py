"""PgQueuer, on asyncpg.

Its own benchmark page finds asyncpg 1.7 times as fast as psycopg. "Performance Tuning"
(docs/guides/performance-tuning.md) says: a direct connection for the worker, no pool;
``pgq autovac`` after the installation; a larger ``batch_size`` for short jobs. The tables keep
the default durability, because the faster levels lose jobs when the server crashes. The event
loop is uvloop, as ``pgq run`` has it. For latency the batch size is the default, 10; new jobs
wake the worker through NOTIFY either way.
"""

import asyncio
import json
from importlib.metadata import version
from typing import Any

import asyncpg
import uvloop
from _common import (
    Options,
    Recorder,
    at_once,
    encode,
    main,
    names,
    one_by_one,
    paced_over,
    until_stopped,
)
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries

THROUGHPUT_BATCH, LATENCY_BATCH = 1000, 10


async def connect(dsn: str) -> asyncpg.Connection:
    connection = await asyncpg.connect(dsn)
    await connection.execute("SELECT 1")
    return connection


async def queries(dsn: str) -> Queries:
    return Queries(AsyncpgDriver(await connect(dsn)))


async def install(dsn: str, options: Options) -> dict[str, Any]:
    schema = await queries(dsn)
    await schema.install()
    await schema.optimize_autovacuum()
    return {
        "version": version("pgqueuer"),
        "settings": (
            f"asyncpg, uvloop, one connection; batch_size {THROUGHPUT_BATCH}"
            f" ({LATENCY_BATCH} for latency); durable tables; pgq autovac"
        ),
        "remaining_sql": "SELECT EXISTS (SELECT 1 FROM pgqueuer)",
        "clean_sql": ["TRUNCATE pgqueuer, pgqueuer_log, pgqueuer_statistics"],
    }


async def enqueue(dsn: str, options: Options) -> dict[str, Any]:
    queue = await queries(dsn)
    return await one_by_one(options, lambda value: queue.enqueue("noop", encode(value)))


async def bulk(dsn: str, options: Options) -> dict[str, Any]:
    queue = await queries(dsn)

    async def send(values: list[dict[str, Any]]) -> None:
        count = len(values)
        await queue.enqueue(["noop"] * count, [encode(value) for value in values], [0] * count)

    return await at_once(options, send)


async def pulse(dsn: str, options: Options) -> dict[str, Any]:
    queue = await queries(dsn)
    return await paced_over(options, lambda name, value: queue.enqueue(name, encode(value)))


async def work(dsn: str, options: Options) -> dict[str, Any]:
    recorder = Recorder()
    pgq = PgQueuer(AsyncpgDriver(await connect(dsn)))

    async def numbered(job: Job) -> None:
        recorder.seen(json.loads(job.payload or b"{}").get("n"))

    async def noop(job: Job) -> None:
        recorder.seen()

    for name in names(options):
        pgq.entrypoint(name)(numbered if options.get("latency") else noop)
    batch_size = LATENCY_BATCH if options.get("latency") else THROUGHPUT_BATCH
    running = asyncio.create_task(pgq.run(batch_size=batch_size))
    await until_stopped(options)
    pgq.shutdown.set()
    await running
    return recorder.answer()


async def remaining(dsn: str, options: Options) -> dict[str, Any]:
    connection = await connect(dsn)
    return {"remaining": await connection.fetchval("SELECT count(*) FROM pgqueuer")}


if __name__ == "__main__":
    uvloop.install()
    main(install=install, enqueue=enqueue, bulk=bulk, work=work, pulse=pulse, remaining=remaining)
