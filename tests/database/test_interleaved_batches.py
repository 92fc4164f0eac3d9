"""Two operations on the jobs of a batch at once: it is as if one came first.

And the batch is finished at the end of both, if none of its jobs is left that it waits for: by
whoever ended the last one, or where a user's transaction has, by the leader.
"""

from __future__ import annotations

from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, Any

import pytest

from sqlalchemy_bgjob._handlers.outcomes import COMPLETED, Kind, Settlement
from sqlalchemy_bgjob._lifecycle import batches, settle
from sqlalchemy_bgjob._lifecycle.settle import Fate, Pending
from support.interleavings import THIRD, Stage, make_stage
from support.rows import claim

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

    from support.databases import TestServer

_BATCH = """
    UPDATE bgjob_job SET batch_id = 'b';
    UPDATE bgjob_dead_job SET batch_id = 'b' WHERE id = 'd1';
    INSERT INTO bgjob_batch (id, total, closed_at, then_type, then_queue, on_dead)
    VALUES ('b', 3, now(), 'another', 'after', '{on_dead}');
"""
LOOKS = ("complete", "bury", "retry", "take")
"""Those after which the worker looks."""


class BatchStage(Stage):
    """One job of a batch runs, one is queued, and one is dead."""

    on_dead = "continue"

    def set(self) -> None:
        super().set()
        with self.engine.begin() as connection:
            connection.exec_driver_sql(_BATCH.format(on_dead=self.on_dead))
        self.held[0].extras = [None, "b", None, None]

    def _end(self, connection: Connection, jobs: list[Any], settlement: Settlement) -> list[Any]:
        """As a worker does; what was locked is tried again, and looked at again, later."""
        fates = settle.settle(
            connection, self.statements, [Pending(job, settlement) for job in jobs]
        )
        ended = batches.batches_of(item for item, fate in fates if fate is Fate.SETTLED)
        if ended:
            batches.finish(connection, self.statements, ended)
        return fates

    def complete(self, connection: Connection) -> Any:
        return self._end(connection, self.held, COMPLETED)

    def bury(self, connection: Connection) -> Any:
        return self._end(connection, self.held, Settlement(Kind.DEAD, error="given up"))

    def retry(self, connection: Connection) -> Any:
        return self._end(connection, self.held, Settlement(Kind.RETRY, delay=60.0, error="failed"))

    def take(self, connection: Connection) -> Any:
        """Claim what is queued, and complete it."""
        jobs = claim(connection, self.statements, worker_id=THIRD)
        return self._end(connection, jobs, COMPLETED) and len(jobs)

    def work_one(self, connection: Connection) -> Any:
        """Take what is queued, complete it and look, in a caller's one transaction."""
        with connection.begin():
            return type(self.jobs.work_one(connection, "q")).__name__

    def cancel(self, connection: Connection) -> Any:
        """What is queued goes; what runs is asked to end."""
        with connection.begin():
            return self.jobs.cancel_where(connection, self.jobs.Job.batch_id == "b")

    def redrive(self, connection: Connection) -> Any:
        with connection.begin():
            return self.jobs.redrive(connection, self.jobs.DeadJob.job_id == "dead")

    def prune(self, connection: Connection) -> Any:
        with connection.begin():
            return self.jobs.prune(connection, 1800)

    def sweep(self, connection: Connection) -> Any:
        batches.look_through(connection, self.statements, after="", limit=10)

    def settle_down(self, name: str, answer: Any) -> Any:
        fates = [fate for _, fate in answer] if name in LOOKS[:3] else []
        with self.engine.connect() as connection:
            if Fate.LOCKED in fates:
                jobs = [item.job for item, _ in answer]
                answer = self._end(connection, jobs, answer[0][0].settlement)
            if name not in LOOKS:
                self.sweep(connection)
        return [fate for _, fate in answer] if name in LOOKS[:3] else answer


class StoppingStage(BatchStage):
    """The same, and the batch waits for its dead job."""

    on_dead = "stop"


ALL = (*LOOKS, "work_one", "cancel", "redrive", "sweep")
PAIRS = list(combinations_with_replacement(ALL, 2))
# Of a job that has been claimed and not yet completed, a cancel is told that it runs; to take it is
# two transactions, and a cancel between them is told so in neither order.
PAIRS.remove(("take", "cancel"))
STOPPING = ("complete", "bury", "redrive", "prune", "sweep")


@pytest.fixture(scope="module")
def stage(server: TestServer) -> Iterator[BatchStage]:
    with make_stage(server, BatchStage) as stage:
        yield stage


@pytest.fixture(scope="module")
def stopping(server: TestServer) -> Iterator[StoppingStage]:
    with make_stage(server, StoppingStage) as stage:
        yield stage


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_batches_are_as_if_one_came_first(stage: BatchStage, first: str, second: str) -> None:
    stage.check(first, second)


@pytest.mark.parametrize(("first", "second"), list(combinations_with_replacement(STOPPING, 2)))
def test_batches_that_stop_are_as_if_one_came_first(
    stopping: StoppingStage, first: str, second: str
) -> None:
    stopping.check(first, second)
