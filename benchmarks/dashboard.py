"""How long each page of the dashboard takes the server, over tables that are full."""

import asyncio
import json
import statistics
import time
from collections.abc import Iterator

import httpx
from sqlalchemy import Connection, Engine, MetaData, create_engine, text
from starlette.types import ASGIApp

from sqlalchemy_bgjob import BGJob
from sqlalchemy_bgjob._dev.embedded import EmbeddedPostgres
from sqlalchemy_bgjob.web import dashboard

PAGES = (
    "",
    "jobs",
    "jobs?q=state:due",
    "jobs?q=state:running",
    "jobs?q=state:scheduled",
    "jobs?q=state:retrying",
    "jobs?q=type:nothing",
    "jobs?q=arg.user.id:-1",
    "jobs?q=error:refused",
    "jobs?q=worker:77",
    "jobs?q=key:nothing",
    "dead",
    "dead?q=type:sync",
    "dead?q=arg.user.id:77",
    "job?id=job-000000999",
    "job?id=order-5",
    "queues",
    "workers",
    "schedules",
    "handlers",
    "system",
    "confirm?action=redrive&whole=1&q=type:sync",
)


def run_dashboard(jobs: int, dead: int, times: int) -> Iterator[str]:
    """Fill the tables, and tell the median milliseconds of each page, line by line."""
    with EmbeddedPostgres.start() as server:
        engine = create_engine(server.url)
        queue = BGJob(MetaData())
        queue.metadata.create_all(engine)
        _fill(engine, jobs, dead)
        yield f"{jobs:,} jobs, {dead:,} dead jobs; median of {times}"
        took = asyncio.run(_took(dashboard(queue, engine, access="all"), times))
        for page, seconds in took.items():
            yield f"{seconds * 1_000:8.1f} ms  /{page}"
        engine.dispose()


async def _took(app: ASGIApp, times: int) -> dict[str, float]:
    transport = httpx.ASGITransport(app)
    took: dict[str, float] = {}
    async with httpx.AsyncClient(transport=transport, base_url="http://shop.example/") as client:
        for page in PAGES:
            seconds: list[float] = []
            for _ in range(times):
                began = time.perf_counter()
                answer = await client.get(page)
                seconds.append(time.perf_counter() - began)
                answer.raise_for_status()
            took[page] = statistics.median(seconds)
    return took


def _fill(engine: Engine, jobs: int, dead: int) -> None:
    with engine.begin() as connection:
        connection.execute(_JOBS, {"count": jobs, "half": jobs // 2})
        connection.execute(text("UPDATE bgjob_job SET claimed_by = 77 WHERE id < 'job-000000100'"))
        connection.execute(_DEAD, {"count": dead})
        _add_worker(connection)
    with engine.connect() as connection:
        autocommit = connection.execution_options(isolation_level="AUTOCOMMIT")
        autocommit.execute(text("VACUUM ANALYZE"))


def _add_worker(connection: Connection) -> None:
    queues = json.dumps({"mail": 10, "images": 5})
    connection.execute(
        text(
            "INSERT INTO bgjob_worker (id, hostname, pid, version, queues, lease_timeout)"
            " VALUES (77, 'web-1', 1, '0', CAST(:queues AS jsonb), 1e9)"
        ),
        {"queues": queues},
    )


# Four queues with three priorities each; half of the jobs are due.
_JOBS = text(
    """
    INSERT INTO bgjob_job (id, queue, type, arg, priority, next_run_at, last_error, attempt)
    SELECT 'job-' || lpad(CAST(n AS text), 9, '0'),
           (ARRAY['mail', 'images', 'default', 'reports'])[1 + n % 4],
           (ARRAY['send_receipt', 'resize', 'sync', 'report'])[1 + n % 4],
           convert_to(CAST(jsonb_build_object('user', jsonb_build_object('id', n)) AS text),
                      'UTF8'),
           n % 3 * 5, now() + (n - :half) * interval '10 ms',
           CASE WHEN n % 50 = 0 THEN 'ConnectionError' || chr(58) || ' refused' END, n % 50 / 10
    FROM generate_series(1, :count) AS n
    """
)
_DEAD = text(
    """
    INSERT INTO bgjob_dead_job (id, job_id, queue, type, arg, lease, next_run_at, job_created_at,
                                job_updated_at, moved_at, last_error, attempt)
    SELECT 'dead-' || n, 'order-' || n, 'mail',
           (ARRAY['send_receipt', 'resize', 'sync'])[1 + n % 3],
           convert_to(CAST(jsonb_build_object('user', jsonb_build_object('id', n)) AS text),
                      'UTF8'),
           1, now(), now(), now(), now() - n * interval '1 s',
           (ARRAY['ConnectionError', 'KeyError', 'ValueError'])[1 + n % 3], 20
    FROM generate_series(1, :count) AS n
    """
)
