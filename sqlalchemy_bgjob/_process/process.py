"""One worker process: finds the application, makes engine and worker, and obeys signals.

The worker runs in a thread. The main thread only waits: for a signal, for the end of the worker,
or for the end of the supervisor. So a handler that blocks, even in an event loop, delays no signal.

The first SIGTERM or SIGINT drains; the second releases running jobs at once; the third exits. A
signal within a second of one that counts is the same request, see :mod:`.signals`.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING

from sqlalchemy.exc import SQLAlchemyError

from .._db.errors import database_message, sqlstate
from .._handlers.served import UnfitHandlers
from ..exceptions import SchemaOutOfDate, WorkerRefused, WorkerStuck
from ..settings import STUCK_AFTER
from . import logs
from .address import Address
from .collector import collect_as_usual
from .engines import cant_connect, failed_to_connect
from .exits import DATABASE, FAILED, OK, REPLACE, SCHEMA, SIGNALLED, USAGE, CommandError, exit_now
from .logs import say
from .mailbox import Mailbox
from .runners import Runner, WorkerOptions, make_runner
from .signals import SIGNALS, Requests
from .systemd import STOPPING, notify, told_of

if TYPE_CHECKING:
    from ..aio import AsyncWorker
    from ..worker import Worker

logger = logging.getLogger("sqlalchemy_bgjob")


def run_worker(options: WorkerOptions) -> int:
    """Run a worker until it is told to stop; the exit code.

    Raises:
        CommandError: The worker can't run, for a reason that its user can mend.
    """
    process = _Process(options)
    process.obey_signals()
    try:
        runner = make_runner(options)
    finally:
        logs.restore()  # the application is imported, and may have configured logging
    collect_as_usual()
    with _told_by_http(runner.worker, options.http), told_of(runner.worker):
        return process.run(runner)


@contextmanager
def _told_by_http(worker: "Worker | AsyncWorker", address: Address | None) -> Iterator[None]:
    """Meanwhile, answer probes and serve metrics, if there is an address for that."""
    if address is None:
        yield
        return
    from .endpoint import Endpoint, metrics_page, probe  # noqa: PLC0415 - off by default

    pages = {
        "/healthz": probe(lambda: worker.alive, "alive", "the worker's loop does not turn"),
        "/readyz": probe(lambda: worker.ready, "ready", "not ready"),
        "/metrics": metrics_page(),
    }
    with Endpoint(*address, pages) as endpoint:
        logger.info("probes and metrics on port %d of %s", endpoint.port, address.host)
        yield


class _Process:
    """The main thread of a worker process."""

    def __init__(self, options: WorkerOptions) -> None:
        self._options = options
        self._events: Mailbox[str] = Mailbox()
        self._own = Requests()
        self._pipe = options.parent_pipe
        if self._pipe is not None:
            os.set_blocking(self._pipe, False)
        self._passed_on = bytearray()  # one byte per request that the supervisor passed on
        self._expected = 0  # how many of the supervisor's signals have arrived
        self._obeyed = 0
        self._error: BaseException | None = None

    def obey_signals(self) -> None:
        """Install the signal handlers, which count whatever the main thread is doing."""
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._read_pipe()
        if self._expected < len(self._passed_on):
            # The supervisor's signal, announced on the pipe before it was sent. However late it
            # comes, it is no second request: a signal to the whole service has reached us already.
            self._expected += 1
        else:
            self._own.add(number)
        if self._asked >= 3:
            exit_now(SIGNALLED + number)
        self._events.put("signal")

    def _read_pipe(self) -> bool:
        """Read the requests that the supervisor passed on; whether the supervisor is gone."""
        if self._pipe is None:
            return False
        with suppress(BlockingIOError):
            found = os.read(self._pipe, 64)
            # One atomic step: a signal handler may run this method in between.
            self._passed_on.extend(found)
            return not found
        return False

    def run(self, worker: Runner) -> int:
        """Start the worker and obey signals until it has ended; the exit code."""
        thread = threading.Thread(target=self._work, args=(worker,), name="bgjob-main", daemon=True)
        thread.start()
        if self._pipe is not None:
            self._events.watch(self._pipe, "pipe")
        with self._events:
            self._obey(worker)
        thread.join(timeout=2.0)  # an event loop may still be cleaning up
        if self._error is not None:
            return _failed(self._error, self._options.engine)
        say(logging.INFO, "stopped")
        if self._asked < 2:
            return REPLACE if worker.worker.limit_reached and not self._asked else OK
        return SIGNALLED + self._last_signal

    @property
    def _asked(self) -> int:
        """How often this process was told to stop, by its own signals or by the supervisor."""
        return max(len(self._own.numbers), len(self._passed_on))

    @property
    def _last_signal(self) -> int:
        return self._own.numbers[-1] if self._own.numbers else signal.SIGTERM

    def _obey(self, worker: Runner) -> None:
        """Obey events until the worker has ended."""
        deadline: float | None = None
        while True:
            event = self._events.get(None if deadline is None else deadline - time.monotonic())
            if event is None:
                say(logging.ERROR, "the worker does not end: a handler blocks it; exiting")
                exit_now(FAILED)
            if event == "ended":
                return
            if event == "pipe" and self._pipe is not None and self._read_pipe():
                self._events.unwatch(self._pipe)
                event = "parent gone"
            if deadline is None:
                deadline = time.monotonic() + self._options.settings.shutdown_timeout + STUCK_AFTER
            if event == "parent gone" or self._asked > self._obeyed:
                self._obeyed = self._asked
                self._stop(worker, event)

    def _stop(self, worker: Runner, event: str) -> None:
        seconds = self._options.settings.shutdown_timeout
        if event == "parent gone":
            worker.request_stop()
            say(logging.WARNING, "the supervisor is gone: draining for at most %g s", seconds)
        elif self._asked == 1:
            worker.request_stop()
            name = signal.Signals(self._last_signal).name
            words = "%s: draining for at most %g s; again to stop at once"
            say(logging.INFO, words, name, seconds)
            if self._pipe is None:  # under a supervisor, this may be the end of one of several
                notify(STOPPING)
        else:
            worker.request_stop(0.0)
            say(logging.WARNING, "second signal: releasing what runs")

    def _work(self, worker: Runner) -> None:
        try:
            worker.run(self._ended)
        except BaseException as error:
            self._ended(error)

    def _ended(self, error: BaseException | None = None) -> None:
        """The worker has ended; its event loop may still be cleaning up."""
        self._error = self._error or error
        self._events.put("ended")


def _failed(error: BaseException, engine: str | None) -> int:
    """Raise what a user can mend as a CommandError; log any other error, and give the exit code."""
    if isinstance(error, UnfitHandlers):
        raise CommandError(USAGE, str(error)) from None
    if isinstance(error, WorkerStuck):
        return FAILED  # it was logged
    if isinstance(error, SchemaOutOfDate):
        raise CommandError(SCHEMA, str(error)) from None
    if isinstance(error, WorkerRefused):
        raise CommandError(DATABASE, str(error)) from None
    if isinstance(error, SQLAlchemyError) or sqlstate(error) is not None:
        raise CommandError(DATABASE, f"the database refuses: {database_message(error)}") from None
    if failed_to_connect(error):
        raise cant_connect(error, engine) from None
    logger.critical("the worker failed: %s", type(error).__name__, exc_info=error)
    return FAILED
