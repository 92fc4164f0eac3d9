"""Several worker processes under one command: starts, stops and restarts them.

* Processes are spawned, never forked: no thread, lock or connection is shared by accident.
* Each has its own process group, so Ctrl-C reaches only the supervisor, which counts it and passes
  it on.
* Each holds the reading end of a pipe from the supervisor. When the supervisor is gone, even by
  SIGKILL, the pipe closes, and the process drains and exits. Before the supervisor passes a signal
  on it writes a byte to the pipe: the system may merge two signals in quick succession, and a
  process can tell a signal passed on from one sent to all processes of the service.
* A process that has drained at a limit of its life is replaced at once.
* A process that crashes is restarted, with backoff. One that exits because of wrong arguments, a
  database that refuses or a schema that is out of date would do so again: then all are stopped.
* While somebody develops the application, each process is replaced when a file changes, also one
  that had exited for such a reason.
"""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Final, Literal

from ..settings import STUCK_AFTER as GIVEN_UP_AFTER
from .exits import DATABASE, FAILED, OK, REPLACE, SCHEMA, SIGNALLED, USAGE, exit_now
from .logs import say
from .mailbox import Mailbox
from .signals import SIGNALS, Requests
from .systemd import STOPPING, notify

SUPERVISED: Final = "_BGJOB_SUPERVISED"
"""Environment variable of a child: the file descriptor of its pipe, and its name."""
DRAINED: Final = frozenset({OK, REPLACE, -signal.SIGTERM, SIGNALLED + signal.SIGTERM})
"""Exit codes of a process that was told to stop, perhaps before it handled signals."""
HOPELESS: Final = frozenset({USAGE, DATABASE, SCHEMA})
FIRST_BACKOFF: Final = 0.2
LAST_BACKOFF: Final = 10.0
HEALTHY_AFTER: Final = 10.0
"""Seconds of running after which the backoff starts again at the first."""
STUCK_AFTER: Final = GIVEN_UP_AFTER + 5.0
"""Seconds beyond ``shutdown_timeout`` until SIGKILL; a process gives up by itself earlier."""


class Child:
    """One spawned worker process, and the pipe that tells it that the supervisor lives."""

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        name: str,
        environment: Mapping[str, str] | None = None,
        stderr: IO[bytes] | None = None,
        inherits: Sequence[int] = (),
    ) -> None:
        self.name = name
        self.started_at = time.monotonic()
        reader, self._writer = os.pipe()
        try:
            self.process = subprocess.Popen(
                [sys.executable, *safe_path(), "-m", "sqlalchemy_bgjob", *arguments],
                stdin=subprocess.DEVNULL,
                stderr=stderr,
                pass_fds=[reader, *inherits],
                process_group=0,
                env={
                    **(os.environ if environment is None else environment),
                    SUPERVISED: f"{reader}:{name}",
                },
            )
        except BaseException:
            os.close(self._writer)
            raise
        finally:
            os.close(reader)

    def send(self, number: int) -> None:
        """Announce a signal on the pipe, and send it; a process that has ended is fine."""
        with contextlib.suppress(OSError):
            os.write(self._writer, b"\0")
        self.process.send_signal(number)

    def kill(self) -> None:
        """Kill the process group: the process and all that its handlers have started in it."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Close the pipe: a process that still runs drains and exits."""
        with contextlib.suppress(OSError):
            os.close(self._writer)


def safe_path() -> list[str]:
    """For ``python -m``: keep the working directory off the path, unless this package is there."""
    return [] if Path(__file__).parents[2] == Path.cwd() else ["-P"]


def supervised() -> tuple[int, str] | None:
    """In a child: the pipe from the supervisor, and this process's name; None elsewhere.

    The application's subprocesses inherit neither.
    """
    value = os.environ.pop(SUPERVISED, None)
    if value is None:
        return None
    number, _, name = value.partition(":")
    os.set_inheritable(int(number), False)
    return int(number), name


def supervise(
    arguments: Sequence[str],
    *,
    processes: int,
    shutdown_timeout: float,
    until_idle: bool = False,
    changes: Iterator[list[str]] | None = None,
    inherits: Sequence[int] = (),
) -> int:
    """Run several processes until a signal ends them; the exit code for them all.

    Args:
        arguments: Those of the command line, for each process.
        processes: How many.
        shutdown_timeout: Seconds that a process may drain.
        until_idle: Whether a process ends by itself, and this ends with the last one.
        changes: Files that have changed, each time that some have: then processes are replaced.
        inherits: File descriptors that each process gets under the same numbers.
    """
    supervisor = Supervisor(
        arguments,
        processes,
        shutdown_timeout,
        until_idle=until_idle,
        changes=changes,
        inherits=inherits,
    )
    for number in SIGNALS:
        signal.signal(number, supervisor.on_signal)
    return supervisor.run()


@dataclass(slots=True)
class _Slot:
    """The place of one process: the one that runs, or when to start the next.

    ``kill_at`` is the time by which a process must end that is to be replaced; None of others.
    """

    name: str
    child: Child | None = None
    start_at: float | None = 0.0
    kill_at: float | None = None
    backoff: float = FIRST_BACKOFF


class Supervisor:
    """Keeps its slots filled until it is told to stop."""

    def __init__(
        self,
        arguments: Sequence[str],
        processes: int,
        shutdown_timeout: float,
        *,
        until_idle: bool = False,
        changes: Iterator[list[str]] | None = None,
        inherits: Sequence[int] = (),
    ) -> None:
        self._changes, self._inherits = changes, inherits
        self._arguments = list(arguments)
        self._shutdown_timeout, self._until_idle = shutdown_timeout, until_idle
        self._slots = [_Slot(str(number)) for number in range(1, processes + 1)]
        self._events: Mailbox[_Slot | list[str] | Exception | Literal["signal"]] = Mailbox()
        self._requests = Requests()
        self._passed_on = 0
        self._told = 0
        self._deadline: float | None = None
        self._hopeless: int | None = None
        self._failed = False

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Count a signal; the third ends everything at once."""
        if not self._requests.add(number):
            return
        if len(self._requests.numbers) >= 3:
            for slot in self._slots:
                if slot.child is not None:
                    slot.child.kill()
            exit_now(SIGNALLED + number)
        self._events.put("signal")

    def run(self) -> int:
        """Start, watch and restart; the exit code."""
        if self._changes is not None:
            threading.Thread(target=self._tell_changes, args=(self._changes,), daemon=True).start()
        with self._events:
            while True:
                if self._deadline is None:
                    self._start_due()
                if self._is_over():
                    return self._exit_code()
                match self._events.get(timeout=self._pause()):
                    case None:
                        self._kill_stuck()
                    case "signal":
                        self._pass_signals_on()
                    case list() as files:
                        self._replace_all(files)
                    case Exception() as error:
                        say(
                            logging.ERROR,
                            "can't watch files: %s; stopping; watch a smaller folder, or raise the "
                            "system's limit",
                            error,
                        )
                        self._failed = True
                        self._stop(times=1)
                    case slot:
                        self._ended(slot)

    def _tell_changes(self, changes: Iterator[list[str]]) -> None:
        try:
            for files in changes:
                self._events.put(files)
        except Exception as error:
            self._events.put(error)

    def _is_over(self) -> bool:
        """Whether nothing runs, and nothing is to be started, not even after a change."""
        if self._changes is not None and self._deadline is None:
            return False
        return not any(slot.child or slot.start_at is not None for slot in self._slots)

    def _pause(self) -> float | None:
        """Seconds until the next start or kill; None if neither is due."""
        times = [at for it in self._slots for at in (it.start_at, it.kill_at) if at is not None]
        if self._deadline is not None:
            times = [self._deadline]
        return max(min(times) - time.monotonic(), 0.0) if times else None

    def _start_due(self) -> None:
        now = time.monotonic()
        for slot in self._slots:
            if slot.start_at is not None and slot.start_at <= now:
                slot.start_at = None
                try:
                    slot.child = Child(self._arguments, name=slot.name, inherits=self._inherits)
                    self._watch(slot, slot.child)
                except (OSError, RuntimeError) as error:
                    # Out of processes, threads, files or memory: it may pass.
                    slot.child = None
                    self._start_again(slot, f"could not be started ({error})")

    def _watch(self, slot: _Slot, child: Child) -> None:
        """Tell the loop when a child ends; one that nobody can watch is ended."""
        say(logging.INFO, "process %s started: pid %d", slot.name, child.process.pid)
        try:
            threading.Thread(target=self._wait_for, args=(slot,), daemon=True).start()
        except RuntimeError:
            child.kill()
            child.process.wait()
            child.close()
            raise

    def _wait_for(self, slot: _Slot) -> None:
        if slot.child is not None:
            slot.child.process.wait()
            self._events.put(slot)

    def _ended(self, slot: _Slot) -> None:
        child, slot.child = slot.child, None
        if child is None:  # pragma: no cover - each child ends once
            return
        child.close()
        code = child.process.returncode
        is_replaced, slot.kill_at = slot.kill_at is not None, None
        if self._deadline is not None:
            self._failed |= code not in DRAINED
        elif is_replaced:
            slot.start_at, slot.backoff = time.monotonic(), FIRST_BACKOFF
        elif code in HOPELESS and self._changes is not None:
            say(logging.ERROR, "process %s exited with %d: waiting for a change", slot.name, code)
        elif code in HOPELESS:
            say(logging.ERROR, "process %s exited with %d: stopping the others", slot.name, code)
            self._hopeless = code
            self._stop(times=1)
        elif code == REPLACE:
            words = "process %s has drained at a limit (pid %d): starting another"
            say(logging.INFO, words, slot.name, child.process.pid)
            slot.start_at, slot.backoff = time.monotonic(), FIRST_BACKOFF
        elif code == OK and self._until_idle:
            say(logging.INFO, "process %s has nothing left to do", slot.name)
        else:
            if time.monotonic() - child.started_at >= HEALTHY_AFTER:
                slot.backoff = FIRST_BACKOFF
            end = f"exited with {code}" if code >= 0 else f"was killed by signal {-code}"
            self._start_again(slot, f"(pid {child.process.pid}) {end}")

    def _start_again(self, slot: _Slot, what: str) -> None:
        slot.start_at = time.monotonic() + slot.backoff
        words = "process %s %s: starting another in %.1f s"
        say(logging.WARNING, words, slot.name, what, slot.backoff)
        slot.backoff = min(slot.backoff * 2, LAST_BACKOFF)

    def _replace_all(self, files: list[str]) -> None:
        """Replace the processes, but for those that drain already: the next ones read all changes.

        One that waits to be started is started at once.
        """
        if self._deadline is not None:
            return
        say(logging.INFO, "%s changed: starting anew", ", ".join(files))
        now = time.monotonic()
        for slot in self._slots:
            if slot.child is None:
                slot.start_at, slot.backoff = now, FIRST_BACKOFF
            elif slot.kill_at is None:
                slot.kill_at = now + self._shutdown_timeout + STUCK_AFTER
                slot.child.send(signal.SIGTERM)

    def _pass_signals_on(self) -> None:
        for number in self._requests.numbers[self._passed_on :]:
            self._passed_on += 1
            self._stop(times=self._passed_on)  # before the log, which may block
            say(logging.INFO, "%s: passing it on", signal.Signals(number).name)

    def _stop(self, *, times: int) -> None:
        """Tell each process to stop, unless they have been told that many *times*."""
        if self._told >= times:
            return
        self._told = times
        if self._deadline is None:
            self._deadline = time.monotonic() + self._shutdown_timeout + STUCK_AFTER
        for slot in self._slots:
            slot.start_at = None
            drains = times == 1 and slot.kill_at is not None
            if slot.child is not None and not drains:
                # Never SIGINT: while Python starts it raises KeyboardInterrupt, which may end the
                # process with any code.
                slot.child.send(signal.SIGTERM)
        if times == 1:
            notify(STOPPING)

    def _kill_stuck(self) -> None:
        now = time.monotonic()
        for slot in self._slots:
            at = slot.kill_at if self._deadline is None else self._deadline
            if slot.child is not None and at is not None and now >= at:
                slot.child.kill()
                say(logging.ERROR, "process %s does not end: killing it", slot.name)
                slot.kill_at = now + STUCK_AFTER
        if self._deadline is not None and now >= self._deadline:
            self._failed = True
            self._deadline = now + STUCK_AFTER

    def _exit_code(self) -> int:
        if len(self._requests.numbers) >= 2:
            return SIGNALLED + self._requests.numbers[-1]
        if self._hopeless is not None:
            return self._hopeless
        return FAILED if self._failed else OK
