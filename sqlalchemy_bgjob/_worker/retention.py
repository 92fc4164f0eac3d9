"""Retention: deletes dead jobs, records, counts and audit rows that are too old, a few at a time.

There is no leader. Each worker that has something to keep takes its turn once in as many minutes as
there are workers, so the whole fleet looks about once a minute. Two that look at once delete
different rows, and one that is gone holds nothing up. Without ``dead_keep`` and without records no
statement is sent.

If a dead job refuses, as by a trigger or a foreign key of the application's, the others of its
batch are deleted one by one, and it is passed over for an hour. If a role may not delete from one
table, the old rows of the others go all the same.
"""

import logging
import random
import time
from collections.abc import Callable
from functools import partial
from math import inf
from typing import Final

from sqlalchemy import Connection

from .._db.errors import lost_connection
from .._lifecycle import audit
from .._lifecycle.dead_jobs import delete_old, delete_old_one_by_one
from .._lifecycle.delete_one_by_one import is_due_to_a_row
from .._lifecycle.records import delete_old_counts, delete_old_records
from .._sql import Statements
from ..settings import WorkerSettings
from .passed_over import PassedOver

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


_Batch = Callable[[Connection, float], tuple[int, bool]]
"""Deletes one batch, row by row until a monotonic time if it must; how many rows it was, and
whether there may be more."""


class Retention:
    """The turns of one worker.

    Attributes:
        due_at: The monotonic time of the next turn; infinite if nothing is ever to be deleted.
    """

    def __init__(
        self,
        statements: Statements,
        settings: WorkerSettings,
        fleet: Callable[[], int],
        report: Callable[[Exception], None],
    ) -> None:
        """Take the settings, which say for how long what is kept.

        And what counts workers, and what is told of errors.
        """
        self._statements, self._fleet = statements, fleet
        self._keep = kept = settings.dead_keep
        self._passed_over = PassedOver("dead jobs", report)
        self._batches: dict[str, _Batch] = {}
        if kept:
            self._batches[f"dead jobs that were older than {kept:g} s"] = self._dead_jobs
        if statements.records is not None:
            self._batches["records whose time was over"] = self._records
            if counted := settings.counts_keep:
                what = f"rows of counts that were older than {counted:g} s"
                self._batches[what] = partial(self._counts, counted)
            if audited := settings.audit_keep:
                what = f"rows of the audit that were older than {audited:.10g} s"
                self._batches[what] = partial(self._audit, audited)
        self.due_at = inf

    def begin(self) -> None:
        """Put the first turn off, at random: workers may have begun together."""
        if self._batches:
            self.due_at = time.monotonic() + INTERVAL * random.random()

    def turn(self, connection: Connection) -> None:
        """Delete what is too old. Commits each batch.

        Raises:
            DBAPIError: The role may not, or the connection was lost; the next turn tries again. If
                only some could not be deleted, the others are.
        """
        begun = time.monotonic()
        pause = INTERVAL * min(self._fleet(), MOST_WORKERS) * random.uniform(0.9, 1.1)
        self.due_at = begun + pause
        self._passed_over.begin()
        failure: Exception | None = None
        for what, batch in self._batches.items():
            try:
                self._delete(connection, what, batch, begun + LASTS)
            except Exception as error:
                if lost_connection(error):
                    raise
                failure = failure or error
        if failure is not None:
            self.due_at = begun + pause  # not sooner, though there may be more of the others
            raise failure

    def _delete(self, connection: Connection, what: str, batch: _Batch, until: float) -> None:
        deleted, more = 0, True
        while more:
            last, more = batch(connection, until)
            deleted += last
            if more and (now := time.monotonic()) >= until:
                self.due_at = now + GO_ON_AFTER
                break
        if deleted:
            logger.info("deleted %d %s", deleted, what)

    def _records(self, connection: Connection, until: float) -> tuple[int, bool]:
        deleted = delete_old_records(connection, self._statements, limit=BATCH)
        return deleted, deleted == BATCH

    def _counts(self, keep: float, connection: Connection, until: float) -> tuple[int, bool]:
        deleted = delete_old_counts(connection, self._statements, keep=keep, limit=BATCH)
        return deleted, deleted == BATCH

    def _audit(self, keep: float, connection: Connection, until: float) -> tuple[int, bool]:
        deleted = audit.delete_old(connection, self._statements, keep=keep, limit=BATCH)
        return deleted, deleted == BATCH

    def _dead_jobs(self, connection: Connection, until: float) -> tuple[int, bool]:
        passed_over = self._passed_over
        if passed_over.is_full:
            return 0, False
        try:
            deleted = delete_old(
                connection, self._statements, keep=self._keep, limit=BATCH, skip=passed_over.ids
            )
        except Exception as error:
            if not is_due_to_a_row(error):
                raise
        else:
            return deleted, deleted == BATCH
        deleted, refused = delete_old_one_by_one(
            connection,
            self._statements,
            keep=self._keep,
            limit=BATCH,
            skip=passed_over.ids,
            until=until,
        )
        passed_over.add(refused)
        return deleted, bool(refused) and not passed_over.is_full
