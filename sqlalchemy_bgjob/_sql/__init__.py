"""Every SQL statement of the queue, as SQLAlchemy Core constructs.

Nothing here executes: a :class:`Statements` builds each statement of one set of tables once, with
named parameters, and hands it out: ``statements.claim.onward``. The threaded and the asyncio worker
therefore send the same SQL. A hot statement names the queue of each job that it touches.
"""

from typing import Final
from weakref import WeakKeyDictionary

from ..models import Models
from .audit import AuditStatements
from .batches import BatchStatements
from .cancel import CancelStatements
from .claim import ClaimStatements
from .claim_by_time import ClaimByTimeStatements
from .control import ControlStatements
from .dead_jobs import DeadJobStatements
from .enqueue import EnqueueStatements
from .fire import FireStatements
from .go_bgjob import GoBgjobStatements
from .operate import OperateStatements
from .records import RecordStatements
from .rescue import RescueStatements
from .schedules import ScheduleStatements
from .search import SearchStatements
from .settle import SettleStatements
from .unique import UniqueStatements
from .unique_periods import UniquePeriodStatements
from .words import Tables
from .workers import WorkerStatements


class Statements:
    """The statements of one set of tables, by verb. Their docstrings name their parameters."""

    def __init__(self, models: Models) -> None:
        tables = Tables(models)
        self.tables: Final = tables
        self.enqueue: Final = EnqueueStatements(tables)
        self.unique: Final = UniqueStatements(tables)
        self.unique_periods: Final = UniquePeriodStatements(tables)
        self.claim: Final = ClaimStatements(tables)
        self.claim_by_time: Final = ClaimByTimeStatements(tables)
        self.settle: Final = SettleStatements(tables)
        self.settle_of_queues: Final = SettleStatements(tables, of_queues=True)
        self.rescue: Final = RescueStatements(tables)
        self.workers: Final = WorkerStatements(tables)
        self.cancel: Final = CancelStatements(tables)
        self.batches: Final = BatchStatements(tables)
        self.operate: Final = OperateStatements(tables)
        self.fire: Final = FireStatements(tables)
        self.schedules: Final = ScheduleStatements(tables)
        self.control: Final = ControlStatements(tables)
        self.dead_jobs: Final = DeadJobStatements(tables)
        self.go_bgjob: Final = GoBgjobStatements(tables)
        self.search: Final = SearchStatements(tables)
        recording = models.recording
        self.records: Final = None if recording is None else RecordStatements(tables, recording)
        """None without tables of records."""
        self.audit: Final = None if recording is None else AuditStatements(recording)
        """The same."""

    def claims(self, *, by_time: bool) -> ClaimStatements:
        """Those that read a queue by time before priority, or by priority before time."""
        return self.claim_by_time if by_time else self.claim


_statements: WeakKeyDictionary[Models, Statements] = WeakKeyDictionary()


def statements_of(models: Models) -> Statements:
    """The statements of a set of tables, built once."""
    found = _statements.get(models)
    if found is None:
        found = _statements[models] = Statements(models)
    return found
