"""Edit: give a queued job another arg, headers, priority or time, in the caller's own transaction.

Its row is locked first, and looked at then. So a claim came before, and nothing is changed; or it
comes after the caller's commit, and finds the job as it is then.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final, Literal, TypedDict

from .._db.targets import Unit, run_in
from .._drafts import validation
from .._drafts.draft import UNTYPED
from .._handlers.registry import Registry
from .._misuse import refuse_unknown
from .._sql import Statements
from .._sql.words import parameters
from ..models import Models

Edited = Literal["edited", "running", "waiting", "changed"] | None
"""What an edit of one job did."""
OF_THE_LIBRARY: Final = "bgjob-"
"""How the names of those headers begin that say where a job comes from: an edit keeps them."""


class EditOptions(TypedDict, total=False):
    """What can be changed, for type checkers."""

    arg: Any
    headers: Mapping[str, Any] | None
    priority: int
    delay: float | timedelta
    run_at: datetime


def edit(
    models: Models,
    statements: Statements,
    registry: Registry,
    target: Any,
    id: str,
    lease: int | None,
    changes: EditOptions,
) -> Any:
    """See :meth:`BGJob.edit`."""
    refuse_unknown("BGJob.edit", changes, EditOptions)
    if not changes:
        raise TypeError("BGJob.edit() needs something to change: arg, headers, priority or run_at")
    id = validation.job_id(id)
    delay, run_at = validation.start(changes.get("delay"), changes.get("run_at"))
    given: dict[str, Any] = {}
    if "priority" in changes:
        given["priority"] = validation.priority(changes["priority"])
    if "headers" in changes:
        validation.headers(changes["headers"])  # before any SQL

    def work(unit: Unit) -> Edited:
        row = unit.execute(statements.operate.to_edit, parameters(id=id)).one_or_none()
        if row is None:
            return None
        if row.claimed_by is not None:
            return "running"
        if lease is not None and row.lease != lease:
            return "changed"
        values = {**given, **_contents(registry, row, changes)}
        start = run_at if delay is None else row.now + delay
        if start is not None:
            if row.waits:
                return "waiting"
            validation.expiry(row.expires_at, start)
            values["next_run_at"] = start
        statement = statements.operate.edit(values)
        done = unit.execute(statement, parameters(id=id, **values)).one()
        if done.is_due and unit.can_notify:
            # It may stand near the head, and workers that read on have passed it by meanwhile.
            told = statements.rescue.notify_given_back(True)
            unit.execute(told, parameters(queue=row.queue))
        return "edited"

    return run_in(target, models, work, call="BGJob.edit")


def _contents(registry: Registry, row: Any, changes: EditOptions) -> dict[str, Any]:
    """The columns of arg and headers, as far as they change: the headers name the arg's type."""
    if "arg" not in changes and "headers" not in changes:
        return {}
    before = validation.stored_headers(row.headers)
    content_type, values = before.get(validation.CONTENT_TYPE), dict[str, Any]()
    if "arg" in changes:
        codec = registry.codec(row.type, row.queue) or UNTYPED
        values["arg"], content_type = codec.encode(changes["arg"])
    kept = {name: one for name, one in before.items() if name.startswith(OF_THE_LIBRARY)}
    own = changes.get("headers", before)
    stored = {name: one for name, one in (own or {}).items() if name != validation.CONTENT_TYPE}
    values["headers"] = validation.headers({**stored, **kept} or None, content_type)
    return values
