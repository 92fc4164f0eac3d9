"""What workers have counted: how many runs ended, by outcome, and how long they waited and ran.

There is something to read where ``BGJob(records=True)`` has made workers count. Each worker writes
its counts once a minute, so what is told here is up to a minute old.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection

from .registered import ask

FIRST_BUCKET: Final = 64e-6
"""Seconds below which the first bucket counts; each further bucket reaches twice as far."""


@dataclass(frozen=True, slots=True)
class Durations:
    """How long something took, from counts by duration.

    Attributes:
        count: How many there were.
        seconds: All of them together.
        buckets: How many were below ``FIRST_BUCKET * 2 ** k`` seconds and in no earlier bucket.
    """

    count: int = 0
    seconds: float = 0.0
    buckets: Sequence[int] = ()

    @property
    def p50(self) -> float | None:
        """Seconds within which half of them were over; None if there were none."""
        return self.percentile(0.5)

    @property
    def p95(self) -> float | None:
        """The same, of 95 in 100."""
        return self.percentile(0.95)

    @property
    def p99(self) -> float | None:
        """The same, of 99 in 100."""
        return self.percentile(0.99)

    def percentile(self, share: float) -> float | None:
        """Seconds within which that share of them was over, interpolated within its bucket."""
        rank = share * sum(self.buckets)
        below = 0
        for place, n in enumerate(self.buckets):
            if n and below + n >= rank:
                upper = FIRST_BUCKET * (1 << place)
                lower = upper / 2 if place else 0.0
                return lower + (upper - lower) * (rank - below) / n
            below += n
        return None


@dataclass(frozen=True, slots=True)
class Counts:
    """What was counted of one type in one queue.

    Attributes:
        queue, type: Which.
        outcomes: How many runs ended as ``completed``, ``retry``, ``rescheduled``, ``dead``,
            ``cancelled`` and ``expired``; what did not occur is missing.
        waits: From when they were due until they were claimed.
        runs: How long their handlers took; those that never started are not among them.
    """

    queue: str
    type: str
    outcomes: dict[str, int] = field(default_factory=dict)
    waits: Durations = Durations()
    runs: Durations = Durations()


@dataclass(frozen=True, slots=True)
class Throughput:
    """How many runs of one queue, type and outcome were counted in the minute from *at*."""

    at: datetime
    queue: str
    type: str
    outcome: str
    n: int


def counts(
    connection: Connection,
    schema: str | None,
    table_prefix: str,
    *,
    since: timedelta,
    queue: str | None = None,
    type: str | None = None,
) -> list[Counts]:
    """What was counted lately, by queue and type, of all or of one queue or type.

    Args:
        connection: The caller ends its transaction.
        schema: The tables' schema; None if they are on the search path.
        table_prefix: How the tables' names begin.
        since: How far back, by the database's clock.
        queue, type: Of which alone.
    """
    found: dict[tuple[str, str], Counts] = {}
    given = {"since": since, "queue": queue, "type": type}
    for row in ask(connection, _COUNTS, schema, table_prefix, **given):
        key = row.queue, row.type
        one = found.get(key) or Counts(*key)
        match row.what:
            case "outcome":
                one.outcomes[row.outcome] = row.n
            case "waits":
                one = _with(one, waits=Durations(sum(row.buckets), row.seconds, row.buckets))
            case _:
                one = _with(one, runs=Durations(sum(row.buckets), row.seconds, row.buckets))
        found[key] = one
    return [found[key] for key in sorted(found)]


def _with(one: Counts, *, waits: Durations | None = None, runs: Durations | None = None) -> Counts:
    return Counts(one.queue, one.type, one.outcomes, waits or one.waits, runs or one.runs)


def together(durations: Sequence[Durations]) -> Durations:
    """Several as one, as of all types of a queue."""
    length = max((len(one.buckets) for one in durations), default=0)
    return Durations(
        sum(one.count for one in durations),
        sum(one.seconds for one in durations),
        [sum(one.buckets[k] for one in durations if k < len(one.buckets)) for k in range(length)],
    )


def throughput(
    connection: Connection,
    schema: str | None,
    table_prefix: str,
    *,
    since: timedelta,
    queue: str | None = None,
    type: str | None = None,
) -> list[Throughput]:
    """What was counted in each minute, in order of time; a minute without runs is missing.

    Arguments as for :func:`counts`.
    """
    given = {"since": since, "queue": queue, "type": type}
    return [Throughput(*row) for row in ask(connection, _MINUTES, schema, table_prefix, **given)]


_CHOSEN: Final = """
      SELECT at, queue, type, outcome, n, waits, runs, waited, ran FROM ONLY {minute}
      WHERE at > statement_timestamp() - CAST(:since AS interval)
        AND (CAST(:queue AS text) IS NULL OR queue = CAST(:queue AS text))
        AND (CAST(:type AS text) IS NULL OR type = CAST(:type AS text))
"""
_COUNTS: Final = f"""
    WITH chosen AS ({_CHOSEN}), sums AS (
      SELECT queue, type, 'waits' AS what, place, sum(one) AS n
      FROM chosen, unnest(waits) WITH ORDINALITY AS bucket (one, place)
      GROUP BY queue, type, place
      UNION ALL
      SELECT queue, type, 'runs', place, sum(one)
      FROM chosen, unnest(runs) WITH ORDINALITY AS bucket (one, place)
      GROUP BY queue, type, place
    ), seconds AS (
      SELECT queue, type, sum(waited) AS waits, sum(ran) AS runs FROM chosen GROUP BY queue, type
    )
    SELECT queue, type, 'outcome' AS what, outcome, CAST(sum(n) AS bigint) AS n,
           CAST(NULL AS bigint[]) AS buckets, CAST(NULL AS float8) AS seconds
    FROM chosen GROUP BY queue, type, outcome
    UNION ALL
    SELECT sums.queue, sums.type, what, NULL, NULL,
           array_agg(CAST(sums.n AS bigint) ORDER BY place),
           min(CASE what WHEN 'waits' THEN seconds.waits ELSE seconds.runs END)
    FROM sums JOIN seconds USING (queue, type)
    GROUP BY sums.queue, sums.type, what
"""  # noqa: S608 - no value is in it
_MINUTES: Final = f"""
    SELECT date_trunc('minute', at) AS at, queue, type, outcome, CAST(sum(n) AS bigint) AS n
    FROM ({_CHOSEN}) AS chosen
    GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4
"""  # noqa: S608 - no value is in it
