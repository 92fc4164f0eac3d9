"""A database that answers and yet refuses every claim: the worker waits longer each time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import MetaData, create_engine, text
from sqlalchemy.orm import DeclarativeBase

from sqlalchemy_bgjob import BGJob, Context, Observer, Worker, enqueue
from sqlalchemy_bgjob._errors import sqlstate
from sqlalchemy_bgjob._process import LogObserver
from support import wait_until

if TYPE_CHECKING:
    from sqlalchemy import Engine


class Errors(Observer):
    """When each error was told of, and its SQLSTATE."""

    def __init__(self) -> None:
        self.at: list[float] = []
        self.states: list[str | None] = []

    def worker_error(self, error: BaseException) -> None:
        self.at.append(time.monotonic())
        self.states.append(sqlstate(error))


def test_claims_that_fail_again_and_again_are_tried_ever_more_rarely(engine: Engine) -> None:
    """To reconcile after each failure reads the whole table, and succeeds: no reason to hurry."""

    class Base(DeclarativeBase):
        pass

    jobs = BGJob(Base)
    done: list[str] = []

    @jobs.handler("note")
    def note(ctx: Context) -> None:
        done.append(ctx.job.id)

    Base.metadata.create_all(engine)
    job = enqueue(engine, note)
    with engine.begin() as connection:
        connection.execute(
            text(
                """
                CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql
                    AS 'BEGIN RAISE EXCEPTION ''refused''; END';
                CREATE TRIGGER refuse BEFORE UPDATE ON bgjob_job
                    FOR EACH ROW WHEN (new.claimed_by IS NOT NULL) EXECUTE FUNCTION refuse();
                """
            )
        )
    errors = Errors()

    with Worker(jobs, engine, observers=[errors]):
        wait_until(lambda: len(errors.at) >= 7, 30, what="seven failed claims")
        with engine.begin() as connection:
            connection.execute(text("DROP FUNCTION refuse CASCADE"))
        wait_until(lambda: done == [job.id], 15, what="the job runs")

    # 50 ms that double, each cut by up to a half.
    assert errors.at[6] - errors.at[0] >= 0.5 * 0.05 * (2**6 - 1)


@pytest.mark.parametrize(
    ("broken", "mended", "told"),
    [
        (
            "ALTER TABLE bgjob_job DROP COLUMN unknown_since",
            "ALTER TABLE bgjob_job ADD COLUMN unknown_since timestamptz",
            "42703",
        ),
        ("ALTER TABLE bgjob_job RENAME TO away", "ALTER TABLE away RENAME TO bgjob_job", "42P01"),
        (
            "REVOKE UPDATE ON bgjob_job FROM {role}",
            "GRANT UPDATE ON bgjob_job TO {role}",
            "42501",
        ),
    ],
    ids=["column", "table", "privilege"],
)
def test_tables_that_break_under_a_worker_are_told_of_until_they_are_mended(
    engine: Engine, caplog: pytest.LogCaptureFixture, broken: str, mended: str, told: str
) -> None:
    """It neither ends nor hurries, and works on by itself; the command line logs it."""
    jobs = BGJob(MetaData())
    done: list[str] = []

    @jobs.handler("note", session=False)
    def note(ctx: Context) -> None:
        done.append(ctx.job.id)

    jobs.metadata.create_all(engine)
    role = f"worker_{engine.url.database}"
    errors = Errors()

    def run(statement: str) -> None:
        with engine.begin() as connection:
            connection.exec_driver_sql(statement.format(role=f'"{role}"'))

    run("CREATE ROLE {role} LOGIN PASSWORD 'test'")
    try:
        run("GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
        poor = create_engine(engine.url.set(username=role, password="test"))
        with Worker(jobs, poor, observers=[errors, LogObserver()], poll_interval=0.1):
            first = enqueue(engine, note)
            wait_until(lambda: done == [first.id], what="a job before")

            run(broken)
            wait_until(lambda: errors.states.count(told) >= 4, 20, what="errors that are told")
            run(mended)
            second = enqueue(engine, note)
            wait_until(lambda: done == [first.id, second.id], what="a job after")
        poor.dispose()
    finally:
        run("DROP OWNED BY {role}")
        run("DROP ROLE {role}")

    assert len(errors.at) < 100
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert any(told in warning for warning in warnings)
