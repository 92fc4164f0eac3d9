"""The answer to a COMMIT is lost while the worker lives: it finds out what became of it.

A proxy lets the COMMIT reach the server, swallows the answer and resets the connection. The worker
can't know then whether the server has committed; it must neither lose the jobs nor run them twice.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError

from sqlalchemy_bgjob import enqueue, enqueue_many
from support import wait_until
from support.processes import ASYNC, ONE, THREADS, TWO

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from sqlalchemy_bgjob import Context
    from support.processes import Fleet, WorkerProcess
    from support.proxy import Proxy
    from support.running import Workbench


def end(process: WorkerProcess) -> None:
    """Let the worker leave, so that all its events are told."""
    process.signal(signal.SIGTERM)
    assert process.wait() == 0, process.log


def cpu_seconds(pid: int) -> float:
    """What a process has used, also in the kernel."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def handed_back(fleet: Fleet) -> int:
    """How many jobs were claimed and given back again."""
    return sum(
        change.worker_before is not None and change.worker is None and change.did == "UPDATE"
        for change in fleet.record
    )


@pytest.mark.parametrize(
    ("variant", "by_itself", "arrives"),
    [
        pytest.param(THREADS, True, True, marks=pytest.mark.core),
        pytest.param(ASYNC, True, True, marks=pytest.mark.core),
        (THREADS, False, True),
        (THREADS, False, False),
        pytest.param(ASYNC, False, True, marks=pytest.mark.chaos),
        pytest.param(ASYNC, False, False, marks=pytest.mark.chaos),
    ],
    ids=str,
)
def test_jobs_of_a_claim_without_an_answer_start_once(
    fleet: Fleet, proxy: Proxy, by_itself: bool, arrives: bool
) -> None:
    """At default settings: within five seconds, at the first attempt.

    Those of a claim that did not arrive are claimed again, the others handed back first.
    """
    if not by_itself:
        fleet.claim_in_transactions()
    process = fleet.start(url=proxy.url)
    ids = [f"job-{n}" for n in range(10)]
    proxy.cut_commit("quick", sent_by="server", arrives=arrives)

    began = time.monotonic()
    enqueue_many(fleet.engine, fleet.app.quick, [None] * len(ids), ids=ids)
    wait_until(lambda: len(fleet.journal.starts()) == len(ids), 15, what="all starts")
    took = max(line["at"] for line in fleet.journal.read("start")) - began
    fleet.wait_until_done()
    end(process)

    print(f"all started {took:.2f} s after the enqueue")
    assert proxy.cuts == 1
    claims = len(ids) if arrives else 0
    assert handed_back(fleet) == claims, "it was another COMMIT that was cut"
    assert took < 5.0
    starts = [line for lines in fleet.journal.starts().values() for line in lines]
    assert [(line["attempt"], line["crashes"]) for line in starts] == [(1, 0)] * len(ids)
    assert fleet.journal.count("completed") == len(ids)


@pytest.mark.parametrize("variant", ONE, ids=str)
def test_an_outage_that_met_a_claim_is_waited_for_at_rest(fleet: Fleet, proxy: Proxy) -> None:
    """There is something to look up as soon as the server is back, and nothing to do until then."""
    process = fleet.start(url=proxy.url)
    proxy.refuse()  # a claim finds its connection lost, and can't know whether it was committed
    wait_until(lambda: proxy.refusals >= 3, 15, what="the worker's attempts to connect")
    before = cpu_seconds(process.pid)
    began, tries = time.monotonic(), proxy.refusals
    wait_until(lambda: proxy.refusals >= tries + 12, 60, what="further attempts")
    took, used = time.monotonic() - began, cpu_seconds(process.pid) - before
    proxy.pass_on()
    enqueue(fleet.engine, fleet.app.quick)
    fleet.wait_until_done(20)
    end(process)

    print(f"{used:.2f} s of the processor in {took:.2f} s")
    assert used < 0.3 * took + 0.1


@pytest.mark.parametrize(
    ("variant", "arrives"),
    [
        (THREADS, True),
        (ASYNC, True),
        (THREADS, False),
        pytest.param(ASYNC, False, marks=pytest.mark.chaos),
    ],
    ids=str,
)
def test_a_settlement_without_an_answer_is_made_once(
    fleet: Fleet, proxy: Proxy, arrives: bool
) -> None:
    """The job runs once, and observers hear of its end once, whether it arrived or not."""
    process = fleet.start(url=proxy.url)
    proxy.cut_commit("settled-one", sent_by="client", arrives=arrives)

    ids = ["settled-one", "other-1", "other-2"]
    enqueue_many(fleet.engine, fleet.app.quick, [None] * 3, ids=ids)
    wait_until(lambda: fleet.journal.count("completed") >= 3, 15, what="all job_completed events")
    end(process)

    assert proxy.cuts == 1
    assert fleet.jobs_left == 0
    assert sorted(line["id"] for line in fleet.journal.read("completed")) == sorted(ids)
    assert {len(lines) for lines in fleet.journal.starts().values()} == {1}
    assert fleet.journal.count("lease_lost") == 0


@pytest.mark.parametrize(("arrives", "attempts"), [(True, [1]), (False, [1, 2])])
@pytest.mark.parametrize("variant", TWO, ids=str)
def test_a_handler_s_commit_without_an_answer_is_its_only_one(
    fleet: Fleet, proxy: Proxy, arrives: bool, attempts: list[int]
) -> None:
    """Its effect and the job's end were one COMMIT: the effect is there once.

    Without a rerun, if it arrived; if not, the attempt has failed.
    """
    process = fleet.start(url=proxy.url)
    proxy.cut_commit("own-commit", sent_by="client", arrives=arrives)

    enqueue(fleet.engine, fleet.app.effect, id="own-commit")
    wait_until(lambda: fleet.journal.count("completed") >= 1, 15, what="job_completed")
    end(process)

    assert proxy.cuts == 1
    assert fleet.effects() == {"own-commit": 1}
    assert [line["attempt"] for line in fleet.journal.read("start")] == attempts
    assert fleet.journal.count("completed") == 1
    assert fleet.jobs_left == 0


@pytest.mark.parametrize("variant", ONE, ids=str)
def test_connections_that_are_reset_again_and_again_lose_nothing(
    fleet: Fleet, proxy: Proxy
) -> None:
    """All connections at once, while jobs are claimed, run and settled."""
    fleet.start(url=proxy.url)
    ids = [f"job-{n:03}" for n in range(200)]
    for n in range(10):
        enqueue_many(fleet.engine, fleet.app.effect, [None] * 20, ids=ids[n * 20 : n * 20 + 20])
        started = len(fleet.journal.starts())
        wait_until(
            lambda started=started: len(fleet.journal.starts()) > min(started + 3, 190),
            20,
            what="more starts",
        )
        proxy.reset()
    fleet.wait_until_done(60)

    fleet.check(ids, with_effects=ids, faults=10)
    assert {line["crashes"] for line in fleet.journal.read("start")} == {0}


def test_an_own_id_runs_again_when_its_job_has_ended(fleet: Fleet, proxy: Proxy) -> None:
    """The enqueuer does not know whether its COMMIT came through, and says it again: too late."""
    fleet.start()
    producer = create_engine(proxy.url)
    proxy.cut_commit("order-7", sent_by="client")

    with pytest.raises(DBAPIError):
        enqueue(producer, fleet.app.effect, id="order-7")
    producer.dispose()
    wait_until(lambda: fleet.journal.count("completed") == 1, 60, what="the first job's end")
    again = enqueue(fleet.engine, fleet.app.effect, id="order-7", on_conflict="ignore")
    wait_until(lambda: fleet.journal.count("completed") == 2, 60, what="the second job's end")

    assert proxy.cuts == 1
    assert again.inserted
    assert fleet.effects() == {"order-7": 2}


def test_an_effect_with_a_row_of_its_own_happens_once(bench: Workbench) -> None:
    """However often its job is enqueued: the row commits together with the effect."""
    bench.sql("CREATE TABLE IF NOT EXISTS receipt (order_id text PRIMARY KEY)")
    bench.sql("TRUNCATE receipt")
    add = text("INSERT INTO receipt VALUES (:id) ON CONFLICT DO NOTHING RETURNING order_id")

    def handler(session: Session, ctx: Context[Any]) -> None:
        if session.scalar(add, {"id": ctx.job.id}) is not None:
            bench.note(session, ctx)

    receipt = bench.handler("receipt", handler)
    for _ in range(2):
        assert bench.enqueue(receipt, id="order-7") == "order-7"
        ran = bench.run()
        assert ran.of("order-7") == ["started", "completed"]

    assert bench.notes("order-7") == ["written"]
