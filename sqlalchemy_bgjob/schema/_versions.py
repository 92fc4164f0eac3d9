"""The frozen versions of the tables, each as the DDL that reaches and leaves it.

A released version never changes. A new version is a new module, whose tables are those of the one
before with what is new, and a :class:`Step`. Nothing is shared with the models, which go on
changing.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

from sqlalchemy import Index, MetaData
from sqlalchemy.schema import CreateIndex

from . import _version_1, _version_2
from ._elements import DropInvalidIndex, Operations
from ._version_1 import STORAGE_1, tables_1
from ._version_2 import STORAGE_2, tables_2


class Step(NamedTuple):
    """One version: its tables, and how to reach and leave it.

    Attributes:
        tables: All tables of this version.
        storage: Their storage parameters.
        begin: What takes an instant, however many rows there are.
        indexes: The new indexes of tables that have rows already.
        end: What follows when these are built.
        downgrade: The way back to the version before.
    """

    tables: Callable[[str | None, str], MetaData]
    storage: Mapping[str, Mapping[str, str]]
    begin: Callable[[Operations, str | None, str], None]
    indexes: Callable[[str | None, str], Iterable[Index]]
    end: Callable[[Operations, str | None, str], None]
    downgrade: Callable[[Operations, str | None, str], None]

    def upgrade(self, op: Operations, schema: str | None, prefix: str) -> None:
        """Reach this version in one transaction: it blocks writers while indexes are built."""
        self.begin(op, schema, prefix)
        for index in self.indexes(schema, prefix):
            op.execute(DropInvalidIndex(index))
            op.execute(CreateIndex(index, if_not_exists=True))
        self.end(op, schema, prefix)


STEPS: Final[Mapping[int, Step]] = {
    1: Step(
        tables_1,
        STORAGE_1,
        _version_1.begin,
        lambda schema, prefix: (),
        lambda op, schema, prefix: None,
        _version_1.downgrade,
    ),
    2: Step(
        tables_2,
        STORAGE_2,
        _version_2.begin,
        _version_2.indexes,
        _version_2.end,
        _version_2.downgrade,
    ),
}
