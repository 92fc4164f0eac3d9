"""The options of a handler, declared once for all ways to register one."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Literal, Required, TypedDict

from .._drafts import validation
from .._misuse import refuse_unknown
from ..retry import DEFAULT, RetryPolicy
from ..settings import DEFAULT_MAX_ATTEMPTS

OnExpiry = Literal["dlq", "drop"]
ISOLATION_LEVELS: Final = ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")
MOST_IN_A_CHUNK: Final = 10_000
"""Jobs of one call."""


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
    chunk: int | None = None
    wait: float = 0.0
    record: float | None = None

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
        self._check_chunk()

    def _check_chunk(self) -> None:
        if self.chunk is None:
            if self.wait:
                raise ValueError(
                    f"wait={self.wait!r} is for handlers that take chunks; give chunk= too, the "
                    f"most jobs of one call"
                )
            return
        if not validation.is_int(self.chunk) or not 1 <= self.chunk <= MOST_IN_A_CHUNK:
            raise ValueError(
                f"chunk={self.chunk!r} is not 1 to {MOST_IN_A_CHUNK} jobs for one call"
            )
        if self.max_attempts == 1:
            raise ValueError(
                "max_attempts=1 goes with no chunk=: after a call for several jobs has failed, "
                "each of them needs a second attempt, alone, to show which one is to blame"
            )
        validation.seconds("wait", self.wait)


class HandlerKeywords(TypedDict, total=False):
    """The fields of HandlerOptions, as keywords of the methods that register a handler."""

    max_attempts: int | None
    retry: RetryPolicy
    timeout: float | timedelta | None
    isolation_level: str | None
    session: bool
    grace: float | timedelta | None
    on_expiry: OnExpiry
    record: float | timedelta | None


def keep_time(name: str, value: float | timedelta | None) -> float | None:
    """For how many seconds a record is kept; 0 is not at all, and None leaves it to others."""
    if isinstance(value, bool):
        raise TypeError(f"{name}={value!r} is no time; write for how long, as timedelta(days=7)")
    return None if value is None else validation.seconds(name, value)


class ChunkKeywords(HandlerKeywords, total=False):
    """The same of a handler that takes chunks."""

    chunk: Required[int]
    wait: float | timedelta


def handler_options(
    call: str, given: HandlerKeywords, declared: type[Any] = HandlerKeywords
) -> HandlerOptions:
    """Check the given options; the others get their defaults."""
    refuse_unknown(call, given, declared)
    options: dict[str, Any] = {**given}
    for name in ("timeout", "grace", "wait"):
        duration = options.pop(name, None)
        if duration is not None:
            options[name] = validation.seconds(name, duration)
    options["record"] = keep_time("record", options.get("record"))
    return HandlerOptions(**options)
