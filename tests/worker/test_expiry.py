"""``expires=``: a job that was not started in time is never started."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import MetaData, literal, select
from sqlalchemy.orm import Session

from sqlalchemy_bgjob import (
    BGJob,
    Context,
    enqueue,
    enqueue_from,
    enqueue_many,
)
from sqlalchemy_bgjob._enqueue import many as enqueueing
from support.tables import new_engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine

    from support.databases import TestServer
    from support.tuning import Tune

jobs: BGJob[Any, Any] = BGJob(MetaData())
FAR = datetime(2100, 1, 1, tzinfo=UTC)


@jobs.handler("otp")
def otp(ctx: Context[Any], arg: dict[str, int]) -> None: ...


@pytest.fixture(scope="module")
def shop(server: TestServer) -> Iterator[Engine]:
    with new_engine(server) as engine:
        jobs.metadata.create_all(engine)
        yield engine


@pytest.fixture
def session(shop: Engine) -> Iterator[Session]:
    with Session(shop) as session:
        yield session


ARG = {"n": 1}
WAYS: dict[str, Callable[..., Any]] = {
    "enqueue": lambda s, **options: enqueue(s, otp, ARG, **options),
    "by its type": lambda s, **options: jobs.enqueue(s, "otp", ARG, **options),
    "INSERT": lambda s, **options: enqueue_many(s, otp, [ARG], **options),
    "COPY": lambda s, **options: enqueue_many(s, otp, [ARG] * 2, **options),
    "objects": lambda s, **options: enqueue_many(s, [otp.job(ARG, **options), otp.job(ARG)]),
    "query": lambda s, **options: enqueue_from(s, otp, select(literal(1).label("n")), **options),
    "session.add": lambda s, **options: s.add(otp.job(ARG, **options)),
}


@pytest.mark.core
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("options", "after_due", "at"),
    [
        ({"expires": 30}, 30.0, None),
        ({"expires": timedelta(minutes=1), "delay": 600}, 60.0, None),
        ({"expires": 1.5, "run_at": FAR}, 1.5, None),
        ({"expires": FAR}, None, FAR),
        ({}, None, None),
    ],
    ids=["seconds", "delayed", "run_at", "moment", "never"],
)
def test_every_way_stores_when_it_expires(
    session: Session,
    way: str,
    options: dict[str, Any],
    after_due: float | None,
    at: Any,
    tune: Tune,
) -> None:
    """Counted from the moment when the job is due."""
    if way == "COPY":
        tune(enqueueing, WORTH_IT=1)

    WAYS[way](session, **options)

    rows = session.scalars(select(jobs.Job).order_by(jobs.Job.expires_at)).all()
    first = rows[0]
    if after_due is not None:
        assert first.expires_at == first.next_run_at + timedelta(seconds=after_due)
    else:
        assert first.expires_at == at
    if way == "objects":
        assert rows[-1].expires_at is None


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"expires": 0}, ValueError, "would never let the job start"),
        ({"expires": -1}, ValueError, "expires=-1 s is not between"),
        ({"expires": "30"}, TypeError, "expires must be seconds"),
        ({"expires": datetime(2100, 1, 1)}, ValueError, "has no time zone"),  # noqa: DTZ001
        ({"expires": FAR, "run_at": FAR}, ValueError, "is not after run_at"),
    ],
)
def test_what_can_not_be_is_refused(
    session: Session, way: str, options: dict[str, Any], error: Any, match: str
) -> None:
    with pytest.raises(error, match=match):
        WAYS[way](session, **options)


def test_an_end_beyond_all_time_is_the_last_moment(session: Session) -> None:
    last = datetime(9998, 12, 31, tzinfo=UTC)

    enqueue(session, otp, ARG, run_at=last, expires=timedelta(days=30_000))

    stored = session.scalars(select(jobs.Job.expires_at)).one()
    assert stored is not None
    assert stored.astimezone(UTC).year == 9998
