"""A dashboard over a queue that has something of everything, served on a port of this machine."""

from __future__ import annotations

import json
import random
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
import uvicorn
from anyio.from_thread import start_blocking_portal
from sqlalchemy import Connection, Engine, MetaData, insert, select, update
from starlette.applications import Starlette
from starlette.routing import Mount

from sqlalchemy_bgjob import BGJob, Context, enqueue, enqueue_many
from sqlalchemy_bgjob._lifecycle.fire import keep_code
from sqlalchemy_bgjob._sql import statements_of
from sqlalchemy_bgjob.web import dashboard
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

T = TypeVar("T")


@dataclass
class Receipt:
    order_id: int
    to: str
    api_token: str = ""


def make_jobs() -> BGJob:
    """Four handlers and two schedules; records are kept, and runs counted."""
    jobs = BGJob(MetaData(), records=True)

    @jobs.handler("send_receipt", queue="mail", timeout=30)
    def send_receipt(ctx: Context, receipt: Receipt) -> None:
        """Mail the receipt of a paid order.

        It is safe to send one twice: the mail has the order's number as its Message-ID.
        """

    @jobs.schedule("0 6 * * mon-fri", timezone="Europe/Berlin", name="daily report")
    @jobs.handler("report.daily", queue="reports", max_attempts=3)
    async def report(ctx: Context) -> None:
        """Sum up yesterday's orders."""

    @jobs.schedule(every=300, name="sync stock", arg={"shop": 1})
    @jobs.handler("sync", queue="default")
    def sync(ctx: Context, arg: dict[str, Any]) -> None:
        """Fetch the stock of all shops."""

    @jobs.handler("resize", queue="images")
    def resize(ctx: Context, arg: dict[str, Any]) -> None:
        """Make thumbnails of an uploaded picture."""

    return jobs


def fill(jobs: BGJob, engine: Engine, *, many: int = 120) -> None:
    """Live jobs in each state, dead jobs, workers, a pause, schedules and batches."""
    handlers = {handler.type: handler for handler in jobs.registry}
    receipts = [Receipt(4_700 + n, f"customer-{n}@shop.example", "s3cret") for n in range(many)]
    pictures = [{"picture": f"uploads/{n}.jpg", "sizes": [200, 800]} for n in range(many // 2)]
    sync = handlers["sync"]
    with engine.begin() as connection:
        enqueue_many(connection, handlers["send_receipt"], receipts)
        enqueue_many(connection, handlers["resize"], pictures, delay=900)
        enqueue_many(connection, sync, [{"shop": n} for n in range(12)])
        enqueue(connection, handlers["report.daily"], id="report/2026-11-30", delay=36_000)
        enqueue(connection, sync, {"shop": 99}, unique="sync:99", delay=60, priority=5)
        jobs.enqueue(connection, "export.csv", {"of": "orders"}, queue="exports", id="export-7")
        jobs.schedules.put(connection, "tenant 7 digest", sync, {"shop": 7}, cron="30 7 * * 1")
        jobs.pause(connection, "images", by="ada", reason="the CDN is down", until=3_600)
        add_workers(jobs, connection)
        _run_and_retry(jobs, connection)
        _add_dead_jobs(jobs, connection)
        add_counts(jobs, connection)
        _add_records(jobs, connection)
        _add_audit(jobs, connection)
        _add_batches(jobs, connection)
    with engine.connect() as connection:  # as a worker does at its start
        definitions = jobs.registry.schedules.values()
        keep_code(connection, statements_of(jobs.models), definitions, starting=True)


def add_workers(jobs: BGJob, connection: Connection) -> None:
    """Two workers, on two hosts."""
    now = datetime.now(UTC)
    for id, host, pid, queues in (
        (1001, "web-1", 4_211, {"mail": 10, "default": 5}),
        (1002, "web-2", 977, {"images": 4, "reports": 1}),
    ):
        row = {"id": id, "hostname": host, "pid": pid, "version": "0.1.0", "queues": queues}
        times = {"started_at": now - timedelta(hours=3), "beat_at": now, "lease_timeout": 1e9}
        connection.execute(insert(jobs.models.worker).values(**row, **times, listener_pid=1))


def _run_and_retry(jobs: BGJob, connection: Connection) -> None:
    job, now = jobs.models.job, datetime.now(UTC)

    def first(queue: str, count: int) -> Any:
        queued = select(job.c.id).where(job.c.queue == queue, job.c.claimed_by.is_(None))
        return job.c.id.in_(queued.order_by(job.c.next_run_at, job.c.id).limit(count))

    claimed = {"claimed_by": 1001, "attempt": 1, "updated_at": now - timedelta(seconds=12)}
    connection.execute(update(job).where(first("mail", 8)).values(**claimed))
    failed = {"attempt": 2, "last_error": "TimeoutError: no answer for 30 s", "errors": errors(now)}
    connection.execute(
        update(job)
        .where(first("default", 3))
        .values(**failed, next_run_at=now + timedelta(minutes=4))
    )


def errors(now: datetime) -> list[dict[str, Any]]:
    """The history of a job that has failed twice."""
    return [
        {
            "at": (now - timedelta(minutes=minutes)).isoformat(),
            "attempt": attempt,
            "worker": 1001,
            "error": error,
        }
        for attempt, (minutes, error) in enumerate(
            [(50, ERRORS[0]), (20, "TimeoutError: no answer for 30 s")], 1
        )
    ]


ERRORS = (
    """ConnectionError: smtp.example refused
  File "shop/mail.py", line 12, in send
    smtp.connect()""",
    "TimeoutError: no answer for 30 s",
    "ConnectionError: smtp.example refused",
    "KeyError: 'street'",
)


def _add_dead_jobs(jobs: BGJob, connection: Connection, count: int = 64) -> None:
    now = datetime.now(UTC)
    day = timedelta(days=1)
    rows = [
        {
            "id": f"dead-{n}",
            "job_id": f"order-{n}",
            "queue": "mail",
            "type": "send_receipt",
            "arg": json.dumps(
                {"order_id": n, "to": "customer@shop.example", "api_token": "s3cret"}
            ).encode(),
            "attempt": 20,
            "lease": n,
            "next_run_at": now,
            "job_created_at": now - day,
            "job_updated_at": now,
            "moved_at": now - timedelta(seconds=20 * n * n),
            "last_error": ERRORS[n % len(ERRORS)],
            "errors": errors(now),
        }
        for n in range(1, count + 1)
    ]
    connection.execute(insert(jobs.models.dead_job), rows)


# Type, queue, how many a minute, and the places of the usual wait and run time.
_BUSY = (
    ("send_receipt", "mail", 42, 7, 12),
    ("sync", "default", 9, 6, 15),
    ("resize", "images", 25, 9, 13),
)


def add_counts(jobs: BGJob, connection: Connection) -> None:
    """An hour of two workers, in which mails began to fail a quarter of an hour ago."""
    chance, now = random.Random(5), datetime.now(UTC)
    rows = []
    for ago in range(59, -1, -1):
        down = ago < 15
        for worker in (1001, 1002):
            for type, queue, often, wait, run in _BUSY:
                fails = down and type == "send_receipt"
                done = {
                    "completed": round(often * chance.uniform(0.7, 1.2) * (0.3 if fails else 1))
                }
                if fails or chance.random() < 0.1:
                    done["retry"] = chance.randint(1, 24 if fails else 2)
                if fails and chance.random() < 0.6:
                    done["dead"] = chance.randint(1, 4)
                rows += [
                    {
                        "at": now - timedelta(minutes=ago),
                        "worker": worker,
                        "type": type,
                        "queue": queue,
                        "outcome": outcome,
                        "n": n,
                        "waits": _spread(chance, n, wait + (5 if fails else 0)),
                        "runs": _spread(chance, n, run + (4 if fails else 0)),
                        "waited": n * 0.01,
                        "ran": n * 0.4,
                    }
                    for outcome, n in done.items()
                    if n
                ]
    connection.execute(insert(jobs.Minute), rows)


def _spread(chance: random.Random, n: int, around: int) -> list[int]:
    """So many durations, most of them in the buckets around one."""
    buckets = [0] * 30
    for _ in range(n):
        buckets[min(max(round(chance.gauss(around, 1.3)), 0), 29)] += 1
    return buckets


def _add_records(jobs: BGJob, connection: Connection) -> None:
    """Jobs that have ended in each way, and one that runs and tells how far it is."""
    now = datetime.now(UTC)
    ends = ("completed", "completed", "cancelled", "completed", "expired", "dead")
    rows = []
    for n in range(1, 61):
        state, at = ends[n % len(ends)], now - timedelta(seconds=40 * n)
        started = at - timedelta(seconds=n % 7 + 0.25)
        rows.append(
            {
                "job_id": f"ended-{n}",
                "queue": "mail",
                "type": "send_receipt",
                "state": state,
                "attempt": 1 + n % 3,
                "lease": n,
                "worker": 1001,
                "result": b'{"message_id": "<4711@shop.example>", "api_token": "s3cret"}'
                if state == "completed"
                else None,
                "error": ERRORS[0] if state == "dead" else None,
                "enqueued_at": started - timedelta(seconds=3),
                "due_at": started - timedelta(seconds=2),
                "started_at": None if state in ("cancelled", "expired") else started,
                "ended_at": at,
                "keep_until": now + timedelta(days=7),
            }
        )
    connection.execute(insert(jobs.Record), rows)
    running = jobs.models.job.c.claimed_by.is_not(None)
    id = connection.scalar(select(jobs.models.job.c.id).where(running).limit(1))
    live = {
        **rows[0],
        "job_id": id,
        "state": "live",
        "ended_at": None,
        "result": None,
        "progress": {"done": 340, "of": 800, "note": "page 34"},
    }
    connection.execute(insert(jobs.Record), live)


def _add_audit(jobs: BGJob, connection: Connection) -> None:
    """What two people have done, in the dashboard and on the command line."""
    now = datetime.now(UTC)
    arg = {"order_id": 7, "to": "customer@shop.example", "api_token": "[hidden]"}
    done: list[tuple[str, str, int, dict[str, Any], Any]] = [
        ("ada", "resume", 1, {"queue": "mail"}, None),
        ("ada", "redrive", 5_001, {"search": "queue:mail", "per_second": 50.0}, None),
        ("ada", "edit", 1, {"id": "order-7"}, {"arg": arg}),
        ("ada", "pause", 1, {"queue": "mail", "reason": "the provider is down"}, None),
        ("deploy@web-1", "schedule-run", 1, {"id": "report-1", "name": "daily report"}, None),
        ("grace", "cancel", 7, {"ids": [f"export-{n}" for n in range(7)]}, None),
        ("deploy@web-1", "delete", 12_480, {"type": "sync", "older_than": 2_592_000.0}, None),
    ]
    rows = [
        {
            "at": now - timedelta(minutes=7 * n * n + 2),
            "id": str(n),
            "who": who,
            "origin": "command line" if "@" in who else "dashboard",
            "verb": verb,
            "changed": changed,
            "details": details,
            "given": given,
        }
        for n, (who, verb, changed, details, given) in enumerate(done)
    ]
    connection.execute(insert(jobs.Audit), rows)


BATCHES = {
    "running": "019ad0f4-51c2-7b6e-9d0e-3f6a2c815b07",
    "stopped": "019ad0f2-0a1b-7d15-8c44-51d0b2e97a3c",
    "finished": "019ad0c8-77e0-7a92-b1f3-0c6d4e2b9f58",
    "over": "019ad04b-9e3d-7f21-a60b-d1837c5e402a",
}
"""The ids of batches: one whose jobs wait and run, one that waits for dead ones, one whose follower
is live, and one of which nothing is left."""


def _add_batches(jobs: BGJob, connection: Connection) -> None:
    """Batches in each state, of jobs that are there."""
    now, (running, stopped, finished, over) = datetime.now(UTC), BATCHES.values()
    report = {"then_type": "report.daily", "then_queue": "reports"}
    rows: list[dict[str, Any]] = [
        {"id": running, "total": 480, "created_at": now - timedelta(minutes=6), **report},
        {"id": stopped, "total": 40, "created_at": now - timedelta(minutes=9), "on_dead": "stop"},
        {"id": finished, "total": 2_500, "created_at": now - timedelta(minutes=55), **report},
        {"id": over, "total": 12, "created_at": now - timedelta(hours=3), **report},
    ]
    for row in rows:
        is_over = row["id"] in (finished, over)
        row["finished_at"] = row["created_at"] + timedelta(minutes=4) if is_over else None
        row["closed_at"] = row["created_at"]
        connection.execute(insert(jobs.models.batch).values(**row))
    job, dead = jobs.models.job, jobs.models.dead_job
    connection.execute(update(job).where(job.c.type == "send_receipt").values(batch_id=running))
    died = {running: ("dead-1", "dead-2", "dead-3"), stopped: ("dead-4", "dead-8")}
    for batch, ids in died.items():
        connection.execute(update(dead).where(dead.c.id.in_(ids)).values(batch_id=batch))
    follower = next(handler for handler in jobs.registry if handler.type == "report.daily")
    enqueue(connection, follower, id=f"{finished}:then", delay=120)


class Client:
    """Sends requests to an ASGI application, and keeps its cookies. Follows no redirect."""

    def __init__(self, app: Any, base: str = "", root_path: str = "") -> None:
        self._portal_context = start_blocking_portal()
        self._portal = self._portal_context.__enter__()
        transport = httpx.ASGITransport(app, root_path=root_path)
        address = f"http://shop.example{base}/"
        self._client = httpx.AsyncClient(transport=transport, base_url=address)
        self.cookies = self._client.cookies

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.call(lambda: self._client.get(path, **options))

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self.call(lambda: self._client.post(path, **options))

    def call(self, function: Callable[[], Awaitable[T]]) -> T:
        """Await something in the event loop of the application."""
        return self._portal.call(function)

    def close(self) -> None:
        self._portal.call(self._client.aclose)
        self._portal_context.__exit__(None, None, None)


@contextmanager
def served(app: Any) -> Iterator[str]:
    """Serve an ASGI application from a thread; its address."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="off")
    config.timeout_graceful_shutdown = 1
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started, 30, what="the server's start")
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)


def mounted(path: str, jobs: BGJob, engine: Any, **options: Any) -> Starlette:
    """The dashboard in an application of somebody's, at a path."""
    return Starlette(routes=[Mount(path, dashboard(jobs, engine, **options))])
