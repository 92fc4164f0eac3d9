"""The protocol that every Python adapter speaks: ``peer_x.py COMMAND DSN [JSON options]``.

An adapter gives :func:`main` one coroutine function per command. What it returns is printed as
the one line of JSON; everything else that is printed goes to stderr. Nothing here imports more
than the standard library, because each peer has a virtual environment of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

Options = dict[str, Any]
Command = Callable[[str, Options], Awaitable[dict[str, Any]]]

MARK_EVERY = 500
"""Every how many handler calls the time is kept."""

SETTLE = 1.0
"""Seconds until a worker surely listens; before that no latency can be measured."""
TICK = 0.02
"""Seconds from one look for the file that stops a worker to the next."""
QUIET_TICK = 0.5
"""The same where pick-up or an idle worker is measured: the harness is to cost nothing there."""


def main(**commands: Command) -> None:
    """Run the command of the command line and print its answer."""
    name, dsn, *rest = sys.argv[1:]
    options: Options = json.loads(rest[0]) if rest else {}
    answers, sys.stdout = sys.stdout, sys.stderr
    answer = asyncio.run(_call(commands[name], dsn, options))
    print(json.dumps(answer), file=answers, flush=True)


async def _call(command: Command, dsn: str, options: Options) -> dict[str, Any]:
    return await command(dsn, options)


def with_host(dsn: str) -> str:
    """The same URL with a host, for the drivers that refuse one without."""
    parts = urlsplit(dsn)
    if parts.hostname:
        return dsn
    return urlunsplit(parts._replace(netloc=f"{parts.netloc}localhost"))


def argument(options: Options) -> dict[str, Any]:
    """A job's argument, whose compact JSON has ``arg_bytes`` bytes."""
    return {"x": "a" * (int(options.get("arg_bytes", 20)) - len('{"x":""}'))}


def encode(value: dict[str, Any]) -> bytes:
    """Compact JSON, for the peers whose argument is bytes."""
    return json.dumps(value, separators=(",", ":")).encode()


async def one_by_one(
    options: Options, send: Callable[[dict[str, Any]], Awaitable[Any]]
) -> dict[str, Any]:
    """The answer of ``enqueue``: one committed job after the other."""
    jobs, value = options["jobs"], argument(options)
    started = time.monotonic()
    for _ in range(jobs):
        await send(value)
    return {"seconds": time.monotonic() - started, "jobs": jobs}


async def at_once(
    options: Options, send: Callable[[list[dict[str, Any]]], Awaitable[Any]]
) -> dict[str, Any]:
    """The answer of ``bulk``; making the list of arguments is not measured."""
    values = [argument(options) for _ in range(options["jobs"])]
    started = time.monotonic()
    await send(values)
    return {"seconds": time.monotonic() - started, "jobs": len(values)}


def names(options: Options) -> list[str]:
    """The queues, or what takes their place: ``noop``, or as many as ``queues`` says."""
    number = options.get("queues")
    return ["noop"] if number is None else [f"noop-{n}" for n in range(number)]


async def paced(
    options: Options, send: Callable[[dict[str, Any]], Awaitable[Any]]
) -> dict[str, Any]:
    """As :func:`paced_over`, for a peer that is used with one queue only."""
    return await paced_over(options, lambda _, value: send(value))


async def paced_over(
    options: Options, send: Callable[[str, dict[str, Any]], Awaitable[Any]]
) -> dict[str, Any]:
    """The answer of ``pulse``: a job each interval, without drift, in each queue in turn."""
    sent, queues = [], names(options)
    started = time.monotonic()
    for number in range(options["jobs"]):
        wait = started + number * options.get("interval", 0.05) - time.monotonic()
        await asyncio.sleep(max(0.0, wait))
        before = time.monotonic()
        await send(queues[number % len(queues)], {"n": number})
        sent.append([number, before, time.monotonic()])
    return {"sent": sent}


class Recorder:
    """What the handlers of one worker saw."""

    def __init__(self) -> None:
        self.count = 0
        self.first: float | None = None
        self.last: float | None = None
        self.marks: list[tuple[int, float]] = []
        self.picked: list[tuple[int, float]] = []

    def seen(self, number: int | None = None) -> None:
        """Note a handler's call; `number` is the job's, when its argument has one."""
        now = time.monotonic()
        self.count += 1
        if self.first is None:
            self.first = now
        self.last = now
        if self.count % MARK_EVERY == 0:
            self.marks.append((self.count, now))
        if number is not None:
            self.picked.append((number, now))

    def answer(self) -> dict[str, Any]:
        return {
            "count": self.count,
            "first": self.first,
            "last": self.last,
            "marks": self.marks,
            "picked": self.picked,
        }


async def until_stopped(options: Options) -> None:
    """Tell that the worker runs, and return when it shall stop."""
    if options.get("latency"):
        await asyncio.sleep(SETTLE)
    _touch(options["ready_file"])
    while not _exists(options["stop_file"]):  # noqa: ASYNC110 - another process makes the file
        await asyncio.sleep(QUIET_TICK if options.get("latency") else TICK)


def _touch(path: str) -> None:
    Path(path).touch()


def _exists(path: str) -> bool:
    return os.path.exists(path)  # noqa: PTH110 - fifty times a second, beside the worker
