"""The Alembic plugin's work: to replace raw operations by a call of the frozen function.

It runs after Alembic's own comparison. The queue's tables are found in the user's metadata by the
version in the job table's comment, so any schema, prefix and number of table sets will do.

* Operations that the frozen function performs are taken out of Alembic's list, and its call is
  put first: a user's table may refer to ours.
* Columns and the like that the user added to our tables through the mixins stay as ordinary
  operations, last: they may refer to a user's table.
* Tables that are newer than this release are left alone. So are those that the metadata lacks, as
  ``env.py`` imports a user's own models, and not the module that calls ``BGJob()``.
"""

import logging
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import alembic
from alembic.autogenerate.api import AutogenContext
from alembic.autogenerate.render import renderers
from alembic.operations import MigrateOperation, Operations, ops
from alembic.util import CommandError, PriorityDispatchResult
from sqlalchemy import CheckConstraint, Connection, ForeignKeyConstraint, Table, UniqueConstraint

from .. import schema as bgjob
from ..exceptions import ForeignTable, SchemaOutOfDate, SchemaUnknown
from ..settings import DEFAULT_PREFIX

_log = logging.getLogger(__name__)

# Before 1.19 Alembic raises NotImplementedError for a check outside of a CREATE TABLE.
_RENDERS_CHECKS = tuple(map(int, alembic.__version__.split(".")[:2])) >= (1, 19)

_Key = tuple[str | None, str]


class BGJobMigrateOp(MigrateOperation):
    """A move of one queue's tables between two versions, or of its tables of records."""

    def __init__(
        self,
        from_version: int,
        to_version: int,
        schema: str | None,
        table_prefix: str,
        *,
        records: bool = False,
    ) -> None:
        self.from_version, self.to_version = from_version, to_version
        self.schema, self.table_prefix, self.records = schema, table_prefix, records

    def reverse(self) -> "BGJobMigrateOp":
        """The operation that undoes this one."""
        versions = self.to_version, self.from_version
        return BGJobMigrateOp(*versions, self.schema, self.table_prefix, records=self.records)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """What ``alembic check`` prints."""
        return (
            "bgjob_migrate_records" if self.records else "bgjob_migrate",
            self.schema,
            self.table_prefix,
            self.from_version,
            self.to_version,
        )


@Operations.implementation_for(BGJobMigrateOp)
def _perform(operations: Operations, operation: BGJobMigrateOp) -> None:
    up = operation.from_version < operation.to_version
    room: Any = bgjob.records if operation.records else bgjob
    (room.upgrade if up else room.downgrade)(
        operations,
        from_version=operation.from_version,
        to_version=operation.to_version,
        schema=operation.schema,
        table_prefix=operation.table_prefix,
    )


@renderers.dispatch_for(BGJobMigrateOp)
def _render(autogen_context: AutogenContext, operation: BGJobMigrateOp) -> str:
    autogen_context.imports.add("from sqlalchemy_bgjob import schema as bgjob")
    verb = "upgrade" if operation.from_version < operation.to_version else "downgrade"
    op = (autogen_context.opts.get("alembic_module_prefix") or "op.").rstrip(".")
    arguments = [
        op,
        f"from_version={operation.from_version}",
        f"to_version={operation.to_version}",
    ]
    if operation.schema is not None:
        arguments.append(f"schema={str(operation.schema)!r}")
    if operation.table_prefix != DEFAULT_PREFIX:
        arguments.append(f"table_prefix={str(operation.table_prefix)!r}")
    room = "bgjob.records" if operation.records else "bgjob"
    return f"{room}.{verb}({', '.join(arguments)})"


def compare(
    autogen_context: AutogenContext, upgrade_ops: ops.UpgradeOps, schemas: set[str | None]
) -> PriorityDispatchResult:
    """Rewrite Alembic's list of operations, one set of tables after the other."""
    calls: list[ops.MigrateOperation] = []
    for queue in sorted(_queues(autogen_context), key=lambda q: (q.schema or "", q.prefix)):
        is_whole = _keep_lacking(queue, autogen_context, upgrade_ops)
        call = _rewrite(queue, autogen_context, upgrade_ops, schemas)
        if call is not None:
            calls.append(call)
        if is_whole:
            call = _rewrite_records(queue, autogen_context, upgrade_ops, schemas)
            if call is not None:
                calls.append(call)
    upgrade_ops.ops[:0] = calls
    return PriorityDispatchResult.CONTINUE


@dataclass(frozen=True)
class _Queue:
    """One set of our tables in the user's metadata."""

    schema: str | None
    prefix: str
    version: int


def _queues(autogen_context: AutogenContext) -> Iterator[_Queue]:
    for table in autogen_context.sorted_tables:
        version = bgjob.version_in(table.comment)
        if version is None or not table.name.endswith("job"):
            continue
        queue = _Queue(table.schema, table.name.removesuffix("job"), version.number)
        # A project may keep the queue's tables out of its Alembic history.
        if autogen_context.run_object_filters(table, table.name, "table", False, None):
            yield queue
        else:
            _tell_hidden(queue, autogen_context.connection)


def _tell_hidden(queue: _Queue, connection: Connection | None) -> None:
    assert connection is not None
    try:
        found = bgjob.db_version(connection, schema=queue.schema, table_prefix=queue.prefix)
    except SchemaOutOfDate as error:
        _log.warning("%s", error)
        return
    if found < queue.version:
        _log.warning(
            "include_object hides the table %r, so no migration is written for it; let the queue's "
            "tables through, or run `sqlalchemy-bgjob migrate` beside Alembic",
            f"{queue.prefix}job",
        )


def _keep_lacking(
    queue: _Queue, autogen_context: AutogenContext, upgrade_ops: ops.UpgradeOps
) -> bool:
    """Keep Alembic from dropping those of our tables that the metadata lacks; True if it has all.

    A user's own models bring their tables into it when they are imported; ``BGJob()`` the others.
    """
    assert autogen_context.connection is not None
    where: dict[str, Any] = {"schema": queue.schema, "table_prefix": queue.prefix}
    there = {table.name for table in autogen_context.sorted_tables if table.schema == queue.schema}
    designed = (table.name for table in bgjob.frozen_tables(queue.version, **where))
    lacking = [name for name in designed if name not in there]
    if not lacking:
        return True
    recorded = bgjob.records.commented_version(autogen_context.connection, **where)
    records = (table.name for table in bgjob.records.frozen_tables(recorded, **where))
    theirs = _operations_on({*lacking, *records}, queue, autogen_context, upgrade_ops)
    _leave_out(theirs, upgrade_ops)
    _log.warning(
        "the metadata has the table %r, and lacks %s, which BGJob() maps: let env.py import the "
        "module that calls BGJob(); whatever the database has of these is left as it is",
        f"{queue.prefix}job",
        ", ".join(map(repr, lacking)),
    )
    return False


def _operations_on(
    names: Collection[str],
    queue: _Queue,
    autogen_context: AutogenContext,
    upgrade_ops: ops.UpgradeOps,
) -> list[ops.MigrateOperation]:
    """Alembic's operations on some tables of a queue."""
    assert autogen_context.connection is not None
    schemas = {queue.schema}
    if queue.schema == autogen_context.connection.dialect.default_schema_name:
        schemas.add(None)  # Alembic leaves it out in some places
    return [
        operation
        for operation in upgrade_ops.ops
        if getattr(operation, "table_name", None) in names
        and getattr(operation, "schema", None) in schemas
    ]


def _leave_out(operations: Collection[ops.MigrateOperation], upgrade_ops: ops.UpgradeOps) -> None:
    upgrade_ops.ops[:] = [one for one in upgrade_ops.ops if one not in operations]


def _is_reflected(
    tables: Iterable[Table],
    queue: _Queue,
    autogen_context: AutogenContext,
    schemas: set[str | None],
) -> bool:
    """Whether Alembic has looked at these tables of a queue; else it takes them for missing.

    It does not look into some schemas, and at what include_name hides.
    """
    assert autogen_context.connection is not None
    default = autogen_context.connection.dialect.default_schema_name
    looked = queue.schema in schemas or (queue.schema == default and None in schemas)
    return looked and all(
        autogen_context.run_name_filters(table.name, "table", {"schema_name": queue.schema})
        for table in tables
    )


def _rewrite(
    queue: _Queue,
    autogen_context: AutogenContext,
    upgrade_ops: ops.UpgradeOps,
    schemas: set[str | None],
) -> BGJobMigrateOp | None:
    connection = autogen_context.connection
    assert connection is not None
    try:
        found = bgjob.db_version(connection, schema=queue.schema, table_prefix=queue.prefix)
    except ForeignTable as error:
        # Alembic's own operations would make the table ours, and drop its program's columns.
        raise CommandError(str(error)) from None
    except SchemaUnknown:
        # A dump may have lost the comment; Alembic's own operation restores it.
        return None
    default = connection.dialect.default_schema_name
    there = bgjob.frozen_tables(min(found, queue.version), table_prefix=queue.prefix)
    known = _is_reflected(there, queue, autogen_context, schemas)
    filtered = _Filter(queue, found, default, reflected=known or found == 0)
    if found == queue.version and known:
        # Any difference is drift, which the frozen function would not mend.
        return None
    filtered.apply(autogen_context, upgrade_ops)
    if found > queue.version:
        _tell_newer(f"{queue.prefix}job", found, queue.version)
    if found >= queue.version:
        return None
    return BGJobMigrateOp(found, queue.version, queue.schema, queue.prefix)


def _tell_newer(table: str, found: int, known: int) -> None:
    _log.warning(
        "the tables of %r are of version %d, newer than this sqlalchemy-bgjob knows (%d); "
        "they are left as they are",
        table,
        found,
        known,
    )


def _rewrite_records(
    queue: _Queue,
    autogen_context: AutogenContext,
    upgrade_ops: ops.UpgradeOps,
    schemas: set[str | None],
) -> BGJobMigrateOp | None:
    """The same for tables of records, which the user's metadata has or has not."""
    connection = autogen_context.connection
    assert connection is not None
    where: dict[str, Any] = {"schema": queue.schema, "table_prefix": queue.prefix}
    key = f"{queue.prefix}record"
    table = autogen_context.table_key_to_table.get(
        key if queue.schema is None else f"{queue.schema}.{key}"
    )
    wanted = 0 if table is None else bgjob.records.version_in(table.comment)
    found = bgjob.records.db_version(connection, **where)
    tables = [*bgjob.records.frozen_tables(max(found, wanted), **where)]
    if found == wanted and _is_reflected(tables, queue, autogen_context, schemas):
        return None  # any difference is drift
    ours = {table.name for table in tables}
    theirs = _operations_on(ours, queue, autogen_context, upgrade_ops)
    _leave_out(theirs, upgrade_ops)
    if found > bgjob.records.LATEST:
        _tell_newer(key, found, bgjob.records.LATEST)
        return None
    if found == wanted or not theirs:  # or the project keeps these tables out of its history
        return None
    return BGJobMigrateOp(found, wanted, queue.schema, queue.prefix, records=True)


class _Filter:
    """Which of Alembic's operations stay, and which the frozen function performs."""

    def __init__(
        self, queue: _Queue, found: int, default_schema: str | None, *, reflected: bool
    ) -> None:
        self.queue, self.found, self.reflected = queue, found, reflected
        self.default_schema = default_schema
        self.columns: dict[_Key, set[str]] = {}
        self.names: dict[_Key, set[str]] = {}
        for version in {min(found, queue.version), queue.version}:
            for table in bgjob.frozen_tables(
                version, schema=queue.schema, table_prefix=queue.prefix
            ):
                key = self.key(table.schema, table.name)
                self.columns.setdefault(key, set()).update(table.c.keys())
                names = self.names.setdefault(key, set())
                names.update(str(constraint.name) for constraint in table.constraints)
                names.update(str(index.name) for index in table.indexes)

    def key(self, schema: str | None, name: str) -> _Key:
        """A table's key; Alembic leaves the default schema out in some places."""
        return (None if schema == self.default_schema else schema, str(name))

    def apply(self, autogen_context: AutogenContext, upgrade_ops: ops.UpgradeOps) -> None:
        """Take out what the frozen function performs, and put our tables' other operations last."""
        others: list[MigrateOperation] = []
        own: dict[_Key, ops.ModifyTableOps] = {}
        for operation in upgrade_ops.ops:
            key = self.key(getattr(operation, "schema", None), getattr(operation, "table_name", ""))
            if key not in self.columns:
                if not self._is_newer_table(operation, key):
                    others.append(operation)
                continue
            if not self.reflected:
                continue
            if isinstance(operation, ops.CreateTableOp):
                table = autogen_context.table_key_to_table[
                    key[1] if operation.schema is None else f"{operation.schema}.{key[1]}"
                ]
                kept = list(self._own_parts(table, key))
            else:
                assert isinstance(operation, ops.ModifyTableOps)  # no table of ours is dropped
                kept = [part for part in operation.ops if self._is_own(part, key)]
            if kept:
                container = own.setdefault(
                    key, ops.ModifyTableOps(key[1], [], schema=self.queue.schema)
                )
                container.ops.extend(kept)
        upgrade_ops.ops[:] = [*others, *own.values()]

    def _is_newer_table(self, operation: MigrateOperation, key: _Key) -> bool:
        """Whether an operation would drop a table that only a newer release knows."""
        return (
            isinstance(operation, ops.DropTableOp)
            and self.found > self.queue.version
            and bool(self.queue.prefix)
            and key[0] == self.key(self.queue.schema, "")[0]
            and key[1].startswith(self.queue.prefix)
        )

    def _own_parts(self, table: Table, key: _Key) -> Iterator[MigrateOperation]:
        """What a user added to one of our tables that is not there yet."""
        for column in table.columns:
            if column.name not in self.columns[key]:
                yield ops.AddColumnOp.from_column_and_tablename(table.schema, table.name, column)
        kinds = (CheckConstraint, ForeignKeyConstraint, UniqueConstraint)
        for constraint in sorted(table.constraints, key=lambda item: str(item.name)):
            # The check of an Enum or Boolean comes with the column.
            is_own = isinstance(constraint, kinds) and str(constraint.name) not in self.names[key]
            if not is_own or getattr(constraint, "_type_bound", False):
                continue
            if isinstance(constraint, CheckConstraint) and not _RENDERS_CHECKS:
                _log.warning(
                    "this Alembic cannot write the check constraint %r of %r; add it by hand",
                    constraint.name,
                    table.name,
                )
                continue
            yield ops.AddConstraintOp.from_constraint(constraint)

    def _is_own(self, part: MigrateOperation, key: _Key) -> bool:
        """Whether an operation concerns what the user added to one of our tables."""
        columns, names = self.columns[key], self.names[key]
        newer = self.found > self.queue.version
        match part:
            case ops.AddColumnOp():
                return part.column.name not in columns
            case ops.AlterColumnOp():
                return part.column_name not in columns
            case ops.CreateIndexOp():
                return str(part.index_name) not in names
            case ops.AddConstraintOp():
                return str(getattr(part, "constraint_name", None)) not in names
            case ops.DropColumnOp():
                return part.column_name not in columns and not newer
            case ops.DropIndexOp():
                return str(part.index_name) not in names and not newer
            case ops.DropConstraintOp():
                return str(part.constraint_name) not in names and not newer
            case _:
                return False
