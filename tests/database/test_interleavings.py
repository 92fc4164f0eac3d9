"""Two operations on jobs and workers at once: it is as if one came first.

Who enqueues with a unique key also writes a change, and a job that is claimed tells how many of
them it sees: so a caller who was told of a job that starts before his COMMIT is no serial order.
"""

from __future__ import annotations

import dataclasses
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Column, Text, column, text, values

from sqlalchemy_bgjob import JobAlreadyExists, Unique, enqueue, enqueue_from, enqueue_many
from sqlalchemy_bgjob._handlers.outcomes import COMPLETED, HAND_BACK, Kind, Settlement
from sqlalchemy_bgjob._lifecycle import claim as claims
from sqlalchemy_bgjob._lifecycle import rescue, settle
from sqlalchemy_bgjob._lifecycle import workers as worker_rows
from sqlalchemy_bgjob._lifecycle.dead_jobs import delete_old
from sqlalchemy_bgjob._lifecycle.settle import Pending
from sqlalchemy_bgjob._lifecycle.unknown_claims import return_unknown_claims
from support.interleavings import JUDGE, SILENT, THIRD, Again, Stage, make_stage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

    from support.databases import TestServer

QUEUED = Unique("queued", "queued")
KEYS = [Unique("dead"), Unique("running"), QUEUED]
"""In their order, as single enqueues must be that share a transaction."""
CHANGE = text("INSERT INTO change DEFAULT VALUES")
SEEN = text("SELECT count(*) FROM change")


def _name(id: str) -> str:
    """The id of a job of the scene, or of one that was given; else there is one only."""
    return id if id[0].isalpha() else "it"


class JobStage(Stage):
    """What workers, callers and operators do to jobs."""

    def claim(self, connection: Connection) -> Any:
        with connection.begin():
            claimed = claims.claim(
                connection, self.statements, queue="q", limit=10, worker_id=THIRD
            )
            # Not after the COMMIT: who has waited for that may have committed a change by then.
            seen = connection.execute(SEEN).scalar_one()
        return sorted(f"{_name(job.id)} sees {seen}" for job in claimed)

    def _changes(self) -> int:
        """How many there are for a run that starts now."""
        with self.engine.connect() as connection:
            return int(connection.execute(SEEN).scalar_one())

    def take(self, connection: Connection) -> Any:
        return Again(self.claim(connection))

    # ---- with unique keys ---------------------------------------------------------------------

    def same(self, connection: Connection) -> Any:
        """Enqueue jobs with the unique keys of all the others, in bulk."""
        new = [f"new-{n}" for n in range(len(KEYS))]
        with connection.begin():
            return enqueue_many(
                connection,
                self.another,
                list(range(len(KEYS))),
                ids=new,
                unique=KEYS.__getitem__,
                on_conflict="ignore",
            )

    def skip(self, connection: Connection) -> Any:
        return self._enqueue(connection, *KEYS)

    def raises(self, connection: Connection) -> Any:
        return self._enqueue(
            connection, *(dataclasses.replace(key, on_conflict="raise") for key in KEYS)
        )

    def replace(self, connection: Connection) -> Any:
        return self._enqueue(connection, dataclasses.replace(QUEUED, on_conflict="replace"))

    def earlier(self, connection: Connection) -> Any:
        return self._enqueue(connection, dataclasses.replace(QUEUED, on_conflict="earlier"))

    def in_period(self, connection: Connection) -> Any:
        return self._enqueue(connection, Unique("a", period=60), Unique("b", period=60))

    def _enqueue(self, connection: Connection, *keys: Unique) -> list[str]:
        """One after the other; and what the caller was told. His transaction goes on."""
        told = []
        with connection.begin():
            for key in keys:
                try:
                    ref = enqueue(connection, self.another, 1, priority=-1, unique=key)
                    told.append(f"{_name(ref.id)} {'is new' if ref.inserted else 'is there'}")
                except JobAlreadyExists as error:
                    told.append(f"{[_name(id) for id in error.ids]} exists")
            connection.execute(CHANGE)
        return told

    def all_in_period(self, connection: Connection) -> Any:
        with connection.begin():
            made = enqueue_many(
                connection, self.another, ["b", "a"], unique=lambda key: Unique(key, period=60)
            )
        return made.inserted

    def of_a_query(self, connection: Connection) -> Any:
        rows = values(Column("key", Text), name="given").data([("queued",), ("other",)])
        unique = Unique(column("key"), "queued")
        with connection.begin():
            new = enqueue_from(connection, self.another, rows.select(), unique=unique)
            connection.execute(CHANGE)
        return new

    # ---- workers ------------------------------------------------------------------------------

    def work_one(self, connection: Connection) -> Any:
        """The two jobs, each by its id."""

        def work(id: str) -> str:
            seen = 0

            def handle(ctx: Any) -> None:
                nonlocal seen
                seen = self._changes()

            outcome = self.jobs.work_one(connection, id=id, handler=handle)
            return f"{id} sees {seen}: {type(outcome).__name__}"

        with connection.begin():
            return [work(id) for id in ("queued", "running")]

    def work_on_what_is_free(self, connection: Connection) -> Any:
        return Again(done for done in self.work_one(connection) if not done.endswith("NoneType"))

    def beat(self, connection: Connection) -> Any:
        gap = worker_rows.beat(connection, self.statements, worker_id=SILENT, listener=None)
        return gap is not None

    def _settle(self, connection: Connection, settlement: Settlement) -> Any:
        items = [Pending(job, settlement) for job in self.held]
        return settle.settle(connection, self.statements, items)

    def complete(self, connection: Connection) -> Any:
        """By the statement that ends cancelled jobs, and drops those that have expired, too."""
        return self._settle(connection, COMPLETED)

    def retry(self, connection: Connection) -> Any:
        return self._settle(connection, Settlement(Kind.RETRY, delay=0.0, error="failed"))

    def bury(self, connection: Connection) -> Any:
        return self._settle(connection, Settlement(Kind.DEAD, error="given up"))

    def hand_back(self, connection: Connection) -> Any:
        return self._settle(connection, HAND_BACK)

    def reconcile(self, connection: Connection) -> Any:
        return return_unknown_claims(connection, self.statements, worker_id=SILENT, known=())

    def rescue(self, connection: Connection) -> Any:
        return rescue.rescue_silent(connection, self.statements, judge=JUDGE, connected=1000.0)

    def cancel(self, connection: Connection) -> Any:
        """What is queued, and what runs."""
        with connection.begin():
            return self.jobs.cancel_where(connection, self.jobs.Job.type == "t")

    def cancel_each(self, connection: Connection) -> Any:
        with connection.begin():
            # In the order of all statements that lock several: those without a key come first.
            return {id: self.jobs.cancel(connection, id) for id in ("running", "queued")}

    def edit(self, connection: Connection) -> Any:
        """What is queued, as it was seen, and what runs."""
        with connection.begin():
            return [
                self.jobs.edit(connection, "running", priority=-1),
                self.jobs.edit(connection, "queued", lease=4000, arg="new", priority=-1),
            ]

    def redrive(self, connection: Connection) -> Any:
        with connection.begin():
            return self.jobs.redrive(connection, self.jobs.DeadJob.job_id == "dead")

    def prune(self, connection: Connection) -> Any:
        with connection.begin():
            return self.jobs.prune(connection, 1800)

    def retain(self, connection: Connection) -> Any:
        """As a worker deletes what is older than its ``dead_keep``."""
        return delete_old(connection, self.statements, keep=1800, limit=10)

    def settle_down(self, name: str, answer: Any) -> Any:
        with self.engine.connect() as connection:
            match name:
                case "reconcile" | "retain":
                    return answer + getattr(self, name)(connection)
                case "rescue":
                    rest = rescue.rescue_rest(connection, self.statements)
                    return sum(worker.jobs for worker in (*answer, *rest)), bool(answer)
                case _:
                    return super().settle_down(name, answer)


OPERATIONS = (
    "claim",
    "beat",
    "complete",
    "retry",
    "bury",
    "hand_back",
    "reconcile",
    "rescue",
    "cancel",
    "redrive",
    "prune",
    "same",
)
OF_THE_HOLDER = ("complete", "retry", "bury", "hand_back", "reconcile", "rescue")
WAYS = ("skip", "raises", "replace", "earlier", "of_a_query")
PAIRS = [
    *combinations_with_replacement(OPERATIONS, 2),
    *((other, "work_one") for other in ("claim", *OF_THE_HOLDER, "cancel", "work_one")),
    *((other, "cancel_each") for other in ("claim", *OF_THE_HOLDER, "same", "cancel_each")),
    ("cancel", "cancel_each"),
    ("cancel_each", "work_one"),
    *combinations_with_replacement(WAYS, 2),
    *((way, other) for way in WAYS for other in ("take", "work_on_what_is_free", "cancel_each")),
    *(("skip", other) for other in (*OF_THE_HOLDER, "redrive")),
    *combinations_with_replacement(("in_period", "all_in_period"), 2),
    *((other, "retain") for other in ("bury", "redrive", "prune", "retain")),
    ("same", "work_on_what_is_free"),
    *((other, "edit") for other in ("take", *OF_THE_HOLDER, "cancel", "cancel_each", "edit")),
    *((other, "edit") for other in ("replace", "earlier", "work_on_what_is_free")),
]
# Who is told of a job locks it, and a claim passes it by until the next one.
PAIRS[PAIRS.index(("claim", "same"))] = ("take", "same")


@pytest.fixture(scope="module")
def stage(server: TestServer) -> Iterator[JobStage]:
    with make_stage(server, JobStage) as stage:
        yield stage


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=["-".join(pair) for pair in PAIRS])
def test_it_is_as_if_one_came_first(stage: JobStage, first: str, second: str) -> None:
    stage.check(first, second)
