"""The pages about everything but jobs: queues, workers, schedules, handlers, the system."""

from dataclasses import asdict
from datetime import datetime
from itertools import islice
from typing import Any, Final

from sqlalchemy import Connection
from starlette.exceptions import HTTPException

from .._handlers.description import arg_schema, described
from .._handlers.timetable import timetable
from .._inspect.doctor import Finding, examine
from .._inspect.fleet import serving, workers
from .._inspect.schedules import ScheduleInfo, schedules
from .._inspect.sizes import table_sizes
from ..exceptions import SchemaOutOfDate
from ..schema import LATEST, db_version
from .pages import queues_of
from .visit import View, Visit

CHECKED_FOR: Final = 30.0
"""Seconds for which the same findings are shown: the doctor looks at much that seldom changes."""
MOST_SCHEDULES: Final = 500
"""Schedules on their page."""
_RUNS: Final = 3


async def all_queues_page(visit: Visit) -> View:
    """Queues: depth, pause, slots, and who works on them."""
    site = visit.site

    def work(connection: Connection) -> dict[str, Any]:
        found = queues_of(visit, connection)
        shown = (queue.queue for queue in found["queues"])
        return {**found, "serving": serving(connection, *site.where, shown)}

    return View("queues.html", await visit.read(work))


async def all_workers(visit: Visit) -> View:
    """Workers: heartbeats, queues, what they run."""
    found = await visit.read(lambda connection: workers(connection, *visit.site.where))
    return View("workers.html", {"workers": found})


async def all_schedules(visit: Visit) -> View:
    """Schedules: when they fire, in words; also those of the code that have no row yet."""
    site = visit.site
    found = await visit.read(
        lambda connection: schedules(connection, *site.where, most=MOST_SCHEDULES + 1)
    )
    rows = [{**asdict(one), "runs": _runs(one)} for one in found[:MOST_SCHEDULES]]
    more = len(found) > MOST_SCHEDULES
    known = {one.name for one in found}
    waiting = [
        {"name": name, "cron": made.cron, "timezone": made.timezone, "type": made.type}
        for name, made in sorted(site.jobs.registry.schedules.items())
        if name not in known and not more  # or its row may be among those left out
    ]
    return View("schedules.html", {"schedules": rows, "more": more, "without_row": waiting})


def _runs(schedule: ScheduleInfo) -> list[datetime]:
    """The next fire times; none of a paused schedule, or of a row that nobody can read."""
    if schedule.next_at is None:
        return []
    try:
        return timetable(schedule.cron, schedule.timezone).upcoming(schedule.next_at, _RUNS)
    except ValueError:
        return [schedule.next_at]


# ---- handlers -----------------------------------------------------------------------------------


async def all_handlers(visit: Visit) -> View:
    """The handlers that this process knows."""
    registry = visit.site.jobs.registry
    found = [described(handler) for handler in registry]
    return View(
        "handlers.html",
        {"handlers": sorted(found, key=lambda one: (one["type"], one["queue"]))},
    )


async def one_handler(visit: Visit) -> View:
    """A handler: what it says of itself, what it takes, and a form to enqueue a job of it."""
    handler = visit.site.jobs.registry.find_type(visit.asked("type"))
    if handler is None:
        raise HTTPException(404, "This process has no handler of this type.")
    data = described(handler) | {"schema": arg_schema(handler)}
    return View("handler.html", {"handler": data, "problem": None, "given": {}})


# ---- system -------------------------------------------------------------------------------------


async def system(visit: Visit) -> View:
    """Sizes, versions, and what the doctor finds."""
    site = visit.site
    schema, prefix = site.where

    def work(connection: Connection) -> dict[str, Any]:
        return {
            "version": _version(connection, schema, prefix),
            "tables": list(islice(table_sizes(connection, schema, prefix), 50)),
        }

    def check(connection: Connection) -> list[Finding]:
        # Workers have a role and connections of their own.
        return examine(connection, schema=schema, table_prefix=prefix, as_worker=False)

    data = await visit.read(work)
    findings, age = await site.kept("doctor", CHECKED_FOR).get(
        lambda: visit.read(check), anew=bool(visit.asked("anew"))
    )
    return View("system.html", data | {"findings": findings, "age": age, "latest": LATEST})


def _version(connection: Connection, schema: str | None, prefix: str) -> int | None:
    """The version of the tables; None if nothing tells it, of which the doctor says more."""
    try:
        return db_version(connection, schema=schema, table_prefix=prefix)
    except SchemaOutOfDate:
        return None
