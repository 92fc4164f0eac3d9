"""The command line as real processes: start, look, signal, and always clean up."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from sqlalchemy_bgjob._process.signals import SAME_WITHIN
from support.forks import Fork, can_fork, interpreter, run_module
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

TESTS = Path(__file__).parent.parent
"""Where ``support.cli_app`` can be imported from."""

MODULE = (sys.executable, "-m", "sqlalchemy_bgjob")
TIMEOUT = 60.0


class Command:
    """One ``python -m sqlalchemy_bgjob ...``; a context manager that leaves no process behind.

    Args:
        folder: Where its output goes.
        arguments: After the program's name.
        cwd: Its working directory.
        program: What is started instead; ``MODULE`` starts an interpreter rather than a fork.
        environment: Variables beside those of the tests.
    """

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        cwd: Path = TESTS,
        program: Sequence[str] = (),
        **environment: str,
    ) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("BGJOB_")}
        env = {**clean, **environment}
        output = self._out, self._err = folder / "stdout", folder / "stderr"
        for file in output:
            file.write_bytes(b"")
        self._process: Fork | subprocess.Popen[bytes]
        if program or not can_fork(env):
            argv = [*(program or MODULE), *arguments]
            self._process = interpreter(argv, cwd=cwd, env=env, output=output, new_session=True)
        else:
            self._process = Fork(
                run_module,
                MODULE[-1],
                arguments,
                cwd=cwd,
                env=env,
                output=output,
                new_session=True,
            )
        self.pid = self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def stdout(self) -> str:
        return self._out.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        return self._err.read_text(errors="replace")

    def signal_again(self, number: signal.Signals) -> None:
        """Signal once more, after the one before was told of: as a further request to stop."""
        wait_till(time.monotonic() + SAME_WITHIN)
        self.signal(number)

    def signal_at_once(self, *numbers: signal.Signals) -> None:
        """Send several different signals, which it meets together however busy the machine is."""
        for number in (signal.SIGSTOP, *numbers, signal.SIGCONT):
            self.signal(number)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def says(self, words: str, seconds: float = TIMEOUT) -> None:
        """Wait until its log holds these words; fail if it ends before."""
        wait_until(lambda: words in self.stderr or not self.alive, seconds, what=words)
        assert words in self.stderr, f"it ended without saying {words!r}:\n{self.stderr}"

    def wait(self, seconds: float = TIMEOUT) -> int:
        """The exit code; fails the test if the process does not end in time."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not ended within {seconds:g} s:\n{self.stderr}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.alive:
            self._process.kill()
        self._process.wait()


def wait_till(at: float) -> None:
    """Wait for a moment of the monotonic clock, where time itself is the condition."""
    wait_until(lambda: time.monotonic() >= at, 60, what="a moment")


def process_exists(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not yet waited for does not."""
    with contextlib.suppress(OSError):
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False
