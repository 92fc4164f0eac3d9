"""What options and arguments convert text to: durations, sizes, moments, addresses, queues."""

import math
import re
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import click

from .._process.address import Address
from .._process.queue_names import NO_LIST
from ..settings import DEFAULT_CONCURRENCY
from ..settings import Queue as Served

if TYPE_CHECKING:
    from click import ParamType
else:

    class ParamType(click.ParamType):
        """Click's base of types, generic with any click; in brackets is what is made of a text."""

        def __class_getitem__(cls, converted: object) -> type["ParamType"]:
            return cls


_UNITS: Final[Mapping[str, float]] = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


class Seconds(ParamType[float]):
    """A duration: ``2.5``, ``500ms``, ``30s``, ``5m``, ``1h`` or ``30d``; a float of seconds."""

    name = "seconds"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Parse a duration into seconds."""
        if isinstance(value, int | float):
            return float(value)
        number = str(value).strip().rstrip("dhms")
        unit = str(value).strip()[len(number) :] or "s"
        try:
            seconds = float(number) * _UNITS[unit]
        except (KeyError, ValueError):
            seconds = math.nan
        if not math.isfinite(seconds):
            self.fail(
                f"{value!r} is not a duration such as 2.5, 500ms, 30s, 5m, 1h or 30d", param, ctx
            )
        return seconds


class Size(ParamType[int]):
    """A number of bytes: ``300000000``, ``512M`` or ``1.5G``, with 1 K of 1,024 bytes; an int."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse a size into bytes."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(
            r"(\d+(?:\.\d+)?) *(?:([KMGT])(?:i?B)?)?", str(value).strip(), re.IGNORECASE
        )
        if found is None:
            self.fail(f"{value!r} is not a size such as 300000000, 512M or 1.5G", param, ctx)
        return int(float(found[1]) * 1024 ** " KMGT".index((found[2] or " ").upper()))


class Moment(ParamType[Any]):
    """A time such as ``2026-12-24T18:00+01:00``, or a duration: a datetime or a float of seconds.

    Whether a duration is meant from now on or back from now, the option says.
    """

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse a time or a duration."""
        if isinstance(value, datetime | float):
            return value
        try:
            moment = datetime.fromisoformat(str(value).strip())
        except ValueError:
            try:
                return Seconds().convert(value, param, ctx)
            except click.BadParameter:
                self.fail(
                    f"{value!r} is neither a time such as 2026-12-24T18:00+01:00 nor a duration "
                    f"such as 90s, 30m or 2h",
                    param,
                    ctx,
                )
        if moment.tzinfo is None:
            self.fail(f"{value!r} has no time zone: add Z for UTC, or one such as +01:00")
        return moment


class HostAndPort(ParamType[Address]):
    """``127.0.0.1:9464`` or ``[::1]:9464``: an :class:`Address`."""

    name = "address"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Address:
        """Parse it. The host must be there: all interfaces are a choice, 0.0.0.0 or [::]."""
        if isinstance(value, Address):
            return value
        host, _, port = str(value).rpartition(":")
        bare = host.removeprefix("[").removesuffix("]")
        is_whole = bare and (":" not in bare or host == f"[{bare}]")
        if not is_whole or not port.isascii() or not port.isdecimal() or int(port) > 65_535:
            self.fail(
                f"{value!r} is not HOST:PORT, such as 127.0.0.1:9464, or 0.0.0.0:9464 for all "
                f"interfaces",
                param,
                ctx,
            )
        return Address(bare, int(port))


class Queue(ParamType[tuple[str, int | Served]]):
    """A queue and how many of its jobs run at once: ``mail:10``, or ``mail`` for ten.

    ``mail:10:time`` is read by time before priority.
    """

    name = "name:concurrency"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int | Served]:
        """Parse the name, the concurrency and the order."""
        if isinstance(value, tuple):
            return value[0], value[1]
        text, of_time, rest = str(value).rpartition(":time")
        by_time = bool(of_time) and not rest and text.rpartition(":")[2].isdecimal()
        name, colon, number = (text if by_time else str(value)).rpartition(":")
        if not colon:
            name, number = number, str(DEFAULT_CONCURRENCY)
        if not name or not (number.isascii() and number.isdecimal()) or int(number) < 1:
            self.fail(f"{value!r} {_problem(name, number, value)}", param, ctx)
        return name, Served(int(number), order="time") if by_time else int(number)


def _problem(name: str, number: str, value: str) -> str:
    if name and "," in number:
        return NO_LIST
    problem = "is not name:concurrency, such as mail:10"
    if name and number and not number.isdecimal():
        problem += f"; a name with a colon needs both: {value}:{DEFAULT_CONCURRENCY}"
    return problem
