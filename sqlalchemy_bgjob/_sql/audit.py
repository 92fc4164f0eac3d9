"""SQL that writes down what somebody did, in the transaction that did it, and deletes old rows."""

from functools import cached_property
from typing import Any

from sqlalchemy import Executable, Interval, Text, cast, func, insert
from sqlalchemy.dialects.postgresql import JSONB

from ..models import Recording
from .records import too_old
from .words import parameter


class AuditStatements:
    """A row, and its retention."""

    def __init__(self, recording: Recording) -> None:
        self._audit = recording.audit

    @cached_property
    def write(self) -> Executable:
        """Add a row. Parameters: its columns but the time; details and given as JSON text.

        The server says the time: whoever may add rows needs no privilege to set it.
        """
        values: dict[str, Any] = {
            c.name: cast(parameter(c.name, Text), JSONB)
            if c.name in ("details", "given")
            else parameter(c.name, c.type)
            for c in self._audit.c
            if c.name != "at"
        }
        return insert(self._audit).values(values).inline()

    @cached_property
    def delete_old(self) -> Executable:
        """Delete rows of a certain age; returns how many. Parameters: age (timedelta), limit."""
        old = self._audit.alias("old")
        before = func.statement_timestamp() - parameter("age", Interval)
        return too_old(self._audit, old, old.c.at, before)
