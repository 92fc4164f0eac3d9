"""The benchmark: its workloads, how they are timed, and the command that runs them.

A contestant is a queue behind the protocol of ``_bench_app``: commands of one process each, which
print one line of JSON. The harness starts them, holds transactions open, asks the database when a
backlog is gone, and computes the figures; it counts every job, and fails if one is missing or was
run twice. ``python -m benchmarks compare`` runs the same workloads on other queues.

Handlers note the time of their call. A drain is timed by these notes alone: neither the start of
the processes nor the end that the harness sees belongs to it.
"""

import contextlib
import itertools
import json
import math
import os
import platform
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, TYPE_CHECKING, Any, Final, Self

import click
from sqlalchemy import Engine, NullPool, create_engine, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import DropSchema

from ._bench_app import COMMANDS, App
from ._exits import DATABASE, FAILED, OK, SIGNALLED, USAGE, CommandError
from ._process import database_message
from ._urls import database_url as parse
from ._urls import is_installed, sync_url
from ._version import __version__
from .exceptions import BGJobError

if TYPE_CHECKING:
    from sqlalchemy import URL

OURS: Final = "sqlalchemy-bgjob"
FULL_DRAIN: Final = 50_000
"""Jobs of W3 at scale 1, by which --jobs is understood."""
START_TIMEOUT: Final = 60.0
STALLED_AFTER: Final = 120.0
"""Seconds beyond what a slow queue needs, after which a drain is given up."""
SLOWEST: Final = 200
"""Jobs a second below which a drain is given up."""

Answer = dict[str, Any]


class BenchError(BGJobError):
    """A measurement failed, or what it has counted is wrong."""

    def __init__(self, problem: str, output: str = "") -> None:
        super().__init__(problem, output)
        self.problem, self.output = problem, output

    def __str__(self) -> str:
        return f"{self.problem}; it said:\n{self.output}" if self.output else self.problem


@dataclass(frozen=True, slots=True)
class Measurement:
    """The figures of one run of one workload.

    Attributes:
        workload: W1 to W11.
        contestant: Whose queue it was.
        variant: How it was used, where there are several ways.
        jobs: How many jobs it were.
        figures: Values by the names of :data:`FIGURES`.
        round: Which of several runs.
    """

    workload: str
    contestant: str
    variant: str
    jobs: int
    figures: Mapping[str, float]
    round: int = 1


# ---- contestants ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Contestant:
    """A queue, and how its commands are run.

    Attributes:
        name: As it is printed.
        argv: What comes before COMMAND, DSN and JSON.
        dsn: The DSN that its commands are given.
        options: Given to every command.
        environment: Variables of its processes, beside those of this one.
        here: Runs a command in this process, which spares the start of another one.
    """

    name: str
    argv: tuple[str, ...]
    dsn: str
    options: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    here: Callable[[str, Mapping[str, Any]], Answer] | None = None

    def start(self, command: str, **options: Any) -> "Running":
        """Run a command that goes on; a context manager that leaves no process behind."""
        return Running(self, command, options)

    def call(self, command: str, *, timeout: float = 900.0, **options: Any) -> Answer:
        """Run a command to its end: its answer.

        Raises:
            BenchError: It failed, or took too long.
        """
        if self.here is not None:
            return self.here(command, {**self.options, **options})
        with self.start(command, **options) as running:
            return running.answer(timeout)


class Running:
    """A command that goes on. It may be told to stop, and it answers at its end."""

    def __init__(self, contestant: Contestant, command: str, options: Mapping[str, Any]) -> None:
        self._what = f"{contestant.name}: {command}"
        self._folder = tempfile.TemporaryDirectory(prefix="bgjob-bench-")
        self._ready = Path(self._folder.name, "ready")
        self._stop = Path(self._folder.name, "stop")
        self._out: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - close() closes them
        self._err: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        files = {"ready_file": str(self._ready), "stop_file": str(self._stop)}
        given = json.dumps({**contestant.options, **files, **options})
        self._process = subprocess.Popen(
            [*contestant.argv, command, contestant.dsn, given],
            env={**os.environ, **contestant.environment},
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=self._err,
        )

    def wait_until_ready(self, timeout: float = START_TIMEOUT) -> None:
        """Return when it has made its ready file.

        Raises:
            BenchError: It ended before, or took too long.
        """
        deadline = time.monotonic() + timeout
        while not self._ready.exists():
            self.check()
            if time.monotonic() > deadline:
                raise BenchError(f"{self._what} was not ready in {timeout:g} s", self._said())
            time.sleep(0.005)

    def check(self) -> None:
        """Raise BenchError if it has failed."""
        if self._process.poll():
            code = self._process.returncode
            raise BenchError(f"{self._what} ended with exit code {code}", self._said())

    def stop(self, timeout: float = 90.0) -> Answer:
        """Tell it to stop: its answer."""
        self._stop.touch()
        return self.answer(timeout)

    def answer(self, timeout: float) -> Answer:
        """Wait for its end: what it printed.

        Raises:
            BenchError: It failed, or took too long.
        """
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise BenchError(f"{self._what} took more than {timeout:g} s", self._said()) from None
        self.check()
        self._out.seek(0)
        try:
            found: Answer = json.loads(self._out.read())
        except ValueError:
            raise BenchError(f"{self._what} printed no JSON", self._said()) from None
        return found

    def close(self) -> None:
        """End it if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._out.close()
        self._err.close()
        self._folder.cleanup()

    def _said(self) -> str:
        self._err.seek(0)
        return "\n".join(self._err.read().decode(errors="replace").splitlines()[-15:])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Arena:
    """A contestant with its tables made, and the harness's own way to the database.

    Attributes:
        contestant: Whose queue it is.
        engine: In AUTOCOMMIT.
        version: Of the contestant.
        settings: How it is set up, in words.
        remaining_sql: Whether any job is left.
        clean_sql: Leaves empty tables, for the next workload.
        can_empty: Whether it does; else what is left is done by a worker.
        scale: By which the workloads' sizes are multiplied.
    """

    contestant: Contestant
    engine: Engine
    version: str
    settings: str
    remaining_sql: str
    clean_sql: Sequence[str] = ()
    can_empty: bool = True
    scale: float = 1.0

    @classmethod
    def prepare(cls, contestant: Contestant, engine: Engine, scale: float = 1.0) -> Self:
        """Make the tables."""
        found = contestant.call("install")
        clean = list(found.get("clean_sql", ()))
        can_empty = bool(clean)
        if contestant.name != OURS:
            # Whose database it has for itself. Else autovacuum would come in another's run.
            clean.append("VACUUM ANALYZE")
        return cls(
            contestant=contestant,
            engine=engine,
            version=found["version"],
            settings=found["settings"],
            remaining_sql=found["remaining_sql"],
            clean_sql=clean,
            can_empty=can_empty,
            scale=scale,
        )

    @property
    def is_ours(self) -> bool:
        """Whether the contestant is this package."""
        return self.contestant.name == OURS

    def sized(self, full: int, least: int = 20) -> int:
        """How many jobs instead of *full*."""
        return max(least, round(full * self.scale))

    def lasting(self, full: float, least: float = 0.5) -> float:
        """How many seconds instead of *full*."""
        return max(least, full * self.scale)

    def scalar(self, sql: str) -> Any:
        """The one value of a query."""
        with self.engine.connect() as connection:
            return connection.exec_driver_sql(sql).scalar()

    def clean(self) -> None:
        """Leave no job behind."""
        if self.scalar(self.remaining_sql) and not self.can_empty:
            with self.contestant.start("work") as worker:
                self.wait_until_drained(FULL_DRAIN, [worker])
                worker.stop()
        with self.engine.connect() as connection:
            for sql in self.clean_sql:
                connection.exec_driver_sql(sql)

    def checkpoint(self) -> None:
        """So that no measurement pays for the writes of the one before."""
        # Without the right to it, the server does it when it likes.
        with contextlib.suppress(DBAPIError), self.engine.connect() as connection:
            connection.exec_driver_sql("CHECKPOINT")

    @contextlib.contextmanager
    def pinned(self) -> Iterator[None]:
        """Hold a transaction open, so that the server can't remove what is deleted meanwhile."""
        with self.engine.connect() as connection:
            held = connection.execution_options(isolation_level="REPEATABLE READ")
            held.exec_driver_sql("SELECT 1")
            try:
                yield
            finally:
                held.rollback()

    def may_set(self, setting: str) -> bool:
        """Whether this role may change a parameter of its sessions."""
        try:
            with self.engine.connect() as connection:
                connection.exec_driver_sql(f"SET {setting} = 0")
        except DBAPIError:
            return False
        return True

    def wait_until_drained(self, jobs: int, workers: Iterable[Running]) -> None:
        """Return when no job is left.

        Raises:
            BenchError: A worker has failed, or it takes too long.
        """
        # Rarely, since the question is asked of the server that is measured.
        pause = min(max(jobs / 100_000, 0.05), 0.5)
        deadline = time.monotonic() + STALLED_AFTER + jobs / SLOWEST
        while self.scalar(self.remaining_sql):
            for worker in workers:
                worker.check()
            if time.monotonic() > deadline:
                raise BenchError(f"{self.contestant.name} leaves jobs lying")
            time.sleep(pause)

    def measured(self, workload: str, jobs: int, variant: str, **figures: float) -> Measurement:
        """A measurement of this contestant."""
        return Measurement(workload, self.contestant.name, variant, jobs, figures)


# ---- arithmetic -----------------------------------------------------------------------------


def percentile(values: Iterable[float], share: float) -> float:
    """The smallest value that so large a share of all is not above."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _points(answer: Answer) -> list[tuple[float, float]]:
    """How many handlers were called by when."""
    marks = [(float(number), float(at)) for number, at in answer["marks"]]
    points = [(1.0, answer["first"]), *marks, (float(answer["count"]), answer["last"])]
    return sorted(set(points))


def _interpolate(points: Sequence[tuple[float, float]], x: float) -> float:
    """The y of an x, on straight lines between ascending points."""
    if x <= points[0][0]:
        return points[0][1]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0) if x1 > x0 else y1
    return points[-1][1]


def reached(answer: Answer, number: float) -> float:
    """When a worker called its handler for the so many-th time."""
    return _interpolate(_points(answer), number)


def handled(answer: Answer, at: float) -> float:
    """How many calls a worker had begun at a time; none before its first."""
    if answer["count"] == 0 or at < answer["first"]:
        return 0.0
    return _interpolate(sorted((time, number) for number, time in _points(answer)), at)


def rate(answers: Sequence[Answer]) -> float:
    """Jobs a second while all workers were at it.

    That is between the latest first call and the earliest last one. Where there was hardly such a
    time, it is between the first call of all and the last one.
    """
    busy = [answer for answer in answers if answer["count"]]
    jobs = sum(answer["count"] for answer in busy)
    begin, end = max(a["first"] for a in busy), min(a["last"] for a in busy)
    if len(busy) == len(answers) and end > begin:
        within = sum(handled(a, end) - handled(a, begin) for a in busy)
        if within >= jobs / 5:
            return float(within / (end - begin))
    begin, end = min(a["first"] for a in busy), max(a["last"] for a in busy)
    return float((jobs - 1) / max(end - begin, 1e-9))


def waits(sent: Iterable[Sequence[float]], answers: Iterable[Answer]) -> list[tuple[float, float]]:
    """For each job when its enqueue returned, and how long after that its handler was called.

    Raises:
        BenchError: A job was not run, or twice.
    """
    picked: dict[int, float] = {}
    for answer in answers:
        for number, at in answer["picked"]:
            if number in picked:
                raise BenchError(f"job {number} was run twice")
            picked[number] = at
    # Of (number, before, after) or (number, after).
    returned = {int(entry[0]): float(entry[-1]) for entry in sent}
    if picked.keys() != returned.keys():
        raise BenchError(f"{len(returned)} jobs were enqueued and {len(picked)} were run")
    return sorted((at, picked[number] - at) for number, at in returned.items())


def cpu_share(answer: Answer) -> float:
    """How much of one processor a worker used between its first and its last job."""
    inside = [s for s in answer["samples"] if answer["first"] <= s[0] <= answer["last"]]
    if len(inside) < 2:
        inside = answer["samples"]
    seconds = inside[-1][0] - inside[0][0]
    return float((inside[-1][1] - inside[0][1]) / seconds) if seconds > 0 else 0.0


def memory(answer: Answer) -> tuple[int, int, int]:
    """Resident bytes of a worker at a quarter, at half and at the end of its work."""
    begin, end = answer["first"], answer["last"]
    inside = [s for s in answer["samples"] if begin <= s[0] <= end] or answer["samples"]
    quarter, half = (inside[len(inside) // part] for part in (4, 2))
    return quarter[2], half[2], inside[-1][2]


# ---- the workloads --------------------------------------------------------------------------


def drain(arena: Arena, jobs: int, *, processes: int = 1, **options: Any) -> list[Answer]:
    """Let workers do all jobs that are there: what each has seen.

    Raises:
        BenchError: Not every job was run exactly once.
    """
    arena.checkpoint()
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(arena.contestant.start("work", **options)) for _ in range(processes)
        ]
        arena.wait_until_drained(jobs, workers)
        answers = [worker.stop() for worker in workers]
    _check_count(arena, jobs, answers)
    return answers


def _check_count(arena: Arena, jobs: int, answers: Iterable[Answer]) -> None:
    run = sum(answer["count"] for answer in answers)
    if run != jobs:
        raise BenchError(f"{arena.contestant.name} has run {run} of {jobs} jobs")


def w1(arena: Arena) -> Iterator[Measurement]:
    """Enqueue: one job, one commit, one client."""
    jobs = arena.sized(2_000)
    ours = {
        "Session": "session",
        "Session by hand": "core-session",
        "Connection": "connection",
        "Connection by hand": "core-connection",
    }
    for variant, through in (ours if arena.is_ours else {"": ""}).items():
        arena.checkpoint()
        answer = arena.contestant.call("enqueue", jobs=jobs, through=through)
        yield arena.measured("W1", jobs, variant, jobs_per_second=jobs / answer["seconds"])
        arena.clean()


def w1b(arena: Arena) -> Iterator[Measurement]:
    """Enqueue: 16 connections beside a worker, commits of 1 ms; with and without wake-up."""
    processes, clients = 4, 4
    jobs = arena.sized(20_000, least=160) // (processes * clients) * clients
    settings = {"commit_delay": "1000"} if arena.may_set("commit_delay") else {}
    for variant, notify in (("wake-up", True), ("no wake-up", False)):
        arena.checkpoint()
        with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
            worker = stack.enter_context(arena.contestant.start("work", latency=True))
            worker.wait_until_ready()
            go = Path(folder, "go")
            producers = [
                stack.enter_context(
                    arena.contestant.start(
                        "enqueue",
                        jobs=jobs,
                        clients=clients,
                        through="connection",
                        notify=notify,
                        set=settings,
                        go_file=str(go),
                    )
                )
                for _ in range(processes)
            ]
            for producer in producers:
                producer.wait_until_ready()
            go.touch()
            sent = [producer.answer(600) for producer in producers]
            arena.wait_until_drained(jobs * processes, [worker])
            _check_count(arena, jobs * processes, [worker.stop()])
        seconds = max(answer["ended"] for answer in sent) - min(a["began"] for a in sent)
        yield arena.measured(
            "W1b", jobs * processes, variant, jobs_per_second=jobs * processes / seconds
        )
        arena.clean()


def w2(arena: Arena) -> Iterator[Measurement]:
    """Enqueue: all jobs in one transaction."""
    jobs = arena.sized(100_000)
    arena.checkpoint()
    answer = arena.contestant.call("bulk", jobs=jobs)
    yield arena.measured("W2", jobs, "", jobs_per_second=jobs / answer["seconds"])
    arena.clean()


def w3(arena: Arena) -> Iterator[Measurement]:
    """Drain by one process."""
    jobs = arena.sized(FULL_DRAIN)
    ours: dict[str, dict[str, Any]] = {
        "AsyncWorker": {},
        "Worker": {"kind": "threads"},
        "AsyncWorker, 1 KiB arg": {"arg_bytes": 1024},
        "Worker, 1 KiB arg": {"kind": "threads", "arg_bytes": 1024},
        "AsyncWorker, concurrency 10": {"concurrency": 10},
        "Worker, concurrency 10": {"kind": "threads", "concurrency": 10},
    }
    theirs: dict[str, dict[str, Any]] = {"": {}, "1 KiB arg": {"arg_bytes": 1024}}
    for variant, options in (ours if arena.is_ours else theirs).items():
        arena.contestant.call("bulk", jobs=jobs, **options)
        answers = drain(arena, jobs, **options)
        yield arena.measured(
            "W3",
            jobs,
            variant,
            jobs_per_second=rate(answers),
            **_used_cpu(answers),
        )
        arena.clean()
    if arena.is_ours:
        arena.contestant.call("bulk", jobs=jobs)
        arena.checkpoint()
        answer = arena.contestant.call("raw")
        _check_count(arena, jobs, [{"count": answer["jobs"]}])
        yield arena.measured(
            "W3", jobs, "statements alone", jobs_per_second=jobs / answer["seconds"]
        )
        arena.clean()


def _used_cpu(answers: Sequence[Answer]) -> dict[str, float]:
    return {"worker_cpu": cpu_share(answers[0])} if "samples" in answers[0] else {}


def w4(arena: Arena) -> Iterator[Measurement]:
    """Drain by two processes."""
    jobs = arena.sized(FULL_DRAIN)
    for variant, options in _kinds(arena).items():
        arena.contestant.call("bulk", jobs=jobs)
        answers = drain(arena, jobs, processes=2, **options)
        yield arena.measured("W4", jobs, variant, jobs_per_second=rate(answers))
        arena.clean()


def _kinds(arena: Arena) -> dict[str, dict[str, str]]:
    if not arena.is_ours:
        return {"": {}}
    return {"AsyncWorker": {"kind": "async"}, "Worker": {"kind": "threads"}}


def w5(arena: Arena) -> Iterator[Measurement]:
    """Pick-up by an idle worker: from the return of enqueue to the handler, a job each 50 ms."""
    jobs = arena.sized(400, least=10)
    for variant, options in _kinds(arena).items():
        arena.checkpoint()
        with arena.contestant.start("work", latency=True, **options) as worker:
            worker.wait_until_ready()
            sent = arena.contestant.call("pulse", jobs=jobs, interval=0.05)["sent"]
            arena.wait_until_drained(jobs, [worker])
            found = waits(sent, [worker.stop()])
        milliseconds = [wait * 1000 for _, wait in found]
        yield arena.measured(
            "W5",
            jobs,
            variant,
            p50_ms=percentile(milliseconds, 0.5),
            p99_ms=percentile(milliseconds, 0.99),
        )
        arena.clean()


def w6(arena: Arena) -> Iterator[Measurement]:
    """Depth: the first jobs of a small and of a big backlog; a poll where all are scheduled."""
    jobs, backlog = arena.sized(10_000), arena.sized(1_000_000)
    small = _first_of(arena, jobs, jobs)
    big = _first_of(arena, backlog, jobs)
    yield arena.measured("W6", jobs, "small backlog", jobs_per_second=small)
    yield arena.measured("W6", backlog, "big backlog", jobs_per_second=big, ratio=big / small)
    day = 86_400
    arena.contestant.call("fill", jobs=backlog, delay=day, priorities=5)
    buffers = arena.contestant.call("poll")["buffers"]
    yield arena.measured("W6", backlog, "idle poll", buffers=sum(buffers.values()))
    arena.clean()


def _first_of(arena: Arena, backlog: int, jobs: int) -> float:
    """Jobs a second of the first so many of a backlog."""
    arena.contestant.call("fill", jobs=backlog)
    arena.checkpoint()
    with arena.contestant.start("work", enough=jobs) as worker:
        answer = worker.answer(600)
    arena.clean()
    return (jobs - 1) / (reached(answer, jobs) - float(answer["first"]))


def w7(arena: Arena) -> Iterator[Measurement]:
    """Drain beside an open transaction: the first and the last tenth."""
    jobs = arena.sized(100_000)
    part = max(jobs // 10, 2)
    with arena.pinned():
        arena.contestant.call("bulk", jobs=jobs)
        answer = drain(arena, jobs)[0]
    first = (part - 1) / (reached(answer, part) - answer["first"])
    last = part / (answer["last"] - reached(answer, jobs - part))
    yield arena.measured(
        "W7",
        jobs,
        "AsyncWorker" if arena.is_ours else "",
        first_per_second=first,
        last_per_second=last,
        ratio=last / first,
    )
    arena.clean()


def w7b(arena: Arena) -> Iterator[Measurement]:
    """Pick-up at 500 jobs/s beside an open transaction, from transactions of 300 ms."""
    seconds = arena.lasting(120)
    window = seconds / 12
    with arena.pinned():
        found, _ = _streamed(arena, rate=500, per_commit=10, held=0.3, seconds=seconds)
    begin, end = found[0][0], found[-1][0]
    early = [wait for at, wait in found if at <= begin + window]
    late = [wait for at, wait in found if at >= end - window]
    yield arena.measured(
        "W7b",
        len(found),
        "AsyncWorker",
        p50_ms=percentile((wait for _, wait in found), 0.5) * 1000,
        p99_ms=percentile((wait for _, wait in found), 0.99) * 1000,
        first_p99_ms=percentile(early, 0.99) * 1000,
        last_p99_ms=percentile(late, 0.99) * 1000,
    )
    arena.clean()


def _streamed(
    arena: Arena, *, seconds: float, **options: Any
) -> tuple[list[tuple[float, float]], dict[str, Answer]]:
    """Enqueue steadily beside one worker: the waits, and what both have answered."""
    arena.checkpoint()
    with arena.contestant.start("work", latency=True) as worker:
        worker.wait_until_ready()
        # In a process, since its threads would outlive an interrupted harness.
        with arena.contestant.start("stream", seconds=seconds, **options) as streaming:
            producer = streaming.answer(seconds + 120)
        arena.wait_until_drained(len(producer["sent"]), [worker])
        answer = worker.stop()
    return waits(producer["sent"], [answer]), {"producer": producer, "worker": answer}


def w8(arena: Arena) -> Iterator[Measurement]:
    """A handler that writes a row through ctx.session, against the same by hand."""
    jobs = arena.sized(3_000)
    arena.contestant.call("bulk", jobs=jobs, kind="threads", handler="session")
    worker = rate(drain(arena, jobs, kind="threads", handler="session", concurrency=1))
    _check_effects(arena, jobs)
    arena.clean()
    arena.contestant.call("bulk", jobs=jobs, kind="threads", handler="session")
    arena.checkpoint()
    answer = arena.contestant.call("by_hand")
    _check_effects(arena, jobs)
    by_hand = jobs / answer["seconds"]
    yield arena.measured("W8", jobs, "Worker", jobs_per_second=worker, ratio=worker / by_hand)
    yield arena.measured("W8", jobs, "by hand", jobs_per_second=by_hand)
    arena.clean()


def _check_effects(arena: Arena, jobs: int) -> None:
    schema = arena.contestant.options.get("schema")
    table = f"{schema}.bench_effect" if schema else "bench_effect"
    rows = arena.scalar(f"SELECT count(*) FROM {table}")  # noqa: S608 - our own
    if rows != jobs:
        raise BenchError(f"{jobs} handlers have written {rows} rows")


def w9(arena: Arena) -> Iterator[Measurement]:
    """Handlers that await 1 ms, 256 at once: ideally 256,000 jobs/s."""
    jobs, slots = arena.sized(FULL_DRAIN), 256
    arena.contestant.call("bulk", jobs=jobs, handler="sleep")
    answer = drain(arena, jobs, handler="sleep", concurrency=slots)[0]
    found = rate([answer])
    yield arena.measured(
        "W9",
        jobs,
        "AsyncWorker",
        jobs_per_second=found,
        share_of_ideal=found / (slots / 0.001),
        worker_cpu=cpu_share(answer),
    )
    arena.clean()


def w10(arena: Arena) -> Iterator[Measurement]:
    """Steady 2,000 jobs/s: pick-up, and what it costs."""
    seconds = arena.lasting(60)
    position = "pg_current_wal_lsn() - '0/0'::pg_lsn"
    wal, server = int(arena.scalar(f"SELECT {position}")), server_cpu(arena.engine)
    found, answers = _streamed(arena, rate=2_000, per_commit=20, seconds=seconds)
    wal = int(arena.scalar(f"SELECT {position}")) - wal
    after = server_cpu(arena.engine)
    schema = arena.contestant.options.get("schema") or "public"
    dead = arena.scalar(
        "SELECT n_dead_tup FROM pg_stat_user_tables"  # noqa: S608 - our own
        f" WHERE relname = 'bgjob_job' AND schemaname = '{schema}'"
    )
    jobs = len(found)
    quarter, _, end = memory(answers["worker"])
    figures = {
        "jobs_per_second": jobs / answers["producer"]["seconds"],
        "p50_ms": percentile((wait for _, wait in found), 0.5) * 1000,
        "p99_ms": percentile((wait for _, wait in found), 0.99) * 1000,
        "wal_bytes": wal / jobs,
        "dead_tuples": float(dead or 0),
        "worker_us": answers["worker"]["cpu_seconds"] / jobs * 1e6,
        "producer_us": answers["producer"]["cpu_seconds"] / jobs * 1e6,
        "rss_mib": end / 2**20,
        "rss_growth": end / quarter,
    }
    if server is not None and after is not None:
        figures["server_us"] = (after - server) / jobs * 1e6
    yield arena.measured("W10", jobs, "AsyncWorker", **figures)
    arena.clean()


def w11(arena: Arena) -> Iterator[Measurement]:
    """A tenth of the handlers take 10 s, the others 1 ms; two workers with slots for all slow."""
    jobs = arena.sized(1_000)
    slow = min(arena.lasting(10, least=0.2), 10.0)
    options: dict[str, Any] = {"handler": "mixed", "concurrency": max(jobs // 10, 1)}
    arena.checkpoint()
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(arena.contestant.start("work", latency=True, **options))
            for _ in range(2)
        ]
        for worker in workers:
            worker.wait_until_ready()
        sent = arena.contestant.call("bulk", jobs=jobs, slow_every=10, slow=slow, **options)
        arena.wait_until_drained(jobs, workers)
        answers = [worker.stop() for worker in workers]
    _check_count(arena, jobs, answers)
    found = waits([(number, sent["ended"]) for number in range(jobs)], answers)
    yield arena.measured("W11", jobs, "AsyncWorker", longest_wait_s=max(wait for _, wait in found))
    arena.clean()


@dataclass(frozen=True, slots=True)
class Workload:
    """One of the workloads, and whether other queues take part in it."""

    name: str
    run: Callable[[Arena], Iterator[Measurement]]
    for_all: bool = False

    @property
    def title(self) -> str:
        """What it is, in a line."""
        return (self.run.__doc__ or "").partition("\n")[0].rstrip(".")


WORKLOADS: Final[Mapping[str, Workload]] = {
    workload.name: workload
    for workload in (
        Workload("W1", w1, for_all=True),
        Workload("W1b", w1b),
        Workload("W2", w2, for_all=True),
        Workload("W3", w3, for_all=True),
        Workload("W4", w4, for_all=True),
        Workload("W5", w5, for_all=True),
        Workload("W6", w6),
        Workload("W7", w7, for_all=True),
        Workload("W7b", w7b),
        Workload("W8", w8),
        Workload("W9", w9),
        Workload("W10", w10),
        Workload("W11", w11),
    )
}


def chosen(only: str | None) -> list[Workload]:
    """The workloads of a list such as ``W1,W3``; all of them without one.

    Raises:
        CommandError: There is no such workload.
    """
    if only is None:
        return list(WORKLOADS.values())
    names = {name.lower(): workload for name, workload in WORKLOADS.items()}
    wanted = [name.strip().lower() for name in only.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in names]
    if unknown or not wanted:
        raise CommandError(
            USAGE,
            f"there is no workload {', '.join(map(repr, unknown)) or repr(only)}; "
            f"choose from {', '.join(WORKLOADS)}",
        )
    return [workload for name, workload in names.items() if name in wanted]


# ---- what the numbers are from --------------------------------------------------------------


def server_cpu(engine: Engine) -> float | None:
    """Processor seconds that the server has used, if it runs where this does and can be seen."""
    with engine.connect() as connection:
        pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        backend = _process_stat(pid)
    if backend is None or backend[0] != "postgres":
        return None
    postmaster = _process_stat(int(backend[1][1]))
    if postmaster is None or postmaster[0] != "postgres":
        return None
    # Its own, and those of the children that have ended.
    ticks = sum(int(value) for value in postmaster[1][11:15])
    for path in Path("/proc").iterdir():
        child = _process_stat(int(path.name)) if path.name.isdecimal() else None
        if child is not None and child[1][1] == backend[1][1]:
            ticks += int(child[1][11]) + int(child[1][12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _process_stat(pid: int) -> tuple[str, list[str]] | None:
    """A process's name, and the fields of /proc/PID/stat that follow it: state, parent, ..."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    name, _, rest = text.partition("(")[2].rpartition(")")
    return name, rest.split()


def versions() -> dict[str, str]:
    """Of what the figures depend on."""
    found = {OURS: __version__, "Python": platform.python_version()}
    for name in ("SQLAlchemy", "psycopg", "asyncpg", "greenlet"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def machine() -> dict[str, Any]:
    """Processor, cores and memory."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    found: dict[str, Any] = {
        "processor": model,
        "cores": os.cpu_count(),
        "system": platform.platform(),
    }
    with contextlib.suppress(OSError, ValueError):
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        found["memory_gib"] = round(pages / 2**30, 1)
    return found


SERVER_SETTINGS: Final = (
    "server_version",
    "shared_buffers",
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "wal_level",
    "max_wal_size",
    "autovacuum",
)


def server_settings(engine: Engine) -> dict[str, str]:
    """The server's version, and what its speed depends on."""
    with engine.connect() as connection:
        return {
            name: connection.exec_driver_sql(f"SHOW {name}").scalar_one()
            for name in SERVER_SETTINGS
        }


# ---- the report -----------------------------------------------------------------------------

FIGURES: Final[Mapping[str, str]] = {
    "jobs_per_second": "{:,.0f} jobs/s",
    "first_per_second": "first tenth {:,.0f} jobs/s",
    "last_per_second": "last tenth {:,.0f} jobs/s",
    "ratio": "ratio {:.2f}",
    "p50_ms": "p50 {:.2f} ms",
    "p99_ms": "p99 {:.2f} ms",
    "first_p99_ms": "p99 at first {:.2f} ms",
    "last_p99_ms": "p99 at last {:.2f} ms",
    "buffers": "{:,.0f} buffers",
    "share_of_ideal": "{:.0%} of the ideal",
    "worker_cpu": "{:.0%} of a core",
    "wal_bytes": "{:,.0f} bytes of WAL a job",
    "dead_tuples": "{:,.0f} dead tuples at the end",
    "worker_us": "worker {:,.0f} us a job",
    "producer_us": "producer {:,.0f} us a job",
    "server_us": "server {:,.0f} us a job",
    "rss_mib": "RSS {:,.0f} MiB",
    "rss_growth": "{:.2f} times that at a quarter",
    "longest_wait_s": "longest wait {:.2f} s",
}
"""How each figure is written."""


def columns(rows: Sequence[Sequence[str]], indent: str = "") -> Iterator[str]:
    """Rows with their columns aligned, the last one as it is."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)]
        yield (indent + "  ".join(cells)).rstrip()


def in_words(figures: Mapping[str, float]) -> str:
    """Figures as they are printed."""
    return ", ".join(FIGURES[name].format(value) for name, value in figures.items())


def section(workload: Workload, measurements: Sequence[Measurement]) -> Iterator[str]:
    """A workload's title, and a line for each variant."""
    yield f"{workload.name}  {workload.title}"
    rows = [
        (m.variant or m.contestant, f"{m.jobs:,} jobs", in_words(m.figures)) for m in measurements
    ]
    yield from columns(rows, indent="  ")


def document(
    measurements: Sequence[Measurement], *, scale: float, server: Mapping[str, str], **more: Any
) -> dict[str, Any]:
    """All of it, for a JSON file."""
    return {
        "scale": scale,
        "versions": versions(),
        "machine": machine(),
        "server": dict(server),
        **more,
        "measurements": [asdict(measurement) for measurement in measurements],
    }


# ---- the command ----------------------------------------------------------------------------


def run_bench(
    *,
    database_url: str | None,
    only: str | None = None,
    jobs: int | None = None,
    scale: float | None = None,
    json_path: Path | None = None,
) -> int:
    """Run the workloads on a database, in a schema that is removed again; the exit code.

    Raises:
        CommandError: Something is not installed, the database refuses, or a measurement failed.
    """
    if jobs is not None and scale is not None:
        raise CommandError(USAGE, "give either --jobs or --scale")
    factor = scale or (jobs or FULL_DRAIN) / FULL_DRAIN
    workloads = chosen(only)
    url = _bench_url(database_url)
    for number in _SIGNALS:
        signal.signal(number, _exit)
    try:
        measurements, server = _run_in_schema(url, workloads, factor)
    except BenchError as error:
        raise CommandError(FAILED, str(error)) from None
    except DBAPIError as error:
        raise CommandError(DATABASE, f"the database refuses: {database_message(error)}") from None
    if json_path is not None:
        found = document(measurements, scale=factor, server=server)
        json_path.write_text(json.dumps(found, indent=2) + "\n")
    return OK


_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(SIGNALLED + number)


def _bench_url(given: str | None) -> "URL":
    url = sync_url(parse(given))
    if url is None or not is_installed("psycopg"):
        raise CommandError(
            USAGE, 'the benchmark needs psycopg; pip install "sqlalchemy-bgjob[psycopg]"'
        )
    if not is_installed("greenlet"):
        raise CommandError(
            USAGE, 'AsyncWorker needs greenlet; pip install "sqlalchemy-bgjob[asyncio]"'
        )
    return url.set(drivername="postgresql+psycopg")


def async_driver(url: "URL") -> str:
    """The driver of AsyncWorker: asyncpg where it is installed, and takes such a URL."""
    takes_it = set(url.query) <= {"host", "port"}
    return "asyncpg" if takes_it and is_installed("asyncpg") else "psycopg"


def our_contestant(url: "URL", schema: str | None = None) -> Contestant:
    """This package, on a database."""
    options: dict[str, Any] = {"driver": async_driver(url)}
    if schema is not None:
        options["schema"] = schema
    dsn = url.render_as_string(hide_password=False)
    return Contestant(
        name=OURS,
        argv=(sys.executable, "-m", "sqlalchemy_bgjob._bench_app"),
        dsn="-",
        options=options,
        environment={"BGJOB_DATABASE_URL": dsn},
        here=lambda command, given: COMMANDS[command](App(dsn, given)),
    )


def harness_engine(url: "URL | str") -> Engine:
    """The harness's own way to a database."""
    plain = make_url(url).set(drivername="postgresql+psycopg")
    return create_engine(plain, isolation_level="AUTOCOMMIT", poolclass=NullPool)


def _run_in_schema(
    url: "URL", workloads: Sequence[Workload], scale: float
) -> tuple[list[Measurement], dict[str, str]]:
    schema = f"bgjob_bench_{secrets.token_hex(4)}"
    engine = harness_engine(url)
    server = server_settings(engine)
    click.echo(f"in schema {schema} of PostgreSQL {server['server_version']}", err=True)
    measurements: list[Measurement] = []
    try:
        arena = Arena.prepare(our_contestant(url, schema), engine, scale)
        for workload in workloads:
            click.echo(f"{workload.name} ...", err=True)
            found = list(workload.run(arena))
            measurements += found
            for line in section(workload, found):
                click.echo(line)
    finally:
        # A second Ctrl-C must not leave the schema behind.
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        with engine.connect() as connection:
            connection.execute(DropSchema(schema, cascade=True, if_exists=True))
    return measurements, server
