"""The pages of batches: all of them, the last one first, and one."""

from dataclasses import asdict
from typing import Any, Final

from sqlalchemy import Connection
from starlette.exceptions import HTTPException

from .._inspect import batches as reads
from .._inspect.reading import can_read_batches, readable
from .._sql.search_terms import Search, Term
from .visit import View, Visit

PAGE: Final = 50
UNFINISHED: Final = "unfinished"


async def all_batches(visit: Visit) -> View:
    """Batches: how far each has come, and what follows it."""
    site, before = visit.site, visit.asked("after") or None
    unfinished = visit.asked("state") == UNFINISHED

    def work(connection: Connection) -> dict[str, Any]:
        if not can_read_batches(connection, site.models):
            return {"state": "hidden", "batches": [], "more": False}
        found = reads.batches(
            connection, *site.where, limit=PAGE + 1, before=before, unfinished=unfinished
        )
        rows = _shown(visit, connection, found[:PAGE])
        return {"state": "on", "batches": rows, "more": len(found) > PAGE}

    data = await visit.read(work)
    only = UNFINISHED if unfinished else None
    last = data["batches"][-1]["id"] if data.pop("more") else None
    data["following"] = last and visit.url("batches", state=only, after=last)
    around = {
        "only": only or "all",
        "tabs": [
            ("all", visit.url("batches")),
            (UNFINISHED, visit.url("batches", state=UNFINISHED)),
        ],
    }
    return View("batches.html", data, around=around)


async def one_batch(visit: Visit) -> View:
    """One batch: its jobs by how they are, and what becomes of it next."""
    site, id = visit.site, visit.asked("id")
    if not id:
        raise HTTPException(404, "No batch is named.")

    def work(connection: Connection) -> dict[str, Any]:
        if not can_read_batches(connection, site.models):
            return {"state": "hidden", "batch": None}
        found = reads.batch(connection, *site.where, id, most=reads.COUNTED_IN_ALL)
        rows = _shown(visit, connection, [found] if found else [])
        return {"state": "on", "batch": rows[0] if rows else None}

    data = await visit.read(work)
    if data["state"] == "on" and data["batch"] is None:
        gone = "One that was finished long ago is gone: the setting batch_keep says when."
        raise HTTPException(404, f"There is no batch with the id {id}. {gone}")
    return View("batch.html", data)


def _shown(
    visit: Visit, connection: Connection, found: list[reads.BatchInfo]
) -> list[dict[str, Any]]:
    """Batches with what the pages tell of them beside their rows."""
    site = visit.site
    recorded = readable(connection, site.models).records
    seen = reads.followers(connection, *site.where, found, records=recorded)
    return [
        {
            **asdict(one),
            "state": one.state,
            "ended": one.ended,
            "search": str(Search((Term("batch", (one.id,)),))),
            # Where nothing is left of it, there is no page to lead to.
            "then_id": one.then_id if one.then_id in seen else None,
        }
        for one in found
    ]
