"""Workers as real processes: start, look, signal, and always clean up."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest
from sqlalchemy import Engine, func, select, text

from support import pooler, worker_app
from support.databases import with_driver
from support.forks import Fork, can_fork, interpreter
from support.history import Found, History
from support.record import KEEP_RECORD, READ_RECORD, Change, record_problems
from support.waiting import wait_until
from support.worker_app import App, Config, Journal, Kind, make_app

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterable, Mapping, Sequence
    from types import TracebackType

    from sqlalchemy_bgjob.testing.faults import KillPoint

FAST: dict[str, Any] = {
    "heartbeat_interval": 0.5,
    "lease_timeout": 2.0,
    "rescue_interval": 0.2,
    "poll_interval": 0.2,
    "orphan_interval": 1.0,
}
"""Settings under which a lost worker is found within seconds."""

DRIVERS: dict[str, Kind] = {"psycopg": "sync", "psycopg2": "sync", "asyncpg": "async"}
START_SECONDS = 120.0
_TESTS = Path(__file__).parent.parent


@dataclass(frozen=True)
class Variant:
    """Which worker, on which driver."""

    kind: Kind
    driver: str

    def __str__(self) -> str:
        return f"{self.kind}-{self.driver}"


THREADS = Variant("sync", "psycopg")
ASYNC = Variant("async", "asyncpg")
VARIANTS = (THREADS, Variant("async", "psycopg"), ASYNC)
TWO = (THREADS, ASYNC)
ONE = (THREADS, pytest.param(ASYNC, marks=pytest.mark.chaos))
"""Threads always, coroutines when there is time."""
ALL_DRIVERS = (*VARIANTS, Variant("sync", "psycopg2"))


class WorkerProcess:
    """One worker process."""

    def __init__(self, config: Config, log: Path, checkout: Path | None = None) -> None:
        self.config = config
        self.log_path = log
        env = {**os.environ, **config.environment()}
        output = (log, log)
        self._process: Fork | subprocess.Popen[bytes]
        if checkout is None and can_fork(env):
            self._process = Fork(worker_app.main, cwd=_TESTS, env=env, output=output)
        else:
            argv = (sys.executable, "-m", "support.worker_app")
            cwd = _TESTS if checkout is None else checkout / "tests"
            env |= of_checkout(checkout)
            self._process = interpreter(argv, cwd=cwd, env=env, output=output)
        self.pid = self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        return self._process.poll()

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait until the process is gone."""
        self._process.kill()
        # Before it is waited for: nothing is started elsewhere sooner.
        Journal(Path(self.config.journal)).note("killed", killed_pid=self.pid)
        self._process.wait()

    def dies(self, seconds: float = 30.0) -> None:
        """Wait until the process has ended as by SIGKILL, which it has done to itself."""
        assert self.wait(seconds) == -signal.SIGKILL, self.log
        Journal(Path(self.config.journal)).note("killed", killed_pid=self.pid)

    def wait(self, seconds: float = 30.0) -> int:
        """The exit code; fails the test if the process does not end in time."""
        wait_until(lambda: not self.alive, seconds, what=f"the end of process {self.pid}")
        assert self.exit_code is not None
        return self.exit_code

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def clean_up(self) -> None:
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGCONT)
            self._process.kill()
        self._process.wait()


def of_checkout(checkout: Path | None) -> dict[str, str]:
    """The environment in which Python imports the package from there."""
    return {} if checkout is None else {"PYTHONPATH": str(checkout)}


class Fleet:
    """The processes of one test, their database and their journal.

    Args:
        engine: How the test itself looks at the database.
        folder: Where the journal and the processes' output go.
        variant: Which worker runs in them.
    """

    def __init__(self, engine: Engine, folder: Path, variant: Variant = THREADS) -> None:
        self.engine = engine
        self.variant = variant
        self.journal = Journal(folder / "journal")
        self.app: App = make_app(variant.kind, self.journal)
        self._folder = folder
        self._processes: list[WorkerProcess] = []

    def create_tables(self) -> None:
        self.app.jobs.metadata.create_all(self.engine)
        with self.engine.begin() as connection:
            for statement in KEEP_RECORD:
                connection.execute(text(statement))

    def start(
        self,
        *,
        url: str | None = None,
        variant: Variant | None = None,
        slots: int = 10,
        crash_attempts: int = 4,
        dies_after: KillPoint | None = None,
        dies_skip: int = 0,
        debug: bool = False,
        pooled: bool | None = None,
        mutant: str | None = None,
        checkout: Path | None = None,
        schedule: bool = False,
        wait: bool = True,
        **settings: Any,
    ) -> WorkerProcess:
        """Start a process; with *wait*, return when its worker is registered.

        It runs the code of *checkout*, by default that of the test.
        """
        url = url or self.engine.url.render_as_string(hide_password=False)
        variant = variant or self.variant
        config = Config(
            url=with_driver(url, variant.driver),
            journal=str(self.journal.path),
            kind=variant.kind,
            slots=slots,
            crash_attempts=crash_attempts,
            dies_after=dies_after,
            dies_skip=dies_skip,
            debug=debug,
            pooled=bool(os.environ.get(pooler.VARIABLE)) if pooled is None else pooled,
            mutant=mutant,
            schedule=schedule,
            settings=settings,
        )
        return self._add(config, wait=wait, checkout=checkout)

    def start_again(self, process: WorkerProcess) -> WorkerProcess:
        """Start another process like one that has ended."""
        return self._add(replace(process.config), wait=False)

    def _add(self, config: Config, *, wait: bool, checkout: Path | None = None) -> WorkerProcess:
        process = WorkerProcess(config, self._folder / f"log{len(self._processes)}", checkout)
        self._processes.append(process)
        if wait:
            self.wait_for(process)
        return process

    def wait_for(self, process: WorkerProcess) -> int:
        """The id of a process's worker, once it is registered and, if it may, listens."""
        # Behind a pooler nobody does.
        listens = process.config.settings.get("listen", True) and not process.config.pooled

        def registered() -> int | None:
            assert process.alive, f"the worker ended:\n{process.log}"
            row = self.app.jobs.WorkerRow
            query = select(row.id).where(row.pid == process.pid, row.lost_at.is_(None))
            if listens:
                query = query.where(row.listener_pid.is_not(None))
            with self.engine.connect() as connection:
                return connection.execute(query).scalar()

        found = wait_until(registered, START_SECONDS, what="the worker's registration")
        assert found is not None
        return found

    def claim_in_transactions(self) -> None:
        """Let workers that start from now on never send a claim that commits by itself."""
        with self.engine.begin() as connection:
            name = connection.scalar(text("SELECT quote_ident(current_database())"))
            connection.execute(
                text(f"ALTER DATABASE {name} SET default_transaction_isolation TO 'serializable'")
            )

    # ---- what the database says ---------------------------------------------------------------

    def scalar(self, sql: str, **values: Any) -> Any:
        with self.engine.connect() as connection:
            return connection.execute(text(sql), values).scalar()

    def rows(self, sql: str, **values: Any) -> list[Any]:
        with self.engine.connect() as connection:
            return list(connection.execute(text(sql), values).all())

    @property
    def jobs_left(self) -> int:
        with self.engine.connect() as connection:
            job = self.app.jobs.models.job
            return connection.execute(select(func.count()).select_from(job)).scalar_one()

    @property
    def workers(self) -> int:
        return int(self.scalar("SELECT count(*) FROM bgjob_worker"))

    def claimed_by(self, process: WorkerProcess) -> list[str]:
        """The ids of the jobs that a process's workers have claimed."""
        rows = self.rows(
            "SELECT j.id FROM bgjob_job j JOIN bgjob_worker w ON w.id = j.claimed_by"
            " WHERE w.pid = :pid ORDER BY j.id",
            pid=process.pid,
        )
        return [row[0] for row in rows]

    def started_by(self, process: WorkerProcess) -> list[str]:
        """The ids of the jobs that a process has started, in order."""
        return [line["id"] for line in self.journal.read("start") if line["pid"] == process.pid]

    def wait_for_starts(self, count: int, process: WorkerProcess, seconds: float = 60.0) -> None:
        """Wait until a process has been seen to start so many jobs."""
        wait_until(
            lambda: len(self.started_by(process)) >= count, seconds, what=f"{count} starts there"
        )

    def wait_until_done(self, seconds: float = 30.0) -> None:
        """Wait until no job is left."""
        wait_until(lambda: self.jobs_left == 0, seconds, what="the end of all jobs")

    def effects(self) -> dict[str, int]:
        """How often each job's writes were committed."""
        rows = self.rows("SELECT job_id, count(*) FROM effect GROUP BY job_id")
        return {row[0]: row[1] for row in rows}

    def check(
        self,
        committed: Iterable[str],
        *,
        with_effects: Iterable[str] = (),
        faults: int = 0,
        lives: int = 1,
    ) -> None:
        """Fail the test if what has happened to these jobs must not happen."""
        problems = self.problems(committed, with_effects=with_effects, faults=faults, lives=lives)
        assert not problems, "\n".join(problems)

    def problems(
        self,
        committed: Iterable[str],
        *,
        with_effects: Iterable[str] = (),
        rolled_back: Iterable[str] = (),
        faults: int = 0,
        lives: int = 1,
        schedules: Mapping[str, Iterable[str]] | None = None,
        told_within: float = 5.0,
        cancelled: Iterable[str] = (),
        pauses: Sequence[tuple[float, float]] = (),
    ) -> list[str]:
        """What must not have happened to these jobs, in the journal and in the table's record."""
        ids = frozenset(committed)
        problems: list[str] = []

        def none() -> bool:
            nonlocal problems
            record = self.record
            history = History(
                self.journal.read(),
                committed=ids,
                with_effects=frozenset(with_effects),
                rolled_back=frozenset(rolled_back),
                faults=faults,
                lives=dict.fromkeys(ids, lives),
                handed_back=frozenset((c.id, c.lease_before) for c in record if c.handed_back),
                schedules=schedules or {},
                cancelled=frozenset(cancelled),
                asked={c.id: c.lease for c in record if c.asked},
                late=frozenset((c.id, c.lease) for c in record if c.late),
                pauses=pauses,
            )
            dead = self.rows("SELECT job_id FROM bgjob_dead_job")
            found = Found(
                left=frozenset(row.id for row in self.rows("SELECT id FROM bgjob_job")),
                dead=frozenset(row.job_id for row in dead),
                effects=self.effects(),
                seen=frozenset(row.n for row in self.rows("SELECT n FROM seen")),
            )
            done = record_problems(record, cancelled=bool(history.cancelled))
            problems = [*history.problems(found), *done]
            return not problems

        # Observers are told a moment after the commit.
        with contextlib.suppress(AssertionError):
            wait_until(none, told_within)
        return problems

    def fire_times(self, schedule: str) -> list[str]:
        """Those for which a job of a schedule has started, ascending."""
        starts = self.journal.read("start")
        return sorted({line["fire_time"] for line in starts if line["schedule"] == schedule})

    def schedule_problems(self, schedule: str, *, faults: int) -> list[str]:
        """Pause a schedule of each second, and say what must not have happened to it."""
        self.app.jobs.schedules.pause(self.engine, schedule)
        # A job that was held by several killed workers waits for up to a minute.
        self.wait_until_done(120)
        first = datetime.fromisoformat(self.fire_times(schedule)[0])
        last = self.scalar("SELECT last_at FROM bgjob_schedule WHERE name = :name", name=schedule)
        seconds = int((last - first).total_seconds())
        expected = [(first + timedelta(seconds=n)).isoformat() for n in range(seconds + 1)]
        ids = {change.id for change in self.record if change.did == "INSERT"}
        return self.problems(ids, schedules={schedule: expected}, faults=faults)

    @property
    def record(self) -> list[Change]:
        """Every change of every job, in the order in which they were made."""
        return [Change(*row) for row in self.rows(READ_RECORD)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        for process in self._processes:
            process.clean_up()
        if exc is not None:
            for process in self._processes:
                print(f"---- output of process {process.pid}:\n{process.log[-4000:]}")
