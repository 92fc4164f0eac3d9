"""How the command line ends: its exit codes, the errors that carry one, and the end itself."""

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Final, NoReturn

from ..exceptions import BGJobError

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
"""Wrong arguments, or an application that can't be imported."""
DATABASE: Final = 3
"""Unreachable, or it refuses."""
SCHEMA: Final = 4
"""The tables are missing or of another version."""
SIGNALLED: Final = 128
"""Plus the signal's number."""

EXIT_TIMEOUT: Final = 5.0
"""Seconds that an application's own exit handlers and threads are waited for."""


class CommandError(BGJobError):
    """A command can't go on, for a reason that its user can mend."""

    def __init__(self, exit_code: int, problem: str, traceback: str | None = None) -> None:
        super().__init__(exit_code, problem, traceback)
        self.exit_code, self.problem, self.traceback = exit_code, problem, traceback

    def __str__(self) -> str:
        return self.problem


def leave(exit_code: int, *, within: float = EXIT_TIMEOUT) -> NoReturn:
    """Exit as Python does, but for certain: a thread that does not end can't hold it up.

    Handlers run in daemon threads, which Python does not wait for; the application's own threads
    and executors it does.
    """
    threading.Thread(target=_exit_after, args=(within, exit_code), daemon=True).start()
    sys.exit(exit_code)


def _exit_after(
    seconds: float, exit_code: int, sleep: Callable[[float], None] = time.sleep
) -> None:
    sleep(seconds)
    exit_now(exit_code)


def exit_now(exit_code: int) -> NoReturn:
    """Exit this instant; only what was logged is written."""
    import logging  # noqa: PLC0415 - whoever logs has imported it, and --help does not

    for handler in logging.getLogger().handlers:
        # Not logging.shutdown(): it would wait for a lock that a stuck thread may hold.
        if handler.lock is None or handler.lock.acquire(timeout=0.2):
            handler.flush()
    os._exit(exit_code)
