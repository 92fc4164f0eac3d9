"""A database that answers and yet refuses every claim: the worker waits longer each time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from sqlalchemy import text
from sqlalchemy.orm import DeclarativeBase

from sqlalchemy_bgjob import BGJob, Context, Observer, Worker, enqueue
from support import wait_until

if TYPE_CHECKING:
    from sqlalchemy import Engine


class Errors(Observer):
    """When each error was told of."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def worker_error(self, error: BaseException) -> None:
        self.at.append(time.monotonic())


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
