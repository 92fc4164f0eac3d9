"""A workbench whose queue keeps records: the same tables, and those of records beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import MetaData
from sqlalchemy.orm import DeclarativeBase

from sqlalchemy_bgjob import BGJob
from support.running import Note, Workbench
from support.tables import without_handlers

if TYPE_CHECKING:
    from sqlalchemy import Table

    from support.running import Flavor


class RecordedBase(DeclarativeBase):
    """An application's base of its own."""

    metadata = MetaData()


class RecordedNote(RecordedBase):
    """What handlers leave behind."""

    __table__ = cast("Table", Note.__table__).to_metadata(RecordedBase.metadata)


RECORDED = BGJob(RecordedBase, records=True)
HISTORY = BGJob(MetaData(), record_all=3600)


class RecordingBench(Workbench):
    """A Workbench whose handlers may have ``record=``; with *keeps_all* they all have."""

    def __init__(self, flavor: Flavor, url: str, *, keeps_all: bool = False) -> None:
        super().__init__(flavor, url)
        self.Base, self.Note = RecordedBase, RecordedNote  # type: ignore[assignment]
        self.jobs = without_handlers(HISTORY if keeps_all else RECORDED)

    def record(self, job_id: str) -> Any:
        """What is told of a job; it must be there."""
        found = self.jobs.record(self.outside, job_id)
        assert found is not None, f"there is no record of {job_id}"
        return found

    def counted(self, outcome: str) -> int:
        """How many runs the workers have counted."""
        (row,) = self.sql(
            "SELECT coalesce(sum(n), 0) FROM bgjob_minute WHERE outcome = :outcome", outcome=outcome
        )
        return int(row[0])
