"""Signals at any moment of a worker's life: it ends, soon, without a traceback, and nothing hangs.

While Python itself starts and imports the command line, a signal does what it does to any program.
"""

from __future__ import annotations

import array
import fcntl
import os
import random
import select as multiplex
import signal
import subprocess
import sys
import termios
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest
from sqlalchemy import Engine, func, select, text

from sqlalchemy_bgjob import enqueue, enqueue_many
from sqlalchemy_bgjob._process.signals import SAME_WITHIN, Requests
from support import cli_app as app
from support import wait_until, with_driver
from support.commands import TESTS, wait_till
from support.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.commands import Command

SIGNALS = (signal.SIGTERM, signal.SIGINT)
ENDS = {0, *(-number for number in SIGNALS), *(128 + number for number in SIGNALS)}
WITHIN = 6.0
"""Seconds for the end after the second signal; alone on a machine it takes less than two."""


def state(engine: Engine) -> list[tuple[int | None, int]]:
    """Who has claimed each job, and its attempt."""
    with engine.connect() as connection:
        found = connection.execute(text("SELECT claimed_by, attempt FROM bgjob_job"))
        return [(row.claimed_by, row.attempt) for row in found]


def signal_twice(command: Command, moment: float, gap: float, dice: random.Random) -> float:
    """Two signals at their times; the seconds from the second one to the end of the process.

    The second comes *gap* seconds after the first instant at which it is another request.
    """
    first, second_number = dice.sample(SIGNALS, 2)
    wait_till(moment)
    if command.alive:
        command.signal(first)
    wait_until(lambda: "draining" in command.stderr or not command.alive, 60)
    wait_till(time.monotonic() + SAME_WITHIN + gap)
    if command.alive:
        command.signal(second_number)
    second = time.monotonic()
    code = command.wait(30)
    # Python's own ways to end so, before it has come to the command line.
    python = ("Could not import runpy module", "Fatal Python error: init_import_site")
    starting = code == 1 and any(words in command.stderr for words in python)
    assert code in ENDS or starting, command.stderr
    importing = starting or (code == -signal.SIGINT and "cli.main(" not in command.stderr)
    assert importing or "Traceback" not in command.stderr, command.stderr
    took = time.monotonic() - second
    if took > WITHIN:
        print(f"took {took:.1f} s, {gap:.3f} s after the first:\n{command.stderr}")
    return took


def test_sigint_within_the_imports_ends_a_worker_as_sigterm_does(tmp_path: Path) -> None:
    (tmp_path / "sqlalchemy").mkdir()
    slow = "import time\nprint('importing', flush=True)\ntime.sleep(60)\n"
    (tmp_path / "sqlalchemy" / "__init__.py").write_text(slow)
    process = subprocess.Popen(
        [sys.executable, "-m", "sqlalchemy_bgjob", "worker", "app:jobs"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"

    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)

    assert process.returncode == -signal.SIGINT
    assert stderr == ""


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("kind", "driver", "rounds"),
    [
        ("functions", "psycopg", 1),
        pytest.param("functions", "psycopg", 100, marks=pytest.mark.chaos),
        pytest.param("coroutines", "asyncpg", 100, marks=pytest.mark.chaos),
    ],
)
def test_two_signals_at_any_moment_end_a_worker(
    tables: Engine,
    database_url: str,
    tmp_path: Path,
    start: Callable[..., Command],
    kind: str,
    driver: str,
    rounds: int,
) -> None:
    """Jobs that run are released, their attempts given back; none stays claimed."""
    seed = 1 if rounds < 10 else random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    jobs = getattr(app, kind)
    block = next(handler for handler in jobs.registry if handler.type == "block")
    enqueue_many(tables, block, [str(tmp_path)] * 40)
    url = with_driver(database_url, driver)

    took = []
    for _ in range(rounds):
        begun = time.monotonic()
        pair = [start("worker", f"support.cli_app:{kind}", "--database-url", url) for _ in range(2)]
        moments = sorted(begun + dice.uniform(0.0, 2.0) for _ in pair)
        for command, moment in zip(pair, moments, strict=True):
            took.append(signal_twice(command, moment, dice.uniform(0.0, 0.3), dice))

        assert set(state(tables)) == {(None, 0)}
        with tables.connect() as connection:
            assert connection.scalar(text("SELECT count(*) FROM bgjob_worker")) == 0

    print(f"ended at most {max(took):.2f} s after the second signal")
    assert max(took) < WITHIN
    assert len(state(tables)) == 40


@pytest.mark.chaos
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("kind", "driver"), [("functions", "psycopg"), ("coroutines", "asyncpg")])
def test_two_signals_at_any_moment_of_an_outage_end_a_worker(
    tables: Engine,
    database_url: str,
    tmp_path: Path,
    start: Callable[..., Command],
    kind: str,
    driver: str,
) -> None:
    """What it can't write, rescue will; it waits a few seconds for the database, and leaves."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    jobs = getattr(app, kind)
    block = next(handler for handler in jobs.registry if handler.type == "block")
    enqueue_many(tables, block, [str(tmp_path)] * 40)

    took = []
    for _ in range(40):
        with Proxy(database_url) as proxy:
            url = with_driver(proxy.url, driver)
            command = start("worker", f"support.cli_app:{kind}", "--database-url", url)
            wait_until((tmp_path / "started").exists, 60, what=f"a start\n{command.stderr}")
            proxy.refuse()
            moment = time.monotonic() + dice.uniform(0.0, 3.0)
            took.append(signal_twice(command, moment, dice.uniform(0.0, 0.3), dice))
        (tmp_path / "started").unlink()
        with tables.begin() as connection:
            connection.execute(text("UPDATE bgjob_job SET claimed_by = NULL, attempt = 0"))

    print(f"ended at most {max(took):.2f} s after the second signal")
    assert max(took) < 5.0 + WITHIN
    assert len(state(tables)) == 40


# ---- several signals, one request ---------------------------------------------------------------


def test_signals_within_a_second_of_one_that_counts_are_one() -> None:
    """By the clock at their arrival; an echo does not put off what comes later."""
    arrivals = iter((10.0, 10.03, 10.99, 11.0, 11.5, 11.99, 12.5))
    requests = Requests(arrivals.__next__)

    counted = [requests.add(signal.SIGTERM) for _ in range(7)]

    assert counted == [True, False, False, True, False, False, True]
    assert requests.numbers == [signal.SIGTERM] * 3


def begin_job(tables: Engine, kind: str, folder: Path, command: Command) -> None:
    getattr(app, kind).enqueue(tables, "block", str(folder))
    wait_until((folder / "started").exists, 60, what=f"the start of a job\n{command.stderr}")


@pytest.mark.core
@pytest.mark.parametrize(
    ("kind", "numbers"), [("functions", SIGNALS), ("coroutines", SIGNALS[::-1])]
)
def test_two_signals_at_once_let_a_job_end(
    tables: Engine,
    database_url: str,
    tmp_path: Path,
    start: Callable[..., Command],
    kind: str,
    numbers: tuple[signal.Signals, ...],
) -> None:
    """As of an init that signals the group, ``timeout``, or ``uv run`` beside a terminal."""
    command = start("worker", f"support.cli_app:{kind}", "--database-url", database_url)
    begin_job(tables, kind, tmp_path, command)

    command.signal_at_once(*numbers)
    command.says("draining")
    (tmp_path / "go").touch()

    assert command.wait() == 0, command.stderr
    assert state(tables) == []


def test_signals_twice_at_once_release_and_do_not_exit(
    tables: Engine, database_url: str, tmp_path: Path, start: Callable[..., Command]
) -> None:
    """Four signals are two requests: the jobs are released, not left to be rescued."""
    command = start("worker", "support.cli_app:functions", "--database-url", database_url)
    begin_job(tables, "functions", tmp_path, command)

    command.signal_at_once(*SIGNALS)
    command.says("draining")
    wait_till(time.monotonic() + SAME_WITHIN)
    command.signal_at_once(*SIGNALS)

    assert command.wait() in {128 + number for number in SIGNALS}, command.stderr
    assert state(tables) == [(None, 0)]


# ---- nobody reads what it logs --------------------------------------------------------------


class Unread:
    """A worker whose log goes into a pipe that nobody reads."""

    def __init__(self, *arguments: str, url: str, **environment: str) -> None:
        command = ["worker", "support.cli_app:functions", *arguments]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sqlalchemy_bgjob", *command],
            cwd=TESTS,
            env={**os.environ, "BGJOB_DATABASE_URL": url, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pipesize=4096,
        )

    @property
    def full(self) -> bool:
        """Whether the pipe takes no more: a line is never longer than half a page."""
        assert self.process.stderr is not None
        size = array.array("i", [0])
        fcntl.ioctl(self.process.stderr, termios.FIONREAD, size)
        return size[0] > 2048 and not self._writable()

    def _writable(self) -> bool:
        with Path(f"/proc/{self.process.pid}/fd/2").open("wb", buffering=0) as pipe:
            return bool(multiplex.select([], [pipe], [], 0)[1])

    def read(self) -> str:
        """All that it has said, and its end: nobody reads before."""
        self.process.wait(60)
        return self.process.communicate(timeout=60)[1].decode()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.mark.parametrize("driver", ["psycopg", pytest.param("asyncpg", marks=pytest.mark.chaos)])
def test_a_worker_whose_log_nobody_reads_works_on(
    tables: Engine, database_url: str, driver: str
) -> None:
    """Whoever logs waits; its heart beats, jobs complete, and the first signal drains."""
    url = with_driver(database_url, driver)
    worker = app.functions.WorkerRow
    beat = select(worker.beat_at, worker.lost_at)

    def look() -> Any:
        with tables.connect() as connection:
            return connection.execute(beat).one_or_none()

    def noted(words: str) -> bool:
        query = select(func.count()).where(app.Note.words.startswith(words))
        with tables.connect() as connection:
            return connection.scalar(query) == 1

    with Unread(url=url, BGJOB_HEARTBEAT_INTERVAL="300ms") as unread:
        enqueue_many(tables, app.fail, ["x" * 100] * 300)
        wait_until(lambda: unread.full, 60, what="a full pipe")
        before = wait_until(look, what="the worker's row")
        wait_until(
            lambda: look().beat_at > before.beat_at + timedelta(seconds=1), what="further beats"
        )
        enqueue(tables, app.note, "unheard")
        wait_until(lambda: noted("unheard"), 20, what="a job beside")
        assert unread.full
        assert look().lost_at is None

        unread.process.send_signal(signal.SIGTERM)
        wait_until(lambda: look() is None, 20, what="the end of the worker")
        # That a process ends before its log is read, the next test tells of three.
        said = unread.process.communicate(timeout=60)[1].decode()

    assert unread.process.returncode == 0
    assert "Traceback" not in said


def test_a_supervisor_with_a_full_log_pipe_passes_signals_on(
    tables: Engine, database_url: str, tmp_path: Path
) -> None:
    """And ends when its processes have released what ran."""
    job = app.functions.models.job
    blocked = select(job.c.claimed_by, job.c.attempt).where(job.c.type == "block")

    def both_are_registered() -> bool:
        with tables.connect() as connection:
            return connection.scalar(select(func.count(app.functions.WorkerRow.id))) == 2

    with Unread("--processes", "2", "--queue", "default:5", url=database_url) as unread:
        # A worker that finds the pipe full when it says that it starts gets no further.
        wait_until(both_are_registered, 60, what="two workers")
        app.functions.enqueue(tables, "block", str(tmp_path))
        wait_until((tmp_path / "started").exists, 60, what="the start of a job")
        enqueue_many(tables, app.fail, ["x" * 100] * 300)
        wait_until(lambda: unread.full, 60, what="a full pipe")

        for number in SIGNALS:
            unread.process.send_signal(number)
            # Nobody can read that it has arrived: three times as long as it needs.
            wait_till(time.monotonic() + 3 * SAME_WITHIN)
        said = unread.read()

    assert unread.process.returncode in {128 + number for number in SIGNALS}
    assert "Traceback" not in said
    with tables.connect() as connection:
        assert connection.execute(blocked).all() == [(None, 0)]
