"""What workers have counted: how many runs ended, by outcome, and how long they waited and ran.

There is something to read where ``BGJob(records=True)`` has made workers count. Each worker writes
its counts once a minute, so what is told here is up to a minute old.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

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


@dataclass(slots=True)
class Counts:
    """What was counted of one type in one queue, or of all of them in one period.

    Attributes:
        outcomes: How many runs ended as ``completed``, ``retry``, ``rescheduled``, ``dead``,
            ``cancelled`` and ``expired``; what did not occur is missing.
        waits: From when they were due until they were claimed.
        runs: How long their handlers took; those that never started are not among them.
    """

    outcomes: dict[str, int] = field(default_factory=dict)
    waits: Durations = field(default_factory=Durations)
    runs: Durations = field(default_factory=Durations)

    @property
    def n(self) -> int:
        """How many runs there were."""
        return sum(self.outcomes.values())


@dataclass(frozen=True, slots=True)
class History:
    """What was counted lately.

    Attributes:
        periods: By the begin of each period, all of them, the oldest first.
        types: By type and queue.
    """

    periods: dict[datetime, Counts]
    types: dict[tuple[str, str], Counts]

    @property
    def all(self) -> Counts:
        """All of it together."""
        every = self.types.values()
        outcomes: Counter[str] = Counter()
        for one in every:
            outcomes.update(one.outcomes)
        return Counts(
            dict(outcomes),
            together([one.waits for one in every]),
            together([one.runs for one in every]),
        )


def together(durations: Sequence[Durations]) -> Durations:
    """Several as one, as of all types of a queue."""
    length = max((len(one.buckets) for one in durations), default=0)
    return Durations(
        sum(one.count for one in durations),
        sum(one.seconds for one in durations),
        [sum(one.buckets[k] for one in durations if k < len(one.buckets)) for k in range(length)],
    )


def history(
    connection: Connection,
    schema: str | None,
    table_prefix: str,
    *,
    width: timedelta,
    periods: int,
    sample: int = 1,
) -> History:
    """What was counted lately, in periods, and by type and queue.

    Args:
        connection: The caller ends its transaction.
        schema: The tables' schema; None if they are on the search path.
        table_prefix: How the tables' names begin.
        width: Of a period, in whole minutes. The last one is that of now, by the database's clock.
        periods: How many.
        sample: Of which minutes waits and run times are read: of all, or of every so manyth.
    """
    wide = {"width": width.total_seconds()}
    ((last,),) = ask(connection, _LAST, schema, table_prefix, **wide)
    first: datetime = last - (periods - 1) * width
    by_period = {first + place * width: Counts() for place in range(periods)}
    by_type: defaultdict[tuple[str, str], Counts] = defaultdict(Counts)

    def counts_of(row: Any) -> Counts:
        if row.queue is not None:
            return by_type[row.type, row.queue]
        return by_period.setdefault(row.period, Counts())

    for row in ask(connection, _OUTCOMES, schema, table_prefix, **wide, first=first):
        counts_of(row).outcomes[row.outcome] = row.n
    given = {**wide, "first": first, "step": 60.0 * sample}
    for row in ask(connection, _DURATIONS, schema, table_prefix, **given):
        counts = counts_of(row)
        counts.waits, counts.runs = _added(row.waits, row.waited), _added(row.runs, row.ran)
    return History(by_period, {key: by_type[key] for key in sorted(by_type)})


def _added(buckets: Sequence[int | None], seconds: float) -> Durations:
    """Sums of buckets, without the empty ones at the end."""
    found = [n or 0 for n in buckets]
    while found and not found[-1]:
        found.pop()
    return Durations(sum(found), seconds, found)


_BUCKETS: Final = 40
"""As many as a worker counts in."""


def _sums(column: str) -> str:
    # One sum for each place takes a third of the time of unnesting the arrays.
    each = ", ".join(f"sum({column}[{place}])" for place in range(1, _BUCKETS + 1))
    return f"CAST(ARRAY[{each}] AS bigint[])"


_WIDTH: Final = "make_interval(secs => CAST(:width AS float8))"
_STEP: Final = "make_interval(secs => CAST(:step AS float8))"
_PERIOD: Final = f"date_bin({_WIDTH}, {{}}, TIMESTAMPTZ 'epoch')"
_LAST: Final = f"SELECT {_PERIOD.format('statement_timestamp()')}"
# Each sum is made by period, and by queue and type, in one pass.
_OUTCOMES: Final = f"""
    SELECT period, queue, type, outcome, CAST(sum(n) AS bigint) AS n
    FROM (
      SELECT {_PERIOD.format("at")} AS period, queue, type, outcome, n FROM ONLY {{minute}}
      WHERE at >= CAST(:first AS timestamptz)
    ) AS chosen
    GROUP BY GROUPING SETS ((period, outcome), (queue, type, outcome))
"""  # noqa: S608 - no value is in it
_DURATIONS: Final = f"""
    SELECT period, queue, type, {_sums("waits")} AS waits, {_sums("runs")} AS runs,
           sum(waited) AS waited, sum(ran) AS ran
    FROM (
      SELECT {_PERIOD.format("at")} AS period, queue, type, waits, runs, waited, ran
      FROM ONLY {{minute}}
      WHERE at >= CAST(:first AS timestamptz)
        AND at < date_bin({_STEP}, at, TIMESTAMPTZ 'epoch') + interval '1 minute'
    ) AS chosen
    GROUP BY GROUPING SETS ((period), (queue, type))
"""  # noqa: S608 - no value is in it
