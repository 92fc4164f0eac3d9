"""The page of one job, live, dead or ended; and the history, which is of those that have ended."""

from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import Connection
from starlette.exceptions import HTTPException

from .._drafts.unique import split
from .._drafts.validation import CONTENT_TYPE
from .._inspect import jobs as reads
from .._inspect import records
from .._inspect.paging import Position
from .._inspect.reading import can_read_args, readable
from .._inspect.registered import registered
from .._lifecycle.edit import OF_THE_LIBRARY
from .redaction import loaded, pretty
from .visit import View, Visit

PAGE: Final = 50
AFTER_ALL: Final = datetime(9999, 1, 1, tzinfo=UTC)
"""A moment behind which nothing has ended, where the history begins."""


async def one_job(visit: Visit) -> View:
    """All that there is of one job."""
    id, site = visit.asked("id"), visit.site
    if not id:
        raise HTTPException(404, "No job is named.")

    def work(connection: Connection) -> dict[str, Any]:
        args = visit.access.args and can_read_args(connection, site.models)
        # The page shows that of the first one.
        found = reads.all_of(connection, site.statements, id, args="first" if args else False)
        holder = found[0].claimed_by if found else None
        working = registered(connection, *site.where) if holder is not None else []
        return {
            "all": found,
            "args": args,
            "kept": _kept(connection, visit, id),
            "worker": next((one for one in working if one.id == holder), None),
        }

    data = await visit.read(work)
    record = data.pop("kept")
    data |= {"record": record and record.record, "result": _result(visit, record)}
    if not data["all"]:
        if record is None:
            gone = "A job that has ended is gone, unless a record of it is kept."
            raise HTTPException(404, f"There is no job with the id {id}. {gone}")
        return View("ended.html", {**data, "job": None})
    job: reads.JobInfo = data["all"][0]
    key, scope = split(job.unique_key)
    data |= {
        "job": job,
        "earlier": data.pop("all")[1:],
        "contents": contents(visit, job),
        "unique_key": key,
        "unique_scope": scope,
        "known": site.jobs.registry.find(job.type, job.queue) is not None,
    }
    return View("job.html", data)


def _kept(connection: Connection, visit: Visit, id: str) -> records.Found | None:
    """What is kept of a job, as far as the visitor and the database role may see it."""
    site = visit.site
    may = readable(connection, site.models)
    if not may.records:
        return None
    results = visit.access.args and may.results
    found = records.find(connection, *site.where, id, with_result=results)
    return found if found.record is not None else None


def _result(visit: Visit, found: records.Found | None) -> dict[str, Any]:
    if found is None:
        return {"kind": "none", "text": ""}
    return shown(visit, found.result, found.content_type)


def contents(visit: Visit, job: reads.JobInfo) -> dict[str, Any]:
    """The arg and headers of a job, as this visitor may see them; ``own`` are those to be edited.

    See :func:`shown`.
    """
    headers = visit.site.redaction.shown(job.headers) if visit.access.args else {}
    own = {name: value for name, value in headers.items() if is_own(name)}
    told = shown(visit, job.arg, job.headers.get(CONTENT_TYPE))
    return {**told, "headers": headers, "own": pretty(own)}


def shown(visit: Visit, data: bytes | None, content_type: str | None) -> dict[str, Any]:
    """An arg or a result for people.

    ``kind`` is ``none``, ``json``, ``bytes`` or ``broken``, which is text that should be JSON.
    """
    if data is None:
        return {"kind": "none", "text": ""}
    if content_type:
        text = bytes(data[:512]).hex(" ")
        return {"kind": "bytes", "text": text, "size": len(data), "content_type": content_type}
    try:
        text = pretty(visit.site.redaction.shown(loaded(data)))
    except ValueError:
        return {"kind": "broken", "text": "", "size": len(data)}
    return {"kind": "json", "text": text, "size": len(data)}


def is_own(header: str) -> bool:
    """Whether a header is the application's own: not what the library says of this one job."""
    return header != CONTENT_TYPE and not header.startswith(OF_THE_LIBRARY)


async def history(visit: Visit) -> View:
    """The jobs that have ended and of which a record is kept, the last one first."""
    site, after, type = visit.site, visit.position(), visit.asked("type").strip() or None
    # Those that live are on another page.
    position = (after.time, after.id) if after else (AFTER_ALL, "")

    def work(connection: Connection) -> dict[str, Any]:
        may = readable(connection, site.models)
        if not may.records:
            return {"state": "hidden" if may.there else "off", "records": []}
        found = records.page(connection, *site.where, limit=PAGE + 1, after=position, type=type)
        return {"state": "on", "records": found}

    data = await visit.read(work)
    page: list[records.JobRecord] = data["records"]
    last = None
    if len(page) > PAGE:
        page.pop()
        ended_at = page[-1].ended_at
        assert ended_at is not None
        last = Position(ended_at, page[-1].id)
    data |= {"type": type, "following": visit.following("history", last, type=type)}
    return View("history.html", data, around={"types": site.types})
