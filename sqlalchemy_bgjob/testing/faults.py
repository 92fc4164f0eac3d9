"""A worker that dies at the worst moment, and time that passes at once.

A dead process can't report, so such a test runs its worker in another one::

    python -m sqlalchemy_bgjob.testing.faults --kill-after handler worker app:jobs --queue mail:10

runs ``sqlalchemy-bgjob worker app:jobs --queue mail:10`` until its first handler has ended. Then
the process is gone, as after SIGKILL, before anything that the handler did is committed. Start a
second worker without the fault, wait until ``select(func.count()).select_from(jobs.Job)`` is 0, and
check that everything happened once.
"""

import os
import signal
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, get_args, overload

import click

from sqlalchemy_bgjob._db.targets import SyncTarget, Unit, run_in
from sqlalchemy_bgjob._drafts import validation
from sqlalchemy_bgjob._sql import statements_of
from sqlalchemy_bgjob._sql.words import parameters
from sqlalchemy_bgjob.bgjob import BGJob
from sqlalchemy_bgjob.testing.points import at

if TYPE_CHECKING:
    from sqlalchemy_bgjob._db.targets import AsyncTarget

KillPoint = Literal["claim", "handler", "write", "settle", "beat"]
"""Where a worker can be made to die.

* ``claim``: a claim was committed, and none of its jobs was started;
* ``handler``: a handler has ended, and nothing of it is committed;
* ``write``: a settlement was written, within its transaction, and not committed;
* ``settle``: a settlement was committed, and nobody has been told;
* ``beat``: a heartbeat was committed.
"""
KILL_POINTS: Final[tuple[KillPoint, ...]] = get_args(KillPoint)
"""All of them."""


def _die() -> None:
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))


@contextmanager
def kill_worker_after(point: KillPoint, *, skip: int = 0) -> Iterator[None]:
    """Kill this process, without any cleanup, when its worker reaches a point.

    The worker runs within the block, in a process that the test has started for it.

    Args:
        point: One of :data:`KILL_POINTS`.
        skip: How many times the worker passes the point before that.

    Raises:
        ValueError: There is no such point.
    """
    if point not in KILL_POINTS:
        raise ValueError(f"the point is {point!r}; it can be one of {', '.join(KILL_POINTS)}")
    passed = 0

    def reached(fact: object) -> None:
        nonlocal passed
        if fact:  # a settlement whose lease is lost writes nothing
            passed += 1
        if passed > skip:
            _die()

    with at(point, reached):
        yield


@overload
def let_time_pass(target: SyncTarget, jobs: BGJob[Any, Any], by: float | timedelta) -> None: ...
@overload
def let_time_pass(
    target: "AsyncTarget", jobs: BGJob[Any, Any], by: float | timedelta
) -> Coroutine[Any, Any, None]: ...
def let_time_pass(target: Any, jobs: BGJob[Any, Any], by: float | timedelta) -> Any:
    """Age all jobs, as if that time had passed. No clock is changed.

    The times of the rows are moved back: those of jobs, live and dead, of pauses, and of the
    periods of unique keys. A job that was to run within that time is due at once. The rows of
    workers stay as they are, as workers live in real time, and so do schedules. The caller commits,
    as with ``enqueue``.

    Args:
        target: A Session, Connection or Engine, or an asyncio twin (then await the result).
        jobs: The BGJob of the tables.
        by: Seconds, or a timedelta.
    """
    seconds = validation.seconds("by", by)
    statements = statements_of(jobs.models)

    def work(unit: Unit) -> None:
        for statement in statements.operate.grow_older:
            unit.execute(statement, parameters(by=timedelta(seconds=seconds)))
        unit.execute(statements.operate.wake_all)

    return run_in(target, jobs.models, work, call="let_time_pass")


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option(
    "--kill-after", "point", type=click.Choice(KILL_POINTS), required=True, help="Where to die."
)
@click.option("--skip", default=0, show_default=True, help="How often to pass there before.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, required=True)
def main(point: KillPoint, skip: int, command: tuple[str, ...]) -> None:
    """Run a sqlalchemy-bgjob COMMAND in this process, which ends when its worker comes to a point.

    Not with --processes: those would be processes of their own.
    """
    from sqlalchemy_bgjob.cli import main as run

    with kill_worker_after(point, skip=skip):
        run(list(command))


if __name__ == "__main__":
    main()
