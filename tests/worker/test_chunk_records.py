"""Records of jobs that share a call: one for each job, of its own end."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from sqlalchemy_bgjob import Complete, Context, MoveToDlq, Retry
from support.chunks import Chunks
from support.recording import RecordingBench
from support.running import FLAVORS, one_of_each, only_threads

if TYPE_CHECKING:
    from collections.abc import Iterator

KEPT = timedelta(hours=1)
LONG: dict[str, Any] = {"heartbeat_interval": 60.0, "lease_timeout": 600.0}
"""No job waits in vain for a chunk that is to become full."""


@dataclass
class Link:
    """A result."""

    url: str


@pytest.fixture(params=FLAVORS, ids=str)
def bench(request: pytest.FixtureRequest, workbench_url: str) -> Iterator[RecordingBench]:
    bench = RecordingBench(request.param, workbench_url)
    bench.reset()
    yield bench
    bench.close()


@pytest.mark.core
@one_of_each
@pytest.mark.parametrize("uses_session", [True, False])
def test_each_job_has_its_own_record_and_count(bench: RecordingBench, uses_session: bool) -> None:
    """Of its own end, whenever that is; all that share a call have taken as long as the call."""
    ends = {
        "first": Complete(result={"of": "first"}),
        "second": Complete(result={"of": "second"}),
        "plain": None,
        "bad": MoveToDlq("no such order"),
        "later": Retry(0, "not yet"),
    }

    def body(ctx: Context[Any], args: list[str], session: Any) -> Any:
        if len(args) == 1:
            return Complete(result=ctx.jobs[0].attempt)
        return {job.id: ends[arg] for job, arg in zip(ctx.jobs, args, strict=True)}

    chunks = Chunks(bench, body, uses_session=uses_session, chunk=5, wait=60, record=KEPT)
    ids = chunks.enqueue(*ends)

    bench.run(**LONG)

    assert chunks.sizes == [5, 1]
    records = [bench.record(job_id) for job_id in ids]
    assert [(one.state, one.result, one.error, one.attempt) for one in records] == [
        ("completed", {"of": "first"}, None, 1),
        ("completed", {"of": "second"}, None, 1),
        ("completed", None, None, 1),
        ("dead", None, "no such order", 1),
        ("completed", 2, None, 2),
    ]
    assert [bench.counted(outcome) for outcome in ("completed", "dead", "retry")] == [4, 1, 1]
    ran = {row.outcome: row.ran for row in bench.sql("SELECT outcome, ran FROM bgjob_minute")}
    assert ran["dead"] == pytest.approx(ran["retry"])
    assert ran["completed"] > 3 * ran["dead"] > 0, "three of this call, and one of its own"


@one_of_each
def test_one_outcome_gives_its_result_to_all(bench: RecordingBench) -> None:
    chunks = Chunks(bench, lambda *called: Complete(result="all"), chunk=2, wait=60, record=KEPT)
    ids = chunks.enqueue("a", "b")

    bench.run(**LONG)

    assert [bench.record(job_id).result for job_id in ids] == ["all", "all"]


@one_of_each
def test_a_result_that_cant_be_kept_fails_alone(bench: RecordingBench) -> None:
    """What the call wrote is undone; then each job runs alone, and the others are complete."""

    def body(ctx: Context[Any], args: list[str], session: Any) -> Any:
        results = {"good": 1, "bad": object()}
        return {
            job.id: Complete(result=results[arg]) for job, arg in zip(ctx.jobs, args, strict=True)
        }

    chunks = Chunks(bench, body, chunk=2, wait=60, max_attempts=2, record=KEPT)
    good, bad = chunks.enqueue("good", "bad")

    bench.run(**LONG)

    assert chunks.notes([good, bad]) == [["written"], []]
    assert (bench.record(good).state, bench.record(good).result) == ("completed", 1)
    assert (bench.record(bad).state, bench.record(bad).result) == ("dead", None)
    assert "result" in bench.record(bad).error


@one_of_each
def test_nobody_tells_the_progress_of_a_chunk(bench: RecordingBench) -> None:
    """Nor of one that has a single job: a handler's code is the same for both."""

    def body(ctx: Context[Any], args: list[str], session: Any) -> None:
        with pytest.raises(RuntimeError, match=r"takes chunks, and ctx\.progress is of one job"):
            ctx.progress(1, of=2)

    chunks = Chunks(bench, body, chunk=2, record=KEPT)
    ids = chunks.enqueue("a", "b", "c")

    bench.run()

    records = [bench.record(job_id) for job_id in ids]
    assert [(one.state, one.progress) for one in records] == [("completed", None)] * 3


@only_threads
def test_a_result_has_the_type_in_the_dict_of_outcomes(bench: RecordingBench) -> None:
    def links(ctx: Context[Any], args: list[str]) -> dict[str, Complete[Link] | Retry] | None:
        return {job.id: Complete(Link(f"/{arg}")) for job, arg in zip(ctx.jobs, args, strict=True)}

    handler = bench.jobs.handler("links", chunk=2, record=KEPT)(links)
    job_id = bench.enqueue(handler, "a")

    bench.run()

    assert bench.record(job_id).result == Link("/a")
