"""Looks through the batches, for as long as this worker leads.

It finishes those that are over and that nobody has looked at, and deletes those that are old. The
leader's regular sample of health shows whether there may be any; where there are none, no statement
is sent. Two who do it at once do no harm.
"""

import time
from math import inf
from typing import Final

from sqlalchemy import Connection

from .._lifecycle.batches import look_through
from .._sql import Statements
from ..settings import WorkerSettings

LIMIT: Final = 500
"""Batches that are looked at together."""
LASTS: Final = 0.5
"""Seconds after which a turn looks at no more: lost workers must be found meanwhile."""
GO_ON_AFTER: Final = 1.0
"""Seconds until the next turn, if the end of the table was not reached."""


class BatchSweep:
    """The turns of one worker.

    Attributes:
        due_at: The monotonic time of the next turn; infinite if there is nothing to do.
    """

    def __init__(self, statements: Statements, settings: WorkerSettings) -> None:
        self._statements, self._keep = statements, settings.batch_keep
        self.due_at = inf
        self._after = ""

    def begin(self) -> None:
        """There may be some: look through them, from where the last turn stopped."""
        self.due_at = min(self.due_at, time.monotonic())

    def turn(self, connection: Connection) -> None:
        """Look at some of them. Commits what each look has come to.

        Raises:
            DBAPIError: The role may not, or the connection was lost; it begins again at a later
                sample of health.
        """
        begun = time.monotonic()
        self.due_at = inf
        while True:
            looked = look_through(
                connection, self._statements, after=self._after, limit=LIMIT, keep=self._keep
            )
            self._after = looked.last or ""
            if looked.last is None:
                return
            if time.monotonic() >= begun + LASTS:
                break
        self.due_at = time.monotonic() + GO_ON_AFTER
