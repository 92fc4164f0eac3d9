"""Metadata that is reflected from a database which has the queue's tables already."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, MetaData, Table, func, select
from sqlalchemy.ext.automap import automap_base
from sqlalchemy.orm import Session

from sqlalchemy_bgjob import BGJob, Worker, enqueue
from support import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.core


@pytest.fixture
def tables(engine: Engine) -> Engine:
    """A database after the first migration."""
    BGJob(MetaData()).metadata.create_all(engine)
    return engine


def by_automap(engine: Engine, before: Callable[[Any], Any]) -> Any:
    base = automap_base()
    made = before(base)
    base.prepare(autoload_with=engine)
    return made, base


def by_reflect(engine: Engine, before: Callable[[Any], Any]) -> Any:
    metadata = MetaData()
    made = before(metadata)
    metadata.reflect(engine)
    return made, metadata


def by_table(engine: Engine, before: Callable[[Any], Any]) -> Any:
    """One by one, as SQLModel and old code bases do."""
    metadata = MetaData()
    made = before(metadata)
    for name in ("bgjob_job", "bgjob_dead_job", "bgjob_worker"):
        Table(name, metadata, autoload_with=engine)
    return made, metadata


@pytest.mark.parametrize("reflected", [by_automap, by_reflect, by_table])
def test_a_queue_after_the_reflection_is_told_to_be_first(tables: Engine, reflected: Any) -> None:
    """Not to take another prefix, which would make new and empty tables."""
    _, target = reflected(tables, lambda target: None)

    with pytest.raises(ValueError, match=r"reflected.* call BGJob\(\) before reflect"):
        BGJob(target)


@pytest.mark.parametrize("reflected", [by_automap, by_reflect])
def test_a_queue_before_the_reflection_works(tables: Engine, reflected: Any) -> None:
    jobs, _ = reflected(tables, BGJob)

    @jobs.handler("noted")
    def noted(ctx: Any, arg: int) -> None: ...

    with Session(tables) as session:
        enqueue(session, noted, 1)
        session.add(noted.job(2))
        session.commit()

    def left() -> int:
        with Session(tables) as session:
            return session.scalar(select(func.count()).select_from(jobs.Job)) or 0

    assert left() == 2
    with Worker(jobs, tables):
        wait_until(lambda: left() == 0, 30, what="the end of the jobs")


def test_a_second_queue_is_still_told_of_the_first() -> None:
    metadata = MetaData()
    BGJob(metadata)

    with pytest.raises(ValueError, match=r"call BGJob\(\) once for each MetaData"):
        BGJob(metadata)
