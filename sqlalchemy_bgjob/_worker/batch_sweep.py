"""Looks through the batches, for as long as this worker leads.

It finishes those that are over and that nobody has looked at, and deletes those that are old. Of
those that are finished and kept it reads next to none. The leader's regular sample of health shows
whether there may be any; where there are none, no statement is sent. Two who do it at once do no
harm.

If an old one refuses to go, as by a trigger or a foreign key of the application's, the others of
its page are deleted one by one, and it is passed over for an hour.
"""

import time
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Connection

from .._lifecycle.batches import Looked, forget, look_through
from .._sql import Statements
from ..settings import WorkerSettings
from .passed_over import PassedOver

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

    Args:
        statements: Those of the tables.
        settings: Say for how long finished batches are kept.
        report: Told of errors that a turn does not raise.

    Attributes:
        due_at: The monotonic time of the next turn; infinite if there is nothing to do.
    """

    def __init__(
        self,
        statements: Statements,
        settings: WorkerSettings,
        report: "Callable[[Exception], None]",
    ) -> None:
        self._looks: list[Callable[..., Looked]] = [look_through]
        if keep := settings.batch_keep:
            self._looks.append(partial(self._forget, keep=keep))
        self._statements = statements
        self._passed_over = PassedOver("batches", report)
        self._left: list[Callable[..., Looked]] = []
        self.due_at = inf
        self._after, self._until = "", 0.0

    def begin(self, *, finishes: bool = True) -> None:
        """There may be some: look through them, or go on with that.

        Without *finishes*, only delete: somebody has just looked which of them are over.
        """
        if self.due_at == inf:  # it is done, or has failed
            self._left = self._looks[0 if finishes else 1 :]
        self.due_at = time.monotonic()

    def turn(self, connection: Connection) -> None:
        """Look at some of them. Commits what each look has come to.

        Raises:
            DBAPIError: The role may not, or the connection was lost; it begins again at a later
                sample of health.
        """
        self._until = time.monotonic() + LASTS
        self.due_at = inf
        self._passed_over.begin()
        while self._left:
            look, after, self._after = self._left.pop(0), self._after, ""
            looked = look(connection, self._statements, after=after, limit=LIMIT)
            if looked.last is not None:
                self._left.insert(0, look)
                self._after = looked.last
            if self._left and time.monotonic() >= self._until:
                self.due_at = time.monotonic() + GO_ON_AFTER
                return

    def _forget(self, connection: Connection, statements: Statements, **given: Any) -> Looked:
        passed_over = self._passed_over
        if passed_over.is_full:
            return Looked(None, [])
        given |= {"skip": passed_over.ids, "until": self._until}
        looked = forget(connection, statements, **given)
        passed_over.add(looked.refused)
        return looked
