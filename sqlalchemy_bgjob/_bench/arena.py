"""The arena in which a program is measured: its database, and the cleaning between runs."""

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
"""Jobs of W3 at scale 1; --jobs is relative to it."""
STALLED_AFTER: Final = 120.0
"""Seconds beyond the time at SLOWEST, after which a drain is given up."""
SLOWEST: Final = 200
"""Jobs a second that a drain must reach, or it is given up."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """The figures of one run of one workload.

    Attributes:
        workload: Its name, such as W1.
        contestant: The program's name.
        variant: The way it was used; empty if there is one way only.
        jobs: Number of jobs.
        figures: Values by the names of ``command.FIGURES``.
        round: Number of the run, if there are several.
    """

    workload: str
    contestant: str
    variant: str
    jobs: int
    figures: Mapping[str, float]
    round: int = 1


@dataclass
class Arena:
    """A program whose tables exist, and the harness's own engine.

    Attributes:
        program: The program to measure.
        engine: In AUTOCOMMIT.
        version: The program's.
        settings: The program's set-up, in words.
        remaining_sql: Whether any job is left.
        clean_sql: Empties the tables for the next workload.
        scale: Multiplies the sizes of the workloads.
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
        """The number of jobs: *full* times the scale, but no fewer than *least*."""
        return max(least, round(full * self.scale))

    def scalar(self, sql: str) -> Any:
        """Run a query; its single value."""
        with self.engine.connect() as connection:
            return connection.exec_driver_sql(sql).scalar()

    def clean(self) -> None:
        """Empty the tables."""
        with self.engine.connect() as connection:
            for sql in self.clean_sql:
                connection.exec_driver_sql(sql)

    def checkpoint(self) -> None:
        """CHECKPOINT, or a measurement would pay for the writes of the one before."""
        # A role may lack the right to it; then the server checkpoints when it likes.
        with contextlib.suppress(DBAPIError), self.engine.connect() as connection:
            connection.exec_driver_sql("CHECKPOINT")

    @contextlib.contextmanager
    def pinned(self) -> Iterator[None]:
        """Hold a snapshot open, so vacuum can't remove the rows that are deleted meanwhile."""
        with self.engine.connect() as connection:
            held = connection.execution_options(isolation_level="REPEATABLE READ")
            held.exec_driver_sql("SELECT 1")
            try:
                yield
            finally:
                held.rollback()

    def drain(self, jobs: int, *, processes: int = 1, **options: Any) -> list[Answer]:
        """Let workers run all jobs; the answer of each worker.

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
        """Seconds between two polls for the end of a drain."""
        # Seldom, as the poll is a load on the server that is measured.
        return min(max(jobs / 100_000, 0.05), 0.5)

    def wait_until_drained(self, jobs: int, workers: Iterable[Running]) -> None:
        """Return when no job is left.

        Raises:
            BenchError: A worker has failed, or the drain takes too long.
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
