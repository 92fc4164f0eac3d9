"""How a worker process ends: at signals, at its timeout, and with what stands in its way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from typing import TYPE_CHECKING

import pytest

from sqlalchemy_bgjob._process import process, runners
from support import cli_app as app
from support.cli import notes, rows
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sqlalchemy import Engine

    from support.commands import Command


@pytest.fixture
def blocked(
    start: Callable[..., Command], tables: Engine, database_url: str, tmp_path: Path
) -> Callable[[str, str], Command]:
    """A worker with a job of a type that never ends by itself."""

    def start_blocked(kind: str, type: str) -> Command:
        command = start("worker", f"support.cli_app:{kind}", "--database-url", database_url)
        getattr(app, kind).enqueue(tables, type, str(tmp_path))
        started = (tmp_path / "started").exists
        wait_until(started, 60, what=f"the start of the job\n{command.stderr}")
        return command

    return start_blocked


@pytest.mark.parametrize("kind", ["functions", "coroutines"])
def test_the_second_signal_releases_what_runs(
    tables: Engine, blocked: Callable[[str, str], Command], kind: str
) -> None:
    """Exit code 128 + n; the job is queued again, and a deploy has cost it no attempt."""
    command = blocked(kind, "block")

    command.signal(signal.SIGTERM)
    command.says("SIGTERM: draining")
    command.signal_again(signal.SIGTERM)

    assert command.wait() == 128 + signal.SIGTERM, command.stderr
    assert rows(tables) == [(0, None, "interrupted by shutdown")]


def test_the_third_signal_ends_even_a_blocked_event_loop(
    tables: Engine, blocked: Callable[[str, str], Command]
) -> None:
    command = blocked("coroutines", "block_loop")

    command.signal(signal.SIGTERM)
    command.says("SIGTERM: draining")
    command.signal_again(signal.SIGTERM)
    command.says("second signal")
    assert command.alive
    command.signal_again(signal.SIGINT)

    assert command.wait(10) == 128 + signal.SIGINT
    assert [(attempt, claimed is None) for attempt, claimed, _ in rows(tables)] == [(1, False)]


def test_a_worker_that_can_not_end_gives_itself_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A blocked event loop can't even release its jobs; rescue will."""
    code = f"""
        import os, threading
        from sqlalchemy_bgjob._process import process, runners
        from sqlalchemy_bgjob import WorkerSettings
        process.STUCK_AFTER = 0.2
        class Stuck:
            def run(self, ended): threading.Event().wait()
            def request_stop(self, timeout=None): print("asked", timeout)
        settings = WorkerSettings(shutdown_timeout=0.1)
        main = process._Process(runners.WorkerOptions(app="", settings=settings))
        main.obey_signals()
        os.kill(os.getpid(), {int(signal.SIGTERM)})
        main.run(Stuck())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "the worker does not end" in done.stderr


def test_a_worker_of_stuck_handlers_exits_with_1(
    start: Callable[..., Command], tables: Engine, database_url: str
) -> None:
    """So that a supervisor replaces it; its jobs are given up before, and nothing holds it up."""
    url = ("--database-url", database_url)
    command = start("worker", "support.cli_app:coroutines", *url, "--queue", "default:2")

    app.coroutines.enqueue(tables, "deaf")

    assert command.wait() == 1
    assert "1 of 2 slots are taken by handlers that do not end" in command.stderr
    assert "Traceback" not in command.stderr
    ((attempt, claimed_by, error),) = rows(tables)
    assert (attempt, claimed_by) == (1, None)
    assert error.startswith("TimeoutError: the handler went on for 0.05 s")


def test_two_signals_that_arrive_as_one_are_two() -> None:
    """The system keeps no count of a pending signal; the supervisor's pipe does."""
    reader, writer = os.pipe()
    asked: list[float | None] = []
    said = threading.Event()

    class Holding:
        def run(self, ended: Callable[[], None]) -> None:
            assert said.wait(10)
            ended()

        def request_stop(self, timeout: float | None = None) -> None:
            asked.append(timeout)
            if len(asked) == 1:
                os.write(writer, b"\0")
            else:
                said.set()

    main = process._Process(runners.WorkerOptions(app="", parent_pipe=reader))
    os.write(writer, b"\0")

    assert main.run(Holding()) == 128 + signal.SIGTERM
    assert asked == [None, 0.0]
    os.close(writer)


def test_threads_of_the_application_do_not_hold_up_the_exit() -> None:
    code = """
        import threading
        from sqlalchemy_bgjob._process.exits import leave
        threading.Thread(target=threading.Event().wait).start()
        leave(3, within=0.1)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False, timeout=60)
    assert done.returncode == 3


def test_a_log_that_nobody_reads_does_not_hold_up_the_exit() -> None:
    """What could not be written is still there at the end, and can't be written then either."""
    code = """
        import os, threading
        from sqlalchemy_bgjob._process import logs
        from sqlalchemy_bgjob._process.exits import leave
        logs.configure("text", "info")
        reader, writer = os.pipe()
        os.dup2(writer, 2)
        os.close(writer)
        os.close(reader)
        logs.logger.info("nobody reads this")
        threading.Thread(target=threading.Event().wait).start()
        leave(3, within=0.1)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False, timeout=60)
    assert done.returncode == 3


def test_one_process_is_replaced_at_its_limit(
    tables: Engine, database_url: str, start: Callable[..., Command]
) -> None:
    """Though it is alone: nothing is lost, and the command goes on until it is told to stop."""
    for number in range(5):
        app.functions.enqueue(tables, "note", f"{number}")
    command = start(
        *("worker", "support.cli_app:functions", "--max-jobs", "2", "--limit-jitter", "0"),
        BGJOB_DATABASE_URL=database_url,
    )

    wait_until(lambda: not rows(tables), 60, what="the end of all jobs")
    command.says("process 1 has drained at a limit (pid")
    command.signal(signal.SIGTERM)

    assert command.wait() == 0, command.stderr
    assert notes(tables) == [f"{number} Session" for number in range(5)]
    assert command.stderr.count("max_jobs is reached, 2 jobs were started") == 2
    assert command.stderr.count("process 1 started") == 3
    assert "starting another in" not in command.stderr, "no crash"


def test_until_idle_ends_every_process_with_0(
    tables: Engine, database_url: str, start: Callable[..., Command]
) -> None:
    """A supervisor starts none of them again, and ends with the last."""
    app.functions.enqueue(tables, "note", "x")
    command = start(
        *("worker", "support.cli_app:functions", "--until-idle", "--processes", "2"),
        BGJOB_DATABASE_URL=database_url,
    )

    assert command.wait() == 0, command.stderr
    assert rows(tables) == []
    assert "process 1 has nothing left to do" in command.stderr
    assert "process 2 has nothing left to do" in command.stderr
    assert "starting another" not in command.stderr
