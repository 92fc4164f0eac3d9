"""Context variables: those of the worker's starter, and those that go with a job."""

from __future__ import annotations

from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING, Any

import pytest

from sqlalchemy_bgjob import Context, enqueue
from support.running import FLAVORS, Workbench, one_of_each

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

request_id: ContextVar[str | None] = ContextVar("request_id")
tenant: ContextVar[str] = ContextVar("tenant", default="none")


@one_of_each
def test_handlers_see_those_of_who_starts_the_worker(bench: Workbench) -> None:
    """Each has a copy: what one sets is not there in the next job of its thread or task."""
    seen: list[str] = []

    def body(ctx: Context[Any]) -> None:
        seen.append(tenant.get())
        tenant.set("of one job")

    handler = bench.handler("t", body, uses_session=False)
    for _ in range(3):
        bench.enqueue(handler)

    def start() -> None:
        tenant.set("of the starter")
        bench.run(queues={"default": 1})

    copy_context().run(start)

    assert seen == ["of the starter"] * 3


@pytest.mark.parametrize("bench", [FLAVORS[3]], ids=str, indirect=True)
def test_functions_beside_coroutines_see_them_too(bench: Workbench) -> None:
    seen: list[str] = []
    bench.enqueue(bench.jobs.handler("t", session=False)(lambda ctx: seen.append(tenant.get())))

    def start() -> None:
        tenant.set("of the starter")
        bench.run()

    copy_context().run(start)

    assert seen == ["of the starter"]


@pytest.mark.core
@one_of_each
def test_they_are_carried_from_enqueue_to_the_handler(bench: Workbench) -> None:
    """As a header, also to the jobs that the handler enqueues; and not to the next job there."""
    seen: list[Any] = []
    bench.jobs.carry(request_id=request_id, tenant_id=tenant)

    def body(s: Session, ctx: Context[Any]) -> None:
        seen.append((ctx.job.type, request_id.get("unset"), tenant.get()))
        if ctx.job.type == "first":
            request_id.set("of the handler alone")
            enqueue(s, second, headers={"tenant_id": "given"})

    second = bench.handler("second", body)
    first = bench.handler("first", body)
    other = bench.handler("other", body)

    def request() -> None:
        request_id.set("r-1")
        tenant.set("t-1")
        bench.enqueue(first)

    copy_context().run(request)
    bench.run(queues={"default": 1})
    bench.enqueue(other)
    bench.run(queues={"default": 1})

    assert seen == [
        ("first", "r-1", "t-1"),
        ("second", "of the handler alone", "given"),
        ("other", "unset", "none"),
    ]


def test_only_context_variables_are_carried(workbench_url: str) -> None:
    bench = Workbench(FLAVORS[0], workbench_url)
    with pytest.raises(TypeError, match=r"jobs.carry\(request_id=...\) takes a ContextVar, not a"):
        bench.jobs.carry(request_id="r-1")  # type: ignore[arg-type]
