"""Rows that refuse to be deleted, as by a trigger or a foreign key of the application's.

This worker passes them over for an hour, so that the others go.
"""

import logging
import time
from collections.abc import Callable, Collection, Mapping
from typing import Final

from .._db.errors import summary
from .._db.printable import printable

logger = logging.getLogger("sqlalchemy_bgjob")

REFUSED_AGAIN: Final = 3_600.0
"""Seconds until a row that refused is tried again."""
MOST_REFUSED: Final = 10_000
"""Rows that are passed over at most; with more of them nothing is deleted until some are tried."""


class PassedOver:
    """Those of one table."""

    def __init__(self, what: str, report: Callable[[Exception], None]) -> None:
        """Take what the log calls such rows, and what is told of errors."""
        self._what, self._report = what, report
        self._again: dict[str, float] = {}
        """When to try again, by the id; ascending."""

    @property
    def ids(self) -> Collection[str]:
        """The ids of those that are passed over."""
        return self._again.keys()

    @property
    def is_full(self) -> bool:
        """Whether nothing is to be deleted now."""
        return len(self._again) >= MOST_REFUSED

    def begin(self) -> None:
        """A turn begins: try those again whose time has come."""
        now = time.monotonic()
        self._again = {id: at for id, at in self._again.items() if at > now}

    def add(self, refused: Mapping[str, Exception]) -> None:
        """Pass these over from now on, and tell of the first."""
        self._again |= dict.fromkeys(refused, time.monotonic() + REFUSED_AGAIN)
        if refused:
            id, error = next(iter(refused.items()))
            self._report(error)
            logger.warning(
                "%d %s can't be deleted, such as that of id %s: %s; trying again in %g s",
                len(refused),
                self._what,
                printable(id),
                summary(error),
                REFUSED_AGAIN,
            )
