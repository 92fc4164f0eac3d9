"""The page of the audit: what was done here and on the command line, the last first."""

from dataclasses import replace
from typing import Any, Final

from sqlalchemy import Connection

from .._inspect.audit import AuditRow, page
from .._inspect.reading import readable
from .actions import ACTIONS
from .visit import AFTER_ALL, View, Visit
from .words import iso

PAGE: Final = 50


async def audit(visit: Visit) -> View:
    """Who did what, when, on how many rows."""
    site, after = visit.site, visit.position()
    who, verb = (visit.asked(name).strip() or None for name in ("who", "verb"))
    before = (after.time, after.id) if after else (AFTER_ALL, "")

    def work(connection: Connection) -> dict[str, Any]:
        may = readable(connection, site.models)
        if not may.audit:
            return {"state": "hidden" if may.there else "off", "rows": []}
        found = page(
            connection,
            *site.where,
            limit=PAGE + 1,
            before=before,
            who=who,
            verb=verb,
            with_given=may.given and visit.access.args,
        )
        # The command line does not know which words hide a value here.
        rows = [replace(one, given=site.redaction.shown(one.given)) for one in found]
        return {"state": "on", "rows": rows}

    data = await visit.read(work)
    rows: list[AuditRow] = data["rows"]
    following = None
    if len(rows) > PAGE:
        rows.pop()
        last = rows[-1]
        following = visit.url("audit", who=who, verb=verb, after=f"{iso(last.at)} {last.id}")
    data |= {"who": who, "verb": verb, "verbs": list(ACTIONS)}
    data |= {"first": visit.url("audit", who=who, verb=verb), "is_first": after is None}
    return View("audit.html", data | {"following": following})
