"""Actions that change what a job says, or enqueue a copy of it."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.orm import Session
from starlette.exceptions import HTTPException

from .._drafts.validation import CONTENT_TYPE
from .._inspect import jobs as reads
from . import forms
from .done import Done
from .one_job import is_own
from .redaction import loaded, pretty
from .visit import Visit
from .words import iso, local


def edit(visit: Visit, connection: Connection) -> Done:
    """Give a dead job another arg."""
    if not visit.access.args:
        raise HTTPException(403, "You may not see args, nor change them.")
    row_id, site = visit.asked("row"), visit.site
    value = forms.json_of(visit, "arg")
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
    lease = forms.whole(visit, "lease")
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
        before = _old_value(job)
        value = redaction.restored(forms.optional(visit, "arg", forms.json_of), before)
        if pretty(value) != pretty(before):
            found["arg"] = value
    if "headers" in form:
        given, own = forms.optional(visit, "headers", forms.json_of), _own_headers(job)
        headers = redaction.restored({} if given is None else given, own)
        if pretty(headers) != pretty(own):
            found["headers"] = headers
    if (priority := forms.optional(visit, "priority", forms.whole)) not in (None, job.priority):
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
