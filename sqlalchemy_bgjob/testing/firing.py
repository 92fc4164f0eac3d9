"""Schedules meet their times within a test, by the statement that fires them in production."""

from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple, overload

from .._db.targets import SyncTarget, Unit
from .._drafts import validation
from .._drafts.ids import new_id
from .._handlers.timetable import begin, timetable
from .._lifecycle.fire import columns_of
from .._sql.words import parameters
from .target import OnTarget, is_engine

if TYPE_CHECKING:
    from .._db.targets import AsyncTarget

MOST_TIMES: Final = 1_000
"""How many times schedules may meet in one call."""


class Fired(NamedTuple):
    """A time at which a schedule has fired."""

    name: str
    """The name of the schedule."""
    at: datetime
    """The fire time, in UTC."""


class Firing(OnTarget):
    """What makes schedules fire."""

    @overload
    def fire_schedules(
        self, target: SyncTarget, *names: str, until: datetime | timedelta
    ) -> list[Fired]: ...
    @overload
    def fire_schedules(
        self, target: "AsyncTarget", *names: str, until: datetime | timedelta
    ) -> Coroutine[Any, Any, list[Fired]]: ...
    def fire_schedules(self, target: Any, *names: str, until: datetime | timedelta) -> Any:
        """Let schedules fire at all their times until a moment, in the order of time.

        They are those of the code and those put as rows, without the paused ones. Their jobs are
        due now, and name their time in the header ``bgjob-fire-time``. ``overlap="skip"`` holds.
        Run the jobs by :meth:`JobKit.work_due`.

        Args:
            target: A Session or Connection in a transaction, or an asyncio twin.
            *names: The names of schedules; these alone fire. By default all do.
            until: An aware datetime, or a timedelta from now, by the database's clock.

        Returns:
            A ``Fired`` for each time.

        Raises:
            LookupError: There is no schedule of such a name.
            RuntimeError: These are more than a thousand times.
        """
        if is_engine(target):
            raise TypeError("fire_schedules works in a transaction of yours: give it a Session")
        if not isinstance(until, timedelta):
            until = validation.moment("until", until)
        its, fires = self._statements.schedules, self._statements.fire
        definitions = self.jobs.registry.schedules.values()

        def work(unit: Unit) -> list[Fired]:
            now = unit.execute(its.now).scalar_one()
            end = now + until if isinstance(until, timedelta) else until
            for made in definitions:
                times = columns_of(begin(made.timetable, now))
                unit.execute(fires.add, parameters(**made.columns(), **times))
            given = parameters(names=list(names))
            there = {row.name for row in unit.execute(fires.in_code, given)}
            for name in names:
                if name not in there:
                    known = ", ".join(sorted(self.jobs.registry.schedules)) or "none"
                    raise LookupError(f"no schedule is called {name!r} (in code: {known})")
            met: list[Fired] = []
            while row := unit.execute(its.make_due, {**given, **parameters(until=end)}).first():
                if len(met) >= MOST_TIMES:
                    raise RuntimeError(
                        f"schedules fire more than {MOST_TIMES} times until {end}: {row.name!r} "
                        f"({row.cron}) is the next one; name the schedules, or let less time pass"
                    )
                at = row.meant_for.astimezone(UTC)
                fire = parameters(
                    name=row.name,
                    first=row.next_at,
                    last=at,
                    missed_from=None,
                    missed_until=None,
                    following=timetable(row.cron, row.timezone).after(at),
                    ids=[new_id()],
                    fire_times=[at.isoformat()],
                )
                unit.execute(fires.fire, fire)
                met.append(Fired(row.name, at))
            return met

        return self._in(target, work, "fire_schedules")
