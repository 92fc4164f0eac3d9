"""Jobs that are checked and encoded, before they are rows. Pure."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat
from typing import Any, Final

import msgspec

from ..exceptions import InvalidArg
from . import validation
from .codec import Codec
from .ids import new_id, new_ids
from .options import Common, JobOptions
from .unique import Unique, checked

UNTYPED: Final = Codec(Any)
"""The codec for producers that know only the type's name."""


class Draft(msgspec.Struct, frozen=True, gc=False):
    """A checked and encoded job, ready for an INSERT; an empty id stands for a new one."""

    id: str
    arg: bytes | None
    common: Common
    unique: Unique | None = None


def draft(
    codec: Codec, type: str, queue: str, arg: Any, id: str | None, options: JobOptions
) -> Draft:
    """Check and encode one job of any type; it goes to *queue* unless the options name another."""
    unique = checked(options.get("unique"), id)
    id = new_id() if id is None else validation.job_id(id)
    common = Common.of(type, queue, options)
    data, content_type = codec.encode(arg)
    return Draft(id, data, common.with_headers(options, content_type), unique)


def drafts(
    codec: Codec,
    type: str,
    queue: str,
    args: Sequence[Any],
    ids: Sequence[str] | None,
    options: JobOptions,
    unique_of: Callable[[Any], object] | None = None,
) -> Iterator[Draft]:
    """Check and encode jobs that differ only in their args, ids and unique keys.

    Lazy: the options are checked with the first draft, and each arg with its own draft.

    Raises:
        InvalidArg: An arg does not fit; the path begins with its index.
    """
    common = Common.of(type, queue, options)
    by_content_type: dict[str | None, Common] = {}
    for index, (id, arg) in enumerate(zip(ids or repeat(""), args, strict=False)):
        try:
            data, content_type = codec.encode(arg)
        except InvalidArg as error:
            raise InvalidArg(f"[{index}]{error.path[1:]}", error.reason) from None
        if content_type not in by_content_type:
            by_content_type[content_type] = common.with_headers(options, content_type)
        unique = None if unique_of is None else checked(unique_of(arg), id or None)
        yield Draft(id, data, by_content_type[content_type], unique)


def in_chunks(jobs: Iterable[Draft], most: int, most_bytes: int) -> Iterator[list[Draft]]:
    """Lists of at most *most* jobs and *most_bytes* of args; a larger job comes alone."""
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
