"""Two who fire or change schedules, or set what holds for queues, at once: as if one came first."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from itertools import chain, combinations_with_replacement
from typing import TYPE_CHECKING, Any

import pytest

from sqlalchemy_bgjob import Unique, enqueue
from sqlalchemy_bgjob._handlers.schedules import define
from sqlalchemy_bgjob._handlers.timetable import due, timetable
from sqlalchemy_bgjob._lifecycle.fire import Serves, fire, keep_code, look_at_schedules
from support.interleavings import THIRD, Again, Stage, make_stage
from support.rows import claim as claim_now

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

    from support.databases import TestServer


class ScheduleStage(Stage):
    """A schedule of the code and two that were put, of which one is paused; all of the past.

    The job that is queued is of the one that was put and is not paused.
    """

    queued_key = "q:cron:put"

    def fire(self, connection: Connection) -> Any:
        return self._fire(connection, Serves([], ["q"], ["t"], []))

    def fire_code(self, connection: Connection) -> Any:
        return self._fire(connection, Serves(["code"], [], [], []))

    def _fire(self, connection: Connection, serves: Serves) -> list[str]:
        """As a worker does: look, and fire what is due."""
        return Again(
            it.name
            for it in look_at_schedules(connection, self.statements, serves)
            if it.next_at <= it.now
            and fire(
                connection,
                self.statements,
                it,
                due(timetable(it.cron, it.timezone), it.next_at, it.now, it.missed),
            )
        )

    def keep_code(self, connection: Connection) -> Any:
        """As a worker does that starts with a newer code."""
        made = define("test", self.handler, "@yearly", "code", "new", {})
        return keep_code(connection, self.statements, [made], starting=True)

    def do(self, connection: Connection, what: str, name: str) -> Any:
        with connection.begin():
            if what == "put":
                done = self.jobs.schedules.put(connection, name, self.handler, "new", cron="@daily")
            else:
                try:
                    done = getattr(self.jobs.schedules, what)(connection, name)
                except LookupError:
                    return "there is none"
        return done > datetime.now(UTC) if isinstance(done, datetime) else bool(done)

    def __getattr__(self, name: str) -> Any:
        """Such as ``pause_code``: to pause the schedule of the code."""
        what, _, which = name.rpartition("_")
        if which not in ("put", "paused", "code"):
            raise AttributeError(name)
        return partial(self.do, what=what, name=which)

    # ---- jobs ---------------------------------------------------------------------------------

    def take(self, connection: Connection) -> Any:
        claimed = claim_now(connection, self.statements, worker_id=THIRD)
        return Again(job.id for job in claimed if job.id == "queued")

    def work_one(self, connection: Connection) -> Any:
        with connection.begin():
            outcome = self.jobs.work_one(connection, id="queued", handler=lambda ctx: None)
            return type(outcome).__name__

    def cancel(self, connection: Connection) -> Any:
        with connection.begin():
            return self.jobs.cancel(connection, "queued")

    def same(self, connection: Connection) -> Any:
        """Enqueue a job with the key of those that the schedule fires, as SQL still can."""
        with connection.begin():
            unique = Unique("put", "queued", on_conflict="replace")
            object.__setattr__(unique, "key", "cron:put")
            return enqueue(connection, self.handler, "same", unique=unique).inserted

    # ---- queues -------------------------------------------------------------------------------

    def pause_queue(self, connection: Connection) -> Any:
        with connection.begin():
            return [self.jobs.pause(connection, queue, by="ada") for queue in ("both", "none")]

    def resume_queue(self, connection: Connection) -> Any:
        with connection.begin():
            return [self.jobs.resume(connection, queue) for queue in ("both", "none")]

    def set_slots(self, connection: Connection) -> Any:
        with connection.begin():
            return [self.jobs.set_slots(connection, queue, 7) for queue in ("both", "none")]

    def unset_slots(self, connection: Connection) -> Any:
        with connection.begin():
            return [self.jobs.set_slots(connection, queue, None) for queue in ("both", "none")]

    def settle_down(self, name: str, answer: Any) -> Any:
        if name == "keep_code":
            with self.engine.connect() as connection:
                self.keep_code(connection)
        return super().settle_down(name, answer)


OF_ONE = (
    ("fire", "put_put", "pause_put", "run_now_put", "remove_put"),
    ("fire_code", "keep_code", "pause_code", "remove_code"),
    ("resume_paused", "put_paused", "pause_paused", "remove_paused"),
    ("pause_queue", "resume_queue", "set_slots", "unset_slots"),
)
PAIRS = [
    *chain.from_iterable(combinations_with_replacement(some, 2) for some in OF_ONE),
    *(("fire", other) for other in ("take", "work_one", "cancel", "same")),
]


@pytest.fixture(scope="module")
def stage(server: TestServer) -> Iterator[ScheduleStage]:
    with make_stage(server, ScheduleStage) as stage:
        yield stage


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=["-".join(pair) for pair in PAIRS])
def test_it_is_as_if_one_came_first(stage: ScheduleStage, first: str, second: str) -> None:
    stage.check(first, second)
