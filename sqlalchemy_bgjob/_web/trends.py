"""What workers have counted lately, as the overview draws it: throughput, waits and run times."""

from dataclasses import dataclass
from datetime import timedelta
from math import inf
from typing import Any, Final

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from .._db.errors import sqlstate
from .._inspect.counts import Counts, Durations, Window
from .._inspect.reading import readable
from .visit import Visit

_TYPES: Final = 12


@dataclass(frozen=True, slots=True)
class Range:
    """How far back the charts go, in periods of equal width; durations are of every nth minute."""

    words: str
    width: timedelta
    periods: int
    sample: int
    kept: float
    """Seconds for which the same numbers are shown: workers write theirs once a minute."""
    longest: float = inf
    """Seconds after which a look leaves the rest of the counts to the next one."""


RANGES: Final = {
    "1h": Range("hour", timedelta(minutes=1), 60, sample=1, kept=10.0),
    "24h": Range("24 hours", timedelta(minutes=30), 48, sample=15, kept=60.0, longest=0.1),
}


async def trends(visit: Visit) -> dict[str, Any]:
    """The counts of the range that is asked for; why there are none, if so.

    ``state`` is ``on``, ``off`` where there are no tables for them, ``hidden`` where the database
    role may not read them, or ``slow`` where there are so many that it took too long.
    """
    name = visit.asked("range")
    name = name if name in RANGES else "1h"
    kept = visit.site.kept(f"trends of {name}", RANGES[name].kept)
    answer = await kept.get(lambda: _asked(visit, name))
    found: dict[str, Any] = answer[0]
    if found.get("is_part"):
        kept.forget()
    return found


async def _asked(visit: Visit, name: str) -> dict[str, Any]:
    try:
        return await visit.read(lambda connection: _read(connection, visit, name))
    except DBAPIError as error:
        if sqlstate(error) != "57014":
            raise
        return {"state": "slow"}  # and the rest of the page is shown


def _read(connection: Connection, visit: Visit, name: str) -> dict[str, Any]:
    site, chosen = visit.site, RANGES[name]
    may = readable(connection, site.models)
    if not may.counts:
        return {"state": "hidden" if may.there else "off"}
    window = Window(chosen.width, chosen.periods, chosen.sample, longest=chosen.longest)
    found = site.counted.setdefault(name, window).look(connection, *site.where)
    busiest = sorted(found.types.items(), key=lambda item: -item[1].n)
    return {
        "state": "on",
        "range": name,
        "words": chosen.words,
        "minutes": chosen.width.total_seconds() / 60,
        "sample": chosen.sample,
        "since": found.since,
        "is_part": found.since > next(iter(found.periods)),
        "all": _told(found.all),
        "periods": [{"at": at, **_told(one)} for at, one in found.periods.items()],
        "types": [
            {"type": type, "queue": queue, **_told(one)} for (type, queue), one in busiest[:_TYPES]
        ],
        "more_types": max(len(busiest) - _TYPES, 0),
    }


def _told(counts: Counts) -> dict[str, Any]:
    return {
        "n": counts.n,
        "outcomes": counts.outcomes,
        "waits": _percentiles(counts.waits),
        "runs": _percentiles(counts.runs),
    }


def _percentiles(durations: Durations) -> dict[str, float | None]:
    """In seconds; None where nothing was measured."""
    return {"p50": durations.p50, "p95": durations.p95, "p99": durations.p99}
