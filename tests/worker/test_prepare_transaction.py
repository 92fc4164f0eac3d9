"""A handler that prepares the transaction of its session for a two-phase commit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from sqlalchemy_bgjob import constant
from support.running import paired

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.orm import Session

    from sqlalchemy_bgjob import Context
    from support.running import Workbench

PREPARE = "PREPARE TRANSACTION 'of the handler'"


@pytest.fixture
def prepared(bench: Workbench) -> Iterator[Callable[[], int]]:
    """How many transactions are prepared; they are rolled back at the end."""
    query = "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"
    yield lambda: len(bench.sql(query))
    with bench.outside.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for gid in connection.scalars(text(query)).all():
            connection.exec_driver_sql(f"ROLLBACK PREPARED '{gid}'")


def by_text(s: Session) -> None:
    s.execute(text(PREPARE))


def by_exec_driver_sql(s: Session) -> None:
    s.connection().exec_driver_sql(PREPARE)


def by_the_driver(s: Session) -> None:
    cursor = s.connection().connection.cursor()
    cursor.execute(PREPARE)
    cursor.close()


def and_begins_anew(s: Session) -> None:
    by_the_driver(s)
    s.connection().exec_driver_sql("BEGIN")


@pytest.mark.core
@paired("how", [by_text, by_exec_driver_sql, by_the_driver, and_begins_anew])
def test_a_handler_that_prepares_its_transaction_has_failed(
    bench: Workbench, prepared: Callable[[], int], how: Callable[[Session], None]
) -> None:
    """What it wrote is as good as lost; only text is seen before it is sent."""

    def body(s: Session, ctx: Context[Any]) -> None:
        bench.note(s, ctx)
        how(s)

    job_id = bench.enqueue(bench.handler("t", body, retry=constant(3600.0)))
    ran = bench.run()

    assert ran.of(job_id) == ["started", "will_be_retried"]
    assert "TransactionEnded" in bench.job(job_id).last_error
    assert bench.job(job_id).attempt == 1
    assert bench.notes(job_id) == []
    assert prepared() == (0 if how is by_text else 1)
