"""Context variables: those of the worker's starter."""

from __future__ import annotations

from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING, Any

import pytest

from support.running import FLAVORS, Workbench, one_of_each

if TYPE_CHECKING:
    from sqlalchemy_bgjob import Context

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
