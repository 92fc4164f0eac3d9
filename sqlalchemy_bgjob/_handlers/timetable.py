"""Fire times: a cron expression or an interval, in a time zone. Pure; cronsim knows the calendar.

Where clocks are set forward or back, cronsim does as Debian's cron:

* An expression of fixed times, such as ``30 2 * * *``, fires once a day. A time that the clocks
  skip fires when they have been set forward; one that they show twice, the first time.
* One whose minute or hour begins with ``*``, such as ``*/15 * * * *``, follows the time that
  passes: there is none in the hour that is skipped, and the hour that comes twice has its own. So
  does one with seconds, which Debian's cron does not know.
"""

import itertools
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import Final, Literal, NamedTuple, get_args
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError

from .._db.errors import did_you_mean
from .._drafts import validation
from ..settings import SMALL_STEP

Missed = Literal["one", "none", "all"]
"""Which missed fire times are made up for."""
MISSED: Final[tuple[Missed, ...]] = get_args(Missed)

MOST_MADE_UP: Final = 100
"""How many missed fire times ``"all"`` makes up for: the latest ones."""
MISSED_AFTER: Final = timedelta(seconds=60)
"""For ``"none"``: how late a fire time may be met without having been missed."""

_INSTANT: Final = timedelta(microseconds=1)
_SECOND: Final = timedelta(seconds=1)
_HOUR: Final = timedelta(hours=1)
_DAY_AND_HOUR: Final = timedelta(hours=25)
_SMALL_STEP: Final = timedelta(seconds=SMALL_STEP)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_EVERY: Final = "@every"
_SHORTEST: Final = 1.0
_MAX_LENGTH: Final = 255
_NICKNAMES: Final = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}


@dataclass(frozen=True, slots=True)
class Timetable:
    """When a schedule fires; made by :func:`timetable`, which checks it.

    Attributes:
        expression: As it is stored: cron's five or six fields, a nickname, or ``@every SECONDS``.
        timezone: The IANA name of the zone.
    """

    expression: str
    timezone: str

    def after(self, moment: datetime) -> datetime:
        """The first fire time after a moment, in UTC.

        Raises:
            ValueError: There is none within 50 years.
        """
        if (step := _interval(self.expression)) is not None:
            return _EPOCH + ((moment - _EPOCH) // step + 1) * step
        moment, zone = moment.astimezone(UTC), _zone(self.timezone)
        found = self._search(moment, zone)
        change = _change(zone, max(moment - _HOUR, found - _DAY_AND_HOUR), found)
        if change is None:
            return found
        # cronsim goes on by an hour each until midnight, so a change by half an hour leads it past
        # full ones; and it enters a day at midnight, which may be skipped.
        to_full_hour = timedelta(minutes=-change.astimezone(zone).minute % 60)
        starts = change, change + to_full_hour
        return min(self._search(max(moment, start - _SECOND), zone) for start in starts)

    def _search(self, moment: datetime, zone: tzinfo) -> datetime:
        expression = _NICKNAMES.get(self.expression, self.expression)
        for local in CronSim(expression, moment.astimezone(zone)):
            # Of an hour that comes twice, cronsim may name the first while it is the second.
            if (found := local.astimezone(UTC)) > moment:
                return found
        raise ValueError(
            f"cron={self.expression!r} never fires: no day of the next 50 years is such a day"
        )

    def upcoming(self, first: datetime, count: int) -> list[datetime]:
        """Some fire times in order, of which *first* is one; fewer if there are not so many."""
        times = [first]
        with suppress(ValueError):
            while len(times) < count:
                times.append(self.after(times[-1]))
        return times

    def _from(self, first: datetime) -> Iterator[datetime]:
        while True:
            yield first
            first = self.after(first)

    def latest(self, first: datetime, now: datetime, most: int) -> list[datetime]:
        """The latest fire times up to *now*, from *first* on, which is the earliest that counts."""
        window = timedelta(minutes=1)
        while True:  # backwards in growing steps: there may be years since the first
            begin = first if now - window <= first else self.after(now - window)
            past = itertools.takewhile(lambda at: at <= now, self._from(begin))
            found = deque(past, maxlen=most)
            if begin == first or len(found) == most:
                return list(found)
            window *= 4


class Gap(NamedTuple):
    """The fire times from *begin*, before *end*: they have passed, and nobody has met them.

    *begin* is None if the schedule was put then, and had met none. Those from *end* on have been
    met, as far as the row says. So if the server's clock is set back to well before *end*, it had
    been ahead, and the gap is what the schedule may still fire.
    """

    begin: datetime | None
    end: datetime

    def is_ahead(self, now: datetime) -> bool:
        """Whether the clock had been ahead when it was left; a small step back is none."""
        return now + _SMALL_STEP < self.end

    def after(self, earlier: "Gap | None") -> "Gap":
        """The one to remember: this, unless the clock can't be set back into it, as it is short."""
        is_short = self.begin is not None and self.end - self.begin <= _SMALL_STEP
        return self if earlier is None or not is_short else earlier


class Due(NamedTuple):
    """What a schedule whose time has come is to do.

    Attributes:
        fire_times: Those for which a job is enqueued, ascending.
        last: The latest one that has passed.
        following: The first one that is to come.
        left_out: Whether *missed* is ``"all"``, and there were more than it makes up for.
        gap: The fire times that have passed unmet, or that are left of an earlier gap.
    """

    fire_times: list[datetime]
    last: datetime
    following: datetime
    left_out: bool
    gap: Gap | None = None


def due(
    table: Timetable,
    first: datetime,
    now: datetime,
    missed: str,
    *,
    gap: Gap | None = None,
    last_at: datetime | None = None,
) -> Due:
    """What to do at *now*, if *first* is the earliest fire time that nobody has met.

    Args:
        table: Tells the fire times.
        first: It has come.
        now: By the server's clock.
        missed: The policy.
        gap: The one that the row has. If *first* is in it, the schedule has been set right.
        last_at: The latest fire time that was ever met.
    """
    first, now = first.astimezone(UTC), now.astimezone(UTC)
    most = MOST_MADE_UP + 1 if missed == "all" else 1
    in_gap = gap if gap is not None and first < gap.end else None
    until = now if in_gap is None else min(now, in_gap.end - _INSTANT)
    passed = table.latest(first, until, most)
    last = passed[-1]
    if missed == "none" and now - last > MISSED_AFTER:
        passed = []
    left_out = len(passed) > MOST_MADE_UP
    passed = passed[-MOST_MADE_UP:]
    following = table.after(until)
    if in_gap is not None and following < in_gap.end:
        gap = Gap(following, in_gap.end)
    else:
        if in_gap is not None:  # behind it are those that have been met
            gap, following = None, table.after(max(last_at or until, until))
        if not passed or passed[0] > first:
            end = passed[0] if passed else last + _INSTANT
            if gap is not None and table.after(gap.end - _INSTANT) >= first:
                gap = Gap(gap.begin, end)  # none was met in between
            else:
                gap = Gap(first, end).after(gap)
    return Due(passed, last, following, left_out, gap)


class Times(NamedTuple):
    """When a schedule fires next, and its gap from then on."""

    next_at: datetime
    gap: Gap | None


def set_right(
    table: Timetable,
    now: datetime,
    gap: Gap | None,
    last_at: datetime | None,
    written_at: datetime | None,
) -> Times:
    """The times of a schedule whose row has a wrong next one, or none.

    Args:
        table: Tells the fire times.
        now: By the server's clock.
        gap: The one that the row has.
        last_at: The latest fire time that was ever met.
        written_at: When it was last put, changed or resumed. If the clock was ahead then, nothing
            that has passed by now is made up for.
    """
    was_ahead = written_at is not None and now + _SMALL_STEP < written_at
    return _first_unmet(table, now, gap, last_at, makes_up=not was_ahead)


def begin(
    table: Timetable, now: datetime, gap: Gap | None = None, last_at: datetime | None = None
) -> Times:
    """The times of a schedule that is put, changed or resumed: nothing is made up for.

    What has passed unmet by *now* is its gap. So it is not silent until then, if the clock is ahead
    and is set back.
    """
    end = now + _INSTANT
    if gap is not None and (last_at is None or last_at < gap.end):  # none was met since
        first = gap.begin
    elif gap is not None and gap.is_ahead(now):
        return _first_unmet(table, now, gap, last_at, makes_up=False)
    else:
        first = None if last_at is None else table.after(last_at)
    if first is not None and first >= end:
        return Times(table.after(first - _INSTANT), gap)
    return Times(table.after(now), Gap(first, end).after(gap))


def _first_unmet(
    table: Timetable, now: datetime, gap: Gap | None, last_at: datetime | None, *, makes_up: bool
) -> Times:
    """The first fire time that nobody has met, and of those that have passed only with *makes_up*.

    If the clock had been ahead, only the gap tells what was not met then.
    """
    if gap is not None and gap.is_ahead(now):
        since = now if gap.begin is None else max(now, gap.begin - _INSTANT)
        next_at = gap.begin if gap.begin and makes_up else table.after(since)
        if next_at < gap.end:
            return Times(next_at, Gap(next_at, gap.end))
        gap = None
    return Times(table.after(now if last_at is None else max(now, last_at)), gap)


@lru_cache(maxsize=1_024)
def timetable(expression: str, timezone: str) -> Timetable:
    """Check an expression and a zone.

    Raises:
        ValueError: One of them is not known, or there is no such time.
    """
    words = " ".join(expression.split())
    words = words.lower() if words.startswith("@") else words
    _check_expression(words)
    _zone(timezone)
    made = Timetable(words, timezone)
    made.after(datetime.now(UTC))
    return made


def every(interval: object) -> str:
    """The expression of an interval, which is seconds or a timedelta."""
    seconds = validation.seconds("every", interval)
    if seconds < _SHORTEST:
        raise ValueError(f"every={seconds!r} s is shorter than a schedule's shortest interval, 1 s")
    return f"{_EVERY} {int(seconds) if seconds.is_integer() else seconds}"


def next_fire_time(cron: str, timezone: str = "UTC", *, after: datetime | None = None) -> datetime:
    """The first time after a moment at which a schedule with this expression would fire, in UTC.

    A job puts itself off by it: ``Reschedule(at=next_fire_time("0 2 * * *", "Europe/Berlin"))``.

    Args:
        cron: As for ``@jobs.schedule``.
        timezone: The IANA name of the zone in which the expression is meant.
        after: An aware datetime; by default now, by this machine's clock.

    Raises:
        ValueError: The expression or the zone is not known, or there is no such time within 50
            years.
        TypeError: An argument is of another type.
    """
    moment = datetime.now(UTC) if after is None else validation.moment("after", after)
    return timetable(as_text("cron", cron), as_text("timezone", timezone)).after(moment)


def as_text(what: str, value: object) -> str:
    """A str, or a TypeError."""
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a str, not {type(value).__name__}")
    return value


def _check_expression(words: str) -> None:
    if len(words) > _MAX_LENGTH:
        raise ValueError(f"cron has {len(words)} characters; at most {_MAX_LENGTH} are allowed")
    if words.startswith(_EVERY):
        _interval(words)
    elif words.startswith("@"):
        if words not in _NICKNAMES:
            known = ", ".join(_NICKNAMES)
            raise ValueError(f"cron={words!r} is not known; write five fields, or one of {known}")
    else:
        try:
            CronSim(words, datetime.now(UTC))
        except CronSimError as error:
            raise ValueError(
                f"cron={words!r} is no cron expression: {error}; write minute, hour, day of the "
                f"month, month and day of the week, as in '0 9 * * mon-fri', and before them the "
                f"second, if you need it"
            ) from None


def _interval(words: str) -> timedelta | None:
    """The interval of ``@every SECONDS``; None of other expressions."""
    if not words.startswith(_EVERY):
        return None
    try:
        seconds = validation.seconds("every", float(words.removeprefix(_EVERY)))
    except ValueError:
        seconds = 0.0
    if seconds < _SHORTEST:
        raise ValueError(f"cron={words!r} is no interval; write for example every=90, in seconds")
    return timedelta(seconds=seconds)


def _change(zone: tzinfo, earliest: datetime, latest: datetime) -> datetime | None:
    """When the clocks of a zone are changed between two moments in UTC; None if they are not."""
    before = earliest.astimezone(zone).utcoffset()
    if latest.astimezone(zone).utcoffset() == before:
        return None
    first = earliest.replace(microsecond=0)

    def is_after(seconds: int) -> bool:
        return (first + timedelta(seconds=seconds)).astimezone(zone).utcoffset() != before

    span = range(int((latest - first).total_seconds()) + 1)
    return first + timedelta(seconds=bisect_left(span, True, key=is_after))


def _zone(name: str) -> tzinfo:
    if name == "UTC":
        return UTC  # also where there is no database of zones
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # OSError: a folder of the database
        known = available_timezones()
        guess = did_you_mean(name, known)
    remedy = guess or "give an IANA name, such as 'Europe/Berlin'"
    if not known:
        remedy = "this machine has no time zones; install the package tzdata"
    raise ValueError(f"timezone={name!r} is not known; {remedy}")
