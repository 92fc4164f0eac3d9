"""What a schedule is to enqueue and when: declared in code or put as a row, and checked alike."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict, TypeVar, get_args

from .._drafts import validation
from .._misuse import name_of, refuse_unknown
from .registry import JobType, Registry
from .timetable import MISSED, Missed, Timetable, as_text, every, timetable

if TYPE_CHECKING:
    from .._drafts.options import JobOptions

A = TypeVar("A")

Overlap = Literal["skip", "allow"]
"""What becomes of a fire time while the job of an earlier one is queued."""
_OVERLAPS: Final[tuple[Overlap, ...]] = get_args(Overlap)


class ScheduleOptions(TypedDict, total=False):
    """Options of a schedule, in code and as a row."""

    every: float | timedelta | None
    timezone: str
    missed: Missed
    overlap: Overlap
    queue: str | None
    priority: int
    headers: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Definition:
    """A schedule as its author wrote it; each field is a column of the table of schedules."""

    name: str
    type: str
    queue: str
    priority: int
    arg: bytes | None
    headers: dict[str, Any] | None
    cron: str
    timezone: str
    missed: str
    overlap: str

    @property
    def timetable(self) -> Timetable:
        """When it fires."""
        return timetable(self.cron, self.timezone)

    def columns(self) -> dict[str, Any]:
        """Its fields by name."""
        return asdict(self)


def define(
    call: str,
    handler: JobType[Any],
    cron: object,
    name: object,
    arg: Any,
    options: ScheduleOptions,
) -> Definition:
    """Check and encode a schedule.

    Raises:
        TypeError: An argument is of another type, or the handler serves a queue's unknown types.
        ValueError: The expression or the zone is not known, or there is no such time.
        InvalidArg: The handler does not take the arg.
    """
    refuse_unknown(call, options, ScheduleOptions)
    interval = options.get("every")
    if (cron is None) == (interval is None):
        raise TypeError(f"{call} takes a cron expression or every=, one of them")
    if handler.type == "*":
        raise TypeError(
            "a default handler has no type that a schedule could enqueue; write "
            "@jobs.schedule(...) above @jobs.handler(...)"
        )
    expression = as_text("cron", cron) if interval is None else every(interval)
    table = timetable(expression, as_text("timezone", options.get("timezone", "UTC")))
    missed = _one_of("missed", options.get("missed", "one"), MISSED)
    overlap = _one_of("overlap", options.get("overlap", "skip"), _OVERLAPS)
    if missed == "all" and overlap == "skip":
        raise ValueError(
            "missed='all' may enqueue many jobs at once, of which overlap='skip' would leave one; "
            "give overlap='allow'"
        )
    of_jobs: JobOptions = {
        "queue": options.get("queue"),
        "priority": options.get("priority", 0),
        "headers": options.get("headers"),
    }
    draft = handler.draft(arg, None, of_jobs, is_enqueued=False)
    common = draft.common
    return Definition(
        name=validation.name("name", name),
        type=common.type,
        queue=common.queue,
        priority=common.priority,
        arg=draft.arg,
        headers=common.headers,
        cron=table.expression,
        timezone=table.timezone,
        missed=missed,
        overlap=overlap,
    )


def in_code(
    registry: Registry, cron: object, name: str | None, arg: Any, options: ScheduleOptions
) -> Callable[[JobType[A]], JobType[A]]:
    """See :meth:`BGJob.schedule`."""
    if callable(cron):
        raise TypeError(
            f"@jobs.schedule got {name_of(cron)} instead of a cron expression; write for example "
            f"@jobs.schedule('@daily')"
        )

    def register(handler: JobType[A]) -> JobType[A]:
        if not isinstance(handler, JobType):
            raise TypeError(
                f"{name_of(handler)} is not a registered handler; write @jobs.schedule(...) above "
                f"@jobs.handler(...), and not below it"
            )
        own = handler.type if name is None else name
        made = define("BGJob.schedule", handler, cron, own, arg, options)
        if made.name in registry.schedules:
            raise ValueError(
                f"a schedule is called {made.name!r} already; give another one by name="
            )
        registry.schedules[made.name] = made
        return handler

    return register


def _one_of(what: str, value: object, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"{what}={value!r} is not one of {', '.join(map(repr, allowed))}")
    return str(value)
