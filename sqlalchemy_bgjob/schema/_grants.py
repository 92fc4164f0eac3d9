"""The least privileges of each role on the queue's tables: to grant, and to check.

A new version of the tables may need new ones, and a role does not get them by itself. So a worker
that lacks what it can't do without is refused at its start, with the GRANT that mends it.

A role that enqueues may read only the few columns of jobs that its own statements return. A
dashboard's role reads no args, and no results. It does read headers and errors, so secrets belong
in neither.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal, get_args

from sqlalchemy import ARRAY, Connection, Text, bindparam, text

from . import LATEST
from ._elements import table_of
from ._names import qualified, quoted, translated
from ._records_1 import records_1
from ._versions import STEPS

Task = Literal["enqueue", "worker", "operator", "dashboard"]
"""What a role does.

* ``enqueue``: all ways to enqueue, and nothing else;
* ``worker``: claims, runs and settles; its handlers may enqueue;
* ``operator``: cancels, redrives and prunes, schedules, controls queues, and reads everything;
* ``dashboard``: reads everything but args.
"""
TASKS: Final[tuple[Task, ...]] = get_args(Task)

_ALL: Final = ("SELECT", "INSERT", "UPDATE", "DELETE")
# What an INSERT returns, and what a session reads back of a new row.
_ENQUEUE_READS: Final = (
    "id",
    "queue",
    "priority",
    "attempt",
    "crashes",
    "lease",
    "next_run_at",
    "created_at",
    "updated_at",
    "unique_key",
    "claimed_by",
    "cancel_at",
    "expires_at",
    "batch_id",
    "ctid",
)


@dataclass(frozen=True, slots=True)
class Privilege:
    """One thing that a role must be allowed to do with one of the tables.

    Attributes:
        kind: The table, see :data:`._table_kinds.KINDS`.
        verb: As GRANT names it.
        columns: The columns; empty for the whole table.
        enough: The columns to which it may be limited, if it is for the whole table. They are
            granted to nobody one by one, as the next version may write others.
    """

    kind: str
    verb: str
    columns: tuple[str, ...] = ()
    enough: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.verb + (f" ({', '.join(map(quoted, self.columns))})" if self.columns else "")


_OPERATOR_WRITES: Final = (
    *("next_run_at", "updated_at", "cancel_at"),
    *("arg", "headers", "priority", "lease"),
)
_WORKER_WRITES: Final = {
    "job": (
        *("claimed_by", "lease", "attempt", "crashes", "next_run_at", "updated_at", "arg"),
        *("headers", "last_error", "errors", "unknown_since", "unique_key", "expires_at"),
    ),
    "worker": ("beat_at", "waits_for", "lost_at", "listener_pid", "listener_started_at"),
}
"""The columns of vital tables that a worker changes."""
_VITAL: Final = ("job", "worker", "control", "record")
"""The tables of which a worker needs all privileges: without them it runs nothing, or the end of
what it has run is refused."""


@dataclass(frozen=True, slots=True)
class Lacking:
    """What a role lacks on one table.

    Attributes:
        privileges: As GRANT names them, with the table.
        vital: Whether a worker is of no use without them.
    """

    privileges: str
    vital: bool

    def __str__(self) -> str:
        return f"this role lacks {self.privileges}, which a worker needs"


def needs(task: Task, *, records: bool = False) -> tuple[Privilege, ...]:
    """All that a role needs for its task, on the tables of the latest version, and on *records*."""
    return (*_needs(task), *(_needs_of_records(task) if records else ()))


def _needs_of_records(task: Task) -> Iterator[Privilege]:
    match task:
        case "enqueue":
            yield Privilege("record", "SELECT")  # who enqueues may wait for the result
        case "worker":
            yield from (Privilege("record", verb) for verb in _ALL)
            # To lock old rows, so that two workers delete different ones, is an UPDATE.
            yield from (Privilege("minute", verb) for verb in _ALL)
            yield from (Privilege("audit", verb) for verb in ("SELECT", "DELETE"))
            yield Privilege("audit", "UPDATE", ("id",))  # enough to lock a row
        case "operator":
            # A cancel of a queued job writes its record.
            yield from (Privilege("record", verb) for verb in ("SELECT", "INSERT", "UPDATE"))
            yield Privilege("minute", "SELECT")
            # Who acts can write down what was done, but not when, and can take nothing back.
            yield Privilege("audit", "SELECT")
            yield Privilege("audit", "INSERT", _columns_of_records("audit", but="at"))
        case "dashboard":
            yield Privilege("record", "SELECT", _columns_of_records("record", but="result"))
            yield Privilege("minute", "SELECT")
            yield Privilege("audit", "SELECT", _columns_of_records("audit", but="given"))


def _columns_of_records(kind: str, *, but: str) -> tuple[str, ...]:
    table = table_of(records_1(None, ""), kind, None, "")
    return tuple(column.name for column in table.c if column.name != but)


def _needs(task: Task) -> Iterator[Privilege]:
    match task:
        case "enqueue":
            yield Privilege("job", "INSERT")
            yield Privilege("job", "SELECT", _ENQUEUE_READS)
            # A lock on the job that has a unique key already is an UPDATE to the server; and a job
            # that never will run loses its key, and expires for ever.
            yield Privilege("job", "UPDATE", ("unique_key", "expires_at"))
            yield from (Privilege("unique_period", verb) for verb in ("SELECT", "INSERT", "UPDATE"))
            yield Privilege("worker", "SELECT", ("id", "waits_for"))
            yield from (Privilege("batch", verb) for verb in ("SELECT", "INSERT"))
            # Who makes a batch may ask how far it is.
            yield Privilege("dead_job", "SELECT", ("batch_id",))
        case "worker":
            yield from _all_on("job")
            yield Privilege("dead_job", "INSERT")
            yield Privilege("dead_job", "SELECT", ("job_id", "batch_id"))
            yield from _all_on("worker")
            yield from (Privilege("schedule", verb) for verb in ("SELECT", "INSERT", "UPDATE"))
            yield Privilege("control", "SELECT")
            # Its handlers enqueue; and periods that are over are deleted, and batches that are old.
            yield from (Privilege("unique_period", verb) for verb in _ALL)
            yield from (Privilege("batch", verb) for verb in _ALL)
        case "operator":
            yield from (Privilege("job", verb) for verb in ("SELECT", "INSERT", "DELETE"))
            # A running job is marked, and its worker ends it; a queued one is made due, or edited.
            yield Privilege("job", "UPDATE", _OPERATOR_WRITES)
            # UPDATE: a redrive locks the rows it brings back, and an arg may need mending before.
            yield from (Privilege("dead_job", verb) for verb in ("SELECT", "UPDATE", "DELETE"))
            yield Privilege("worker", "SELECT")
            yield from (Privilege("schedule", verb) for verb in _ALL)
            yield from (Privilege("control", verb) for verb in _ALL)
            # Without its row nothing follows a batch whose jobs were cancelled.
            yield from (Privilege("batch", verb) for verb in ("SELECT", "DELETE"))
        case "dashboard":
            yield Privilege("job", "SELECT", _without_arg("job"))
            yield Privilege("dead_job", "SELECT", _without_arg("dead_job"))
            yield Privilege("worker", "SELECT")
            yield Privilege("schedule", "SELECT", _without_arg("schedule"))
            yield Privilege("batch", "SELECT", _without_arg("batch"))
            yield Privilege("control", "SELECT")


def _all_on(kind: str) -> Iterator[Privilege]:
    """All that there is on a table of which a worker changes some columns."""
    for verb in _ALL:
        yield Privilege(kind, verb, enough=_WORKER_WRITES[kind] if verb == "UPDATE" else ())


def _without_arg(kind: str) -> tuple[str, ...]:
    table = table_of(STEPS[LATEST].tables(None, ""), kind, None, "")
    return tuple(column.name for column in table.c if not column.name.endswith("arg"))


def grants(
    roles: Iterable[tuple[Task, str]],
    *,
    schema: str | None,
    table_prefix: str,
    records: bool = False,
) -> str:
    """The GRANT statements for these roles, one a line; they belong to nobody else.

    Args:
        roles: What each role does, and its name.
        schema: The tables' schema; None if they are on the search path.
        table_prefix: How the tables' names begin.
        records: Whether there are tables of records.
    """
    lines: list[str] = []
    for task, role in roles:
        lines.append(f"-- {task}")
        if schema is not None:
            lines.append(f"GRANT USAGE ON SCHEMA {quoted(schema)} TO {quoted(role)};")
        lines += [
            f"GRANT {', '.join(map(str, privileges))} ON {qualified(schema, table_prefix + kind)} "
            f"TO {quoted(role)};"
            for kind, privileges in _by_table(needs(task, records=records)).items()
        ]
    return "\n".join(lines) + "\n"


def lacks(
    connection: Connection,
    task: Task,
    *,
    schema: str | None,
    table_prefix: str,
    records: bool = False,
) -> list[Lacking]:
    """What the connection's role lacks for a task, table by table; also on those of *records*.

    Missing tables and columns are left to other checks.
    """
    schema = translated(connection, schema)
    if schema is not None and connection.execute(_USAGE, {"schema": schema}).scalar() is False:
        # Nothing inside it can be checked.
        return [Lacking(f"USAGE ON SCHEMA {quoted(schema)}", vital=True)]
    needed = needs(task, records=records)
    tables = [qualified(schema, table_prefix + one.kind) for one in needed]
    given = {
        "tables": tables,
        "verbs": [one.verb for one in needed],
        "columns": [",".join(one.columns or one.enough) for one in needed],
    }
    missing = [needed[place - 1] for place in connection.execute(_LACKED, given).scalars()]
    return [
        Lacking(
            f"{', '.join(map(str, some))} ON {qualified(schema, table_prefix + kind)}",
            vital=kind in _VITAL,
        )
        for kind, some in _by_table(missing).items()
    ]


def remedy(connection: Connection, lacking: Iterable[Lacking]) -> str:
    """The GRANT statements for what a role :func:`lacks`, which the tables' owner is to run."""
    role = quoted(connection.execute(text("SELECT CAST(current_user AS TEXT)")).scalar_one())
    given = " ".join(f"GRANT {one.privileges} TO {role};" for one in lacking)
    return f"as the owner of the tables run: {given}"


def _by_table(privileges: Iterable[Privilege]) -> dict[str, list[Privilege]]:
    found: dict[str, list[Privilege]] = {}
    for privilege in privileges:
        found.setdefault(privilege.kind, []).append(privilege)
    return found


_USAGE = text(
    "SELECT has_schema_privilege(oid, 'USAGE') FROM pg_catalog.pg_namespace WHERE nspname = :schema"
)
# By column number: the name of a missing column would be an error. A role that was granted each
# column has the whole table; rows are found by ctid.
_LACKED = text(
    """
    SELECT place
    FROM unnest(CAST(:tables AS TEXT[]), CAST(:verbs AS TEXT[]), CAST(:columns AS TEXT[]))
      WITH ORDINALITY AS needed (its, verb, columns, place),
      LATERAL (SELECT CAST(to_regclass(its) AS oid) AS oid) AS found
    WHERE NOT CASE columns
      WHEN '' THEN has_table_privilege(oid, verb) OR CASE WHEN verb <> 'DELETE' THEN (
        SELECT bool_and(has_column_privilege(oid, attnum, verb))
        FROM pg_catalog.pg_attribute
        WHERE attrelid = oid AND NOT attisdropped
          AND (attnum > 0 OR (attname = 'ctid' AND verb = 'SELECT'))
      ) ELSE false END
      ELSE (
        SELECT bool_and(has_column_privilege(oid, attnum, verb))
        FROM pg_catalog.pg_attribute
        WHERE attrelid = oid AND attname = ANY (string_to_array(columns, ','))
      )
    END
    ORDER BY place
    """
).bindparams(*(bindparam(name, type_=ARRAY(Text)) for name in ("tables", "verbs", "columns")))
