"""Awa, through its Python package, whose engine is written in Rust.

The queue has 500 workers; "Benchmarking Notes" (docs/benchmarking.md) prefers one queue with
many workers to many queues, and a pool of at least ``queues * 4 + 20`` connections. Producers
use ``Client``, the synchronous client that the package has for them, and for many jobs
``enqueue_many_copy``, "for high-volume Python producers" (README). For latency the queue has the
default number of workers; NOTIFY is on either way. Storage is the queue storage that a new
installation gets when its first worker starts, so installing starts one.
"""

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import awa
from _common import Options, Recorder, at_once, main, one_by_one, paced, until_stopped, with_host

WORKERS, LATENCY_WORKERS, POOL = 500, 50, 24
# The view awa.jobs takes more than a minute for ten thousand finished jobs, so this asks the tables
# behind it: jobs that no worker has claimed are between the two sequences of their lane, and each
# claim ends in a closure.
UNCLAIMED = """
    SELECT coalesce(sum(
        awa.sequence_next_value(enqueued.seq_name) - awa.sequence_next_value(claimed.seq_name)
    ), 0)
    FROM awa.queue_enqueue_heads AS enqueued
    JOIN awa.queue_claim_heads AS claimed USING (queue, priority, enqueue_shard)
"""
CLAIMED = """
    (SELECT count(*) FROM awa.deferred_jobs)
    + (SELECT count(*) FROM awa.lease_claims)
    - (SELECT coalesce(sum(closed_count), 0) FROM awa.lease_claim_closure_batches)
    - (SELECT count(*) FROM awa.lease_claim_closures)
"""
# The second part counts rows, so it is asked only when the first says no.
REMAINING = f"SELECT CASE WHEN ({UNCLAIMED}) > 0 THEN true ELSE ({CLAIMED}) > 0 END"


@dataclass
class Noop:
    x: str | None = None
    n: int | None = None


def producer(dsn: str) -> awa.Client:
    client = awa.Client(with_host(dsn), 1)
    with client.transaction() as transaction:
        transaction.fetch_one("SELECT 1 AS one")
    return client


async def install(dsn: str, options: Options) -> dict[str, Any]:
    async with awa.AsyncClient(with_host(dsn), POOL) as client:
        await client.migrate()

        @client.task(Noop, kind="noop")
        async def noop(job: awa.Job) -> None:
            pass

        await client.start([("default", 1)])
        await client.shutdown()
    return {
        "version": version("awa-pg"),
        "settings": (
            f"{WORKERS} workers ({LATENCY_WORKERS} for latency), a pool of {POOL},"
            " queue storage, COPY for many jobs"
        ),
        "remaining_sql": " ".join(REMAINING.split()),
    }


async def enqueue(dsn: str, options: Options) -> dict[str, Any]:
    client = producer(dsn)

    async def send(value: dict[str, Any]) -> None:
        client.insert(value, kind="noop")

    return await one_by_one(options, send)


async def bulk(dsn: str, options: Options) -> dict[str, Any]:
    client = producer(dsn)

    async def send(values: list[dict[str, Any]]) -> None:
        client.enqueue_many_copy(values, kind="noop")

    return await at_once(options, send)


async def pulse(dsn: str, options: Options) -> dict[str, Any]:
    client = producer(dsn)

    async def send(value: dict[str, Any]) -> None:
        client.insert(value, kind="noop")

    return await paced(options, send)


async def work(dsn: str, options: Options) -> dict[str, Any]:
    recorder = Recorder()
    async with awa.AsyncClient(with_host(dsn), POOL) as client:

        @client.task(Noop, kind="noop")
        async def noop(job: awa.Job) -> None:
            recorder.seen(job.args.n)

        workers = LATENCY_WORKERS if options.get("latency") else WORKERS
        await client.start([("default", workers)])
        await until_stopped(options)
        await client.shutdown()
    return recorder.answer()


async def remaining(dsn: str, options: Options) -> dict[str, Any]:
    client = producer(dsn)
    with client.transaction() as transaction:
        row = transaction.fetch_one(f"SELECT (({UNCLAIMED}) + {CLAIMED})::bigint AS left")
        return {"remaining": row["left"]}


if __name__ == "__main__":
    main(install=install, enqueue=enqueue, bulk=bulk, work=work, pulse=pulse, remaining=remaining)
