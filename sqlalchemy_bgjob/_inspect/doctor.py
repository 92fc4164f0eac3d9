"""``sqlalchemy-bgjob doctor``: what is wrong with a queue's database, and what to do about it.

It only reads, except that it sets one parameter in its own session, which nothing else uses.
"""

import re
import secrets
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from operator import attrgetter
from typing import Any, Final, Literal

from sqlalchemy import ARRAY, Connection, Engine, Index, MetaData, Text, bindparam, text
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.exc import DBAPIError

from .._db.encodings import encoding_problem
from .._db.errors import sqlstate
from ..exceptions import SchemaOutOfDate
from ..schema import LATEST, check, db_version, records, storage_drift
from ..schema._elements import table_of
from ..schema._foreign_keys import foreign_key_problems
from ..schema._grants import lacks, remedy
from ..schema._leftovers import leftovers
from ..schema._names import qualified, translated
from ..schema._records_1 import records_1
from ..schema._row_security import hidden
from ..schema._table_kinds import KINDS, heirs
from ..schema._versions import STEPS
from ..settings import DEFAULT_CONCURRENCY
from .health import look
from .queues import LANES, paused_queues
from .registered import Registered, ask, registered

OLDEST_SERVER: Final = 14
CLOCKS_APART: Final = 5.0
"""Seconds by which the clocks of machine and server may differ before it is noted."""
WAITS_FOR: Final = 60.0
"""Seconds for which a job may be due before its served queue is a problem."""
MANY: Final = 1_000
"""The most due jobs that are counted, for each queue and priority."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Attributes:
        check: The subject, such as "server" or "tables".
        level: ``ok``, ``note`` (good to know) or ``problem`` (must be mended).
        text: The finding, and what to do.
    """

    check: str
    level: Literal["ok", "note", "problem"]
    text: str


def examine(
    connection: Connection, *, schema: str | None, table_prefix: str, as_worker: bool = True
) -> list[Finding]:
    """Run all checks; the caller ends the connection's transaction.

    Args:
        connection: To the queue's database.
        schema: The tables' schema; None if they are on the search path.
        table_prefix: How the tables' names begin.
        as_worker: Whether workers connect as this connection does. Then it is also checked whether
            its role may do what a worker does, and whether a pooler is in between, for which its
            engine must give two more connections for a moment.
    """
    findings = [*_server(connection), *_encoding(connection)]
    findings += _pooler(connection.engine) if as_worker else ()
    findings += _clock(connection)
    tables = list(_tables(connection, schema, table_prefix, as_worker=as_worker))
    findings += tables
    if tables[0].level == "problem":
        return findings  # the other checks need the tables
    found = look(
        connection,
        [qualified(translated(connection, schema), f"{table_prefix}{kind}") for kind in KINDS],
    )
    if found.problems or not found.notes:
        findings += _told("vacuum and notifications", found.problems, "nothing is held back")
    findings += [Finding("vacuum and notifications", "note", one) for one in found.notes]
    findings += _workers(connection, schema, table_prefix)
    return findings


def _told(check: str, problems: list[str], fine: str) -> Iterator[Finding]:
    if not problems:
        yield Finding(check, "ok", fine)
    for problem in problems:
        yield Finding(check, "problem", problem)


def _server(connection: Connection) -> Iterator[Finding]:
    number = int(connection.execute(text("SHOW server_version_num")).scalar_one())
    version = f"PostgreSQL {number // 10_000}.{number % 10_000}"
    if number // 10_000 < OLDEST_SERVER:
        yield Finding("server", "problem", f"{version}; upgrade it to {OLDEST_SERVER} or later")
    elif connection.execute(text("SELECT pg_is_in_recovery()")).scalar_one():
        yield Finding("server", "problem", f"{version}, a standby; connect to the primary")
    else:
        yield Finding("server", "ok", version)


def _encoding(connection: Connection) -> Iterator[Finding]:
    problem = encoding_problem(connection)
    yield from _told("encoding", [] if problem is None else [problem], "UTF8")


def _pooler(engine: Engine) -> Iterator[Finding]:
    """Whether a pooler shares server sessions between transactions.

    If so, a second connection's transaction gets the session that the first has just used, and
    sees the setting made there.
    """
    token = secrets.token_hex(8)
    mark = text("SELECT set_config('bgjob.doctor', :token, false)")
    read = text("SELECT current_setting('bgjob.doctor', true)")
    with engine.connect() as first, engine.connect() as second:
        first.execution_options(isolation_level="AUTOCOMMIT").execute(mark, {"token": token})
        with second.begin():
            shared = second.execute(read).scalar_one() == token
    if shared:
        yield Finding(
            "pooler",
            "note",
            "a pooler in transaction mode: workers poll, as LISTEN hears nothing there; give them "
            'a direct connection, or psycopg connect_args={"prepare_threshold": None} and '
            "--no-listen",
        )
    else:
        yield Finding("pooler", "ok", "sessions are this client's own")


def _clock(connection: Connection) -> Iterator[Finding]:
    before = time.time()
    server = float(
        connection.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one()
    )
    apart = server - (before + time.time()) / 2
    if abs(apart) > CLOCKS_APART:
        yield Finding(
            "clock",
            "note",
            f"the server's clock is {abs(apart):.0f} s {'ahead of' if apart > 0 else 'behind'} "
            f"this machine's; jobs go by the server's, a run_at that is computed here does not",
        )
    else:
        yield Finding(
            "clock", "ok", f"the server's and this machine's are {abs(apart):.1f} s apart"
        )


# ---- tables -------------------------------------------------------------------------------------


def _tables(
    connection: Connection, name: str | None, prefix: str, *, as_worker: bool
) -> Iterator[Finding]:
    lacking = _privileges(connection, name, prefix) if as_worker else []
    try:
        check(connection, schema=name, table_prefix=prefix)
        recorded = records.commented_version(connection, schema=name, table_prefix=prefix)
        if recorded:
            records.check(connection, schema=name, table_prefix=prefix)
            if as_worker:
                lacking = _privileges(connection, name, prefix, records=True)
    except SchemaOutOfDate as error:
        yield Finding("tables", "problem", str(error))
        return
    except DBAPIError as error:
        if sqlstate(error) != "42501" or not lacking:
            raise
        yield Finding("privileges", "problem", lacking[0])
        return
    version = db_version(connection, schema=name, table_prefix=prefix)
    and_records = f", and version {recorded} of those of records" if recorded else ""
    yield Finding("tables", "ok", f"version {version}{and_records}")
    structure = _structure(connection, name, _designed(LATEST, name, prefix))
    if recorded:
        structure += _structure(connection, name, records_1(name, prefix))
    yield from _told("structure", structure, "as designed")
    notes = [*heirs(connection, schema=name, table_prefix=prefix)]
    notes += _other_indexes(connection, name, prefix)
    for note in notes:
        yield Finding("structure", "note", note)
    storage = storage_drift(connection, schema=name, table_prefix=prefix)
    missing = [f"a storage parameter is not as designed; run: {sql}" for sql in storage]
    yield from _told("storage", missing, "as designed")
    keys = foreign_key_problems(connection, schema=name, table_prefix=prefix)
    yield from _told("foreign keys", [*map(str, keys)], "none is in the way of what ends")
    if as_worker:
        yield from _told("privileges", lacking, "those of a worker")
    unseen = hidden(connection, schema=name, table_prefix=prefix, records=bool(recorded))
    if unseen.maybe:
        yield Finding("row security", "note", "; ".join(unseen.maybe))
    told = [f"{problem}; {remedy}" for problem, remedy in (*unseen.for_sure, *unseen.beside)]
    if told or not unseen.maybe:
        yield from _told("row security", told, "hides nothing from this role")


@lru_cache(maxsize=16)
def _designed(version: int, name: str | None, prefix: str) -> MetaData:
    """The tables of a version; to be read only. To build them takes longer than all statements."""
    return STEPS[version].tables(name, prefix)


def _structure(connection: Connection, name: str | None, designed: MetaData) -> list[str]:
    """Problems of columns, indexes and constraints: missing, invalid or other than designed."""
    problems: list[str] = []
    migrate = "sqlalchemy-bgjob migrate, or DROP INDEX CONCURRENTLY"
    schema = translated(connection, name)
    full_names = [qualified(schema, table.name) for table in designed.tables.values()]
    catalogs = _catalogs(connection, full_names)
    for table, full_name in zip(designed.tables.values(), full_names, strict=True):
        there = catalogs[full_name]
        problems += [
            f"{full_name} has no column {column.name!r}; restore it"
            for column in table.c
            if column.name not in there.columns
        ]
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            columns = [column.name for column in index.columns]
            where = _condition(index)
            wanted = f"({', '.join(columns)})" + (f" WHERE {where}" if where else "")
            found = there.indexes.get(str(index.name))
            if found is None:
                problems.append(f"{full_name} has no index {index.name!r} on {wanted}; create it")
            elif not found[0]:
                problems.append(f"the index {index.name!r} is invalid; REINDEX it")
            elif found[1:] != (columns, where):
                problems.append(f"the index {index.name!r} is not on {wanted}; drop and create it")
        problems += [
            f"the index {index} was left by an interrupted REINDEX, and slows every write; once "
            f"none goes on: {migrate} {index}"
            for index in leftovers(connection, name, table.name)
        ]
        problems += [
            f"{full_name} has no constraint {constraint.name!r}; add it"
            for constraint in sorted(table.constraints, key=lambda one: str(one.name))
            if str(constraint.name) not in there.constraints
        ]
    return problems


def _other_indexes(connection: Connection, name: str | None, prefix: str) -> Iterator[str]:
    """Indexes on jobs that this version does not have, and that cost more than they give."""
    table = table_of(_designed(LATEST, name, prefix), "job", name, prefix)
    ours = {str(index.name) for index in table.indexes}
    older: set[str] = set()
    for version in range(1, LATEST):
        before = table_of(_designed(version, name, prefix), "job", name, prefix)
        older |= {str(index.name) for index in before.indexes} - ours
    schema = translated(connection, name)
    full_name = qualified(schema, table.name)
    there = _catalogs(connection, [full_name])[full_name].indexes
    for index, (_, columns, condition) in sorted(there.items()):
        if index in older:
            yield (
                f"only workers of an older release use the index {index!r}; once none of them "
                f"runs: DROP INDEX CONCURRENTLY {qualified(schema, index)}"
            )
        elif index not in ours and columns[:1] == ["queue"] and not condition:
            yield (
                f"the index {index!r} begins with queue: with old statistics PostgreSQL may walk "
                f"it through all jobs of a queue to find one; drop it, or make it partial"
            )


def _condition(index: Index) -> str:
    """The predicate of a partial index, as the server tells it; empty for a full one."""
    condition = index.dialect_options["postgresql"]["where"]
    if condition is None:
        return ""
    bare = {"include_table": False}
    dialect: Any = PGDialect
    return str(condition.compile(dialect=dialect(), compile_kwargs=bare))


@dataclass(frozen=True)
class _Catalog:
    columns: set[str] = field(default_factory=set)
    indexes: dict[str, tuple[bool, list[str], str]] = field(default_factory=dict)
    """By name: whether the index is valid, its columns, and its predicate if it is partial."""
    constraints: set[str] = field(default_factory=set)


def _catalogs(connection: Connection, tables: list[str]) -> dict[str, _Catalog]:
    """What the server has of these tables, by their names; nothing of one that is missing."""
    found = {table: _Catalog() for table in tables}
    given = {"tables": tables}
    for table, column in connection.execute(_COLUMNS, given):
        found[table].columns.add(column)
    for table, index, is_valid, columns, predicate in connection.execute(_INDEXES, given):
        bare = _NUMBER.sub(r"\1", predicate)
        found[table].indexes[index] = is_valid, list(columns), bare
    for table, constraint in connection.execute(_CONSTRAINTS, given):
        found[table].constraints.add(constraint)
    return found


_NUMBER: Final = re.compile(r"'(-\d+)'::\w+")
"""How the server writes a negative number of a predicate."""
_NAMED: Final = """
    (SELECT name AS its, CAST(to_regclass(name) AS oid) AS oid
     FROM unnest(CAST(:tables AS TEXT[])) AS name) AS named
"""
_TABLES: Final = bindparam("tables", type_=ARRAY(Text))
_COLUMNS = text(
    f"""
    SELECT its, CAST(attname AS TEXT) FROM {_NAMED}
    JOIN pg_catalog.pg_attribute ON attrelid = named.oid AND attnum > 0 AND NOT attisdropped
    """  # noqa: S608 - a constant
).bindparams(_TABLES)
_INDEXES = text(
    f"""
    SELECT its, CAST(c.relname AS TEXT), i.indisvalid,
           ARRAY(SELECT CAST(a.attname AS TEXT)
                 FROM unnest(i.indkey) WITH ORDINALITY AS k (attnum, place)
                 JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
                 ORDER BY k.place),
           btrim(coalesce(pg_get_expr(i.indpred, i.indrelid), ''), '()')
    FROM {_NAMED} JOIN pg_catalog.pg_index i ON i.indrelid = named.oid
    JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
    """  # noqa: S608 - a constant
).bindparams(_TABLES)
_CONSTRAINTS = text(
    f"""
    SELECT its, CAST(conname AS TEXT) FROM {_NAMED}
    JOIN pg_catalog.pg_constraint ON conrelid = named.oid
    """  # noqa: S608 - a constant
).bindparams(_TABLES)


def _privileges(
    connection: Connection, name: str | None, prefix: str, *, records: bool = False
) -> list[str]:
    lacking = lacks(connection, "worker", schema=name, table_prefix=prefix, records=records)
    return [f"{one}; {remedy(connection, [one])}" for one in lacking]


# ---- workers ------------------------------------------------------------------------------------


def _workers(connection: Connection, name: str | None, prefix: str) -> Iterator[Finding]:
    try:
        workers = registered(connection, name, prefix)
        queues = ask(connection, _DUE, name, prefix, many=MANY)
        paused = paused_queues(connection, name, prefix)
    except DBAPIError as error:
        if sqlstate(error) != "42501":
            raise
        yield Finding("workers", "note", "this role may not look at jobs and workers")
        return
    silent = sorted((worker for worker in workers if not worker.alive), key=attrgetter("id"))
    yield from _told_of_workers(silent, len(workers) - len(silent), bool(queues))
    yield from (Finding("queues", "note", f"{one}; no worker claims from it") for one in paused)
    queues = [row for row in queues if row.queue not in {one.queue for one in paused}]
    waits = [waits for row in queues if (waits := _told_of_queue(row)) is not None]
    fine = f"no job has been due for {WAITS_FOR:.0f} s" if queues else "no job is due"
    yield from _told("queues", waits, fine)


def _told_of_workers(silent: list[Registered], beating: int, due: bool) -> Iterator[Finding]:
    remedy = (
        "another takes its jobs and removes it; look again in a minute"
        if beating
        else "no other runs: start one, which takes its jobs"
    )
    for worker in silent:
        who = f"worker {worker.id} (pid {worker.pid} on {worker.hostname})"
        yield Finding(
            "workers", "problem", f"{who} has been silent for {worker.seconds:.0f} s; {remedy}"
        )
    if beating:
        yield Finding("workers", "ok", f"{beating} beating")
    elif due:
        yield Finding("workers", "note", "none runs, and jobs are due")
    elif not silent:
        yield Finding("workers", "ok", "none runs, and no job is due")


def _told_of_queue(row: Any) -> str | None:
    """The problem of a queue with due jobs; None if it is served and they are due only briefly."""
    if row.served and row.seconds < WAITS_FOR:
        return None
    jobs = "1 job is" if row.due == 1 else f"{row.due} jobs are"
    jobs = f"more than {MANY} jobs are" if row.due > MANY else jobs
    remedy = (
        "its workers are busy or stuck; start more, or look at what they run"
        if row.served
        else f"no worker serves this queue; start one with --queue {_option(row.queue)}"
    )
    return f"queue {row.queue!r}: {jobs} due, the first for {row.seconds:.0f} s, and {remedy}"


def _option(queue: str) -> str:
    """The value of --queue, quoted for a shell; a name with a colon needs the number too."""
    return shlex.quote(f"{queue}:{DEFAULT_CONCURRENCY}")


# Of each queue and priority at most N + 1 of its due jobs are read.
# The index is for those who say that the priority is at least the lowest; see models/_ddl.py.
_DUE: Final = (
    LANES  # noqa: S608 - two constants
    + """
    SELECT queue, CAST(sum(due) AS bigint) AS due,
           CAST(extract(epoch FROM clock_timestamp() - min(oldest)) AS float8) AS seconds,
           EXISTS (
             SELECT FROM ONLY {worker} AS w
             WHERE jsonb_exists(CAST(w.queues AS jsonb), lanes.queue) AND w.lost_at IS NULL
               AND clock_timestamp() - w.beat_at < w.lease_timeout * interval '1 second'
           ) AS served
    FROM lanes, LATERAL (
      SELECT min(next_run_at) AS oldest, count(*) AS due FROM (
        SELECT next_run_at FROM ONLY {job} AS one
        WHERE one.queue = lanes.queue AND one.priority = lanes.priority
          AND one.priority >= -32768 AND one.claimed_by IS NULL AND one.next_run_at <= now()
        ORDER BY one.next_run_at LIMIT :many + 1
      ) AS few
    ) AS first
    WHERE due > 0
    GROUP BY queue ORDER BY queue
"""
)
