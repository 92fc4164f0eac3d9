"""Jobs that are checked and encoded, before they are rows. Pure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import repeat
from typing import Any, Final, NamedTuple

import msgspec

from ..exceptions import InvalidArg
from . import validation
from .codec import Codec
from .ids import new_id, new_ids

UNTYPED: Final = Codec(Any)
"""For producers that know only the type's name."""


class Common(NamedTuple):
    """What jobs that are enqueued together have in common, checked."""

    queue: str
    type: str
    priority: int
    delay: float | None
    run_at: datetime | None
    headers: dict[str, Any] | None


class Draft(msgspec.Struct, frozen=True, gc=False):
    """A job that is checked and encoded, ready for an INSERT. An empty id becomes a new one."""

    id: str
    arg: bytes | None
    common: Common


def draft(
    codec: Codec,
    type: str,
    queue: str,
    arg: Any,
    id: str | None,
    delay: float | timedelta | None,
    run_at: datetime | None,
    priority: int,
    headers: Mapping[str, Any] | None,
) -> Draft:
    """Check and encode one job of any type."""
    own = [new_id() if id is None else validation.job_id(id)]
    (job,) = drafts(
        codec, type, queue, [arg], own, delay, run_at, priority, headers, numbered=False
    )
    return job


def drafts(
    codec: Codec,
    type: str,
    queue: str,
    args: Sequence[Any],
    ids: Sequence[str] | None,
    delay: float | timedelta | None,
    run_at: datetime | None,
    priority: int,
    headers: Mapping[str, Any] | None,
    *,
    numbered: bool = True,
) -> Iterator[Draft]:
    """Check and encode jobs that differ in nothing but their args, and the ids that they may have.

    Each is looked at when it is asked for, what they share with the first of them.

    Raises:
        InvalidArg: An arg; its path begins with the arg's index if they are *numbered*.
    """
    seconds, moment = validation.start(delay, run_at)
    queue, type = validation.name("queue", queue), validation.name("type", type)
    priority = validation.priority(priority)
    shared: dict[str | None, Common] = {}
    encode = codec.encode
    for index, (id, arg) in enumerate(zip(ids or repeat(""), args, strict=False)):
        try:
            data, kind = encode(arg)
        except InvalidArg as error:
            where = f"[{index}]{error.path[1:]}" if numbered else error.path
            raise InvalidArg(where, error.reason) from None
        if kind not in shared:
            all_headers = validation.headers(headers, kind)
            shared[kind] = Common(queue, type, priority, seconds, moment, all_headers)
        yield Draft(id, data, shared[kind])


def in_chunks(jobs: Iterable[Draft], most: int, most_bytes: int) -> Iterator[list[Draft]]:
    """Jobs in lists of at most so many, whose args have together about so many bytes."""
    chunk: list[Draft] = []
    size = 0
    for job in jobs:
        size += len(job.arg or b"")
        if chunk and (len(chunk) == most or size > most_bytes):
            yield chunk
            chunk, size = [], len(job.arg or b"")
        chunk.append(job)
    if chunk:
        yield chunk


def with_ids(jobs: Sequence[Draft]) -> list[tuple[str, Draft]]:
    """Jobs with their ids: their own, or new ones in the order of the jobs."""
    new = iter(new_ids(sum(not job.id for job in jobs)))
    return [(job.id or next(new), job) for job in jobs]
