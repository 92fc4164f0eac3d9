"""What callers change in the database, and jobs with unique keys that are to see it.

A caller writes a change of a key, and enqueues a job for that key in the same transaction. Whether
the job is new or was there: some run must see the change.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, Column, Identity, MetaData, Table, Text, create_engine, text

from sqlalchemy_bgjob import (
    BGJob,
    Context,
    JobAlreadyExists,
    JobRef,
    JobType,
    Unique,
    constant,
    enqueue,
    enqueue_many,
)

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from support.worker_app import Journal

_CHANGE = text("INSERT INTO change (key) VALUES (:key) RETURNING n")
_SEE = text(
    "INSERT INTO seen (n, job_id) SELECT n, :id FROM change WHERE key = :key"
    " AND NOT EXISTS (SELECT FROM seen WHERE seen.n = change.n) RETURNING n"
)
HELD = "held"
"""The key whose jobs go on until they are released."""


def add_tables(metadata: MetaData) -> None:
    """Of the changes, and of those that were seen."""
    number = Column("n", BigInteger, Identity(), primary_key=True)
    Table("change", metadata, number, Column("key", Text, index=True))
    Table("seen", metadata, Column("n", BigInteger, index=True), Column("job_id", Text))


def register(jobs: BGJob[Any, Any], journal: Journal) -> JobType[str]:
    """The handler that sees the changes of a key."""

    def see(ctx: Context[Any], key: str) -> None:
        job = ctx.job
        journal.note("start", id=job.id, attempt=job.attempt, lease=job.lease, crashes=job.crashes)
        numbers = ctx.session.execute(_SEE, {"key": key, "id": job.id}).scalars().all()
        journal.note("saw", id=job.id, key=key, changes=sorted(numbers))
        threading.Event().wait(0.01)  # others wait in the queue meanwhile
        while key == HELD and not journal.released:
            threading.Event().wait(0.05)

    return jobs.handler("see", retry=constant(0.05))(see)


def change(
    connection: Connection, see: JobType[str], key: str, unique: Unique
) -> tuple[int, JobRef]:
    """Write a change, and enqueue a job that is to see it; what the caller is told."""
    number = connection.execute(_CHANGE, {"key": key}).scalar_one()
    return number, enqueue(connection, see, key, unique=unique)


def changed(engine: Engine, see: JobType[str], journal: Journal, key: str) -> str:
    """The same in a transaction of its own; the id of the job that is to see it."""
    with engine.connect() as connection:
        number, ref = change(connection, see, key, Unique(key, "queued"))
        commit(connection, journal, [(key, number, ref)])
    return ref.id


def commit(connection: Connection, journal: Journal, told: list[tuple[str, int, JobRef]]) -> None:
    """Commit, and note what the caller was told; each change with the moment before the COMMIT."""
    committing = time.monotonic()
    connection.commit()
    for name, number, ref in told:
        journal.note("told", key=name, change=number, job=ref.id, committing=committing)


@dataclass(frozen=True)
class Producing:
    """What one producer does: so many enqueues of these keys, at random."""

    url: str
    journal: str
    seed: int
    enqueues: int
    keys: int

    VARIABLE = "BGJOB_TEST_PRODUCER"


def produce(what: Producing, engine: Engine, see: JobType[str], journal: Journal) -> None:
    """Transactions that end at random, each with one to four keys; and what they were told."""
    dice = random.Random(what.seed)
    done = 0
    while done < what.enqueues:
        # Half of the keys are of each scope. In the order of keys, as single enqueues must be that
        # share a transaction.
        numbers = sorted(dice.sample(range(what.keys), dice.randrange(1, 5)))
        names = [f"{'lq'[n * 2 // what.keys]}{n:03}" for n in numbers]
        try:
            _transaction(dice, names, engine, see, journal)
        except Exception as error:
            journal.note("failed", error=f"{type(error).__name__}: {error}"[:500])
        done += len(names)
        journal.note("turn", enqueues=len(names))


def _transaction(
    dice: random.Random, names: list[str], engine: Engine, see: JobType[str], journal: Journal
) -> None:
    told: list[tuple[str, int, JobRef]] = []
    with engine.connect() as connection:
        if dice.random() < 0.3:
            policy: Any = dice.choice(("skip", "replace", "earlier"))
            numbers = [connection.execute(_CHANGE, {"key": name}).scalar_one() for name in names]
            result = enqueue_many(connection, see, names, unique=lambda name: _unique(name, policy))
            told = list(zip(names, numbers, result.refs, strict=True))
        else:
            for name in names:
                policy = dice.choice(("skip", "skip", "raise", "replace", "earlier"))
                with contextlib.suppress(JobAlreadyExists):
                    told.append((name, *change(connection, see, name, _unique(name, policy))))
        time.sleep(dice.random() * 0.01)  # others come while it is open
        committed = dice.random() < 0.75
        if committed:
            # Of scope live, a job that runs already need not see it.
            commit(connection, journal, [one for one in told if one[0].startswith("q")])
        else:
            connection.rollback()
    for _, _, ref in told:
        if ref.inserted:
            journal.note("added" if committed else "undone", job=ref.id)


def _unique(name: str, policy: Any) -> Unique:
    if name.startswith("q"):
        return Unique(name, "queued", on_conflict=policy)
    return Unique(name, on_conflict="raise" if policy == "raise" else "skip")


def environment(what: Producing) -> dict[str, str]:
    """For a process of its own: ``python -m support.changes``."""
    return {Producing.VARIABLE: json.dumps(asdict(what))}


def main() -> int:
    from support.worker_app import Journal, make_app

    what = Producing(**json.loads(os.environ[Producing.VARIABLE]))
    journal = Journal(Path(what.journal))
    engine = create_engine(what.url)
    produce(what, engine, make_app("sync", journal).see, journal)
    engine.dispose()
    return 0


if __name__ == "__main__":
    sys.exit(main())
