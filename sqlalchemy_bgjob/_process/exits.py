"""How the command line exits: its exit codes, the error that carries one, and the exit itself."""

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NoReturn

from ..exceptions import BGJobError

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
"""Wrong arguments, or an application that can't be imported."""
DATABASE: Final = 3
"""The database is unreachable or refuses."""
SCHEMA: Final = 4
"""The tables are missing or of another version."""
REPLACE: Final = 75
"""From a worker process to its supervisor: it has drained at a limit, and is to be replaced."""
SIGNALLED: Final = 128
"""128 plus the signal's number."""

EXIT_TIMEOUT: Final = 5.0
"""Seconds that the application's own exit handlers and threads get."""


class CommandError(BGJobError):
    """A command failed for a reason that its user can mend."""

    def __init__(self, exit_code: int, problem: str, traceback: str | None = None) -> None:
        super().__init__(exit_code, problem, traceback)
        self.exit_code, self.problem, self.traceback = exit_code, problem, traceback

    def __str__(self) -> str:
        return self.problem


def leave(exit_code: int, *, within: float = EXIT_TIMEOUT) -> NoReturn:
    """Exit as Python does, but after *within* seconds at most: no thread can hold it up.

    Python does not wait for the daemon threads of handlers, but for the application's own threads
    and executors.
    """
    threading.Thread(target=_exit_after, args=(within, exit_code), daemon=True).start()
    sys.exit(exit_code)


def _exit_after(
    seconds: float, exit_code: int, sleep: Callable[[float], None] = time.sleep
) -> None:
    sleep(seconds)
    exit_now(exit_code)


def exit_now(exit_code: int) -> NoReturn:
    """Exit at once; only the log is flushed."""
    import logging  # noqa: PLC0415 - keeps it out of --help

    for handler in logging.getLogger().handlers:
        # Not logging.shutdown(): it would wait for a lock that a stuck thread may hold.
        if handler.lock is None or handler.lock.acquire(timeout=0.2):
            with suppress(Exception):  # nobody may read the log any more
                handler.flush()
    os._exit(exit_code)
