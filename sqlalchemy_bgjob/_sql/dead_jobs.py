"""SQL that looks at dead jobs, and what deletes those whose time is over."""

from functools import cached_property
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Executable,
    FromClause,
    Integer,
    Interval,
    Select,
    Text,
    any_,
    delete,
    func,
    literal_column,
    not_,
    or_,
    select,
)

from ..models import error_type_of
from .words import ONLY, Tables, array_parameter, at, parameter

_SHOWN: Final = (
    *("id", "job_id", "type", "queue", "priority", "attempt", "crashes", "moved_at"),
    *("job_created_at", "last_error", "errors", "headers"),
)
"""The columns of a list: none of the application's own, of which ``grants`` knows nothing."""


class DeadJobStatements:
    """Lists, sums and counts of dead jobs; and their retention."""

    def __init__(self, tables: Tables) -> None:
        self._job, self._dead = tables.job, tables.dead

    def page(
        self, where: ColumnElement[bool], limit: int | None, *, with_arg: bool = False
    ) -> Executable:
        """Dead jobs, the one that died last first."""
        dead = self._dead
        newest_first = dead.c.moved_at.desc(), dead.c.id.desc()
        names = (*_SHOWN, "arg") if with_arg else _SHOWN
        found = select(*(dead.c[name] for name in names)).with_hint(dead, ONLY).where(where)
        return found.order_by(*newest_first).limit(limit)

    def summary(self, where: ColumnElement[bool], limit: int | None) -> Executable:
        """Type, type of the error, count, and the first and last time of death; most first."""
        dead = self._dead
        error_type = error_type_of(dead.c.last_error)
        count = func.count()
        return (
            select(dead.c.type, error_type, count, *self._between())
            .with_hint(dead, ONLY)
            .where(where)
            .group_by(dead.c.type, error_type)
            .order_by(count.desc(), dead.c.type, error_type)
            .limit(limit)
        )

    def _between(self) -> tuple[ColumnElement[Any], ColumnElement[Any]]:
        return func.min(self._dead.c.moved_at), func.max(self._dead.c.moved_at)

    def count(self, where: ColumnElement[bool], limit: int | None) -> Executable:
        """How many a prune would delete. Parameter: age (timedelta)."""
        dead = self._dead
        old = (
            select(dead.c.id)
            .with_hint(dead, ONLY)
            .where(dead.c.moved_at < func.now() - parameter("age", Interval), where)
            .limit(limit)
            .subquery("old")
        )
        return select(func.count()).select_from(old)

    def would_return(self, where: ColumnElement[bool], limit: int | None) -> Executable:
        """Type and count of what a redrive would bring back now. Locks nothing."""
        job, dead = self._job, self._dead
        found = (
            select(dead.c.id, dead.c.job_id, dead.c.type, dead.c.unique_key, dead.c.moved_at)
            .with_hint(dead, ONLY)
            .where(where)
            .order_by(dead.c.moved_at, dead.c.id)
            .limit(limit)
            .cte("found")
        )
        last = _last(found, found.c.job_id)
        live = select(job.c.id).with_hint(job, ONLY).where(job.c.id == last.c.job_id)
        free = select(*last.c).where(last.c.place == 1, ~live.exists()).cte("free")
        of_key = _last(free, free.c.unique_key, "place_of_key")
        same_key = (
            select(job.c.id).with_hint(job, ONLY).where(job.c.unique_key == of_key.c.unique_key)
        )
        first = of_key.c.place_of_key == 1
        return (
            select(of_key.c.type, func.count())
            .where(or_(of_key.c.unique_key.is_(None), first & ~same_key.exists()))
            .group_by(of_key.c.type)
            .order_by(of_key.c.type)
        )

    @cached_property
    def delete_old(self) -> Executable:
        """Delete dead jobs of a certain age, the oldest first; returns how many.

        Those that somebody has locked are passed over. Parameters: age (timedelta), limit.
        """
        return self._delete(self._old(literal_column("old.ctid")))

    @cached_property
    def old_ids(self) -> Executable:
        """Those that :attr:`delete_old` would delete, in order and not locked.

        Parameters: as there, and list skip: ids that are left out.
        """
        return self._old(literal_column("old.id"), skipping=True)

    @cached_property
    def delete_old_but(self) -> Executable:
        """As :attr:`delete_old`, without some. Parameters: as there, and list skip: their ids."""
        return self._delete(self._old(literal_column("old.ctid"), skipping=True))

    @cached_property
    def delete_one(self) -> Executable:
        """As :attr:`delete_old`, for one dead job. Parameters: age (timedelta), id."""
        old = self._dead.alias("old")
        one: Select[Any] = (
            select(literal_column("old.ctid"))
            .select_from(old)
            .with_hint(old, ONLY)
            .where(old.c.id == parameter("id", Text), self._is_old(old))
        )
        return self._delete(one)

    def _is_old(self, dead: FromClause) -> ColumnElement[bool]:
        return dead.c.moved_at < func.now() - parameter("age", Interval)

    def _old(self, value: ColumnElement[Any], *, skipping: bool = False) -> Select[Any]:
        old = self._dead.alias("old")
        found: Select[Any] = (
            select(value).select_from(old).with_hint(old, ONLY).where(self._is_old(old))
        )
        if skipping:
            found = found.where(not_(old.c.id == any_(array_parameter("skip", Text()))))
        return found.order_by(old.c.moved_at).limit(parameter("limit", Integer))

    def _delete(self, addresses: Select[Any]) -> Executable:
        dead = self._dead
        locked = addresses.with_for_update(skip_locked=True)
        done = delete(dead).with_hint(ONLY).where(at(locked))
        gone = done.returning(dead.c.id).cte("gone")
        return select(func.count()).select_from(gone)


def _last(rows: Any, of: ColumnElement[Any], name: str = "place") -> Any:
    """The rows, and the place of each among those that have the same value; the last died is 1."""
    newest_first = rows.c.moved_at.desc(), rows.c.id.desc()
    place = func.row_number().over(partition_by=of, order_by=newest_first)
    return select(*rows.c, place.label(name)).subquery(f"by_{name}")
