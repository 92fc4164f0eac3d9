"""Finishes batches of which jobs have ended here, if these were the last ones.

The loop does it on its own connection, after the commit that ended a job.
"""

import logging
import time
from math import inf
from typing import Final

from .._db.errors import lost_connection, summary
from .._lifecycle.batches import finish
from .._sql import Statements
from .control import ControlConnection
from .hands import Hands

logger = logging.getLogger("sqlalchemy_bgjob")

SHARE: Final = 20
"""A look comes at the earliest N times as long after the last one as that took: beside an open
transaction it reads what is left of all jobs of a batch."""
MOST: Final = 5.0
"""Seconds that it waits at most: a single look may have waited for a slow machine or network."""
AFTER_FAILURE: Final = 10.0
"""Seconds from a look that failed to the next: without a privilege all of them fail."""


class EndedBatches:
    """The looks of one worker."""

    def __init__(self, hands: Hands, control: ControlConnection, statements: Statements) -> None:
        self._hands, self._control, self._statements = hands, control, statements
        self._rests_until = 0.0

    @property
    def due_at(self) -> float:
        """The monotonic time of the next look; infinite if there is nothing to look at."""
        return self._rests_until if self._hands.ended_batches else inf

    def finish(self) -> None:
        """Finish those that are over. Commits.

        Raises:
            DBAPIError: There is no connection; the same batches are looked at again.
        """
        hands, begun, least = self._hands, time.monotonic(), 0.0
        connection = self._control.get()  # if there is none, they stay to be looked at
        with hands.lock:
            ids, hands.ended_batches = hands.ended_batches, set()
        try:
            finish(connection, self._statements, ids)
        except Exception as error:
            if lost_connection(error):
                with hands.lock:
                    hands.ended_batches |= ids
                raise
            logger.warning("batches were not finished, others will look again: %s", summary(error))
            least = AFTER_FAILURE
        now = time.monotonic()
        self._rests_until = now + max(min(SHARE * (now - begun), MOST), least)
