"""Checks of arguments that all ways to enqueue share."""

from typing import Any

from .._drafts.options import InsertOptions, OnConflict
from .._handlers.registry import JobType
from .._misuse import name_of


def registered(handler: object) -> JobType[Any]:
    """The handler itself; a TypeError with the remedy if it is not a registered one."""
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


def on_conflict_of(options: InsertOptions) -> OnConflict:
    """What to do about duplicates; a ValueError for an unknown word."""
    on_conflict = options.get("on_conflict", "raise")
    if on_conflict not in ("raise", "ignore"):
        raise ValueError(f"on_conflict={on_conflict!r} is neither 'raise' nor 'ignore'")
    return on_conflict
