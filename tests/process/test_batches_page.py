"""docs/guides/batches.md: its blocks are one program, and what they leave ends as the page says."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from sqlalchemy_bgjob.testing.faults import let_time_pass

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "batches.md"


@pytest.mark.core
def test_the_program_of_the_page_runs(
    database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    program: dict[str, Any] = {"DATABASE_URL": database_url}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(compile(block, PAGE.name, "exec", dont_inherit=True), program)
        if "async def main" in block:
            asyncio.run(program["main"]())
    said = capsys.readouterr().out
    jobs, engine, stopped = (program[name] for name in ("jobs", "engine", "batch"))

    for _ in range(3):  # the attempts of the job that dies
        work_all(jobs, engine)
        let_time_pass(engine, jobs, 3600)
    info = jobs.batch_info(engine, stopped.id)
    assert (info.ended, info.dead, info.finished_at) == (2, 1, None)
    with Session(engine) as session, session.begin():
        program["correct"](session, stopped.id)
    work_all(jobs, engine)

    with Session(engine) as session:
        closed = session.scalars(select(jobs.Record).where(jobs.Record.type == "close_month"))
        sums = sorted(record.result_json for record in closed)
    engine.dispose()
    assert sums == [20, 20, 30, 30, 160]
    assert "3 of 3 are left\n0 of 2 have ended" in said
    assert "100 are gone, 0 are running" in said


def work_all(jobs: Any, engine: Any) -> None:
    while jobs.work_one(engine, "billing") is not None:
        pass
