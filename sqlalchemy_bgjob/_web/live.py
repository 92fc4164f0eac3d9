"""Tells open pages that something has changed, by one poll of the server's statistics for all."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from .._inspect.reading import activity
from ..models import Models
from .database import Database

log = logging.getLogger("sqlalchemy_bgjob")

INTERVAL: Final = 2.0
"""Seconds between two looks."""
STREAM_FOR: Final = 25.0
"""Seconds after which a stream ends, so that a server can stop; browsers open it again."""
MOST_STREAMS: Final = 200


class Live:
    """Who listens, and the task that looks while somebody does."""

    def __init__(self, database: Database, models: Models) -> None:
        self._database, self._models = database, models
        self._waiting: set[asyncio.Event] = set()
        self._task: asyncio.Task[None] | None = None

    @property
    def is_full(self) -> bool:
        """Whether so many listen that a further page polls instead."""
        return len(self._waiting) >= MOST_STREAMS

    async def events(self) -> AsyncIterator[str]:
        """Server-sent events: ``changed``, at most one for each look."""
        changed = asyncio.Event()
        self._waiting.add(changed)
        try:
            if self._task is None or self._task.done():
                self._task = asyncio.create_task(self._look())
            yield "retry: 1000\n\n"
            end = asyncio.get_running_loop().time() + STREAM_FOR
            with suppress(TimeoutError):
                while True:
                    # Not around the yield, where another's task may be waiting to send.
                    async with asyncio.timeout_at(end):
                        await changed.wait()
                    changed.clear()
                    yield "event: changed\ndata: 1\n\n"
        finally:
            self._waiting.discard(changed)

    async def _look(self) -> None:
        before: object = None
        idle = 0
        while idle < 2:  # a page that opens its stream again finds the task still there
            idle = 0 if self._waiting else idle + 1
            try:
                now = await self._database.read(lambda c: activity(c, self._models))
            except (SQLAlchemyError, OSError) as error:
                log.debug("the dashboard can't look for changes: %s", type(error).__name__)
                now = before  # type: ignore[assignment]
            if now != before and before is not None:
                for changed in self._waiting:
                    changed.set()
            before = now
            await asyncio.sleep(INTERVAL)
