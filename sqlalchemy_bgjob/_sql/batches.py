"""SQL of batches: close one, finish those whose jobs have ended, insert the jobs that follow them.

Nothing is counted down. A batch is over when no live job has its id, and whoever has committed the
end of one of its jobs looks. Of two who end the last ones at the same time, the one that commits
later sees both ends. The row is what is finished once, so the job that follows is inserted once.
"""

from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    ColumnElement,
    Executable,
    Float,
    FromClause,
    Integer,
    LargeBinary,
    Select,
    Table,
    Text,
    and_,
    any_,
    case,
    cast,
    delete,
    func,
    literal,
    literal_column,
    not_,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql import insert as pg_insert

from .._drafts.batch import FOLLOWER
from .words import ONLY, SECOND, Tables, array_parameter, at, parameter, woken_by

if TYPE_CHECKING:
    from collections.abc import Callable

_FOLLOWS: Final = ("id", "then_queue", "then_type", "then_arg", "then_headers")
"""The columns of a batch of which the job that follows is made."""
INSERTED: Final = ("id", "queue", "type", "arg", "headers", "next_run_at")
"""The columns of that job."""


class BatchStatements:
    """What producers, workers and the leader do to batches."""

    def __init__(self, tables: Tables) -> None:
        self._tables, self._batch = tables, tables.batch
        self._job, self._dead = tables.job, tables.dead
        self.close: Callable[[bool], Executable] = cache(self._close)
        self.finish: Callable[[bool], Executable] = cache(self._finish)

    def _close(self, notify: bool) -> Executable:
        """Insert a batch whose jobs this transaction has inserted; returns how many they are.

        One without jobs is finished at once. Parameters: id, on_dead, then_queue, then_type,
        then_arg and then_headers; the last four are null if no job follows.
        """
        job, batch = self._job, self._batch
        id = cast(parameter("id", Text), Text)
        its = select(func.count()).select_from(job).with_hint(job, ONLY).where(job.c.batch_id == id)
        counted = select(cast(its.scalar_subquery(), Integer).label("total")).cte("counted")
        values: dict[str, ColumnElement[Any]] = {
            "id": id,
            "total": counted.c.total,
            "closed_at": func.now(),
            "finished_at": case((counted.c.total == 0, func.now())),
            "on_dead": cast(parameter("on_dead", Text), Text),
            "then_queue": cast(parameter("then_queue", Text), Text),
            "then_type": cast(parameter("then_type", Text), Text),
            "then_arg": cast(parameter("then_arg", LargeBinary), LargeBinary),
            "then_headers": cast(parameter("then_headers", JSONB(none_as_null=True)), JSONB),
        }
        rows = select(*values.values()).select_from(counted)
        made = pg_insert(batch).from_select(list(values), rows)
        closed = made.returning(
            batch.c.total, batch.c.finished_at, *(batch.c[name] for name in _FOLLOWS)
        ).cte("closed")
        return self._followed(closed, closed.c.total, notify, closed.c.finished_at.is_not(None))

    def _finish(self, notify: bool) -> Executable:
        """Finish those of some batches that are over, and insert the jobs that follow them.

        Returns the id of each. A batch that somebody has locked is passed by. Parameter: list ids.
        """
        batch, held = self._batch, self._batch.alias("held")
        unfinished = held.c.finished_at.is_(None)
        finished = (
            update(batch)
            .with_hint(ONLY)
            .where(self._at_held(held, unfinished, self._is_over(held), keeps_key=True))
            .values(finished_at=func.clock_timestamp())
            .returning(*(batch.c[name] for name in _FOLLOWS))
            .cte("finished")
        )
        return self._followed(finished, finished.c.id, notify)

    def _followed(
        self,
        ended: FromClause,
        told: ColumnElement[Any],
        notify: bool,
        *conditions: ColumnElement[bool],
    ) -> Executable:
        """Insert the job that follows each of some batches; returns what is to be *told* of all."""
        job = self._job
        rows = select(
            ended.c.id.concat(literal(FOLLOWER, Text)),
            *(ended.c[name] for name in _FOLLOWS[1:]),
            func.now(),
        ).where(ended.c.then_type.is_not(None), *conditions)
        names = list(INSERTED)
        # Of a unique index of the user's a conflict is an error, or what follows would be lost.
        inserted = pg_insert(job).from_select(names, rows)
        follows = inserted.on_conflict_do_nothing(index_elements=[*job.primary_key])
        done = follows.returning(job.c.queue).cte("follows")
        if not notify:
            return select(told).select_from(ended).add_cte(done)
        return select(told, woken_by(self._tables, done)).select_from(ended)

    def _is_over(self, batch: Any) -> ColumnElement[bool]:
        """Whether nothing of a batch is left that it waits for; see the tests' mutants."""

        def any_of(table: Table) -> ColumnElement[bool]:
            its = table.alias("its")
            one = select(its.c.batch_id).with_hint(its, ONLY)
            return one.where(its.c.batch_id == batch.c.id).exists()

        goes_on = batch.c.on_dead == literal_column("'continue'")
        return and_(not_(any_of(self._job)), or_(goes_on, not_(any_of(self._dead))))

    @cached_property
    def unfinished(self) -> Executable:
        """The ids of some batches that are not finished, in their order, by an index of these.

        Parameters: after (the id from which on it looks, without it), limit.
        """
        return self._behind(self._batch.c.id).where(self._batch.c.finished_at.is_(None))

    @cached_property
    def oldest(self) -> Executable:
        """Some batches in the order of their ids, which is that in which they were made.

        Returns the id, whether it was made before what is kept, and whether it was finished before
        that. Locks nothing. Parameters: after, limit, keep (seconds).
        """
        batch = self._batch
        since = func.now() - cast(parameter("keep", Float(53)), Float(53)) * SECOND
        is_old = func.coalesce(batch.c.finished_at < since, literal_column("false"))
        return self._behind(batch.c.id, batch.c.created_at < since, is_old)

    def _behind(self, *columns: ColumnElement[Any]) -> Select[Any]:
        batch = self._batch
        return (
            select(*columns)
            .with_hint(batch, ONLY)
            .where(batch.c.id > parameter("after", Text))
            .order_by(batch.c.id)
            .limit(parameter("limit", Integer))
        )

    @cached_property
    def forget(self) -> Executable:
        """Delete batches that are finished, unless somebody has locked them. Parameter: list ids.

        Returns the id of each that is gone.
        """
        batch, held = self._batch, self._batch.alias("held")
        locked = self._at_held(held, held.c.finished_at.is_not(None))
        return delete(batch).with_hint(ONLY).where(locked).returning(batch.c.id)

    def _at_held(
        self, held: Any, *conditions: ColumnElement[bool], keeps_key: bool = False
    ) -> ColumnElement[bool]:
        """The rows of the given batches that are so; locked, but for those somebody else has.

        With *keeps_key* the rows stay, so a foreign key that points at one is not in the way.
        """
        given = held.c.id == any_(array_parameter("ids", Text()))
        rows: Select[Any] = (
            select(literal_column("held.ctid"))
            .select_from(held)
            .with_hint(held, ONLY)
            .where(given, *conditions)
            .with_for_update(of=held, skip_locked=True, key_share=keeps_key)
        )
        return at(rows)
