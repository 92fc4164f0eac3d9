"""Writes what handlers say of their progress, all of it together and at most once a second.

The loop does it on its own connection, so that others see it while a handler's transaction is open.
It is fenced by the leases, as settlements are: of a job that this worker has lost nothing is
written.
"""

import logging

from .._db.errors import lost_connection, summary
from .._lifecycle import records
from .._sql import Statements
from .control import ControlConnection
from .hands import Hands

logger = logging.getLogger("sqlalchemy_bgjob")


class ProgressWriter:
    """Writes the progress of one worker's runs."""

    def __init__(self, hands: Hands, control: ControlConnection, statements: Statements) -> None:
        self._hands, self._control, self._statements = hands, control, statements

    def write(self, worker_id: int) -> None:
        """Write what is new. Commits.

        Raises:
            DBAPIError: The connection was lost. What was to be written is not tried again: the
                next call of a handler, or the end of its job, says more.
        """
        runs = self._hands.take_progressed(worker_id)
        said = [(run.job, run.progress, run.started_at) for run in runs]
        if not said:
            return
        try:
            records.write_progress(self._control.get(), self._statements, worker_id, said)
        except Exception as error:
            if lost_connection(error):
                raise
            logger.warning("progress was not written: %s", summary(error))
