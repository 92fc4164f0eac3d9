"""How long each page of the dashboard takes the server, over tables that are full."""

import asyncio
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import httpx
from sqlalchemy import Connection, Engine, MetaData, create_engine, event, text

from sqlalchemy_bgjob import BGJob
from sqlalchemy_bgjob._dev.embedded import EmbeddedPostgres
from sqlalchemy_bgjob._sql import statements_of
from sqlalchemy_bgjob._web import operations, trends
from sqlalchemy_bgjob._web.app import application
from sqlalchemy_bgjob._web.database import Database
from sqlalchemy_bgjob._web.redaction import SECRETS, Redaction
from sqlalchemy_bgjob._web.visit import Site

ANEW = "#anew"
"""How a page is marked that is measured without sums of counts which the dashboard remembers."""
LARGE = "batch-999999999"
"""The id of a batch with a quarter of all jobs; 25 others have a hundredth each."""
PAGES = (
    "",
    "?range=24h",
    "?range=24h#anew",
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
    "job?id=ended-500",
    "history",
    "history?type=sync",
    "batches",
    "batches?state=unfinished",
    "batches?after=batch-000000500",
    f"batch?id={LARGE}",
    f"jobs?q=batch:{LARGE}",
    f"dead?q=batch:{LARGE}",
    "queues",
    "workers",
    "schedules",
    "handlers",
    "audit",
    "audit?who=nobody",
    "system",
    "confirm?action=redrive&whole=1&q=type:sync",
)


WORKERS, TYPES, OUTCOMES = 10, 4, 2
"""How many rows of counts there are for each minute of the last day."""


@dataclass
class Took:
    """The medians of a page, in seconds: in all, within statements, and of this process's CPU."""

    all: float
    database: float
    cpu: float


def run_dashboard(jobs: int, queues: int, dead: int, ended: int, times: int) -> Iterator[str]:
    """Fill the tables, and tell the median milliseconds of each page, line by line."""
    # What is shown again for some seconds is asked anew each time.
    operations.CHECKED_FOR = 0.0  # type: ignore[misc]
    trends.RANGES.update({name: replace(one, kept=0.0) for name, one in trends.RANGES.items()})
    with EmbeddedPostgres.start() as server:
        engine = create_engine(server.url)
        queue = BGJob(MetaData(), records=True)
        queue.metadata.create_all(engine)
        _fill(engine, jobs, queues, dead, ended)
        yield (
            f"{jobs:,} jobs in {queues:,} queues, {dead:,} dead jobs, {ended:,} records, batches "
            f"and actions, a day of {WORKERS * TYPES * OUTCOMES} counts a minute; "
            f"median of {times}"
        )
        yield "      all  database       CPU"
        for page, took in asyncio.run(_took(engine, queue, times)).items():
            numbers = (took.all, took.database, took.cpu)
            yield "".join(f"{one * 1_000:7.1f} ms" for one in numbers) + f"  /{page}"
        engine.dispose()


async def _took(engine: Engine, queue: BGJob, times: int) -> dict[str, Took]:
    site = Site(
        jobs=queue,
        statements=statements_of(queue.models),
        database=Database(engine),
        redaction=Redaction(SECRETS),
        environment=None,
        live=True,
        is_bare=False,
    )
    app: Any = application(site, "all")
    spent = _Statements(engine)
    found: dict[str, Took] = {}
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop.example/") as client:
        for page in PAGES:
            rows: list[tuple[float, float, float]] = []
            for _ in range(times):
                if page.endswith(ANEW):
                    site.counted.clear()
                spent.seconds, began, cpu = 0.0, time.perf_counter(), time.process_time()
                answer = await client.get(page)
                done = time.perf_counter() - began, spent.seconds, time.process_time() - cpu
                rows.append(done)
                answer.raise_for_status()
            found[page] = Took(*(statistics.median(column) for column in zip(*rows, strict=True)))
    return found


class _Statements:
    """Adds up how long an engine's statements take."""

    def __init__(self, engine: Engine) -> None:
        self.seconds = 0.0
        event.listen(engine, "before_cursor_execute", self._begin)
        event.listen(engine, "after_cursor_execute", self._end)

    def _begin(self, *given: Any) -> None:
        self._began = time.perf_counter()

    def _end(self, *given: Any) -> None:
        self.seconds += time.perf_counter() - self._began


def _fill(engine: Engine, jobs: int, queues: int, dead: int, ended: int) -> None:
    with engine.begin() as connection:
        given = {"count": jobs, "half": jobs // 2, "queues": queues, "large": LARGE}
        connection.execute(_JOBS, given)
        connection.execute(text("UPDATE bgjob_job SET claimed_by = 77 WHERE id < 'job-000000100'"))
        connection.execute(_DEAD, {"count": dead, "large": LARGE})
        connection.execute(_RECORDS, {"count": ended})
        connection.execute(_AUDIT, {"count": ended})
        connection.execute(_BATCHES, {"count": ended})
        kinds = {"workers": WORKERS, "types": TYPES, "outcomes": OUTCOMES}
        connection.execute(_MINUTES, kinds)
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


_BATCH = """
    CASE n % 4 WHEN 0 THEN CAST(:large AS text)
               WHEN 1 THEN 'batch-9999998' || lpad(CAST(n / 4 % 25 AS text), 2, '0')
    END
"""
# Three priorities in each queue; half of the jobs are due.
_JOBS = text(
    f"""
    INSERT INTO bgjob_job (id, queue, type, arg, priority, next_run_at, last_error, attempt,
                           batch_id)
    SELECT 'job-' || lpad(CAST(n AS text), 9, '0'),
           coalesce((ARRAY['mail', 'images', 'default', 'reports'])[1 + n % :queues],
                    'queue-' || n % :queues),
           (ARRAY['send_receipt', 'resize', 'sync', 'report'])[1 + n % 4],
           convert_to(CAST(jsonb_build_object('user', jsonb_build_object('id', n)) AS text),
                      'UTF8'),
           n / :queues % 3 * 5, now() + (n - :half) * interval '10 ms',
           CASE WHEN n % 50 = 0 THEN 'ConnectionError' || chr(58) || ' refused' END, n % 50 / 10,
           {_BATCH}
    FROM generate_series(1, :count) AS n
    """
)
_DEAD = text(
    f"""
    INSERT INTO bgjob_dead_job (id, job_id, queue, type, arg, lease, next_run_at, job_created_at,
                                job_updated_at, moved_at, last_error, attempt, batch_id)
    SELECT 'dead-' || n, 'order-' || n, 'mail',
           (ARRAY['send_receipt', 'resize', 'sync'])[1 + n % 3],
           convert_to(CAST(jsonb_build_object('user', jsonb_build_object('id', n)) AS text),
                      'UTF8'),
           1, now(), now(), now(), now() - n * interval '1 s',
           (ARRAY['ConnectionError', 'KeyError', 'ValueError'])[1 + n % 3], 20, {_BATCH}
    FROM generate_series(1, :count) AS n
    """
)
_RECORDS = text(
    """
    INSERT INTO bgjob_record (job_id, queue, type, state, attempt, lease, result, enqueued_at,
                              due_at, started_at, ended_at, keep_until)
    SELECT 'ended-' || n, 'mail', (ARRAY['send_receipt', 'resize', 'sync'])[1 + n % 3],
           'completed', 1, n, convert_to('{"ok": true}', 'UTF8'), now(), now(), now(),
           now() - n * interval '100 ms', now() + interval '7 days'
    FROM generate_series(1, :count) AS n
    """
)
_AUDIT = text(
    """
    INSERT INTO bgjob_audit (at, id, who, origin, verb, changed, details)
    SELECT now() - n * interval '1 s', n, (ARRAY['ada', 'grace'])[1 + n % 2], 'dashboard',
           (ARRAY['run', 'cancel', 'redrive'])[1 + n % 3], 1, '{"ids": ["order-5"]}'
    FROM generate_series(1, :count) AS n
    """
)
_BATCHES = text(
    """
    INSERT INTO bgjob_batch (id, total, closed_at, finished_at, then_type, then_queue)
    SELECT 'batch-' || lpad(CAST(n AS text), 9, '0'), 100, now(),
           CASE WHEN n % 1000 > 0 THEN now() END, 'report', 'reports'
    FROM generate_series(1, :count) AS n
    UNION ALL
    SELECT DISTINCT batch_id, 1000000, now(), CAST(NULL AS timestamptz), 'report', 'reports'
    FROM bgjob_job WHERE batch_id IS NOT NULL
    """
)
_MINUTES = text(
    """
    INSERT INTO bgjob_minute (at, worker, queue, type, outcome, n, waits, runs, waited, ran)
    SELECT now() - minute * interval '1 minute' - worker * interval '3 s', worker,
           (ARRAY['mail', 'images', 'default', 'reports'])[type],
           (ARRAY['send_receipt', 'resize', 'sync', 'report'])[type],
           (ARRAY['completed', 'retry'])[outcome], 1000,
           array_fill(CAST(50 AS bigint), ARRAY[20]), array_fill(CAST(50 AS bigint), ARRAY[20]),
           10.0, 10.0
    FROM generate_series(0, 1439) AS minute, generate_series(1, :workers) AS worker,
         generate_series(1, :types) AS type, generate_series(1, :outcomes) AS outcome
    """
)
