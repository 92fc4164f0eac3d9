"""Settings of a worker, validated once; the limits of what a job may hold; defaults."""

from dataclasses import Field, dataclass, field, fields
from inspect import cleandoc
from typing import Any, Final, Literal, TypedDict, get_args

DEFAULT_PREFIX: Final = "bgjob_"
"""What the tables' names begin with, by default."""
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
"""Jobs of a queue that a worker runs at once, by default."""
SPARE_CONNECTIONS: Final = 2
"""A worker's own: one to claim and settle on, one that handlers never wait for."""
SMALL_STEP: Final = 60.0
"""Seconds by which the server's clock may be set back, without having been ahead before."""
STUCK_AFTER: Final = 15.0
"""Seconds beyond ``shutdown_timeout`` after which a worker that has not ended is given up."""
LIMITS: Final = ("max_jobs", "max_lifetime", "max_memory")
"""The settings at whose limit a worker drains, to be replaced."""


Order = Literal["priority", "time"]
"""What comes first in a queue: the lower number of a priority, or the earlier time."""


@dataclass(frozen=True, slots=True)
class Queue:
    """How a worker serves one queue: ``Worker(jobs, engine, queues={"mail": Queue(5)})``.

    The two orders are the poll strategies of the Go library gue.

    Args:
        slots: How many of its jobs run at once, 1 to 10,000; the worker checks it.
        order: ``"priority"``, the default, takes jobs of the lowest priority number first, and of
            one priority those that were due first. ``"time"`` takes those that were due first,
            whatever their priority; among jobs due at the same time, the lower number comes first.

    Raises:
        ValueError: *order* is neither of the two.
    """

    slots: int = DEFAULT_CONCURRENCY
    order: Order = field(default="priority", kw_only=True)

    def __post_init__(self) -> None:
        if self.order not in get_args(Order):
            raise ValueError(f"order={self.order!r} is neither 'priority' nor 'time'")


# A setting is declared once, by its field; only its type is repeated in SettingOptions. Keyword,
# flag, environment variable, range check and row of docs/workers.md are all made from the field.
def _setting(default: Any, help: str, *, unit: str = "", least: float = 0, most: float = 0) -> Any:
    metadata = {"help": help, "unit": unit, "least": least, "most": most}
    return field(default=default, metadata=metadata)


def _seconds(default: float, help: str, *, least: float = 0.01) -> Any:
    return _setting(default, help, unit="seconds", least=least, most=86_400)


def _documented(settings: type["WorkerSettings"]) -> type["WorkerSettings"]:
    """List the fields in the docstring, with help, default and range."""
    lines = [f"    {it.name}: {it.metadata['help']}; {_range(it)}." for it in fields(settings)]
    settings.__doc__ = "\n".join([cleandoc(settings.__doc__ or ""), "", "Attributes:", *lines])
    return settings


def _range(declared: Field[Any]) -> str:
    unit, least, most = (declared.metadata[key] for key in ("unit", "least", "most"))
    limits = f" {unit}, {least:g} to {most:g}" if unit else ""
    return f"by default {declared.default!r}{limits}"


@_documented
@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerSettings:
    """How a worker behaves. Durations are seconds, as int or float, and finite.

    ``lease_timeout``, ``unknown_type_grace``, ``dead_keep``, ``batch_keep``, ``counts_keep`` and
    ``audit_keep`` are measured by the database's clock, all other durations by that of the worker's
    process.

    Raises:
        ValueError: A value is out of its range, which the message names; or ``lease_timeout`` is
            shorter than three heartbeat intervals.
        TypeError: A value is not of the field's type.
    """

    heartbeat_interval: float = _seconds(5.0, "how often a worker sends a heartbeat")
    lease_timeout: float = _seconds(
        30.0, "how long a worker may send no heartbeat before others take its jobs"
    )
    rescue_interval: float = _seconds(
        1.8, "how often each worker looks for others that have ended or are silent"
    )
    orphan_interval: float = _seconds(
        60.0, "how often each worker looks for jobs whose claim names no known worker"
    )
    health_interval: float = _seconds(
        60.0, "how often one of the workers looks for what keeps the server from cleaning up"
    )
    poll_interval: float = _seconds(
        1.0,
        "the longest a due job waits where no notifications arrive; where they do, polls come "
        "every six poll intervals",
    )
    shutdown_timeout: float = _seconds(25.0, "how long a drain waits for running jobs", least=0.0)
    unknown_type_grace: float = _seconds(
        300.0,
        "how long a job waits for a worker with a handler of its type; 0 is not at all",
        least=0.0,
    )
    max_claim: int = _setting(
        1_000, "the most jobs of one claim", unit="jobs", least=1, most=10_000
    )
    hold_timeout: float = _seconds(
        1.0, "after how long a claimed job that was not started is handed back"
    )
    listen: bool = _setting(True, "whether to LISTEN for wake-ups; polling goes on in any case")
    max_stuck: float = _setting(
        0.5,
        "the share of the slots that stuck handlers may take before the worker ends",
        unit="of all slots",
        least=0.001,
        most=1,
    )
    dead_keep: float = _setting(
        0.0,
        "how long dead jobs are kept before a worker deletes them; 0 is for ever",
        unit="seconds",
        most=3_000_000_000,
    )
    batch_keep: float = _setting(
        604_800.0,
        "how long a batch is kept after it was finished; 0 is for ever",
        unit="seconds",
        most=3_000_000_000,
    )
    counts_keep: float = _setting(
        604_800.0,
        "how long what workers have counted is kept, with BGJob(records=True); 0 is for ever",
        unit="seconds",
        most=3_000_000_000,
    )
    audit_keep: float = _setting(
        31_536_000.0,
        "how long rows of the audit are kept, with BGJob(records=True); 0 is for ever",
        unit="seconds",
        most=3_000_000_000,
    )
    until_idle: bool = _setting(
        False, "whether to stop once nothing is due and this worker runs nothing"
    )
    max_jobs: int = _setting(
        0,
        "how many jobs a worker starts before it drains, to be replaced; 0 is no limit",
        unit="jobs",
        most=1_000_000_000,
    )
    max_lifetime: float = _setting(
        0.0,
        "how long a worker runs before it drains, to be replaced; 0 is no limit",
        unit="seconds",
        most=3_000_000_000,
    )
    max_memory: int = _setting(
        0,
        "the resident memory at which a worker drains, to be replaced; 0 is no limit",
        unit="bytes",
        most=2**50,
    )
    limit_jitter: float = _setting(
        0.1,
        "the most that is added to max_jobs and max_lifetime, at random, so that not all workers "
        "drain at once",
        unit="of the limit",
        most=1,
    )

    def __post_init__(self) -> None:
        for declared in fields(self):
            _check(declared, getattr(self, declared.name))
        if self.lease_timeout < 3 * self.heartbeat_interval:
            raise ValueError(
                f"lease_timeout={self.lease_timeout!r} s must be at least three times "
                f"heartbeat_interval={self.heartbeat_interval!r} s, or one late beat loses all jobs"
            )


def _check(declared: Field[Any], value: object) -> None:
    shown = f"{declared.name}={value!r}"
    if declared.type is bool:
        if not isinstance(value, bool):
            raise TypeError(f"{shown} is not True or False")
        return
    unit, least, most = (declared.metadata[key] for key in ("unit", "least", "most"))
    whole = declared.type is int
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise TypeError(f"{shown} is not a {'whole ' if whole else ''}number of {unit}")
    if not least <= value <= most:  # false for NaN too
        raise ValueError(f"{shown} is not between {least:g} and {most:g} {unit}")


class SettingOptions(TypedDict, total=False):
    """The fields of WorkerSettings, as keywords of a worker: for type checkers."""

    heartbeat_interval: float
    lease_timeout: float
    rescue_interval: float
    orphan_interval: float
    health_interval: float
    poll_interval: float
    shutdown_timeout: float
    unknown_type_grace: float
    max_claim: int
    hold_timeout: float
    listen: bool
    max_stuck: float
    dead_keep: float
    batch_keep: float
    counts_keep: float
    audit_keep: float
    until_idle: bool
    max_jobs: int
    max_lifetime: float
    max_memory: int
    limit_jitter: float


def make_settings(settings: WorkerSettings | None, options: SettingOptions) -> WorkerSettings:
    """The settings object given, or one made from keywords."""
    if settings is None:
        return WorkerSettings(**options)
    if options:
        raise TypeError(f"give settings= or single settings, not both: {', '.join(options)}")
    return settings
