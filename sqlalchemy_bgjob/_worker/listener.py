"""LISTEN: a hint that there is work. Polling stays the truth.

The listener has its own connection, outside the user's pool, and a thread or a task. It is trusted
only after a self-test, a notification from another connection: a pooler in transaction mode accepts
LISTEN and then delivers nothing. Whenever listening begins again, all queues are polled once, as
wake-ups may have been lost in between.
"""

import asyncio
import logging
import secrets
import selectors
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Engine, func
from sqlalchemy import select as sql_select

from .._db.connections import configure, session_of
from .._db.errors import sqlstate
from .._db.keepalive import enable_keepalive
from .._sql import Statements, control, schedules
from .._sql.words import Wakeup, own_channel
from ..telemetry import Events
from .hands import Hands
from .heart import Heart
from .queue_control import QueueControl
from .runtime import Runtime
from .scheduler import Scheduler
from .side_loop import SideLoop

logger = logging.getLogger("sqlalchemy_bgjob")

SELF_TEST_TIMEOUT: Final = 3.0
AFTER_FAILED_TEST: Final = 300.0
MOST_OTHERS: Final = 1_000_000
"""How many waiting workers a notification may tell of: it may be forged."""
REFUSALS: Final = 4
"""Refusals in a row after which LISTEN is tried again as rarely as after a failed test."""
_STOP_WITHIN: Final = 0.25

_DRIVERS: Final = frozenset({"psycopg", "psycopg_async", "psycopg2", "asyncpg"})


class CantListen(RuntimeError):
    """The driver is not one whose way to wait for notifications is known here."""

    def __init__(self, driver: str) -> None:
        super().__init__(driver)
        self.driver = driver

    def __str__(self) -> str:
        return f"no way to LISTEN with the driver {self.driver!r} is known"


Hear = Callable[[str, str], None]
"""Called with the channel and the payload of each notification."""


class Ear(NamedTuple):
    """A driver's way to be notified.

    Attributes:
        listen: Listens on one more channel.
        wait: Waits for a notification, at most N seconds; what arrives is heard.
    """

    listen: Callable[[str], None]
    wait: Callable[[float], None]


class Listener(SideLoop):
    """Listens for one worker; ends within a quarter of a second after it is stopped.

    Args:
        runtime: Where to connect, and how to await.
        statements: Those of the tables; they name the channel.
        hands: Woken by each notification.
        heart: Told which session listens. When the heart reconnects, so does the listener: the
            worker may now write to another server. If the old one is still up, but read-only, a
            session there lasts and hears nothing.
        queue_control: Asked to look when an operator has set something, or may have.
        scheduler: Told when schedules have changed.
        events: Told of errors.
    """

    interrupted = "not listening"

    def __init__(
        self,
        runtime: Runtime,
        statements: Statements,
        hands: Hands,
        heart: Heart,
        queue_control: QueueControl,
        scheduler: Scheduler,
        events: Events,
    ) -> None:
        super().__init__(runtime.engine, events)
        self._runtime, self._statements = runtime, statements
        self._hands, self._heart = hands, heart
        self._queue_control, self._scheduler = queue_control, scheduler
        self._of_reconnect = 0
        self._refusals = 0
        self._warned = False
        self._hears = False
        self._hears_as: int | None = None

    @property
    def listening(self) -> bool:
        """Whether notifications arrive, those for the worker's present id among them."""
        return self._hears and self._hears_as == self._heart.worker_id is not None

    def _live(self, connection: Connection) -> float | None:
        try:
            return None if self._listen(connection) else AFTER_FAILED_TEST
        except CantListen as lacking:
            self._warn(str(lacking), remedy="use psycopg, psycopg2 or asyncpg")
            self.stop()
            return None
        finally:
            if self._hears:
                self._hears, self._hears_as = False, None
                self._heart.set_listener(None)
                self._hands.wake(None)  # from now on polls come more often

    def _failed(self, error: Exception | SystemExit) -> float | None:
        self._refusals = self._refusals + 1 if _is_refusal(error) else 0
        if self._refusals == REFUSALS:
            self._warn(f"LISTEN is refused ({sqlstate(error)})")
        return AFTER_FAILED_TEST if self._refusals >= REFUSALS else None

    def _is_over(self) -> bool:
        """Whether this session is to be given up."""
        return self._stopping.is_set() or self._of_reconnect != self._heart.reconnects

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._is_over() and (left := until - time.monotonic()) > 0:
            self._runtime.sleep(min(left, _STOP_WITHIN))
        self._of_reconnect = self._heart.reconnects  # later reconnects end the next session

    def _listen(self, connection: Connection) -> bool:
        """Listen until stopped; False if notifications do not arrive here."""
        engine, connection = connection.engine, configure(connection, "AUTOCOMMIT")
        channel = self._statements.tables.channel
        returned = self._statements.tables.channel_of_given_back
        # A side channel makes the test independent of what queues are called.
        test = f"{channel}_{secrets.token_hex(8)}"
        tested = threading.Event()

        def hear(heard_on: str, payload: str) -> None:
            if heard_on == test:
                tested.set()
            elif not self._hears:
                return
            elif heard_on == returned and payload == schedules.CHANGED:
                self._scheduler.look_soon()
            elif heard_on == channel and payload == control.CHANGED:
                self._queue_control.ask()
            elif heard_on in (channel, returned):
                self._hands.wake(payload, new=heard_on == channel)
            elif payload == Wakeup.CANCEL.value:
                self._hands.look_for_asks()
            else:
                of, others, queue = _parsed(payload)
                self._hands.wake(queue, new=of == Wakeup.NEW.value, others=others)

        row = connection.execute(self._statements.workers.listener_session).one_or_none()
        ear = _ear(connection, hear, self._runtime)
        for name in (channel, returned, test):
            ear.listen(name)
        if not self._passes_test(engine, ear, test, tested):
            self._warn("notifications do not arrive (a connection pooler in transaction mode?)")
            return False
        self._backoff.reset()
        self._refusals = 0
        self._hears = True
        self._queue_control.ask()
        session = (row[0], row[1]) if row is not None and row[1] is not None else None
        self._heart.set_listener(session)
        while not self._is_over():
            if (worker_id := self._heart.worker_id) is not None and worker_id != self._hears_as:
                ear.listen(own_channel(channel, worker_id))
                self._hears_as = worker_id
                self._hands.wake(None)
            ear.wait(_STOP_WITHIN)
        return True

    def _warn(self, problem: str, *, remedy: str = "give the worker a direct connection") -> None:
        if not self._warned:
            self._warned = True
            logger.warning(
                "%s: falling back to polling; %s, or turn listening off (listen=False, "
                "--no-listen)",
                problem,
                remedy,
            )

    def _passes_test(self, engine: Engine, ear: Ear, test: str, tested: threading.Event) -> bool:
        with session_of(engine) as other, other.begin():
            enable_keepalive(other)
            other.execute(sql_select(func.pg_notify(test, "")))
        deadline = time.monotonic() + SELF_TEST_TIMEOUT
        while not self._stopping.is_set():
            # The clock first: after a long stall, notifications are read once more.
            late = time.monotonic() >= deadline
            ear.wait(_STOP_WITHIN)
            if tested.is_set():
                return True
            if late:
                return False
        return True


def _is_refusal(error: BaseException) -> bool:
    """Whether LISTEN itself is refused: not supported here, or no such command, as poolers say.

    Other errors may pass in a moment: a standby that is promoted, a timeout, a server without room.
    """
    return (sqlstate(error) or "")[:2] in ("0A", "42")


def _parsed(payload: str) -> tuple[str, int, str]:
    """Why a worker is woken, how many others wait, and the queue; anybody may have written it."""
    of, _, rest = payload.partition(" ")
    others, _, queue = rest.partition(" ")
    try:
        return of, min(max(int(others), 0), MOST_OTHERS), queue
    except ValueError:
        return of, 0, queue


def _ear(connection: Connection, hear: Hear, runtime: Runtime) -> Ear:
    """The driver's own way to LISTEN and to wait for notifications."""
    driver: Any = connection.connection.driver_connection
    name = connection.dialect.driver
    if name not in _DRIVERS:
        raise CantListen(name)
    if name == "asyncpg":
        return _ear_of_asyncpg(driver, hear, runtime)

    def listen(channel: str) -> None:
        connection.exec_driver_sql(f'LISTEN "{channel}"')

    if name == "psycopg2":
        return Ear(listen, partial(_wait_psycopg2, driver, hear))
    if connection.dialect.is_async:
        return Ear(
            listen, lambda seconds: runtime.await_(_wait_psycopg_async(driver, hear, seconds))
        )
    return Ear(listen, partial(_wait_psycopg, driver, hear))


def _wait_psycopg2(driver: Any, hear: Hear, seconds: float) -> None:
    if not driver.notifies:
        # Not select.select(), which takes no file of a number above 1023.
        with selectors.DefaultSelector() as selector:
            selector.register(driver, selectors.EVENT_READ)
            selector.select(seconds)
        driver.poll()
    while driver.notifies:
        notification = driver.notifies.pop(0)
        hear(notification.channel, notification.payload)


def _wait_psycopg(driver: Any, hear: Hear, seconds: float) -> None:
    for notification in driver.notifies(timeout=seconds, stop_after=1):
        hear(notification.channel, notification.payload)


async def _wait_psycopg_async(driver: Any, hear: Hear, seconds: float) -> None:
    async for notification in driver.notifies(timeout=seconds, stop_after=1):
        hear(notification.channel, notification.payload)


def _ear_of_asyncpg(driver: Any, hear: Hear, runtime: Runtime) -> Ear:
    changed = asyncio.Event()

    def on_notification(_: Any, pid: int, channel: str, payload: str) -> None:
        hear(channel, payload)  # here and now: each turn of the event loop would be a delay
        changed.set()

    driver.add_termination_listener(lambda _: changed.set())

    async def wait(seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await changed.wait()
        changed.clear()
        if driver.is_closed():
            raise ConnectionError("the listening connection was closed")

    return Ear(
        lambda channel: runtime.await_(driver.add_listener(channel, on_notification)),
        lambda seconds: runtime.await_(wait(seconds)),
    )
