"""A nightly import: a job for each line that came in, a progress bar, and an exit code.

A plain script on psycopg2, as cron runs it. It enqueues by one INSERT ... SELECT, so the lines
never leave the database, and waits until no job is left.

To run it, in this folder::

    $ docker run --rm -d -p 5432:5432 -e POSTGRES_PASSWORD=import postgres:18
    $ pip install -e "../..[psycopg2,cli]"
    $ export DATABASE_URL=postgresql+psycopg2://postgres:import@localhost:5432/postgres
    $ python nightly.py --make 200000 --work

``--make`` makes lines to import. ``--work`` runs the jobs in this process. Without it they wait
for workers, which you start in another terminal::

    $ sqlalchemy-bgjob worker nightly:jobs --engine nightly:engine --queue import:10 --processes 2
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rich.progress import MofNCompleteColumn, Progress
from sqlalchemy import create_engine, exists, func, insert, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_bgjob import BGJob, Context, MoveToDlq, Worker, enqueue_from

SLOTS = 10
# Two connections are the worker's own, and one is for the progress bar.
engine = create_engine(os.environ["DATABASE_URL"], pool_size=SLOTS + 3)


class Base(DeclarativeBase):
    pass


class Line(Base):
    """What came in during the day, as it came."""

    __tablename__ = "lines"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    words: Mapped[str]


class Reading(Base):
    __tablename__ = "readings"

    line: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    celsius: Mapped[float]


jobs = BGJob(Base)


@dataclass
class Import:
    line: int


@jobs.handler("import_line", queue="import", max_attempts=5)
def import_line(ctx: Context[Session], arg: Import) -> MoveToDlq | None:
    line = ctx.session.get_one(Line, arg.line)
    try:
        celsius = float(line.words)
    except ValueError:
        return MoveToDlq(f"line {line.number} is not a number")  # no further attempt would help
    ctx.session.add(Reading(line=line.number, celsius=celsius))
    return None


def enqueue_new(session: Session) -> None:
    """Enqueue a job for each line that has no reading and no job yet."""
    new_lines = select(
        Line.number.label("line"),  # a field of Import
        func.concat("line-", Line.number).label("id"),  # the job's own id
    ).where(~exists().where(Reading.line == Line.number))
    enqueue_from(session, import_line, new_lines, on_conflict="ignore")


def jobs_left(session: Session) -> int:
    """How many jobs of the queue have not ended; it has no others than those of the import."""
    return session.scalar(select(func.count()).where(jobs.Job.queue == "import")) or 0


def wait_for_the_end(total: int) -> None:
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn()) as progress:
        bar = progress.add_task("import", total=total)
        left = total
        while left:
            time.sleep(0.2)
            with Session(engine) as session:
                left = jobs_left(session)
            progress.update(bar, completed=total - left)


def worker() -> AbstractContextManager[Any]:
    """A worker in this process; at the end of the block it drains, and is gone."""
    return Worker(jobs, engine, queues={"import": SLOTS})


def died_since(session: Session, start: datetime) -> int:
    dead = select(func.count()).where(
        jobs.DeadJob.queue == "import", jobs.DeadJob.moved_at >= start
    )
    return session.scalar(dead) or 0


def make_lines(session: Session, number: int) -> None:
    """Lines to try it with: 20.1, 20.2 and so on."""
    n = func.generate_series(1, number).column_valued("n")
    session.execute(insert(Line).from_select(["number", "words"], select(n, func.concat("20.", n))))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Import the lines that came in.")
    parser.add_argument("--make", type=int, default=0, help="make so many lines first")
    parser.add_argument("--work", action="store_true", help="run the jobs in this process")
    options = parser.parse_args(arguments)
    Base.metadata.create_all(engine)  # enough for a first try; in a project, a migration
    with Session(engine) as session, session.begin():
        if options.make:
            make_lines(session, options.make)
        enqueue_new(session)
        total = jobs_left(session)
        start = session.scalars(select(func.now())).one()
    with worker() if options.work else nullcontext():
        wait_for_the_end(total)
    with Session(engine) as session:
        dead = died_since(session, start)
    print(f"{total - dead} imported, {dead} dead")
    return 1 if dead else 0


if __name__ == "__main__":
    sys.exit(main())
