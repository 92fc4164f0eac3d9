"""A migration that runs beside workers and producers, however many rows there are.

* Each statement is a transaction of its own, and can be run again. So if the migration is stopped
  half-way, the next one goes on.
* A statement that locks a table waits for at most a second, since everybody else would wait behind
  it. It is tried again until it finds the moment.
* Indexes are built concurrently. That waits for old transactions, and nobody waits for it.

Several migrations at once do no harm: PostgreSQL lets one of them build an index, and ends the
others with a deadlock error, after which they find it built. What an interrupted REINDEX leaves, an
invalid index of another name that every write keeps up to date, is dropped in the end.
"""

import logging
import random
import time
from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import Connection, Index, MetaData, Table, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateIndex, ExecutableDDLElement

from ._elements import Reindex
from ._leftovers import leftovers
from ._names import qualified, translated
from ._versions import Step

logger = logging.getLogger("sqlalchemy_bgjob")

_LOCK_TIMEOUT: Final = "1s"
_DROP_TIMEOUT: Final = "500ms"
"""Less than deadlock_timeout: who builds an index now, and would leave another one, goes on."""
_PAUSES: Final = (0.2, 3.0)
"""Seconds between two tries: at least and at most, chosen at random."""
_LOCK_NOT_AVAILABLE, _DEADLOCK = "55P03", "40P01"
_ALREADY_THERE: Final = frozenset({"23505", "42P07"})
"""What CREATE TABLE IF NOT EXISTS raises if another session creates the table at the same time."""


class OnlineOperations:
    """Runs each DDL statement in a transaction of its own, without holding others up for long.

    Args:
        connection: Idle, and used by nobody else; its isolation level is changed.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def execute(self, statement: ExecutableDDLElement, /) -> None:
        """Run one statement, which may be run again."""

        def run() -> None:
            connection = self._connection.execution_options(isolation_level="READ COMMITTED")
            with connection.begin():
                connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'"))
                connection.execute(statement)

        self._until_done(run, {_LOCK_NOT_AVAILABLE, _DEADLOCK, *_ALREADY_THERE})

    def build(self, index: Index) -> None:
        """Build an index concurrently, unless it is there; mend one that was left half-built."""

        def run() -> None:
            connection = self._connection.execution_options(isolation_level="AUTOCOMMIT")
            with connection.begin():  # each statement commits by itself
                valid = self._is_valid(index)
                if valid is None:
                    connection.execute(CreateIndex(_concurrently(index), if_not_exists=True))
                elif not valid:
                    connection.execute(Reindex(index))

        self._until_done(run, {_DEADLOCK})

    def mend(self, index: Index) -> None:
        """Build an index anew that was left half-built; a missing one is left to the doctor."""
        with self._connection.begin():
            valid = self._is_valid(index)
        if valid is False:
            self.build(index)

    def clean(self, table: Table) -> None:
        """Drop what interrupted REINDEXes have left on a table; wait for those that go on."""

        def run() -> None:
            connection = self._connection.execution_options(isolation_level="AUTOCOMMIT")
            with connection.begin():  # each statement commits by itself
                for index in leftovers(connection, table.schema, table.name):
                    connection.execute(text(f"SET lock_timeout = '{_DROP_TIMEOUT}'"))
                    try:
                        name = index.replace(":", r"\:")
                        connection.execute(text(f"DROP INDEX CONCURRENTLY IF EXISTS {name}"))
                    finally:
                        connection.execute(text("RESET lock_timeout"))

        self._until_done(run, {_LOCK_NOT_AVAILABLE, _DEADLOCK})

    def _is_valid(self, index: Index) -> bool | None:
        """None if there is no such index."""
        table = index.table
        assert table is not None
        name = qualified(translated(self._connection, table.schema), str(index.name))
        return self._connection.execute(_IS_VALID, {"name": name}).scalar()

    def _until_done(self, run: Callable[[], None], passing: set[str]) -> None:
        told = False
        while True:
            try:
                run()
                return
            except DBAPIError as error:
                if _sqlstate(error) not in passing:
                    raise
                if not told:
                    logger.warning("the migration waits for another transaction: %s", error.orig)
                told = True
            time.sleep(random.uniform(*_PAUSES))


def upgrade_online(
    operations: OnlineOperations, step: Step, schema: str | None, table_prefix: str
) -> None:
    """Reach the version of a step, from the one before."""
    step.begin(operations, schema, table_prefix)
    for index in step.indexes(schema, table_prefix):
        operations.build(index)
    step.end(operations, schema, table_prefix)


def _concurrently(index: Index) -> Index:
    """The same index, to be built concurrently."""
    assert index.table is not None
    copies = index.table.to_metadata(MetaData()).indexes
    copy = next(other for other in copies if other.name == index.name)
    copy.dialect_kwargs["postgresql_concurrently"] = True
    return copy


def _sqlstate(error: DBAPIError) -> str | None:
    return getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)


_IS_VALID: Final[Any] = text(
    "SELECT indisvalid FROM pg_catalog.pg_index WHERE indexrelid = to_regclass(CAST(:name AS TEXT))"
)
