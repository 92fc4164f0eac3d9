"""SQL that queues jobs again which nobody will settle."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Executable,
    Select,
    Text,
    and_,
    case,
    func,
    literal,
    literal_column,
    not_,
    select,
    update,
)

from .._db.errors import describe
from ..exceptions import WorkerLost
from .words import ONLY, SECOND, Tables, at, parameter, unnest


class GiveBack(NamedTuple):
    """One statement for all jobs, and what it takes to do the same one by one."""

    together: Executable
    held: Executable
    """Id and lease of each."""
    one: Executable
    """Takes the further parameter id."""


class GiveBackStatements(Tables):
    """A lost worker's jobs, those of no worker, and those that a worker does not know of."""

    @cached_property
    def hand_back_others(self) -> GiveBack:
        """Queue again, attempt unspent, all that a worker has claimed but for the jobs it knows of.

        By lease too: it may know of an earlier claim of the same job. Reads the whole table: for
        after an outage. Parameters: worker, and lists ids, leases (those it knows of).
        """
        job = self._job
        held = job.alias("held")
        given = unnest(ids=Text(), leases=BigInteger())
        known = (
            select(given.c.ids)
            .where(given.c.ids == held.c.id, given.c.leases == held.c.lease)
            .exists()
        )
        mine = and_(held.c.claimed_by == parameter("worker", BigInteger), not_(known))
        unspent = func.greatest(job.c.attempt - 1, 0)
        return self._give_back(held, mine, {"attempt": unspent})

    @cached_property
    def give_back(self) -> GiveBack:
        """Queue a lost worker's jobs again; returns the queue of each. Parameter: worker."""
        held = self._job.alias("held")
        return self._rescue(held, held.c.claimed_by == parameter("worker", BigInteger))

    @cached_property
    def give_back_orphans(self) -> GiveBack:
        """Queue jobs again whose claim names no worker that exists; returns the queue of each."""
        held = self._job.alias("held")
        worker = self._worker
        known = (
            select(worker.c.id)
            .with_hint(worker, ONLY)
            .where(worker.c.id == held.c.claimed_by)
            .exists()
        )
        return self._rescue(held, and_(held.c.claimed_by.is_not(None), not_(known)))

    @cached_property
    def give_back_refused(self) -> GiveBack:
        """Queue jobs again that have run and whose settlement is refused; returns each queue.

        As from a lost worker: the attempt counts, so that a job of which no end can be written is
        not run anew without end. The row says already what was refused. Parameters: worker, and
        lists ids, leases.
        """
        held = self._job.alias("held")
        given = unnest(ids=Text(), leases=BigInteger())
        meant = (
            select(given.c.ids)
            .where(given.c.ids == held.c.id, given.c.leases == held.c.lease)
            .exists()
        )
        mine = and_(held.c.claimed_by == parameter("worker", BigInteger), meant)
        return self._rescue(held, mine, error=self._job.c.last_error)

    def _rescue(
        self, held: Any, condition: ColumnElement[bool], error: ColumnElement[Any] | None = None
    ) -> GiveBack:
        job = self._job
        lost = literal(describe(WorkerLost()), Text)
        # The first time at once; then after a random wait, so that the jobs of one crash part
        # company, and the one that kills its workers is soon alone with the blame.
        # The inner LEAST keeps the power from overflowing.
        longest = func.least(60, func.power(2, func.least(job.c.crashes, 10)))
        wait = func.random() * longest * SECOND
        values = {
            "crashes": job.c.crashes + 1,
            "next_run_at": case(
                (job.c.crashes > 0, func.clock_timestamp() + wait), else_=job.c.next_run_at
            ),
            "last_error": lost if error is None else error,
        }
        return self._give_back(held, condition, values)

    def _give_back(
        self, held: Any, condition: ColumnElement[bool], values: Mapping[str, Any]
    ) -> GiveBack:
        return GiveBack(
            together=self._queue_again(held, condition, values),
            held=select(held.c.id, held.c.lease).with_hint(held, ONLY).where(condition),
            one=self._queue_again(
                held, and_(condition, held.c.id == parameter("id", Text)), values
            ),
        )

    def _queue_again(
        self, held: Any, condition: ColumnElement[bool], values: Mapping[str, Any]
    ) -> Executable:
        job = self._job
        locked: Select[Any] = (
            select(literal_column("held.ctid"))
            .select_from(held)
            .with_hint(held, ONLY)
            .where(condition)
            .with_for_update(of=held, skip_locked=True, key_share=True)
        )
        return (
            update(job)
            .with_hint(ONLY)
            .where(at(locked))
            .values(claimed_by=None, lease=job.c.lease + 1, updated_at=func.now(), **values)
            .returning(job.c.queue)
        )

    @cached_property
    def holds_any(self) -> Executable:
        """Whether a worker still holds a job. Parameter: worker."""
        job = self._job
        held = (
            select(job.c.id)
            .with_hint(job, ONLY)
            .where(job.c.claimed_by == parameter("worker", BigInteger))
        )
        return select(held.exists())
