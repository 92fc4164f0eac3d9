"""The worker of the benchmark: an AsyncWorker or a Worker, in a process of its own."""

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sqlalchemy import create_engine, select
from sqlalchemy.ext.asyncio import create_async_engine

from .._process.collector import collect_as_usual
from ..aio import AsyncWorker
from ..settings import SPARE_CONNECTIONS
from ..worker import Worker
from .jobs import Answer, App

SETTLE: Final = 3.0
"""Seconds that a worker has to become idle and listen, as latency is measured only then.

Behind some poolers it never listens."""
SETTLE_EACH: Final = 0.01
"""Seconds that it has for each of its queues, in addition."""
TICK: Final = 0.02
"""Seconds from one look for the file that stops a worker to the next."""
QUIET_TICK: Final = 0.5
"""The same where pick-up or an idle worker is measured: the harness is to cost nothing there."""
SAMPLE_EVERY: Final = 0.1


def work(app: App) -> Answer:
    """Work until the ``stop_file`` exists, the parent is gone or ``enough`` handlers were called.

    Makes the ``ready_file`` once the worker runs.
    """
    collect_as_usual()  # as the command does
    concurrency = app.options.get("concurrency", 100)
    cpu = time.process_time()
    if app.is_async:
        asyncio.run(_work_async(app, concurrency))
    else:
        _work_threads(app, concurrency)
    return {**app.recorder.answer(), "cpu_seconds": time.process_time() - cpu}


def _work_threads(app: App, concurrency: int) -> None:
    engine = create_engine(app.url, pool_size=concurrency + SPARE_CONNECTIONS, max_overflow=0)
    try:
        with Worker(app.jobs, engine, queues=dict.fromkeys(app.queues, concurrency)):
            _settle(app)
            for pause in _ticks(app):
                time.sleep(pause)
    finally:
        engine.dispose()


async def _work_async(app: App, concurrency: int) -> None:
    url = app.url.set(drivername=f"postgresql+{app.driver}")
    engine = create_async_engine(url, pool_size=concurrency + SPARE_CONNECTIONS, max_overflow=0)
    try:
        async with AsyncWorker(app.jobs, engine, queues=dict.fromkeys(app.queues, concurrency)):
            await asyncio.to_thread(_settle, app)
            for pause in _ticks(app):
                await asyncio.sleep(pause)
    finally:
        await engine.dispose()


def _settle(app: App) -> None:
    """For a measurement of latency, wait until the worker has announced that it can be woken."""
    if not app.options.get("latency"):
        return
    row = app.jobs.WorkerRow
    query = select(row.listener_pid, row.waits_for).where(row.pid == os.getpid())
    give_up_at = time.monotonic() + SETTLE + SETTLE_EACH * len(app.queues)
    with app.engine() as engine:
        while time.monotonic() < give_up_at:
            with engine.connect() as connection:
                found = connection.execute(query).all()
            if found and all(listener and {*app.queues} <= {*waits} for listener, waits in found):
                return
            time.sleep(TICK)


def _ticks(app: App) -> Iterator[float]:
    """Yield the seconds to pause until the worker must stop; samples the processor time."""
    parent = os.getppid()
    enough = app.options.get("enough")
    Path(app.options["ready_file"]).touch()
    sample_at, pause = 0.0, QUIET_TICK if app.options.get("latency") else TICK
    while not os.path.exists(app.options["stop_file"]):  # noqa: PTH110 - fifty times a second
        if os.getppid() != parent or (enough is not None and app.recorder.count >= enough):
            return
        if time.monotonic() >= sample_at:
            app.recorder.sample()
            sample_at = time.monotonic() + SAMPLE_EVERY
        yield pause
    app.recorder.sample()
