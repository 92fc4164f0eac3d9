"""What a worker's loop needs from threads or from asyncio."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy import Engine

from .run import Run

if TYPE_CHECKING:
    from .slots import Slots

Attendant = threading.Thread | asyncio.Task[None]


class Runtime(Protocol):
    """What differs between threads and asyncio: how to wait, and how to start a handler."""

    engine: Engine
    """Connects when used from the worker's loop; for asyncio, from within a greenlet."""
    heart_engine: Engine
    """Heart and rescuer connect as this one does, from their own threads and event loops."""

    def wait(self, seconds: float) -> None:
        """Wait for :meth:`wake`, at most *seconds*; from the worker's loop."""

    def wake(self) -> None:
        """End the wait, or the next one; from any thread."""

    def start(self, run: Run, slots: "Slots") -> None:
        """Do a run in one of the slots, and then the runs that follow it there."""

    def yield_to_tasks(self) -> None:
        """Let a started run begin; from the worker's loop."""

    def cancel(self, run: Run) -> None:
        """Cancel a run, if its handler is a coroutine."""

    def spawn(self, name: str, target: Callable[[], None]) -> threading.Thread:
        """Run *target* in a daemon thread in which a side engine of :attr:`heart_engine` works."""

    def attend(self, name: str, target: Callable[[], None]) -> Attendant:
        """Run *target* beside the worker's loop: in a thread, or as a task of its event loop.

        *target* may wait only by :meth:`await_` and :meth:`sleep`.
        """

    def sleep(self, seconds: float) -> None:
        """Sleep, in an attendant."""

    def join(self, attendant: Attendant, timeout: float) -> None:
        """Wait for a thread or an attendant to end, from the worker's loop."""

    def block(self, action: Callable[[], None]) -> None:
        """Run a blocking *action* from the worker's loop; an event loop goes on meanwhile."""

    def await_(self, awaitable: Coroutine[Any, Any, Any]) -> Any:
        """The result of a coroutine; TypeError where coroutines can't be run."""
