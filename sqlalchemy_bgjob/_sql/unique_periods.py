"""SQL that deletes periods of unique keys that are over."""

from functools import cached_property
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Executable,
    Integer,
    Select,
    Text,
    any_,
    delete,
    func,
    literal_column,
    select,
)

from .words import ONLY, Tables, at, parameter

_LONG_OVER: Final[ColumnElement[Any]] = literal_column("interval '1 hour'")
"""How long a period is kept after its end: a clock that is set back a little begins none anew."""


class UniquePeriodStatements:
    """Looks through all periods in the order of their keys, and deletes those that are over."""

    def __init__(self, tables: Tables) -> None:
        self._period = tables.unique_period

    @cached_property
    def delete_over(self) -> Executable:
        """Look at some keys, and delete those whose periods have been over for an hour.

        It reads the primary key onward, as there is no index on the end of a period: each enqueue
        would have to write it. Rows that somebody has locked are passed by. Parameters: after (the
        key from which on it looks, without it), limit. Returns how many it has looked at, the last
        key of them, and how many were deleted.
        """
        period, held = self._period, self._period.alias("held")
        looked = (
            select(period.c.key, period.c.until)
            .with_hint(period, ONLY)
            .where(period.c.key > parameter("after", Text))
            .order_by(period.c.key)
            .limit(parameter("limit", Integer))
            .cte("looked")
        )
        since = func.now() - _LONG_OVER
        over = select(looked.c.key).where(looked.c.until < since).scalar_subquery()
        locked: Select[Any] = (
            select(literal_column("held.ctid"))
            .select_from(held)
            .with_hint(held, ONLY)
            .where(held.c.key == any_(func.array(over)), held.c.until < since)
            .with_for_update(skip_locked=True)
        )
        done = delete(period).with_hint(ONLY).where(at(locked))
        gone = done.returning(period.c.key).cte("gone")
        deleted = select(func.count()).select_from(gone).scalar_subquery()
        return select(func.count(), func.max(looked.c.key), deleted).select_from(looked)
