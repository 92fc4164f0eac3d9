"""The retention of dead jobs: deletes those that are older than ``dead_keep``, a few at a time.

There is no leader. Each worker that has the setting takes its turn once in as many minutes as there
are workers, so the whole fleet looks about once a minute. Two that look at once delete different
rows, and one that is gone holds nothing up. Without the setting no statement is sent.
"""

import logging
import random
import time
from collections.abc import Callable
from math import inf
from typing import Final

from sqlalchemy import Connection

from .._lifecycle.dead_jobs import delete_old
from .._sql import Statements

logger = logging.getLogger("sqlalchemy_bgjob")

INTERVAL: Final = 60.0
"""Seconds between two looks of the fleet."""
MOST_WORKERS: Final = 60
"""Workers above which the fleet looks more often: the others may not have the setting."""
BATCH: Final = 1_000
"""Rows of one transaction."""
LASTS: Final = 0.5
"""Seconds after which a turn deletes no further batch: lost workers must be found meanwhile."""
GO_ON_AFTER: Final = 1.0
"""Seconds until the next turn, if there was more to delete."""


class Retention:
    """The turns of one worker.

    Attributes:
        due_at: The monotonic time of the next turn; infinite without the setting.
    """

    def __init__(self, statements: Statements, keep: float, fleet: Callable[[], int]) -> None:
        """Take the seconds for which dead jobs are kept, 0 for ever; and what counts workers."""
        self._statements, self._keep, self._fleet = statements, keep, fleet
        self.due_at = inf

    def begin(self) -> None:
        """Put the first turn off, at random: workers may have begun together."""
        if self._keep:
            self.due_at = time.monotonic() + INTERVAL * random.random()

    def turn(self, connection: Connection) -> None:
        """Delete what is too old. Commits each batch.

        Raises:
            DBAPIError: The role may not, or the connection was lost; the next turn tries again.
        """
        begun = time.monotonic()
        self.due_at = begun + INTERVAL * min(self._fleet(), MOST_WORKERS) * random.uniform(0.9, 1.1)
        deleted, more = 0, True
        while more:
            last = delete_old(connection, self._statements, keep=self._keep, limit=BATCH)
            deleted += last
            more = last == BATCH
            if more and (now := time.monotonic()) >= begun + LASTS:
                self.due_at = now + GO_ON_AFTER
                break
        if deleted:
            logger.info("deleted %d dead jobs that were older than %g s", deleted, self._keep)
