"""Schedules as rows: what users do to them, and how they are fired, once for each time."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, MetaData, create_engine, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from sqlalchemy_bgjob import BGJob, Context
from sqlalchemy_bgjob._handlers.outcomes import Kind, Settlement
from sqlalchemy_bgjob._handlers.timetable import due, timetable
from sqlalchemy_bgjob._inspect.schedules import schedules
from sqlalchemy_bgjob._lifecycle import fire as firing
from sqlalchemy_bgjob._lifecycle import settle
from sqlalchemy_bgjob._lifecycle.fire import Serves, fire, keep_code, look_at_schedules
from sqlalchemy_bgjob._sql import statements_of
from sqlalchemy_bgjob._sql.fire import any_due
from support.producers import FEW_UNITS, producer
from support.rows import claim, pending, waiting
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Row

    from sqlalchemy_bgjob._lifecycle.fire import Upcoming

pytestmark = pytest.mark.core

HOUR = timedelta(hours=1)
SERVES = Serves(names=[], queues=["q"], types=["mail"], open_queues=[])


@pytest.fixture(scope="module")
def jobs(module_engine: Engine) -> BGJob:
    jobs = BGJob(MetaData())
    jobs.metadata.create_all(module_engine)

    @jobs.handler("mail", queue="q")
    def mail(ctx: Context, to: str) -> None: ...

    return jobs


class Book:
    """The schedules of one database."""

    def __init__(self, jobs: BGJob, engine: Engine) -> None:
        self.jobs, self.engine = jobs, engine
        self.its, self.statements = jobs.schedules, statements_of(jobs.models)
        self.mail = jobs.registry.find_type("mail")
        with engine.begin() as connection:
            connection.execute(text("DELETE FROM bgjob_job"))
            connection.execute(text("DELETE FROM bgjob_schedule"))

    def put(self, name: str = "s", arg: str = "ada", **options: Any) -> datetime | None:
        options = {"cron": "0 * * * *"} | options
        assert self.mail is not None
        return self.its.put(self.engine, name, self.mail, arg, **options)

    def row(self, name: str = "s") -> Row[Any]:
        with self.engine.connect() as connection:
            found = select(self.jobs.models.schedule).where(
                self.jobs.models.schedule.c.name == name
            )
            return connection.execute(found).one()

    def make_due(self, name: str = "s", ago: timedelta = timedelta(seconds=1)) -> datetime:
        """As if the next fire time had come so long ago."""
        with self.engine.begin() as connection:
            return connection.execute(
                text(
                    "UPDATE bgjob_schedule SET next_at = clock_timestamp() - :ago"
                    " WHERE name = :name RETURNING next_at"
                ),
                {"name": name, "ago": ago},
            ).scalar_one()

    def look(self, connection: Connection, serves: Serves = SERVES) -> list[Upcoming]:
        return look_at_schedules(connection, self.statements, serves)

    def fire(self, connection: Connection, upcoming: Upcoming) -> bool:
        table = timetable(upcoming.cron, upcoming.timezone)
        given: Any = {"gap": upcoming.gap, "last_at": upcoming.last_at}
        its = due(table, upcoming.next_at, upcoming.now, upcoming.missed, **given)
        return fire(connection, self.statements, upcoming, its)

    def fire_all(self, serves: Serves = SERVES) -> int:
        """As one worker would, once; returns how many were fired."""
        with self.engine.connect() as connection:
            found = [it for it in self.look(connection, serves) if it.next_at <= it.now]
            return sum(self.fire(connection, it) for it in found)

    def enqueued(self) -> list[Any]:
        job = self.jobs.models.job
        with self.engine.connect() as connection:
            return list(connection.execute(select(job).order_by(job.c.id)).all())

    def keep(self, *, starting: bool = True) -> list[str]:
        definitions = self.jobs.registry.schedules.values()
        with self.engine.connect() as connection:
            return keep_code(connection, self.statements, definitions, starting=starting)


@pytest.fixture
def book(jobs: BGJob, module_engine: Engine) -> Iterator[Book]:
    yield Book(jobs, module_engine)
    jobs.registry.schedules.clear()


# ---- what users do ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FEW_UNITS)
def test_every_target_puts_pauses_and_removes(book: Book, kind: str) -> None:
    """In its own transaction: what is rolled back has not happened."""
    url = book.engine.url.render_as_string(hide_password=False)
    its, mail = book.its, book.mail

    async def use() -> None:
        async with producer(kind, url) as one:
            target = one.target
            next_at = await one.do(its.put(target, "s", mail, "ada", cron="@hourly"))
            assert next_at > datetime.now(UTC)
            assert await one.do(its.pause(target, "s", by="ada", reason="a move")) is True
            assert await one.do(its.resume(target, "s")) == next_at
            assert await one.do(its.resume(target, "s")) is None
            assert await one.do(its.run_now(target, "s"))
            await one.commit()
            assert await one.do(its.remove(target, "s")) is True
            assert await one.do(its.remove(target, "s")) is False
            assert await one.do(its.pause(target, "s")) is False
            await one.rollback()

    asyncio.run(use())

    assert book.row().arg == b'"ada"'
    assert len(book.enqueued()) == 1


def test_an_engine_is_a_transaction_of_its_own(book: Book) -> None:
    book.put()
    assert book.its.pause(book.engine, "s") is True
    assert book.row().paused_at is not None


def test_a_schedule_is_a_mapped_object(book: Book) -> None:
    book.put(timezone="Europe/Berlin", priority=5, headers={"tenant": 7}, overlap="allow")

    with Session(book.engine) as session:
        found = session.scalars(select(book.jobs.Schedule)).one()
    assert (found.name, found.source, found.type, found.queue) == ("s", "data", "mail", "q")
    assert (found.cron, found.timezone) == ("0 * * * *", "Europe/Berlin")
    assert (found.priority, found.headers, found.missed) == (5, {"tenant": 7}, "one")
    assert (found.overlap, found.last_at, found.paused_at) == ("allow", None, None)


def test_put_again_changes_it_and_loses_no_time(book: Book) -> None:
    """An application may put its schedules at each start."""
    book.put()
    missed = book.make_due()

    assert book.put(arg="bob") == missed
    assert (book.row().arg, book.row().next_at) == (b'"bob"', missed)
    later = book.put(cron="@yearly")
    assert later is not None
    assert later > missed + HOUR


def test_a_paused_schedule_stays_so_when_it_is_put_again(book: Book) -> None:
    book.put()
    book.its.pause(book.engine, "s", by="ada")

    assert book.put(cron="@yearly") is None
    assert (book.row().paused_by, book.row().next_at) == ("ada", None)
    assert book.its.resume(book.engine, "s") == timetable("@yearly", "UTC").after(datetime.now(UTC))


def test_who_pauses_and_why_is_said_anew(book: Book) -> None:
    book.put()
    book.its.pause(book.engine, "s", by="ada", reason="a move")
    since = book.row().paused_at
    book.its.pause(book.engine, "s", by="bob", reason="still")

    row = book.row()
    assert (row.paused_at, row.paused_by, row.pause_reason) == (since, "bob", "still")
    book.its.resume(book.engine, "s")
    row = book.row()
    assert (row.paused_at, row.paused_by, row.pause_reason) == (None, None, None)


def test_a_trigger_that_keeps_a_row_out_is_told(book: Book) -> None:
    """And not waited for without end, in the caller's transaction."""
    keeps_out = "FOR EACH ROW EXECUTE FUNCTION keeps_out()"
    with book.engine.connect() as connection:
        connection.execute(
            text(
                "CREATE FUNCTION keeps_out() RETURNS trigger LANGUAGE plpgsql"
                " AS 'BEGIN RETURN NULL; END'"
            )
        )
        connection.execute(text(f"CREATE TRIGGER k BEFORE INSERT ON bgjob_schedule {keeps_out}"))

        assert book.mail is not None
        with pytest.raises(RuntimeError, match="look for a trigger on the table of schedules"):
            book.its.put(connection, "s", book.mail, "ada", cron="0 * * * *")


@pytest.mark.parametrize("words", ["a\0b", "\ud800", "x" * 1_001], ids=["NUL", "half", "long"])
def test_words_that_can_not_be_stored_are_refused(book: Book, words: str) -> None:
    """Before any SQL, so that the caller's transaction stays usable."""
    book.put()
    for given in ({"by": words}, {"reason": words}):
        with pytest.raises(ValueError, match=r"by=|reason="):
            book.its.pause(book.engine, "s", **given)


def test_run_now_makes_a_job_and_changes_no_time(book: Book) -> None:
    book.put(headers={"tenant": 7}, priority=2)
    book.its.pause(book.engine, "s")
    before = book.row()

    ids = {book.its.run_now(book.engine, "s") for _ in range(2)}

    jobs = book.enqueued()
    assert {job.id for job in jobs} == ids
    assert {(job.type, job.queue, job.arg, job.priority) for job in jobs} == {
        ("mail", "q", b'"ada"', 2)
    }
    assert jobs[0].headers["bgjob-schedule"] == "s"
    assert datetime.fromisoformat(jobs[0].headers["bgjob-fire-time"]).utcoffset() == timedelta(0)
    assert jobs[0].headers["tenant"] == 7
    assert book.row() == before


def test_run_now_of_a_schedule_in_code_needs_no_row(book: Book) -> None:
    assert book.mail is not None
    book.jobs.schedule("@daily", name="code", arg="ada")(book.mail)

    book.its.run_now(book.engine, "code")

    (job,) = book.enqueued()
    assert (job.type, job.arg, job.headers["bgjob-schedule"]) == ("mail", b'"ada"', "code")
    with pytest.raises(LookupError, match="is called 'other'; one that is declared in code has"):
        book.its.run_now(book.engine, "other")


def test_put_refuses_what_can_not_be(book: Book) -> None:
    with pytest.raises(ValueError, match="is not known"):
        book.put(timezone="Mars/Olympus")
    with pytest.raises(TypeError, match="is not a registered handler"):
        book.its.put(book.engine, "s", print, cron="@daily")  # type: ignore[call-overload]
    book.jobs.schedule("@daily", name="s", arg="x")(book.mail)  # type: ignore[arg-type]
    book.keep()
    with pytest.raises(ValueError, match="is one of the code of a worker; give"):
        book.put()


# ---- firing -------------------------------------------------------------------------------------


def test_a_job_knows_its_schedule_and_its_time(book: Book) -> None:
    book.put(headers={"tenant": 7}, priority=3)
    first = book.make_due()

    assert book.fire_all() == 1

    (job,) = book.enqueued()
    assert (job.type, job.queue, job.arg, job.priority) == ("mail", "q", b'"ada"', 3)
    assert job.headers["bgjob-schedule"] == "s"
    assert job.headers["tenant"] == 7
    assert datetime.fromisoformat(job.headers["bgjob-fire-time"]) == first
    row = book.row()
    assert row.last_at == first
    assert row.next_at == timetable("0 * * * *", "UTC").after(datetime.now(UTC))
    assert book.fire_all() == 0


def test_two_who_have_seen_the_same_fire_it_once(book: Book) -> None:
    book.put(overlap="allow")
    book.make_due()

    with book.engine.connect() as one, book.engine.connect() as other:
        (seen,), (seen_too,) = book.look(one), book.look(other)
        assert [book.fire(one, seen), book.fire(other, seen_too)] == [True, False]

    assert len(book.enqueued()) == 1


def test_who_is_at_it_is_not_waited_for(book: Book) -> None:
    """A frozen worker, or a user's open transaction. What it rolls back another one fires."""
    book.put()
    book.make_due()

    with book.engine.connect() as one, book.engine.connect() as other:
        (seen,) = book.look(other)
        with one.begin() as transaction:
            book.its.pause(one, "s")
            assert book.fire(other, seen) is False
            transaction.rollback()
        assert book.fire(other, seen) is True


def test_a_paused_schedule_never_fires_though_it_was_seen_before(book: Book) -> None:
    book.put()
    book.make_due()

    with book.engine.connect() as connection:
        (seen,) = book.look(connection)
        book.its.pause(book.engine, "s")
        assert book.fire(connection, seen) is False
        book.its.resume(book.engine, "s")
        assert book.fire(connection, seen) is False
    assert book.enqueued() == []


@pytest.mark.parametrize(("missed", "count"), [("one", 1), ("none", 0), ("all", 4)])
def test_what_an_outage_has_missed_is_made_up_for(book: Book, missed: str, count: int) -> None:
    """The last time was half an hour ago, and there were three before that nobody has met."""
    now = datetime.now(UTC)
    cron = f"{(now.minute + 30) % 60} * * * *"
    book.put(missed=missed, overlap="allow", cron=cron)
    next_at = book.row().next_at
    book.make_due(ago=now - (next_at - 4 * HOUR))

    assert book.fire_all() == 1

    assert len(book.enqueued()) == count
    assert book.row().next_at == next_at


def test_a_time_is_left_out_while_an_earlier_job_is_queued(book: Book) -> None:
    book.put()
    book.put("other", overlap="allow")
    for _ in range(2):
        book.make_due()
        book.make_due("other")
        assert book.fire_all() == 2

    names = [job.headers["bgjob-schedule"] for job in book.enqueued()]
    assert sorted(names) == ["other", "other", "s"]


def test_a_job_that_somebody_is_deleting_is_not_waited_for(book: Book) -> None:
    """The row is there until that transaction has ended, and the time is left out."""
    book.put()
    book.make_due()
    book.fire_all()
    book.make_due()

    with book.engine.connect() as other, other.begin():
        other.execute(text("DELETE FROM bgjob_job"))
        with book.engine.connect() as connection:
            connection.execute(text("SET lock_timeout = '1s'"))
            connection.commit()
            (seen,) = book.look(connection)
            assert book.fire(connection, seen) is True


@pytest.mark.parametrize("overlap", ["skip", "allow"])
def test_a_unique_index_of_yours_loses_no_fire_time(book: Book, overlap: str) -> None:
    """What it refuses is an error, and comes once it may; so with run_now."""
    book.put(overlap=overlap)
    missed = book.make_due()
    other = text("INSERT INTO bgjob_job (id, queue, type) VALUES ('another', 'q', 'mail')")
    with book.engine.begin() as connection:
        connection.execute(other)
        connection.execute(text("CREATE UNIQUE INDEX of_the_user ON bgjob_job (type)"))
    try:
        with pytest.raises(IntegrityError, match="of_the_user"):
            book.fire_all()
        with pytest.raises(IntegrityError, match="of_the_user"):
            book.its.run_now(book.engine, "s")
        assert book.row().next_at == missed
    finally:
        with book.engine.begin() as connection:
            connection.execute(text("DROP INDEX of_the_user"))

    assert book.fire_all() == 1
    assert len(book.enqueued()) == 2


def test_only_who_knows_the_type_and_serves_the_queue_fires_a_row(book: Book) -> None:
    book.put()
    book.make_due()
    others = [
        SERVES._replace(types=["other"]),
        SERVES._replace(queues=["other"]),
        SERVES._replace(names=["s"], types=[]),
        SERVES._replace(types=[], open_queues=["other"]),
    ]

    assert [book.fire_all(serves) for serves in others] == [0, 0, 0, 0]
    assert book.fire_all(SERVES._replace(types=[], open_queues=["q"])) == 1


# ---- schedules of the code ----------------------------------------------------------------------


def declare(book: Book, cron: str = "@hourly", **options: Any) -> None:
    assert book.mail is not None
    book.jobs.registry.schedules.clear()
    book.jobs.schedule(cron, name="code", arg="ada", **options)(book.mail)


def test_a_schedule_of_the_code_gets_its_row_at_the_start(book: Book) -> None:
    """It does not fire at once, and a restart leaves it as it is."""
    declare(book)
    book.keep()
    row = book.row("code")
    assert (row.source, row.type, row.arg) == ("code", "mail", b'"ada"')
    assert row.next_at == timetable("@hourly", "UTC").after(datetime.now(UTC))

    missed = book.make_due("code")
    book.keep()
    assert book.row("code").next_at == missed, "a restart has lost a time"


def test_only_who_has_it_in_the_code_fires_it(book: Book) -> None:
    """So one that a deploy removes stops, and another service's are left alone."""
    declare(book)
    book.keep()
    book.make_due("code")

    assert book.fire_all(SERVES) == 0
    assert book.fire_all(SERVES._replace(names=["code"], queues=[], types=[])) == 1


def test_a_changed_expression_is_taken_over(book: Book) -> None:
    declare(book)
    book.keep()
    declare(book, "@yearly", timezone="Europe/Berlin", priority=7)
    book.keep()

    row = book.row("code")
    assert (row.cron, row.timezone, row.priority) == ("@yearly", "Europe/Berlin", 7)
    assert row.next_at == timetable("@yearly", "Europe/Berlin").after(datetime.now(UTC))


def test_a_time_that_is_due_is_met_though_the_expression_has_changed(book: Book) -> None:
    declare(book)
    book.keep()
    missed = book.make_due("code")
    declare(book, "@yearly")
    book.keep()

    assert book.row("code").next_at == missed
    assert book.fire_all(SERVES._replace(names=["code"])) == 1
    assert book.row("code").next_at == timetable("@yearly", "UTC").after(datetime.now(UTC))


def test_what_has_fired_is_not_fired_again_by_a_new_expression(book: Book) -> None:
    """The server's clock was set back since."""
    declare(book)
    book.keep()
    with book.engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE bgjob_schedule SET last_at = now() + interval '1 day',"
                " next_at = now() + interval '2 days'"
            )
        )
    last = book.row("code").last_at
    declare(book, "*/5 * * * *")
    book.keep()

    assert book.row("code").next_at > last


def test_old_and_new_code_do_not_change_it_at_every_look(
    book: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a deploy goes on. Once the old workers are gone, the new code holds within a minute."""
    declare(book, "@yearly")
    book.keep()
    declare(book)
    book.keep(starting=False)
    assert book.row("code").cron == "@yearly"

    monkeypatch.setattr(firing, "TOOK_OVER", timedelta(0))
    book.keep(starting=False)
    assert book.row("code").cron == "@hourly"


def test_a_paused_one_is_changed_and_stays_paused(book: Book) -> None:
    declare(book)
    book.keep()
    book.its.pause(book.engine, "code", by="ada")
    declare(book, "@yearly")
    book.keep()

    row = book.row("code")
    assert (row.cron, row.paused_by, row.next_at) == ("@yearly", "ada", None)


@pytest.mark.parametrize("meanwhile", ["pause", "fire"])
def test_a_change_meanwhile_is_not_overwritten(book: Book, meanwhile: str) -> None:
    """What was seen is named: what happens between the look and the change stands."""
    declare(book)
    book.keep()
    book.make_due("code")
    row = book.row("code")
    if meanwhile == "pause":
        book.its.pause(book.engine, "code")
    else:
        assert book.fire_all(SERVES._replace(names=["code"])) == 1
    expected = book.row("code")

    given = {f"given_{name}": value for name, value in row._mapping.items()}
    given |= {"given_seen_at": row.updated_at, "given_seen_next_at": row.next_at}
    with book.engine.begin() as connection:
        changed = connection.execute(book.statements.fire.change, given).all()

    assert changed == []
    assert book.row("code") == expected


def test_a_row_of_a_user_with_the_same_name_is_left_alone(book: Book) -> None:
    book.put("code", arg="bob")
    declare(book)

    assert book.keep() == ["code"]
    assert (book.row("code").source, book.row("code").arg) == ("data", b'"bob"')


def test_two_workers_add_it_once(book: Book) -> None:
    declare(book)
    url = book.engine.url
    other = create_engine(url)
    with other.connect() as connection:
        keep_code(connection, book.statements, book.jobs.registry.schedules.values(), starting=True)
    other.dispose()
    book.keep()

    assert book.row("code").cron == "@hourly"


def test_one_runs_while_one_waits(book: Book) -> None:
    """A job that runs keeps no later one away; one that is queued does."""
    book.put()
    for waits in (0, 1, 1):
        book.make_due()
        assert book.fire_all() == 1
        if waits == 0:
            with book.engine.connect() as connection:
                assert len(claim(connection, book.statements, queue=book.enqueued()[0].queue)) == 1

    assert len(book.enqueued()) == 2


def test_a_job_that_waits_for_its_retry_keeps_no_time_away(book: Book) -> None:
    """Its key was free when it was claimed, and no retry takes one back."""
    book.put()
    book.make_due()
    book.fire_all()
    with book.engine.connect() as connection:
        held = claim(connection, book.statements)
        retried = Settlement(Kind.RETRY, delay=60.0, error="failed")
        settle.settle(connection, book.statements, pending(held, retried))

    book.make_due()
    book.fire_all()

    assert [job.attempt for job in book.enqueued()] == [1, 0]


# ---- a clock that had been ahead -----------------------------------------------------------------


def put_right(book: Book, serves: Serves = SERVES) -> int:
    """As a worker does that has been asked to look."""
    with book.engine.connect() as connection:
        found = look_at_schedules(connection, book.statements, serves, astray=True)
        for one in found:
            firing.put_right(connection, book.statements, one)
        return len(found)


def set_back(book: Book, by: timedelta, name: str = "s", *, written: bool = False) -> None:
    """As if the server's clock had been set back: all that the row says is later.

    With *written*, also when it was put, resumed or changed.
    """
    with book.engine.begin() as connection:
        which = (*TIMES, "updated_at") if written else TIMES
        times = ", ".join(f"{it} = {it} + :by" for it in which)
        connection.execute(
            text(f"UPDATE bgjob_schedule SET {times} WHERE name = :name"), {"by": by, "name": name}
        )


TIMES = ("next_at", "last_at", "missed_from", "missed_until")


@pytest.mark.parametrize("of_code", [True, False])
def test_a_schedule_is_not_silent_until_a_false_future(book: Book, of_code: bool) -> None:
    """Of the code a worker that has it mends it, within a minute; of a row, whoever may fire it."""
    name = "code" if of_code else "s"
    serves = SERVES._replace(names=["code"])
    if of_code:
        declare(book)
        book.keep()
    else:
        book.put()
    first = book.make_due(name, ago=24 * HOUR)  # the clock jumps ahead by a day
    assert book.fire_all(serves) == 1
    row = book.row(name)
    assert (row.missed_from, row.missed_until) == (first, row.last_at)
    set_back(book, 24 * HOUR, name)  # and back
    assert put_right(book, SERVES) == (not of_code)
    book.keep(starting=False)

    row = book.row(name)
    assert row.next_at == row.missed_from
    assert abs(row.next_at - datetime.now(UTC)) < timedelta(minutes=10)
    assert book.fire_all(serves) == 1
    assert book.row(name).last_at == row.last_at
    assert datetime.now(UTC) < book.row(name).next_at < datetime.now(UTC) + HOUR
    assert put_right(book, serves) == 0


def test_a_small_step_of_the_clock_changes_nothing(book: Book) -> None:
    book.put()
    book.make_due()
    assert book.fire_all() == 1
    set_back(book, timedelta(seconds=5))
    before = book.row()

    assert put_right(book) == 0
    assert book.row() == before


@pytest.mark.parametrize("of_code", [True, False])
def test_a_row_with_no_next_time_and_no_pause_gets_one(book: Book, of_code: bool) -> None:
    """Somebody has written so."""
    declare(book) if of_code else book.put("code")
    book.keep()
    with book.engine.begin() as connection:
        connection.execute(text("UPDATE bgjob_schedule SET next_at = NULL"))
    assert book.fire_all(SERVES._replace(names=["code"])) == 0

    assert put_right(book) == (not of_code)
    book.keep(starting=False)

    assert book.row("code").next_at == timetable("@hourly", "UTC").after(datetime.now(UTC))


def test_who_was_fired_or_paused_meanwhile_is_left_alone(book: Book) -> None:
    book.put()
    book.make_due(ago=24 * HOUR)
    book.fire_all()
    set_back(book, 24 * HOUR)
    with book.engine.connect() as connection:
        (seen,) = look_at_schedules(connection, book.statements, SERVES, astray=True)
        book.its.pause(book.engine, "s")
        firing.put_right(connection, book.statements, seen)
        assert book.row().next_at is None
        assert put_right(book) == 0

        book.its.resume(book.engine, "s")
        firing.put_right(connection, book.statements, seen)
        assert book.row().next_at == timetable("@hourly", "UTC").after(datetime.now(UTC))


def test_a_new_expression_holds_though_the_clock_had_been_ahead(book: Book) -> None:
    declare(book)
    book.keep()
    book.make_due("code", ago=24 * HOUR)
    book.fire_all(SERVES._replace(names=["code"]))
    set_back(book, 24 * HOUR, "code")
    declare(book, "*/5 * * * *")
    book.keep()

    assert book.row("code").next_at < datetime.now(UTC) + timedelta(minutes=16)


@pytest.mark.parametrize("of_code", [True, False])
@pytest.mark.parametrize("how", ["put", "resume", "change"])
def test_what_is_put_in_a_false_future_is_not_silent(book: Book, how: str, of_code: bool) -> None:
    """Until then. Nothing that has passed is made up for, as if it were put now."""
    name = "code" if of_code else "s"
    serves = SERVES._replace(names=["code"])

    def put(cron: str = "@hourly") -> None:
        if of_code:
            declare(book, cron, missed="all", overlap="allow")
            book.keep()
        else:
            book.put(cron=cron, missed="all", overlap="allow")

    put("@yearly" if how == "change" else "@hourly")
    if how == "resume":
        book.its.pause(book.engine, name)
        book.its.resume(book.engine, name)
    elif how == "change":
        put()
    set_back(book, 24 * HOUR, name, written=True)
    assert put_right(book, SERVES) == (not of_code)
    book.keep(starting=False)

    assert book.row(name).next_at == timetable("@hourly", "UTC").after(datetime.now(UTC))
    assert book.fire_all(serves) == 0
    assert put_right(book, serves) == 0


def test_after_a_false_future_no_user_makes_a_time_be_met_twice(book: Book) -> None:
    """Whoever puts it with another expression, or pauses and resumes it."""
    book.put(cron="0 * * * *")
    book.make_due(ago=HOUR)
    book.fire_all()
    set_back(book, 2 * HOUR)
    met = book.row().last_at

    book.its.pause(book.engine, "s")
    assert (resumed := book.its.resume(book.engine, "s")) is not None
    assert resumed > met or resumed < book.row().missed_until
    with book.engine.begin() as connection:
        connection.execute(
            text("UPDATE bgjob_schedule SET missed_from = NULL, missed_until = NULL")
        )
    book.its.pause(book.engine, "s")
    assert book.its.resume(book.engine, "s") == timetable("@hourly", "UTC").after(met)
    assert book.put(cron="*/30 * * * *") == timetable("*/30 * * * *", "UTC").after(met)


NO_TIMES = ("infinity", "-infinity", "0044-03-15 BC", "20000-01-01")


@pytest.mark.parametrize("of_code", [True, False])
@pytest.mark.parametrize("column", [*TIMES, "updated_at"])
@pytest.mark.parametrize("value", NO_TIMES)
def test_a_time_that_python_has_not_stops_nothing(
    book: Book, column: str, value: str, of_code: bool
) -> None:
    """Somebody has written it by SQL: the schedule and its neighbours fire, and all are listed."""
    name = "code" if of_code else "s"
    declare(book) if of_code else book.put()
    book.keep()
    with book.engine.begin() as connection:
        connection.execute(
            text(f"UPDATE bgjob_schedule SET {column} = CAST(:value AS timestamptz)"),
            {"value": value},
        )

    put_right(book)
    book.keep(starting=False)

    with book.engine.connect() as connection:
        (listed,) = schedules(connection, None, "bgjob_", most=9)
        assert any_astray(connection, book) is False
    assert listed.next_at == timetable("@hourly", "UTC").after(datetime.now(UTC))
    book.its.pause(book.engine, name)
    assert book.its.resume(book.engine, name) == listed.next_at
    if not of_code:
        assert book.put(cron="@yearly") is not None


def any_astray(connection: Connection, book: Book) -> bool:
    """What the rescuer's look asks for."""
    given = {f"given_{name}": value for name, value in SERVES._asdict().items() if name != "names"}
    return bool(connection.execute(select(any_due(book.statements.tables)), given).scalar())


def test_two_who_put_it_at_once_put_it_one_after_the_other(book: Book) -> None:
    """The second one waits, and changes what the first has added."""
    with book.engine.connect() as one, ThreadPoolExecutor(1) as pool:
        with one.begin():
            book.its.put(one, "s", book.mail, "ada", cron="@hourly")
            second = pool.submit(book.put, arg="bob", cron="@yearly")
            wait_until(lambda: waiting(book.engine))
        assert second.result(60) == timetable("@yearly", "UTC").after(datetime.now(UTC))
    assert (book.row().arg, book.row().cron) == (b'"bob"', "@yearly")
