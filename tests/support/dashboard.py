"""A dashboard over a queue that has something of everything, served on a port of this machine."""

from __future__ import annotations

import json
import os
import shutil
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
    """Four handlers and two schedules."""
    jobs = BGJob(MetaData())

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
    """Live jobs in each state, dead jobs, workers, a pause and schedules."""
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
        _add_workers(jobs, connection)
        _run_and_retry(jobs, connection)
        _add_dead_jobs(jobs, connection)
    with engine.connect() as connection:  # as a worker does at its start
        definitions = jobs.registry.schedules.values()
        keep_code(connection, statements_of(jobs.models), definitions, starting=True)


def _add_workers(jobs: BGJob, connection: Connection) -> None:
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


CHROMIUM_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def chromium() -> str:
    """The browser's program: Debian's, or the one that BGJOB_TEST_CHROMIUM names."""
    named = os.environ.get("BGJOB_TEST_CHROMIUM")
    found = named or shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        raise RuntimeError(
            "no Chromium was found; apt-get install chromium, or name it in BGJOB_TEST_CHROMIUM"
        )
    return found
