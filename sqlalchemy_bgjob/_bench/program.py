"""The program to measure: commands of one process each, which print one line of JSON.

``_bench.app`` has these commands, and so do the adapters of other queues in ``benchmarks/peers``.
"""

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

from ..exceptions import BGJobError

START_TIMEOUT: Final = 60.0

Answer = dict[str, Any]


class BenchError(BGJobError):
    """A measurement failed, or its count is wrong."""

    def __init__(self, problem: str, output: str = "") -> None:
        super().__init__(problem, output)
        self.problem, self.output = problem, output

    def __str__(self) -> str:
        return f"{self.problem}; it said:\n{self.output}" if self.output else self.problem


@dataclass(frozen=True, slots=True)
class Program:
    """A program to measure, and how to run its commands.

    Attributes:
        name: For the report.
        argv: The command line before COMMAND, DSN and JSON.
        dsn: The DSN for its commands.
        options: Options of every command.
        environment: Variables of its processes, on top of this process's.
        here: Runs a command in this process, which saves starting another.
    """

    name: str
    argv: tuple[str, ...]
    dsn: str
    options: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    here: Callable[[str, Mapping[str, Any]], Answer] | None = None

    def start(self, command: str, **options: Any) -> "Running":
        """Start a command; the result is a context manager that leaves no process behind."""
        return Running(self, command, options)

    def call(self, command: str, *, timeout: float = 900.0, **options: Any) -> Answer:
        """Run a command to its end; its answer.

        Raises:
            BenchError: The command failed, or took too long.
        """
        if self.here is not None:
            return self.here(command, {**self.options, **options})
        with self.start(command, **options) as running:
            return running.answer(timeout)


class Running:
    """A running command. It can be told to stop, and answers at its end."""

    def __init__(self, program: Program, command: str, options: Mapping[str, Any]) -> None:
        self._what = f"{program.name}: {command}"
        self._folder = tempfile.TemporaryDirectory(prefix="bgjob-bench-")
        self._ready = Path(self._folder.name, "ready")
        self._stop = Path(self._folder.name, "stop")
        self._out: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - close() closes them
        self._err: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        files = {"ready_file": str(self._ready), "stop_file": str(self._stop)}
        given = json.dumps({**program.options, **files, **options})
        self._process = subprocess.Popen(
            [*program.argv, command, program.dsn, given],
            env={**os.environ, **program.environment},
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=self._err,
        )

    def wait_until_ready(self, timeout: float = START_TIMEOUT) -> None:
        """Return when the command has made its ready file.

        Raises:
            BenchError: The command ended before, or took too long.
        """
        deadline = time.monotonic() + timeout
        while not self._ready.exists():
            self.check()
            if time.monotonic() > deadline:
                raise BenchError(f"{self._what} was not ready in {timeout:g} s", self._said())
            time.sleep(0.005)

    def cpu(self) -> float | None:
        """Processor seconds that the command has used, where /proc tells."""
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def check(self) -> None:
        """Raise BenchError if the command has failed."""
        if self._process.poll():
            code = self._process.returncode
            raise BenchError(f"{self._what} ended with exit code {code}", self._said())

    def stop(self, timeout: float = 90.0) -> Answer:
        """Tell the command to stop; its answer."""
        self._stop.touch()
        return self.answer(timeout)

    def answer(self, timeout: float) -> Answer:
        """Wait for the end of the command; its answer.

        Raises:
            BenchError: The command failed, took too long or printed no JSON.
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
        """Kill the command if it still runs."""
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
