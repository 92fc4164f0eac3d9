"""What a visitor can do. Each action demands its permission, and acts by a public verb of BGJob."""

import logging
from typing import Any, Final

from sqlalchemy import Connection
from starlette.exceptions import HTTPException

from .._db.printable import printable
from .._inspect.own_columns import add_own_columns
from .._lifecycle import audit
from ..exceptions import InvalidArg, JobAlreadyExists
from ..settings import MAX_ID_LENGTH
from . import forms
from .access import Permission
from .done import Action, Done
from .edits import change, copy, edit
from .pages import MOST_AT_ONCE, chosen
from .redaction import HIDDEN
from .visit import Visit

log = logging.getLogger("sqlalchemy_bgjob.audit")


def cancel(visit: Visit, connection: Connection) -> Done:
    """Cancel live jobs."""
    which, details = _which(visit, "live")
    done = visit.site.jobs.cancel_where(connection, which, limit=MOST_AT_ONCE)
    words = f"Cancelled {_jobs(done.cancelled)}."
    if done.asked:
        words += f" Asked the workers of {_jobs(done.asked)} to end them."
    facts = {"cancelled": done.cancelled, "asked": done.asked}
    return Done(words, facts, "jobs", done.cancelled + done.asked, details)


def run(visit: Visit, connection: Connection) -> Done:
    """Let jobs that are scheduled for later run now."""
    which, details = _which(visit, "live")
    count = visit.site.jobs.run_now(connection, which, limit=MOST_AT_ONCE)
    return Done(f"{_jobs(count)} due now.", {"due": count}, "jobs", count, details)


def redrive(visit: Visit, connection: Connection) -> Done:
    """Bring dead jobs back."""
    which, details = _which(visit, "dead")
    per_second = forms.optional(visit, "per_second", forms.number)
    site = visit.site
    if site.is_bare:
        add_own_columns(connection, site.models)
    done = site.jobs.redrive(connection, which, limit=MOST_AT_ONCE, per_second=per_second)
    words = f"Redrove {_jobs(len(done.ids))}."
    if done.left:
        words += f" {_jobs(len(done.left))} stay dead: a live job has the same id or unique key."
    facts = {"redriven": len(done.ids), "left": len(done.left)}
    return Done(words, facts, "dead", len(done.ids), details | {"per_second": per_second})


def delete(visit: Visit, connection: Connection) -> Done:
    """Delete dead jobs."""
    which, details = _which(visit, "dead")
    count = visit.site.jobs.prune(connection, 0.0, which, limit=MOST_AT_ONCE)
    words = f"Deleted {_jobs(count, 'dead job')}."
    return Done(words, {"deleted": count}, "dead", count, details)


def enqueue(visit: Visit, connection: Connection) -> Done:
    """Enqueue a job of a registered handler."""
    type, site = visit.asked("type"), visit.site
    handler = site.jobs.registry.find_type(type)
    if handler is None:
        raise HTTPException(404, "This process has no handler of this type.")
    arg = forms.optional(visit, "arg", forms.json_of)
    options: dict[str, Any] = {
        "delay": forms.optional(visit, "delay", forms.number) or 0.0,
        "priority": forms.optional(visit, "priority", forms.whole) or 0,
    }
    if visit.asked("queue").strip():
        options["queue"] = visit.asked("queue").strip()
    id = site.jobs.enqueue(connection, type, arg, **options).id
    given = {"arg": site.redaction.shown(arg)} if visit.asked("arg").strip() else {}
    details = {"id": id, "type": type, **options}
    return Done("Enqueued.", {"id": id}, f"job?id={id}", 1, details, given)


def pause(visit: Visit, connection: Connection) -> Done:
    """Pause a queue, with a reason and an end."""
    queue = visit.asked("queue")
    minutes = forms.optional(visit, "minutes", forms.number)
    reason = visit.asked("reason").strip() or None
    until = None if minutes is None else minutes * 60
    visit.site.jobs.pause(connection, queue, by=visit.access.user, reason=reason, until=until)
    details = {"queue": queue, "reason": reason, "until": until}
    return Done(f"Paused the queue {queue}.", {"queue": queue}, "queues", 1, details)


def resume(visit: Visit, connection: Connection) -> Done:
    """Resume a queue."""
    queue = visit.asked("queue")
    was_paused = visit.site.jobs.resume(connection, queue)
    words = f"Resumed the queue {queue}." if was_paused else f"The queue {queue} was not paused."
    facts = {"queue": queue, "was_paused": was_paused}
    return Done(words, facts, "queues", int(was_paused), {"queue": queue})


def slots(visit: Visit, connection: Connection) -> Done:
    """Set how many jobs of a queue each worker runs; nothing takes the number back."""
    queue = visit.asked("queue")
    number = forms.optional(visit, "slots", forms.whole)
    visit.site.jobs.set_slots(connection, queue, number)
    words = "as each worker was started" if number is None else f"{number} in each worker"
    facts = {"queue": queue, "slots": number}
    details = facts | {"slots": "default" if number is None else number}
    return Done(f"Slots of {queue}: {words}.", facts, "queues", 1, details)


def schedule_pause(visit: Visit, connection: Connection) -> Done:
    """Pause a schedule."""
    name = visit.asked("name")
    reason = visit.asked("reason").strip() or None
    schedules = visit.site.jobs.schedules
    if not schedules.pause(connection, name, by=visit.access.user, reason=reason):
        raise HTTPException(404, "There is no such schedule.")
    details = {"name": name, "reason": reason}
    return Done(f"Paused the schedule {name}.", {"name": name}, "schedules", 1, details)


def schedule_resume(visit: Visit, connection: Connection) -> Done:
    """Resume a schedule."""
    name = visit.asked("name")
    if visit.site.jobs.schedules.resume(connection, name) is None:
        raise HTTPException(404, "There is no such schedule that is paused.")
    return Done(f"Resumed the schedule {name}.", {"name": name}, "schedules", 1, {"name": name})


def schedule_run(visit: Visit, connection: Connection) -> Done:
    """Enqueue a schedule's job now."""
    name = visit.asked("name")
    id = visit.site.jobs.schedules.run_now(connection, name)
    details = {"id": id, "name": name}
    return Done(f"Enqueued a job of {name}.", {"id": id}, f"job?id={id}", 1, details)


ACTIONS: Final[dict[str, tuple[Permission, Action]]] = {
    "cancel": ("cancel", cancel),
    "run": ("run", run),
    "copy": ("enqueue", copy),
    "enqueue": ("enqueue", enqueue),
    "edit": ("edit", edit),
    "change": ("edit", change),
    "redrive": ("redrive", redrive),
    "delete": ("delete", delete),
    "pause": ("queues", pause),
    "resume": ("queues", resume),
    "slots": ("queues", slots),
    "schedule-pause": ("schedules", schedule_pause),
    "schedule-resume": ("schedules", schedule_resume),
    "schedule-run": ("schedules", schedule_run),
}
"""By the name in its path: the permission that it demands, and what does it."""


async def perform(visit: Visit, name: str) -> Done:
    """Do an action, if the visitor may; write it down with its effect; and log it.

    Raises:
        HTTPException: There is no such action, the visitor may not, or it can't be done.
    """
    found = ACTIONS.get(name)
    if found is None:
        raise HTTPException(404, "There is no such action.")
    permission, act = found
    visit.demand(permission)

    def work(connection: Connection) -> Done:
        done = act(visit, connection)
        audit.write(
            connection,
            visit.site.statements,
            who=visit.access.user,
            origin="dashboard",
            verb=name,
            changed=done.changed,
            details=done.details,
            given=done.given,
        )
        return done

    try:
        done = await visit.act(work)
    except (InvalidArg, JobAlreadyExists, LookupError, ValueError, TypeError) as error:
        raise HTTPException(400, str(error)) from None
    except RecursionError:  # what json.loads has read may still be too deep to look through
        raise HTTPException(400, "This JSON is nested too deeply.") from None
    by = visit.access.user or "unknown"
    # No arg is in it, nor a search, which may name values of args. And it is one line.
    log.info(
        "%s by %s: %s",
        name,
        printable(by),
        printable(done.words),
        extra={"action": name, "user": by, "facts": done.facts},
    )
    return done


def _which(visit: Visit, kind: str) -> tuple[Any, dict[str, Any]]:
    """The jobs that are meant: the condition, and what the audit says of it."""
    _, search, problem = visit.search()
    if problem is not None:
        raise HTTPException(400, problem)
    whole, ids = bool(visit.asked("whole")), visit.all_asked("id")
    if whole == bool(ids):
        raise HTTPException(400, "Select some jobs, or choose all that fit the search.")
    if any(len(id) > MAX_ID_LENGTH for id in ids):  # else it might be cut in the audit
        raise HTTPException(400, f"An id has at most {MAX_ID_LENGTH} characters.")
    told = {"ids": ids} if ids else {"search": str(search.hiding_args(HIDDEN))}
    return chosen(visit, kind, ids, search), told


def _jobs(count: int, noun: str = "job") -> str:
    return f"1 {noun}" if count == 1 else f"{count:,} {noun}s"
