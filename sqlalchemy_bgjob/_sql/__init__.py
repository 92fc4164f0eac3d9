"""Every SQL statement of the queue, as SQLAlchemy Core constructs.

Nothing here executes: a :class:`Statements` builds each statement of one set of tables once, with
named parameters, and hands it out. The threaded and the asyncio worker therefore send the same SQL.
A hot statement touches one queue only.
"""

from weakref import WeakKeyDictionary

from ..models import Models
from .claim import ClaimStatements
from .enqueue import EnqueueStatements
from .operate import OperateStatements
from .rescue import GiveBackStatements
from .settle import SettleStatements
from .workers import WorkerStatements


class Statements(
    EnqueueStatements,
    ClaimStatements,
    SettleStatements,
    GiveBackStatements,
    WorkerStatements,
    OperateStatements,
):
    """The statements of one set of tables. Their parameters are named in each docstring."""


_statements: WeakKeyDictionary[Models, Statements] = WeakKeyDictionary()


def statements_of(models: Models) -> Statements:
    """The statements of a set of tables, built once."""
    found = _statements.get(models)
    if found is None:
        found = _statements[models] = Statements(models)
    return found
