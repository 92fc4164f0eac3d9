"""Row level security, which may show roles other than the owner an empty table, and no error.

Some platforms switch it on for every new table. A job that a worker can't see is never run, and
nothing tells of it, so the worker's start and the doctor check.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ARRAY, Connection, Text, bindparam, text

from ._names import qualified, translated

_ALL: Final = {"r": "SELECT", "a": "INSERT", "w": "UPDATE", "d": "DELETE"}
NEEDED: Final[dict[str, Mapping[str, str]]] = {
    "job": {"r": "SELECT", "w": "UPDATE", "d": "DELETE"},
    "dead_job": {"r": "SELECT", "a": "INSERT"},
    "worker": _ALL,
    "control": {"r": "SELECT"},
    "schedule": {"r": "SELECT", "a": "INSERT", "w": "UPDATE"},
    "unique_period": _ALL,
    "batch": _ALL,
}
"""The commands that a worker runs on each table, by the letters of ``pg_policy``."""
OF_RECORDS: Final[dict[str, Mapping[str, str]]] = {
    "record": _ALL,
    "minute": _ALL,
    "audit": {"r": "SELECT", "w": "UPDATE", "d": "DELETE"},
}
"""The same, where there are tables of records."""
_BESIDE: Final = ("unique_period", "batch", "minute", "audit")
"""Tables without which jobs are run all the same."""


@dataclass(frozen=True, slots=True)
class Hidden:
    """What row level security keeps from this role.

    Attributes:
        for_sure: Problem and remedy, for tables where no policy allows what a worker does.
        beside: The same, for tables without which jobs are run all the same.
        maybe: Warnings, for tables where a policy decides row by row.
    """

    for_sure: list[tuple[str, str]]
    beside: list[tuple[str, str]]
    maybe: list[str]


def hidden(
    connection: Connection, *, schema: str | None, table_prefix: str, records: bool = False
) -> Hidden:
    """What is hidden from the connection's role, also of the tables of *records*.

    A missing table hides nothing.
    """
    found, schema = Hidden([], [], []), translated(connection, schema)
    every = NEEDED | OF_RECORDS if records else NEEDED
    tables = {kind: qualified(schema, f"{table_prefix}{kind}") for kind in every}
    active = {*connection.execute(_ACTIVE, {"tables": [*tables.values()]}).scalars()}
    for kind, needed in every.items():
        if (table := tables[kind]) not in active:
            continue
        policies = connection.execute(_POLICIES, {"table": table}).all()
        lacking = [name for letter, name in needed.items() if not _permits(policies, letter)]
        create = (
            f"run CREATE POLICY bgjob_worker ON {table} TO worker_role USING (true) "
            f"WITH CHECK (true), or give the role BYPASSRLS"
        )
        restricted = any(_restricts(policies, letter) for letter in needed)
        if lacking:
            problem = (
                f"row level security of {table} hides its rows from this role: no policy allows "
                f"{', '.join(lacking)}"
            )
            (found.beside if kind in _BESIDE else found.for_sure).append((problem, create))
        elif restricted or not all(_permits(policies, letter, all_rows=True) for letter in needed):
            lift = "let no restrictive policy apply to the role, or give it BYPASSRLS"
            found.maybe.append(
                f"row level security of {table} applies to this role: "
                f"{_CONSEQUENCES.get(kind, _CONSEQUENCE)}. To hide none, "
                f"{lift if restricted else create}"
            )
    return found


_CONSEQUENCE: Final = "a row that a policy hides is no row to a worker"
_CONSEQUENCES: Final = {
    "job": "a job that a policy hides is never run",
    "record": "a job whose record a policy refuses never ends",
    "batch": "no job follows a batch that a policy hides",
}


def _permits(policies: Iterable[Any], letter: str, *, all_rows: bool = False) -> bool:
    """Whether a policy permits a command; of several that do, one is enough."""
    return any(
        policy.permissive and policy.command in (letter, "*") and (policy.always or not all_rows)
        for policy in policies
    )


def _restricts(policies: Iterable[Any], letter: str) -> bool:
    """Whether a policy may forbid a command that others permit."""
    return any(
        policy.command in (letter, "*") and not (policy.permissive or policy.always)
        for policy in policies
    )


_ACTIVE: Final[Any] = text(
    "SELECT its FROM unnest(CAST(:tables AS TEXT[])) AS given (its)"
    " JOIN pg_catalog.pg_class ON oid = to_regclass(its)"
    " WHERE row_security_active(oid)"
).bindparams(bindparam("tables", type_=ARRAY(Text)))
# The policies for this role, or for one that it inherits from; 0 is PUBLIC.
_POLICIES: Final[Any] = text(
    """
    SELECT CAST(polcmd AS TEXT) AS command, polpermissive AS permissive,
           coalesce(pg_get_expr(polqual, polrelid), 'true') = 'true'
           AND coalesce(pg_get_expr(polwithcheck, polrelid), 'true') = 'true' AS always
    FROM pg_catalog.pg_policy
    WHERE polrelid = to_regclass(CAST(:table AS TEXT))
      AND (0 = ANY (polroles)
           OR EXISTS (SELECT FROM unnest(polroles) AS role
                      WHERE pg_has_role(current_user, role, 'USAGE')))
    """
)
