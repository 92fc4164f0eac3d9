"""The arena in which a program is measured: its database, and what is done to it between runs."""

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from .program import Answer, BenchError, Program, Running

OURS: Final = "sqlalchemy-bgjob"
FULL_DRAIN: Final = 50_000
"""Jobs of W3 at scale 1, by which --jobs is understood."""
STALLED_AFTER: Final = 120.0
"""Seconds beyond what a slow queue needs, after which a drain is given up."""
SLOWEST: Final = 200
"""Jobs a second below which a drain is given up."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """The figures of one run of one workload.

    Attributes:
        workload: Its name, such as W1.
        contestant: The program's name.
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


@dataclass
class Arena:
    """A program with its tables made, and the harness's own way to the database.

    Attributes:
        program: What is measured.
        engine: In AUTOCOMMIT.
        version: Of the program.
        settings: How it is set up, in words.
        remaining_sql: Whether any job is left.
        clean_sql: Leaves empty tables, for the next workload.
        scale: By which the workloads' sizes are multiplied.
    """

    program: Program
    engine: Engine
    version: str
    settings: str
    remaining_sql: str
    clean_sql: Sequence[str] = ()
    scale: float = 1.0

    @classmethod
    def prepare(cls, program: Program, engine: Engine, scale: float = 1.0) -> Self:
        """Make the tables."""
        told = cls.told(program.call("install"))
        return cls(program=program, engine=engine, scale=scale, **told)

    @staticmethod
    def told(installed: Answer) -> Mapping[str, Any]:
        """The fields that the answer to ``install`` gives."""
        names = ("version", "settings", "remaining_sql", "clean_sql")
        return {name: installed[name] for name in names}

    def sized(self, full: int, least: int = 20) -> int:
        """How many jobs instead of *full*."""
        return max(least, round(full * self.scale))

    def scalar(self, sql: str) -> Any:
        """The one value of a query."""
        with self.engine.connect() as connection:
            return connection.exec_driver_sql(sql).scalar()

    def clean(self) -> None:
        """Leave no job behind."""
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

    def drain(self, jobs: int, *, processes: int = 1, **options: Any) -> list[Answer]:
        """Let workers do all jobs that are there: what each has seen.

        Raises:
            BenchError: Not every job was run exactly once.
        """
        self.checkpoint()
        with contextlib.ExitStack() as stack:
            workers = [
                stack.enter_context(self.program.start("work", **options)) for _ in range(processes)
            ]
            self.wait_until_drained(jobs, workers)
            answers = [worker.stop() for worker in workers]
        self.check_count(jobs, answers)
        return answers

    def check_count(self, jobs: int, answers: Iterable[Answer]) -> None:
        """Raise BenchError unless this many jobs were run."""
        run = sum(answer["count"] for answer in answers)
        if run != jobs:
            raise BenchError(f"{self.program.name} has run {run} of {jobs} jobs")

    def pause(self, jobs: int) -> float:
        """Seconds between two looks for the end of a drain."""
        # Rarely, since the question is asked of the server that is measured.
        return min(max(jobs / 100_000, 0.05), 0.5)

    def wait_until_drained(self, jobs: int, workers: Iterable[Running]) -> None:
        """Return when no job is left.

        Raises:
            BenchError: A worker has failed, or it takes too long.
        """
        pause = self.pause(jobs)
        deadline = time.monotonic() + STALLED_AFTER + jobs / SLOWEST
        with self.engine.connect() as connection:
            while True:
                if not connection.exec_driver_sql(self.remaining_sql).scalar():
                    return
                for worker in workers:
                    worker.check()
                if time.monotonic() > deadline:
                    raise BenchError(f"{self.program.name} leaves jobs lying")
                time.sleep(pause)

    def measured(self, workload: str, jobs: int, variant: str, **figures: float) -> Measurement:
        """A measurement of this program."""
        return Measurement(workload, self.program.name, variant, jobs, figures)
