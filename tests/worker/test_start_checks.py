"""What a worker asks of a database before it begins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import event

from sqlalchemy_bgjob._worker.preflight import check_database
from support.tables import new_queue

if TYPE_CHECKING:
    from sqlalchemy import Engine


def test_the_checks_take_a_statement_each_not_one_a_table(engine: Engine) -> None:
    """Behind a slow network the first job waits for each of them."""
    jobs = new_queue()
    jobs.metadata.create_all(engine)
    sent: list[str] = []

    def see(_: Any, __: Any, statement: str, *___: Any) -> None:
        sent.append(statement)

    with engine.connect() as connection:
        event.listen(engine, "before_cursor_execute", see)
        check_database(connection, jobs.models)

    assert len(sent) == len(set(sent)), "none is sent for one table after the other"
    assert len(sent) <= 9
