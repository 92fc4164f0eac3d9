"""The pages about jobs: overview, live jobs, dead jobs, one job, and what an action would do."""

from heapq import nlargest
from operator import attrgetter
from typing import Any, Final

from sqlalchemy import Connection
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse

from .._inspect import jobs as reads
from .._inspect.paging import Part
from .._inspect.queues import QueueInfo, all_queues
from .._inspect.registered import registered
from .._inspect.sizes import estimated_rows
from .._sql.search_terms import FIELDS, STATES, Search, Term
from .trends import trends
from .visit import View, Visit

PAGE: Final = 50
"""Jobs on a page."""
MOST_AT_ONCE: Final = 10_000
"""Jobs that one action changes at most."""
_HOURS: Final = 24
_MOST_DEATHS: Final = 10_000
COUNTED: Final = 1_000
"""How many jobs of a queue and priority a page counts, of those that are scheduled or not."""
COUNTED_IN_ALL: Final = 50_000
"""How many of all queues together."""
COUNTED_LANES: Final = 300
"""Of how many queues and priorities a page of jobs tells the numbers."""
MOST_QUEUES: Final = 200
"""Queues on a page: their names may be any text, such as one for each tenant."""
_TABS: Final = ("due", "scheduled", "running", "retrying")


async def overview(visit: Visit) -> View:
    """How the queue is: depths, ages, who works, what died."""
    site = visit.site

    def work(connection: Connection) -> dict[str, Any]:
        since = Search((Term("since", ("1h",)),))
        return {
            **queues_of(visit, connection),
            "estimated": estimated_rows(connection, *site.where),
            "workers": registered(connection, *site.where),
            "deaths": reads.deaths(
                connection,
                site.statements,
                seconds=3_600.0,
                periods=_HOURS,
                scan=_MOST_DEATHS,
            ),
            "deaths_most": _MOST_DEATHS,
            "dead_now": reads.count_dead(connection, site.statements, since),
            "failures": reads.dead_groups(connection, site.statements, since, size=8),
        }

    data = await visit.read(work)
    data["trends"] = await trends(visit)
    data["unserved"] = [one for one in data["queues"] if one.due and not one.workers]
    return View("overview.html", data)


def queues_of(visit: Visit, connection: Connection, lanes: int | None = None) -> dict[str, Any]:
    """The queues that a page shows, by name; how many it leaves out; and the sums over all."""
    found = all_queues(
        connection, *visit.site.where, many=COUNTED, most=COUNTED_IN_ALL, lanes=lanes
    )
    totals: dict[str, Any] = {
        name: sum(getattr(queue, name) for queue in found)
        for name in ("due", "scheduled", "running")
    }
    totals["stopped"] = any(queue.stopped for queue in found)
    shown = sorted(nlargest(MOST_QUEUES, found, key=_weight), key=attrgetter("queue"))
    return {"queues": shown, "queues_left_out": len(found) - len(shown), "totals": totals}


def _weight(queue: QueueInfo) -> tuple[bool, int, int]:
    """Queues with the most of it are shown: what somebody paused, then what waits."""
    return queue.paused is not None, queue.due, queue.running + queue.scheduled


async def live_jobs(visit: Visit) -> View | RedirectResponse:
    """Live jobs that a search finds."""
    text, search, problem = visit.search()
    site = visit.site
    if search.only("state") == ("dead",):
        return RedirectResponse(visit.url("dead", q=str(search.without("state"))), 303)
    after = visit.position()

    def work(connection: Connection) -> dict[str, Any]:
        if search.bare_word and reads.exists(connection, site.statements, search.bare_word):
            return {"found": search.bare_word}
        page: Part[reads.JobInfo] = Part([])
        if problem is None:
            page = reads.live_page(connection, site.statements, search, size=PAGE, after=after)
        return {"page": page, **queues_of(visit, connection, COUNTED_LANES)}

    data = await visit.read(work)
    if "found" in data:
        return RedirectResponse(visit.url("job", id=data["found"]), 303)
    states = search.only("state") or ()
    rest = search.without("state")
    around = {
        "only": states[0] if len(states) == 1 else "all",
        "tabs": [
            ("all", visit.url("jobs", q=str(rest))),
            *((tab, visit.url("jobs", q=f"state:{tab} {rest}".strip())) for tab in _TABS),
            ("dead", visit.url("dead")),
        ],
        "counts": {} if rest.terms else data["totals"],
        **_completion(visit, [one.queue for one in data["queues"]]),
    }
    told = _listed(visit, "jobs", data["page"], text, problem) | {"totals": data["totals"]}
    return View("jobs.html", told, 400 if problem else 200, around)


async def dead_jobs(visit: Visit) -> View:
    """Dead jobs that a search finds, and of what they died."""
    text, search, problem = visit.search()
    site, after = visit.site, visit.position()

    def work(connection: Connection) -> dict[str, Any]:
        if problem is not None:
            return {"page": Part([]), "groups": []}
        return {
            "page": reads.dead_page(connection, site.statements, search, size=PAGE, after=after),
            "groups": reads.dead_groups(connection, site.statements, search, size=12)
            if after is None
            else [],
        }

    data = await visit.read(work)
    told = _listed(visit, "dead", data["page"], text, problem)
    told |= {"groups": data["groups"], "groups_of": reads.SCAN}
    return View("dead.html", told, 400 if problem else 200, _completion(visit, []))


def _listed(
    visit: Visit, path: str, page: Part[reads.JobInfo], text: str, problem: str | None
) -> dict[str, Any]:
    """What a search has found, as both pages of jobs tell it."""
    following = visit.following(path, page.following, q=text)
    return {
        "q": text,
        "problem": problem,
        "jobs": page.rows,
        "stopped": page.stopped,
        "following": following,
    }


def _completion(visit: Visit, queues: list[str]) -> dict[str, Any]:
    """What the search box can complete."""
    types = visit.site.types
    return {"fields": FIELDS, "states": STATES, "types": types, "queue_names": queues}


# ---- what an action would do --------------------------------------------------------------------

_CONFIRMED: Final = {"cancel": "live", "run": "live", "redrive": "dead", "delete": "dead"}


async def confirm(visit: Visit) -> View:
    """How many jobs an action would change, before somebody says yes."""
    action = visit.asked("action")
    kind = _CONFIRMED.get(action)
    if kind is None:
        raise HTTPException(404, "There is no such action.")
    visit.demand(action)  # type: ignore[arg-type]
    text, search, problem = visit.search()
    if problem is not None:
        raise HTTPException(400, problem)
    ids = [] if visit.asked("whole") else visit.all_asked("id")
    if not ids and not visit.asked("whole"):
        raise HTTPException(400, "Select some jobs first, or choose all that fit the search.")
    site = visit.site

    def work(connection: Connection) -> dict[str, Any]:
        if action == "redrive":
            which = chosen(visit, "dead", ids, search)
            by_type = site.jobs.redrive(connection, which, limit=MOST_AT_ONCE, dry_run=True)
            return {"count": sum(by_type.values()), "by_type": by_type}
        if ids:
            return {"count": len(ids)}
        count = reads.count_live if kind == "live" else reads.count_dead
        return {"count": count(connection, site.statements, search, MOST_AT_ONCE)}

    data = await visit.read(work)
    data |= {
        "action": action,
        "kind": kind,
        "q": text,
        "ids": ids,
        "most": MOST_AT_ONCE,
    }
    list_of_all = "jobs" if kind == "live" else "dead"
    around = {"back": visit.asked("back") or list_of_all, "keep": visit.back(list_of_all)}
    return View("confirm.html", data, around=around)


def chosen(visit: Visit, kind: str, ids: list[str], search: Search) -> Any:
    """The condition of the jobs that are meant: those that were selected, or all that fit."""
    models = visit.site.models
    if kind == "live":
        return reads.these(models, ids) if ids else reads.live_condition(models, search)
    return reads.these_dead(models, ids) if ids else reads.dead_condition(models, search)
