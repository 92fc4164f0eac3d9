"""The lists of values that the statements for many jobs take."""

import json
from collections.abc import Sequence
from typing import Any, Final

from .._drafts.draft import Draft, with_ids
from .._drafts.options import MORE, Common
from .._sql.words import parameters

CHUNK_JOBS: Final = 5_000
"""The most jobs of one statement."""
CHUNK_BYTES: Final = 8 * 1_048_576
"""The most bytes of their args."""


def columns_of(
    jobs: Sequence[Draft], *, with_more: bool = True, **lists: Sequence[Any]
) -> dict[str, Any]:
    """Parameters for many jobs, and *lists* beside them; ids are made where none is given.

    Unless *with_more*, those that only few jobs have are left out.
    """
    rows = zip(*(job.common for job in jobs), strict=True)
    columns: dict[str, Sequence[Any]] = dict(zip(Common._fields, rows, strict=True))
    columns["headers"] = [
        json.dumps(headers) if headers else None for headers in columns["headers"]
    ]
    columns["delay"] = [
        None if delay is None else delay.total_seconds() for delay in columns["delay"]
    ]
    if with_more:
        ends = columns["expires_in"]
        columns["expires_in"] = [None if end is None else end.total_seconds() for end in ends]
    else:
        for name in MORE:
            del columns[name]
    columns |= lists
    ids = [id for id, _ in with_ids(jobs)]
    args = [job.arg for job in jobs]
    return parameters(id=ids, arg=args, **{name: list(values) for name, values in columns.items()})
