"""The jobs that the comparison adds to those of ``bench``: handlers that do something."""

import asyncio
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import BigInteger, Column, Identity, Table, Text, insert

from sqlalchemy_bgjob import Context
from sqlalchemy_bgjob._bench import jobs
from sqlalchemy_bgjob._sql import statements_of


class Recorder(jobs.Recorder):
    """Notes the process's memory too."""

    def sample(self) -> None:
        """Note what the process has used."""
        self.samples.append((time.monotonic(), time.process_time(), resident_bytes()))


class App(jobs.App):
    """With handlers that do something, and a table that they may write to."""

    recorder_class = Recorder

    def function(self) -> Callable[..., Any]:
        """The handler that the option ``handler`` names."""
        self.statements = statements_of(self.jobs.models)
        self.effect = Table(
            "bench_effect",
            self.metadata,
            Column("id", BigInteger, Identity(), primary_key=True),
            Column("job_id", Text, nullable=False),
        )
        kind = self.options.get("handler")
        if kind is None:
            return super().function()
        return (self._coroutines() if self.is_async else self._functions())[kind]

    @property
    def handler_options(self) -> dict[str, Any]:
        """For the handler ``chunks``, how many jobs share a call."""
        return {"chunk": 100} if self.options.get("handler") == "chunks" else {}

    def _coroutines(self) -> dict[str, Callable[..., Any]]:
        seen, effect = self.recorder.seen, self.effect

        async def session(ctx: Context[Any], arg: dict[str, Any]) -> None:
            seen(arg.get("n"))
            await ctx.session.execute(insert(effect), {"job_id": ctx.job.id})

        async def chunks(ctx: Context[Any], args: list[dict[str, Any]]) -> None:
            for arg in args:
                seen(arg.get("n"))
            await ctx.session.execute(insert(effect), [{"job_id": job.id} for job in ctx.jobs])

        async def sleep(ctx: Context[Any], arg: dict[str, Any]) -> None:
            seen(arg.get("n"))
            await asyncio.sleep(0.001)

        async def mixed(ctx: Context[Any], arg: dict[str, Any]) -> None:
            seen(arg.get("n"))
            await asyncio.sleep(arg["s"])

        return {"sleep": sleep, "mixed": mixed, "session": session, "chunks": chunks}

    def _functions(self) -> dict[str, Callable[..., Any]]:
        seen, effect = self.recorder.seen, self.effect

        def session(ctx: Context[Any], arg: dict[str, Any]) -> None:
            seen(arg.get("n"))
            ctx.session.execute(insert(effect), {"job_id": ctx.job.id})

        def chunks(ctx: Context[Any], args: list[dict[str, Any]]) -> None:
            for arg in args:
                seen(arg.get("n"))
            ctx.session.execute(insert(effect), [{"job_id": job.id} for job in ctx.jobs])

        return {"session": session, "chunks": chunks}


def resident_bytes() -> int:
    """The process's memory now; where the system does not tell, the most it has had."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
    return int(pages) * resource.getpagesize()
