"""Which jobs fit what a test looks for, and how those differ that do not. Pure."""

import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, Self, get_args

from .._db.errors import did_you_mean
from .._drafts import codec, validation
from .._drafts.batch import OpenBatch
from .._drafts.unique import Scope, Unique
from .._handlers.registry import JobType

__tracebackhide__: Final = True
ANY: Final[Any] = object()
"""Any arg."""
_NONE: Final = object()
NEAREST: Final = 3
_EXACT: Final = ("queue", "id", "priority", "run_at", "unique", "batch")
_OPTIONS: Final = (*_EXACT, "delay", "headers", "count")
_PLAIN: Final = (int, str, float, bool, bytes)
"""Types of args without fields."""

_short: Final = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 80
_short.maxdict = _short.maxlist = 8


@dataclass(frozen=True, slots=True)
class EnqueuedJob:
    """A live job, as :meth:`JobKit.assert_enqueued` and :meth:`JobKit.all_enqueued` return it."""

    id: str
    queue: str
    type: str
    arg: Any
    """As its handler takes it; of a type without a handler, JSON values or bytes."""
    priority: int
    headers: Mapping[str, Any]
    delay: float
    """Seconds from its enqueue until it is due."""
    run_at: datetime
    """When it is due."""
    attempt: int
    """How many attempts were begun, the running one included."""
    running: bool
    """Whether a worker holds it."""
    unique: str | None = None
    """Its unique key."""
    unique_scope: Scope | None = None
    """For how long the key keeps others away, ``"live"``, ``"queued"`` or ``"period"``."""
    batch: str | None = None
    """The id of its batch."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a test looks for.

    Attributes:
        type: The job's.
        arg: The whole arg; ANY if it does not matter.
        fields: Some fields of the arg.
        exact: The job's queue, id, priority, time, unique key and batch, as far as they are given.
        headers: Some of its headers.
        delay: Seconds from its enqueue until it is due.
        count: How many jobs are to fit; None for at least one.
    """

    type: str
    arg: Any = ANY
    fields: Mapping[str, Any] = field(default_factory=dict)
    exact: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, Any] = field(default_factory=dict)
    delay: float | None = None
    count: int | None = None

    @classmethod
    def of(cls, handler: JobType[Any] | str, arg: Any, wanted: Mapping[str, Any]) -> Self:
        """What the arguments of ``assert_enqueued`` say."""
        if not isinstance(handler, JobType | str):
            raise TypeError(
                f"name a handler or a type, not a {type(handler).__name__}; "
                f"assert_enqueued(session, send_receipt, order_id=7)"
            )
        rest = dict(wanted)
        exact: dict[str, Any] = {name: rest.pop(name) for name in _EXACT if name in rest}
        if isinstance(batch := exact.get("batch"), OpenBatch):
            exact["batch"] = batch.id
        headers, count = rest.pop("headers", None) or {}, rest.pop("count", None)
        delay: float | timedelta | None = rest.pop("delay", None)
        if count is not None and count < 1:
            raise ValueError(f"count={count!r}: where no job may fit, use refute_enqueued")
        if isinstance(arg, Mapping):
            arg, rest = ANY, {**arg, **rest}
        if isinstance(handler, JobType):
            _refuse_unknown(handler, rest)
        return cls(
            type=handler if isinstance(handler, str) else handler.type,
            arg=arg,
            fields=rest,
            exact=exact,
            headers=headers,
            delay=None if delay is None else validation.seconds("delay", delay),
            count=count,
        )

    def __str__(self) -> str:
        words = [f"type {self.type!r}"]
        if self.arg is not ANY:
            words.append(f"arg {_short.repr(self.arg)}")
        words += [f"{name}={_short.repr(value)}" for name, value in self.fields.items()]
        words += [f"{name} {value!r}" for name, value in self.exact.items()]
        words += [f"header {name}={_short.repr(value)}" for name, value in self.headers.items()]
        if self.delay is not None:
            words.append(f"delay {self.delay:g} s")
        return ", ".join(words)


def _refuse_unknown(handler: JobType[Any], names: Iterable[str]) -> None:
    """A misspelt option would be a field that no job has: a refutation of it always holds."""
    known = _fields_of(handler)
    for name in names:
        if known is not None and name not in known:
            guess = did_you_mean(name, {*_OPTIONS, *known})
            raise TypeError(
                f"{name!r} is neither an option nor a field of the arg of {handler.type!r}; "
                f"{guess or 'the options are ' + ', '.join(_OPTIONS)}"
            )


def _fields_of(handler: JobType[Any]) -> frozenset[str] | None:
    """The names that an arg of the handler may have; None if it may have any."""
    annotation = handler.annotation
    if not handler.takes_arg or annotation in _PLAIN:
        return frozenset()
    found = codec.fields(annotation)
    # Where the JSON has other names than the object, both do.
    return None if found is None else found.known | _attributes(annotation)


def _attributes(annotation: Any) -> frozenset[str]:
    names: set[str] = set()
    for part in get_args(annotation) or (annotation,):
        of_class = (getattr(part, name, ()) for name in ("__dataclass_fields__", "model_fields"))
        names.update(dir(part), *of_class)
    return frozenset(names)


def difference(job: EnqueuedJob, wanted: Wanted) -> list[str]:
    """In what a job differs from what is wanted; empty if it fits."""
    found: list[str] = []
    if job.type != wanted.type:
        found.append(f"its type is {job.type!r}")
    for name, value in wanted.exact.items():
        if isinstance(value, Unique):
            if (job.unique, job.unique_scope) != (value.key, value.scope):
                found.append(f"its unique is {job.unique!r}, of scope {job.unique_scope!r}")
        elif getattr(job, name) != value:
            found.append(f"its {name} is {getattr(job, name)!r}")
    if wanted.delay is not None and abs(job.delay - wanted.delay) > 0.001:
        found.append(f"its delay is {job.delay:g} s")
    if wanted.arg is not ANY and job.arg != wanted.arg:
        found.append(f"its arg is {_short.repr(job.arg)}")
    found += _fields_that_differ("", job.arg, wanted.fields)
    found += _fields_that_differ("header ", job.headers, wanted.headers)
    return found


def _fields_that_differ(path: str, value: Any, wanted: Mapping[str, Any]) -> Iterable[str]:
    for name, expected in wanted.items():
        actual = (
            value.get(name, _NONE) if isinstance(value, Mapping) else getattr(value, name, _NONE)
        )
        if actual is _NONE:
            yield f"it has no {path}{name}"
        elif isinstance(expected, Mapping):
            yield from _fields_that_differ(f"{path}{name}.", actual, expected)
        elif actual != expected:
            yield f"{path}{name} is {_short.repr(actual)}"


@dataclass(frozen=True, slots=True)
class Looked:
    """Where a test has looked, without finding what it wants.

    Attributes:
        jobs: All there are.
        unflushed: How many the session has that are not flushed.
    """

    jobs: Sequence[EnqueuedJob]
    unflushed: int = 0


def explain(looked: Looked, fitting: Sequence[EnqueuedJob], wanted: Wanted) -> str:
    """Why an assertion failed: how many fit, or the nearest jobs and their differences."""
    if fitting:
        lines = [f"{_jobs(len(fitting))}, not {wanted.count}: {wanted}", *_shown(fitting)]
    elif not looked.jobs:
        lines = [f"no job is enqueued in this transaction; looked for {wanted}"]
        lines += [] if looked.unflushed else [_NONE_AT_ALL]
    else:
        nearest = sorted(looked.jobs, key=lambda job: len(difference(job, wanted)))[:NEAREST]
        lines = [f"no job fits {wanted}", _heading(len(looked.jobs))]
        lines += [f"{_where(job)}: {'; '.join(difference(job, wanted))}" for job in nearest]
    if looked.unflushed:
        lines.append(
            f"{_jobs(looked.unflushed, 'is', 'are')} in the session and not flushed, as it has no "
            f"autoflush: call session.flush()"
        )
    return "\n".join(lines)


def explain_fitting(fitting: Sequence[EnqueuedJob], wanted: Wanted) -> str:
    """Why a refutation failed: which jobs fit, and how they look."""
    return "\n".join([f"{_jobs(len(fitting))}: {wanted}", *_shown(fitting)])


_NONE_AT_ALL: Final = (
    "Has another transaction enqueued it, which has not committed? Or has it been run already?"
)


def _jobs(count: int, one: str = "fits", many: str = "fit") -> str:
    return f"a job {one}" if count == 1 else f"{count} jobs {many}"


def _heading(count: int) -> str:
    return "the only job there is:" if count == 1 else f"the nearest of {count}:"


def _shown(jobs: Sequence[EnqueuedJob]) -> list[str]:
    shown = [f"{_where(job)}: arg {_short.repr(job.arg)}" for job in jobs[:NEAREST]]
    return [*shown, f"  and {len(jobs) - NEAREST} more"] if jobs[NEAREST:] else shown


def _where(job: EnqueuedJob) -> str:
    return f"  {job.type} {job.id} in {job.queue!r}"
