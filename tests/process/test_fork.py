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

pytestmark = pytest.mark.timeout(300)

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


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A program that forks, which pytest itself must not."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        cwd=Path(__file__).parents[1],
        # Python warns of a fork in a process with threads: that is what it is about.
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )


@pytest.mark.parametrize(
    "code",
    [MADE_IN_THE_CHILD, ASYNC_IN_THE_CHILD, MADE_BEFORE],
    ids=["Worker", "AsyncWorker", "made before"],
)
def test_the_parents_connections_are_left_alone(code: str, engine: Engine) -> None:
    done = run(BEFORE + code, with_driver(engine.url, "psycopg"))
    assert done.stdout.strip() == "ok", done.stderr


POOL = """
import asyncpg

plain = create_engine(sys.argv[2])
jobs.metadata.create_all(plain)
codes = []


@jobs.handler("forks")
async def forks(ctx):
    await ctx.session.execute(text("SELECT 1"))
    child = os.fork()
    if child == 0:
        raise SystemExit(7)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    await ctx.session.execute(text("SELECT 1"))


async def main():
    async with asyncpg.create_pool(sys.argv[3], min_size=1, max_size=9) as pool:
        engine = create_async_engine(url, async_creator=pool.acquire)
        enqueue(plain, forks)
        async with AsyncWorker(jobs, engine, sync_engine=plain, heart_engine=plain):
            await asyncio.to_thread(wait_until, lambda: codes, 60)
        enqueue(plain, forks)
        async with engine.begin() as connection:
            outcome = await jobs.work_one(connection, "default")
        await engine.dispose()
    assert type(outcome).__name__ == "Complete", outcome
    assert codes == [7, 7], codes


asyncio.run(main())
print("ok")
"""


def test_children_do_not_speak_on_a_pool_of_asyncpgs_own(engine: Engine) -> None:
    """Its connections are proxies, of which there can be no weak reference."""
    url, sync_url = (with_driver(engine.url, name) for name in ("asyncpg", "psycopg"))
    done = run(BEFORE + POOL, url, sync_url, url.replace("+asyncpg", ""))
    assert done.stdout.strip() == "ok", done.stderr


# ---- a handler that forks -----------------------------------------------------------------------

FORKS = """
import gc, multiprocessing, time
from sqlalchemy import Column, Integer, Table, Text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy_bgjob import Observer, enqueue_many

kind, driver, sync_url = sys.argv[2:5]
is_async = kind in ("coroutine", "work_one coroutine")
note = Table("note", jobs.metadata, Column("pid", Integer), Column("way", Text))
outside = create_engine(sync_url)
jobs.metadata.create_all(outside)
me, codes, started = os.getpid(), [], []


class Told(Observer):
    def job_started(self, job):
        started.append(job.id)


def uses_the_session(session):
    session.execute(text("SELECT 1"))


def raises(session):
    raise ValueError("from the child")


def disposes(session):
    engine = getattr(engines[0], "sync_engine", engines[0])
    engine.pool.dispose()
    gc.collect()
    raise SystemExit(7)


WAYS = {
    "return": (1, lambda session: None),
    "sys.exit": (0, lambda session: sys.exit()),
    "sys.exit(3)": (3, lambda session: sys.exit(3)),
    "sys.exit(words)": (1, lambda session: sys.exit("words")),
    "exception": (1, raises),
    "os._exit": (5, lambda session: os._exit(5)),
    "the session": (1, uses_the_session),
    "dispose": (7, disposes),
}


def fork(session, way):
    session.execute(note.insert().values(pid=os.getpid(), way=way))
    if way == "rollback":
        with session.begin_nested():
            child = os.fork()
            if child == 0:
                raise ValueError("its savepoint is the parent's")
        expected = 1
    elif way == "multiprocessing":
        process = multiprocessing.get_context("fork").Process(target=session.rollback)
        process.start()
        process.join()
        return
    else:
        expected, leave = WAYS[way]
        child = os.fork()
        if child == 0:
            return leave(session)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code != expected:
        codes.append((way, code))
    session.execute(note.insert().values(pid=os.getpid(), way=way))


if is_async:
    @jobs.handler("forks", max_attempts=1)
    async def forks(ctx, way: str):
        await ctx.session.run_sync(fork, way)
        if os.getpid() != me and way == "return":
            await asyncio.sleep(3600)  # on the parent's event loop
else:
    @jobs.handler("forks", max_attempts=1)
    def forks(ctx, way: str):
        fork(ctx.session, way)


ways = [*WAYS, "rollback", "multiprocessing"]
enqueue_many(outside, forks, ways)
engines = [(create_async_engine if is_async else create_engine)(url, pool_size=3, max_overflow=0)]


def done():
    with outside.connect() as connection:
        return not connection.scalar(text("SELECT count(*) FROM bgjob_job"))


options = {"queues": {"default": 1}, "observers": [Told()], "poll_interval": 0.05}
if kind == "function":
    with Worker(jobs, engines[0], **options):
        wait_until(done, 60)
elif kind == "coroutine":
    async def main():
        async with AsyncWorker(jobs, engines[0], sync_engine=outside, **options):
            await asyncio.to_thread(wait_until, done, 60)

    asyncio.run(main())
elif kind == "work_one function":
    for _ in ways:
        with Session(engines[0]) as session, session.begin():
            jobs.work_one(session, "default")
else:
    async def main():
        for _ in ways:
            async with AsyncSession(engines[0]) as session, session.begin():
                await jobs.work_one(session, "default")

    asyncio.run(main())
assert os.getpid() == me, "a child came to here"
with outside.connect() as connection:
    rows = connection.execute(text("SELECT way, pid, count(*) FROM note GROUP BY 1, 2")).all()
    dead = connection.execute(text("SELECT last_error FROM bgjob_dead_job")).all()
assert not codes, codes
assert not dead, dead
expected = {(way, me): 1 if way == "multiprocessing" else 2 for way in ways}
assert {(way, pid): count for way, pid, count in rows} == expected, rows
wait_until(lambda: kind.startswith("work_one") or len(started) == len(ways), 30)
print("ok")
"""


@pytest.mark.parametrize(
    ("kind", "driver"),
    [
        ("function", "psycopg"),
        ("coroutine", "asyncpg"),
        ("work_one function", "psycopg2"),
        ("work_one coroutine", "psycopg"),
        *(
            pytest.param(*others, marks=pytest.mark.chaos)
            for others in (
                ("function", "psycopg2"),
                ("coroutine", "psycopg"),
                ("work_one function", "psycopg"),
                ("work_one coroutine", "asyncpg"),
            )
        ),
    ],
)
def test_a_forked_child_never_goes_on_as_the_worker(kind: str, driver: str, engine: Engine) -> None:
    """However it leaves its handler: the parent's effects are all there, each once."""
    url, sync_url = (with_driver(engine.url, name) for name in (driver, "psycopg"))
    done = run(BEFORE + FORKS, url, kind, driver, sync_url)
    assert done.stdout.strip() == "ok", done.stderr
    assert "the handler of 'forks' in process" in done.stderr
    assert "raised ValueError and ends here" in done.stderr
    assert "from the child" not in done.stderr
