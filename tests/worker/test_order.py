"""In which order a worker takes the jobs of a queue: by priority, or by time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from sqlalchemy_bgjob import Queue
from support.running import one_of_each

if TYPE_CHECKING:
    from support.running import Workbench


@pytest.mark.core
@one_of_each
def test_a_worker_reads_each_queue_in_its_own_order(bench: Workbench) -> None:
    """One slot each, so that the order is exact; several claims, and some of both queues."""
    started: dict[str, list[str]] = {"by time": [], "by priority": []}

    def note(ctx: Any) -> None:
        started[ctx.job.queue].append(ctx.job.id)

    for queue in started:
        bench.handler(queue, note, queue=queue, uses_session=False, session=False)
        bench.sql(
            "INSERT INTO bgjob_job (id, queue, type, priority, next_run_at)"
            " SELECT :queue || ' ' || n, :queue, :queue, n % 7,"
            "  now() - interval '1 min' + (n * 37 % 50) * interval '1 s'"
            " FROM generate_series(1, 50) AS n",
            queue=queue,
        )

    expected = {
        queue: [
            row[0]
            for row in bench.sql(
                f"SELECT id FROM bgjob_job WHERE queue = :queue ORDER BY {order}, id", queue=queue
            )
        ]
        for queue, order in (
            ("by time", "next_run_at, priority"),
            ("by priority", "priority, next_run_at"),
        )
    }
    bench.run(queues={"by time": Queue(1, order="time"), "by priority": 1}, max_claim=4)

    assert started == expected
