"""Several worker processes under one command: replaced when they crash, and never left behind."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from sqlalchemy_bgjob import enqueue
from sqlalchemy_bgjob._process import signals
from sqlalchemy_bgjob._process import supervisor as supervisor_module
from support import cli_app as app
from support.children import FakeChild
from support.commands import Command, process_exists, wait_till
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy_bgjob._process.supervisor import Supervisor
    from support.tuning import Tune


class Pair:
    """``--processes 2``, and what the database and the system know of it."""

    def __init__(self, command: Command, engine: Engine) -> None:
        self.command, self.engine = command, engine

    def registered(self) -> dict[int, int]:
        """Worker id by process id."""
        worker = app.functions.models.worker
        query = select(worker.c.pid, worker.c.id).where(worker.c.lost_at.is_(None))
        with self.engine.connect() as connection:
            return {row.pid: row.id for row in connection.execute(query)}

    def wait_for_two(self, *, without: int | None = None) -> list[int]:
        def two() -> list[int] | None:
            assert self.command.alive, self.command.stderr
            pids = [p for p in self.registered() if p != without and process_exists(p)]
            return pids if len(pids) == 2 else None

        found = wait_until(two, 60, what="two registered workers")
        assert found is not None
        return found

    def block(self, folder: Path) -> None:
        """Let one of the two run a job until there is a file ``go``."""
        app.functions.enqueue(self.engine, "block", str(folder))
        wait_until((folder / "started").exists, 60, what="the start of a job")

    def busy(self) -> int:
        """The process id of the one that holds a job."""
        job, worker = app.functions.models.job, app.functions.models.worker
        with self.engine.connect() as connection:
            query = select(worker.c.pid).where(worker.c.id == job.c.claimed_by).distinct()
            return connection.execute(query).scalar_one()

    def names(self) -> dict[str, int]:
        """The last process id by name, from the log."""
        log = self.command.stderr
        return {n: int(p) for n, p in re.findall(r"process (\d) started: pid (\d+)", log)}


@pytest.fixture
def pair(tables: Engine, database_url: str, tmp_path: Path) -> Iterator[Pair]:
    """Two processes of the application of functions, each with three slots."""
    arguments = ["worker", "support.cli_app:functions", "--queue", "default:3"]
    folder = tmp_path / "command"
    folder.mkdir()
    with Command(
        folder, *arguments, "--processes", "2", BGJOB_DATABASE_URL=database_url
    ) as command:
        pair = Pair(command, tables)
        yield pair
        pids = list(pair.names().values())
    # The supervisor is gone now, if need be by SIGKILL.
    wait_until(lambda: not any(map(process_exists, pids)), 60, what="the end of the workers")


def left(engine: Engine) -> list[Any]:
    job = app.functions.models.job
    with engine.connect() as connection:
        query = select(job.c.type, job.c.attempt, job.c.claimed_by.is_(None), job.c.last_error)
        return list(connection.execute(query).all())


def test_a_killed_process_is_replaced_and_its_jobs_run_elsewhere(
    pair: Pair, tables: Engine, tmp_path: Path
) -> None:
    """At default settings; and one SIGTERM to the supervisor then drains both."""
    pids = pair.wait_for_two()
    for pid in pids:
        assert os.getpgid(pid) == pid, "a process group of its own"
    pair.block(tmp_path)
    victim = pair.busy()

    os.kill(victim, signal.SIGKILL)
    (tmp_path / "started").unlink()

    wait_until((tmp_path / "started").exists, 30, what="the job's start elsewhere")
    (tmp_path / "go").touch()
    others = pair.wait_for_two(without=victim)
    assert victim not in others
    wait_until(lambda: not left(tables), 30, what="the job's end")
    assert (
        f"(pid {victim}) was killed by signal 9: starting another in 0.2 s" in pair.command.stderr
    )
    pair.command.signal(signal.SIGTERM)
    assert pair.command.wait() == 0, pair.command.stderr
    assert not pair.registered()


@pytest.mark.core
def test_the_processes_end_when_the_supervisor_is_killed(
    pair: Pair, tables: Engine, tmp_path: Path
) -> None:
    """They drain: the running job ends, and nothing is left claimed."""
    pids = pair.wait_for_two()
    pair.block(tmp_path)

    pair.command.signal(signal.SIGKILL)
    pair.command.wait()

    said = "the supervisor is gone: draining"
    wait_until(lambda: said in pair.command.stderr, 30, what=said)
    (tmp_path / "go").touch()
    wait_until(lambda: not any(map(process_exists, pids)), 60, what="the end of both")
    assert left(tables) == []
    assert pair.registered() == {}


def test_a_kill_by_a_processs_first_job_is_seen_as_soon(
    tables: Engine, database_url: str, tmp_path: Path
) -> None:
    """Its process has hardly begun, and must have told by then how to see that it has ended."""
    with Session(tables) as session, session.begin():
        enqueue(session, app.kill)
    with Command(
        tmp_path, "worker", "support.cli_app:functions", BGJOB_DATABASE_URL=database_url
    ) as first:
        assert first.wait() == -signal.SIGKILL
    with Command(
        tmp_path, "worker", "support.cli_app:functions", BGJOB_DATABASE_URL=database_url
    ) as second:
        # Less than half of the lease: after that it would be its silence.
        wait_until(lambda: not left(tables), 14, what="the end of the job elsewhere")
        assert "whose process has ended" in second.stderr


def signal_all(pair: Pair, pids: list[int]) -> None:
    """As systemd does, and ``docker stop`` under an init that signals every process."""
    for pid in (pair.command.pid, *pids):
        os.kill(pid, signal.SIGTERM)


@pytest.mark.parametrize("late", [pytest.param(False, marks=pytest.mark.core), True])
def test_a_signal_to_all_processes_lets_jobs_end(
    pair: Pair, tables: Engine, tmp_path: Path, late: bool
) -> None:
    """Each worker gets it twice: from outside, and passed on by the supervisor.

    Perhaps seconds later, which adds no request.
    """
    pids = pair.wait_for_two()
    pair.block(tmp_path)

    if late:
        pair.command.signal(signal.SIGSTOP)
    signal_all(pair, pids)
    if late:
        pair.command.says("draining for at most")
        pair.command.signal_again(signal.SIGCONT)
    pair.command.says("SIGTERM: passing it on")
    (tmp_path / "go").touch()

    assert pair.command.wait() == 0, pair.command.stderr
    assert "second signal" not in pair.command.stderr
    assert left(tables) == []
    lines = pair.command.stderr.splitlines()
    assert {line[: line.index("] ") + 1] for line in lines} == {"[supervisor]", "[1]", "[2]"}


def test_a_second_signal_to_all_processes_is_the_second(
    pair: Pair, tables: Engine, tmp_path: Path
) -> None:
    """Not the third, which would leave the jobs to be rescued."""
    pids = pair.wait_for_two()
    pair.block(tmp_path)
    busy = pair.busy()

    signal_all(pair, pids)
    pair.command.says("SIGTERM: passing it on")
    pair.command.says("SIGTERM: draining")
    wait_until(lambda: not any(map(process_exists, set(pids) - {busy})), 60)
    wait_till(time.monotonic() + signals.SAME_WITHIN)
    signal_all(pair, [busy])

    assert pair.command.wait() == 128 + signal.SIGTERM, pair.command.stderr
    assert left(tables) == [("block", 0, True, "interrupted by shutdown")]


def test_a_worker_counts_signals_of_its_own(pair: Pair, tables: Engine, tmp_path: Path) -> None:
    """An operator may stop one process of several, and insist."""
    pair.wait_for_two()
    pair.block(tmp_path)
    busy = pair.busy()
    (tmp_path / "started").unlink()

    os.kill(busy, signal.SIGTERM)
    pair.command.says("SIGTERM: draining")
    wait_till(time.monotonic() + signals.SAME_WITHIN)
    os.kill(busy, signal.SIGINT)

    pair.command.says("exited with 130: starting another")
    wait_until((tmp_path / "started").exists, 60, what="the job's start elsewhere")
    (tmp_path / "go").touch()  # the end of the processes does not wait for it


def test_the_third_signal_kills(pair: Pair, tables: Engine) -> None:
    """Even processes that do not react at all."""
    pids = pair.wait_for_two()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)

    for number in range(1, 3):
        pair.command.signal_again(signal.SIGTERM)
        wait_until(
            lambda n=number: pair.command.stderr.count("SIGTERM: passing it on") == n,  # type: ignore[misc]
            what=f"signal {number}",
        )
    assert pair.command.alive
    pair.command.signal_again(signal.SIGINT)

    assert pair.command.wait(10) == 128 + signal.SIGINT
    wait_until(lambda: not any(map(process_exists, pids)), 10)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["support.cli_app:functionz"], 2, "did you mean 'functions'"),
        (["support.cli_app:functions", "--log-format", "json"], 4, "does not exist"),
    ],
)
def test_what_no_restart_mends_ends_all(
    database_url: str, tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    with Command(
        tmp_path, "worker", *arguments, "--processes", "3", BGJOB_DATABASE_URL=database_url
    ) as command:
        assert command.wait() == code, command.stderr

    assert words in command.stderr
    assert f"exited with {code}: stopping the others" in command.stderr
    if "json" in arguments:
        processes = [json.loads(line)["process"] for line in command.stderr.splitlines()]
        assert "supervisor" in processes
        assert {"1", "2", "3"} & set(processes)


@pytest.mark.chaos
@pytest.mark.timeout(300)
def test_a_poison_job_dies_alone_after_its_attempts(pair: Pair, tables: Engine) -> None:
    """It kills its process whenever it is started; its neighbours were killed with it."""
    pair.wait_for_two()
    with Session(tables) as session, session.begin():
        for number in range(100):
            enqueue(session, app.note, str(number))
            if number == 50:
                enqueue(session, app.poison)

    def done() -> bool:
        assert pair.command.alive, pair.command.stderr
        return not left(tables)

    wait_until(done, 250, what="the end of all jobs")
    dead = app.functions.models.dead_job
    with Session(tables) as session:
        words = sorted(int(note.split()[0]) for note in session.scalars(select(app.Note.words)))
        (row,) = session.execute(select(dead.c.type, dead.c.attempt, dead.c.last_error))
    assert words == list(range(100)), "each once"
    assert (row.type, row.attempt) == ("poison", app.POISON_ATTEMPTS)
    assert "WorkerLost" in row.last_error
    log = pair.command.stderr
    assert log.count("was killed by signal 9") == app.POISON_ATTEMPTS
    pair.command.signal(signal.SIGTERM)
    assert pair.command.wait() == 0


# ---- the supervisor by itself -------------------------------------------------------------------


class Process(FakeChild):
    """One that notes its close; some of the second place are refused by the system."""

    made: list[Process]
    refused: list[float]
    refusals = 0

    def __init__(self, arguments: object, *, name: str, inherits: object) -> None:
        if name == "2" and len(self.refused) < self.refusals:
            self.refused.append(time.monotonic())
            raise BlockingIOError(11, "Resource temporarily unavailable")
        super().__init__(arguments, name=name, inherits=inherits)

    def close(self) -> None:
        self.got.append("closed")


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[Process]:
    monkeypatch.setattr(supervisor_module, "Child", Process)
    Process.made, Process.refused, Process.refusals = [], [], 0
    return Process.made


def running(supervisor: Supervisor) -> list[int]:
    """Run it in a thread; its exit code when it has ended."""
    codes: list[int] = []
    threading.Thread(target=lambda: codes.append(supervisor.run()), daemon=True).start()
    return codes


def test_processes_that_do_not_end_are_killed(children: list[Process], tune: Tune) -> None:
    tune(supervisor_module, STUCK_AFTER=0.1)
    supervisor = supervisor_module.Supervisor(["worker"], 2, shutdown_timeout=0.1)
    codes = running(supervisor)
    wait_until(lambda: len(children) == 2)

    supervisor.on_signal(signal.SIGTERM, None)
    wait_until(lambda: all(child.got for child in children))
    children[0].end(0)

    assert wait_until(lambda: codes) == [1]
    assert children[1].got == [signal.SIGTERM, "killed", "closed"]


def test_a_first_signal_is_no_second_where_all_end_anyway(children: list[Process]) -> None:
    """What no restart mends has told all to drain; the first signal asks for no more."""
    supervisor = supervisor_module.Supervisor(["worker"], 2, shutdown_timeout=30)
    codes = running(supervisor)
    wait_until(lambda: len(children) == 2)

    children[0].end(2)
    wait_until(lambda: children[1].got)
    supervisor.on_signal(signal.SIGTERM, None)
    wait_until(lambda: supervisor._passed_on == 1)
    children[1].end(0)

    assert wait_until(lambda: codes) == [2]
    assert children[1].got == [signal.SIGTERM, "closed"]


@pytest.mark.parametrize(
    ("ends", "expected"),
    [([0, 0], 0), ([-15, 0], 0), ([143, 0], 0), ([75, 0], 0), ([1, 0], 1), ([-9, 0], 1)],
)
def test_the_exit_code_is_0_only_if_all_have_drained(
    children: list[Process], ends: list[int], expected: int
) -> None:
    """One that was told before it had installed its handlers has had no job to lose."""
    supervisor = supervisor_module.Supervisor(["worker"], 2, shutdown_timeout=30)
    codes = running(supervisor)
    wait_until(lambda: len(children) == 2)

    supervisor.on_signal(signal.SIGTERM, None)
    wait_until(lambda: all(child.got for child in children))
    for child, code in zip(children, ends, strict=True):
        child.end(code)

    assert wait_until(lambda: codes) == [expected]


def test_a_process_at_a_limit_is_replaced_at_once(children: list[Process]) -> None:
    """However often, and also where the others end when they are idle."""
    supervisor = supervisor_module.Supervisor(["worker"], 1, shutdown_timeout=30, until_idle=True)
    codes = running(supervisor)
    for started in range(1, 21):  # with the backoff of a crash it would take minutes
        wait_until(lambda started=started: len(children) == started, 10)
        children[-1].end(75)
    wait_until(lambda: len(children) == 21)
    children[-1].end(0)

    assert wait_until(lambda: codes) == [0]


def crash(children: list[Process]) -> None:
    """Let them end as soon as they were started, however long that takes on this machine."""
    for child in children:
        child.started_at = math.inf
        child.end(7)


def test_a_process_that_keeps_crashing_is_restarted_ever_later(
    children: list[Process], caplog: pytest.LogCaptureFixture
) -> None:
    supervisor = supervisor_module.Supervisor(["worker"], 2, shutdown_timeout=30)
    with caplog.at_level("WARNING", "sqlalchemy_bgjob"):
        codes = running(supervisor)
        for started, delay in enumerate(("0.2", "0.4", "0.8"), 1):
            wait_until(lambda started=started: len(children) == 2 * started)
            crash(children[-2:])
            words = f"exited with 7: starting another in {delay} s"
            wait_until(lambda words=words: caplog.text.count(words) == 2)

    supervisor.on_signal(signal.SIGTERM, None)
    wait_until(lambda: [child.end(0) for child in children] and codes)
    assert codes == [0]


def test_a_process_that_crashes_after_a_while_is_started_soon(
    children: list[Process], caplog: pytest.LogCaptureFixture
) -> None:
    """Its worker has worked, so the crashes before it are no reason to wait longer."""
    soon = "exited with 7: starting another in 0.2 s"
    supervisor = supervisor_module.Supervisor(["worker"], 1, shutdown_timeout=30)
    with caplog.at_level("WARNING", "sqlalchemy_bgjob"):
        codes = running(supervisor)
        for started in range(1, 4):
            wait_until(lambda started=started: len(children) == started)
            children[-1].started_at = time.monotonic() - supervisor_module.HEALTHY_AFTER
            children[-1].end(7)
            wait_until(lambda started=started: caplog.text.count(soon) == started)

    supervisor.on_signal(signal.SIGTERM, None)
    wait_until(lambda: [child.end(0) for child in children] and codes)
    assert codes == [0]


def test_a_signal_while_all_have_crashed_ends_well(children: list[Process]) -> None:
    """None is alive: they wait to be started again."""
    supervisor = supervisor_module.Supervisor(["worker"], 2, shutdown_timeout=30)
    for slot in supervisor._slots:
        slot.backoff = 3_600.0
    codes = running(supervisor)
    wait_until(lambda: len(children) == 2)
    crash(children)
    wait_until(lambda: all(child.got == ["closed"] for child in children))

    supervisor.on_signal(signal.SIGTERM, None)

    assert wait_until(lambda: codes) == [0]
    assert len(children) == 2


def test_a_process_that_ended_by_itself_is_replaced_at_once(children: list[Process]) -> None:
    """An operator may drain one of several: the others are not disturbed."""
    supervisor = supervisor_module.Supervisor(["worker"], 1, shutdown_timeout=30)
    codes = running(supervisor)
    wait_until(lambda: len(children) == 1)
    children[0].end(0)

    wait_until(lambda: len(children) == 2)
    supervisor.on_signal(signal.SIGTERM, None)
    children[1].end(0)
    assert wait_until(lambda: codes) == [0]


def test_a_process_that_can_not_be_started_is_tried_again_later(
    children: list[Process], caplog: pytest.LogCaptureFixture
) -> None:
    """The machine has no process left for it: the other goes on, and this one follows."""
    Process.refusals = 3
    supervisor = supervisor_module.Supervisor(["worker"], 2, shutdown_timeout=30)
    with caplog.at_level("WARNING", "sqlalchemy_bgjob"):
        codes = running(supervisor)
        wait_until(lambda: len(children) == 2)

    assert [child.name for child in children] == ["1", "2"]
    assert Process.refused[2] - Process.refused[0] >= 0.2 + 0.4, "with backoff"
    assert caplog.text.count("process 2 could not be started") == 3
    supervisor.on_signal(signal.SIGTERM, None)
    for child in children:
        child.end(0)
    assert wait_until(lambda: codes) == [0]


def test_a_process_that_can_not_be_watched_is_replaced_later(
    children: list[Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine has no thread left for it: none runs on without anybody who would see its end."""
    refusals = [RuntimeError("can't start new thread")]

    class Thread(threading.Thread):
        def start(self) -> None:
            if refusals:
                raise refusals.pop()
            super().start()

    supervisor = supervisor_module.Supervisor(["worker"], 1, shutdown_timeout=30)
    codes: list[int] = []
    runs = threading.Thread(target=lambda: codes.append(supervisor.run()), daemon=True)
    monkeypatch.setattr(supervisor_module, "threading", SimpleNamespace(Thread=Thread))
    runs.start()

    wait_until(lambda: len(children) == 2)
    assert children[0].got == ["killed", "closed"]
    supervisor.on_signal(signal.SIGTERM, None)
    children[1].end(0)
    assert wait_until(lambda: codes) == [0]


def test_a_child_takes_its_marks_out_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a worker that a handler starts would take itself for a child of this supervisor."""
    reader, writer = os.pipe()
    os.set_inheritable(reader, True)
    monkeypatch.setenv(supervisor_module.SUPERVISED, f"{reader}:2")

    assert supervisor_module.supervised() == (reader, "2")

    assert not os.get_inheritable(reader)
    assert supervisor_module.supervised() is None
    os.close(reader)
    os.close(writer)
