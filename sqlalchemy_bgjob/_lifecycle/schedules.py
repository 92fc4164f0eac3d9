"""``jobs.schedule`` and ``jobs.schedules``: what users do to schedules, in their own transaction.

Nothing is committed here, except when the target is an Engine.
"""

from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar, Unpack, overload

from .._db.targets import SyncTarget, Unit, run_in
from .._drafts import validation
from .._drafts.ids import new_id
from .._handlers.registry import JobType, Registry
from .._handlers.schedules import Definition, ScheduleOptions, define, in_code
from .._handlers.timetable import begin, timetable
from .._misuse import name_of
from .._sql import Statements, statements_of
from .._sql.schedules import FIRE_TIME_HEADER, SCHEDULE_HEADER
from .._sql.words import parameters
from ..models import Models
from .fire import columns_of, gap_of, times_of

if TYPE_CHECKING:
    from .._db.targets import AsyncTarget

A = TypeVar("A")

_TRIES: Final = 100
"""How often it is looked whether a schedule is there that could not be inserted."""


class Schedules:
    """Schedules as rows, which your own transactions put, pause and remove: ``jobs.schedules``.

    The first argument of each method is a Session, scoped_session, Connection or Engine, or an
    asyncio twin; then await the result. The caller commits; an Engine is a transaction of its own.
    Workers that listen hear of a change at the commit, and the others when a fire time is due.
    ``jobs.Schedule`` is the mapped class of the rows.
    """

    def __init__(self, models: Models, registry: Registry) -> None:
        self._models, self._registry = models, registry
        self._statements: Statements = statements_of(models)

    @overload
    def put(
        self,
        target: SyncTarget,
        name: str,
        handler: JobType[A],
        arg: A | None = None,
        *,
        cron: str | None = None,
        **options: Unpack[ScheduleOptions],
    ) -> datetime | None: ...
    @overload
    def put(
        self,
        target: "AsyncTarget",
        name: str,
        handler: JobType[A],
        arg: A | None = None,
        *,
        cron: str | None = None,
        **options: Unpack[ScheduleOptions],
    ) -> Coroutine[Any, Any, datetime | None]: ...
    def put(
        self,
        target: Any,
        name: str,
        handler: JobType[Any],
        arg: Any = None,
        *,
        cron: str | None = None,
        **options: Unpack[ScheduleOptions],
    ) -> Any:
        """Add a schedule, or change the one of this name. A paused one stays paused.

        Workers fire it if they know the handler's type and serve the queue. If its times stay the
        same, none is missed, so an application may put its schedules at each start.

        Args:
            target: The owner of the transaction.
            name: The schedule's name, at most 128 characters.
            handler: A function registered with ``@jobs.handler``.
            arg: What the handler gets, each time.
            cron: When it fires; or give *every*. These and the other options are those of
                ``@jobs.schedule``.

        Returns:
            When it fires next, in UTC; None if it is paused.

        Raises:
            ValueError: The expression or the zone is not known, there is no such time, or a worker
                has a schedule of this name in its code.
            InvalidArg: The handler does not take the arg.
            TypeError: *handler* is not registered, or not exactly one of *cron* and *every* is
                given.
        """
        if not isinstance(handler, JobType):
            raise TypeError(
                f"{name_of(handler)} is not a registered handler; decorate it with "
                f"@jobs.handler(...)"
            )
        made = define("Schedules.put", handler, cron, name, arg, options)

        def work(unit: Unit) -> datetime | None:
            next_at = self._put(unit, made)
            self._tell(unit)
            return next_at

        return run_in(target, self._models, work, call="Schedules.put")

    @overload
    def pause(
        self, target: SyncTarget, name: str, *, by: str | None = None, reason: str | None = None
    ) -> bool: ...
    @overload
    def pause(
        self, target: "AsyncTarget", name: str, *, by: str | None = None, reason: str | None = None
    ) -> Coroutine[Any, Any, bool]: ...
    def pause(
        self, target: Any, name: str, *, by: str | None = None, reason: str | None = None
    ) -> Any:
        """Let a schedule fire no more until it is resumed, be it one of the code or a row.

        Args:
            target: The owner of the transaction.
            name: The schedule's name.
            by: Who pauses it, for others to read; at most 1,000 characters.
            reason: Why; at most 1,000 characters.

        Returns:
            False if there is no such schedule. One that is declared in code has its row once a
            worker with that code has started.

        Raises:
            ValueError: A text is too long, or can't be stored.
        """
        given = parameters(
            name=validation.name("name", name),
            by=validation.words("by", by),
            reason=validation.words("reason", reason),
        )
        pause = self._statements.schedules.pause

        def work(unit: Unit) -> bool:
            return unit.execute(pause, given).first() is not None

        return run_in(target, self._models, work, call="Schedules.pause")

    @overload
    def resume(self, target: SyncTarget, name: str) -> datetime | None: ...
    @overload
    def resume(self, target: "AsyncTarget", name: str) -> Coroutine[Any, Any, datetime | None]: ...
    def resume(self, target: Any, name: str) -> Any:
        """Let a paused schedule fire again. Times that fell into the pause are not made up for.

        Args:
            target: The owner of the transaction.
            name: The schedule's name.

        Returns:
            When it fires next, in UTC; None if no paused schedule has this name.
        """
        given = parameters(name=validation.name("name", name))
        its = self._statements.schedules

        def work(unit: Unit) -> datetime | None:
            row = unit.execute(its.locked, given).first()
            if row is None or not row.is_paused:
                return None
            table = timetable(row.cron, row.timezone)
            times = begin(table, row.now, gap_of(row), row.last_at)
            unit.execute(its.resume, given | parameters(**columns_of(times)))
            self._tell(unit)
            return times.next_at

        return run_in(target, self._models, work, call="Schedules.resume")

    @overload
    def run_now(self, target: SyncTarget, name: str) -> str: ...
    @overload
    def run_now(self, target: "AsyncTarget", name: str) -> Coroutine[Any, Any, str]: ...
    def run_now(self, target: Any, name: str) -> Any:
        """Enqueue a schedule's job now, even if it is paused or has a job in the queue.

        When it fires next stays as it is. A schedule in the code of this process needs no row yet.

        Args:
            target: The owner of the transaction.
            name: The schedule's name.

        Returns:
            The id of the job.

        Raises:
            LookupError: There is no such schedule.
        """
        name = validation.name("name", name)
        made = self._registry.schedules.get(name)
        its = self._statements.schedules

        def work(unit: Unit) -> str:
            id, time = new_id(), unit.execute(its.now).scalar_one().astimezone(UTC).isoformat()
            given = parameters(name=name, id=id, fire_time=time)
            if unit.execute(its.run_now(unit.can_notify), given).first() is None:
                if made is None:
                    raise LookupError(
                        f"no schedule is called {name!r}; one that is declared in code has its "
                        f"row once a worker with that code has started"
                    )
                self._enqueue(unit, made, id, time)
            return id

        return run_in(target, self._models, work, call="Schedules.run_now")

    @overload
    def remove(self, target: SyncTarget, name: str) -> bool: ...
    @overload
    def remove(self, target: "AsyncTarget", name: str) -> Coroutine[Any, Any, bool]: ...
    def remove(self, target: Any, name: str) -> Any:
        """Delete a schedule. Jobs that it has enqueued stay.

        A schedule of the code comes back while a worker has it in its code: pause it instead.

        Args:
            target: The owner of the transaction.
            name: The schedule's name.

        Returns:
            False if there is no such schedule.
        """
        given = parameters(name=validation.name("name", name))
        remove = self._statements.schedules.remove

        def work(unit: Unit) -> bool:
            return unit.execute(remove, given).first() is not None

        return run_in(target, self._models, work, call="Schedules.remove")

    def _put(self, unit: Unit, made: Definition) -> datetime | None:
        """Add a schedule, or change it; returns when it fires next.

        One that fires at the same times as before keeps its next one, and a paused one stays so.
        """
        its, table = self._statements.schedules, made.timetable
        for _ in range(_TRIES):
            row = unit.execute(its.locked, parameters(name=made.name)).first()
            if row is None:
                times = begin(table, unit.execute(its.now).scalar_one())
                given = parameters(**made.columns(), **columns_of(times))
                if unit.execute(its.add, given).first() is not None:
                    return times.next_at
                continue  # somebody else has added it meanwhile
            if row.source != "data":
                raise ValueError(
                    f"the schedule {made.name!r} is one of the code of a worker; give this one "
                    f"another name"
                )
            columns = times_of(table, row)
            unit.execute(its.change, parameters(**made.columns(), **columns))
            return columns["next_at"]
        raise RuntimeError(
            f"the schedule {made.name!r} can't be inserted, and no other one has its name; look "
            f"for a trigger on the table of schedules, or a policy that hides rows from this role"
        )

    def _enqueue(self, unit: Unit, made: Definition, id: str, fire_time: str) -> None:
        marks = {SCHEDULE_HEADER: made.name, FIRE_TIME_HEADER: fire_time}
        given = parameters(
            id=id,
            queue=made.queue,
            type=made.type,
            arg=made.arg,
            priority=made.priority,
            headers={**(made.headers or {}), **marks},
            delay=None,
            run_at=None,
        )
        unit.execute(self._statements.enqueue.job(unit.can_notify), given)

    def _tell(self, unit: Unit) -> None:
        if unit.can_notify:
            unit.execute(self._statements.schedules.notify)


class HasSchedules:
    """The part of :class:`~sqlalchemy_bgjob.BGJob` that is about schedules."""

    models: Models
    registry: Registry

    def schedule(
        self,
        cron: str | None = None,
        *,
        name: str | None = None,
        arg: Any = None,
        **options: Unpack[ScheduleOptions],
    ) -> Callable[[JobType[A]], JobType[A]]:
        """Enqueue a handler's job again and again. It stands above ``@jobs.handler``.

        Workers that have the schedule in their code fire it, at most once for each time; they need
        no leader. Several may stand above one handler, each with a name of its own. What is due is
        decided by the database's clock.

        Args:
            cron: Five fields, as in ``"0 9 * * mon-fri"``, or six with seconds as the first; or
                ``@hourly``, ``@daily``, ``@weekly``, ``@monthly``, ``@yearly``. The library cronsim
                reads them, as Debian's cron does, also where clocks are set forward or back.
            every: An interval instead, of at least a second: seconds or a timedelta. It fires at
                multiples of it since 1970 in UTC.
            timezone: The IANA name of the zone in which *cron* is meant; by default UTC.
            name: Its name in the table; by default the handler's type.
            arg: What the handler gets, each time.
            missed: What becomes of times at which no worker ran. ``"one"``, the default, is one job
                for all of them. ``"none"`` is no job for what is more than a minute late. ``"all"``
                is one for each, of the latest 100; it needs ``overlap="allow"``.
            overlap: ``"skip"``, the default, leaves out a time while the job of an earlier one is
                queued, and no worker has taken that up yet; ``"allow"`` does not.
            queue: Another queue than the handler's.
            priority: As for ``enqueue``.
            headers: As for ``enqueue``. ``bgjob-schedule`` and ``bgjob-fire-time`` are added.

        Raises:
            ValueError: The expression or the zone is not known, there is no such time, or the name
                is taken.
            InvalidArg: The handler does not take the arg.
            TypeError: It does not stand above ``@jobs.handler``, or not exactly one of *cron* and
                *every* is given.
        """
        return in_code(self.registry, cron, name, arg, options)

    @property
    def schedules(self) -> Schedules:
        """The methods that put, pause, resume, run now and remove schedules."""
        return Schedules(self.models, self.registry)
