"""Unique keys: of the jobs that are enqueued with one, one is enough."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import (
    Engine,
    Text,
    cast,
    delete,
    func,
    literal,
    select,
    text,
    true,
    union_all,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from sqlalchemy_bgjob import (
    Complete,
    Expired,
    JobAlreadyExists,
    JobRef,
    MoveToDlq,
    Retry,
    Unique,
    enqueue,
    enqueue_from,
    enqueue_many,
)
from sqlalchemy_bgjob.testing.faults import let_time_pass
from support.producers import KINDS, UNITS, Producer, Sent, produce
from support.shop import Job, Order, Receipt, jobs, note, send_receipt

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy_bgjob._drafts.unique import OnDuplicate

PERIODS = jobs.models.unique_period


@pytest.fixture(autouse=True)
def empty(clean: Engine) -> None:
    with clean.begin() as connection:
        connection.execute(delete(PERIODS))
        connection.execute(delete(jobs.DeadJob))


def args(session: Session) -> dict[str | None, Any]:
    """What each key's job is to do."""
    session.expire_all()
    return {job.unique_key: job.arg_json for job in session.scalars(select(Job))}


def run(session: Session, outcome: Any = None) -> None:
    jobs.work_one(session, "default", lambda ctx, arg: outcome)


# ---- one job -------------------------------------------------------------------------------------


@pytest.mark.core
@pytest.mark.parametrize("kind", KINDS)
def test_the_ref_tells_which_job_won(kind: str, clean: Engine) -> None:
    """In every kind of transaction, by every scope."""

    async def body(made: Producer) -> None:
        target = made.target
        for unique in ("7", Unique("7", "queued"), Unique("7", period=60)):
            first = await made.do(enqueue(target, note, 1, unique=unique))
            second = await made.do(jobs.enqueue(target, "note", 2, unique=unique))
            assert first.inserted
            assert second == JobRef(first.id, inserted=False)
        if kind in UNITS:
            await made.commit()

    produce(kind, clean, body)

    with Session(clean) as session:
        assert args(session) == {"l:7": 1, "q:7": 1, None: 1}


@pytest.mark.core
@pytest.mark.parametrize("unique", [Unique("7"), Unique("7", "queued"), Unique("7", period=60)])
def test_to_raise_leaves_the_transaction_usable(unique: Unique, session: Session) -> None:
    ref = enqueue(session, note, 1, unique=unique)
    again = Unique(unique.key, unique.scope, on_conflict="raise", period=unique.period)

    with pytest.raises(JobAlreadyExists) as refused:
        enqueue(session, note, 2, unique=again)
    with pytest.raises(JobAlreadyExists):
        enqueue_many(session, note, [3, 4], unique=lambda n: again if n == 4 else f"new {n}")

    assert (refused.value.ids, refused.value.keys) == ((ref.id,), ("7",))
    assert list(args(session).values()) == [1]


def test_a_rollback_frees_the_key(session: Session) -> None:
    for unique in ("7", Unique("7", period=60)):
        savepoint = session.begin_nested()
        enqueue(session, note, 1, unique=unique)
        savepoint.rollback()
        assert enqueue(session, note, 2, unique=unique).inserted


# ---- scopes --------------------------------------------------------------------------------------


@pytest.mark.core
def test_live_is_until_it_is_gone_or_dead(session: Session) -> None:
    first = enqueue(session, note, 1, unique="7")

    def handler(ctx: Any, arg: Any) -> Retry:
        assert not enqueue(session, note, 2, unique="7").inserted  # while it runs
        return Retry(0.0, "again")

    jobs.work_one(session, "default", handler)
    assert enqueue(session, note, 3, unique="7") == JobRef(first.id, inserted=False)
    let_time_pass(session, jobs, 1)
    run(session)
    second = enqueue(session, note, 4, unique="7")
    assert second.inserted
    run(session, MoveToDlq("no"))
    assert enqueue(session, note, 5, unique="7").inserted


@pytest.mark.core
def test_queued_is_until_a_worker_takes_it(session: Session) -> None:
    """And a retry does not take the key back."""
    unique = Unique("7", "queued")
    first = enqueue(session, note, 1, unique=unique)

    def handler(ctx: Any, arg: Any) -> Retry:
        assert enqueue(session, note, 2, unique=unique).inserted
        return Retry(0.0, "again")

    jobs.work_one(session, "default", handler)

    keys = {job.id: job.unique_key for job in session.scalars(select(Job))}
    assert keys.pop(first.id) is None
    assert list(keys.values()) == ["q:7"]


def test_a_period_outlives_its_job(session: Session) -> None:
    unique = Unique("7", period=60)
    first = enqueue(session, note, 1, unique=unique)
    run(session)
    assert enqueue(session, note, 2, unique=unique) == JobRef(first.id, inserted=False)

    let_time_pass(session, jobs, 59)
    assert not enqueue(session, note, 3, unique=unique).inserted
    let_time_pass(session, jobs, 2)
    assert enqueue(session, note, 4, unique=unique).inserted
    assert args(session) == {None: 4}


# ---- policies ------------------------------------------------------------------------------------


def test_replace_keeps_the_id_and_nothing_else(session: Session) -> None:
    unique = Unique("7", "queued", on_conflict="replace")
    first = enqueue(session, note, 1, unique=unique, delay=60, priority=3, headers={"a": 1})

    second = enqueue(session, send_receipt, Receipt(2), unique=unique, delay=30)

    assert second == JobRef(first.id, inserted=False)
    session.expire_all()
    (job,) = session.scalars(select(Job))
    assert (job.id, job.type, job.queue) == (first.id, "send_receipt", "mail")
    assert (jobs.decode(job), job.priority, job.headers) == (Receipt(2), 0, None)
    assert (job.next_run_at - job.created_at).total_seconds() == 30


@pytest.mark.parametrize("on_conflict", ["replace", "earlier"])
def test_who_has_seen_it_before_a_change_can_not_edit(
    session: Session, on_conflict: OnDuplicate
) -> None:
    """An edit of what an operator has seen would undo what a producer has changed since."""
    unique = Unique("7", "queued", on_conflict=on_conflict)
    job_id = enqueue(session, note, 1, unique=unique, delay=60).id
    seen = session.get_one(Job, job_id).lease

    enqueue(session, note, 2, unique=unique, delay=30)

    assert jobs.edit(session, job_id, lease=seen, arg=1) == "changed"
    session.expire_all()
    assert jobs.edit(session, job_id, lease=session.get_one(Job, job_id).lease, arg=1) == "edited"


def test_earlier_takes_the_earlier_time_alone(session: Session) -> None:
    unique = Unique("7", "queued", on_conflict="earlier")
    first = enqueue(session, note, 1, unique=unique, delay=60, priority=3)

    for delay, priority in ((90, 5), (30, 4), (45, -1)):
        again = enqueue(session, note, delay, unique=unique, delay=delay, priority=priority)
        assert again == JobRef(first.id, inserted=False)

    session.expire_all()
    (job,) = session.scalars(select(Job))
    assert (job.arg_json, job.priority) == (1, -1)
    assert (job.next_run_at - job.created_at).total_seconds() == 30


def test_earlier_lets_no_job_expire_before_its_time(session: Session) -> None:
    """Of the two callers' expiries the later one holds, or none."""
    unique = Unique("7", "queued", on_conflict="earlier")
    spans = []
    for expires in (60, 30, 90, None, 10):
        enqueue(session, note, 1, unique=unique, expires=expires)
        session.expire_all()
        (job,) = session.scalars(select(Job))
        end = job.expires_at
        spans.append(None if end is None else (end - job.next_run_at).total_seconds())

    assert spans == [60.0, 60.0, 90.0, None, None]


# ---- what never will run -------------------------------------------------------------------------


def one_way(session: Session, arg: int, unique: Unique) -> bool:
    return enqueue(session, note, arg, unique=unique).inserted


def in_bulk(session: Session, arg: int, unique: Unique) -> bool:
    keys: Any = {0: Unique("a"), arg: unique, -1: Unique("z")}
    return enqueue_many(session, note, [0, arg, -1], unique=keys.__getitem__).refs[1].inserted


def from_query(session: Session, arg: int, unique: Unique) -> bool:
    query = select(literal(arg).label("n"))
    keys: Any = Unique(literal(unique.key), unique.scope, on_conflict=unique.on_conflict)
    return enqueue_from(session, note, query, unique=keys) == 1


EACH_WAY = [one_way, in_bulk, from_query]


@pytest.mark.core
@pytest.mark.parametrize("policy", ["skip", "raise"])
@pytest.mark.parametrize("scope", ["live", "queued"])
@pytest.mark.parametrize("way", EACH_WAY)
def test_what_has_expired_gives_its_key_away(
    way: Callable[[Session, int, Unique], bool], scope: Any, policy: Any, session: Session
) -> None:
    """The new job is the one that runs; the other one's end is told as ever."""
    old = enqueue(session, note, 1, unique=Unique("7", scope), expires=30)
    let_time_pass(session, jobs, 31)

    assert way(session, 2, Unique("7", scope, on_conflict=policy))
    assert not way(session, 3, Unique("7", scope))
    with pytest.raises(JobAlreadyExists):
        way(session, 4, Unique("7", scope, on_conflict="raise"))

    session.expire_all()
    assert session.get_one(Job, old.id).unique_key is None
    assert isinstance(jobs.work_one(session, id=old.id), Expired)
    assert session.scalars(select(jobs.DeadJob.job_id)).all() == [old.id]


def test_who_has_lost_his_key_never_runs_whatever_the_clock(session: Session) -> None:
    """The server's may be set back; then two jobs of a key would run."""
    old = enqueue(session, note, 1, unique=Unique("7"), expires=30)
    let_time_pass(session, jobs, 31)
    enqueue(session, note, 2, unique=Unique("7"))

    back_by_years = {"expires_at": Job.expires_at + timedelta(days=3650)}
    session.execute(update(Job).where(Job.id == old.id).values(back_by_years))

    assert isinstance(jobs.work_one(session, id=old.id), Expired)


def test_a_retry_that_comes_too_late_keeps_nobody_away(session: Session) -> None:
    old = enqueue(session, note, 1, unique="7", expires=30)
    run(session, Retry(3600.0, "later"))
    assert not enqueue(session, note, 2, unique="7").inserted

    let_time_pass(session, jobs, 31)
    new = enqueue(session, note, 3, unique="7")

    assert new.inserted
    assert new.id != old.id


@pytest.mark.parametrize("policy", ["replace", "earlier"])
@pytest.mark.parametrize("way", EACH_WAY)
def test_a_change_revives_what_has_expired(
    way: Callable[[Session, int, Unique], bool], policy: Any, session: Session
) -> None:
    old = enqueue(session, note, 1, unique=Unique("7", "queued"), expires=30)
    let_time_pass(session, jobs, 31)

    assert not way(session, 2, Unique("7", "queued", on_conflict=policy))
    assert isinstance(jobs.work_one(session, id=old.id, handler=lambda ctx, arg: None), Complete)


def test_an_id_of_what_has_expired_is_still_taken(session: Session) -> None:
    """As the id is looked at first; the job is there until a worker meets it."""
    both: dict[str, Any] = {"id": "x", "unique": "7"}
    enqueue(session, note, 1, **both, expires=30)
    let_time_pass(session, jobs, 31)

    with pytest.raises(JobAlreadyExists) as refused:
        enqueue(session, note, 2, **both)
    assert refused.value.ids == ("x",)
    assert not enqueue(session, note, 2, **both, on_conflict="ignore").inserted


# ---- with an id ----------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["live", "queued"])
def test_the_id_is_looked_at_before_the_key(scope: Any, session: Session) -> None:
    both: dict[str, Any] = {"id": "x", "unique": Unique("7", scope)}
    assert enqueue(session, note, 1, **both) == JobRef("x", inserted=True)

    with pytest.raises(JobAlreadyExists) as refused:
        enqueue(session, note, 2, **both)
    assert (refused.value.ids, refused.value.keys) == (("x",), ())
    ignored = enqueue(session, note, 2, **both, on_conflict="ignore")
    assert ignored == JobRef("x", inserted=False)

    other_id = enqueue(session, note, 2, id="y", unique=Unique("7", scope))
    assert other_id == JobRef("x", inserted=False)
    other_key = enqueue(session, note, 2, id="x", unique=Unique("8", scope), on_conflict="ignore")
    assert other_key == JobRef("x", inserted=False)
    assert len(args(session)) == 1


def test_ids_and_keys_of_many(session: Session) -> None:
    enqueue(session, note, 0, id="a", unique="a")

    with pytest.raises(JobAlreadyExists) as refused:
        enqueue_many(session, note, [1, 2], ids=["b", "a"], unique=lambda n: f"new {n}")
    assert refused.value.ids == ("a",)
    result = enqueue_many(
        session,
        note,
        [1, 2, 3],
        ids=["b", "a", "c"],
        unique=lambda n: "a" if n == 3 else f"new {n}",
        on_conflict="ignore",
    )

    assert result.refs == (JobRef("b", True), JobRef("a", False), JobRef("a", False))
    assert (result.inserted, result.duplicates) == (1, ("a",))


# ---- many jobs -----------------------------------------------------------------------------------


@pytest.mark.core
@pytest.mark.parametrize("kind", KINDS)
def test_many_are_told_one_by_one(kind: str, clean: Engine) -> None:
    """Some are there, some come twice, and some have no key."""

    async def body(made: Producer) -> Any:
        there = await made.do(enqueue(made.target, note, 0, unique="3"))
        result = await made.do(
            enqueue_many(
                made.target,
                note,
                [5, 3, 5, 1, -1, -1],
                unique=lambda n: str(n) if n > 0 else None,
            )
        )
        if kind in UNITS:
            await made.commit()
        return there, result

    there, result = produce(kind, clean, body)

    five, three, again, one, minus, minus_again = result.refs
    assert (result.inserted, result.duplicates) == (4, ())
    assert three == JobRef(there.id, inserted=False)
    assert again == JobRef(five.id, inserted=False)
    assert all(ref.inserted for ref in (five, one, minus, minus_again))
    with Session(clean) as session:
        stored = {job.id: job.unique_key for job in session.scalars(select(Job))}
    assert stored == {
        there.id: "l:3",
        five.id: "l:5",
        one.id: "l:1",
        minus.id: None,
        minus_again.id: None,
    }


def test_many_of_all_kinds_in_one_list(session: Session) -> None:
    kinds: list[Any] = [
        "k",
        Unique("k", "queued"),
        Unique("k", period=60),
        Unique("r", "queued", on_conflict="replace"),
        Unique("e", "queued", on_conflict="earlier"),
        None,
    ]

    def made(n: int) -> list[Any]:
        return [note.job(n, unique=unique, delay=n) for unique in kinds]

    first = enqueue_many(session, [*made(2), *made(1)])
    second = enqueue_many(session, made(3))

    assert [ref.inserted for ref in first.refs] == [True] * 6 + [False] * 5 + [True]
    assert [ref.id for ref in first.refs[:5]] == [ref.id for ref in first.refs[6:11]]
    assert [ref.id for ref in second.refs[:5]] == [ref.id for ref in first.refs[:5]]
    assert [ref.inserted for ref in second.refs] == [False] * 5 + [True]
    with_key = select(Job.unique_key, Job.arg_json, Job.next_run_at - Job.created_at).where(
        Job.unique_key.is_not(None)
    )
    stored = {key: (arg, delay.total_seconds()) for key, arg, delay in session.execute(with_key)}
    assert stored == {"l:k": (2, 2), "q:k": (2, 2), "q:r": (3, 3), "q:e": (2, 1)}


def test_more_than_one_statement_takes(session: Session) -> None:
    enqueue(session, note, 0, unique="7000")

    result = enqueue_many(session, note, range(12_000), unique=lambda n: str(n % 8_000))

    assert result.inserted == 7_999
    assert [n for n, ref in enumerate(result.refs[:8_000]) if not ref.inserted] == [7_000]
    assert [ref.id for ref in result.refs[8_000:]] == [ref.id for ref in result.refs[:4_000]]
    assert not any(ref.inserted for ref in result.refs[8_000:])


# ---- from a query --------------------------------------------------------------------------------


def orders(*emails: str) -> Any:
    parts = [
        select(literal(email).label("email"), literal(n).label("n"))
        for n, email in enumerate(emails)
    ]
    return union_all(*parts).subquery("orders")


@pytest.mark.core
@pytest.mark.parametrize("scope", ["live", "queued", "period"])
def test_a_query_gives_each_row_its_key(scope: str, session: Session) -> None:
    rows = orders("a", "b", "a", "c")
    key = func.nullif(rows.c.email, "c")
    unique = Unique(key, period=60) if scope == "period" else Unique(key, scope)  # type: ignore[arg-type]
    query = select(rows.c.email, rows.c.n)

    assert enqueue_from(session, note, query, unique=unique) == 3
    assert enqueue_from(session, note, query, unique=unique) == 1  # null is no key

    found = [job.arg_json for job in session.scalars(select(Job))]
    assert sorted((arg["email"], arg["n"]) for arg in found) == [
        ("a", 0),
        ("b", 1),
        ("c", 3),
        ("c", 3),
    ]
    assert not any("bgjob_unique_key" in arg for arg in found)


def test_a_column_alone_is_a_key_of_scope_live(session: Session) -> None:
    session.add_all([Order(id=7, email="a"), Order(id=8, email="b")])
    query = select(Order.id.label("order_id"))
    enqueue(session, send_receipt, Receipt(1), unique="8")

    assert enqueue_from(session, send_receipt, query, unique=Order.id) == 1
    assert set(args(session)) == {"l:7", "l:8"}


@pytest.mark.parametrize(
    ("policy", "arg", "delay"), [("replace", {"n": 2}, 20.0), ("earlier", {"n": 0}, 10.0)]
)
def test_a_query_changes_what_waits(
    policy: OnDuplicate, arg: Any, delay: float, session: Session
) -> None:
    rows = orders("a", "a", "a")
    query = select(rows.c.n, (30 - 20 * (rows.c.n % 2) - 5 * rows.c.n).label("delay"))
    unique = Unique(rows.c.email, "queued", on_conflict=policy)

    assert enqueue_from(session, note, query, unique=unique) == 1
    assert enqueue_from(session, note, query, unique=unique) == 0

    (job,) = session.scalars(select(Job))
    assert job.arg_json == arg
    at = {"replace": 20.0, "earlier": 5.0}[policy]
    assert (job.next_run_at - job.created_at).total_seconds() == at


@pytest.mark.parametrize("scope", ["live", "queued"])
def test_a_query_that_raises_adds_nothing(scope: Any, session: Session) -> None:
    rows = orders("a", "b", "a")
    unique = Unique(rows.c.email, scope, on_conflict="raise")
    with pytest.raises(JobAlreadyExists, match="one is given twice"):
        enqueue_from(session, note, select(rows.c.n), unique=unique)
    assert args(session) == {}
    assert enqueue_from(session, note, select(rows.c.n).where(rows.c.n > 0), unique=unique) == 2


# ---- session.add ---------------------------------------------------------------------------------


def test_session_add_takes_a_key_that_raises(session: Session) -> None:
    session.add(note.job(1, unique=Unique("7", on_conflict="raise")))
    session.flush()
    assert enqueue(session, note, 2, unique="7").inserted is False
    with pytest.raises(IntegrityError), session.begin_nested():
        session.add(note.job(3, unique=Unique("7", on_conflict="raise")))
    assert args(session) == {"l:7": 1}


@pytest.mark.parametrize(
    "unique", ["7", Unique("7", period=60), Unique("7", "queued", on_conflict="replace")]
)
def test_session_add_refuses_what_it_cannot_do(unique: Any, session: Session) -> None:
    session.add(note.job(1, unique=unique))
    with pytest.raises(TypeError, match=r"write enqueue\(session"):
        session.flush()


# ---- dead jobs -----------------------------------------------------------------------------------


def test_a_redrive_beside_a_live_duplicate_is_told(session: Session) -> None:
    first = enqueue(session, note, 1, unique="7")
    run(session, MoveToDlq("no"))
    second = enqueue(session, note, 2, unique="7")

    done = jobs.redrive(session, true())
    assert (done.ids, done.left) == ((), (first.id,))

    run(session, MoveToDlq("no"))
    done = jobs.redrive(session, true())
    assert len(done.ids) == len(done.left) == 1
    assert {*done.ids, *done.left} == {first.id, second.id}
    assert len(args(session)) == 1
    assert set(args(session)) == {"l:7"}


# ---- what it costs -------------------------------------------------------------------------------


def test_without_a_key_the_statements_are_the_old_ones(clean: Engine) -> None:
    with Sent(clean) as sent:
        enqueue(clean, note, 1)
        enqueue_many(clean, note, [1, 2])
        enqueue_many(clean, note, range(600))
        enqueue_from(clean, note, select(literal(1).label("n")))
        with Session(clean) as session, session.begin():
            session.add(note.job(1))

    # The COPY is the driver's own; before it the time is asked, and after it comes the wake-up.
    assert len(sent.statements) == 1 + 1 + 2 + 1 + 2
    added = sent.statements.pop(-2)  # the ORM names each column of the table
    assert added.startswith("INSERT INTO bgjob_job")
    assert not any("unique" in statement for statement in sent.statements)
    assert all(statement.count("INSERT INTO") <= 1 for statement in sent.statements)
    for statement in sent.inserts():
        columns = "(id, queue, type, arg, priority, headers, next_run_at"
        assert f"INSERT INTO bgjob_job {columns}" in statement
    assert sum("ON CONFLICT (id) DO NOTHING" in s for s in sent.inserts()) == 3


def test_the_expiry_goes_with_each_way_to_enqueue(session: Session) -> None:
    """Also where the job of a key gets other values."""
    enqueue(session, note, 1, unique=Unique("one", "queued"))
    enqueue(session, note, 1, unique=Unique("one", "queued", on_conflict="replace"), expires=60)
    enqueue_many(session, note, [1, 2], unique=lambda n: f"many-{n}", expires=60)
    enqueue(session, note, 1, unique=Unique("period", period=60), expires=60)
    query = select(literal(1).label("n"))
    enqueue_from(session, note, query, unique=literal("query"), expires=60)

    kept = session.scalars(select(Job.expires_at - Job.next_run_at)).all()

    assert [span.total_seconds() for span in kept if span is not None] == [60.0] * 5
    assert len(kept) == 5


def test_with_a_key_it_is_one_statement(clean: Engine) -> None:
    """New or there already; but not if somebody comes in between."""
    for unique in ("7", Unique("7", "queued"), Unique("7", period=60)):
        for _ in range(2):
            with Sent(clean) as sent:
                enqueue(clean, note, 1, unique=unique)
            assert len(sent.statements) == 1


UNIQUES = {
    "live": Unique("7"),
    "queued": Unique("7", "queued"),
    "replace": Unique("7", "queued", on_conflict="replace"),
    "earlier": Unique("7", "queued", on_conflict="earlier"),
    "period": Unique("7", period=60),
}


@pytest.mark.parametrize("unique", UNIQUES.values(), ids=UNIQUES)
def test_a_job_that_a_trigger_keeps_out_is_told(session: Session, unique: Unique) -> None:
    """It is neither new, nor was there one before."""
    keeps_out = "FOR EACH ROW EXECUTE FUNCTION keeps_out()"
    for statement in (
        "CREATE FUNCTION keeps_out() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        f"CREATE TRIGGER k BEFORE INSERT ON bgjob_job {keeps_out}",
    ):
        session.execute(text(statement))

    told = "unique key '7' can't be inserted"
    with pytest.raises(RuntimeError, match=told), session.begin_nested():
        enqueue(session, note, 1, unique=unique)
    with pytest.raises(RuntimeError, match=told), session.begin_nested():
        enqueue_many(session, note, [1], unique=lambda arg: unique)


def test_who_waits_is_woken_for_a_job_that_was_there(clean: Engine) -> None:
    """A worker may have passed it by, while it was locked."""
    enqueue(clean, note, 1, unique="due")
    enqueue(clean, note, 1, unique="later", delay=60)
    heard = {}
    with clean.connect() as listener:
        listener.execution_options(isolation_level="AUTOCOMMIT")
        with clean.begin() as connection:
            connection.execute(
                text(
                    "INSERT INTO bgjob_worker (id, hostname, pid, version, queues, lease_timeout,"
                    " waits_for) VALUES (7, 'h', 1, '0', '{}', 30, '[\"default\"]')"
                )
            )
        channel = f"{jobs_channel()}_7"
        listener.execute(text(f'LISTEN "{channel}"'))
        driver: Any = listener.connection.driver_connection
        for key in ("due", "later", "new"):
            enqueue(clean, note, 2, unique=key)
            heard[key] = [n.payload.split()[0] for n in driver.notifies(timeout=0.05)]
    with clean.begin() as connection:
        connection.execute(text("DELETE FROM bgjob_worker"))

    assert heard == {"due": ["returned"], "later": [], "new": ["new"]}


def jobs_channel() -> str:
    from sqlalchemy_bgjob._sql import statements_of

    return statements_of(jobs.models).tables.channel


def test_a_key_of_a_users_column_type(session: Session) -> None:
    """What is no text is cast to it."""
    session.add(Order(id=7, email="a"))
    unique = Unique(cast(Order.id, Text), "queued")
    query = select(Order.id.label("order_id"))
    assert enqueue_from(session, send_receipt, query, unique=unique) == 1
    assert set(args(session)) == {"q:7"}


def test_the_id_of_a_second_job_with_a_key_is_looked_at_too(session: Session) -> None:
    enqueue(session, note, 0, id="taken")

    result = enqueue_many(
        session, note, [1, 2], ids=["new", "taken"], unique=lambda n: "7", on_conflict="ignore"
    )

    assert result.refs == (JobRef("new", inserted=True), JobRef("taken", inserted=False))
    assert result.duplicates == ("taken",)
