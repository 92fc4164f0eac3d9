"""What hot statements keep to, so that the table of jobs can be distributed by queue.

On such a table a statement finds its shard only if it names the queue at each of its levels. An
UPDATE may call nothing volatile there, and what it computes from a row may call only what is
immutable.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Case, Executable, MetaData, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.sql import visitors
from sqlalchemy.sql.functions import FunctionElement

from sqlalchemy_bgjob._sql import Statements
from sqlalchemy_bgjob.models import build_models

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

pytestmark = pytest.mark.keeps_tables

STATEMENTS = Statements(build_models(MetaData()))
CHANGES: dict[str, Executable] = {
    **{
        f"claim.{name}": getattr(STATEMENTS.claim, name)
        for name in ("from_head", "onward", "skipping", "one")
    },
    **{
        f"settle.{name}": getattr(STATEMENTS.settle, name)
        for name in ("complete", "complete_one", "release", "bury", "note_error")
    },
    **{
        f"rescue.{name}": getattr(STATEMENTS.rescue, name).again
        for name in ("give_back", "give_back_refused", "unknown_claims")
    },
}
LOOKS: dict[str, Executable] = {
    "claim.lanes": STATEMENTS.claim.lanes,
    "claim.next_due": STATEMENTS.claim.next_due,
    "claim.due_ids": STATEMENTS.claim.due_ids,
    "settle.still_held": STATEMENTS.settle.still_held,
    "settle.free": STATEMENTS.settle.free(),
    "settle.lock": STATEMENTS.settle.lock(False),
}
HOT = {**CHANGES, **LOOKS}
OF_THE_TRANSACTION = {"pg_current_xact_id"}
"""A distributed table would have it by a statement of its own."""


def sql_of(statement: Any) -> str:
    return str(statement.compile(dialect=postgresql.dialect(paramstyle="named")))  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("name", HOT)
def test_the_queue_is_named_at_every_level(name: str) -> None:
    sql = sql_of(HOT[name])

    names = [alias or "bgjob_job" for alias in re.findall(r"ONLY bgjob_job\b(?: AS (\w+))?", sql)]
    assert names
    for reference in names:
        assert f"{reference}.queue = :given_queue" in sql, (reference, sql)


@pytest.mark.parametrize("name", ["complete", "release", "bury"])
def test_of_many_queues_each_job_is_found_by_its_own(name: str) -> None:
    sql = sql_of(getattr(STATEMENTS.settle_of_queues, name))

    assert "held.queue = given.queues" in sql
    assert ":given_queue " not in sql


@pytest.mark.parametrize("name", [name for name in HOT if name.startswith("claim.")])
def test_only_statements_that_say_so_walk_the_claim_index(name: str) -> None:
    """Each of its SELECTs repeats the predicate, and the UPDATE itself does not."""
    selects = sql_of(HOT[name]).split("SELECT")
    reading = [one for one in selects if "FROM ONLY bgjob_job" in one and "due.id = " not in one]

    assert all("priority >= -32768" in one for one in reading)
    assert "bgjob_job.priority >=" not in sql_of(HOT[name]) or name in LOOKS


@pytest.mark.parametrize("name", [name for name in HOT if name.startswith(("settle.", "rescue."))])
def test_no_settlement_may_walk_the_claim_index(name: str) -> None:
    assert "priority >=" not in sql_of(HOT[name])


def functions(inside: Any) -> Iterator[str]:
    for element in visitors.iterate(inside):
        if isinstance(element, FunctionElement) and (found := getattr(element, "name", None)):
            yield str(found)


@pytest.mark.parametrize("name", CHANGES)
def test_changes_compute_from_rows_by_immutable_functions(name: str, engine: Engine) -> None:
    statement: Any = CHANGES[name]
    computed: set[str] = set()
    for value in getattr(statement, "_values", None) or {}:
        for element in visitors.iterate(statement._values[value]):
            if isinstance(element, Case) or getattr(element, "name", None) == "coalesce":
                computed.update(functions(element))
    for column in getattr(statement, "_returning", ()):
        computed.update(functions(column))
    # A function of several signatures counts as its best one.
    volatile = _NEVER.format("min(provolatile) = 'v'")
    mutable = _NEVER.format("min(provolatile) <> 'i'")

    with engine.connect() as connection:
        every = connection.execute(text(volatile), {"names": list(functions(statement))})
        some = connection.execute(text(mutable), {"names": list(computed)})
        assert set(every.scalars()) <= OF_THE_TRANSACTION | MOVES_TO_THE_DLQ
        assert set(some.scalars()) <= OF_THE_TRANSACTION


_NEVER = "SELECT proname FROM pg_proc WHERE proname = ANY (:names) GROUP BY proname HAVING {}"
MOVES_TO_THE_DLQ = {"clock_timestamp"}
"""The INSERT of a dead job may call it."""
