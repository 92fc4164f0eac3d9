"""What a visitor can do. Each action demands its permission, and acts by a public verb of BGJob."""

import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from sqlalchemy import Connection
from sqlalchemy.orm import Session
from starlette.exceptions import HTTPException

from .._db.printable import printable
from .._drafts.validation import CONTENT_TYPE
from .._inspect import jobs as reads
from .._inspect.own_columns import add_own_columns
from .._lifecycle import audit
from ..exceptions import InvalidArg, JobAlreadyExists
from ..settings import MAX_ID_LENGTH
from .access import Permission
from .one_job import is_own
from .pages import MOST_AT_ONCE, chosen
from .redaction import HIDDEN, loaded, pretty
from .visit import Visit
from .words import iso, local

log = logging.getLogger("sqlalchemy_bgjob.audit")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Done:
    """What an action did: a sentence for people, numbers for scripts, and where to go on.

    And for the audit how many rows it changed, on what it was, and which arg or headers it gave.
    """

    words: str
    facts: dict[str, Any]
    to: str
    changed: int
    details: dict[str, Any]
    given: dict[str, Any] = field(default_factory=dict)


Action = Callable[[Visit, Connection], Done]
"""Acts in the transaction that it gets, which is committed when it returns."""


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
    per_second = _given(visit, "per_second", _number)
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


def edit(visit: Visit, connection: Connection) -> Done:
    """Give a dead job another arg."""
    if not visit.access.args:
        raise HTTPException(403, "You may not see args, nor change them.")
    row_id, site = visit.asked("row"), visit.site
    value = _json(visit.asked("arg"))
    with Session(connection, join_transaction_mode="rollback_only") as session:
        dead = session.get(site.jobs.DeadJob, row_id, with_for_update=True)
        if dead is None:
            raise HTTPException(404, "This dead job is gone: redriven, or deleted.")
        before = _old_value(dead)
        # A row is assigned bytes of JSON as what they stand for: the handler's type checks it.
        dead.arg = site.redaction.restored(value, before)
        session.flush()
        id = str(dead.job_id)
    given = {"arg": site.redaction.shown(value)}
    return Done("The arg is changed.", {"id": id}, f"job?id={id}", 1, {"id": id}, given)


def _old_value(job: Any) -> Any:
    """The JSON value of a job's arg; None if it is none, which is what may have to be mended.

    Raises:
        HTTPException: Its headers can't be read.
    """
    headers = job.headers or {}
    if not isinstance(headers, dict):
        raise HTTPException(400, "The headers of this job are no object: mend them by SQL first.")
    if job.arg is None or headers.get(CONTENT_TYPE):
        return None
    try:
        return loaded(job.arg)
    except ValueError:
        return None


def change(visit: Visit, connection: Connection) -> Done:
    """Give a queued job another arg, headers, priority or time, if it still is as it was shown."""
    id, site = visit.asked("id"), visit.site
    lease = _whole(visit, "lease")
    with_arg = "arg" in visit.form
    if not visit.access.args and (with_arg or "headers" in visit.form):
        raise HTTPException(403, "You may not see args and headers, nor change them.")
    job = next(iter(reads.all_of(connection, site.statements, id, args=with_arg)), None)
    if job is None or job.row_id is not None:
        raise HTTPException(404, "This job is gone: it has ended, or was cancelled.")
    if visit.asked("shown") not in ("", iso(job.updated_at)):
        raise _changed_meanwhile("running" if job.claimed_by is not None else "changed")
    changes = _changes(visit, job)
    if changes:
        answer = site.jobs.edit(connection, id, lease=lease, **changes)
        if answer != "edited":
            raise _changed_meanwhile(answer)
    names = sorted(changes)
    words = f"Changed {', '.join(names)}." if names else "Nothing was to be changed."
    given = {name: changes.pop(name) for name in ("arg", "headers") if name in changes}
    return Done(
        words,
        {"id": id, "changed": names},
        f"job?id={id}",
        1 if names else 0,
        {"id": id, **changes},
        site.redaction.shown(given),
    )


def _changed_meanwhile(answer: str | None) -> HTTPException:
    match answer:
        case "running":
            why = "A worker has claimed this job meanwhile."
        case "waiting":
            why = "This job waits for others of its group: it has no time that could be changed."
        case _:
            why = "This job has run, ended or was changed meanwhile: look at it again."
    return HTTPException(409, f"{why} Nothing was changed.")


def _changes(visit: Visit, job: reads.JobInfo) -> dict[str, Any]:
    """What of the form is not as the job has it, for ``jobs.edit``."""
    form, redaction, found = visit.form, visit.site.redaction, dict[str, Any]()
    if "arg" in form:
        text, before = visit.asked("arg").strip(), _old_value(job)
        value = redaction.restored(_json(text), before) if text else None
        if pretty(value) != pretty(before):
            found["arg"] = value
    if "headers" in form:
        text, own = visit.asked("headers").strip(), _own_headers(job)
        headers = redaction.restored(_json(text) if text else {}, own)
        if pretty(headers) != pretty(own):
            found["headers"] = headers
    if (priority := _given(visit, "priority", _whole)) not in (None, job.priority):
        found["priority"] = priority
    time = visit.asked("run_at").strip()
    if time and time != local(job.next_run_at):
        moment = datetime.fromisoformat(time)
        found["run_at"] = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return found


def _own_headers(job: reads.JobInfo) -> dict[str, Any]:
    return {name: value for name, value in job.headers.items() if is_own(name)}


def copy(visit: Visit, connection: Connection) -> Done:
    """Enqueue a new job with the type, arg, queue and priority of another one."""
    id, row_id, site = visit.asked("id"), visit.asked("row"), visit.site
    found = reads.all_of(connection, site.statements, id, args=True)
    job = next((one for one in found if (one.row_id or "") == row_id), None)
    if job is None:
        raise HTTPException(404, "This job is gone.")
    kept = _own_headers(job)
    arg: Any = job.arg
    if arg is not None and not job.headers.get(CONTENT_TYPE):
        arg = loaded(arg)
    new = site.jobs.enqueue(
        connection, job.type, arg, queue=job.queue, priority=job.priority, headers=kept or None
    ).id
    return Done("Enqueued a copy.", {"id": new}, f"job?id={new}", 1, {"id": new, "of": id})


def enqueue(visit: Visit, connection: Connection) -> Done:
    """Enqueue a job of a registered handler."""
    type, site = visit.asked("type"), visit.site
    handler = site.jobs.registry.find_type(type)
    if handler is None:
        raise HTTPException(404, "This process has no handler of this type.")
    text = visit.asked("arg").strip()
    arg = _json(text) if text else None
    options: dict[str, Any] = {
        "delay": _given(visit, "delay", _number) or 0.0,
        "priority": _given(visit, "priority", _whole) or 0,
    }
    if visit.asked("queue").strip():
        options["queue"] = visit.asked("queue").strip()
    id = site.jobs.enqueue(connection, type, arg, **options).id
    given = {"arg": site.redaction.shown(arg)} if text else {}
    details = {"id": id, "type": type, **options}
    return Done("Enqueued.", {"id": id}, f"job?id={id}", 1, details, given)


def pause(visit: Visit, connection: Connection) -> Done:
    """Pause a queue, with a reason and an end."""
    queue = visit.asked("queue")
    minutes = _given(visit, "minutes", _number)
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
    number = _given(visit, "slots", _whole)
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


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"The arg is not JSON: {error}") from None


def _given(visit: Visit, name: str, read: Callable[[Visit, str], T]) -> T | None:
    """A field of the form as it is read; None if it is empty."""
    return read(visit, name) if visit.asked(name).strip() else None


def _number(visit: Visit, name: str) -> float:
    text = visit.asked(name).strip()
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise HTTPException(400, f"{name} is no number: {text[:40]!r}")
    return found


def _whole(visit: Visit, name: str) -> int:
    text = visit.asked(name).strip()
    try:
        return int(text)
    except ValueError:
        raise HTTPException(400, f"{name} is no whole number: {text[:40]!r}") from None


def _jobs(count: int, noun: str = "job") -> str:
    return f"1 {noun}" if count == 1 else f"{count:,} {noun}s"
