"""What all ways to enqueue check of what they are given."""

from typing import Any, Literal

from .._handlers.registry import JobType
from .._misuse import name_of

OnConflict = Literal["raise", "ignore"]


def registered(handler: object) -> JobType[Any]:
    """The handler; a TypeError that says what to do if it is none."""
    if isinstance(handler, str):
        raise TypeError(
            f"{handler!r} is a str, not a registered handler; by the name of its type a job is "
            f"enqueued with jobs.enqueue(target, {handler!r}, arg)"
        )
    if not isinstance(handler, JobType):
        name = name_of(handler)
        raise TypeError(
            f"{name} is not a registered handler; decorate it with @jobs.handler(...), or use "
            f"jobs.enqueue(target, 'type', arg, queue=...) where the handler can't be imported"
        )
    return handler


def check_on_conflict(on_conflict: str) -> None:
    """A ValueError for what is no such word."""
    if on_conflict not in ("raise", "ignore"):
        raise ValueError(f"on_conflict={on_conflict!r} is neither 'raise' nor 'ignore'")
