"""How an AsyncWorker waits, and runs handlers: coroutines as tasks, functions in threads."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Connection, Engine
from sqlalchemy.util import await_only, greenlet_spawn

from .._handlers.outcomes import CANCELLED, HAND_BACK
from .._job_context import running
from .._lifecycle.settle import Pending
from .attempt import Attempt
from .permits import close_or_discard
from .run import Run
from .runtime import Attendant
from .threads import ThreadRuntime

if TYPE_CHECKING:
    from .slots import Slots

logger = logging.getLogger("sqlalchemy_bgjob")


TURN: Final = 0.002
"""Seconds after which jobs that wait for nothing let the rest of the event loop go on."""


class AsyncRuntime:
    """Waits on the event loop; coroutines run as tasks, functions in threads."""

    def __init__(
        self, engine: Engine, threads: ThreadRuntime, heart_engine: Engine | None = None
    ) -> None:
        self.engine, self.heart_engine = engine, heart_engine or engine
        self._threads = threads
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._bell: asyncio.Future[None] = self._loop.create_future()  # of the current wait
        self._woken = False
        self._tasks: dict[asyncio.Task[None], tuple[Run, Slots]] = {}
        self._turn_ends = 0.0
        self._context = copy_context()

    def wait(self, seconds: float) -> None:
        """Wait for wake(), at most *seconds*; the event loop goes on."""
        # An asyncio.Event and a timeout would do, but each of their steps delays a job. Make the
        # bell before looking whether it rang: a signal handler may ring it in between.
        self._bell = bell = self._loop.create_future()
        if self._woken:
            await_only(asyncio.sleep(0))  # never hog the loop, however often we are woken
        else:
            timer = self._loop.call_later(seconds, self._ring)
            try:
                await_only(bell)
            finally:
                timer.cancel()
        self._woken = False

    def wake(self) -> None:
        """End the wait, or the next one."""
        if not self._woken:
            self._woken = True
            self._call(self._ring)

    def _ring(self) -> None:
        if not self._bell.done():
            self._bell.set_result(None)

    def start(self, run: Run, slots: "Slots") -> None:
        """Do a run as a task, or in a thread if its handler is a function."""
        if run.handler.is_coroutine:
            self._call(lambda: self._start_task(run, slots))
        else:
            self._threads.start(run, slots)

    def _start_task(self, run: Run, slots: "Slots") -> None:
        task = self._loop.create_task(
            self._work(run, slots),
            name=f"bgjob {run.handler.type}",
            context=self._context.copy(),
        )
        run.task = task
        self._tasks[task] = run, slots
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        run, slots = self._tasks.pop(task)
        if not slots.holds(run):
            return
        # No handler's error gets here: the task was cancelled before it ran, as at the end of the
        # event loop, or this is a bug. Neither the slot nor the job may be lost with the task.
        if not task.cancelled():
            logger.error("a run ended without a settlement", exc_info=task.exception())
        _end_unstarted(slots, run)

    async def _work(self, run: Run, slots: "Slots") -> None:
        """Do a run, and then the next one for as long as there is one.

        They share this task: a run that waits for nothing costs neither a task nor a switch. But a
        handler must not find what an earlier one left in the task, such as a context variable.
        """
        task = asyncio.current_task()
        assert task is not None
        run.task = task
        if not slots.holds(run):
            return
        while True:
            attempt = slots.attempt(run)
            running.set(run)
            context = copy_context()
            returned: Any = None
            error: BaseException | None = None
            around = attempt.around
            begin = attempt.begin if around is None else attempt.begin_around
            try:
                if run.handler.options.timeout is None:
                    returned = await begin()
                else:
                    async with asyncio.timeout(run.handler.options.timeout) as run.timer:
                        returned = await begin()
            except GeneratorExit as raised:
                if _is_closed_from_outside(attempt, task):
                    _close(attempt, raised, run, slots)
                    raise
                error = raised  # the handler raised it; nobody closed the coroutine
            except BaseException as raised:
                error = raised
            if attempt.opened:
                ended = await greenlet_spawn(attempt.end, returned, error)
            else:
                ended = attempt.end(returned, error)
            if around is not None:
                await around.leave_async(error)
            run.task = None
            differs = _differs(context)
            running.set(None)
            following = slots.ended(run, ended)
            del ended, error  # an exception keeps this run's variables
            if following is None:
                return
            if not following.handler.is_coroutine or task.cancelling() or differs:
                slots.start(following)
                return
            run, run.task = following, task
            self._tasks[task] = run, slots
            if time.monotonic() >= self._turn_ends and not await self._give_way(run, slots):
                return

    async def _give_way(self, run: Run, slots: "Slots") -> bool:
        """Let the event loop go on; False if the run is not to be done after that."""
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:  # a late one, which the last handler asked for
            _end_unstarted(slots, run)
            return False
        self._turn_ends = time.monotonic() + TURN
        return slots.holds(run)

    def yield_to_tasks(self) -> None:
        """Let the started task run to its first wait: it may do its whole job until then."""
        await_only(asyncio.sleep(0))

    def cancel(self, run: Run) -> None:
        """Cancel a coroutine."""
        if run.task is not None:
            self._call(run.task.cancel)

    def _call(self, function: Callable[[], object]) -> None:
        if threading.get_ident() == self._loop_thread:
            function()
        else:
            try:
                self._loop.call_soon_threadsafe(function)
            except RuntimeError:
                logger.debug("the event loop is closed")

    def spawn(self, name: str, target: Callable[[], None]) -> threading.Thread:
        """Run *target* in a daemon thread, in a greenlet of a new event loop."""

        def run() -> None:
            asyncio.run(greenlet_spawn(target))

        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        return thread

    def attend(self, name: str, target: Callable[[], None]) -> Attendant:
        """Run *target* in a greenlet of this event loop, where it can wake the loop at once."""
        return self._loop.create_task(greenlet_spawn(target), name=name)

    def sleep(self, seconds: float) -> None:
        """Sleep; the event loop goes on."""
        await_only(asyncio.sleep(seconds))

    def join(self, attendant: Attendant, timeout: float) -> None:
        """Wait for a thread or a task to end; the event loop goes on."""
        if isinstance(attendant, threading.Thread):
            self.block(partial(attendant.join, timeout))
        else:
            _, left = await_only(asyncio.wait({attendant}, timeout=timeout))
            for task in left:  # the event loop is the application's, and goes on without us
                task.cancel()
                await_only(asyncio.wait({task}, timeout=1.0))

    def block(self, action: Callable[[], None]) -> None:
        """Run *action* in a new thread: those of the loop's executor may all be taken."""
        done = asyncio.Event()

        def run() -> None:
            try:
                action()
            finally:
                self._call(done.set)

        threading.Thread(target=run, name="bgjob-block", daemon=True).start()
        await_only(done.wait())

    def await_(self, awaitable: Coroutine[Any, Any, Any]) -> Any:
        """The result of a coroutine, awaited in the loop of the calling thread."""
        return await_only(awaitable)

    async def close(self) -> None:
        """Wait for cancelled tasks, and end the idle threads."""
        tasks = self._tasks.keys() - {asyncio.current_task()}
        if tasks:
            await asyncio.wait(tasks, timeout=5.0)
        self._threads.close()


def _end_elsewhere(slots: "Slots", run: Run, ends: list[Pending]) -> None:
    """End a run whose task can do no other; the next run gets a new task or a thread."""
    following = slots.ended(run, ends)
    if following is not None:
        slots.start(following)


def _end_unstarted(slots: "Slots", run: Run) -> None:
    """End a run whose handler was not called."""
    run.started_at = run.started_at or time.monotonic()
    _end_elsewhere(
        slots,
        run,
        [Pending(job, CANCELLED if run.is_asked(job) else HAND_BACK) for job in run.jobs],
    )


def _is_closed_from_outside(attempt: Attempt, task: asyncio.Task[None]) -> bool:
    """Whether a GeneratorExit closes the task's coroutine, and was not raised by the handler."""
    if not attempt.opened:
        return True
    try:
        return asyncio.current_task() is not task
    except RuntimeError:  # no loop runs any more
        return True


def _close(attempt: Attempt, raised: GeneratorExit, run: Run, slots: "Slots") -> None:
    """End a run whose coroutine is closed from outside: nothing may be awaited now."""
    ended = None if attempt.opened else attempt.end(None, raised)
    if attempt.around is not None:
        attempt.around.leave(raised)
    if ended is not None:
        _end_elsewhere(slots, run, ended)


def _differs(context: Context) -> bool:
    """Whether the current context differs; True also if its values refuse to be compared."""
    try:
        return copy_context() != context
    except Exception:
        return True


def close_apart(connection: Connection) -> None:
    """Close a connection, even if this task is cancelled.

    A cancellation in the middle of a ROLLBACK would cost the pool the connection's place for good.
    """
    if connection.in_transaction():
        await_only(
            asyncio.shield(asyncio.ensure_future(greenlet_spawn(close_or_discard, connection)))
        )
    else:
        close_or_discard(connection)


class AsyncPermits:
    """An asyncio semaphore, waited for from within a greenlet."""

    def __init__(self, permits: int) -> None:
        self._semaphore = asyncio.Semaphore(permits)

    def acquire(self, *, timeout: float | None = None) -> bool:
        if timeout is None:
            return await_only(self._semaphore.acquire())
        try:
            return await_only(self._acquire_within(timeout))
        except TimeoutError:
            return False

    async def _acquire_within(self, seconds: float) -> bool:
        # Not wait_for(), which loses a cancellation in Python 3.11.
        async with asyncio.timeout(seconds):
            return await self._semaphore.acquire()

    def release(self) -> None:
        self._semaphore.release()
