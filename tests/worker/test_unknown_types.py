"""Jobs whose type has no handler in this worker: put off, and dead after their grace."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from sqlalchemy_bgjob import Context, Retry, UnknownType
from support.running import FLAVORS, Workbench, one_of_each, paired

if TYPE_CHECKING:
    from collections.abc import Callable


def unknown(bench: Workbench, type: str = "tomorrow", **options: Any) -> str:
    return bench.jobs.enqueue(bench.outside, type, {"a": 1}, queue="default", **options).id


@pytest.mark.core
@one_of_each
def test_an_unknown_type_is_put_off_and_costs_no_attempt(bench: Workbench) -> None:
    """A rolling deploy: the workers that know it are yet to come."""
    known = bench.enqueue(bench.handler("known", lambda ctx: None, uses_session=False))
    job_id = unknown(bench)

    ran = bench.run(until=lambda: bench.job(known) is None and bench.job(job_id).unknown_since)

    first = bench.job(job_id)
    assert ran.of(job_id) == []
    assert (first.attempt, first.claimed_by, first.last_error) == (0, None, None)
    assert 0 < first.due_in <= 60.0

    # Another look, when it has waited for 7 s: put off as long again, still counted from the first.
    bench.sql(
        "UPDATE bgjob_job SET unknown_since = now() - interval '7 s', next_run_at = now()"
        " WHERE id = :id",
        id=job_id,
    )
    bench.run()
    second = bench.job(job_id)
    assert second.attempt == 0
    assert 5.0 < (second.next_run_at - second.updated_at).total_seconds() < 20.0

    # The deploy has come.
    done = bench.handler("tomorrow", lambda ctx: None, uses_session=False)
    bench.sql("UPDATE bgjob_job SET next_run_at = now() WHERE id = :id", id=job_id)
    ran = bench.run()
    assert ran.of(job_id) == ["started", "completed"]
    assert ran.last(job_id).job.attempt == 1  # type: ignore[union-attr]
    assert done.type == "tomorrow"


@one_of_each
def test_a_job_that_became_known_forgets_that_it_was_not(bench: Workbench) -> None:
    job_id = bench.enqueue(bench.handler("t", lambda ctx: Retry(1000), uses_session=False))
    bench.sql("UPDATE bgjob_job SET unknown_since = now() - interval '200 s'")

    bench.run()

    assert bench.job(job_id).unknown_since is None


@paired("grace", [0, 0.5])
def test_an_unknown_type_dies_after_its_grace(bench: Workbench, grace: float) -> None:
    bench.handler("known", lambda ctx: None, uses_session=False)
    job_id = unknown(bench)

    ran = bench.run(until=lambda: bench.dead(job_id), unknown_type_grace=grace)

    dead = bench.dead(job_id)
    assert dead.last_error == f"UnknownType: {UnknownType('tomorrow', grace)}"
    assert (dead.attempt, dead.arg) == (0, b'{"a":1}')
    assert dead.moved_at - dead.job_created_at >= timedelta(seconds=grace)
    assert ran.of(job_id) == ["moved_to_dlq"]
    event = ran.last(job_id)
    assert event.job is not None
    assert event.job.attempt == 0


# On psycopg an AsyncWorker makes itself a synchronous engine, and can run any function.
@pytest.mark.parametrize("bench", [*FLAVORS[:2], FLAVORS[3]], ids=str, indirect=True)
def test_a_type_that_this_worker_can_not_run_is_unknown_to_it(bench: Workbench) -> None:
    """Registered for another queue as the other kind of function: never failed."""
    if bench.flavor.is_async:

        @bench.jobs.handler("other", queue="elsewhere")
        def function(ctx: Context[Any], arg: Any) -> None:
            raise AssertionError
    else:

        @bench.jobs.handler("other", queue="elsewhere")
        async def coroutine(ctx: Context[Any], arg: Any) -> None:
            raise AssertionError

    known = bench.enqueue(bench.handler("known", lambda ctx: None, uses_session=False))
    job_id = unknown(bench, "other")

    bench.run(until=lambda: bench.job(known) is None and bench.job(job_id).unknown_since)

    job = bench.job(job_id)
    assert (job.attempt, job.last_error, job.claimed_by) == (0, None, None)


@one_of_each
def test_a_default_handler_takes_what_has_no_handler_of_its_own(bench: Workbench) -> None:
    seen: list[tuple[str, str]] = []

    def body(name: str) -> Callable[..., Any]:
        return lambda ctx: seen.append((name, ctx.job.type))

    bench.handler("*", body("default"), uses_session=False)
    bench.handler("known", body("own"), uses_session=False)
    unknown(bench, "known")
    unknown(bench, "a")
    unknown(bench, "b" * 128)

    bench.run()

    assert sorted(seen) == [("default", "a"), ("default", "b" * 128), ("own", "known")]
