"""Deletes periods of unique keys that are over, a few at a time, for as long as this worker leads.

The leader's regular sample of health shows whether there may be any; where there are none, no
statement is sent. Two who do it at once delete different rows.
"""

import time
from math import inf
from typing import Final

from sqlalchemy import Connection

from .._lifecycle.unique_periods import delete_over
from .._sql import Statements

BATCH: Final = 1_000
"""Rows that one transaction looks at."""
LASTS: Final = 0.5
"""Seconds after which a turn begins no further batch: lost workers must be found meanwhile."""
GO_ON_AFTER: Final = 1.0
"""Seconds until the next turn, if the end of the table was not reached."""
SHARE: Final = 100
"""A walk through the table begins at the earliest N times as long after the last one as that took,
as most of what it reads may not be over."""


class UniquePeriods:
    """The turns of one worker.

    Attributes:
        due_at: The monotonic time of the next turn; infinite if there is nothing to do.
    """

    def __init__(self, statements: Statements) -> None:
        self._statements = statements
        self.due_at = inf
        self._after = ""
        self._took = 0.0
        self._rests_until = -inf

    def begin(self) -> None:
        """There may be some: walk through them, unless that was done lately."""
        if self.due_at == inf and time.monotonic() >= self._rests_until:
            self.due_at = time.monotonic()

    def turn(self, connection: Connection) -> None:
        """Look at some of them. Commits each batch.

        Raises:
            DBAPIError: The role may not, or the connection was lost; it begins again at a later
                sample of health.
        """
        begun = time.monotonic()
        self.due_at = inf
        while True:
            looked = delete_over(connection, self._statements, after=self._after, limit=BATCH)
            now = time.monotonic()
            if looked.last is None:
                self._rests_until = now + SHARE * (self._took + now - begun)
                self._after, self._took = "", 0.0
                return
            self._after = looked.last
            if now >= begun + LASTS:
                break
        self._took += now - begun
        self.due_at = now + GO_ON_AFTER
