"""The whole life of jobs, at random, on the real tables, compared with a plain model.

The functions are those that workers and callers use; only the loop around them is left out. After
each step, every row must be what the model says.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, Phase, currently_in_test_context, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import text
from sqlalchemy.orm import Session

from sqlalchemy_bgjob import (
    BGJob,
    Complete,
    JobAlreadyExists,
    MoveToDlq,
    Reschedule,
    Retry,
    Unique,
    enqueue,
)
from sqlalchemy_bgjob._drafts.codec import Encoded
from sqlalchemy_bgjob._handlers.outcomes import (
    CANCELLED,
    COMPLETED,
    DROPPED,
    GONE,
    HAND_BACK,
    Cancelled,
    Expired,
    Kind,
    Outcome,
    Settlement,
    ends_unstarted,
)
from sqlalchemy_bgjob._handlers.timetable import due, timetable
from sqlalchemy_bgjob._lifecycle import claim as claiming
from sqlalchemy_bgjob._lifecycle import control, rescue, settle
from sqlalchemy_bgjob._lifecycle.batches import finish, look_through
from sqlalchemy_bgjob._lifecycle.cancel import find_asked
from sqlalchemy_bgjob._lifecycle.dead_jobs import delete_old
from sqlalchemy_bgjob._lifecycle.fire import Serves, fire, look_at_schedules
from sqlalchemy_bgjob._lifecycle.settle import Fate, Pending
from sqlalchemy_bgjob._lifecycle.unknown_claims import return_unknown_claims
from sqlalchemy_bgjob._sql import statements_of
from sqlalchemy_bgjob.testing.faults import let_time_pass
from support.tables import new_engine, new_queue

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy import Engine

    from sqlalchemy_bgjob import JobType
    from sqlalchemy_bgjob._lifecycle.claim import ClaimedJob
    from sqlalchemy_bgjob._lifecycle.fire import Upcoming
    from support.databases import TestServer

WORKERS = (11, 22)
JUDGE = 99
NEVER = -1
"""The hour of 1970."""
HOUR = 3600
"""All delays are whole hours of the model's clock, so that the test's own time does not matter."""

NOBODY = 0
"""Stands for the worker of ``work_one``, which has no row and is another one each time."""

UNSAID = (Kind.CANCELLED, Kind.EXPIRED)
IDS = ("a", "b", "c")
WORDS = (
    ("live", "skip"),
    ("live", "raise"),
    ("queued", "skip"),
    ("queued", "raise"),
    ("queued", "replace"),
    ("queued", "earlier"),
)
"""How long a unique key keeps others away, and what is done then."""
ALL_WORDS = {(word, there) for word in WORDS for there in (True, False)}
"""And whether there was such a job."""
DONE = {
    *(f"{what} {was}" for what in ("pause", "resume", "slots") for was in (True, False)),
    *(f"{what} schedule {was}" for what in ("put", "remove") for was in (True, False)),
    *(f"{what} schedule {was}" for what in ("pause", "resume") for was in (True, False)),
    "run now",
    *(f"cancel {what}" for what in ("cancelled", "asked", None)),
    "redrive queued",
    "finish continue",
    "finish stop",
    *(f"period {policy} {goes_on}" for policy in ("skip", "raise") for goes_on in (True, False)),
    *(f"work_one {end}" for end in ("Complete", "Retry", "Reschedule", "MoveToDlq", "NoneType")),
}
"""What operations must have come to in some run, or the test has become empty."""
RARE = {"work_one Cancelled", "work_one Expired", "redrive left", "prune", "delete by retention"}
"""What a short run may not come to."""
ids = st.sampled_from(IDS)
hours = st.integers(0, 2)
workers = st.sampled_from(WORKERS)


@dataclass(frozen=True)
class Job:
    """A live job as it should be."""

    lease: int
    hour: int
    """From which hour on it is due."""
    priority: int = 0
    worker: int | None = None
    attempt: int = 0
    crashes: int = 0
    error: str | None = None
    arg: bytes | None = None
    asked: bool = False
    """Whether it is to be cancelled."""
    expires: int | None = None
    """From the end of which hour on it never starts."""
    failed: tuple[str, ...] = ()
    """Of its failed attempts the first and the last nine: attempt, worker, error."""

    def and_failed(self, attempt: int, error: str) -> tuple[str, ...]:
        all_of_them = *self.failed, f"{attempt} {self.worker} {error.partition(':')[0]}"
        return all_of_them if len(all_of_them) <= 10 else (all_of_them[0], *all_of_them[2:])

    key: str | None = None
    """Its unique key, as it is stored."""
    batch: str | None = None


@dataclass(frozen=True)
class Dead:
    lease: int
    attempt: int
    error: str | None
    arg: bytes | None
    priority: int
    key: str | None
    hour: int
    """When it died."""
    failed: tuple[str, ...]
    batch: str | None


@dataclass(frozen=True)
class Batch:
    """A batch as it should be."""

    stops: bool
    """Whether it waits for its dead jobs."""
    finished: bool = False


@dataclass(frozen=True)
class Schedule:
    """The schedule "s" as it should be."""

    hour: int
    """From which hour on it is due."""
    next_at: Any
    """As the row says it; None while it is paused."""


@dataclass
class Model:
    live: dict[str, Job] = field(default_factory=dict)
    dead: dict[str, list[Dead]] = field(default_factory=dict)
    """Of each id, in the order in which they died."""
    schedule: Schedule | None = None
    hour: int = 0
    paused: bool = False
    paused_until: int | None = None
    """The hour at which the pause is over, if it has an end."""
    slots: int | None = None
    periods: dict[str, tuple[str, int]] = field(default_factory=dict)
    """By unique key the job that has begun its period, and the hour at which that is over."""
    batches: dict[str, Batch] = field(default_factory=dict)

    def over(self) -> list[str]:
        """The batches that are to be finished by who looks."""
        live = {job.batch for job in self.live.values()}
        dead = {job.batch for jobs in self.dead.values() for job in jobs}
        return [
            id
            for id, batch in self.batches.items()
            if not batch.finished and id not in live and not (batch.stops and id in dead)
        ]

    @property
    def is_paused(self) -> bool:
        return self.paused and (self.paused_until is None or self.hour < self.paused_until)

    def change(self, id: str, **changes: Any) -> None:
        self.live[id] = replace(self.live[id], **changes)

    def holder(self, key: str | None) -> str | None:
        """The id of the job that has a unique key."""
        return next((id for id, job in self.live.items() if key and job.key == key), None)

    def never_runs(self, id: str) -> bool:
        """Whether the next claim of a job only ends it."""
        job = self.live[id]
        late = job.expires is not None and job.expires < self.hour
        return job.worker is None and (job.asked or late)

    def holds(self, claim: ClaimedJob) -> bool:
        job = self.live.get(claim.id)
        return job is not None and (job.lease, job.worker) == (claim.lease, claim.worker_id)


class Machine(RuleBasedStateMachine):
    """What can be done to jobs; a subclass says where."""

    jobs: BGJob[Any, Any]
    engine: Engine
    handler: JobType[str]
    settlements: set[tuple[Kind, bool]]
    """Which were tried in all runs, and whether the lease held."""
    fired: set[bool]
    """Whether attempts to fire the schedule came in time, in all runs."""
    done: set[str]
    """What operations have come to, in all runs."""
    said: list[Outcome]
    """What the handler returns, when it is called next."""
    words: set[tuple[tuple[str, str], bool]]
    """The scopes and policies of unique keys that were tried, and whether there was such a job."""

    taken: set[tuple[str, str]]
    """Those by which a key was taken from a job that never will run."""

    claims = Bundle("claims")
    """Those that a worker may still have in its hands, whether its lease holds or not."""
    settled = Bundle("settled")
    """Those that it has settled, and might settle again."""
    seen = Bundle("seen")
    """What a worker has seen of the schedule, however long ago."""

    @initialize()
    def begin(self) -> None:
        self.model = Model()
        self.statements = statements_of(self.jobs.models)
        with self.engine.begin() as connection:
            jobs, others = ("job", "dead_job"), ("worker", "schedule", "control", "unique_period")
            for kind in (*jobs, *others, "batch"):
                table = f"bgjob_{kind}"
                connection.execute(text(f"DELETE FROM {table}"))
            for worker in (*WORKERS, JUDGE):
                self._register(connection, worker)
        with Session(self.engine) as session, session.begin():
            for id in IDS:
                self._enqueue(session, id, 0, 0)
        self.jobs.schedules.put(
            self.engine, "s", self.handler, "s", cron="@hourly", overlap="allow"
        )
        self._next_at("30 min ago", self.model.hour)

    def _register(self, connection: Any, worker: int) -> None:
        connection.execute(
            text(
                "INSERT INTO bgjob_worker"
                " (id, hostname, pid, version, queues, lease_timeout)"
                " VALUES (:id, 'host', 1, '0', '{}', 30) ON CONFLICT DO NOTHING"
            ),
            {"id": worker},
        )

    # ---- enqueue ------------------------------------------------------------------------

    @rule(
        outer=ids,
        inner=ids,
        delay=hours,
        priority=st.integers(0, 1),
        release=st.booleans(),
        commit=st.booleans(),
        expires=st.none() | hours,
    )
    def enqueue(
        self,
        outer: str,
        inner: str,
        delay: int,
        priority: int,
        release: bool,
        commit: bool,
        expires: int | None,
    ) -> None:
        """One job, and one in a savepoint."""
        before = dict(self.model.live)
        with Session(self.engine) as session:
            self._enqueue(session, outer, delay, priority, expires)
            with_outer = dict(self.model.live)
            savepoint = session.begin_nested()
            self._enqueue(session, inner, delay, priority)
            if release:
                savepoint.commit()
            else:
                savepoint.rollback()
                self.model.live = with_outer
            if commit:
                session.commit()
            else:
                self.model.live = before

    def _enqueue(
        self, session: Session, id: str, delay: int, priority: int, expires: int | None = None
    ) -> None:
        options: Any = {} if expires is None else {"expires": expires * HOUR + HOUR / 2}
        try:
            enqueue(
                session, self.handler, id, id=id, delay=delay * HOUR, priority=priority, **options
            )
        except JobAlreadyExists:
            assert id in self.model.live
            return
        assert id not in self.model.live
        lease = session.connection().execute(
            text("SELECT lease FROM bgjob_job WHERE id = :id"), {"id": id}
        )
        self.model.live[id] = Job(
            lease=lease.scalar_one(),
            hour=self.model.hour + delay,
            priority=priority,
            arg=f'"{id}"'.encode(),
            expires=None if expires is None else self.model.hour + delay + expires,
        )

    @rule(
        keys=st.lists(
            st.tuples(st.sampled_from("xy"), st.sampled_from(WORDS)), min_size=3, max_size=6
        ),
        own_id=st.one_of(st.none(), ids),
        delay=hours,
        priority=st.integers(0, 1),
        expires=st.none() | st.just(0),
    )
    def enqueue_unique(
        self,
        keys: list[tuple[str, tuple[Any, Any]]],
        own_id: str | None,
        delay: int,
        priority: int,
        expires: int | None,
    ) -> None:
        """Jobs with unique keys, perhaps with an id too; or what is done to who has the key."""
        for key, word in keys:
            self._enqueue_unique(key, word, own_id, delay, priority, expires)

    def _enqueue_unique(
        self,
        key: str,
        word: tuple[Any, Any],
        own_id: str | None,
        delay: int,
        priority: int,
        expires: int | None,
    ) -> None:
        scope, policy = word
        if policy in ("replace", "earlier"):
            own_id = None
        unique, hour = Unique(key, scope, on_conflict=policy), self.model.hour + delay
        holder, arg = self.model.holder(unique.stored), f"{policy} {delay}"
        self.words.add((word, holder is not None))
        given: Any = {"unique": unique, "delay": delay * HOUR, "priority": priority}
        until = None
        if expires is not None:
            given["expires"] = expires * HOUR + HOUR / 2
            until = hour + expires
        id_is_taken = own_id is not None and own_id in self.model.live
        takes = policy in ("skip", "raise") and not id_is_taken
        if holder is not None and takes and self.model.never_runs(holder):
            self.model.change(holder, key=None, expires=NEVER)
            self.taken.add(word)
            holder = None
        if id_is_taken or (holder is not None and policy == "raise"):
            with pytest.raises(JobAlreadyExists) as refused:
                enqueue(self.engine, self.handler, arg, id=own_id, **given)
            assert refused.value.ids == (own_id if id_is_taken else holder,)
            return
        ref = enqueue(self.engine, self.handler, arg, id=own_id, **given)
        assert ref.inserted is (holder is None)
        if holder is None:
            lease = self._lease(ref.id)
            data = f'"{arg}"'.encode()
            job = Job(lease, hour, priority, arg=data, key=unique.stored, expires=until)
            self.model.live[ref.id] = job
            return
        assert ref.id == holder
        was = self.model.live[holder]
        if policy == "replace":
            new = {"hour": hour, "priority": priority, "arg": f'"{arg}"'.encode()}
            self.model.change(holder, **new, expires=until, lease=was.lease + 1)
        elif policy == "earlier":
            least = {"hour": min(was.hour, hour), "priority": min(was.priority, priority)}
            never = was.expires is None or until is None
            last = None if never else max(was.expires, until)  # type: ignore[type-var]
            self.model.change(holder, **least, expires=last, lease=was.lease + 1)

    @rule(key=st.sampled_from("xy"), length=st.integers(1, 2), refuse=st.booleans())
    def enqueue_in_period(self, key: str, length: int, refuse: bool) -> None:
        """One job of a key in so many hours, and half an hour less, whatever becomes of it."""
        policy: Any = "raise" if refuse else "skip"
        unique = Unique(key, period=length * HOUR - HOUR / 2, on_conflict=policy)
        holder, until = self.model.periods.get(key, ("", 0))
        goes_on = self.model.hour < until
        self.done.add(f"period {policy} {goes_on}")
        if goes_on and refuse:
            with pytest.raises(JobAlreadyExists) as refused:
                enqueue(self.engine, self.handler, key, unique=unique)
            assert refused.value.ids == (holder,)
            return
        ref = enqueue(self.engine, self.handler, key, unique=unique)
        assert ref.inserted is not goes_on
        if goes_on:
            assert ref.id == holder
            return
        self.model.periods[key] = ref.id, self.model.hour + length
        data = f'"{key}"'.encode()
        self.model.live[ref.id] = Job(self._lease(ref.id), self.model.hour, arg=data)

    def _lease(self, id: str) -> int:
        with self.engine.connect() as connection:
            found = connection.execute(
                text("SELECT lease FROM bgjob_job WHERE id = :id"), {"id": id}
            )
            return int(found.scalar_one())

    # ---- claim and settle -----------------------------------------------------------------

    @rule(target=claims, worker=workers, limit=st.integers(1, 3))
    def claim(self, worker: int, limit: int) -> Any:
        """By a worker that has just looked what is paused; then somebody resumes it."""
        return multiple(*self._claim(worker, limit))

    def _claim(self, worker: int, limit: int) -> list[ClaimedJob]:
        with self.engine.connect() as connection:
            state = control.look(connection, self.statements)
        assert ("q" in state and state["q"].is_paused) is self.model.is_paused
        if self.model.is_paused:
            self._resume(commit=True)
        due = self._due()
        with self.engine.connect() as connection, connection.begin():
            claimed = claiming.claim(
                connection, self.statements, queue="q", limit=limit, worker_id=worker
            )

        assert [job.id for job in claimed] == due[:limit]
        for job in claimed:
            was = self.model.live[job.id]
            assert (job.lease, job.attempt) == (was.lease + 1, was.attempt + 1)
            assert (job.cancelled, job.expired) == (was.asked, self._is_late(was))
            self._claimed(job.id, worker)
        return claimed

    def _due(self) -> list[str]:
        """The ids of what may be claimed, in its order."""
        times, hour = self._times(), self.model.hour
        due = [id for id, job in self.model.live.items() if job.worker is None and job.hour <= hour]
        return sorted(due, key=lambda one: (self.model.live[one].priority, times[one], one))

    def _is_late(self, job: Job) -> bool:
        return job.expires is not None and job.expires < self.model.hour

    def _claimed(self, id: str, worker: int) -> None:
        was = self.model.live[id]
        key = None if was.key and was.key.startswith("q:") else was.key
        self.model.change(id, worker=worker, lease=was.lease + 1, attempt=was.attempt + 1, key=key)

    def _times(self) -> dict[str, Any]:
        with self.engine.connect() as connection:
            rows = connection.execute(text("SELECT id, next_run_at FROM bgjob_job")).all()
        return {row.id: row.next_run_at for row in rows}

    @rule(
        target=settled,
        claim=consumes(claims),
        kind=st.sampled_from([kind for kind in Kind if kind not in UNSAID]),
        delay=hours,
        arg=st.booleans(),
    )
    def settle(self, claim: ClaimedJob, kind: Kind, delay: int, arg: bool) -> ClaimedJob:
        """As handlers and workers say; if the lease is lost, in vain."""
        return self._settle_as(claim, kind, delay, arg)

    @rule(
        target=settled,
        worker=workers,
        kinds=st.lists(
            st.sampled_from([kind for kind in Kind if kind not in UNSAID]), min_size=3, max_size=3
        ),
        delay=hours,
        arg=st.booleans(),
    )
    def work(self, worker: int, kinds: list[Kind], delay: int, arg: bool) -> Any:
        """Claim some jobs, and settle them at once."""
        claimed = self._claim(worker, len(kinds))
        return multiple(
            *(
                self._settle_as(claim, kind, delay, arg)
                for claim, kind in zip(claimed, kinds, strict=False)
            )
        )

    @rule(
        id=st.none() | ids,
        due=st.booleans(),
        outcome=st.sampled_from((Complete, Retry, Reschedule, MoveToDlq)),
        delay=hours,
        commit=st.booleans(),
    )
    def work_one(
        self, id: str | None, due: bool, outcome: type[Outcome], delay: int, commit: bool
    ) -> None:
        """One job in the caller's transaction: the first of the queue, or the one of an id."""
        waits = self._due()
        if id is not None:
            job = self.model.live.get(id)
            is_free = job is not None and job.worker is None and (id in waits or not due)
            waits = [id] if is_free else []
        says: dict[type[Outcome], tuple[Outcome, Settlement]] = {
            Complete: (Complete(), COMPLETED),
            Retry: (
                Retry(delay * HOUR, "failed"),
                Settlement(Kind.RETRY, delay=delay * HOUR, error="failed"),
            ),
            Reschedule: (
                Reschedule(delay * HOUR),
                Settlement(Kind.RESCHEDULED, delay=delay * HOUR, refund_attempt=True),
            ),
            MoveToDlq: (MoveToDlq("given up"), Settlement(Kind.DEAD, error="given up")),
        }
        self.said[:], settlement = [says[outcome][0]], says[outcome][1]
        with Session(self.engine) as session:
            if id is None:
                came = self.jobs.work_one(session, "q")
            else:
                came = self.jobs.work_one(session, id=id, due=due)
            if commit:
                session.commit()
        self.done.add(f"work_one {type(came).__name__}")
        if not waits:
            assert came is None
            return
        was = self.model.live[waits[0]]
        end = ends_unstarted(cancelled=was.asked, expired=self._is_late(was), on_expiry="dlq")
        expected = outcome if end is None else Cancelled if was.asked else Expired
        assert type(came) is expected
        if commit:
            self._claimed(waits[0], NOBODY)
            batch = self.model.live[waits[0]].batch
            self._settled(waits[0], end or settlement, delay)
            if waits[0] not in self.model.live and batch in self.model.over():
                self._finished([batch])

    def _settle_as(self, claim: ClaimedJob, kind: Kind, delay: int, arg: bool) -> ClaimedJob:
        settlement = {
            Kind.COMPLETED: COMPLETED,
            Kind.RETRY: Settlement(Kind.RETRY, delay=delay * HOUR, error="failed"),
            Kind.RESCHEDULED: Settlement(
                Kind.RESCHEDULED,
                delay=delay * HOUR,
                refund_attempt=True,
                arg=Encoded(b'"new"', None) if arg else None,
            ),
            Kind.DEAD: Settlement(Kind.DEAD, error="given up"),
            Kind.HANDED_BACK: HAND_BACK,
            Kind.UNKNOWN_TYPE: Settlement(
                Kind.UNKNOWN_TYPE, delay=delay * HOUR, keep_error=True, refund_attempt=True
            ),
        }[kind]
        return self._settle(claim, settlement, delay)

    @rule(target=settled, claim=consumes(claims), how=st.sampled_from([CANCELLED, DROPPED]))
    def end(self, claim: ClaimedJob, how: Settlement) -> ClaimedJob:
        """A job that was cancelled, or that has expired."""
        return self._settle(claim, how, 0)

    def _settle(self, claim: ClaimedJob, settlement: Settlement, delay: int) -> ClaimedJob:
        held = self.model.holds(claim)
        self.settlements.add((settlement.kind, held))
        with self.engine.connect() as connection:
            ((_, fate),) = settle.settle(connection, self.statements, [Pending(claim, settlement)])

        assert fate is (Fate.SETTLED if held else Fate.STALE)
        if held:
            self._settled(claim.id, settlement, delay)
        return claim

    def _settled(self, id: str, settlement: Settlement, delay: int) -> None:
        model = self.model
        job = model.live[id]
        match settlement.kind:
            case kind if kind in GONE:
                del model.live[id]
            case Kind.DEAD:
                del model.live[id]
                model.dead.setdefault(id, []).append(
                    Dead(
                        lease=job.lease,
                        attempt=job.attempt - settlement.refund_attempt,
                        error=settlement.error,
                        arg=job.arg,
                        priority=job.priority,
                        key=job.key,
                        hour=model.hour,
                        failed=job.and_failed(
                            job.attempt - settlement.refund_attempt, settlement.error or ""
                        ),
                        batch=job.batch,
                    )
                )
            case kind:
                stays = kind is Kind.HANDED_BACK or job.asked
                later = {} if stays else {"hour": model.hour + delay}
                if kind is Kind.RETRY:
                    model.change(id, failed=job.and_failed(job.attempt, "failed"))
                model.change(
                    id,
                    worker=None,
                    lease=job.lease + 1,
                    attempt=job.attempt - settlement.refund_attempt,
                    error=job.error if settlement.keep_error else settlement.error,
                    arg=settlement.arg.data if settlement.arg else job.arg,
                    **later,
                )

    @rule(claim=settled)
    def settle_again(self, claim: ClaimedJob) -> None:
        """What a frozen process would send."""
        with self.engine.connect() as connection:
            fates = settle.settle(connection, self.statements, [Pending(claim, COMPLETED)])
        assert [fate for _, fate in fates] == [Fate.STALE]

    @rule(worker=workers, known=st.lists(claims, max_size=3))
    def lose_an_answer(self, worker: int, known: list[ClaimedJob]) -> None:
        """A worker knows of some of its claims only, and hands back the others.

        Before that it looks which of them are to be cancelled.
        """
        held = [job for job in known if job.worker_id == worker and self.model.holds(job)]
        with self.engine.connect() as connection:
            found = find_asked(connection, self.statements, worker_id=worker, jobs=known)
            assert found == {job.id for job in held if self.model.live[job.id].asked}
            return_unknown_claims(connection, self.statements, worker_id=worker, known=known)
        for id, job in self.model.live.items():
            if job.worker == worker and not any(
                (claim.id, claim.lease) == (id, job.lease) for claim in known
            ):
                self.model.change(id, worker=None, lease=job.lease + 1, attempt=job.attempt - 1)

    # ---- time, crash and rescue ------------------------------------------------------------

    @rule(by=st.integers(1, 2))
    def pass_time(self, by: int) -> None:
        with self.engine.begin() as connection:
            let_time_pass(connection, self.jobs, by * HOUR)
            connection.execute(
                text("UPDATE bgjob_schedule SET next_at = next_at - make_interval(hours => :by)"),
                {"by": by},
            )
        self.model.hour += by
        self._read_schedule()

    @rule(worker=workers)
    def rescue(self, worker: int) -> None:
        """A worker was silent for a minute; later it comes back under the same row's id."""
        with self.engine.begin() as connection:
            connection.execute(
                text(
                    "UPDATE bgjob_worker SET beat_at = CASE WHEN id = :id"
                    " THEN now() - interval '60 s' ELSE now() END"
                ),
                {"id": worker},
            )
        with self.engine.connect() as connection:
            found = rescue.rescue_silent(connection, self.statements, judge=JUDGE, connected=1000.0)
        assert [rescued.worker_id for rescued in found] == [worker]
        with self.engine.begin() as connection:
            self._register(connection, worker)
            for id, job in list(self.model.live.items()):
                if job.worker != worker:
                    continue
                later = {}
                if job.crashes:
                    # It waits for a random time of up to a minute; the model's next hour.
                    later["hour"] = max(job.hour, self.model.hour + 1)
                    connection.execute(
                        text(
                            "UPDATE bgjob_job SET next_run_at = now() + interval '30 min'"
                            " WHERE id = :id"
                        ),
                        {"id": id},
                    )
                self.model.change(
                    id,
                    worker=None,
                    lease=job.lease + 1,
                    crashes=job.crashes + 1,
                    error="WorkerLost",
                    failed=job.and_failed(job.attempt, "WorkerLost"),
                    **later,
                )

    # ---- schedules --------------------------------------------------------------------------

    @rule(commit=st.booleans(), remove=st.booleans())
    def put_schedule(self, commit: bool, remove: bool) -> None:
        """It is due within the hour; to put it again changes nothing. Or remove it."""
        its, there = self.jobs.schedules, self.model.schedule is not None
        with Session(self.engine) as session:
            self.done.add(f"{'remove' if remove else 'put'} schedule {there}")
            if remove:
                assert its.remove(session, "s") is there
            else:
                its.put(session, "s", self.handler, "s", cron="@hourly", overlap="allow")
            if not commit:
                return
            session.commit()
        if remove:
            self.model.schedule = None
        elif not there:
            self._in_half_an_hour()

    def _in_half_an_hour(self) -> None:
        self._next_at("30 min", self.model.hour + 1)

    def _next_at(self, interval: str, hour: int) -> None:
        with self.engine.begin() as connection:
            connection.execute(
                text("UPDATE bgjob_schedule SET next_at = now() + CAST(:by AS interval)"),
                {"by": interval},
            )
        self.model.schedule = Schedule(hour, None)
        self._read_schedule()

    def _read_schedule(self) -> None:
        if self.model.schedule is not None:
            with self.engine.connect() as connection:
                next_at = connection.scalar(text("SELECT next_at FROM bgjob_schedule"))
            self.model.schedule = replace(self.model.schedule, next_at=next_at)

    @rule(resume=st.booleans())
    def pause_schedule(self, resume: bool) -> None:
        its, schedule = self.jobs.schedules, self.model.schedule
        if resume:
            paused = schedule is not None and schedule.next_at is None
            self.done.add(f"resume schedule {paused}")
            assert (its.resume(self.engine, "s") is not None) is paused
            if paused:
                self._in_half_an_hour()
        else:
            self.done.add(f"pause schedule {schedule is not None}")
            assert its.pause(self.engine, "s") is (schedule is not None)
            self._read_schedule()

    @rule(target=seen)
    def look_at_schedules(self) -> Any:
        serves = Serves([], ["q"], ["t"], [])
        with self.engine.connect() as connection:
            found = look_at_schedules(connection, self.statements, serves)
        expected = self.model.schedule is not None and self.model.schedule.next_at is not None
        assert len(found) == expected
        return multiple(*found)

    @rule(look=seen)
    def fire(self, look: Upcoming) -> None:
        """What was seen may be long over: then nothing happens."""
        schedule = self.model.schedule
        is_due = schedule is not None and schedule.hour <= self.model.hour
        if look.next_at > look.now:
            return
        table = timetable(look.cron, look.timezone)
        its = due(table, look.next_at, look.now, look.missed, gap=look.gap, last_at=look.last_at)
        with self.engine.connect() as connection:
            fired = fire(connection, self.statements, look, its)
        expected = schedule is not None and is_due and schedule.next_at == look.next_at
        assert fired is expected
        self.fired.add(fired)
        if fired:
            self._in_half_an_hour()
            self._find_new(1)

    @rule()
    def run_now(self) -> None:
        if self.model.schedule is not None:
            self.done.add("run now")
            self.jobs.schedules.run_now(self.engine, "s")
            self._find_new(1)

    def _find_new(self, count: int) -> None:
        with self.engine.connect() as connection:
            rows = connection.execute(text("SELECT id, lease, arg FROM bgjob_job")).all()
        new = [row for row in rows if row.id not in self.model.live]
        assert len(new) == count
        for row in new:
            assert row.arg == b'"s"'
            self.model.live[row.id] = Job(lease=row.lease, hour=self.model.hour, arg=row.arg)

    # ---- batches ----------------------------------------------------------------------------

    @rule(which=st.lists(ids, unique=True, max_size=2), stops=st.booleans(), commit=st.booleans())
    def make_batch(self, which: list[str], stops: bool, commit: bool) -> None:
        """Of new jobs, or of none."""
        which = [id for id in which if id not in self.model.live]
        with Session(self.engine) as session:
            with self.jobs.batch(
                session, then=self.handler.job("s"), on_dead="stop" if stops else "continue"
            ) as batch:
                for id in which:
                    enqueue(session, self.handler, id, id=id, batch=batch)
            if commit:
                session.commit()
        if not commit:
            return
        self.model.batches[batch.id] = Batch(stops)
        for id in which:
            self.model.live[id] = Job(
                self._lease(id), self.model.hour, arg=f'"{id}"'.encode(), batch=batch.id
            )
        if not which:
            self._finished([batch.id])

    @rule(sweeps=st.booleans())
    def finish_batches(self, sweeps: bool) -> None:
        """By a worker that has ended some job, or by the leader."""
        every = list(self.model.batches)
        with self.engine.connect() as connection:
            if sweeps:
                found = look_through(connection, self.statements, after="", limit=100).ids
            else:
                found = finish(connection, self.statements, every)
        assert sorted(found) == sorted(self.model.over())
        self._finished(found)

    def _finished(self, batches: Iterable[str]) -> None:
        for id in batches:
            self.done.add(f"finish {'stop' if self.model.batches[id].stops else 'continue'}")
            self.model.batches[id] = replace(self.model.batches[id], finished=True)
            follower = f"{id}:then"
            job = Job(self._lease(follower), self.model.hour, arg=b'"s"')
            self.model.live[follower] = job

    # ---- operators --------------------------------------------------------------------------

    @rule(id=ids, commit=st.booleans(), by_condition=st.booleans())
    def cancel(self, id: str, commit: bool, by_condition: bool) -> None:
        done = self._cancel_of(id)
        self.done.add(f"cancel {done}")
        with Session(self.engine) as session:
            if by_condition:
                found = self.jobs.cancel_where(session, self.jobs.Job.id == id)
                counts = int(done == "cancelled"), int(done == "asked")
                assert (found.cancelled, found.asked) == counts
            else:
                assert self.jobs.cancel(session, id) == done
            if commit:
                session.commit()
        if commit:
            self._cancelled(id)

    def _cancel_of(self, id: str) -> str | None:
        if id not in self.model.live:
            return None
        return "cancelled" if self.model.live[id].worker is None else "asked"

    def _cancelled(self, id: str) -> None:
        match self._cancel_of(id):
            case "cancelled":
                del self.model.live[id]
            case "asked":
                self.model.change(id, asked=True)

    @rule(id=ids, delay=hours)
    def redrive(self, id: str, delay: int) -> None:
        dead = self.model.dead.get(id, [])
        which = self.jobs.DeadJob.job_id == id
        would = {"t": 1} if dead and id not in self.model.live else {}
        assert self.jobs.redrive(self.engine, which, dry_run=True) == would
        done = self.jobs.redrive(self.engine, which, delay=delay * HOUR)
        if not dead:
            assert (done.ids, done.left) == ((), ())
            return
        if id in self.model.live or self.model.holder(dead[-1].key) is not None:
            self.done.add("redrive left")
            assert (done.ids, done.left) == ((), (id,) * len(dead))
            return
        self.done.add("redrive queued")
        assert (done.ids, done.left) == ((id,), (id,) * (len(dead) - 1))
        job = dead.pop()
        lease = self._lease(id)
        assert lease > job.lease
        self.model.live[id] = Job(
            lease=lease,
            hour=self.model.hour + delay,
            priority=job.priority,
            error=job.error,
            arg=job.arg,
            failed=job.failed,
            key=job.key,
            batch=job.batch,
        )

    @rule(age=st.integers(1, 3), by_a_worker=st.booleans())
    def prune(self, age: int, by_a_worker: bool) -> None:
        """What died so many hours ago, and half an hour less; a worker does it by its setting."""
        keep = {
            id: [job for job in dead if self.model.hour - job.hour < age]
            for id, dead in self.model.dead.items()
        }
        count = sum(map(len, self.model.dead.values())) - sum(map(len, keep.values()))
        older = age * HOUR - HOUR / 2
        if by_a_worker:
            with self.engine.connect() as connection:
                assert delete_old(connection, self.statements, keep=older, limit=1_000) == count
        else:
            assert self.jobs.prune(self.engine, older) == count
        if count:
            self.done.add("delete by retention" if by_a_worker else "prune")
        self.model.dead = keep

    @rule(
        what=st.sampled_from(("pause", "resume", "slots")),
        number=st.none() | st.integers(1, 2),
        commit=st.booleans(),
    )
    def control_the_queue(self, what: str, number: int | None, commit: bool) -> None:
        """One rule for all, so that the others have their turn as often as before."""
        self.done.add(f"{what} {self.model.is_paused}")
        match what:
            case "pause":
                self._pause(number, commit)
            case "resume":
                self._resume(commit=commit)
            case _:
                self._set_slots(number)

    def _pause(self, hours: int | None, commit: bool) -> None:
        """For half an hour less, so that it is over at a whole hour."""
        until = None if hours is None else hours * HOUR - HOUR / 2
        with Session(self.engine) as session:
            is_new = self.jobs.pause(session, "q", by="ada", until=until)
            assert is_new is not self.model.is_paused
            if commit:
                session.commit()
        if commit:
            self.model.paused = True
            self.model.paused_until = None if hours is None else self.model.hour + hours

    def _resume(self, *, commit: bool) -> None:
        with Session(self.engine) as session:
            assert self.jobs.resume(session, "q") is self.model.is_paused
            if commit:
                session.commit()
        if commit:
            self.model.paused, self.model.paused_until = False, None

    def _set_slots(self, slots: int | None) -> None:
        self.jobs.set_slots(self.engine, "q", slots)
        self.model.slots = slots
        if slots is None and not self.model.is_paused:  # then there is no row any more
            self.model.paused, self.model.paused_until = False, None

    # ---- what must be -----------------------------------------------------------------------

    @invariant()
    def rows_are_as_the_model_says(self) -> None:
        if not hasattr(self, "model"):
            return
        with self.engine.connect() as connection:
            live = connection.execute(
                text(
                    "SELECT id, lease, claimed_by, attempt, crashes, priority, arg,"
                    " split_part(last_error, ':', 1), cancel_at IS NOT NULL,"
                    " next_run_at <= now(), unique_key, errors, batch_id FROM bgjob_job"
                )
            ).all()
            dead = connection.execute(
                text(
                    "SELECT job_id, lease, attempt, last_error, arg, unique_key, batch_id, errors"
                    " FROM bgjob_dead_job ORDER BY moved_at, id"
                )
            ).all()
            controls = connection.execute(
                text("SELECT paused_at IS NOT NULL, slots FROM bgjob_control")
            ).all()
            batches = connection.execute(
                text("SELECT id, finished_at IS NOT NULL FROM bgjob_batch")
            ).all()
            periods = connection.execute(
                text("SELECT key, job_id, until > now() FROM bgjob_unique_period")
            ).all()
        assert {row[0]: tuple(row[1:]) for row in periods} == {
            key: (id, self.model.hour < until) for key, (id, until) in self.model.periods.items()
        }
        assert {row[0]: row[1] for row in batches} == {
            id: batch.finished for id, batch in self.model.batches.items()
        }
        if currently_in_test_context():
            note(f"hour {self.model.hour}: {self.model.live}")
        set_ = (self.model.paused, self.model.slots)
        assert [tuple(row) for row in controls] == ([] if set_ == (False, None) else [set_])
        for row in live:
            job = self.model.live[row[0]]
            assert row[1:9] == (
                job.lease,
                job.worker,
                job.attempt,
                job.crashes,
                job.priority,
                job.arg,
                job.error,
                job.asked,
            )
            assert row[9] is (job.hour <= self.model.hour)
            assert (row.unique_key, row.batch_id) == (job.key, job.batch)
            assert (row.errors is None, history(row.errors)) == (not job.failed, job.failed)
        assert {row[0] for row in live} == self.model.live.keys()
        found: dict[str, list[Any]] = {}
        for id, *rest in dead:
            found.setdefault(id, []).append((*rest[:-1], history(rest[-1])))
        assert found == {
            id: [
                (job.lease, job.attempt, job.error, job.arg, job.key, job.batch, job.failed)
                for job in dead
            ]
            for id, dead in self.model.dead.items()
            if dead
        }


def history(errors: list[Any] | None) -> tuple[str, ...]:
    return tuple(
        f"{it['attempt']} {it['worker'] if it['worker'] in WORKERS else NOBODY} "
        f"{it['error'].partition(':')[0]}"
        for it in errors or ()
    )


@pytest.fixture(scope="module")
def machine(server: TestServer) -> Iterator[type[Machine]]:
    with new_engine(server) as engine:
        jobs = new_queue()
        jobs.metadata.create_all(engine)

        said: list[Outcome] = []

        @jobs.handler("t", queue="q", max_attempts=None)
        def handle(ctx: Any, arg: str) -> Outcome:
            return said[0]

        given = {
            "jobs": jobs,
            "engine": engine,
            "handler": handle,
            "settlements": set(),
            "fired": set(),
            "words": set(),
            "taken": set(),
            "done": set(),
            "said": said,
        }
        yield type("OnTables", (Machine,), given)


def explore(machine: type[Machine], examples: int, steps: int) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=not os.environ.get("BGJOB_TEST_RANDOM"),
            database=None,
            phases=(Phase.explicit, Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.timeout(400)
def test_rows_are_always_what_the_model_says(machine: type[Machine]) -> None:
    """The same histories each time."""
    explore(machine, 80, 30)

    # Or a change of the rules makes this test empty, and nobody notices. Each new rule deals the
    # histories anew, so some of it may be left to the chosen steps below, and to the long run.
    assert len({kind for kind, held in machine.settlements if held}) >= len(Kind) - 2
    assert True in machine.fired
    assert len(ALL_WORDS - machine.words) <= len(ALL_WORDS) // 4, ALL_WORDS - machine.words
    assert len(DONE - machine.done) <= len(DONE) // 4, DONE - machine.done


def test_what_a_short_run_may_leave_out(machine: type[Machine]) -> None:
    """By steps that are chosen, with the same model."""
    run = machine()
    run.begin()
    a, b, c = run._claim(WORKERS[0], 3)
    run.cancel("a", commit=True, by_condition=False)
    run._settle_as(a, Kind.HANDED_BACK, 0, arg=False)
    run.work_one("a", due=True, outcome=Complete, delay=0, commit=True)
    run.rows_are_as_the_model_says()
    run._settle_as(b, Kind.DEAD, 0, arg=False)
    run.enqueue("b", "b", 0, 0, release=True, commit=True, expires=0)
    run.redrive("b", 0)
    run.pass_time(1)
    run.work_one("b", due=True, outcome=Complete, delay=0, commit=True)
    run.rows_are_as_the_model_says()
    run.prune(1, by_a_worker=False)
    run._settle_as(c, Kind.DEAD, 0, arg=False)
    run.rows_are_as_the_model_says()
    run.pass_time(2)
    run.prune(1, by_a_worker=True)
    run.rows_are_as_the_model_says()
    assert machine.done >= RARE


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind not in UNSAID])
def test_a_claim_that_was_lost_settles_nothing(machine: type[Machine], kind: Kind) -> None:
    """By chosen steps: in a short run few claims are lost before they are settled."""
    run = machine()
    run.begin()
    (lost,) = run._claim(WORKERS[0], 1)
    run.rescue(WORKERS[0])
    run._settle_as(lost, kind, 0, arg=False)
    run.rows_are_as_the_model_says()
    assert (kind, False) in machine.settlements


def test_what_was_seen_of_a_schedule_fires_once(machine: type[Machine]) -> None:
    """By chosen steps: in a short run few looks are acted upon twice."""
    run = machine()
    run.begin()
    run.put_schedule(commit=True, remove=False)
    run.pass_time(1)
    look = run.look_at_schedules()
    machine.fired.clear()
    for _ in range(2):
        run.fire(*look.values)
    assert machine.fired == {True, False}
    run.rows_are_as_the_model_says()


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_the_same_for_long(machine: type[Machine], monkeypatch: pytest.MonkeyPatch) -> None:
    """New histories each time; what fails is printed as a program."""
    monkeypatch.setenv("BGJOB_TEST_RANDOM", "1")
    explore(machine, 1_000, 50)
    assert {held for _, held in machine.settlements} == {True, False}
    assert machine.fired == {True, False}
    assert machine.words == ALL_WORDS
    assert machine.taken

    assert machine.done >= DONE | RARE
