"""Looks through the batches, for as long as this worker leads.

It finishes those that are over and that nobody has looked at, and deletes those that are old. Of
those that are finished and kept it reads next to none. The leader's regular sample of health shows
whether there may be any; where there are none, no statement is sent. Two who do it at once do no
harm.
"""

import time
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection

from .._lifecycle.batches import Looked, forget, look_through
from .._sql import Statements
from ..settings import WorkerSettings

if TYPE_CHECKING:
    from collections.abc import Callable

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
        self._looks: list[Callable[..., Looked]] = [look_through]
        if keep := settings.batch_keep:
            self._looks.append(partial(forget, keep=keep))
        self._statements = statements
        self._left: list[Callable[..., Looked]] = []
        self.due_at = inf
        self._after = ""

    def begin(self) -> None:
        """There may be some: look through them, or go on with that."""
        if self.due_at == inf:  # it is done, or has failed
            self._left = [*self._looks]
        self.due_at = time.monotonic()

    def turn(self, connection: Connection) -> None:
        """Look at some of them. Commits what each look has come to.

        Raises:
            DBAPIError: The role may not, or the connection was lost; it begins again at a later
                sample of health.
        """
        begun = time.monotonic()
        self.due_at = inf
        while self._left:
            look, after, self._after = self._left.pop(0), self._after, ""
            looked = look(connection, self._statements, after=after, limit=LIMIT)
            if looked.last is not None:
                self._left.insert(0, look)
                self._after = looked.last
            if self._left and time.monotonic() >= begun + LASTS:
                self.due_at = time.monotonic() + GO_ON_AFTER
                return
