"""The page of the audit: what was done here and on the command line, the last first."""

from dataclasses import replace
from typing import Any, Final

from sqlalchemy import Connection

from .._inspect.audit import AuditRow, page
from .._inspect.paging import Part
from .._inspect.reading import readable
from .actions import ACTIONS
from .visit import View, Visit

PAGE: Final = 50
SCAN: Final = 100_000
"""How many rows a page looks at, for those that fit."""


async def audit(visit: Visit) -> View:
    """Who did what, when, on how many rows."""
    site, after = visit.site, visit.position()
    who, verb = (visit.asked(name).strip() or None for name in ("who", "verb"))

    def work(connection: Connection) -> tuple[str, Part[AuditRow]]:
        may = readable(connection, site.models)
        if not may.audit:
            return "hidden" if may.there else "off", Part([])
        return "on", page(
            connection,
            *site.where,
            size=PAGE,
            scan=SCAN,
            after=after,
            who=who,
            verb=verb,
            with_given=may.given and visit.access.args,
        )

    state, part = await visit.read(work)
    data: dict[str, Any] = {
        "state": state,
        # The command line does not know which words hide a value here.
        "actions": [replace(row, given=site.redaction.shown(row.given)) for row in part.rows],
        "stopped": part.stopped,
        "scan": SCAN,
        "who": who,
        "verb": verb,
        "following": visit.following("audit", part.following, who=who, verb=verb),
    }
    return View("audit.html", data, around={"verbs": list(ACTIONS)})
