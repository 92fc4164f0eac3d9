"""How a Worker waits, and runs handlers: in threads that are reused."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine

from .._handlers.lifespan import Lifespan
from .._sql import Statements
from .attempt import Environment
from .permits import HandlerConnections
from .run import Run
from .runtime import Attendant

if TYPE_CHECKING:
    from .slots import Slots

logger = logging.getLogger("sqlalchemy_bgjob")


class ThreadRuntime:
    """Waits for a bell to ring, and runs handlers in daemon threads that are reused."""

    def __init__(self, engine: Engine) -> None:
        self.engine = self.heart_engine = engine
        # Held until somebody rings. Not an Event: a signal handler that sets one may interrupt the
        # wait for it, and deadlock on the lock that this wait holds. Nor a SimpleQueue: in Python
        # 3.11, a wait that is interrupted just before its timeout never ends.
        self._bell = threading.Lock()
        self._bell.acquire()
        self._threads = Threads()

    def wait(self, seconds: float) -> None:
        """Wait for wake(), at most *seconds*."""
        self._bell.acquire(timeout=seconds)

    def wake(self) -> None:
        """End the wait, or the next one."""
        if self._bell.locked():
            with suppress(RuntimeError):  # somebody else has rung meanwhile
                self._bell.release()

    def start(self, run: Run, slots: "Slots") -> None:
        """Do a run in a thread, and then the runs that follow it there."""
        self._threads.start(partial(slots.work, run))

    def yield_to_tasks(self) -> None:
        """Threads take turns by themselves."""

    def cancel(self, run: Run) -> None:
        """A thread can't be cancelled; the handler sees ``ctx.cancelled``."""

    def spawn(self, name: str, target: Callable[[], None]) -> threading.Thread:
        """Run *target* in a daemon thread."""
        thread = threading.Thread(target=target, name=name, daemon=True)
        thread.start()
        return thread

    def attend(self, name: str, target: Callable[[], None]) -> Attendant:
        """Run *target* in a daemon thread."""
        return self.spawn(name, target)

    def sleep(self, seconds: float) -> None:
        """Sleep."""
        time.sleep(seconds)

    def join(self, attendant: Attendant, timeout: float) -> None:
        """Wait for a thread to end."""
        assert isinstance(attendant, threading.Thread)
        attendant.join(timeout)

    def block(self, action: Callable[[], None]) -> None:
        """Run *action* here: this thread is the worker's own."""
        action()

    def await_(self, awaitable: Coroutine[Any, Any, Any]) -> Any:
        """Threads await nothing."""
        awaitable.close()
        raise TypeError("a coroutine handler needs AsyncWorker")

    def close(self) -> None:
        """End the idle threads."""
        self._threads.close()


class Threads:
    """Daemon threads for handlers: as many as run at once, reused, never waited for at exit."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._work: deque[Callable[[], None]] = deque()
        self._idle = 0
        self._count = 0
        self._closed = False

    def start(self, work: Callable[[], None]) -> None:
        """Run *work* at once: in an idle thread if there is one.

        If the system has no thread left, *work* waits for one of these.

        Raises:
            RuntimeError: There is none of these either.
        """
        with self._changed:
            self._work.append(work)
            if self._idle >= len(self._work):
                self._changed.notify()
                return
            self._count += 1
            name = f"bgjob-handler-{self._count}"
        try:
            threading.Thread(target=self._run, name=name, daemon=True).start()
        except RuntimeError:
            with self._changed:
                self._count -= 1
                if self._count or work not in self._work:
                    return
                self._work.remove(work)
            raise

    def close(self) -> None:
        """Let idle threads end; busy ones end after their work."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._idle += 1
                while not self._work and not self._closed:
                    self._changed.wait()
                self._idle -= 1
                if not self._work:
                    self._count -= 1
                    return
                work = self._work.popleft()
            try:
                work()
            except Exception:  # no handler's error gets here: this is a bug
                logger.exception("a run ended without a settlement")
            del work


def thread_environment(
    engine: Engine,
    statements: Statements,
    session_factory: Callable[[], Any],
    permits: int | None,
    around: Callable[[], Any] | None,
    lifespan: Lifespan,
) -> Environment:
    """Where functions run: in threads, with sessions of a synchronous engine."""
    semaphore = threading.Semaphore(permits) if permits is not None else None
    connections = HandlerConnections(engine, semaphore)
    return Environment(
        statements=statements,
        engine=engine,
        session_factory=session_factory,
        connect=connections.connect,
        disconnect=connections.disconnect,
        around=around,
        lifespan=lifespan,
    )
