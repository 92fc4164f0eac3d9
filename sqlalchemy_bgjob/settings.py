"""Settings of a worker, validated once, and the limits of what a job may hold."""

from dataclasses import dataclass, fields
from math import isfinite
from typing import Final, TypedDict

MAX_ARG_SIZE: Final = 1_048_576
"""Bytes of an encoded arg."""
MAX_NAME_LENGTH: Final = 128
"""Characters of a queue or a type."""
MAX_ID_LENGTH: Final = 255
"""Characters of an id that the caller gives to a job."""
MAX_ERROR_LENGTH: Final = 8_192
"""Characters of an error text kept in a row; longer ones lose their middle."""
DEFAULT_MAX_ATTEMPTS: Final = 20
DEFAULT_CONCURRENCY: Final = 10
"""Jobs of a queue that a worker runs at once, where nothing else is said."""
SPARE_CONNECTIONS: Final = 2
"""A worker's own: one to claim and settle on, one that handlers never wait for."""
STUCK_AFTER: Final = 15.0
"""Seconds beyond ``shutdown_timeout`` after which a worker that does not end is given up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerSettings:
    """How a worker behaves. Durations are seconds as float; every one must be finite.

    Raises:
        ValueError: A value is out of its range; the message names the range.
    """

    heartbeat_interval: float = 5.0
    """How often a worker says that it lives."""
    lease_timeout: float = 30.0
    """After how long a silence a worker's jobs are given to others."""
    rescue_interval: float = 5.0
    """How often each worker looks for silent ones."""
    death_check_interval: float = 1.0
    """How often each worker looks for ended processes by their database session."""
    orphan_interval: float = 60.0
    """How often each worker looks for jobs whose claim names no known worker."""
    health_interval: float = 60.0
    """How often one of the workers looks for what keeps the server from cleaning up."""
    poll_interval: float = 1.0
    """The longest a due job waits when no notification arrives."""
    shutdown_timeout: float = 25.0
    """How long a graceful stop waits for running jobs."""
    unknown_type_grace: float = 300.0
    """How long a job of an unknown type waits for a worker that knows it; 0 is not at all."""
    max_claim: int = 1_000
    """The most jobs of one claim."""
    hold_timeout: float = 1.0
    """After how long a claimed job that was not started is handed back."""
    listen: bool = True
    """Whether to LISTEN for wake-ups; polling goes on in any case."""

    def __post_init__(self) -> None:
        positive = (
            "heartbeat_interval",
            "lease_timeout",
            "rescue_interval",
            "death_check_interval",
            "orphan_interval",
            "health_interval",
            "poll_interval",
            "hold_timeout",
        )
        for name in positive:
            self._check(name, minimum=0.01)
        self._check("shutdown_timeout", minimum=0.0)
        self._check("unknown_type_grace", minimum=0.0)
        max_claim: object = self.max_claim
        if isinstance(max_claim, bool) or not isinstance(max_claim, int):
            raise TypeError(f"max_claim={max_claim!r} is not a whole number of jobs")
        if not 1 <= self.max_claim <= 10_000:
            raise ValueError(f"max_claim={self.max_claim!r} is not between 1 and 10000 jobs")
        listen: object = self.listen
        if not isinstance(listen, bool):
            raise TypeError(f"listen={listen!r} is not True or False")
        if self.lease_timeout < 3 * self.heartbeat_interval:
            raise ValueError(
                f"lease_timeout={self.lease_timeout!r} s must be at least three times "
                f"heartbeat_interval={self.heartbeat_interval!r} s, or one late beat loses all jobs"
            )

    def _check(self, name: str, minimum: float) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{name}={value!r} is not a number of seconds")
        if not isfinite(value) or not minimum <= value <= 86_400:
            raise ValueError(f"{name}={value!r} is not between {minimum:g} and 86400 seconds")


SETTING_NAMES: Final = tuple(field.name for field in fields(WorkerSettings))


class SettingOptions(TypedDict, total=False):
    """The fields of WorkerSettings, as keywords of a worker."""

    heartbeat_interval: float
    lease_timeout: float
    rescue_interval: float
    death_check_interval: float
    orphan_interval: float
    health_interval: float
    poll_interval: float
    shutdown_timeout: float
    unknown_type_grace: float
    max_claim: int
    hold_timeout: float
    listen: bool


def make_settings(settings: WorkerSettings | None, options: SettingOptions) -> WorkerSettings:
    """The settings object, or one made of keywords."""
    if settings is None:
        return WorkerSettings(**options)
    if options:
        raise TypeError(f"give settings= or single settings, not both: {', '.join(options)}")
    return settings
