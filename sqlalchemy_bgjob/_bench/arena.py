"""The contestants of the benchmark, and the arena in which each is measured.

A contestant is a queue behind the protocol of ``_bench.app``: commands of one process each, which
print one line of JSON. The arena is its database: whether a backlog is gone, a transaction that
is held open, clean tables for the next workload.
"""

import contextlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from ..exceptions import BGJobError

OURS: Final = "sqlalchemy-bgjob"
FULL_DRAIN: Final = 50_000
"""Jobs of W3 at scale 1, by which --jobs is understood."""
START_TIMEOUT: Final = 60.0
STALLED_AFTER: Final = 120.0
"""Seconds beyond what a slow queue needs, after which a drain is given up."""
SLOWEST: Final = 200
"""Jobs a second below which a drain is given up."""
BATCHED_PAUSE: Final = 0.02
"""How often to look for the end of a drain, where the end is not in the workers' notes."""

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
        figures: Values by the names of ``bench.FIGURES``.
        round: Which of several runs.
    """

    workload: str
    contestant: str
    variant: str
    jobs: int
    figures: Mapping[str, float]
    round: int = 1


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


@dataclass(slots=True)
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
        batched: Whether a handler is called with many jobs, which are not done one by one.
        is_slow: Whether its drains are smaller, lest they take all day; None until one has shown.
    """

    contestant: Contestant
    engine: Engine
    version: str
    settings: str
    remaining_sql: str
    clean_sql: Sequence[str] = ()
    can_empty: bool = True
    scale: float = 1.0
    batched: bool = False
    is_slow: bool | None = None

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
            batched=bool(found.get("batched")),
        )

    @property
    def is_ours(self) -> bool:
        """Whether the contestant is this package."""
        return self.contestant.name == OURS

    def sized(self, full: int, least: int = 20) -> int:
        """How many jobs instead of *full*."""
        return max(least, round(full * self.scale))

    def drained(self, full: int) -> int:
        """How many jobs instead of *full* in a drain; a tenth of them where that is slow."""
        return self.sized(full // 10 if self.is_slow else full)

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

    def wait_until_drained(self, jobs: int, workers: Iterable[Running]) -> float:
        """Return when no job is left: when that was seen.

        Raises:
            BenchError: A worker has failed, or it takes too long.
        """
        # Rarely, since the question is asked of the server that is measured.
        pause = BATCHED_PAUSE if self.batched else min(max(jobs / 100_000, 0.05), 0.5)
        deadline = time.monotonic() + STALLED_AFTER + jobs / SLOWEST
        with self.engine.connect() as connection:
            while True:
                asked_at = time.monotonic()
                if not connection.exec_driver_sql(self.remaining_sql).scalar():
                    return asked_at
                for worker in workers:
                    worker.check()
                if time.monotonic() > deadline:
                    raise BenchError(f"{self.contestant.name} leaves jobs lying")
                time.sleep(pause)

    def measured(self, workload: str, jobs: int, variant: str, **figures: float) -> Measurement:
        """A measurement of this contestant."""
        return Measurement(workload, self.contestant.name, variant, jobs, figures)
