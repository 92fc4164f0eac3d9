"""Checks of arguments that all ways to enqueue share."""

from typing import Any, Final

from .._drafts.options import InsertOptions, OnConflict
from .._handlers.registry import JobType
from .._misuse import name_of

_WORDS: Final[dict[OnConflict, str]] = {"raise": "raise", "ignore": "skip"}


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
    """What to do about duplicate ids; a ValueError for an unknown word, or one without an id."""
    on_conflict: OnConflict = options.get("on_conflict", "raise")
    if on_conflict not in ("raise", "ignore"):
        raise ValueError(f"on_conflict={on_conflict!r} is neither 'raise' nor 'ignore'")
    about_ids = options.get("id") is not None or options.get("ids") is not None
    if "on_conflict" in options and options.get("unique") is not None and not about_ids:
        raise ValueError(
            f"on_conflict= is about ids of your own; what is done about a job with the same unique "
            f"key is said in it: unique=Unique(key, on_conflict={_WORDS[on_conflict]!r})"
        )
    return on_conflict
