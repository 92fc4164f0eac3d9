"""What workers have counted: how many runs ended, by outcome, and how long they waited and ran.

There is something to read where ``BGJob(records=True)`` has made workers count. Each worker writes
its counts once a minute, so what is told here is up to a minute old.
"""

import math
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
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
        periods: By the begin of each period in UTC, all of them, the oldest first.
        types: By type and queue.
        since: From when on it was added up; the periods before that are left to the next look.
    """

    periods: dict[datetime, Counts]
    types: dict[tuple[str, str], Counts]
    since: datetime

    @property
    def all(self) -> Counts:
        """All of it together."""
        return _summed([*self.types.values()])


def _summed(each: Sequence[Counts]) -> Counts:
    outcomes: Counter[str] = Counter()
    for one in each:
        outcomes.update(one.outcomes)
    return Counts(
        dict(outcomes),
        together([one.waits for one in each]),
        together([one.runs for one in each]),
    )


def together(durations: Sequence[Durations]) -> Durations:
    """Several as one, as of all types of a queue."""
    length = max((len(one.buckets) for one in durations), default=0)
    return Durations(
        sum(one.count for one in durations),
        sum(one.seconds for one in durations),
        [sum(one.buckets[k] for one in durations if k < len(one.buckets)) for k in range(length)],
    )


_PART: Final = 6
"""Periods that are added up together: up to twice as many are read anew when one is over."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Window:
    """The last periods of what was counted, for whoever looks again and again.

    What is over is added up in parts of some periods and remembered, so a further look reads the
    rows of two periods, and those of up to two parts whenever another period is over. The first
    look reads them all, the latest first, and leaves the rest to the next one if that takes long.

    Args:
        width: Of a period, in whole minutes. The last one is that of now, by the database's clock.
        periods: How many.
        sample: Of which minutes waits and run times are read: of all, or of every so manyth.
        longest: Seconds after which a look begins no further part.
    """

    def __init__(
        self, width: timedelta, periods: int, sample: int = 1, *, longest: float = math.inf
    ) -> None:
        self._width, self._periods, self._sample = width, periods, sample
        self._longest = longest
        self._over: dict[tuple[datetime, datetime], History] = {}

    def look(self, connection: Connection, schema: str | None, table_prefix: str) -> History:
        """What was counted, in periods, and by type and queue; the caller ends the transaction.

        Args:
            connection: Of a reader of the table.
            schema: The tables' schema; None if they are on the search path.
            table_prefix: How the tables' names begin.
        """
        end = time.monotonic() + self._longest
        wide = {"width": self._width.total_seconds()}
        ((last,),) = ask(connection, _LAST, schema, table_prefix, **wide)
        # In the session's time zone Python would reckon by its clock, which goes back in autumn.
        last = last.astimezone(UTC)
        first: datetime = last - (self._periods - 1) * self._width
        # Not the last one but one: a row may be committed a while after its time.
        open_since = max(last - self._width, first)

        def added_up(since: datetime, until: datetime | None) -> History:
            given = {**wide, "since": since, "until": until, "step": 60.0 * self._sample}
            return _history(
                ask(connection, _OUTCOMES, schema, table_prefix, **given),
                ask(connection, _DURATIONS, schema, table_prefix, **given),
                since,
            )

        found = [added_up(open_since, None)]
        parts = self._parts(first, open_since)
        known = self._over  # another thread may let go of it meanwhile
        over = self._over = {part: known[part] for part in parts if part in known}
        gets_on = False
        for part in parts:
            if part not in over:
                if gets_on and time.monotonic() > end:
                    break
                over[part] = added_up(*part)
                gets_on = True
            found.append(over[part])
        periods = {first + place * self._width: Counts() for place in range(self._periods)}
        types: dict[tuple[str, str], list[Counts]] = {}
        for history in found:
            periods |= history.periods
            for key, counts in history.types.items():
                types.setdefault(key, []).append(counts)
        by_type = {key: _summed(types[key]) for key in sorted(types)}
        return History(periods, by_type, found[-1].since)

    def _parts(self, first: datetime, end: datetime) -> list[tuple[datetime, datetime]]:
        """From when to when each part goes, the latest first: those in the middle stay the same."""
        step = _PART * self._width
        parts = []
        while end > first:
            whole = (end - _EPOCH - timedelta.resolution) // step * step
            since = max(_EPOCH + whole, first)
            parts.append((since, end))
            end = since
        return parts


def _history(outcomes: Sequence[Any], durations: Sequence[Any], since: datetime) -> History:
    """From sums by period, in which queue is null, and by queue and type."""
    by_period: defaultdict[datetime, Counts] = defaultdict(Counts)
    by_type: defaultdict[tuple[str, str], Counts] = defaultdict(Counts)

    def counts_of(row: Any) -> Counts:
        if row.queue is None:
            return by_period[row.period.astimezone(UTC)]
        return by_type[row.type, row.queue]

    for row in outcomes:
        counts_of(row).outcomes[row.outcome] = row.n
    for row in durations:
        counts = counts_of(row)
        counts.waits, counts.runs = _added(row.waits, row.waited), _added(row.runs, row.ran)
    return History(by_period, by_type, since)


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
_SINCE: Final = "CAST(:since AS timestamptz)"
_UNTIL: Final = "coalesce(CAST(:until AS timestamptz), 'infinity')"
_SUMS: Final = f"""
    {_sums("waits")} AS waits, {_sums("runs")} AS runs, sum(waited) AS waited, sum(ran) AS ran
"""
# Rows are added up once, and then the few sums by period, and by queue and type: two sums for each
# row take longer. OFFSET 0 keeps the minutes outside: each is found by the key, so that no row of a
# minute that is not read is looked at.
_OUTCOMES: Final = f"""
    WITH few AS MATERIALIZED (
      SELECT {_PERIOD.format("at")} AS period, queue, type, outcome, sum(n) AS n
      FROM ONLY {{minute}} WHERE at >= {_SINCE} AND at < {_UNTIL}
      GROUP BY 1, 2, 3, 4
    )
    SELECT period, queue, type, outcome, CAST(sum(n) AS bigint) AS n FROM few
    GROUP BY GROUPING SETS ((period, outcome), (queue, type, outcome))
"""  # noqa: S608 - no value is in it
_DURATIONS: Final = f"""
    WITH few AS MATERIALIZED (
      SELECT {_PERIOD.format("at")} AS period, queue, type, {_SUMS}
      FROM generate_series(
        date_bin({_STEP}, {_SINCE}, TIMESTAMPTZ 'epoch'),
        least({_UNTIL}, statement_timestamp()), {_STEP}
      ) AS minute, LATERAL (
        SELECT * FROM ONLY {{minute}} AS counted
        WHERE counted.at >= greatest(minute, {_SINCE})
          AND counted.at < least(minute + interval '1 minute', {_UNTIL})
        OFFSET 0
      ) AS chosen
      GROUP BY 1, 2, 3
    )
    SELECT period, queue, type, {_SUMS} FROM few
    GROUP BY GROUPING SETS ((period), (queue, type))
"""  # noqa: S608 - no value is in it
