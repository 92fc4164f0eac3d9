"""Processes that begin with everything imported: forked from one that did it once.

A new interpreter takes a second of a processor to import SQLAlchemy, the package and the drivers;
a fork of one that has them takes a small part of that, and does the same from then on. Tests that
look at the start itself, by ``python -m`` or by the script, start an interpreter.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import json
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy_bgjob._worker import preflight

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from multiprocessing.connection import Connection

IMPORTED: Final = (
    "asyncpg",
    "psycopg",
    "sqlalchemy.dialects.postgresql.asyncpg",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.dialects.postgresql.psycopg2",
    "sqlalchemy.ext.asyncio",
    "sqlalchemy_bgjob._worker.loop",
    "sqlalchemy_bgjob.aio",
    "sqlalchemy_bgjob.cli.worker",
    "sqlalchemy_bgjob.testing.faults",
    "sqlalchemy_bgjob.worker",
    "support.cli_app",
    "support.worker_app",
    "unittest.mock",
)
"""What forks have, and what that has imported. A name that is not found would be passed over."""
_READ_AT_START: Final = ("PYTHON", "LANG", "LC_", "LD_", "TZ")
"""An interpreter reads these variables, whose names begin so, when it starts, and never again."""
_ENVIRONMENT: Final = dict(os.environ)
_CONTEXT: Final = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(list(IMPORTED))


class Fork:
    """Like ``subprocess.Popen``, as far as tests need it.

    Args:
        run: What it does, a function of a module; it returns, or raises ``SystemExit``.
        arguments: The function's.
        cwd: Its working directory.
        env: All of its environment.
        output: Where stdout and stderr go, at the end of these files.
        new_session: Whether a signal to the tests' process group does not reach it.
    """

    def __init__(
        self,
        run: Callable[..., object],
        *arguments: object,
        cwd: Path,
        env: Mapping[str, str],
        output: tuple[Path, Path],
        new_session: bool = False,
    ) -> None:
        for file in output:  # it may be read before the fork has begun
            file.touch()
        self._begun, begin = _CONTEXT.Pipe(duplex=False)
        become = (run, arguments, cwd, dict(env), output, new_session, _path(), begin)
        # As a daemon: pytest would wait at its end for one that a test has forgotten.
        self._process = _CONTEXT.Process(target=_become, args=become, daemon=True)
        self._process.start()
        begin.close()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("a fork", timeout or 0)
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        """Signal it once it has begun: before, multiprocessing's own start would answer."""
        assert self._begun.poll(60), "the fork has not begun"
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it ends at this moment
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def interpreter(
    argv: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    output: tuple[Path, Path],
    new_session: bool = False,
) -> subprocess.Popen[bytes]:
    """Start a program by itself, with what a fork would have."""
    with output[0].open("ab") as out, output[1].open("ab") as err:
        return subprocess.Popen(
            argv,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=new_session,
        )


def can_fork(environment: Mapping[str, str]) -> bool:
    """Whether a program with this environment does not need an interpreter of its own."""
    names = {name for name in {*environment, *_ENVIRONMENT} if name.startswith(_READ_AT_START)}
    return all(environment.get(name) == _ENVIRONMENT.get(name) for name in names)


def run_module(name: str, arguments: Sequence[str]) -> None:
    """Do what ``python -m`` does."""
    sys.argv = ["-m", *arguments]
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def finished(
    module: str, *arguments: str, cwd: Path, env: Mapping[str, str], seconds: float = 60.0
) -> subprocess.CompletedProcess[str]:
    """What ``python -m`` prints, and its exit code."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "stdout"), Path(folder, "stderr")
        fork = Fork(run_module, module, arguments, cwd=cwd, env=env, output=output)
        code = fork.wait(seconds)
        printed = [file.read_text() for file in output]
    return subprocess.CompletedProcess([module, *arguments], code, *printed)


@functools.cache
def _path() -> list[str]:
    """Where an interpreter looks for modules, but for its first place."""
    program = "import json, sys; print(json.dumps(sys.path[1:]))"
    asked = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    path: list[str] = json.loads(asked.stdout)
    return path


def _become(
    run: Callable[..., object],
    arguments: tuple[object, ...],
    cwd: Path,
    env: dict[str, str],
    output: tuple[Path, Path],
    new_session: bool,
    path: list[str],
    begin: Connection,
) -> None:
    gc.freeze()  # no search for garbage goes through what was imported, which the parent shares
    if new_session:
        os.setsid()
    # A worker takes the engines of a process that was forked later for its parent's.
    vars(preflight)["_IMPORTED_BY"] = os.getpid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.path[:] = [str(cwd), *path]
    for number, file in enumerate(output, start=1):
        with file.open("ab") as opened:
            os.dup2(opened.fileno(), number)
    interrupted = False
    try:
        begin.close()
        run(*arguments)
    except KeyboardInterrupt:
        traceback.print_exc()
        interrupted = True
    finally:
        # A process of multiprocessing would leave them out.
        atexit._run_exitfuncs()
    if interrupted:  # as an interpreter ends; multiprocessing would exit with 1
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
