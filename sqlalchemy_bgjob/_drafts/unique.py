"""Unique keys: what a caller says of one, checked before any SQL. Pure."""

from dataclasses import KW_ONLY, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from . import validation

if TYPE_CHECKING:
    from sqlalchemy import ColumnExpressionArgument

Scope = Literal["live", "queued", "period"]
OnDuplicate = Literal["skip", "raise", "replace", "earlier"]
_PREFIXES: Final[dict[Scope, str]] = {"live": "l:", "queued": "q:", "period": ""}
OF_SCHEDULES: Final = "cron:"
"""Begins the keys of scope queued of jobs whose schedule skips times, and no others."""


@dataclass(frozen=True, slots=True)
class Unique:
    """A unique key: only one job has it at a time, so a second enqueue with it adds no job.

    All jobs of the table share one space of keys, whatever their queue and type; but keys of
    different scopes never meet. ``unique="sync:7"`` is short for ``unique=Unique("sync:7")``.

    Args:
        key: Text of at most 255 characters. For ``enqueue_from``, an expression of the query; where
            it is null, the row's job has no key.
        scope: For how long a job keeps others away. ``"live"``, the default, is until it is gone or
            dead. ``"queued"`` is until a worker takes it up, so that what changes while it runs
            leads to one more run.
        on_conflict: What is done if a job has the key. ``"skip"``, the default, leaves that job as
            it is. ``"raise"`` raises JobAlreadyExists. With scope queued there are two more:
            ``"replace"`` gives that job all that the new one would have had, except the id;
            ``"earlier"`` lets it run at the earlier of both times, at the lower number of both
            priorities.
        period: Seconds, or a timedelta, in place of a scope: for so long after a job was enqueued,
            by the database's clock, no other one with the key is added, whatever becomes of it.

    Raises:
        ValueError: A word is unknown, or does not go with the others; the key is empty or too long;
            or it is of scope queued and begins with ``cron:``, as those of schedules do.
        TypeError: *period* is neither seconds nor a timedelta. If the key is no text, ``enqueue``
            raises it.
    """

    key: "str | ColumnExpressionArgument[Any]"
    scope: Scope = "live"
    _: KW_ONLY
    on_conflict: OnDuplicate = "skip"
    period: float | timedelta | None = None

    def __post_init__(self) -> None:
        if isinstance(self.key, str):
            object.__setattr__(self, "key", validation.unique_key(self.key))
        if self.period is not None:
            if self.scope == "queued":
                raise ValueError("a unique key has a period= or the scope 'queued', not both")
            object.__setattr__(self, "scope", "period")
            object.__setattr__(self, "period", validation.seconds("period", self.period))
        elif self.scope == "period":
            raise ValueError("the scope 'period' needs its length: Unique(key, period=3600)")
        elif self.scope not in _PREFIXES:
            raise ValueError(f"scope={self.scope!r} is neither 'live' nor 'queued'")
        if self.scope == "queued" and isinstance(self.key, str):
            _check_is_no_schedules(self.key)
        if self.on_conflict not in get_args(OnDuplicate):
            words = ", ".join(map(repr, get_args(OnDuplicate)))
            raise ValueError(f"on_conflict={self.on_conflict!r} is none of {words}")
        if self.on_conflict in ("replace", "earlier") and self.scope != "queued":
            raise ValueError(
                f"on_conflict={self.on_conflict!r} changes a queued job, and one of scope "
                f"{self.scope!r} may run already; write Unique(key, 'queued', "
                f"on_conflict={self.on_conflict!r})"
            )

    @property
    def prefix(self) -> str:
        """What stands before the key in its column, so that scopes never meet."""
        return _PREFIXES[self.scope]

    @property
    def stored(self) -> str:
        """The key as it is stored."""
        return f"{self.prefix}{self.key}"

    @property
    def seconds(self) -> float | None:
        """The period's length."""
        return None if self.period is None else validation.seconds("period", self.period)


def _check_is_no_schedules(key: str) -> None:
    if key.startswith(OF_SCHEDULES):
        raise ValueError(
            f"unique={key!r}: keys of scope queued that begin with {OF_SCHEDULES!r} belong to "
            f"schedules, which would leave times out for such a job; begin it with another word"
        )


def checked(value: object, id: str | None = None) -> Unique | None:
    """What was given as ``unique=`` for a job, which may have an id of the caller's own.

    Raises:
        TypeError: It is neither a str nor a Unique of one.
        ValueError: The key's words do not go with an id.
    """
    if value is None:
        return None
    unique = value if isinstance(value, Unique) else Unique(validation.unique_key(value))
    validation.unique_key(unique.key)
    if id is not None:
        check_goes_with_id(unique)
    return unique


def check_goes_with_id(unique: Unique) -> None:
    """Refuse what can't be kept of a job that has an id of the caller's own."""
    if unique.on_conflict in ("replace", "earlier") or unique.scope == "period":
        word = "period=" if unique.scope == "period" else f"on_conflict={unique.on_conflict!r}"
        raise ValueError(
            f"a unique key with {word} goes with ids that the library makes; leave out the id of "
            f"your own, or the {word}"
        )


def split(stored: str | None, period_key: str | None = None) -> tuple[str | None, Scope | None]:
    """The key and the scope of a stored job."""
    if period_key is not None:
        return period_key, "period"
    for scope in ("live", "queued"):
        if stored is not None and stored.startswith(_PREFIXES[scope]):
            return stored.removeprefix(_PREFIXES[scope]), scope
    return stored, None
