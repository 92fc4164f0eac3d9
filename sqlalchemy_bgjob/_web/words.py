"""How the pages say numbers, sizes, durations, moments and schedules. Pure."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from cronsim import CronSim

from .._inspect.jobs import MOST

_UNITS: Final = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


def number(value: float) -> str:
    """12,345."""
    return f"{value:,}"


def counted(value: int, most: int = MOST) -> str:
    """A count that stops: ``10,000+`` if there are more."""
    return f"{most:,}+" if value > most else f"{value:,}"


def size(bytes: int) -> str:
    """``1.2 MB``, in powers of 1,000."""
    value = float(bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1_000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1_000
    return f"{value:.1f} TB"


def duration(seconds: float) -> str:
    """``0.4 s``, ``12 s``, ``3 min``, ``2 h 5 min``, ``4 d 3 h``."""
    seconds = max(seconds, 0.0)
    if seconds < 10:
        return "0 s" if seconds < 0.05 else f"{seconds:.1f} s"
    for place, (length, unit) in enumerate(_UNITS):
        if seconds >= length:
            whole = int(seconds // length)
            if place >= 2 or whole >= 10:
                return f"{whole} {unit}"
            smaller, its_unit = _UNITS[place + 1]
            rest = int(seconds % length // smaller)
            return f"{whole} {unit} {rest} {its_unit}" if rest else f"{whole} {unit}"
    return "0 s"


def brief(seconds: float | None) -> str:
    """How long something short took: ``80 µs``, ``3.4 ms``, ``120 ms``, ``2.5 s``, ``3 min``."""
    if seconds is None:
        return "\N{EN DASH}"
    if seconds <= 0:  # two clocks may have told it
        return "0 s"
    for factor, unit in ((1e6, "µs"), (1e3, "ms")):
        if seconds * factor < 999.5:
            value = seconds * factor
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return duration(seconds)


def clock(moment: datetime) -> str:
    """``14:05``, in UTC."""
    return moment.astimezone(UTC).strftime("%H:%M")


def ago(moment: datetime, now: datetime) -> str:
    """``3 min ago``, or ``in 2 h``."""
    seconds = (now - moment).total_seconds()
    if moment.year >= 9_000:
        return "never"
    return f"{duration(seconds)} ago" if seconds >= 0 else f"in {duration(-seconds)}"


def utc(moment: datetime) -> str:
    """``2026-11-29 12:00:05 UTC``."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def local(moment: datetime) -> str:
    """For a field of the type ``datetime-local``, in UTC and to the second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S")


def iso(moment: datetime) -> str:
    """For the attribute of ``<time>``."""
    return moment.astimezone(UTC).isoformat()


def first_line(text: str | None, most: int = 160) -> str:
    """The first line of an error, cut."""
    line = (text or "").partition("\n")[0]
    return line if len(line) <= most else f"{line[: most - 1]}…"


def cron_in_words(expression: str) -> str:
    """What a schedule's expression means: ``At 09:00 on Monday through Friday``, ``every 90 s``."""
    if expression.startswith("@every "):
        try:
            return f"Every {duration(float(expression.removeprefix('@every ')))}"
        except ValueError:
            return expression
    if expression.startswith("@"):
        return expression.removeprefix("@").capitalize()
    try:
        words: str = CronSim(expression, datetime.now(UTC)).explain()
    except Exception:  # a row may hold anything; the expression itself is shown too
        return expression
    return words


FILTERS: Final[dict[str, Callable[..., Any]]] = {
    "number": number,
    "counted": counted,
    "size": size,
    "duration": duration,
    "brief": brief,
    "clock": clock,
    "ago": ago,
    "utc": utc,
    "iso": iso,
    "local": local,
    "first_line": first_line,
    "cron_in_words": cron_in_words,
}
