"""SQL that claims by time: those first that were due first, whatever their priority.

The index has the jobs of a queue by priority, and of each priority by time. So a claim reads as
many jobs of each lane as it may take, and takes the first of all of them. It has locked the others
too, until it commits, which is a matter of milliseconds: to lock only what is taken, it would have
to choose before it knows what others have locked.
"""

from typing import Any

from sqlalchemy import ColumnElement, Select, select, true

from .claim import ClaimStatements


class ClaimByTimeStatements(ClaimStatements):
    """The same statements, with the same parameters, that merge the lanes of a queue."""

    def _places(self, due: Any) -> tuple[ColumnElement[Any], ...]:
        return due.c.next_run_at, due.c.id

    def _first_of(self, lanes: Any, found: Any, limit: ColumnElement[int]) -> Select[Any]:
        first = select(found.c.value).select_from(lanes.join(found, true()))
        return first.order_by(found.c.next_run_at, lanes.c.priority, found.c.id).limit(limit)
