"""JobKit and schedules: a test lets them meet their times, and runs their jobs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy.orm import DeclarativeBase, Session

from sqlalchemy_bgjob import BGJob, Context
from sqlalchemy_bgjob.testing import Fired, JobKit, firing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine


class Base(DeclarativeBase): ...


jobs = BGJob(Base)
bgjob = JobKit(jobs)
seen: list[str] = []


@jobs.schedule("0 0 1 1 *", timezone="Europe/Berlin", overlap="allow")
@jobs.handler("report")
def report(ctx: Context) -> None:
    seen.append(str((ctx.job.headers or {})["bgjob-fire-time"]))


@jobs.handler("sync")
def sync(ctx: Context, customer: int) -> None:
    seen.append(f"sync {customer}")


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    Base.metadata.create_all(engine)
    seen.clear()
    with Session(engine) as session:
        yield session


def test_schedules_in_code_meet_their_times(session: Session) -> None:
    year = datetime.now(UTC).year
    fired = bgjob.fire_schedules(session, until=datetime(year + 2, 6, 1, tzinfo=UTC))

    at = [datetime(year, 12, 31, 23, tzinfo=UTC), datetime(year + 1, 12, 31, 23, tzinfo=UTC)]
    assert fired == [Fired("report", at[0]), Fired("report", at[1])]
    assert len(bgjob.work_due(session)) == 2
    assert seen == [each.isoformat() for each in at]
    assert bgjob.fire_schedules(session, until=at[1]) == [], "each time is met once"


def test_rows_fire_too_and_overlap_holds(session: Session) -> None:
    jobs.schedules.put(session, "sync:7", sync, 7, cron="@hourly")
    jobs.schedules.put(session, "sync:8", sync, 8, cron="@hourly")
    jobs.schedules.pause(session, "sync:8")

    fired = bgjob.fire_schedules(session, "sync:7", "sync:8", until=timedelta(hours=3))

    assert [each.name for each in fired] == ["sync:7"] * 3
    bgjob.assert_enqueued(session, sync, 7, headers={"bgjob-schedule": "sync:7"}, count=1)
    bgjob.work_due(session)
    assert "sync 7" in seen
    session.rollback()


def test_too_much_time_at_once_is_told(
    session: Session, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(firing, "MOST_TIMES", 10)
    jobs.schedules.put(session, "often", sync, 1, every=1)

    with pytest.raises(RuntimeError, match=r"more than 10 times .* 'often' \(@every 1\)"):
        bgjob.fire_schedules(session, until=timedelta(hours=1))
    with pytest.raises(LookupError, match=r"no schedule is called 'nothing' \(in code: report\)"):
        bgjob.fire_schedules(session, "nothing", until=timedelta(hours=1))
    with pytest.raises(TypeError, match="a transaction of yours"):
        bgjob.fire_schedules(engine, until=timedelta(hours=1))
