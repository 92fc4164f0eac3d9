"""Queue control: pause, resume, drain and slots, by operators; and what a worker reads of it.

What operators do runs in the caller's own transaction, and nothing is committed here, except when
the target is an Engine. A drain waits, so it has transactions of its own.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Connection, Engine

from .._db.targets import Unit, is_async_engine, run_in
from .._drafts import validation
from .._sql import Statements
from .._sql.words import parameters
from ..models import Models
from . import run

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

SEEN_WITHIN: Final = 1.5
"""Seconds after a pause within which a worker may still have claimed a job: it hears of the pause
within one, and has jobs of a claim that was under way."""
MOST_SLOTS: Final = 10_000
_LOOKS: Final = (0.05, 1.0)
_LOOK_SHARE: Final = 10
"""A drain looks at most once in N times the seconds that a look takes."""


@dataclass(frozen=True, slots=True)
class QueueState:
    """What is set for one queue, as a worker has read it.

    Attributes:
        is_paused: Whether nothing of it is claimed.
        resumes_in: Seconds until the pause is over by itself; None if it has no end.
        by, reason, until: Who paused it, why, and until when.
        slots: How many slots each worker has for it; None if that is the worker's own affair.
    """

    is_paused: bool
    resumes_in: float | None
    by: str | None
    reason: str | None
    until: datetime | None
    slots: int | None


def look(connection: Connection, statements: Statements) -> dict[str, QueueState]:
    """What is set for all queues, without those for which nothing is. Commits."""
    with connection.begin():
        rows: Any = run(connection, statements.control.state).all()
    return {queue: QueueState(*rest) for queue, *rest in rows}


def pause(
    models: Models,
    statements: Statements,
    target: Any,
    queue: str,
    by: str | None,
    reason: str | None,
    until: datetime | timedelta | float | None,
) -> Any:
    """See :meth:`BGJob.pause`."""
    given = _pause_of(queue, by, reason, until)

    def work(unit: Unit) -> bool:
        is_new = bool(unit.execute(statements.control.pause, given).scalar_one())
        _tell(unit, statements)
        return is_new

    return run_in(target, models, work, call="BGJob.pause")


def resume(models: Models, statements: Statements, target: Any, queue: str) -> Any:
    """See :meth:`BGJob.resume`."""
    given = parameters(queue=validation.name("queue", queue))

    def work(unit: Unit) -> bool:
        row: Any = unit.execute(statements.control.lock, given).one_or_none()
        if row is None:
            return False
        was_paused, slots, limited = row
        more = slots is not None or limited
        unit.execute(statements.control.resume if more else statements.control.remove, given)
        _tell(unit, statements)
        return bool(was_paused)

    return run_in(target, models, work, call="BGJob.resume")


def set_slots(
    models: Models, statements: Statements, target: Any, queue: str, slots: int | None
) -> Any:
    """See :meth:`BGJob.set_slots`."""
    given = parameters(queue=validation.name("queue", queue), slots=_slots(slots))

    def work(unit: Unit) -> None:
        if slots is not None:
            unit.execute(statements.control.set_slots, given)
        else:
            row: Any = unit.execute(statements.control.lock, given).one_or_none()
            if row is None:
                return
            paused, _, limited = row
            more = paused or limited
            unset = statements.control.unset_slots if more else statements.control.remove
            unit.execute(unset, given)
        _tell(unit, statements)

    return run_in(target, models, work, call="BGJob.set_slots")


def _tell(unit: Unit, statements: Statements) -> None:
    if unit.can_notify:
        unit.execute(statements.control.tell)


def _pause_of(
    queue: str, by: str | None, reason: str | None, until: datetime | timedelta | float | None
) -> dict[str, Any]:
    """The parameters of a pause, checked."""
    moment: datetime | None = None
    during: timedelta | None = None
    if isinstance(until, datetime):
        moment = validation.moment("until", until)
    elif until is not None:
        during = timedelta(seconds=validation.seconds("until", until))
    if (moment is not None and moment <= datetime.now(UTC)) or during == timedelta(0):
        raise ValueError(f"until={until!r} is over already; name a time to come, or leave it out")
    return parameters(
        queue=validation.name("queue", queue),
        by=validation.words("by", by),
        reason=validation.words("reason", reason),
        until=moment,
        during=during,
    )


def _slots(slots: object) -> int | None:
    if slots is None:
        return None
    if not validation.is_int(slots):
        raise TypeError(f"slots must be an int or None, not {type(slots).__name__}")
    if not 1 <= slots <= MOST_SLOTS:
        raise ValueError(
            f"slots={slots!r} is not 1 to {MOST_SLOTS}; to claim nothing of a queue, pause it"
        )
    return slots


# ---- drain --------------------------------------------------------------------------------------


class DrainWait:
    """How long a drain waits between two looks. Pure: times are given as arguments."""

    def __init__(self, timeout: float | None, now: float) -> None:
        self._sure_at, self._pause = now + SEEN_WITHIN, _LOOKS[0]
        self._until = inf if timeout is None else now + max(timeout, SEEN_WITHIN)

    def after(self, running: int, begun: float, now: float) -> float | None:
        """Seconds until the next look, after one that has found *running* jobs; None to end."""
        is_sure = begun >= self._sure_at  # an earlier look may have come before the last claim
        if is_sure and (not running or now >= self._until):
            return None
        pause, self._pause = self._pause, min(self._pause * 2, _LOOKS[1])
        pause = max(pause, (now - begun) * _LOOK_SHARE)
        ends = self._until if running else self._sure_at
        return max(min(pause if running else inf, ends - now), 0.0)


def drain(
    models: Models,
    statements: Statements,
    target: Any,
    queue: str,
    timeout: float | timedelta | None,
    by: str | None,
    reason: str | None,
    until: datetime | timedelta | float | None,
) -> Any:
    """See :meth:`BGJob.drain`."""
    seconds = None if timeout is None else validation.seconds("timeout", timeout)
    _pause_of(queue, by, reason, until)
    begin = partial(pause, models, statements, target, queue, by, reason, until)
    given = parameters(queue=queue)

    def count(connection: Connection) -> int:
        return int(connection.execute(statements.control.running, given).scalar_one())

    if isinstance(target, Engine):
        begin()
        return _drain(target, count, seconds)
    if is_async_engine(target):
        coroutine: Any = _drain_async(target, begin, count, seconds)
        coroutine.__name__ = coroutine.__qualname__ = "BGJob.drain"
        return coroutine
    raise TypeError(
        f"BGJob.drain takes an Engine or AsyncEngine, not {type(target).__name__}: it waits, and "
        f"nobody would see a pause in a transaction that stays open meanwhile; give it the engine"
    )


def _drain(engine: Engine, count: Callable[[Connection], int], timeout: float | None) -> int:
    wait = DrainWait(timeout, time.monotonic())
    while True:
        begun = time.monotonic()
        with engine.begin() as connection:
            running = count(connection)
        pause = wait.after(running, begun, time.monotonic())
        if pause is None:
            return running
        time.sleep(pause)


async def _drain_async(
    engine: "AsyncEngine",
    begin: Callable[[], Any],
    count: Callable[[Connection], int],
    timeout: float | None,
) -> int:
    await begin()
    wait = DrainWait(timeout, time.monotonic())
    while True:
        begun = time.monotonic()
        async with engine.begin() as connection:
            running = await connection.run_sync(count)
        pause = wait.after(running, begun, time.monotonic())
        if pause is None:
            return running
        await asyncio.sleep(pause)
