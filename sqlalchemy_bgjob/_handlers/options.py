"""The options of a handler, declared once for all ways to register one."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Literal, TypedDict

from .._drafts import validation
from .._misuse import refuse_unknown
from ..retry import DEFAULT, RetryPolicy
from ..settings import DEFAULT_MAX_ATTEMPTS

OnExpiry = Literal["dlq", "drop"]
ISOLATION_LEVELS: Final = ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerOptions:
    """How one handler's jobs are run and retried; ``BGJob.handler`` says what each means."""

    max_attempts: int | None = DEFAULT_MAX_ATTEMPTS
    retry: RetryPolicy = DEFAULT
    timeout: float | None = None
    isolation_level: str | None = None
    session: bool = True
    grace: float | None = None
    on_expiry: OnExpiry = "dlq"

    def __post_init__(self) -> None:
        attempts = self.max_attempts
        if attempts is not None and (not validation.is_int(attempts) or attempts < 1):
            raise ValueError(
                f"max_attempts={attempts!r} is not a number from 1, nor None for without end"
            )
        if attempts is not None and attempts > 1_000_000:
            raise ValueError(f"max_attempts={attempts!r} is above 1000000; None is without end")
        if not callable(self.retry):
            raise TypeError(
                f"retry={self.retry!r} is not callable; write constant(10) for 10 s after each "
                f"failure, exponential(...), or a function of attempt and error"
            )
        if self.timeout is not None and validation.seconds("timeout", self.timeout) == 0:
            raise ValueError("timeout=0 would end every run at once; None is without a limit")
        if self.grace is not None:
            validation.seconds("grace", self.grace)
        if self.isolation_level not in (None, *ISOLATION_LEVELS):
            raise ValueError(
                f"isolation_level={self.isolation_level!r} is not one of "
                f"{', '.join(ISOLATION_LEVELS)}"
            )
        if self.on_expiry not in ("dlq", "drop"):
            raise ValueError(
                f"on_expiry={self.on_expiry!r} is neither 'dlq', which keeps an expired job as a "
                f"dead one, nor 'drop', which deletes it"
            )


class HandlerKeywords(TypedDict, total=False):
    """The fields of HandlerOptions, as keywords of the methods that register a handler."""

    max_attempts: int | None
    retry: RetryPolicy
    timeout: float | timedelta | None
    isolation_level: str | None
    session: bool
    grace: float | timedelta | None
    on_expiry: OnExpiry


def handler_options(call: str, given: HandlerKeywords) -> HandlerOptions:
    """Check the given options; the others get their defaults."""
    refuse_unknown(call, given, HandlerKeywords)
    options: dict[str, Any] = {**given}
    for name in ("timeout", "grace"):
        duration = options.get(name)
        options[name] = None if duration is None else validation.seconds(name, duration)
    return HandlerOptions(**options)
