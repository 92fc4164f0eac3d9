"""A fork after the engine was made: as gunicorn's preload and multiprocessing's fork do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support import with_driver

if TYPE_CHECKING:
    from sqlalchemy import Engine

BEFORE = """
import asyncio, os, sys
from sqlalchemy import MetaData, create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy_bgjob import AsyncWorker, BGJob, Worker, enqueue
from support import wait_until

url = sys.argv[1]
jobs = BGJob(MetaData())
ran = []

@jobs.handler("plain")
def plain(ctx):
    ran.append(os.getpid())

def in_child(work):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0, "the child has failed"
"""

MADE_IN_THE_CHILD = """
engine = create_engine(url)
jobs.metadata.create_all(engine)
with engine.connect() as connection:
    mine = connection.scalar(text("SELECT pg_backend_pid()"))
enqueue(engine, plain)

def work():
    with Worker(jobs, engine, listen=False):
        wait_until(lambda: ran)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT pg_backend_pid()")) != mine
    engine.dispose()

in_child(work)
with engine.connect() as connection:
    assert connection.scalar(text("SELECT pg_backend_pid()")) == mine
    assert connection.scalar(text("SELECT count(*) FROM bgjob_job")) == 0
print("ok")
"""

ASYNC_IN_THE_CHILD = """
engine, sync_engine = create_async_engine(url), create_engine(url)

async def prepare():
    async with engine.begin() as connection:
        await connection.run_sync(jobs.metadata.create_all)
    await enqueue(engine, plain)

asyncio.run(prepare())
with sync_engine.connect() as connection:
    mine = connection.scalar(text("SELECT pg_backend_pid()"))

def work():
    async def main():
        async with AsyncWorker(jobs, engine, sync_engine=sync_engine, listen=False):
            await asyncio.to_thread(wait_until, lambda: ran)
    asyncio.run(main())
    with sync_engine.connect() as connection:
        assert connection.scalar(text("SELECT pg_backend_pid()")) != mine

in_child(work)
with sync_engine.connect() as connection:
    assert connection.scalar(text("SELECT pg_backend_pid()")) == mine
print("ok")
"""

MADE_BEFORE = """
engine = create_engine(url)
jobs.metadata.create_all(engine)
worker = Worker(jobs, engine)

async def main():
    return AsyncWorker(jobs, create_async_engine(url))

other = asyncio.run(main())

def work():
    for start in (worker.start, worker.run, lambda: asyncio.run(other.run())):
        try:
            start()
        except RuntimeError as error:
            assert "before a fork" in str(error), error
        else:
            raise AssertionError("not refused")

in_child(work)
print("ok")
"""


@pytest.mark.parametrize(
    "code",
    [MADE_IN_THE_CHILD, ASYNC_IN_THE_CHILD, MADE_BEFORE],
    ids=["Worker", "AsyncWorker", "made before"],
)
def test_the_parents_connections_are_left_alone(code: str, engine: Engine) -> None:
    done = subprocess.run(
        # A child of a process with threads: that is what it is about.
        [sys.executable, "-c", BEFORE + code, with_driver(engine.url, "psycopg")],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    assert done.stdout.strip() == "ok", done.stderr
