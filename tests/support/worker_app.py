"""The application that the tests of whole workers run, and the main of one worker process.

Handlers note each start in a journal, a file that all processes append to, so that a start counts
even if its process is killed in the next moment. What they do in the database they do through
``ctx.session``, so that it can be counted against the journal.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import logging
import os
import resource
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import Column, MetaData, Table, Text, create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from sqlalchemy_bgjob import (
    BGJob,
    Context,
    FinishedRun,
    JobInfo,
    JobType,
    MoveToDlq,
    Observer,
    Worker,
    constant,
)
from sqlalchemy_bgjob.testing.faults import kill_worker_after
from support import changes
from support.mutants import MUTANTS
from support.pooler import connect_as_documented
from support.tables import without_handlers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlalchemy_bgjob.testing.faults import KillPoint

Kind = Literal["sync", "async"]
Crash = Literal["exit at once", "segmentation fault"]


@dataclass(frozen=True)
class Journal:
    """Appends lines that survive the process; a line is one write, so lines never mix."""

    path: Path

    def note(self, event: str, **values: Any) -> None:
        # The monotonic clock of Linux is one for all processes.
        line = {"event": event, "pid": os.getpid(), "at": time.monotonic(), **values}
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, f"{json.dumps(line)}\n".encode())
        finally:
            os.close(file)

    def read(self, event: str | None = None) -> list[dict[str, Any]]:
        """All lines so far, or those of one event."""
        if not self.path.exists():
            return []
        whole = self.path.read_text().rpartition("\n")[0]
        lines = [json.loads(line) for line in whole.splitlines()]
        return [line for line in lines if event in (None, line["event"])]

    def count(self, event: str) -> int:
        return len(self.read(event))

    @property
    def released(self) -> bool:
        """Whether the handlers that hold their jobs are to return."""
        return self._release.exists()

    def release(self) -> None:
        """Let the handlers return that hold their jobs."""
        self._release.touch()

    @property
    def _release(self) -> Path:
        return self.path.with_suffix(".released")

    def starts(self) -> dict[str, list[dict[str, Any]]]:
        """The starts of each job, in order."""
        found: dict[str, list[dict[str, Any]]] = {}
        for line in self.read("start"):
            found.setdefault(line["id"], []).append(line)
        return found


class Notes(Observer):
    """An observer that writes a worker's events into the journal."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def job_completed(self, job: JobInfo, run: FinishedRun) -> None:
        self._journal.note("completed", id=job.id, lease=job.lease)

    def job_lease_lost(self, job: JobInfo) -> None:
        self._journal.note("lease_lost", id=job.id, lease=job.lease)

    def job_rescheduled(self, job: JobInfo, run: FinishedRun) -> None:
        self._journal.note("put off", id=job.id, lease=job.lease)

    def job_will_be_retried(self, job: JobInfo, run: FinishedRun) -> None:
        self._journal.note("retried", id=job.id, lease=job.lease)

    def job_moved_to_dlq(self, job: JobInfo, run: FinishedRun) -> None:
        self._journal.note("dead", id=job.id, lease=job.lease)

    def job_cancelled(self, job: JobInfo, run: FinishedRun) -> None:
        self._journal.note("cancelled", id=job.id, lease=job.lease)

    def job_expired(self, job: JobInfo, run: FinishedRun) -> None:
        self._journal.note("expired", id=job.id, lease=job.lease)

    def worker_error(self, error: BaseException) -> None:
        self._journal.note("error", error=type(error).__name__)


@dataclass(frozen=True)
class App:
    """The queue, the handlers and one table of the application's own."""

    jobs: BGJob[Any, Any]
    effects: Table
    """One row for each time that a handler's writes were committed."""
    quick: JobType[None]
    """Does nothing."""
    drop: JobType[None]
    """The same; a job that is too late is deleted."""
    effect: JobType[None]
    """Writes one effect."""
    nap: JobType[float]
    """Takes so many seconds at the first attempt, without a session."""
    late: JobType[float]
    held_late: JobType[float]
    """Takes so many seconds at each attempt, then writes an effect."""
    hold: JobType[float]
    """Writes an effect and locks a row, then takes so many seconds at the first attempt."""
    crash: JobType[Crash | None]
    """Ends its process, by SIGKILL unless it is told otherwise."""
    leak: JobType[dict[str, str]]
    """Fails with a database error that knows a secret."""
    greedy: JobType[int]
    """Gives its process no more than so many megabytes from now on, and asks for twice as many."""
    block: JobType[float]
    """Blocks its event loop, or its thread, for so many seconds."""
    hog: JobType[float]
    """Writes an effect, and lets no other thread run for so many seconds at the first attempt."""
    give_up: JobType[None]
    """Moves its job to the DLQ."""
    tick: JobType[None]
    """Does nothing; with ``schedule`` at each second."""
    wait: JobType[float]
    """Takes so many seconds, without a session; ends when it is cancelled."""
    write_and_wait: JobType[float]
    """Writes an effect, then does the same."""
    see: JobType[str]
    """Sees what was changed of a key, see :mod:`support.changes`."""


METADATA = MetaData()
JOBS: BGJob[Any, Any] = BGJob(METADATA)
"""Its tables are mapped when this is imported; each application has handlers of its own."""
EFFECTS = Table("effect", METADATA, Column("job_id", Text, nullable=False))
Table("counter", METADATA, Column("job_id", Text, primary_key=True))
changes.add_tables(METADATA)


def make_app(  # noqa: C901 - a list of handlers
    kind: Kind, journal: Journal, *, crash_attempts: int = 4, schedule: bool = False
) -> App:
    """The application with functions as handlers, or with coroutines."""
    jobs = without_handlers(JOBS)
    handlers = _functions(journal) if kind == "sync" else _coroutines(journal)
    again = constant(0.05)

    def crash(ctx: Context[Any], how: Crash | None) -> None:
        _note_start(journal, ctx)
        match how:
            case None:
                os.kill(os.getpid(), signal.SIGKILL)
            case "exit at once":
                os._exit(7)
            case "segmentation fault":
                ctypes.string_at(0)

    def leak(ctx: Context[Any], arg: dict[str, str]) -> None:
        _note_start(journal, ctx)
        secret = {"secret": arg["secret"]}
        match arg["how"]:
            case "parameters":
                ctx.session.execute(text("SELECT :secret FROM nowhere"), secret)
            case "constraint":
                for _ in range(2):
                    ctx.session.execute(text("INSERT INTO counter VALUES (:secret)"), secret)
            case "cast":
                ctx.session.execute(text("SELECT CAST(CAST(:secret AS text) AS int)"), secret)
            case "cause":
                try:
                    ctx.session.execute(text("SELECT :secret FROM nowhere"), secret)
                except DBAPIError as error:
                    raise RuntimeError("no receipt") from error

    def greedy(ctx: Context[Any], megabytes: int) -> None:
        _note_start(journal, ctx)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (used + megabytes * 1_048_576, most))
        bytearray(2 * megabytes * 1_048_576)

    def give_up(ctx: Context[Any]) -> MoveToDlq:
        _note_start(journal, ctx)
        return MoveToDlq("given up")

    tick = jobs.handler("tick", session=False)(handlers["quick"])
    if schedule:
        jobs.schedule(every=1.0, missed="all", overlap="allow")(tick)
    return App(
        jobs=jobs,
        effects=EFFECTS,
        quick=jobs.handler("quick", session=False)(handlers["quick"]),
        drop=jobs.handler("drop", session=False, on_expiry="drop")(handlers["quick"]),
        effect=jobs.handler("effect", retry=again)(handlers["effect"]),
        nap=jobs.handler("nap", session=False, retry=again)(handlers["nap"]),
        late=jobs.handler("late", retry=again)(handlers["late"]),
        held_late=jobs.handler("held_late", retry=again)(handlers["held_late"]),
        hold=jobs.handler("hold", retry=again)(handlers["hold"]),
        crash=jobs.handler("crash", max_attempts=crash_attempts, session=False)(crash),
        leak=jobs.handler("leak", max_attempts=1)(leak),
        greedy=jobs.handler("greedy", max_attempts=2, session=False, retry=again)(greedy),
        block=jobs.handler("block", session=False)(handlers["block"]),
        hog=jobs.handler("hog", retry=again)(handlers["hog"]),
        give_up=jobs.handler("give_up", session=False)(give_up),
        tick=tick,
        wait=jobs.handler("wait", session=False, retry=again)(handlers["wait"]),
        write_and_wait=jobs.handler("write_and_wait", retry=again)(handlers["write_and_wait"]),
        see=changes.register(jobs, journal),
    )


_ADD_EFFECT = text("INSERT INTO effect (job_id) VALUES (:job_id)")
_LOCK_ROW = text(
    # The next attempt of the job has to wait for this one's lock, if it is still held.
    "INSERT INTO counter (job_id) VALUES (:job_id)"
    " ON CONFLICT (job_id) DO UPDATE SET job_id = excluded.job_id"
)


def _note_start(journal: Journal, ctx: Context[Any]) -> None:
    job = ctx.job
    journal.note(
        "start",
        id=job.id,
        attempt=job.attempt,
        lease=job.lease,
        crashes=job.crashes,
        year=time.gmtime().tm_year,
        schedule=job.headers.get("bgjob-schedule"),
        fire_time=job.headers.get("bgjob-fire-time"),
    )


def _functions(journal: Journal) -> dict[str, Any]:  # noqa: C901 - a list of handlers
    def quick(ctx: Context[Any]) -> None:
        _note_start(journal, ctx)

    def effect(ctx: Context[Any]) -> None:
        _note_start(journal, ctx)
        ctx.session.execute(_ADD_EFFECT, {"job_id": ctx.job.id})

    def nap(ctx: Context[Any], seconds: float) -> None:
        _note_start(journal, ctx)
        if ctx.job.attempt == 1:
            _sleep_through(_naps(journal, seconds))

    def late(ctx: Context[Any], seconds: float) -> None:
        _note_start(journal, ctx)
        _sleep(seconds)
        ctx.session.execute(_ADD_EFFECT, {"job_id": ctx.job.id})

    def held_late(ctx: Context[Any], seconds: float) -> None:
        _note_start(journal, ctx)
        _sleep_through(_first_naps(journal, ctx.job.id, seconds))
        ctx.session.execute(_ADD_EFFECT, {"job_id": ctx.job.id})

    def hold(ctx: Context[Any], seconds: float) -> None:
        ctx.session.execute(_ADD_EFFECT, {"job_id": ctx.job.id})
        ctx.session.execute(_LOCK_ROW, {"job_id": ctx.job.id})
        _note_start(journal, ctx)
        if ctx.job.attempt == 1:
            _sleep_through(_naps(journal, seconds))

    def wait(ctx: Context[Any], seconds: float) -> None:
        _note_start(journal, ctx)
        for nap in _naps(journal, seconds):
            if ctx.cancelled:
                return
            _sleep(nap)

    def write_and_wait(ctx: Context[Any], seconds: float) -> None:
        ctx.session.execute(_ADD_EFFECT, {"job_id": ctx.job.id})
        wait(ctx, seconds)

    def block(ctx: Context[Any], seconds: float) -> None:
        _note_start(journal, ctx)
        _keep_busy(seconds)

    def hog(ctx: Context[Any], seconds: float) -> None:
        _note_start(journal, ctx)
        ctx.session.execute(_ADD_EFFECT, {"job_id": ctx.job.id})
        if ctx.job.attempt == 1:
            _hold_the_gil(seconds)

    return {
        "quick": quick,
        "effect": effect,
        "nap": nap,
        "late": late,
        "held_late": held_late,
        "hold": hold,
        "wait": wait,
        "write_and_wait": write_and_wait,
        "block": block,
        "hog": hog,
    }


_LOOK_EVERY = 0.1
_VERY_LONG = 600.0


def _sleep(seconds: float) -> None:
    # Not time.sleep(): a library that sets the time of day breaks the system call behind it.
    threading.Event().wait(seconds)


def _naps(journal: Journal, seconds: float) -> Iterator[float]:
    """Short sleeps, until *seconds* are over or another process says that it is enough."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and not journal.released:
        yield min(left, _LOOK_EVERY)


def _first_naps(journal: Journal, job_id: str, seconds: float) -> Iterator[float]:
    """Those of a job's first run, until it is released; one of *seconds* for each later one."""
    if len(journal.starts()[job_id]) == 1:
        yield from _naps(journal, _VERY_LONG)
    else:
        yield seconds


def _sleep_through(naps: Iterator[float]) -> None:
    for nap in naps:
        _sleep(nap)


async def _sleep_through_async(naps: Iterator[float]) -> None:
    for nap in naps:
        await asyncio.sleep(nap)


def _keep_busy(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def _hold_the_gil(seconds: float) -> None:
    # A call through PyDLL keeps the lock that a call through CDLL lets go.
    ctypes.PyDLL(None).usleep(int(seconds * 1_000_000))


def _coroutines(journal: Journal) -> dict[str, Any]:  # noqa: C901 - a list of handlers
    async def quick(ctx: Context[Any]) -> None:
        _note_start(journal, ctx)

    async def effect(ctx: Context[Any]) -> None:
        _note_start(journal, ctx)
        await ctx.session.execute(_ADD_EFFECT, {"job_id": ctx.job.id})

    async def nap(ctx: Context[Any], seconds: float) -> None:
        _note_start(journal, ctx)
        if ctx.job.attempt == 1:
            await _sleep_through_async(_naps(journal, seconds))

    async def late(ctx: Context[Any], seconds: float) -> None:
        _note_start(journal, ctx)
        await asyncio.sleep(seconds)
        await ctx.session.execute(_ADD_EFFECT, {"job_id": ctx.job.id})

    async def held_late(ctx: Context[Any], seconds: float) -> None:
        _note_start(journal, ctx)
        await _sleep_through_async(_first_naps(journal, ctx.job.id, seconds))
        await ctx.session.execute(_ADD_EFFECT, {"job_id": ctx.job.id})

    async def hold(ctx: Context[Any], seconds: float) -> None:
        await ctx.session.execute(_ADD_EFFECT, {"job_id": ctx.job.id})
        await ctx.session.execute(_LOCK_ROW, {"job_id": ctx.job.id})
        _note_start(journal, ctx)
        if ctx.job.attempt == 1:
            await _sleep_through_async(_naps(journal, seconds))

    async def wait(ctx: Context[Any], seconds: float) -> None:
        _note_start(journal, ctx)
        await _sleep_through_async(_naps(journal, seconds))

    async def write_and_wait(ctx: Context[Any], seconds: float) -> None:
        await ctx.session.execute(_ADD_EFFECT, {"job_id": ctx.job.id})
        await wait(ctx, seconds)

    async def block(ctx: Context[Any], seconds: float) -> None:
        _note_start(journal, ctx)
        _keep_busy(seconds)

    async def hog(ctx: Context[Any], seconds: float) -> None:
        _note_start(journal, ctx)
        await ctx.session.execute(_ADD_EFFECT, {"job_id": ctx.job.id})
        if ctx.job.attempt == 1:
            _hold_the_gil(seconds)

    return {
        "quick": quick,
        "effect": effect,
        "nap": nap,
        "late": late,
        "held_late": held_late,
        "hold": hold,
        "wait": wait,
        "write_and_wait": write_and_wait,
        "block": block,
        "hog": hog,
    }


@dataclass(frozen=True)
class Config:
    """What a worker process is told, as JSON in its environment."""

    url: str
    """With the driver that the worker uses."""
    journal: str
    kind: Kind = "sync"
    slots: int = 10
    crash_attempts: int = 4
    dies_after: KillPoint | None = None
    """Where the process ends, as by SIGKILL; see :mod:`sqlalchemy_bgjob.testing.faults`."""
    dies_skip: int = 0
    debug: bool = False
    """Whether all is logged."""
    pooled: bool = False
    """Whether it connects as is told for a pooler."""
    mutant: str | None = None
    """What is broken in it on purpose; see :mod:`support.mutants`."""
    schedule: bool = False
    """Whether its code has the schedule of ``tick``."""
    settings: Mapping[str, Any] = field(default_factory=dict)

    VARIABLE = "BGJOB_TEST_WORKER"

    def environment(self) -> dict[str, str]:
        # Defaults are left out: a worker of an earlier release does not know all of them.
        given = {name: value for name, value in asdict(self).items() if value}
        return {self.VARIABLE: json.dumps(given)}

    @classmethod
    def from_environment(cls) -> Config:
        return cls(**json.loads(os.environ[cls.VARIABLE]))


def main() -> int:
    """Run one worker until a signal, as the command line does: drain, release, leave."""
    config = Config.from_environment()
    if config.debug:
        logging.basicConfig(level=logging.DEBUG)
    if config.pooled:
        connect_as_documented()
    journal = Journal(Path(config.journal))
    app = make_app(
        config.kind, journal, crash_attempts=config.crash_attempts, schedule=config.schedule
    )
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    with contextlib.ExitStack() as broken:
        if config.mutant is not None:
            MUTANTS[config.mutant](broken)
        if config.dies_after is not None:
            broken.enter_context(kill_worker_after(config.dies_after, skip=config.dies_skip))
        if config.kind == "sync":
            _run_threads(config, app, journal)
        else:
            asyncio.run(_run_asyncio(config, app, journal))
    journal.note("left")
    return 0


def _run_threads(config: Config, app: App, journal: Journal) -> None:
    engine = create_engine(make_url(config.url), pool_size=config.slots + 2)
    worker = Worker(
        app.jobs,
        engine,
        queues={"default": config.slots},
        observers=[Notes(journal)],
        **config.settings,
    )
    _obey_signals(worker)
    worker.run()
    engine.dispose()


async def _run_asyncio(config: Config, app: App, journal: Journal) -> None:
    from sqlalchemy.ext.asyncio import create_async_engine

    from sqlalchemy_bgjob import AsyncWorker

    engine = create_async_engine(make_url(config.url), pool_size=config.slots + 2)
    sync_engine = create_engine(
        make_url(config.url).set(drivername="postgresql+psycopg"), pool_size=config.slots + 2
    )
    worker = AsyncWorker(
        app.jobs,
        engine,
        sync_engine=sync_engine,
        queues={"default": config.slots},
        observers=[Notes(journal)],
        **config.settings,
    )
    _obey_signals(worker)
    await worker.run()
    await engine.dispose()
    sync_engine.dispose()


def _obey_signals(worker: Any) -> None:
    def obey() -> None:
        stops = iter((None, 0.0))
        while True:
            number = signal.sigwait({signal.SIGTERM, signal.SIGINT})
            timeout = next(stops, "third")
            if timeout == "third":
                os._exit(128 + number)
            worker.request_stop(timeout)

    threading.Thread(target=obey, name="signals", daemon=True).start()


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
